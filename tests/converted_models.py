"""Small models that tests convert, with noise in their weights, and files of them."""

from __future__ import annotations

from pathlib import Path

import torch

from vmae_train.checkpoints.convert import ConvertSpec
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel

__all__ = ["CLASSES", "MISSING", "TINY", "convert_spec", "noisy_model", "official_file", "same_weights", "with_noise"]

TINY = ModelSpec(
    size="tiny", depth=2, decoder_depth=1, embed_dim=96, decoder_embed_dim=48, position="sinusoid-1d"
).geometry()
CLASSES = ("left", "right", "up → down")
# What neither the weights nor a published size determine for TINY.
MISSING = {"num_heads": 3, "decoder_num_heads": 3, "image_size": 32, "num_frames": 16}


def noisy_model(kind: str, geometry: Geometry = TINY, seed: int = 3) -> VideoModel:
    model: VideoModel
    model = PretrainModel(geometry, seed=seed) if kind == "pretrain" else Classifier(geometry, CLASSES, seed=seed)
    return with_noise(model, seed)


def with_noise(model: VideoModel, seed: int = 3) -> VideoModel:
    """Biases and norms start with equal values. Noise makes a swapped or lost weight visible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


def same_weights(one: VideoModel, other: VideoModel) -> None:
    before, after = one.state_dict(), other.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def official_file(path: Path, model: VideoModel, key: str = "model", **more: object) -> Path:
    """A checkpoint as VideoMAE's own code writes it."""
    torch.save({key: model.state_dict(), **more}, path)
    return path


def convert_spec(**model: object) -> ConvertSpec:
    return ConvertSpec(model=dict(model))
