"""The values of `train.engine`: how the processes of a training share its model."""

from __future__ import annotations

from vmae_train.engines.ddp import DataParallel
from vmae_train.engines.fsdp2 import ShardedDataParallel

__all__ = ["ENGINES"]

ENGINES: dict[str, type[DataParallel]] = {"ddp": DataParallel, "fsdp2": ShardedDataParallel}
