"""The tiny model of the tests of models: clips, a mask and a pretraining model of its geometry."""

from __future__ import annotations

import torch

from vmae_train.clips.mask import TokenMask, tube_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.videomae import PretrainModel

__all__ = ["CLASSES", "TINY", "tiny_clips", "tiny_mask", "tiny_model"]

TINY = ModelSpec(size="tiny", depth=2, decoder_depth=1).geometry()
CLASSES = ("left", "right", "up")


def tiny_clips(device: torch.device, *, batch: int = 2, geometry: Geometry = TINY, seed: int = 5) -> torch.Tensor:
    shape = (batch, 3, geometry.num_frames, geometry.image_size, geometry.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def tiny_mask(device: torch.device, *, batch: int = 2, geometry: Geometry = TINY) -> TokenMask:
    rng = ClipRng.on(device, seed=1, epoch=0, sample=list(range(batch)))
    return tube_mask(rng, slices=geometry.slices, patches=geometry.patches, ratio=0.75)


def tiny_model(device: torch.device, *, seed: int = 0) -> PretrainModel:
    return PretrainModel(TINY, seed=seed).to(device)
