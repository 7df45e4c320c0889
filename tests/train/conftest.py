"""Shapes of the trainer's public functions are checked while these tests run, on every device present."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook(
    [
        "vmae_train.clips.rng",
        "vmae_train.clips.mask",
        "vmae_train.clips.affine",
        "vmae_train.clips.augment",
        "vmae_train.clips.boxes",
        "vmae_train.clips.colour",
        "vmae_train.clips.erasing",
        "vmae_train.clips.image_ops",
        "vmae_train.clips.mixup",
        "vmae_train.clips.randaugment",
        "vmae_train.clips.resample",
        "vmae_train.models",
    ],
    "beartype.beartype",
)
torch.set_num_threads(1)

_DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.device) for name in _DEVICES])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)
