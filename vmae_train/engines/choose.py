"""The values of `train.engine`: how the processes of a training share its model."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from vmae_data.errors import MisuseError
from vmae_train.distributed import Distributed
from vmae_train.engines.ddp import DataParallel
from vmae_train.engines.deepspeed import ZeroDataParallel
from vmae_train.engines.fsdp2 import ShardedDataParallel

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


def share_model(name: EngineName, zero_stage: ZeroStage, distributed: Distributed, *arguments: Any) -> DataParallel:
    """The engine for a model. `arguments` are those of DataParallel. One process has nothing to share."""
    model, loss, device, *more = arguments
    if name == "deepspeed" and distributed.world_size > 1:
        return ZeroDataParallel(model, loss, device, distributed, *more, stage=zero_stage)
    kind = ShardedDataParallel if name == "fsdp2" and distributed.world_size > 1 else DataParallel
    return kind(model, loss, device, distributed, *more)
