"""What a run's logging steps tell: how fast it is, what it waits for, what a person should know."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmae_train.clips.loader import ClipLoader
from vmae_train.distributed import Distributed

__all__ = ["Remarks", "Throughput", "Timings", "note"]

COMPUTE_SHARE = 0.1


class Remarks:
    """What the loaders of all processes found that a person should know, each once."""

    def __init__(self, loader: ClipLoader, distributed: Distributed) -> None:
        self._loader, self._world = loader, distributed
        self._told: dict[str, None] = {}

    def fresh(self) -> list[str]:
        """What was not told before; asked by all processes together."""
        everyone = self._world.all_gather(list(self._loader.notes), list[str])
        fresh = [
            remark
            for remark in dict.fromkeys([text for found in everyone for text in found])
            if remark not in self._told
        ]
        self._told.update(dict.fromkeys(fresh))
        return fresh


class Timings(NamedTuple):
    """What bringing the data has taken in one process: seconds, but for bytes read and samples in and not in the cache."""

    waited: float  # by the training, for batches
    moved: float  # of these, handing them to the device
    fetching: float  # by the decode workers, all together
    decoding: float
    read: float
    hits: float
    misses: float

    @classmethod
    def by(cls, loader: ClipLoader) -> Timings:
        took = loader.timings
        read = took.range_bytes + took.cache_bytes
        return cls(
            took.batch_wait_seconds,
            took.transfer_seconds,
            took.fetch_seconds,
            took.decode_seconds,
            read,
            took.cache_hits,
            took.cache_misses,
        )

    def since(self, before: Timings) -> Timings:
        return Timings(*(now - then for now, then in zip(self, before, strict=True)))

    def limit(self, seconds: float) -> str:
        """The stage that a training of so many seconds would have to be faster in.

        compute: it waited for data less than a tenth of the time. transfer: most of its waiting was the handing over of
        batches that were there. Else it waited for the decode workers, and these for bytes (network: or the disk, where
        the shards lie on this machine) longer than they decoded, or not (decode: more workers help, where there are cores).
        """
        if self.waited < COMPUTE_SHARE * seconds:
            return "compute"
        if self.moved > self.waited / 2:
            return "transfer"
        return "network" if self.fetching > self.decoding else "decode"


class Throughput:
    """Seconds between logging steps, and how many of them were spent waiting for data, by whoever waited longest."""

    def __init__(self, loader: ClipLoader, distributed: Distributed) -> None:
        self._loader, self._world = loader, distributed
        self.restart()

    def restart(self, step: int | None = None) -> None:
        self._at, self._step = time.perf_counter(), step
        self._before = Timings.by(self._loader)

    def line(
        self, step: int, *, loss: Tensor, grad_norm: Tensor, rate: float, epoch: int, batch: int
    ) -> dict[str, Any]:
        """The line of a logging step: `loss` is this process's part of the mean. Called by all processes together."""
        now = time.perf_counter()
        seconds, spent = now - self._at, Timings.by(self._loader).since(self._before)
        steps = step - self._step if self._step is not None else None
        own = [float(loss), _memory_mb(loss.device), *spent]
        losses, memory, *rest = zip(*self._world.all_gather_floats(own), strict=True)
        everyone = [Timings(*values) for values in zip(*rest, strict=True)]
        slowest = max(everyone, key=lambda one: one.waited)
        asked = sum(one.hits + one.misses for one in everyone)
        self.restart(step)
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            "loss": sum(losses),  # by rank, so that it is the same number each time
            "lr": rate,
            "grad_norm": float(grad_norm),
            "clips_per_second": round(steps * batch / seconds, 2) if steps else None,
            "data_wait": round(slowest.waited / seconds, 4),
            "limits": slowest.limit(seconds),
            "cache_hits": round(sum(one.hits for one in everyone) / asked, 4) if asked else None,
            "read_mb": round(sum(one.read for one in everyone) / 1e6, 3),
            "memory_mb": round(max(memory), 1),
        }


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def note(line: dict[str, Any], loss: str) -> str:
    speed = f"{line['clips_per_second']:.0f} clips/s, " if line["clips_per_second"] else ""
    limit = "" if line["limits"] == "compute" else f" ({line['limits']})"
    return f"{loss} {line['loss']:.4f}, {speed}{line['data_wait']:.0%} waiting for data{limit}"
