"""Logs as MindSpore 2.10, CANN and this package write them, shortened; addresses and process ids are of no meaning."""

STARTED = """\
[WARNING] DISTRIBUTED(7137,7fa638a67b80,python3):2026-11-25-17:11:20.632.674 [mindspore/ccsrc/cluster/topology/cluster_context.cc:319] BuildCluster] Cluster is successfully initialized.
[WARNING] DEVICE(7137,7fa638a67b80,python3):2026-11-25-17:11:26.635.836 [mindspore/ccsrc/plugin/cpu/res_manager/collective/ms_collective_comm_lib.cc:58] Initialize] Mindspore collective communication lib for group mccl_world_group has already been initialized.
17:11:27 INFO    training dvt_t2t_vit_12: 300 epochs of 1251 steps of 128 images; the first step compiles for a while
17:11:58 INFO    epoch 1/300: loss per exit 6.900/6.899/6.902, lr 1.00e-06, 120 images/s
"""  # noqa: E501

RAISED = """\
Traceback (most recent call last):
  File "/opt/dvt/train.py", line 27, in <module>
    sys.exit(run())
  File "/opt/dvt/src/dvt/training/run.py", line 107, in _epoch
    losses = self.step(Tensor(images), Tensor(labels)).asnumpy()
ValueError: For primitive[Reshape], the input shape is wrong.

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/ops/infer/reshape.cc:91 InferShape
"""

CHAINED = """\
Traceback (most recent call last):
  File "/opt/dvt/src/dvt/data/images.py", line 20, in read
    raise OSError("unexpected end of file")
OSError: unexpected end of file

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/opt/dvt/src/dvt/data/pipelines.py", line 80, in batches
    raise RuntimeError("cannot go on") from error
RuntimeError: cannot go on
"""

PEER_LOST = """\
[WARNING] DISTRIBUTED(24557,7ff9f4ff96c0,python3):2026-11-25-17:26:21.640.673 [mindspore/ccsrc/cluster/rpc/core/communicator/tcp_client.cc:346] EventCallbackInner] Client connected end of file! Peer Worker ip: 127.0.0.1, port: 8374
[ERROR] DISTRIBUTED(24557,7ff9f4ff96c0,python3):2026-11-25-17:26:51.819.375 [mindspore/ccsrc/cluster/rpc/core/collective_ops_impl.cc:162] RunRingAllReduce] Ring ReduceScatter wait receiving [1,13] failed.
[ERROR] KERNEL(24557,7ff9f4ff96c0,python3):2026-11-25-17:26:51.819.426 [mindspore/ops/kernel/cpu/native/allreduce_cpu_kernel.cc:89] Launch] AllReduceCPUKernelMod launch failed.
Traceback (most recent call last):
  File "/opt/dvt/train.py", line 27, in <module>
    sys.exit(run())
RuntimeError: Launch kernel failed, name:Default/AllReduce-op0

----------------------------------------------------
- C++ Call Stack: (For framework developers)
----------------------------------------------------
mindspore/ccsrc/pynative/utils/runtime/op_runner.cc:671 LaunchKernels

[INFO] DISTRIBUTED(24557,7ff9f6ffd6c0,python3):2026-11-25-17:26:51.833.385 [mindspore/ccsrc/cluster/rpc/core/communicator/tcp_client.cc:367] Start] Event base dispatch success!
"""  # noqa: E501

NOTIFY_TIMEOUT = """\
[ERROR] DEVICE(7277,fffee57fa120,python):2024-11-28-11:59:30.645.700 [mindspore/ccsrc/plugin/res_manager/ascend/ascend_stream_manager.cc:300] SyncStream] Call runtime rtStreamSynchronize error.
Traceback (most recent call last):
  File "/opt/dvt/train.py", line 27, in <module>
    sys.exit(run())
RuntimeError: Sync stream failed

----------------------------------------------------
- Ascend Error Message:
----------------------------------------------------
EI0002: [PID: 7277] 2024-11-28-11:59:30.645.648 The wait execution of the Notify register times out. Reason: The Notify register has not received the Notify record from remote rank [3].
        Possible Cause: 1. An exception occurs during the execution on some NPUs in the cluster.
"""  # noqa: E501

RANKS_DIFFER = """\
[ERROR] DISTRIBUTED(3111,ffff8b,python):2024-04-24-06:32:27.781.599 [mindspore/ccsrc/plugin/ascend/hccl_adapter.cc:500] HcclAllReduce] HcclAllReduce failed, ret:1
EI0005: 2024-04-24-06:32:27.781.599 The arguments for collective communication are inconsistent between ranks:tag[HcomAllReduce_6629421139219749105_0], parameter[count], local[16512], remote [8320]
        Solution: Check whether the training script and ranktable of each NPU are consistent.
"""  # noqa: E501

SCHEDULER = """\
[ERROR] DISTRIBUTED(7441,7ff81099e6c0,python3):2026-11-25-17:12:05.049.893 [mindspore/ccsrc/cluster/topology/meta_server_node.cc:548] UpdateTopoState] The node: 1 is timed out. It may exit with exception, please check this node's log.
Traceback (most recent call last):
  File "/opt/dvt/train.py", line 27, in <module>
    sys.exit(run())
RuntimeError: The total number of timed out node is 1. Timed out node list is: [const vector]{1}, worker 1 is the first one timed out, please check its log.
"""  # noqa: E501

MSRUN = """\
Start worker process with rank id:0, log file:L/worker_0.log. Environment variable [RANK_ID=0] is exported. Execute command: python3 train.py
[ERROR] ME(7436:140614505638784,MainProcess):2026-11-25-17:12:08.287.000 [mindspore/parallel/cluster/process_entity/_api.py:365] Worker process 7443 exit with exception. Error code: -9.
[WARNING] ME(7436:140614505638784,MainProcess):2026-11-25-17:12:08.287.000 [mindspore/parallel/cluster/process_entity/_api.py:370] There's worker exits with exception, kill all other workers.
"""  # noqa: E501
