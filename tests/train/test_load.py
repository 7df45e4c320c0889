from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import safetensors.torch
import torch

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_train import load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.native import save_model
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.layout import newest_checkpoint

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved pretraining model."""
    path = tmp_path / "model"
    path.mkdir()
    save_model(path, PretrainModel(TINY, seed=1))
    return path


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One classifier without names in two formats."""
    paths = {name: tmp_path_factory.mktemp("numbered") / name for name in ("native", "hf")}
    geometry = ModelSpec(size="tiny", depth=1, decoder_depth=1, position="sinusoid-1d").geometry()
    paths["native"].mkdir()
    save_model(paths["native"], Classifier(geometry, ("0", "1")))
    convert(str(paths["native"]), paths["hf"], to="hf")
    return paths


def _refusal(path: Path, kind: type[VmaeError] = DataError, **model: object) -> str:
    """The one-line error."""
    with pytest.raises(kind) as caught:
        load_model(path, **model)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def _edit(folder: Path, **changes: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_a_model_comes_back_bit_for_bit(kind: str, tmp_path: Path, device: torch.device) -> None:
    saved: VideoModel
    saved = PretrainModel(TINY, seed=4) if kind == "pretrain" else Classifier(TINY, ("a", "b → c"), seed=4)
    save_model(tmp_path, saved.to(device))
    loaded = load_model(tmp_path, device=device)
    assert type(loaded) is type(saved)
    assert loaded.geometry == saved.geometry
    assert loaded.classes == saved.classes
    assert not loaded.training
    before, after = saved.state_dict(), loaded.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].device.type == device.type
        assert torch.equal(after[name], value), name
    for name, value in saved.named_buffers():
        assert torch.equal(loaded.get_buffer(name), value), name


def test_the_file_holds_the_state_dict_and_nothing_else(folder: Path) -> None:
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert set(stored) == set(PretrainModel(TINY, seed=None).state_dict())
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "model.json"}


def test_the_same_model_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    save_model(again, load_model(folder))
    for name in ("model.safetensors", "model.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_gives_its_newest_complete_checkpoint(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for step in (5, 10, 20):
        path = run / "checkpoints" / f"step-{step:09d}"
        path.mkdir(parents=True)
        save_model(path, PretrainModel(TINY, seed=step))
        if step < 20:  # the save of the last one stopped before its marker
            (path / "state.json").write_text("{}")
    assert newest_checkpoint(run) == run / "checkpoints" / "step-000000010"
    expected = PretrainModel(TINY, seed=10).state_dict()
    for name, value in load_model(run).state_dict().items():
        assert torch.equal(value, expected[name])


def test_loading_leaves_the_global_generator_as_it_is(folder: Path) -> None:
    before = torch.random.get_rng_state()
    load_model(folder)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_fields_that_agree_with_the_file_are_accepted(folder: Path) -> None:
    load_model(folder, num_heads=3, decoder_depth=1, position="sinusoid-3d", std=[0.2, 0.3, 0.4])


def test_a_field_that_differs_is_refused_with_both_values(folder: Path) -> None:
    text = _refusal(folder, MisuseError, num_heads=4)
    assert "model.num_heads = 3, you set 4" in text


def test_class_names_for_a_pretraining_model_are_refused(folder: Path) -> None:
    assert "has no classes to name" in _refusal(folder, MisuseError, classes=("a", "b"))


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"classes": [0, 1]}, "classes[0] = 0: expected a name, a text that is not empty"),
        ({"classes": ["a", None]}, "classes[1] = None: expected a name, a text that is not empty"),
        ({"classes": ["a", ""]}, "classes[1] = '': expected a name, a text that is not empty"),
        ({"classes": ["a", "a"]}, "classes name 'a' twice. Give every class its own name"),
        ({"classes": "ab"}, "classes are of type str: expected a list of names"),
        ({"classes": {"a": 0, "b": 1}}, "classes are of type dict: expected a list of names"),
        ({"classes": 2}, "classes are of type int: expected a list of names"),
        ({"classes": ("a", "b", "c")}, "the head has 2 outputs, but you gave 3 classes"),
        ({"best": None}, "best = None: expected True or False"),
        ({"ema": "no"}, "ema = 'no': expected True or False"),
        ({"path": None}, "path = None: expected a path or a URL"),
        ({"device": "meta"}, "device 'meta': not available (nothing is computed there). Use cpu or cuda"),
        ({"device": "gpu"}, "device 'gpu': not available (no such device). Use cpu or cuda"),
        ({"device": [0]}, "device '[0]': not available"),
        ({"device": None}, "device 'None': not available"),
        ({"device": "cuda:99"}, "device 'cuda:99': not available"),
    ],
)
@pytest.mark.parametrize("kind", ["native", "hf"])
def test_arguments_of_a_wrong_type_are_refused_in_one_line(
    kind: str, wrong: dict[str, Any], problem: str, numbered: dict[str, Path]
) -> None:
    with pytest.raises(VmaeError, match=re.escape(problem)) as caught:
        load_model(**({"path": numbered[kind]} | wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*every q and v bias is 0")  # of new weights
def test_names_replace_the_numbers_of_a_model(numbered: dict[str, Path]) -> None:
    for path in numbered.values():
        assert load_model(path, classes=["left", "right"]).classes == ("left", "right")


def test_an_unknown_format_to_convert_to_is_refused(folder: Path, tmp_path: Path) -> None:
    layout: Any = "videomae"
    with pytest.raises(MisuseError, match="^to = 'videomae': expected native, official or hf$"):
        convert(str(folder), tmp_path / "out", to=layout)
    assert not (tmp_path / "out").exists()


def test_an_unknown_field_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(MisuseError, match=r"model\.heads is not a field"):
        load_model(folder, heads=3)


def test_a_path_without_a_model_is_refused_with_what_was_found(tmp_path: Path) -> None:
    expected = "expected a folder with model.json"
    assert f"found nothing at this path; {expected}" in _refusal(tmp_path / "absent")
    file = tmp_path / "model.pth"
    file.write_bytes(b"x")
    assert "not a readable checkpoint" in _refusal(file)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert f"found a folder without model.json and config.json; {expected}" in _refusal(empty)
    (empty / "checkpoints" / "step-000000001").mkdir(parents=True)
    assert "a run without a complete checkpoint" in _refusal(empty)


@pytest.mark.parametrize("size", [0, 4, 200, 50_000])
def test_truncated_weights_are_refused(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="weights can't be read"):
        load_model(folder)


def test_absent_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in _refusal(folder)


def test_missing_unknown_and_misshapen_weights_are_refused_by_name(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = safetensors.torch.load_file(path)
    without = {name: value for name, value in weights.items() if name != "mask_token"}
    safetensors.torch.save_file(without, path)
    assert "1 weight is missing: mask_token. The file is incomplete or of another model" in _refusal(folder)
    safetensors.torch.save_file({**weights, "mask": torch.zeros(2), "extra": torch.zeros(2)}, path)
    assert "2 weights are unknown: extra, mask." in _refusal(folder)
    safetensors.torch.save_file({**weights, "encoder.cls_token": torch.zeros(1, 1, 192)}, path)
    assert "has a class token (encoder.cls_token), which these models don't have" in _refusal(folder)
    safetensors.torch.save_file({**weights, "mask_token": torch.zeros(1, 1, 95)}, path)
    assert "mask_token has 1 × 1 × 95 numbers, but this model has 1 × 1 × 96." in _refusal(folder)
    safetensors.torch.save_file({**weights, "mask_token": weights["mask_token"].half()}, path)
    assert "mask_token is float16, but this model needs float32" in _refusal(folder)


@pytest.mark.parametrize("name", ["encoder.pos_embed", "decoder.pos_embed"])
def test_a_fixed_position_code_is_skipped_with_a_note_and_other_codes_are_refused(name: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    weights, model = safetensors.torch.load_file(path), load_model(folder)
    assert isinstance(model, PretrainModel)
    code = model.position_NE if name.startswith("encoder") else model.decoder_position_NE
    safetensors.torch.save_file({**weights, name: code[None].clone()}, path)
    with pytest.warns(UserWarning, match=f"{name}: skipped the fixed position embedding"):
        assert load_model(folder).state_dict().keys() == weights.keys()
    for kind in (torch.float32, torch.float16, torch.bfloat16):
        safetensors.torch.save_file({**weights, name: (code[None] + 2e-2).to(kind)}, path)
        assert f"{name} is a learned position embedding" in _refusal(folder)
    safetensors.torch.save_file({**weights, name: code[None] + 1e-3}, path)
    assert f"{name} is a learned position embedding" in _refusal(folder)
    safetensors.torch.save_file({**weights, name: code[None, :-1].clone()}, path)
    dim = code.shape[1]
    assert f"1 × 127 × {dim} numbers, but 16 frames of 32 px need 128 × {dim}." in _refusal(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_a_fixed_position_code_in_half_precision_is_a_fixed_one(kind: torch.dtype, folder: Path) -> None:
    path = folder / "model.safetensors"
    weights, model = safetensors.torch.load_file(path), load_model(folder)
    assert isinstance(model, PretrainModel)
    half = model.position_NE[None].to(kind)
    for stored in (half, half.float()):  # as stored, and as a tool that widens all weights stores it
        safetensors.torch.save_file({**weights, "encoder.pos_embed": stored}, path)
        with pytest.warns(UserWarning, match="encoder.pos_embed: skipped the fixed position embedding"):
            assert load_model(folder).state_dict().keys() == weights.keys()


def test_weights_of_another_geometry_are_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    save_model(other, PretrainModel(msgspec.structs.replace(TINY, depth=2)))
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    assert "The file is incomplete or of another model" in _refusal(folder)


def test_a_description_of_a_far_larger_model_allocates_no_memory(folder: Path) -> None:
    geometry = json.loads((folder / "model.json").read_text())["geometry"]
    _edit(folder, geometry={**geometry, "depth": 10**7})
    assert "10000000 blocks exceed the limit of 1024" in _refusal(folder)
    _edit(folder, geometry={**geometry, "depth": 1024})
    assert "parameters, the file holds" in _refusal(folder)


def test_a_newer_format_is_refused_even_if_its_fields_are_unknown(folder: Path) -> None:
    _edit(folder, format=3, future=True)
    assert "format 3, but this version reads up to 2" in _refusal(folder)


def test_a_broken_description_is_refused(folder: Path) -> None:
    path = folder / "model.json"
    for changes in ({"kind": "detector"}, {"geometry": {}}, {"future": True}, {"format": "one"}):
        before = path.read_text()
        _edit(folder, **changes)
        assert "not a model description" in _refusal(folder)
        path.write_text(before)
    geometry = json.loads(path.read_text())["geometry"]
    _edit(folder, geometry={**geometry, "num_heads": 5})
    assert "model.num_heads = 5" in _refusal(folder)
    path.write_text("{")
    assert "not a model description" in _refusal(folder)


def test_a_classifier_file_without_classes_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, Classifier(TINY, ("a",)))
    _edit(tmp_path, classes=[])
    assert "classes" in _refusal(tmp_path)


def test_saving_into_a_missing_folder_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(VmaeError, match="can't be written"):
        save_model(tmp_path / "absent", PretrainModel(TINY))
