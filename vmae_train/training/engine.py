"""One optimizer step on one device: precision, micro-batches, clipping, and what must be noticed.

B clips of a micro-batch. Nothing in a step waits for the device; numbers are fetched on logging steps.
"""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.errors import DataError, StopRequested, VmaeError
from vmae_data.progress import ProgressStyle, meter
from vmae_train.clips.loader import Batch, ClipLoader
from vmae_train.model.videomae import VideoModel
from vmae_train.training.checkpoint import CheckpointSpec, RunState, last_checkpoint, save_checkpoint
from vmae_train.training.log import LogSpec, RunLog
from vmae_train.training.optim import Schedule
from vmae_train.training.run import TrainingOrder

__all__ = ["Engine", "Loss", "Signals", "TrainSpec", "choose_device", "train"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long and in what portions. `batch` is what one optimizer step sees; `micro_batch` is layout."""

    batch: int
    micro_batch: int | None = None
    epochs: int | None = None
    steps: int | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give train.epochs or train.steps, one of the two")
        for name in ("batch", "micro_batch", "epochs", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: must be 1 or more")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")

    @property
    def portions(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.batch // (self.micro_batch or self.batch)

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


Loss = Callable[[Batch], Tensor]
"""A micro-batch → the weighted mean of its samples' losses."""


def choose_device(name: str | None = None, *, threads: int | None = None) -> torch.device:
    """The named device, else the GPU where there is one; and how many CPU threads to use.

    Raises VmaeError for a device that isn't there.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VmaeError(f"device {name!r}: not there ({str(error).splitlines()[0]}); use cpu or cuda") from error
    return device


class Engine:
    """Forward and backward in the right precision, and the optimizer's step."""

    def __init__(
        self, model: VideoModel, optimizer: torch.optim.Optimizer, schedule: Schedule, spec: TrainSpec, *,
        device: torch.device, clip_grad: float | None,
    ) -> None:  # fmt: skip
        self.model, self.optimizer, self.schedule, self.spec = model, optimizer, schedule, spec
        self.device, self.clip_grad = device, clip_grad
        self.dtype = _precision(spec.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        # The first step whose loss was not finite, kept on the device so that no step waits for it.
        self.broken_at = torch.full((), math.inf, device=device)

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def step(self, number: int, batches: Iterator[Batch], loss_of: Loss) -> StepNumbers:
        """One optimizer step from `portions` micro-batches.

        Samples of weight 0 are left out of the mean. Raises DataError where not one could be read.
        """
        rate = self.schedule.rate(number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        total = torch.zeros((), device=self.device)
        counted = 0
        for _ in range(self.spec.portions):
            batch = next(batches)
            share = batch.valid / self.spec.batch
            with self.autocast():
                loss = loss_of(batch) * share
            torch.autograd.backward(self.scaler.scale(loss))
            total += loss.detach()
            counted += batch.valid
        if counted == 0:
            raise DataError(f"step {number}: not one sample of the batch could be read; verify the shards")
        self.broken_at = torch.where(torch.isfinite(total), self.broken_at, self.broken_at.clamp_max(number))
        norm = self._update(self.spec.batch / counted)
        if not self.scaler.is_enabled():  # a scaler meets infinite gradients now and then, and skips the step
            self.broken_at = torch.where(torch.isfinite(norm), self.broken_at, self.broken_at.clamp_max(number))
        return StepNumbers(total * (self.spec.batch / counted), norm, rate)

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
        self.optimizer.zero_grad(set_to_none=True)
        return norm


class StepNumbers(NamedTuple):
    """Of one step, still on the device."""

    loss: Tensor
    grad_norm: Tensor
    rate: float


def _precision(name: str, device: torch.device) -> torch.dtype:
    if name != "auto":
        found: torch.dtype = getattr(torch, name)
        return found
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


class Signals:
    """SIGTERM and SIGINT: save, then end with 143 or 130. SIGUSR1: save and go on.

    All at the end of a step; a second request to stop is obeyed at once.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _take(self, number: int, _frame: Any) -> None:
        if self.stop is not None:
            raise StopRequested(self.stop)  # asked twice: the end of the step is not in sight
        self.save = True
        if number != signal.SIGUSR1:
            self.stop = 128 + number


class RunPlace(NamedTuple):
    """Where a run is kept, and how often."""

    folder: Path
    checkpoint: CheckpointSpec
    log: LogSpec
    style: ProgressStyle


def train(
    engine: Engine,
    loader: ClipLoader,
    loss_of: Loss,
    *,
    place: RunPlace,
    start: RunState,
    order: TrainingOrder,
    title: str,
    validate: Callable[[int], dict[str, Any]] | None = None,
    validate_every: int | None = None,
) -> RunState:
    """Steps `start.step` to the schedule's end, with checkpoints, log and progress.

    Raises VmaeError at a loss that is not finite, StopRequested on a signal, after saving.
    """
    steps = engine.schedule.steps
    log = RunLog(place.folder, step=start.step)
    loader.unreadable.by_key.update(start.unreadable)
    batches = iter(loader)
    clock = _Clock(loader)

    def state_at(step: int) -> RunState:
        return RunState(
            step=step,
            samples=step * engine.spec.batch,
            unreadable=dict(loader.unreadable.by_key),
            scaler=engine.scaler.state_dict() if engine.scaler.is_enabled() else None,
        )

    def save(step: int) -> None:
        _refuse_broken(engine, place.folder, order)
        log.sync()
        save_checkpoint(place.folder, engine.model, engine.optimizer, state_at(step), keep=place.checkpoint.keep)

    if engine.scaler.is_enabled() and start.scaler:
        engine.scaler.load_state_dict(start.scaler)
    with Signals() as signals, meter(title, steps, place.style, start=start.step) as shown:
        for step in range(start.step, steps):
            numbers = engine.step(step, batches, loss_of)
            done = step + 1
            if done % place.log.every_steps == 0 or done == steps:
                _refuse_broken(engine, place.folder, order)
                line = clock.line(done, numbers, step // order.steps_per_epoch, engine.spec.batch)
                log.write(line)
                shown.note = _note(line, engine.spec.batch)
            shown.advance()
            if done % place.checkpoint.every_steps == 0 or done == steps or signals.save:
                save(done)
                signals.save = False
            if signals.stop is not None:
                raise StopRequested(signals.stop)
            if validate is not None and validate_every and done % validate_every == 0 and done != steps:
                log.write({"kind": "validation", "step": done, **validate(done)})
                clock.restart()
    log.close()
    return state_at(steps)


def _refuse_broken(engine: Engine, run: Path, order: TrainingOrder) -> None:
    """Raises VmaeError when a loss was not finite; called before anything that would keep such weights."""
    at = float(engine.broken_at)
    if math.isinf(at):
        return
    step = int(at)
    last = last_checkpoint(run)
    good = f"the last good checkpoint is {last.path}" if last else "there is no checkpoint before it"
    keys = ", ".join(order.keys(step))
    raise VmaeError(
        f"step {step}: the loss or its gradient is not finite; {good}; start from it by --init into another --out, "
        f"with a lower optim.base_lr or optim.clip_grad; the batch was {keys}"
    )


class _Clock:
    """Seconds between logging steps, and how many of them were spent waiting for data."""

    def __init__(self, loader: ClipLoader) -> None:
        self._loader = loader
        self.restart()

    def restart(self, step: int | None = None) -> None:
        self._at, self._waited, self._step = time.perf_counter(), self._loader.waited, step

    def line(self, step: int, numbers: StepNumbers, epoch: int, batch: int) -> dict[str, Any]:
        now = time.perf_counter()
        seconds, waited = now - self._at, self._loader.waited - self._waited
        steps = step - self._step if self._step is not None else None
        self.restart(step)
        return {
            "kind": "train",
            "step": step,
            "epoch": epoch,
            "loss": float(numbers.loss),
            "lr": numbers.rate,
            "grad_norm": float(numbers.grad_norm),
            "clips_per_second": round(steps * batch / seconds, 2) if steps else None,
            "data_wait": round(waited / seconds, 4),
            "memory_mb": round(_memory_mb(numbers.loss.device), 1),
        }


def _memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _note(line: dict[str, Any], batch: int) -> str:
    speed = f"{line['clips_per_second']:.0f} clips/s, " if line["clips_per_second"] else ""
    return f"loss {line['loss']:.4f}, {speed}{line['data_wait']:.0%} waiting for data"
