"""A dry run: the first two steps of a training as it would be, and what the whole would take."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmae_train.training.checkpoint import RunState
from vmae_train.training.diagnostics import Diagnostic, check_setup
from vmae_train.training.engine import Engine
from vmae_train.training.loop import Training
from vmae_train.training.step_sync import Signals, StepAgreement
from vmae_train.training.throughput import Timings

__all__ = ["DryRunDone", "DryRunReport", "dry_run_report", "take_dry_run_steps"]

STEPS = 2


class DryRunReport(NamedTuple):
    """What two steps showed. Of several processes the most memory and the longest wait count."""

    steps: int
    epochs: float
    batch: int
    loss: float  # of the second step
    step_seconds: float  # the second step; the first has the start of decoders and kernels in it
    wait_seconds: float  # of it, for data
    limits: str  # the stage that limits: compute, transfer, decode, network
    memory_mb: float  # the device's peak; on a CPU that of the process
    device: str
    checkpoint_mb: float
    checkpoints: int  # kept at the end, at most: the last ones, and the best where scores on the way choose one
    diagnostics: tuple[Diagnostic, ...]

    @property
    def total_seconds(self) -> float:
        """The whole training, without evaluation and checkpoints."""
        return self.steps * self.step_seconds

    @property
    def disk_mb(self) -> float:
        """The kept checkpoints, and the one that is written before the oldest goes."""
        return (self.checkpoints + 1) * self.checkpoint_mb


class DryRunDone(Exception):
    """The end of a dry run, in place of the training that would follow."""

    def __init__(self, rehearsal: DryRunReport) -> None:
        super().__init__("a dry run has ended")
        self.rehearsal = rehearsal


def dry_run_report(run: Callable[..., object], spec: object, **where: Any) -> DryRunReport:
    """What the two first steps of `pretrain` or `finetune` show, taken in a folder that goes again.

    Raises what they raise.
    """
    with TemporaryDirectory(prefix="vmae-dry-run-") as folder:
        try:
            run(spec, out=folder, dry_run=True, **where)
        except DryRunDone as end:
            return end.rehearsal
    raise AssertionError("a dry run went on to its end")


def take_dry_run_steps(training: Training) -> RunState:
    """Take the place of `train` for two steps. Raises Rehearsed with what they showed; nothing is written."""
    engine, loader, distributed = training.engine, training.loader, training.distributed
    batches, spread = iter(loader), distributed.spread(engine.model, training.loss_of)
    seconds, loss, spent = 0.0, 0.0, Timings.by(loader)
    with Signals() as signals:
        agree = StepAgreement(distributed, signals, loader.unreadable)
        for step in range(min(STEPS, engine.schedule.steps)):
            began_at, before = time.perf_counter(), Timings.by(loader)
            numbers = engine.step(step, batches, spread, agree)
            loss = float(numbers.loss)  # waits for the device
            seconds, spent = time.perf_counter() - began_at, Timings.by(loader).since(before)
            agree.stop(numbers.agreed)
    everyone = distributed.all_gather_floats([loss, seconds, spent.waited, _peak_mb(engine.device)])
    losses, times, waits, memories = zip(*everyone, strict=True)
    raise DryRunDone(
        DryRunReport(
            steps=engine.schedule.steps,
            epochs=round(engine.schedule.steps / training.order.steps_per_epoch, 2),
            batch=engine.spec.batch,
            loss=sum(losses),
            step_seconds=max(times),
            wait_seconds=max(waits),
            limits=spent.limit(seconds),
            memory_mb=round(max(memories), 1),
            device=str(engine.device),
            checkpoint_mb=round(_checkpoint_mb(engine), 3),
            checkpoints=training.place.checkpoint.keep + _keeps_best(training),
            diagnostics=tuple(check_setup(training.place.facts)),
        )
    )


def _keeps_best(training: Training) -> bool:
    every = training.validate_every
    return every is not None and every <= training.engine.schedule.steps


def _checkpoint_mb(engine: Engine) -> float:
    """The weights, the optimizer's two moments of each, and their running mean in float32 where one is kept."""
    tensors: list[Tensor] = [*engine.model.state_dict().values()]
    tensors += [
        value for state in engine.optimizer.state.values() for value in state.values() if torch.is_tensor(value)
    ]
    mean = sum(4 * value.numel() for value in engine.model.state_dict().values()) if engine.ema is not None else 0
    return (mean + sum(tensor.numel() * tensor.element_size() for tensor in tensors)) / 1e6


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
