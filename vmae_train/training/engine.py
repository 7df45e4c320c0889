"""One optimizer step, by one process or several: precision, micro-batches, clipping, and what must be noticed.

B clips of a micro-batch. Nothing in a step waits for the device; numbers are fetched on logging steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.errors import DataError, VmaeError
from vmae_data.progress import ProgressStyle, meter
from vmae_train.clips.loader import Batch, ClipLoader
from vmae_train.model.best import Best, read_best, write_best
from vmae_train.model.ema import WeightMean
from vmae_train.model.fetched import BEST
from vmae_train.model.videomae import VideoModel
from vmae_train.training.agree import Agreed, Signals, StepAgreement
from vmae_train.training.cautions import Caution, TrainingFacts, at_start, from_log
from vmae_train.training.checkpoint import CheckpointSpec, RunState, last_checkpoint, save_checkpoint
from vmae_train.training.clock import Clock, Remarks, note
from vmae_train.training.log import LogSpec, RunLog, is_validated
from vmae_train.training.mirror import Mirror
from vmae_train.training.optim import Schedule
from vmae_train.training.run import BatchLayout, TrainingOrder, read_facts
from vmae_train.training.trackers import Tracker, open_trackers
from vmae_train.training.world import Spread, World

__all__ = ["Engine", "Loss", "TrainSpec", "Validated", "train"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and in what portions. `batch` is what one optimizer step sees, over all processes.

    `micro_batch` is what one process takes at a time: layout, no more. Both count videos: `repeats` clips are made of
    each decoded one, with their own crop, mask and augmentation.
    """

    batch: int
    micro_batch: int | None = None
    repeats: int = 1
    epochs: int | None = None
    steps: int | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give train.epochs or train.steps, one of the two")
        for name in ("batch", "micro_batch", "repeats", "epochs", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be 1 or more")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


class Validated(NamedTuple):
    """A score on the way: its line in the log, and the number that the best checkpoint is chosen by."""

    line: dict[str, Any]
    metric: str
    value: float
    higher_is_better: bool


Loss = Callable[[Batch], Tensor]
"""A micro-batch → the weighted mean of its samples' losses."""


class Engine:
    """Forward and backward in the right precision, and the optimizer's step."""

    def __init__(
        self, model: VideoModel, optimizer: torch.optim.Optimizer, schedule: Schedule, spec: TrainSpec, *,
        layout: BatchLayout, device: torch.device, clip_grad: float | None, ema: WeightMean | None = None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.schedule, self.spec = model, optimizer, schedule, spec
        self.layout, self.device, self.clip_grad, self.ema = layout, device, clip_grad, ema
        self.dtype = _precision(spec.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        # The first step whose loss was not finite, kept on the device so that no step waits for it.
        self.broken_at = torch.full((), math.inf, device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def step(self, number: int, batches: Iterator[Batch], spread: Spread, agree: StepAgreement) -> StepNumbers:
        """One optimizer step from this process's micro-batches and those of the others.

        The gradient is the mean over the samples that count, of all processes. Raises DataError where not one
        could be read, and what any process met while it brought its batches.
        """
        rate = self.schedule.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total = torch.zeros((), device=self.device)
        counted, failed, last = 0, None, None
        try:
            with spread.apart():
                for _ in range(self.layout.portions - 1):
                    batch = next(batches)
                    total += self._backward(batch, spread.loss)
                    counted += batch.valid
            last = next(batches)
            counted += last.valid
        except (VmaeError, OSError) as error:
            failed = error
        agreed = agree(counted, failed)  # before the pass that waits for the others' gradients
        if agreed.valid == 0:
            agree.refuse(DataError(f"step {number}: not one sample of the batch could be read; verify the shards"))
        assert last is not None
        with agree.world.meeting():
            total += self._backward(last, spread.loss)
        self._note_broken(total, number)
        scale = self.spec.batch / agreed.valid
        norm = self._update(scale)
        if not self.scaler.is_enabled():  # a scaler meets infinite gradients now and then, and skips the step
            self._note_broken(norm, number)
        return StepNumbers(total * (scale / self.layout.world), norm, rate, agreed)

    def _backward(self, batch: Batch, loss_of: Loss) -> Tensor:
        """Add a micro-batch's gradients, so that the mean over the processes is the sum over samples / batch."""
        with self.autocast():
            loss = loss_of(batch) * (batch.valid * self.layout.world / self.spec.batch)
        torch.autograd.backward(self.scaler.scale(loss))
        return loss.detach()

    def _note_broken(self, value: Tensor, number: int) -> None:
        self.broken_at = torch.where(torch.isfinite(value), self.broken_at, self.broken_at.clamp_max(number))

    def _update(self, scale: float) -> Tensor:
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        if scale != 1:  # some samples could not be read: the mean is over those that count
            torch._foreach_mul_(gradients, scale)
        norm = nn.utils.get_total_norm(gradients)
        if self.clip_grad is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(self.model)
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class StepNumbers(NamedTuple):
    """Of one step, still on the device."""

    loss: Tensor  # this process's part of the mean
    grad_norm: Tensor
    rate: float
    agreed: Agreed


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class RunPlace(NamedTuple):
    """Where a run is kept, and how often."""

    mirror: Mirror
    checkpoint: CheckpointSpec
    log: LogSpec
    style: ProgressStyle
    facts: TrainingFacts


def train(
    engine: Engine,
    loader: ClipLoader,
    loss_of: Loss,
    *,
    world: World,
    place: RunPlace,
    start: RunState,
    order: TrainingOrder,
    title: str,
    validate: Callable[[], Validated] | None = None,
    validate_every: int | None = None,
) -> RunState:
    """Steps `start.step` to the schedule's end, with checkpoints, log and progress.

    Raises VmaeError at a loss that is not finite, StopRequested on a signal, after saving.
    """
    steps = engine.schedule.steps
    loader.unreadable.by_key.update(start.unreadable)
    keeper = _Keeper(engine, loader, world, place, order, start)
    batches, clock, remarks = iter(loader), Clock(loader, world), Remarks(loader, world)
    spread = world.spread(engine.model, loss_of)
    with (
        Signals() as signals,
        closing(keeper),
        meter(title, steps, world.style(place.style), start=start.step) as shown,
    ):
        agree = StepAgreement(world, signals, loader.unreadable)
        for caution in keeper.cautions(start.step, at_start(place.facts)):
            shown.remark(f"warning: {caution.text}")
        if validate is not None and keeper.owes_validation(start.step, validate_every):  # stopped before it was done
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
                shown.note = note(line, "masked loss" if place.facts.kind == "pretrain" else "loss")
                for caution in keeper.cautions(done):
                    shown.remark(f"warning: {caution.text}")
                for remark in remarks.fresh():
                    shown.remark(remark)
            shown.advance()
            if done % place.checkpoint.every_steps == 0 or done == steps or asked.save:
                keeper.save(done)
            agree.stop(asked)
            if validate is not None and keeper.owes_validation(done, validate_every):
                keeper.validated(done, validate())
                clock.restart()
        agree.stop(agree(0, None))  # asked for since the last step's agreement
    return keeper.state_at(steps)


class _Keeper:
    """What a run writes: its log and its checkpoints, by the main process."""

    def __init__(
        self, engine: Engine, loader: ClipLoader, world: World, place: RunPlace, order: TrainingOrder, start: RunState
    ) -> None:
        self._engine, self._loader, self._world, self._place, self._order = engine, loader, world, place, order
        if engine.scaler.is_enabled() and start.scaler:
            engine.scaler.load_state_dict(start.scaler)
        self._log: RunLog | None = None
        self._trackers: list[Tracker] = []
        with world.agreed():
            if world.is_main:
                run, kind = place.mirror.folder, place.facts.kind
                self._log = log = RunLog(run, step=start.step)
                recipe = read_facts(run).recipe
                self._trackers = open_trackers(
                    place.log, run, kind=kind, step=start.step, past=log.lines, recipe=recipe
                )

    def state_at(self, step: int) -> RunState:
        scaler = self._engine.scaler
        return RunState(
            step=step,
            samples=step * self._engine.spec.batch,
            unreadable=dict(sorted(self._loader.unreadable.by_key.items())),
            scaler=scaler.state_dict() if scaler.is_enabled() else None,
        )

    def write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)
            for tracker in self._trackers:
                tracker.write(line)

    def cautions(self, step: int, found: list[Caution] | None = None) -> list[Caution]:
        """Of what was found at the start, or is in the log, what this run was not told before; now it is logged."""
        if self._log is None:
            return []
        lines, facts = self._log.lines, self._place.facts
        told = {line.get("name") for line in lines if line["kind"] == "warning"}
        if found is None:
            found = from_log(lines, facts.kind, self._engine.schedule.warmup)
        fresh = [caution for caution in found if caution.name not in told]
        for caution in fresh:
            self.write({"kind": "warning", "step": step, **caution._asdict()})
        return fresh

    def save(self, step: int) -> None:
        """The others wait, so that a run that is to end does not end before it is saved."""
        self.refuse_broken()
        with self._world.agreed():
            if self._log is not None:
                self._log.sync()
                engine, keep, mirror = self._engine, self._place.checkpoint.keep, self._place.mirror
                state = self.state_at(step)
                save_checkpoint(mirror.folder, engine.model, engine.optimizer, state, keep=keep, ema=engine.ema)
                mirror.publish_checkpoint(keep)

    def owes_validation(self, step: int, every: int | None) -> bool:
        """Whether a step is one to score at, and was not scored yet."""
        if not every or step == 0 or step % every:
            return False
        with self._world.agreed():
            scored = is_validated(self._place.mirror.folder, step) if self._world.is_main else False
        return not self._world.gather_record(scored, bool)[0]

    def validated(self, step: int, found: Validated) -> None:
        """Keep the checkpoint of the best score; the log's line last, so that a kill in between is made good."""
        best = Best(step=step, metric=found.metric, value=found.value, higher_is_better=found.higher_is_better)
        mirror = self._place.mirror
        with self._world.agreed():
            better = best.beats(read_best(mirror.folder)) if self._world.is_main else False
        if self._world.gather_record(better, bool)[0]:
            self.save(step)
            with self._world.agreed():
                if self._world.is_main:
                    write_best(mirror.folder, best)
                    mirror.publish(BEST)
        self.write({"kind": "validation", "step": step, **found.line})

    def refuse_broken(self) -> None:
        """Raises VmaeError when a loss was not finite, in any process; called before such weights would be kept."""
        found = self._world.gather_floats([float(self._engine.broken_at)])
        at = min(value for (value,) in found)
        if not math.isinf(at):
            self._world.raise_first(_broken(int(at), self._place.mirror, self._order))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        if self._log is not None:
            self._log.close()


def _broken(step: int, mirror: Mirror, order: TrainingOrder) -> VmaeError:
    last = last_checkpoint(mirror.folder)
    good = f"the last good checkpoint is {mirror.shown_path(last.path)}" if last else "there is no checkpoint before it"
    keys = ", ".join(order.keys(step))
    return VmaeError(
        f"step {step}: the loss or its gradient is not finite; {good}; start from it by --init into another --out, "
        f"with a lower optim.base_lr or optim.clip_grad; the batch was {keys}"
    )
