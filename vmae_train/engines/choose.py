"""The values of `train.engine`: how the processes of a training share its model."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

import torch
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed
from vmae_train.engines.ddp import DataParallel
from vmae_train.engines.deepspeed import ZeroDataParallel
from vmae_train.engines.fsdp2 import ShardedDataParallel
from vmae_train.models.base import VideoModel

__all__ = ["EngineName", "ZeroStage", "check_engine", "share_model"]

EngineName = Literal["ddp", "fsdp2", "deepspeed"]
ZeroStage = Literal[0, 1, 2, 3]

# Its partitions have no stable interface.
_DEEPSPEED_VERSIONS = "0.19."


def check_engine(name: EngineName, distributed: Distributed) -> None:
    """Raises MisuseError if the engine's package is missing or of another version. One process needs none."""
    if name != "deepspeed" or distributed.world_size == 1:
        return
    advice = "Run `python -m pip install 'vmae[deepspeed]'`, or set train.engine to ddp or fsdp2"
    try:
        found = version("deepspeed")
    except PackageNotFoundError:
        raise MisuseError(f"train.engine = deepspeed, but deepspeed is not installed. {advice}") from None
    if not found.startswith(_DEEPSPEED_VERSIONS):
        raise MisuseError(
            f"train.engine = deepspeed: version {found} is installed, expected {_DEEPSPEED_VERSIONS}x. {advice}"
        )


def share_model(
    name: EngineName,
    zero_stage: ZeroStage,
    model: VideoModel,
    loss: Callable[[Batch], Tensor],
    device: torch.device,
    distributed: Distributed,
    clip_grad: float | None,
) -> DataParallel:
    """The engine that trains a model. One process has nothing to share."""
    arguments = (model, loss, device, distributed, clip_grad)
    if name == "ddp" or distributed.world_size == 1:
        return DataParallel(*arguments)
    return ShardedDataParallel(*arguments) if name == "fsdp2" else ZeroDataParallel(*arguments, stage=zero_stage)
