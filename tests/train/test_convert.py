from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
from pathlib import Path

import msgspec
import pytest
import torch

from tests.command import run_command
from tests.converted_models import (
    CLASSES,
    MISSING,
    TINY,
    convert_spec,
    noisy_model,
    official_file,
    same_weights,
    with_noise,
)
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_train import load_model
from vmae_train.checkpoints.convert import Layout, convert
from vmae_train.checkpoints.load import load_init
from vmae_train.checkpoints.native import save_model
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier, MultiLabelClassifier, RegressedValue, Regressor

pytestmark = pytest.mark.processes


def test_weights_survive_every_order_of_conversions_bit_for_bit(kind: str, native: Path, tmp_path: Path) -> None:
    first = load_model(native)
    ways = [("official", "a.pth"), ("native", "b"), ("hf", "c"), ("official", "d.pth"), ("hf", "e"), ("native", "f")]
    here = native
    for to, name in ways:
        convert(str(here), tmp_path / name, to=to)  # type: ignore[arg-type]
        here = tmp_path / name
        there = load_model(here)
        same_weights(first, there)
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
    content = {"model": noisy_model("pretrain").state_dict(), "args": argparse.Namespace(x=hostile(target))}
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
    path = official_file(tmp_path / "a.pth", noisy_model("pretrain"))
    data = path.read_bytes()
    for share in (0.2, 0.6, 0.95):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(DataError) as caught:
            load_model(path, **MISSING)
        assert "\n" not in str(caught.value)


def test_files_without_a_complete_model_are_refused(tmp_path: Path) -> None:
    state = noisy_model("classifier").state_dict()
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
    model = noisy_model("classifier")
    torch.save({"model": {**model.state_dict(), "pos_embed": model.position_NE[None]}}, tmp_path / "a.pth")
    with pytest.warns(UserWarning, match="pos_embed: skipped the fixed position embedding"):
        same_weights(model, load_model(tmp_path / "a.pth", **MISSING))


def test_two_weights_with_one_name_are_refused_unless_they_are_equal(tmp_path: Path) -> None:
    model = noisy_model("classifier")
    state = model.state_dict()
    for prefix in ("module.", "encoder."):
        torch.save({**state, f"{prefix}head.weight": state["head.weight"]}, tmp_path / "a.pth")
        same_weights(model, load_model(tmp_path / "a.pth", **MISSING))
        torch.save({**state, f"{prefix}head.weight": state["head.weight"] + 1}, tmp_path / "a.pth")
        with pytest.raises(
            DataError, match=rf"head.weight and {prefix}head.weight are both head.weight, but their values differ"
        ):
            load_model(tmp_path / "a.pth", **MISSING)


def test_nan_and_inf_weights_are_converted_and_noted(tmp_path: Path) -> None:
    model = noisy_model("classifier")
    with torch.no_grad():
        model.get_parameter("head.bias")[0] = torch.nan
        model.get_parameter("fc_norm.weight")[0] = torch.inf
    path = official_file(tmp_path / "a.pth", model)
    notes = convert(str(path), tmp_path / "b", to="native", spec=convert_spec(**MISSING))
    count = len(model.state_dict())
    assert f"NaN or inf in 2 of {count} weights (fc_norm.weight, head.bias): the model is not usable" in notes


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
    path = official_file(tmp_path / "a.pth", noisy_model("pretrain"))
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
        same_weights(plain, model)
        assert model.geometry.num_tokens == 16 * 36
    assert not torch.allclose(longer.position_NE, stretched.position_NE)
    convert(str(native), tmp_path / "b", to="native", spec=convert_spec(image_size=48, position_resize="interpolate"))
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
        convert(str(native), tmp_path / "x", to="native", spec=convert_spec(position_resize="stretch"))
    with pytest.raises(MisuseError, match="multiple"):
        load_model(native, image_size=33)


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
        ("labels", with_noise(MultiLabelClassifier(TINY, CLASSES, seed=2))),
        ("values", with_noise(Regressor(TINY, values, seed=2))),
    ):
        folder = tmp_path / name
        folder.mkdir()
        save_model(folder, model)
        convert(str(folder), tmp_path / f"{name}-{to}", to=to)  # type: ignore[arg-type]
        loaded = load_model(tmp_path / f"{name}-{to}")
        assert type(loaded) is type(model)
        assert loaded.classes == model.classes
        same_weights(model, loaded)
    assert isinstance(loaded, Regressor)
    assert loaded.values == values


def test_init_reads_any_format_and_the_recipe_completes_its_fields(tmp_path: Path) -> None:
    model = noisy_model("pretrain")
    path = official_file(tmp_path / "a.pth", model)
    started = load_init(path, TINY, position_resize="recompute")
    same_weights(model, started)
    assert started.geometry == TINY
    larger = msgspec.structs.replace(TINY, image_size=48, num_frames=8)
    convert(str(path), tmp_path / "hf", to="hf", spec=convert_spec(**MISSING))
    started = load_init(tmp_path / "hf", larger, position_resize="interpolate")
    assert (started.geometry.position_grid, started.geometry.num_tokens) == ((8, 4), 4 * 36)
    assert started.geometry.decoder_norm_eps == 1e-5
    with pytest.raises(MisuseError, match=r"depth 2 \(recipe 3\), num_heads 3 \(recipe 6\)"):
        load_init(tmp_path / "hf", msgspec.structs.replace(TINY, depth=3, num_heads=6), position_resize="recompute")


# The command.


def test_the_command_converts_and_refuses_in_one_line(tmp_path: Path) -> None:
    model = noisy_model("classifier")
    path = official_file(tmp_path / "a.pth", model)
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
    same_weights(model, load_model(tmp_path / "hf"))
    assert load_model(tmp_path / "hf").classes == CLASSES
    refused = run_command("vmae_train", "convert", path, tmp_path / "b", "--to", "hf", "-q", status=2)
    assert refused.stderr.count("\n") == 1
    assert "don't determine" in refused.stderr
