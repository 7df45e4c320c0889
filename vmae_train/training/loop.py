"""The steps of a training, one after another: log, checkpoints, scores on the way, progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from vmae_data.progress import meter
from vmae_data.read.batches import TrainingOrder
from vmae_train.clips.loader import ClipLoader
from vmae_train.distributed import Distributed
from vmae_train.training.checkpoint import RunState
from vmae_train.training.diagnostics import check_setup
from vmae_train.training.engine import Engine, Loss
from vmae_train.training.recorder import RunPlace, RunRecorder, Validated
from vmae_train.training.step_sync import Signals, StepAgreement
from vmae_train.training.throughput import Remarks, Throughput, note

__all__ = ["Training", "train"]


class Training(NamedTuple):
    """All that the steps of a training need; a dry run takes the first two of the same."""

    engine: Engine
    loader: ClipLoader
    loss_of: Loss
    distributed: Distributed
    place: RunPlace
    start: RunState
    order: TrainingOrder
    validate: Callable[[], Validated] | None = None
    validate_every: int | None = None


def train(training: Training) -> RunState:
    """Steps `start.step` to the schedule's end, with checkpoints, log and progress.

    Raises VmaeError at a loss that is not finite, StopRequested on a signal, after saving.
    """
    engine, loader, distributed, place = training.engine, training.loader, training.distributed, training.place
    start, order, kind = training.start, training.order, training.place.facts.kind
    validate, steps = training.validate, engine.schedule.steps
    loader.unreadable.by_key.update(start.unreadable)
    recorder = RunRecorder(engine, loader, distributed, place, order, start)
    batches, throughput, remarks = iter(loader), Throughput(loader, distributed), Remarks(loader, distributed)
    spread = distributed.spread(engine.model, training.loss_of)
    with (
        Signals() as signals,
        closing(recorder),
        meter(f"{kind} steps", steps, distributed.style(place.style), start=start.step) as shown,
    ):
        agree = StepAgreement(distributed, signals, loader.unreadable)
        for caution in recorder.diagnostics(start.step, check_setup(place.facts)):
            shown.remark(f"warning: {caution.text}")
        # Where the run was stopped before it was done.
        if validate is not None and recorder.owes_validation(start.step, training.validate_every):
            recorder.validated(start.step, validate())
        for step in range(start.step, steps):
            numbers = engine.step(step, batches, spread, agree)
            done, asked = step + 1, numbers.agreed
            if done % place.log.every_steps == 0 or done == steps:
                recorder.refuse_broken()
                line = throughput.line(
                    done,
                    loss=numbers.loss,
                    grad_norm=numbers.grad_norm,
                    rate=numbers.rate,
                    epoch=step // order.steps_per_epoch,
                    batch=engine.spec.batch,
                )
                recorder.write(line)
                shown.note = note(line, "masked loss" if kind == "pretrain" else "loss")
                for caution in recorder.diagnostics(done):
                    shown.remark(f"warning: {caution.text}")
                fresh = remarks.fresh()
                recorder.remarked(done, fresh)
                for remark in fresh:
                    shown.remark(remark)
            shown.advance()
            if done % place.checkpoint.every_steps == 0 or done == steps or asked.save:
                recorder.save(done)
            agree.stop(asked)
            if validate is not None and recorder.owes_validation(done, training.validate_every):
                recorder.validated(done, validate())
                throughput.restart()
        agree.stop(agree(0, None))  # asked for since the last step's agreement
    return recorder.state_at(steps)
