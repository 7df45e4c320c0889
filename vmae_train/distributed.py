"""The processes of a training: ranks, collective operations, sharded tensors, and devices.

torchrun sets rank and world size by environment variables. Without it a training is one process, and no group is made.
Collectives of `Distributed` use a gloo group and exchange numbers and JSON only, so that no step waits for a GPU.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NoReturn

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from vmae_data.errors import MisuseError, ReportedElsewhere, VmaeError
from vmae_data.processes import STOP_SIGNALS, keep_freed_memory
from vmae_data.progress import ProgressStyle

__all__ = [
    "Distributed",
    "check_device",
    "choose_device",
    "init_distributed",
    "shard_like",
    "whole",
]


class Distributed:
    """All processes of a training. They call the same methods in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, group: Any = None) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._group = group

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints for all."""
        return self.rank == 0

    def style(self, style: ProgressStyle) -> ProgressStyle:
        """The given style in the main process; other processes print nothing."""
        return style if self.is_main else ProgressStyle.QUIET

    def all_reduce_sum(self, values: Sequence[int]) -> list[int]:
        """The element-wise sums over all processes."""
        if self.world_size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        with self.waiting_for_peers():
            dist.all_reduce(numbers, group=self._group)
        return [int(n) for n in numbers.tolist()]

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of every process, by rank."""
        if self.world_size == 1:
            return [data]
        sizes = self._all_gather_tensor(torch.tensor([len(data)], dtype=torch.int64))
        padded = torch.zeros(max(1, *(int(size) for size in sizes)), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        gathered = self._all_gather_tensor(padded)
        return [tensor[: int(size)].numpy().tobytes() for size, tensor in zip(sizes, gathered, strict=True)]

    def all_gather(self, record: Any, kind: Any) -> list[Any]:
        """A record of every process, by rank. `kind` is its type."""
        if self.world_size == 1:
            return [record]
        return [msgspec.json.decode(data, type=kind) for data in self.all_gather_bytes(msgspec.json.encode(record))]

    def all_gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Numbers of every process, by rank, bit for bit; infinities too."""
        if self.world_size == 1:
            return [list(values)]
        return [gathered.tolist() for gathered in self._all_gather_tensor(torch.tensor(values, dtype=torch.float64))]

    def _all_gather_tensor(self, values: Tensor) -> list[Tensor]:
        gathered = [torch.empty_like(values) for _ in range(self.world_size)]
        with self.waiting_for_peers():
            dist.all_gather(gathered, values, group=self._group)
        return gathered

    @contextmanager
    def waiting_for_peers(self) -> Iterator[None]:
        """Around every wait for other processes. A lost peer has reported its reason, or its launcher does."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size > 1 and _is_lost_peer(error):
                raise ReportedElsewhere(1) from error
            raise

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """All processes pass the end of the block, or none: an error in one process ends all.

        The first process that failed raises its own error. The others raise ReportedElsewhere with the same exit status.
        """
        failed: VmaeError | OSError | None = None
        try:
            yield
        except ReportedElsewhere:
            raise
        except (VmaeError, OSError) as error:
            if self.world_size == 1:
                raise
            failed = error
        if self.world_size > 1 and self.all_reduce_sum([failed is not None])[0]:
            self.raise_first(failed)

    def raise_first(self, failed: Exception | None) -> NoReturn:
        """End all processes by the error of the lowest rank that has one. All call it, at least one with an error."""
        if self.world_size == 1:
            assert failed is not None
            raise failed
        status = None if failed is None else getattr(failed, "exit_status", 1)
        statuses = self.all_gather(status, int | None)
        first = next(rank for rank, other in enumerate(statuses) if other is not None)
        self.ignore_signals()
        if first == self.rank:
            assert failed is not None
            raise failed
        raise ReportedElsewhere(statuses[first]) from failed

    def ignore_signals(self) -> None:
        """All processes have agreed to end: ignore what the launcher sends because another one ended first."""
        if self.world_size > 1:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def on_main_process(self, held: AbstractContextManager[Any]) -> Iterator[None]:
        """Enter a context in the main process only, for the block of all. An error on entering it ends all."""
        if not self.is_main:
            with self.all_or_none():
                pass
            yield
            return
        with self.all_or_none():
            held.__enter__()
        try:
            yield
        except BaseException as error:
            held.__exit__(type(error), error, error.__traceback__)
            raise
        held.__exit__(None, None, None)


def _is_lost_peer(error: RuntimeError) -> bool:
    """NCCL has an error class for it. Gloo has none, so its message is searched."""
    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")
    return isinstance(error, dist.DistError) or any(message in str(error) for message in messages)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which each process has a shard (DTensor), gathered by all of them together. Another as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's shard of a tensor that all processes have, if `like` is sharded. Nothing is sent."""
    if not hasattr(like, "full_tensor"):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor  # takes half a second

    assert isinstance(like, DTensor)
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[Distributed]:
    """The processes that torchrun started, or this one.

    Raises MisuseError if torchrun's variables are no numbers, VmaeError if the other processes can't be reached.
    """
    try:
        rank, world_size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    except ValueError as error:
        raise MisuseError(f"RANK, WORLD_SIZE or LOCAL_RANK is not a number ({error}). Start with torchrun") from error
    if not (0 <= rank < world_size <= 1 << 20 and 0 <= local_rank <= rank):
        raise MisuseError(
            f"RANK={rank}, WORLD_SIZE={world_size}, LOCAL_RANK={local_rank}: contradict each other. Start with torchrun"
        )
    if world_size == 1:
        yield Distributed()
        return
    on_gpu = torch.cuda.is_available() and not (device or "").startswith("cpu")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        group = dist.new_group(backend="gloo")
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise VmaeError(
            f"process {rank} of {world_size}: can't reach the other processes ({reason}). Start with torchrun"
        ) from error
    yield Distributed(rank, world_size, local_rank, group)
    # Not after an error: other processes may be gone, and destroying the group could wait for them for ever.
    dist.destroy_process_group()


def choose_device(
    name: str | None = None, *, threads: int | None = None, distributed: Distributed | None = None
) -> torch.device:
    """The named device, else the GPU if there is one, else the CPU. Each process of a machine has its own GPU.

    `threads` sets PyTorch's CPU threads. A process that computes on the CPU keeps its freed memory.
    Raises VmaeError for a device that does not exist.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed is not None and distributed.world_size > 1:
        name = f"cuda:{distributed.local_rank}"
    device = check_device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    if device.type == "cpu":
        keep_freed_memory()
    return device


def check_device(name: str | torch.device) -> torch.device:
    """The device of this name. Raises VmaeError for one that does not exist."""
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("nothing is computed there")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        why = "no such device" if reason.startswith("Expected one of") else reason  # which lists all of torch's
        raise VmaeError(f"device {str(name)!r}: not available ({why}). Use cpu or cuda") from error
    return device
