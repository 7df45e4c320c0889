"""How fast a training runs, and what it waits for: the numbers of a logging step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_data.read.fetch import ReadTimings
from vmae_train.clips.loader import ClipLoader
from vmae_train.distributed import Distributed

__all__ = ["Throughput", "bottleneck", "progress_note"]

COMPUTE_SHARE = 0.1


def bottleneck(timings: ReadTimings, seconds: float) -> str:
    """The stage that limits a process that trained for `seconds`.

    compute: the training waited less than a tenth of the time. transfer: it waited mostly for copies to the device.
    network: the decode workers waited longer for bytes (network or disk) than they decoded. Else decode: more workers
    help if there are idle cores.
    """
    if timings.batch_wait_seconds < COMPUTE_SHARE * seconds:
        return "compute"
    if timings.transfer_seconds > timings.batch_wait_seconds / 2:
        return "transfer"
    return "network" if timings.fetch_seconds > timings.decode_seconds else "decode"


class Throughput:
    """Measures the time between logging steps. `seconds` and `timings` are this process's of the last interval."""

    def __init__(self, loader: ClipLoader, distributed: Distributed) -> None:
        self._loader, self._distributed = loader, distributed
        self.restart()

    def restart(self, step: int | None = None) -> None:
        """Start measuring. Without a step the next line has no speed: other work than steps went before."""
        self._started_at, self._step = time.perf_counter(), step
        self._before = self._loader.timings

    def line(
        self,
        step: int,
        *,
        loss: Tensor,
        parts: tuple[str, ...],
        grad_norm: Tensor,
        lr: float,
        epoch: int,
        batch: int,
    ) -> dict[str, Any]:
        """The log line of a step. `loss` and `parts` are those of StepResult. All processes call it together."""
        now = time.perf_counter()
        self.seconds = seconds = now - self._started_at
        self.timings = timings = self._loader.timings.minus(self._before)
        steps = step - self._step if self._step is not None else None
        own = [_memory_mb(loss.device), *timings, *loss.flatten().tolist()]
        memory, *rest = zip(*self._distributed.all_gather_floats(own), strict=True)
        rest, losses = rest[: len(timings)], rest[len(timings) :]
        means = dict(zip(("loss", *parts), map(sum, losses), strict=True))  # in the order of ranks: always the same
        processes = [ReadTimings(*values) for values in zip(*rest, strict=True)]
        slowest = max(processes, key=lambda one: one.batch_wait_seconds)
        lookups = sum(one.cache_hits + one.cache_misses for one in processes)
        self.restart(step)
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            **means,
            "lr": lr,
            "grad_norm": float(grad_norm),
            "clips_per_second": round(steps * batch / seconds, 2) if steps else None,
            "data_wait": round(slowest.batch_wait_seconds / seconds, 4),
            "limits": bottleneck(slowest, seconds),
            "cache_hits": round(sum(one.cache_hits for one in processes) / lookups, 4) if lookups else None,
            "read_mb": round(sum(one.range_bytes + one.cache_bytes for one in processes) / 1e6, 3),
            "memory_mb": round(max(memory), 1),
        }


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def progress_note(line: dict[str, Any], loss: str) -> str:
    """What the progress bar shows of a log line. `loss` is the name of the loss."""
    speed = f"{line['clips_per_second']:.0f} clips/s, " if line["clips_per_second"] else ""
    limit = "" if line["limits"] == "compute" else f" ({line['limits']})"
    return f"{loss} {line['loss']:.4f}, {speed}{line['data_wait']:.0%} waiting for data{limit}"
