from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import sys
import types
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.torch
import torch

from tests.command import run_command
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_train import load_model
from vmae_train.checkpoints.convert import ConvertSpec, Layout, convert
from vmae_train.checkpoints.load import load_init
from vmae_train.checkpoints.native import save_model
from vmae_train.checkpoints.weight_names import to_hf_names
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier, MultiLabelClassifier, RegressedValue, Regressor
from vmae_train.models.videomae import PretrainModel

pytestmark = pytest.mark.processes

TINY = ModelSpec(
    size="tiny", depth=2, decoder_depth=1, embed_dim=96, decoder_embed_dim=48, position="sinusoid-1d"
).geometry()
CLASSES = ("left", "right", "up → down")
KINDS = ("pretrain", "classifier")
# What neither the weights nor a published size determine for TINY.
MISSING = {"num_heads": 3, "decoder_num_heads": 3, "image_size": 32, "num_frames": 16}


def _model(kind: str, geometry: Geometry = TINY, seed: int = 3) -> VideoModel:
    model: VideoModel
    model = PretrainModel(geometry, seed=seed) if kind == "pretrain" else Classifier(geometry, CLASSES, seed=seed)
    return _with_noise(model, seed)


def _with_noise(model: VideoModel, seed: int = 3) -> VideoModel:
    """Biases and norms start with equal values. Noise makes a swapped or lost weight visible."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return model


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def native(kind: str, tmp_path: Path) -> Path:
    folder = tmp_path / "native"
    folder.mkdir()
    save_model(folder, _model(kind))
    return folder


def _same_weights(one: VideoModel, other: VideoModel) -> None:
    before, after = one.state_dict(), other.state_dict()
    assert list(before) == list(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name


def _official(path: Path, model: VideoModel, key: str = "model", **more: object) -> Path:
    """A checkpoint as VideoMAE's own code writes it."""
    torch.save({key: model.state_dict(), **more}, path)
    return path


def test_weights_survive_every_order_of_conversions_bit_for_bit(kind: str, native: Path, tmp_path: Path) -> None:
    first = load_model(native)
    ways = [("official", "a.pth"), ("native", "b"), ("hf", "c"), ("official", "d.pth"), ("hf", "e"), ("native", "f")]
    here = native
    for to, name in ways:
        convert(str(here), tmp_path / name, to=to)  # type: ignore[arg-type]
        here = tmp_path / name
        there = load_model(here)
        _same_weights(first, there)
        assert there.classes == first.classes
        assert type(there) is type(first)
        assert there.geometry.num_heads == 3
    again = tmp_path / "again.pth"
    convert(str(native), again, to="official")
    assert again.read_bytes() == (tmp_path / "a.pth").read_bytes()
    assert not list(tmp_path.glob(".tmp*"))


@pytest.mark.parametrize("to", ["native", "official", "hf"])
def test_conversion_writes_the_same_bytes_each_time(native: Path, tmp_path: Path, to: str) -> None:
    for name in ("one", "two"):
        convert(str(native), tmp_path / name, to=to)  # type: ignore[arg-type]
    one, two = tmp_path / "one", tmp_path / "two"
    files = [Path()] if to == "official" else sorted(path.relative_to(one) for path in one.iterdir())
    assert files
    for file in files:
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_the_official_file_has_only_the_original_names_under_model(native: Path, tmp_path: Path, kind: str) -> None:
    convert(str(native), tmp_path / "a.pth", to="official")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    prefix = "encoder." if kind == "pretrain" else ""
    names = set(content["model"])
    assert f"{prefix}blocks.1.attn.qkv.weight" in names
    assert f"{prefix}blocks.1.attn.q_bias" in names
    assert not any("pos_embed" in name or "qkv.bias" in name for name in names)
    assert ("encoder.norm.weight" if kind == "pretrain" else "fc_norm.weight") in names


# What the original code and its training write.


@pytest.mark.parametrize("key", ["model", "module"])
def test_a_checkpoint_of_the_original_code_is_read_with_its_arguments(kind: str, tmp_path: Path, key: str) -> None:
    model = _model(kind)
    arguments = argparse.Namespace(input_size=32, num_frames=16, model="pretrain_videomae_tiny", device="cuda")
    path = _official(tmp_path / "a.pth", model, key, epoch=7, args=arguments, max_accuracy=np.float64(81.5))
    loaded = load_model(path, num_heads=3, decoder_num_heads=3)
    _same_weights(model, loaded)
    assert (loaded.geometry.image_size, loaded.geometry.num_heads) == (32, 3)
    if kind == "classifier":
        assert loaded.classes == ("0", "1", "2")
        assert load_model(path, num_heads=3, classes=CLASSES).classes == CLASSES
        with pytest.raises(MisuseError, match="3 outputs, but you gave 2 classes"):
            load_model(path, num_heads=3, classes=("a", "b"))


def test_prefixes_of_wrappers_are_removed(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    prefixes = ["_orig_mod.", "module.", "module._orig_mod."]
    if kind == "classifier":
        prefixes += ["encoder.", "backbone.", "_orig_mod.encoder."]
    for number, prefix in enumerate(prefixes):
        path = tmp_path / f"{number}.pth"
        torch.save({"model": {prefix + name: value for name, value in model.state_dict().items()}}, path)
        _same_weights(model, load_model(path, **MISSING))


def test_a_plain_dict_of_weights_and_a_file_from_before_torch_1_6_are_read(kind: str, tmp_path: Path) -> None:
    model = _model(kind)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    _same_weights(model, load_model(tmp_path / "bare.pth", **MISSING))
    arguments = argparse.Namespace(input_size=32, num_frames=16)
    torch.save(
        {"model": model.state_dict(), "args": arguments}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    _same_weights(model, load_model(tmp_path / "old.pth", num_heads=3, decoder_num_heads=3))


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
    model = _model("classifier")
    _official(folder / "mp_rank_00_model_states.pt", model, "module", loss_scaler=held, dp_world_size=8)
    for count in range(len(parts), 0, -1):
        monkeypatch.delitem(sys.modules, ".".join(parts[:count]))
    _same_weights(model, load_model(folder, **MISSING))
    assert "deepspeed" not in sys.modules


class _Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.target,)


class _HostileState:
    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, (f"touch {self.target}",)

    def __init__(self, target: Path) -> None:
        self.target = target


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("hostile", [_Hostile, _HostileState])
def test_a_hostile_checkpoint_runs_nothing_and_is_named(tmp_path: Path, zipped: bool, hostile: type) -> None:
    target = tmp_path / "ran"
    path = tmp_path / "hostile.pth"
    content = {"model": _model("pretrain").state_dict(), "args": argparse.Namespace(x=hostile(target))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError) as caught:
        load_model(path, **MISSING)
    text = str(caught.value)
    assert "which is not loaded" in text
    assert "system" in text or "pathlib" in text or "getattr" in text
    assert "\n" not in text
    assert not target.exists()
    torch.load(path, weights_only=False)  # unsafe loading runs it
    assert target.exists()


def test_builtins_that_make_or_run_things_are_refused(tmp_path: Path) -> None:
    for name, opcode in (("builtins eval", b"c__builtin__\neval\n"), ("builtins getattr", b"c__builtin__\ngetattr\n")):
        path = tmp_path / "x.pth"
        torch.save({"a": 1}, path)
        import zipfile

        with zipfile.ZipFile(path) as old:
            members = {info.filename: old.read(info) for info in old.infolist()}
        hostile = b"\x80\x02" + opcode + b"X\x03\x00\x00\x001+1\x85R."
        with zipfile.ZipFile(path, "w") as new:
            for member, data in members.items():
                new.writestr(member, hostile if member.endswith("data.pkl") else data)
        with pytest.raises(DataError, match=name.split()[1]):
            load_model(path)


@pytest.mark.parametrize(
    ("data", "explanation"),
    [
        (b"", "The file is empty"),
        (b"PK\x03\x04", "The file is damaged, truncated"),
        (b"\x80\x02.", "The file is a pickle that torch.save did not write"),
        (b"\x80\x02K\x01.", "The file is a pickle that torch.save did not write"),
        (pickle.dumps({"model": {}}), "The file is a pickle that torch.save did not write"),
        (pickle.dumps(Path("x")), "The file is a pickle that torch.save did not write"),
        (b"hello", "The file is text that begins with 'hello'"),
        (b"(101)", "The file is text that begins with '(101)'"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "The file is a Git LFS pointer"),
        (bytes(range(255, 128, -1)), "The file is not from torch.save"),
    ],
)
def test_a_file_that_is_not_a_checkpoint_is_explained_in_one_line(
    tmp_path: Path, data: bytes, explanation: str
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        load_model(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: not a readable checkpoint. {explanation}")
    assert "\n" not in text and "weights_only" not in text


@pytest.mark.parametrize("to", ["native", "hf", "official"])
def test_the_umask_sets_the_permissions_of_written_files(to: Layout, native: Path, tmp_path: Path) -> None:
    dest, before = tmp_path / "converted", os.umask(0o027)
    try:
        convert(str(native), dest, to=to)
    finally:
        os.umask(before)
    for path in dest.iterdir() if dest.is_dir() else [dest]:
        assert path.stat().st_mode & 0o777 == 0o640, path.name


@pytest.mark.parametrize("to", ["native", "hf", "official"])
def test_a_full_disk_leaves_nothing_and_the_error_names_the_destination(
    to: Layout, native: Path, tmp_path: Path
) -> None:
    dest, limits = tmp_path / "converted", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(VmaeError, match=f"^{dest}.*: can't be written .*File too large.*. Check the folder"):
            convert(str(native), dest, to=to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native"]


def test_a_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = _official(tmp_path / "a.pth", _model("pretrain"))
    data = path.read_bytes()
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError) as caught:
            load_model(path, **MISSING)
        assert "\n" not in str(caught.value)


def test_files_without_a_complete_model_are_refused(tmp_path: Path) -> None:
    state = _model("classifier").state_dict()
    for name, content, message in (
        ("headless", {k: v for k, v in state.items() if not k.startswith("head")}, "neither encoder_to_decoder"),
        ("optimizer", {"optimizer": {"lr": 1.0}, "epoch": 3}, "found optimizer, epoch"),
        ("list", [1, 2], "holds a list"),
        (
            "lacking",
            {"model": {k: v for k, v in state.items() if "blocks.1.mlp" not in k}},
            "4 weights are missing: blocks.1.mlp",
        ),
        ("learned", {"model": {**state, "pos_embed": torch.randn(1, 128, 96)}}, "learned position embedding"),
        ("scaled", {"model": {**state, "blocks.0.attn.scale": torch.ones(3)}}, "attn.scale"),
    ):
        path = tmp_path / f"{name}.pth"
        torch.save(content, path)
        with pytest.raises(DataError, match=message):
            load_model(path, **MISSING)


def test_a_stored_copy_of_the_fixed_position_code_is_skipped(tmp_path: Path) -> None:
    model = _model("classifier")
    torch.save({"model": {**model.state_dict(), "pos_embed": model.position_NE[None]}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="pos_embed: skipped the fixed position embedding"):
        _same_weights(model, load_model(tmp_path / "a.pth", **MISSING))


def test_two_weights_with_one_name_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    model = _model("classifier")
    state = model.state_dict()
    for prefix in ("module.", "encoder."):
        torch.save({**state, f"{prefix}head.weight": state["head.weight"]}, tmp_path / "a.pth")
        _same_weights(model, load_model(tmp_path / "a.pth", **MISSING))
        torch.save({**state, f"{prefix}head.weight": state["head.weight"] + 1}, tmp_path / "a.pth")
        with pytest.raises(
            DataError, match=rf"head.weight and {prefix}head.weight are both head.weight, but their values differ"
        ):
            load_model(tmp_path / "a.pth", **MISSING)


def test_nan_and_inf_weights_are_converted_and_noted(tmp_path: Path) -> None:
    model = _model("classifier")
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = torch.nan
        model.get_parameter("fc_norm.weight")[0] = torch.inf
    path = _official(tmp_path / "a.pth", model)
    notes = convert(str(path), tmp_path / "b", to="native", spec=_spec(**MISSING))
    count = len(model.state_dict())
    assert f"NaN or inf in 2 of {count} weights (fc_norm.weight, head.bias): the model is not usable" in notes


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
    model, (content, note) = _model(kind), FORMS[form]
    torch.save(content(model.state_dict()), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    _same_weights(model, load_model(tmp_path / "a.pth", **MISSING))
    assert [note in str(warning.message) for warning in recwarn] == ([True] if note else [])


def test_a_recognizer_of_mmaction2_is_read(tmp_path: Path) -> None:
    model = _model("classifier")
    content = {"meta": {"epoch": 1}, "state_dict": _mmaction(model.state_dict())}
    torch.save(content, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="skipped the fixed position embedding"):
        _same_weights(model, load_model(tmp_path / "a.pth", **MISSING))


@pytest.mark.filterwarnings("ignore:.*has transformers' names")
@pytest.mark.parametrize("content", ["encoder", "lightning", "deepspeed", "hf"])
def test_an_encoder_is_enough_for_init_and_only_for_that(content: str, tmp_path: Path) -> None:
    whole = _model("pretrain")
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
    model = _model("classifier")
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
        convert(str(tmp_path / "a.pth"), tmp_path / "hf", to="hf", spec=_spec(**MISSING))


@pytest.mark.parametrize("place", ["file", "folder"])
def test_weights_that_zero_3_keeps_elsewhere_are_to_be_joined_first(place: str, tmp_path: Path) -> None:
    state = {name: torch.zeros(0) for name in _model("pretrain").state_dict()}
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": state}, path)
    with pytest.raises(DataError, match="ZeRO-3 keeps the weights in one file per GPU. Join them first"):
        load_model(path if place == "file" else tmp_path)


# Missing fields are inferred or set by the user.


@pytest.mark.parametrize("size", ["S", "B", "L", "H", "g"])
def test_published_sizes_are_inferred_from_their_weights(size: str) -> None:
    from vmae_train.checkpoints.infer import ForeignCheckpoint, infer_description

    expected = msgspec.convert({"size": size, "decoder_depth": 3}, ModelSpec).geometry()
    shapes = _meta_state(expected)
    checkpoint = ForeignCheckpoint(Path("x.pth"), "pretrain", shapes, {})
    assert infer_description(checkpoint, {}, None, recipe_fields={}).geometry == expected


def _meta_state(geometry: Geometry) -> dict[str, torch.Tensor]:
    """Names and shapes of a pretraining model, without memory."""
    from vmae_train.models.videomae import Decoder, Encoder

    with torch.device("meta"):
        parts = torch.nn.ModuleDict({"encoder": Encoder(geometry), "decoder": Decoder(geometry)})
        bridge = torch.empty(geometry.decoder_embed_dim, geometry.embed_dim)
    return {**parts.state_dict(), "encoder_to_decoder.weight": bridge}


def test_videomae_v2s_huge_model_has_the_decoder_of_g() -> None:
    from vmae_train.checkpoints.infer import ForeignCheckpoint, infer_description

    geometry = ModelSpec(size="H", decoder_embed_dim=512, decoder_depth=4, decoder_num_heads=8).geometry()
    checkpoint = ForeignCheckpoint(Path("x.pth"), "pretrain", _meta_state(geometry), {})
    assert infer_description(checkpoint, {}, None, recipe_fields={}).geometry == geometry


def test_an_error_lists_the_fields_that_can_not_be_inferred(tmp_path: Path) -> None:
    path = _official(tmp_path / "a.pth", _model("pretrain"))
    with pytest.raises(MisuseError) as caught:
        load_model(path, num_heads=3)
    text = str(caught.value)
    assert "don't determine image_size, num_frames, decoder_num_heads" in text
    assert f"vmae-train convert {path} FOLDER --to native --set model.image_size=… --set model.num_frames=… " in text
    assert "load_model(…, image_size=…, num_frames=…, decoder_num_heads=…)" in text
    with pytest.raises(MisuseError, match=r"embed_dim = 96: expected a multiple of model.num_heads = 5"):
        load_model(path, **{**MISSING, "num_heads": 5})
    with pytest.raises(MisuseError, match=r"model\.depth = 2, you set 3"):
        load_model(path, **MISSING, depth=3)
    with pytest.raises(MisuseError, match="heads is not a field"):
        load_model(path, **MISSING, heads=3)


def test_another_clip_size_changes_only_the_position_code(native: Path, tmp_path: Path) -> None:
    plain = load_model(native)
    longer = load_model(native, image_size=48, num_frames=32)
    stretched = load_model(native, image_size=48, num_frames=32, position_resize="interpolate")
    for model in (longer, stretched):
        _same_weights(plain, model)
        assert model.geometry.num_tokens == 16 * 36
    assert not torch.allclose(longer.position_NE, stretched.position_NE)
    convert(str(native), tmp_path / "b", to="native", spec=_spec(image_size=48, position_resize="interpolate"))
    kept = load_model(tmp_path / "b")
    assert kept.geometry.position_grid == (8, 4)
    assert torch.equal(kept.position_NE, load_model(native, image_size=48, position_resize="interpolate").position_NE)
    back = load_model(tmp_path / "b", image_size=32, position_resize="interpolate")
    assert back.geometry == plain.geometry
    with pytest.raises(MisuseError, match="interpolated"):
        convert(str(tmp_path / "b"), tmp_path / "c", to="hf")
    with pytest.raises(MisuseError, match="interpolated"):
        convert(str(tmp_path / "b"), tmp_path / "c.pth", to="official")
    with pytest.raises(MisuseError, match="position_resize"):
        convert(str(native), tmp_path / "x", to="native", spec=_spec(position_resize="stretch"))
    with pytest.raises(MisuseError, match="multiple"):
        load_model(native, image_size=33)


def _spec(**model: object) -> ConvertSpec:
    return ConvertSpec(model=dict(model))


def test_a_model_that_a_format_does_not_support_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    native = tmp_path / "native"
    native.mkdir()
    own = msgspec.structs.replace(TINY, position="sinusoid-3d", pooling="attentive")
    save_model(native, Classifier(own, CLASSES))
    for to in ("official", "hf"):  # the error names the path that the user gave
        with pytest.raises(MisuseError, match=f"^{tmp_path / 'x'}: .*sinusoid-3d.* or vmae-train export"):
            convert(str(native), tmp_path / "x", to=to)  # type: ignore[arg-type]
    save_model(native, Classifier(msgspec.structs.replace(own, position="sinusoid-1d"), CLASSES))
    for to in ("official", "hf"):
        with pytest.raises(MisuseError, match="attentive pooling"):
            convert(str(native), tmp_path / "x", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".tmp*"))
    with pytest.raises(MisuseError, match="already exists"):
        convert(str(native), native, to="native")


@pytest.mark.parametrize("to", ["native", "official", "hf"])
def test_heads_for_several_classes_and_for_values_keep_their_kind(tmp_path: Path, to: str) -> None:
    values = (RegressedValue(name="speed"), RegressedValue(name="angle"))
    for name, model in (
        ("labels", _with_noise(MultiLabelClassifier(TINY, CLASSES, seed=2))),
        ("values", _with_noise(Regressor(TINY, values, seed=2))),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_model(folder, model)
        convert(str(folder), tmp_path / f"{name}-{to}", to=to)  # type: ignore[arg-type]
        loaded = load_model(tmp_path / f"{name}-{to}")
        assert type(loaded) is type(model)
        assert loaded.classes == model.classes
        _same_weights(model, loaded)
    assert isinstance(loaded, Regressor)
    assert loaded.values == values


def test_init_reads_any_format_and_the_recipe_completes_its_fields(tmp_path: Path) -> None:
    model = _model("pretrain")
    path = _official(tmp_path / "a.pth", model)
    started = load_init(path, TINY, position_resize="recompute")
    _same_weights(model, started)
    assert started.geometry == TINY
    larger = msgspec.structs.replace(TINY, image_size=48, num_frames=8)
    convert(str(path), tmp_path / "hf", to="hf", spec=_spec(**MISSING))
    started = load_init(tmp_path / "hf", larger, position_resize="interpolate")
    assert (started.geometry.position_grid, started.geometry.num_tokens) == ((8, 4), 4 * 36)
    assert started.geometry.decoder_norm_eps == 1e-5
    with pytest.raises(MisuseError, match=r"depth 2 \(recipe 3\), num_heads 3 \(recipe 6\)"):
        load_init(tmp_path / "hf", msgspec.structs.replace(TINY, depth=3, num_heads=6), position_resize="recompute")


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
    _same_weights(first, load_model(hf))
    names = sorted(newer)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for part, some in halves.items():
        safetensors.torch.save_file({name: newer[name] for name in some}, hf / part)
    index = {"metadata": {}, "weight_map": {name: part for part, some in halves.items() for name in some}}
    (hf / "model.safetensors").unlink()
    (hf / "model.safetensors.index.json").write_text(json.dumps(index))
    _same_weights(first, load_model(hf))
    outside = {name: "../" + part for name, part in index["weight_map"].items()}
    (hf / "model.safetensors.index.json").write_text(json.dumps({**index, "weight_map": outside}))
    with pytest.raises(DataError, match="not in this folder"):
        load_model(hf)
    (hf / "model.safetensors.index.json").unlink()
    torch.save(state, hf / "pytorch_model.bin")
    _same_weights(first, load_model(hf))
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
        _same_weights(load_model(native), load_model(folder / "model.safetensors"))
    assert load_model(hf / "model.safetensors").geometry == load_model(hf).geometry
    lone = tmp_path / "lone.safetensors"
    lone.write_bytes((hf / "model.safetensors").read_bytes())
    with pytest.warns(UserWarning, match="transformers' names without its config.json"):
        model = load_model(lone, **MISSING)
    _same_weights(load_model(native), model)
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
    _same_weights(load_model(native), load_model(hf))


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


# The command.


def test_the_command_converts_and_refuses_in_one_line(tmp_path: Path) -> None:
    model = _model("classifier")
    path = _official(tmp_path / "a.pth", model)
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    sets = [f"--set=model.{name}={value}" for name, value in MISSING.items()]
    done = run_command(
        "vmae_train",
        "convert",
        path,
        tmp_path / "hf",
        "--to",
        "hf",
        "--classes",
        tmp_path / "names.txt",
        "--json",
        *sets,
    )
    assert json.loads(done.stdout) == {"out": str(tmp_path / "hf")}
    assert "eps 1e-05 in fc_norm, this model 1e-06" in done.stderr
    _same_weights(model, load_model(tmp_path / "hf"))
    assert load_model(tmp_path / "hf").classes == CLASSES
    refused = run_command("vmae_train", "convert", path, tmp_path / "b", "--to", "hf", "-q", status=2)
    assert refused.stderr.count("\n") == 1
    assert "don't determine" in refused.stderr
