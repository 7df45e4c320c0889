"""The steps of a training, one after another: log, checkpoints, scores on the way, progress."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

from vmae_data.progress import meter
from vmae_train.clips.loader import ClipLoader
from vmae_train.training.agree import Signals, StepAgreement
from vmae_train.training.cautions import at_start
from vmae_train.training.checkpoint import RunState
from vmae_train.training.clock import Clock, Remarks, note
from vmae_train.training.engine import Engine, Loss
from vmae_train.training.keeper import Keeper, RunPlace, Validated
from vmae_train.training.run import TrainingOrder
from vmae_train.training.world import World

__all__ = ["Training", "train"]


class Training(NamedTuple):
    """All that the steps of a training need; a dry run takes the first two of the same."""

    engine: Engine
    loader: ClipLoader
    loss_of: Loss
    world: World
    place: RunPlace
    start: RunState
    order: TrainingOrder
    validate: Callable[[], Validated] | None = None
    validate_every: int | None = None


def train(training: Training) -> RunState:
    """Steps `start.step` to the schedule's end, with checkpoints, log and progress.

    Raises VmaeError at a loss that is not finite, StopRequested on a signal, after saving.
    """
    engine, loader, world, place = training.engine, training.loader, training.world, training.place
    start, order, kind = training.start, training.order, training.place.facts.kind
    validate, steps = training.validate, engine.schedule.steps
    loader.unreadable.by_key.update(start.unreadable)
    keeper = Keeper(engine, loader, world, place, order, start)
    batches, clock, remarks = iter(loader), Clock(loader, world), Remarks(loader, world)
    spread = world.spread(engine.model, training.loss_of)
    with (
        Signals() as signals,
        closing(keeper),
        meter(f"{kind} steps", steps, world.style(place.style), start=start.step) as shown,
    ):
        agree = StepAgreement(world, signals, loader.unreadable)
        for caution in keeper.cautions(start.step, at_start(place.facts)):
            shown.remark(f"warning: {caution.text}")
        # Where the run was stopped before it was done.
        if validate is not None and keeper.owes_validation(start.step, training.validate_every):
            keeper.validated(start.step, validate())
        for step in range(start.step, steps):
            numbers = engine.step(step, batches, spread, agree)
            done, asked = step + 1, numbers.agreed
            if done % place.log.every_steps == 0 or done == steps:
                keeper.refuse_broken()
                line = clock.line(
                    done,
                    loss=numbers.loss,
                    grad_norm=numbers.grad_norm,
                    rate=numbers.rate,
                    epoch=step // order.steps_per_epoch,
                    batch=engine.spec.batch,
                )
                keeper.write(line)
                shown.note = note(line, "masked loss" if kind == "pretrain" else "loss")
                for caution in keeper.cautions(done):
                    shown.remark(f"warning: {caution.text}")
                fresh = remarks.fresh()
                keeper.remarked(done, fresh)
                for remark in fresh:
                    shown.remark(remark)
            shown.advance()
            if done % place.checkpoint.every_steps == 0 or done == steps or asked.save:
                keeper.save(done)
            agree.stop(asked)
            if validate is not None and keeper.owes_validation(done, training.validate_every):
                keeper.validated(done, validate())
                clock.restart()
        agree.stop(agree(0, None))  # asked for since the last step's agreement
    return keeper.state_at(steps)
