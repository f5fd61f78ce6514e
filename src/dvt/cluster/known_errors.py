"""Errors of distributed runs that are known by a code or a phrase, and what usually causes them. Imports no framework.

The codes are those of CANN and HCCL (Ascend): their documentation of error codes, version 8. The launcher prints
cause and remedy.
"""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KnownError:
    """One row of the table.

    Attributes:
        name: Code or short name.
        pattern: Regular expression that finds it in a log.
        cause: What usually causes it and what to do, in one or two sentences.
        follows: Whether it is what a worker reports when *another* worker has failed.
    """

    name: str
    pattern: str
    cause: str
    follows: bool = False


# On a busy machine a worker may repeat its registration before the answer to the first one has come; MindSpore 2.10
# takes the second for that of another worker. No training has begun by then, so the launcher starts the job again.
REGISTERED_TWICE = KnownError(
    "registered twice",
    r"Repeated registration node|registered repeatedly",
    "The scheduler took a worker for a second one of the same rank. On a busy machine that happens by chance: start "
    "again. Otherwise workers of another job use the same MASTER_ADDR and MASTER_PORT, or two machines the same "
    "NODE_RANK.",
)

KNOWN_ERRORS = (
    KnownError(
        "EI0002",
        r"\bEI0002\b",
        "A rank waited for another one inside a collective operation until its time ran out (notify timeout). Look "
        "for an earlier error of another rank; if there is none, a rank was too slow (evaluation, saving, data), or "
        "ranks made different numbers of steps. HCCL_EXEC_TIMEOUT, in seconds, sets how long to wait.",
        follows=True,
    ),
    KnownError(
        "EI0004",
        r"\bEI0004\b",
        "The rank table is not valid: RANK_TABLE_FILE must name every device of the job once, with the addresses that "
        "hccn_tool shows, and be the same file on every machine. Without it HCCL finds the devices by itself.",
    ),
    KnownError(
        "EI0005",
        r"\bEI0005\b",
        "Ranks disagree about a collective operation (its kind or size): they run different code, another "
        "configuration or another rank table. Bring every machine to the same state.",
    ),
    KnownError(
        "EI0006",
        r"\bEI0006\b|wait socket establish timeout",
        "Ranks could not connect to each other in time. A rank ended or hung before it connected (look for an earlier "
        "error), or the network between the cards is cut: firewall, TLS set differently, hccn_tool link or ping. "
        "HCCL_CONNECT_TIMEOUT, in seconds, sets how long to wait.",
        follows=True,
    ),
    KnownError(
        "EJ0001",
        r"\bEJ0001\b",
        "HCCP could not start on a device, mostly because processes of an earlier run still hold it: find them with "
        "`npu-smi info`, end them, wait some 10 seconds, and start again.",
    ),
    KnownError(
        "EE1001",
        r"\bEE1001\b",
        "A device id does not exist on this machine or in this container: compare DEVICE_NUM and "
        "ASCEND_RT_VISIBLE_DEVICES with `npu-smi info`.",
    ),
    KnownError(
        "other code, configuration or versions",
        r"runs? other code, another configuration or other versions",
        "Not every rank runs the same source files, resolved configuration, MindSpore and NumPy.",
    ),
    KnownError(
        "out of memory",
        r"(?i)out of memory|memory (?:is )?not enough|\bMemoryError\b|std::bad_alloc|\bEL0004\b|\bEL0005\b",
        "The memory of a device or of the host was not enough: lower train.batch_size (and raise "
        "train.accumulation_steps), set train.recompute, or lower data.workers if it was the host's.",
    ),
    KnownError(
        "loss not finite",
        r"(?i)loss is no longer finite|\bloss\b[^\n]{0,40}\bnan\b",
        "The training diverged: lower train.learning_rate, lengthen train.warmup_epochs or set train.clip_norm. A "
        "learning rate meant for another global batch is a common reason; see train.base_batch_size.",
    ),
    KnownError(
        "address in use",
        r"(?i)address already in use|port[^\n]{0,40}(?:is occupied|in use)",
        "Another process holds the port: an earlier run that has not ended, or another job. Choose another "
        "MASTER_PORT.",
    ),
    REGISTERED_TWICE,
    KnownError(
        "cluster incomplete",
        r"processes in the cluster are not successfully spawned|Building networking for MS_\w+ failed",
        "Not all workers connected in time: a worker or a whole machine did not start, MASTER_ADDR or MASTER_PORT "
        "differ between machines or cannot be reached from here, or NNODES does not fit.",
        follows=True,
    ),
    KnownError(
        "worker lost",
        r"timed out node|is timed out\. It may exit|Client connected end of file|Kill this process with SIGTERM|"
        r"\bRing \w+ wait \w+ [^\n]*failed|All(?:Reduce|Gather)CPUKernelMod launch failed|"
        r"Launch kernel failed, name:\S*(?:AllReduce|AllGather|Broadcast|ReduceScatter)|"
        r"(?i:connection (?:reset|refused|closed|lost)|broken pipe|heartbeat lost)",
        "Another worker, or the connection to it, went away. Look for the error of that worker, on the other machines "
        "too.",
        follows=True,
    ),
    KnownError(
        "interrupted",
        r"^KeyboardInterrupt\b|^interrupted$",
        "The worker was asked to stop: by a signal, or by MindSpore because another worker was lost.",
        follows=True,
    ),
)

# Keyed by the number of the signal.
SIGNAL_CAUSES = {
    6: "The process aborted itself, mostly in native code; the lines before in its log say why.",
    7: "The process touched memory that is not there, mostly a full /dev/shm (in containers: --shm-size).",
    9: "Mostly the kernel's or the container's out-of-memory killer (see `dmesg`), else somebody's kill -9. Lower "
    "data.workers or train.batch_size if memory was short.",
    11: "A crash in native code (driver, MindSpore, or a library they use); the lines before in its log may say where.",
}


def recognise(text: str) -> KnownError | None:
    """The first row of the table that `text` shows, or None; rows that are causes go before rows that are effects."""
    found = [known for known in KNOWN_ERRORS if re.search(known.pattern, text, re.MULTILINE)]
    return next((known for known in found if not known.follows), found[0] if found else None)
