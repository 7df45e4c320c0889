"""Pretrain and finetune VideoMAE on shards of videos. Importing this package imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vmae_data import __version__

if TYPE_CHECKING:
    from vmae_train.checkpoints.load import load_model
    from vmae_train.clips.mask import TubeMask

__all__ = ["TubeMask", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "TubeMask":
        from vmae_train.clips.mask import TubeMask

        return TubeMask
    if name == "load_model":
        from vmae_train.checkpoints.load import load_model

        return load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
