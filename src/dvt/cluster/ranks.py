"""The ranks of a data-parallel job: how this process joins them (HCCL on Ascend), and what they exchange between two
steps: small float32 arrays, the one type that all backends sum. The gradients are exchanged inside the compiled step
(`dvt.training.gradients`)."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, communication, ops

from dvt import device
from dvt.cluster.diagnosis import recognise
from dvt.errors import DeviceError, DVTError, reason_of

_LAST_MESSAGE_SECONDS = 1.0


@dataclass(frozen=True)
class Ranks:
    """The place of this process in its job. All ranks must call `sum`, `gather` and `leave` equally often. A single
    process exchanges nothing."""

    rank: int = 0  # of this process
    world_size: int = 1  # processes of the job

    @classmethod
    def join(cls) -> "Ranks":
        """Waits for the other ranks, after `dvt.device.set_up`, if this process was started as one of several.

        The scheduler process stays here until the job has ended. Raises DeviceError if not all ranks come.
        """
        if not device.is_one_of_several():
            return cls()
        try:
            if not communication.GlobalComm.INITED:
                communication.init()  # chooses HCCL (Ascend), NCCL (GPU) or MCCL (CPU) by the device
        except (RuntimeError, ValueError) as error:
            raise DeviceError(
                f"this rank cannot join the others: {reason_of(error)} Check that all nodes run the same command, with "
                f"the same MASTER_ADDR and MASTER_PORT, and that every node has {device.current_target()}"
            ) from error
        count = communication.get_group_size()
        ms.set_auto_parallel_context(parallel_mode=ms.ParallelMode.DATA_PARALLEL, gradients_mean=True, device_num=count)
        return cls(communication.get_rank(), count)

    @property
    def shard(self) -> tuple[int, int]:
        """(rank, world size): this rank's share of the data, as `Splits.pipeline` takes it."""
        return self.rank, self.world_size

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The element-wise sum of an array over all ranks, as float32; whole numbers are exact up to 2**24."""
        values = np.asarray(values, np.float32)
        return values if self.world_size == 1 else ops.AllReduce()(Tensor(values)).asnumpy()

    def gather(self, values: np.ndarray) -> np.ndarray:
        """(ranks, ...) float32: the arrays of all ranks, which must have one shape."""
        values = np.asarray(values, np.float32)[None]
        return values if self.world_size == 1 else ops.AllGather()(Tensor(values)).asnumpy()

    @contextlib.contextmanager
    def losses_named(self) -> Iterator[None]:
        """Around the work of all ranks: raises DVTError where MindSpore's own error says that another rank is lost."""
        try:
            yield
        except RuntimeError as error:
            known = recognise(str(error)) if self.world_size > 1 else None
            if known is None or not known.follows:
                raise
            raise DVTError(
                f"rank {self.rank} cannot go on: another rank, or the connection to it, went away ({known.name}). The "
                "launcher says which one and why; after that is repaired, --resume goes on from the last saved epoch"
            ) from error

    def leave(self) -> None:
        """Ends the work of this rank together with the others: on the CPU a rank that exits early kills its peers."""
        if self.world_size > 1:
            self.sum(np.zeros(1))
            time.sleep(_LAST_MESSAGE_SECONDS)


ALONE = Ranks()
