"""`--dry-run`: the first steps of a training, and what the whole training would take."""

from __future__ import annotations

import resource
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from vmae_train.checkpoints.native import describe, empty_model
from vmae_train.models.base import trained_parameters, training_only_parameters
from vmae_train.training.diagnostics import Diagnostic
from vmae_train.training.engine import Engine
from vmae_train.training.trainer import Trainer

__all__ = ["DryRunReport", "dry_run_report"]

STEPS = 2


class DryRunReport(NamedTuple):
    """What the steps showed. Of several processes the highest memory and the longest waiting count."""

    steps: int
    epochs: float
    batch: int
    loss: float  # of the second step
    step_seconds: float  # of the second step: the first one includes the start of decoders and kernels
    wait_seconds: float  # of these, waiting for data
    limits: str  # the stage that limits: compute, transfer, decode, network
    memory_mb: float  # peak of the device, or of the process if the device is a CPU
    device: str
    checkpoint_mb: float
    checkpoints: int  # kept at the end, at most: the last ones, and the best one if there are validations
    cautions: tuple[Diagnostic, ...]

    @property
    def total_seconds(self) -> float:
        """The whole training, without evaluation and checkpoints."""
        return self.steps * self.step_seconds

    @property
    def disk_mb(self) -> float:
        """The kept checkpoints, and one more that is written before the oldest is removed."""
        return (self.checkpoints + 1) * self.checkpoint_mb


def dry_run_report(train: Callable[..., Trainer], spec: object, **arguments: Any) -> DryRunReport:
    """Run the first steps of `pretrain` or `finetune` in a temporary directory. Raises what they raise."""
    with TemporaryDirectory(prefix="vmae-dry-run-") as folder:
        trainer = train(spec, out=folder, max_steps=STEPS, **arguments)
    engine, setup, throughput, line = trainer.engine, trainer.setup, trainer.throughput, trainer.log_line
    processes = trainer.distributed.all_gather_floats(
        [throughput.seconds, throughput.timings.batch_wait_seconds, _peak_mb(engine.device)]
    )
    seconds, waited, memory = zip(*processes, strict=True)
    every = trainer.objective.validate_every
    return DryRunReport(
        steps=setup.steps,
        epochs=round(setup.steps / setup.order.steps_per_epoch, 2),
        batch=engine.batch,
        loss=line["loss"],
        step_seconds=max(seconds),
        wait_seconds=max(waited),
        limits=line["limits"],
        memory_mb=round(max(memory), 1),
        device=str(engine.device),
        checkpoint_mb=round(_checkpoint_mb(engine), 3),
        checkpoints=trainer.spec.checkpoint.keep + (every is not None and every <= setup.steps),
        cautions=tuple(trainer.warnings),
    )


def _checkpoint_mb(engine: Engine) -> float:
    """The weights, the optimizer's two moments of each, and their moving average in float32 if there is one."""
    trained = {name for name, _ in trained_parameters(engine.model)}
    state = empty_model(describe(engine.model)).state_dict()  # this process may hold parts only
    size = 0
    for name, weight in (state | training_only_parameters(engine.model)).items():
        moments = 4 * (2 * weight.numel() + 1) if name in trained else 0
        average = 4 * weight.numel() if engine.ema is not None and name in state else 0
        size += weight.numel() * weight.element_size() + moments + average
    return size / 1e6


def _peak_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
