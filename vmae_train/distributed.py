"""The processes of a run: who they are, what they agree on, and the device of each.

torchrun says rank and size by environment variables; without it a run is one process and no group is made.
What is agreed on goes over a group of the CPU's, so that no step waits for a GPU, and as numbers and JSON only.
"""

from __future__ import annotations

import inspect
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, NoReturn

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmae_data.errors import MisuseError, ReportedElsewhere, VmaeError
from vmae_data.progress import ProgressStyle

__all__ = ["Distributed", "Spread", "choose_device", "init_distributed"]


class Spread(NamedTuple):
    """A loss whose backward pass gives the mean of all processes' gradients, and how to put that off."""

    loss: Callable[..., Tensor]
    apart: Callable[[], AbstractContextManager[Any]]  # gradients of passes inside stay in this process


class _Failure(msgspec.Struct, frozen=True):
    exit_status: int


class Distributed:
    """The processes of a run, all of which call the same methods in the same order."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0, group: Any = None) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._group = group

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks for all."""
        return self.rank == 0

    def style(self, style: ProgressStyle) -> ProgressStyle:
        """The given one in the main process; the others show nothing."""
        return style if self.is_main else ProgressStyle.QUIET

    def sum(self, values: Sequence[int]) -> list[int]:
        """The sums over all processes, each of some integers."""
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(values, dtype=torch.int64)
        self._exchange(lambda: dist.all_reduce(numbers, group=self._group))
        return [int(n) for n in numbers.tolist()]

    def gather(self, data: bytes) -> list[bytes]:
        """What every process gave, by rank."""
        if self.size == 1:
            return [data]
        sizes = self._gather_equal(torch.tensor([len(data)], dtype=torch.int64))
        longest = max(1, *(int(size) for size in sizes))
        padded = torch.zeros(longest, dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else 0
        return [
            found[: int(size)].numpy().tobytes() for size, found in zip(sizes, self._gather_equal(padded), strict=True)
        ]

    def all_gather(self, record: Any, kind: Any) -> list[Any]:
        """What every process gave, by rank, as records of a kind."""
        if self.size == 1:
            return [record]
        return [msgspec.json.decode(data, type=kind) for data in self.gather(msgspec.json.encode(record))]

    def all_gather_floats(self, values: Sequence[float]) -> list[list[float]]:
        """Numbers of every process, by rank, as they are; infinities too."""
        if self.size == 1:
            return [list(values)]
        return [found.tolist() for found in self._gather_equal(torch.tensor(values, dtype=torch.float64))]

    def _gather_equal(self, values: Tensor) -> list[Tensor]:
        found = [torch.empty_like(values) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(found, values, group=self._group))
        return found

    def _exchange(self, call: Callable[[], Any]) -> None:
        with self.waiting_for_peers():
            call()

    @contextmanager
    def waiting_for_peers(self) -> Iterator[None]:
        """Around whatever waits for the others: one that is gone has said why, or its launcher does."""
        try:
            yield
        except RuntimeError as error:
            if self.size > 1 and _is_lost_peer(error):
                raise ReportedElsewhere(1) from error
            raise

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """All processes get past the end of the block, or none: a VmaeError of one ends all.

        The first that failed raises its own error, the others ToldElsewhere with the same exit status.
        """
        failed: VmaeError | OSError | None = None
        try:
            yield
        except ReportedElsewhere:
            raise
        except (VmaeError, OSError) as error:
            if self.size == 1:
                raise
            failed = error
        if self.size > 1 and self.sum([failed is not None])[0]:
            self.raise_first(failed)

    def raise_first(self, failed: Exception | None) -> NoReturn:
        """End all processes by the error of the first that has one; called by all, at least one with an error."""
        if self.size == 1:
            assert failed is not None
            raise failed
        status = None if failed is None else getattr(failed, "exit_status", 1)
        found = self.all_gather(status, int | None)
        first = next(rank for rank, other in enumerate(found) if other is not None)
        self.end()
        if first == self.rank:
            assert failed is not None
            raise failed
        raise ReportedElsewhere(found[first]) from failed

    def end(self) -> None:
        """It is agreed that all end: what the launcher sends because another ended first is not heeded."""
        if self.size > 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def on_main_process(self, held: AbstractContextManager[Any]) -> Iterator[None]:
        """Hold something in the main process while all work; an error of entering it ends all."""
        if self.is_main:
            with self.all_or_none():
                held.__enter__()
            try:
                yield
            except BaseException as error:
                held.__exit__(type(error), error, error.__traceback__)
                raise
            held.__exit__(None, None, None)
        else:
            with self.all_or_none():
                pass
            yield

    def spread(self, model: nn.Module, loss_of: Callable[..., Tensor]) -> Spread:
        """The loss of a model that all processes train together.

        The model itself stays as it is, names and all: DistributedDataParallel wraps the loss around it.
        """
        if self.size == 1:
            return Spread(loss_of, nullcontext)
        with self.waiting_for_peers():
            wrapped = DistributedDataParallel(
                _LossModule(model, loss_of), gradient_as_bucket_view=True, **_BUFFERS_STAY
            )
        return Spread(wrapped, wrapped.no_sync)


# Buffers are fixed numbers, the same everywhere. Older versions of torch call this otherwise.
_KNOWN = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS_STAY: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _KNOWN else "broadcast_buffers": False
}


class _LossModule(nn.Module):
    """DistributedDataParallel wants to see the forward pass: here it is, down to the loss."""

    def __init__(self, model: nn.Module, loss_of: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss_of = loss_of

    def forward(self, batch: Any) -> Tensor:
        return self._loss_of(batch)


def _is_lost_peer(error: RuntimeError) -> bool:
    """Gloo has no error class of its own; NCCL has."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "gloo/transport")
    return isinstance(error, dist.DistError) or any(word in str(error) for word in words)


@contextmanager
def init_distributed(device: str | None = None) -> Iterator[Distributed]:
    """The processes that torchrun started, or this one alone.

    Raises MisuseError where torchrun's variables make no sense.
    """
    try:
        rank, size, local_rank = (int(os.environ.get(name, default)) for name, default in _VARIABLES)
    except ValueError as error:
        raise MisuseError(f"RANK, WORLD_SIZE or LOCAL_RANK is no number ({error}); start by torchrun") from error
    if size == 1:
        yield Distributed()
        return
    on_gpu = torch.cuda.is_available() and not (device or "").startswith("cpu")
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        group = dist.new_group(backend="gloo")
    except (RuntimeError, ValueError) as error:
        found = str(error).splitlines()[0]
        raise VmaeError(
            f"process {rank} of {size}: the others can't be reached ({found}); start by torchrun"
        ) from error
    yield Distributed(rank, size, local_rank, group)
    # Not after an error: then others may be gone, and taking leave of them could wait for ever.
    dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def choose_device(
    name: str | None = None, *, threads: int | None = None, distributed: Distributed | None = None
) -> torch.device:
    """The named device, else the GPU where there is one (each process of a machine its own); and the CPU threads.

    Raises VmaeError for a device that isn't there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed is not None and distributed.size > 1:
        name = f"cuda:{distributed.local_rank}"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VmaeError(f"device {name!r}: not there ({str(error).splitlines()[0]}); use cpu or cuda") from error
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device
