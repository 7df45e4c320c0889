"""`ddp`: each process has the whole model. Also what all engines have in common.

All processes call the same methods in the same order. Weights, moments and their average have the same names and
shapes in each engine; where processes hold shards of them, they are DTensors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed
from vmae_train.models.base import VideoModel

__all__ = ["DataParallel"]


class DataParallel:
    """`ddp`: each process has the whole model, and its last backward pass of a step averages the gradients."""

    # Whether each forward and backward pass waits for the other processes.
    waits_in_forward = False

    def __init__(
        self, model: VideoModel, loss: Callable[[Batch], Tensor], device: torch.device, distributed: Distributed
    ) -> None:
        """`model` is ready for its optimizer and for the weights of a checkpoint afterwards."""
        self.model, self.device = model, device
        self.loss = loss
        # Around passes whose gradients are added up in this process only, if the engine can do so.
        self.no_sync: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._distributed = distributed

    def wrap(self) -> None:
        """Prepare the passes of a model whose weights are loaded."""
        if self._distributed.world_size == 1:
            return
        # It wraps the loss and not the model, so the model keeps its parameter names.
        with self._distributed.waiting_for_peers():
            ddp = DistributedDataParallel(
                _LossModule(self.model, self.loss), gradient_as_bucket_view=True, **_NO_BUFFER_SYNC
            )
        self.loss, self.no_sync = ddp, ddp.no_sync

    def whole_model(self) -> VideoModel:
        """The model with all its weights in this process, for an evaluation."""
        return self.model


# Buffers are constants, equal in all processes. Older versions of torch name this option differently.
_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_NO_BUFFER_SYNC: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}


class _LossModule(nn.Module):
    """DistributedDataParallel has to see the whole forward pass, down to the loss."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self._loss = loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)
