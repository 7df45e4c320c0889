"""The committed weights that `make demo` continues."""

from __future__ import annotations

import hashlib

from tools.demo.__main__ import PRETRAINED
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.load import load_model
from vmae_train.pretrain import PretrainSpec


def test_the_weights_are_those_that_the_readme_names() -> None:
    digest = hashlib.sha256((PRETRAINED / "model.safetensors").read_bytes()).hexdigest()
    assert f"`{digest}`" in (PRETRAINED / "README.md").read_text()


def test_the_recipe_of_the_demo_continues_them() -> None:
    for name in ("pretrain/demo", "pretrain/demo-long"):
        spec = load_recipe("vmae_train", name, PretrainSpec)
        assert load_model(PRETRAINED).geometry == spec.model.geometry()
