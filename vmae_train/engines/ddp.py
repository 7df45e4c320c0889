"""`ddp`: each process has the whole model. The class is also the base of the other engines.

All processes call the same methods in the same order. A checkpoint has the same names and whole tensors with each
engine, so that a run may resume with another one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmae_train.checkpoints.ema import ModelEma
from vmae_train.checkpoints.native import describe, empty_model
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed, whole
from vmae_train.models.base import VideoModel, trained_parameters, training_only_parameters

__all__ = ["MOMENTS", "WEIGHT", "CheckpointTensors", "DataParallel", "LossModule"]

MOMENTS = ("exp_avg", "exp_avg_sq", "step")
WEIGHT = "weight"  # among the moments: of a parameter that only the training needs

Named = Iterable[tuple[str, Tensor]]


class CheckpointTensors(NamedTuple):
    """The tensors of a checkpoint's files, by name, on the CPU. They are whole, however processes share the model."""

    weights: dict[str, Tensor]
    moments: dict[str, Tensor]  # and the weights that `weights` lacks
    ema: dict[str, Tensor] | None


class DataParallel:
    """`ddp`: each process has the whole model, and its last backward pass of a step averages the gradients."""

    # Whether each forward and backward pass waits for the other processes.
    waits_in_passes = False
    # Whether `update` can undo what a gradient scaler for float16 did.
    takes_scaled_gradients = True

    def __init__(
        self,
        model: VideoModel,
        loss: Callable[[Batch], Tensor],
        device: torch.device,
        distributed: Distributed,
        clip_grad: float | None = None,
    ) -> None:
        """`model` is ready for its optimizer and for the weights of a checkpoint afterwards."""
        self.model, self.device, self.clip_grad = model, device, clip_grad
        self.loss = loss
        self._no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._distributed = distributed

    def wrap(self, optimizer: torch.optim.Optimizer, ema: ModelEma | None) -> None:
        """Prepare the passes of a model whose weights, moments and average are loaded."""
        if self._distributed.world_size == 1:
            return
        # It wraps the loss and not the model, so the model keeps its parameter names.
        ddp = DistributedDataParallel(
            LossModule(self.model, self.loss), gradient_as_bucket_view=True, **_NO_BUFFER_SYNC
        )
        self.loss, self._no_sync = ddp, ddp.no_sync

    def passes(self, *, last: bool) -> AbstractContextManager[Any]:
        """Around the passes of a micro-batch. The `last` one of a step averages the gradients of all."""
        return nullcontext() if last else self._no_sync()

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss that `self.loss` computed."""
        torch.autograd.backward(loss)

    def update(self, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, scale: float) -> Tensor:
        """Scale and clip the gradients, then update the weights. Returns the gradient norm before clipping."""
        scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        if scale != 1:
            torch._foreach_mul_(gradients, scale)
        grad_norm: Tensor = whole(nn.utils.get_total_norm(gradients))
        if self.clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.clip_grad, grad_norm)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return grad_norm

    def local_weights(self) -> Mapping[str, Tensor]:
        """What this process holds of the state dict. The moving average is of the same shapes."""
        return self.model.state_dict()

    def whole_model(self) -> VideoModel:
        """The model with all its weights in this process, for an evaluation."""
        return self.model

    def gather(
        self, optimizer: torch.optim.Optimizer, ema: ModelEma | None = None, *, keep: bool = True
    ) -> CheckpointTensors:
        """What a checkpoint holds. All processes call it together; those without `keep` get nothing."""

        def gathered(tensors: Named) -> dict[str, Tensor]:
            return {name: tensor.cpu().contiguous() for name, tensor in tensors if keep}

        weights = gathered(self._whole_weights(self.local_weights()))
        own = training_only_parameters(self.model).items()
        moments = gathered(self._whole_moments(optimizer))
        moments |= gathered((f"{WEIGHT}/{name}", parameter.detach()) for name, parameter in own)
        return CheckpointTensors(weights, moments, None if ema is None else gathered(self._whole_weights(ema.averages)))

    def _whole_weights(self, weights: Mapping[str, Tensor]) -> Named:
        """Whole tensors of what the processes hold, one after the other."""
        return ((name, whole(value.detach())) for name, value in weights.items())

    def _whole_moments(self, optimizer: torch.optim.Optimizer) -> Named:
        return (
            (f"{moment}/{name}", whole(optimizer.state[parameter][moment]))
            for name, parameter in trained_parameters(self.model)
            for moment in MOMENTS
        )

    def _whole_copy(self) -> VideoModel:
        """A copy: processes that evaluate different numbers of batches can't gather weights in their passes."""
        model = empty_model(describe(self.model))
        weights = model.state_dict()
        for name, value in self._whole_weights(self.local_weights()):
            weights[name].copy_(value)
        return model.to(self.device)


# Buffers are constants, equal in all processes. Older versions of torch name this option differently.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}


class LossModule(nn.Module):
    """An engine that wraps a module has to see the whole forward pass, down to the loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)
