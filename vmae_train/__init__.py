"""Pretrain and finetune VideoMAE on shards of videos. Importing this package imports no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vmae_data import __version__

if TYPE_CHECKING:
    from vmae_train.checkpoints.load import load_model
    from vmae_train.clips.mask import TokenMask, TubeMask
    from vmae_train.inference.embed import Embedder
    from vmae_train.inference.predict import Predictor
    from vmae_train.inference.read_video import read_clips
    from vmae_train.inference.reconstruct import reconstruct

__all__ = ["Embedder", "Predictor", "TokenMask", "TubeMask", "__version__", "load_model", "read_clips", "reconstruct"]

_HOMES = {
    "Embedder": "vmae_train.inference.embed",
    "Predictor": "vmae_train.inference.predict",
    "TokenMask": "vmae_train.clips.mask",
    "TubeMask": "vmae_train.clips.mask",
    "load_model": "vmae_train.checkpoints.load",
    "read_clips": "vmae_train.inference.read_video",
    "reconstruct": "vmae_train.inference.reconstruct",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
