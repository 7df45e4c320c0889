"""`fsdp2`: each process has a shard of every weight, gradient and moment (DTensor)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vmae_train.checkpoints.native import describe, empty_model
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed, whole
from vmae_train.engines.ddp import DataParallel
from vmae_train.models.base import VideoModel
from vmae_train.models.vit import Block

__all__ = ["ShardedDataParallel"]


class ShardedDataParallel(DataParallel):
    """`fsdp2`: each process has a shard of every weight, gradient and moment.

    A pass gathers the weights of one block at a time. Every backward pass averages gradients over the processes and
    keeps this process's shard, so that accumulation needs no memory for whole gradients.
    """

    waits_in_forward = True

    def __init__(
        self, model: VideoModel, loss: Callable[[Batch], Tensor], device: torch.device, distributed: Distributed
    ) -> None:
        super().__init__(model, loss, device, distributed)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes a second

        with distributed.waiting_for_peers():
            mesh = init_device_mesh(device.type, (distributed.world_size,))
            for block in [part for part in model.modules() if isinstance(part, Block)]:
                fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def wrap(self) -> None:
        """Nothing: the model was sharded before its weights were loaded."""

    def whole_model(self) -> VideoModel:
        """A copy: processes that evaluate different numbers of batches can't gather weights in their passes."""
        model = empty_model(describe(self.model))
        weights = model.state_dict()
        with self._distributed.waiting_for_peers():
            for name, value in self.model.state_dict().items():
                weights[name].copy_(whole(value))
        return model.to(self.device)
