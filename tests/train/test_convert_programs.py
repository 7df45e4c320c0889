"""Checkpoints of the original code and of other training programs are read."""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.converted_models import (
    CLASSES,
    MISSING,
    TINY,
    convert_spec,
    noisy_model,
    official_file,
    same_weights,
)
from vmae_data.errors import DataError, MisuseError
from vmae_train import load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.load import load_init
from vmae_train.checkpoints.weight_names import to_hf_names
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel

pytestmark = pytest.mark.processes


# What the original code and its training write.


@pytest.mark.parametrize("key", ["model", "module"])
def test_a_checkpoint_of_the_original_code_is_read_with_its_arguments(kind: str, tmp_path: Path, key: str) -> None:
    model = noisy_model(kind)
    arguments = argparse.Namespace(input_size=32, num_frames=16, model="pretrain_videomae_tiny", device="cuda")
    path = official_file(tmp_path / "a.pth", model, key, epoch=7, args=arguments, max_accuracy=np.float64(81.5))
    loaded = load_model(path, num_heads=3, decoder_num_heads=3)
    same_weights(model, loaded)
    assert (loaded.geometry.image_size, loaded.geometry.num_heads) == (32, 3)
    if kind == "classifier":
        assert loaded.classes == ("0", "1", "2")
        assert load_model(path, num_heads=3, classes=CLASSES).classes == CLASSES
        with pytest.raises(MisuseError, match="3 outputs, but you gave 2 classes"):
            load_model(path, num_heads=3, classes=("a", "b"))


def test_prefixes_of_wrappers_are_removed(kind: str, tmp_path: Path) -> None:
    model = noisy_model(kind)
    prefixes = ["_orig_mod.", "module.", "module._orig_mod."]
    if kind == "classifier":
        prefixes += ["encoder.", "backbone.", "_orig_mod.encoder."]
    for number, prefix in enumerate(prefixes):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": {prefix + name: value for name, value in model.state_dict().items()}}, path)
        same_weights(model, load_model(path, **MISSING))


def test_a_plain_dict_of_weights_and_a_file_from_before_torch_1_6_are_read(kind: str, tmp_path: Path) -> None:
    model = noisy_model(kind)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    same_weights(model, load_model(tmp_path / "bare.pth", **MISSING))
    arguments = argparse.Namespace(input_size=32, num_frames=16)
    torch.save(
        {"model": model.state_dict(), "args": arguments}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    same_weights(model, load_model(tmp_path / "old.pth", num_heads=3, decoder_num_heads=3))


def test_a_deepspeed_folder_is_read_without_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "deepspeed.runtime.fp16.loss_scaler"
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:count]), types.ModuleType(".".join(parts[:count])))
    scaler = type("LossScaler", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "LossScaler", scaler, raising=False)
    held = scaler()
    held.cur_scale = 128.0
    folder = tmp_path / "checkpoint-49"
    folder.mkdir()
    model = noisy_model("classifier")
    official_file(folder / "mp_rank_00_model_states.pt", model, "module", loss_scaler=held, dp_world_size=8)
    for count in range(len(parts), 0, -1):
        monkeypatch.delitem(sys.modules, ".".join(parts[:count]))
    same_weights(model, load_model(folder, **MISSING))
    assert "deepspeed" not in sys.modules


# Files of other training programs.


def _mmaction(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of mmaction2's recognizer, and its stored position embedding."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("patch_embed.proj.", "patch_embed.projection.").replace("mlp.fc1.", "mlp.layers.0.0.")
        name = name.replace("mlp.fc2.", "mlp.layers.1.")
        renamed[name.replace("head.", "cls_head.fc_cls.") if name.startswith("head.") else f"backbone.{name}"] = value
    return {**renamed, "backbone.pos_embed": Classifier(TINY, CLASSES, seed=None).position_NE[None]}


def _prefixed(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


# The content of a file, and the note that says what was taken.
FORMS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], dict[str, Any]], str | None]] = {
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3}, None),
    "lightning": (
        lambda state: {
            "state_dict": _prefixed("model.", state),
            "pytorch-lightning_version": "2.4.0",
            "callbacks": {},
            "loops": {},
        },
        None,
    ),
    "compiled in lightning": (lambda state: {"state_dict": _prefixed("model._orig_mod.module.", state)}, None),
    "average alone": (lambda state: {"model_ema": state}, "took the weights under model_ema, a moving average"),
    "average beside": (
        lambda state: {"model": state, "model_ema": {name: value + 1 for name, value in state.items()}},
        "took the weights under model; model_ema left out",
    ),
    "numpy's generator": (lambda state: {"model": state, "rng": np.random.RandomState(3).get_state()}, None),
    "arrays and paths": (
        lambda state: {
            "model": state,
            "numpy": {"a": np.arange(5.0), "b": np.array(["x", "y"]), "c": np.float32(2)},
            "args": argparse.Namespace(output_dir=Path("/out"), data=PurePosixPath("a"), input_size=32),
        },
        None,
    ),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_the_files_of_other_training_programs_are_read_and_say_what_was_taken(
    form: str, zipped: bool, kind: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, (content, note) = noisy_model(kind), FORMS[form]
    torch.save(content(model.state_dict()), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    same_weights(model, load_model(tmp_path / "a.pth", **MISSING))
    assert [note in str(warning.message) for warning in recwarn] == ([True] if note else [])


def test_a_recognizer_of_mmaction2_is_read(tmp_path: Path) -> None:
    model = noisy_model("classifier")
    content = {"meta": {"epoch": 1}, "state_dict": _mmaction(model.state_dict())}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="skipped the fixed position embedding"):
        same_weights(model, load_model(tmp_path / "a.pth", **MISSING))


@pytest.mark.filterwarnings("ignore:.*has transformers' names")
@pytest.mark.parametrize("content", ["encoder", "lightning", "deepspeed", "hf"])
def test_an_encoder_is_enough_for_init_and_only_for_that(content: str, tmp_path: Path) -> None:
    whole = noisy_model("pretrain")
    state = {n.removeprefix("encoder."): v for n, v in whole.state_dict().items() if n.startswith("encoder.")}
    path = tmp_path / "a.pth"
    if content == "hf":
        path = tmp_path / "a.safetensors"
        hf = to_hf_names(whole.state_dict(), pretrain=True)
        state = {n.removeprefix("videomae."): v for n, v in hf.items() if n.startswith("videomae.")}
        safetensors.torch.save_file(state, path)
    else:
        prefix = {"encoder": "encoder.", "lightning": "model.encoder.", "deepspeed": "module."}[content]
        torch.save({"module" if content == "deepspeed" else "state_dict": _prefixed(prefix, state)}, path)
    with pytest.raises(DataError, match="only an encoder. Start a training from it with --init"):
        load_model(path)
    with pytest.warns(UserWarning, match="the decoder starts new"):
        start = load_init(path, TINY, position_resize="recompute", seed=8)
    new = PretrainModel(TINY, seed=8).state_dict()
    for name, value in start.state_dict().items():
        assert torch.equal(value, (whole.state_dict() if name.startswith("encoder.") else new)[name]), name
    finetuned = load_init(path, TINY, position_resize="recompute", with_decoder=False)
    assert isinstance(finetuned, PretrainModel)
    assert torch.equal(finetuned.encoder.blocks[1].mlp.fc2.weight, whole.encoder.blocks[1].mlp.fc2.weight)


def test_a_head_on_the_first_token_is_read(tmp_path: Path) -> None:
    """The original's and mmaction2's models with use_mean_pooling=False: all tokens are normed, the first is taken."""
    model = noisy_model("classifier")
    state = {name.replace("fc_norm.", "norm."): value for name, value in model.state_dict().items()}
    torch.save({"model": state}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="its head reads the first token"):
        first = load_model(tmp_path / "a.pth", **MISSING)
    clips = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(1))
    x = model.patch_embed(clips) + model.position_NE
    for block in model.blocks:
        x = block(x)
    assert torch.allclose(first(clips), model.head(model.fc_norm(x)[:, 0]), atol=1e-6)
    with pytest.raises(MisuseError, match="first pooling"):
        convert(str(tmp_path / "a.pth"), tmp_path / "hf", to="hf", spec=convert_spec(**MISSING))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_weights_that_zero_3_keeps_elsewhere_are_to_be_joined_first(place: str, tmp_path: Path) -> None:
    state = {name: torch.zeros(0) for name in noisy_model("pretrain").state_dict()}
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": state}, path)
    with pytest.raises(DataError, match="ZeRO-3 keeps the weights in one file per GPU. Join them first"):
        load_model(path if place == "file" else tmp_path)
