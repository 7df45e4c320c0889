"""Folders of transformers: their weights, configuration and preprocessing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from tests.converted_models import (
    MISSING,
    TINY,
    same_weights,
)
from vmae_data.errors import DataError
from vmae_train import load_model
from vmae_train.checkpoints.convert import convert

pytestmark = pytest.mark.processes


# Hugging Face's folders.


@pytest.fixture
def hf(native: Path, tmp_path: Path) -> Path:
    convert(str(native), tmp_path / "hf", to="hf")
    return tmp_path / "hf"


def test_sharded_and_pickled_folders_and_the_newer_names_are_read(native: Path, hf: Path, tmp_path: Path) -> None:
    first = load_model(native)
    state = safetensors.torch.load_file(hf / "model.safetensors")
    newer = {
        name.replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): value for name, value in state.items()
    }
    assert newer.keys() != state.keys()
    safetensors.torch.save_file(newer, hf / "model.safetensors")
    same_weights(first, load_model(hf))
    names = sorted(newer)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, some in halves.items():
        safetensors.torch.save_file({name: newer[name] for name in some}, hf / part)
    index = {"metadata": {}, "weight_map": {name: part for part, some in halves.items() for name in some}}
    (hf / "model.safetensors").unlink()
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    same_weights(first, load_model(hf))
    outside = {name: "../" + part for name, part in index["weight_map"].items()}
    (hf / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": outside}))
    with pytest.raises(DataError, match="not in this folder"):
        load_model(hf)
    (hf / "model.safetensors.index.json").unlink()
    torch.save(state, hf / "pytorch_model.bin")
    same_weights(first, load_model(hf))
    (hf / "pytorch_model.bin").unlink()
    with pytest.raises(DataError, match="none of model.safetensors"):
        load_model(hf)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("model_type", "vit", "model_type = 'vit'"),
        ("num_channels", 1, "num_channels = 1"),
        ("hidden_act", "relu", "hidden_act"),
        ("qkv_bias", False, "qkv_bias"),
        ("image_size", [32, 48], "image_size"),
        ("hidden_size", 192, "states embed_dim = 192, its weights have 96"),
        ("num_hidden_layers", 3, "depth = 3"),
        ("patch_size", "8", "not a VideoMAE file of transformers"),
    ],
)
def test_a_config_of_another_model_is_refused(hf: Path, field: str, value: object, message: str) -> None:
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(DataError, match=message):
        load_model(hf)


def test_a_lone_file_of_weights_is_read_with_the_files_beside_it_or_with_a_note(
    kind: str, native: Path, hf: Path, tmp_path: Path
) -> None:
    for folder in (native, hf):
        same_weights(load_model(native), load_model(folder / "model.safetensors"))
    assert load_model(hf / "model.safetensors").geometry == load_model(hf).geometry
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((hf / "model.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="transformers' names without its config.json"):
        model = load_model(lone, **MISSING)
    same_weights(load_model(native), model)
    assert (model.geometry.encoder_eps, model.geometry.fc_eps) == (1e-12, 1e-5)


def test_parts_of_a_pickled_folder_are_read(native: Path, hf: Path) -> None:
    state = safetensors.torch.load_file(hf / "model.safetensors")
    (hf / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, some in parts.items():
        torch.save({name: state[name] for name in some}, hf / part)
    index = {"metadata": {}, "weight_map": {name: part for part, some in parts.items() for name in some}}
    (hf / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    same_weights(load_model(native), load_model(hf))


OTHER = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
GIVEN = ((0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
# Files of preprocessing → mean, standard deviation, and the note.
PROCESSORS: dict[str, tuple[dict[str, Any], Any, str | None]] = {
    "video": ({"video_preprocessor_config.json": OTHER}, GIVEN, None),
    "image": ({"preprocessor_config.json": OTHER}, GIVEN, None),
    "nested video": ({"processor_config.json": {"video_processor": OTHER}}, GIVEN, None),
    "nested image": ({"processor_config.json": {"image_processor": OTHER}}, GIVEN, None),
    "states none": ({"preprocessor_config.json": {"do_resize": True}}, HALF, None),
    "not nested": ({"processor_config.json": {}, "preprocessor_config.json": OTHER}, GIVEN, None),
    "one number": ({"preprocessor_config.json": {"image_mean": 0.5, "image_std": 0.5}}, HALF, None),
    "not normalised": ({"preprocessor_config.json": {"do_normalize": False}}, ((0.0,) * 3, (1.0,) * 3), None),
    "video before image": (
        {"video_preprocessor_config.json": OTHER, "preprocessor_config.json": {}}, GIVEN, "files of preprocessing differ"
    ),
    "none": ({}, (TINY.mean, TINY.std), "none of processor_config.json, video_preprocessor_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("files", PROCESSORS)
def test_mean_and_standard_deviation_come_from_the_file_that_transformers_reads(
    files: str, hf: Path, recwarn: pytest.WarningsRecorder
) -> None:
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (hf / name).unlink()
    contents, expected, note = PROCESSORS[files]
    for name, content in contents.items():
        (hf / name).write_text(json.dumps(content))
    geometry = load_model(hf).geometry
    assert (geometry.mean, geometry.std) == expected
    assert [note in str(warning.message) for warning in recwarn] == ([True] if note else [])


def test_lost_biases_are_noted(hf: Path, tmp_path: Path) -> None:
    state = safetensors.torch.load_file(hf / "model.safetensors")
    for name, value in state.items():
        if name.endswith(("q_bias", "v_bias")):
            value.zero_()
    safetensors.torch.save_file(state, hf / "model.safetensors")
    with pytest.warns(UserWarning, match="every q and v bias is 0"):
        load_model(hf)
    assert any("every q and v bias is 0" in note for note in convert(str(hf), tmp_path / "x", to="native"))
