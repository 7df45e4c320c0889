"""`fsdp2`: each process has a shard of every weight, gradient and moment (DTensor)."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from vmae_train.checkpoints.ema import ModelEma
from vmae_train.engines.ddp import DataParallel
from vmae_train.models.base import VideoModel
from vmae_train.models.vit import Block

__all__ = ["ShardedDataParallel"]


class ShardedDataParallel(DataParallel):
    """`fsdp2`: each process has a shard of every weight, gradient and moment.

    A pass gathers the weights of one block at a time. Every backward pass averages gradients over the processes and
    keeps this process's shard, so that accumulation needs no memory for whole gradients.
    """

    waits_in_passes = True

    def __init__(self, *arguments: Any) -> None:
        """The `arguments` are those of DataParallel."""
        super().__init__(*arguments)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes a second

        # The model's output is a view, and nothing changes it in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
        with self._distributed.waiting_for_peers():
            mesh = init_device_mesh(self.device.type, (self._distributed.world_size,))
            for block in [part for part in self.model.modules() if isinstance(part, Block)]:
                fully_shard(block, mesh=mesh)
            fully_shard(self.model, mesh=mesh)

    def wrap(self, optimizer: torch.optim.Optimizer, ema: ModelEma | None) -> None:
        """Nothing: the model was sharded before its weights were loaded."""

    def whole_model(self) -> VideoModel:
        return self._whole_copy()
