"""One optimizer step, by one process or several: gradient accumulation, precision, clipping, the moving average.

Nothing in a step waits for the device. Numbers are fetched on logging steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed
from vmae_train.engines.choose import share_model
from vmae_train.engines.ddp import CheckpointTensors
from vmae_train.models.base import VideoModel
from vmae_train.training.optimizer import build_optimizer
from vmae_train.training.setup import TrainingSetup
from vmae_train.training.step_sync import StepStatus, StepSync, WaitInterrupted

__all__ = ["Engine", "StepResult"]


class StepResult(NamedTuple):
    """One step's numbers. Tensors stay on the device."""

    loss: Tensor  # this process's part of the mean; then of the mean of each of the objective's parts, if it has any
    grad_norm: Tensor
    lr: float
    status: StepStatus


class Engine:
    """Model, optimizer, gradient scaler and moving average. `loss` maps a micro-batch to the mean loss of its samples."""

    def __init__(
        self,
        setup: TrainingSetup,
        model: VideoModel,
        loss: Callable[[Batch], Tensor],
        device: torch.device,
        distributed: Distributed,
    ) -> None:
        self.device = device
        self.schedule, self.layout, self.batch = setup.schedule, setup.layout, setup.spec.train.batch
        self.model, self._loss = model, loss
        train = setup.spec.train
        self.dtype = _choose_dtype(train.precision, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        arguments = (model, self._autocast_loss, device, distributed, setup.spec.optim.clip_grad)
        self.parallel = share_model(train.engine, train.zero_stage, *arguments)
        if self.scaler.is_enabled() and not self.parallel.takes_scaled_gradients:
            raise MisuseError(
                f"train.zero_stage = {train.zero_stage}: takes no float16. Set train.precision to bfloat16 or float32, "
                "train.zero_stage to 0, or train.engine to ddp"
            )
        self.optimizer = build_optimizer(model, setup.spec.optim, depth=setup.geometry.depth)
        self.ema = setup.spec.ema.build(model)
        # The first step whose loss was not finite. On the device, so that no step waits for it.
        self.not_finite_at = torch.full((), math.inf, device=device)
        self._distributed = distributed

    def wrap(self) -> None:
        """Prepare the backward pass that averages gradients over all processes. All call it together."""
        with self._distributed.waiting_for_peers():
            self.parallel.wrap(self.optimizer, self.ema)

    def gather(self) -> CheckpointTensors:
        """All tensors of a checkpoint. All processes call it together; only the main process gets them."""
        with self._distributed.waiting_for_peers():
            return self.parallel.gather(self.optimizer, self.ema, keep=self._distributed.is_main)

    def whole_model(self) -> VideoModel:
        """The model with all its weights, for an evaluation. All processes call it together."""
        with self._distributed.waiting_for_peers():
            return self.parallel.whole_model()

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.dtype is torch.float32 else torch.autocast(self.device.type, dtype=self.dtype)

    def step(self, step: int, batches: Iterator[Batch], sync: StepSync) -> StepResult:
        """One optimizer step on the global batch. The gradient is the mean over all samples of weight 1.

        Each process accumulates the gradients of its micro-batches. With `ddp` only the last backward pass averages them
        over the processes. A step that a signal interrupted changes nothing but gradients; its status says so.
        Raises DataError if no sample can be read, and the first error of any process's loader.
        """
        lr = self.schedule.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        loss = torch.zeros((), device=self.device)
        num_valid, save, status = 0, False, None
        for left in reversed(range(self.layout.grad_accum_steps)):
            batch, error = None, None
            try:
                with sync.interruptible():
                    batch = next(batches)
                num_valid += batch.valid
            except (VmaeError, OSError) as caught:
                error = caught
            except WaitInterrupted:
                pass
            # Before a pass that waits for other processes, and in place of one.
            if left == 0 or batch is None or self.parallel.waits_in_passes:
                status = sync.exchange(num_valid, error, interrupted=batch is None and error is None)
                save |= status.save
                if status.interrupted:
                    return StepResult(loss, loss, lr, status._replace(save=save))
                if left == 0 and status.valid == 0:
                    self._distributed.raise_first(
                        DataError(
                            f"step {step}: no sample of the batch can be read. Run `vmae-shard verify` on the shards"
                        )
                    )
            assert batch is not None
            with self.parallel.passes(last=left == 0), self._distributed.waiting_for_peers():
                loss = loss + self._backward(batch)
        assert status is not None
        self._check_finite(loss, step)
        scale = self.batch / status.valid  # above 1 if samples are unreadable
        grad_norm = self._update(scale)
        if not self.scaler.is_enabled():  # a scaler meets infinite gradients now and then, and skips the step
            self._check_finite(grad_norm, step)
        return StepResult(loss * (scale / self.layout.world_size), grad_norm, lr, status._replace(save=save))

    def _backward(self, batch: Batch) -> Tensor:
        """Add a micro-batch's gradients, divided by the global batch. `world_size` cancels the mean over the processes."""
        loss = self.parallel.loss(batch) * (batch.valid * self.layout.world_size / self.batch)
        self.parallel.backward(self.scaler.scale(loss[0] if loss.ndim else loss))
        return loss.detach()

    def _autocast_loss(self, batch: Batch) -> Tensor:
        with self.autocast():
            return self._loss(batch)

    def _update(self, scale: float) -> Tensor:
        """Update the weights and their average. Returns the gradient norm before clipping."""
        with self._distributed.waiting_for_peers():
            grad_norm = self.parallel.update(self.optimizer, self.scaler, scale)
        if self.ema is not None:
            self.ema.update(self.parallel.local_weights())
        return grad_norm

    def _check_finite(self, value: Tensor, step: int) -> None:
        at = self.not_finite_at
        self.not_finite_at = torch.where(torch.isfinite(value).all(), at, at.clamp_max(step))


def _choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision != "auto":
        dtype: torch.dtype = getattr(torch, precision)
        return dtype
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
