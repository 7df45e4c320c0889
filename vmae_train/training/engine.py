"""One optimizer step, by one process or several: precision, micro-batches, clipping, and what must be noticed.

B clips of a micro-batch. Nothing in a step waits for the device; numbers are fetched on logging steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.errors import DataError, VmaeError
from vmae_data.read.batches import BatchLayout
from vmae_train.checkpoints.ema import ModelEma
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Spread
from vmae_train.models.base import VideoModel
from vmae_train.training.optimizer import Schedule
from vmae_train.training.step_sync import Agreed, StepAgreement

__all__ = ["Engine", "Loss", "StepNumbers", "TrainSpec"]


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


Loss = Callable[[Batch], Tensor]
"""A micro-batch → the weighted mean of its samples' losses."""


class Engine:
    """Forward and backward in the right precision, and the optimizer's step."""

    def __init__(
        self, model: VideoModel, optimizer: torch.optim.Optimizer, schedule: Schedule, spec: TrainSpec, *,
        layout: BatchLayout, device: torch.device, clip_grad: float | None, ema: ModelEma | None = None,
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
                for _ in range(self.layout.grad_accum_steps - 1):
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
        with agree.distributed.waiting_for_peers():
            total += self._backward(last, spread.loss)
        self._note_broken(total, number)
        scale = self.spec.batch / agreed.valid
        norm = self._update(scale)
        if not self.scaler.is_enabled():  # a scaler meets infinite gradients now and then, and skips the step
            self._note_broken(norm, number)
        return StepNumbers(total * (scale / self.layout.world_size), norm, rate, agreed)

    def _backward(self, batch: Batch, loss_of: Loss) -> Tensor:
        """Add a micro-batch's gradients, so that the mean over the processes is the sum over samples / batch."""
        with self.autocast():
            loss = loss_of(batch) * (batch.valid * self.layout.world_size / self.spec.batch)
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
