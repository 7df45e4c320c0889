"""Runs and checkpoints made to do harm: refused in one line. No code runs, and no memory is allocated for a claim."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from tests.refusals import edit_json, refusal
from vmae_train import load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.native import save_model
from vmae_train.distributed import choose_device
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.reports.run_reader import read_run
from vmae_train.runs.metadata import read_facts
from vmae_train.training.checkpoint import last_checkpoint, read_state

pytestmark = pytest.mark.processes

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
ONE_D = msgspec.structs.replace(TINY, position="sinusoid-1d")
HUGE = 10**18


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved pretraining model."""
    path = tmp_path / "model"
    path.mkdir()
    save_model(path, PretrainModel(TINY, seed=1))
    return path


class _Code:
    """Unsafe unpickling of this object runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_pickle_with_another_file_name_is_not_loaded(folder: Path, tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for data in (pickle.dumps({"weights": _Code(ran)}), pickle.dumps(_Code(ran), protocol=0)):
        (folder / "model.safetensors").write_bytes(data)
        refusal(lambda: load_model(folder))
    torch.save({"weights": torch.zeros(1)}, folder / "model.safetensors")
    refusal(lambda: load_model(folder))
    assert not ran.exists()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", HUGE) + b"{}",
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 100) + b"[" * 100,
        struct.pack("<Q", 2) + b"{}",
        b"",
        b"\x00" * 7,
    ],
)
def test_weights_with_a_damaged_header_are_refused(folder: Path, data: bytes) -> None:
    (folder / "model.safetensors").write_bytes(data)
    refusal(lambda: load_model(folder))


@pytest.mark.parametrize(("shape", "end"), [([10**9, 10**9], 4), ([2**62, 4], 4), ([1], HUGE), ([2], 4), ([1], -4)])
def test_a_tensor_that_claims_more_bytes_than_the_file_has_allocates_no_memory(
    folder: Path, shape: list[int], end: int
) -> None:
    head = json.dumps({"mask_token": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    refusal(lambda: load_model(folder))


def _pth(path: Path, **weights: torch.Tensor) -> Path:
    state = PretrainModel(TINY, seed=1).state_dict()
    torch.save({"model": {**state, **weights}}, path)
    return path


def _repacked(path: Path, *, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED) -> Path:
    """The same file with another data.pkl, or packed."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in members.items():
            new.writestr(name, pickled if pickled and name.endswith("data.pkl") else data)
    return path


def _memory_limit(bytes_more: int) -> Callable[[], None]:
    """Limit this process's memory to what it has and some more; the answer removes the limit."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + bytes_more, limits[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: _pth(path, mask_token=torch.zeros(1).expand(3_000_000_000)), "mask_token claims 3000000000"),
        (lambda path: _pth(path, a=torch.zeros(1, 1).expand(10**5, 10**5)), "a claims 10000000000 numbers"),
        (lambda path: _pth(path, a=torch.zeros(5).to_sparse()), "a is not a plain tensor"),
        (lambda path: _repacked(_pth(path), compression=zipfile.ZIP_DEFLATED), "is compressed"),
        (
            lambda path: _repacked(_pth(path), pickled=bytes(2**31), compression=zipfile.ZIP_DEFLATED),
            "data.pkl is compressed",
        ),
        (
            lambda path: _repacked(
                _pth(path), pickled=b"\x80\x02c__builtin__\nbytearray\n\x8a\x06" + b"\x7f" * 6 + b"\x85R."
            ),
            "builtins.bytearray",
        ),
        (
            lambda path: _repacked(
                _pth(path), pickled=b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R."
            ),
            "_codecs.encode with hex",
        ),
    ],
    ids=["stride 0", "two axes of stride 0", "sparse", "packed", "packed from 2 GB", "bytearray", "codec"],
)
def test_a_pth_that_claims_more_than_its_size_allocates_no_memory(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path / "claims.pth")
    unlimited = _memory_limit(1 << 30)
    try:
        assert message in refusal(lambda: load_model(path))
    finally:
        unlimited()


def test_an_old_pth_that_grows_in_memory_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"model": {}, "note": bytearray(5)}, path, _use_new_zipfile_serialization=False)
    assert "bytearray" in refusal(lambda: load_model(path))


def test_a_flipped_bit_in_a_pth_is_refused_unless_it_was_written_without_checksums(tmp_path: Path) -> None:
    path = _pth(tmp_path / "a.pth", a=torch.full((1000,), 0.123))
    data = path.read_bytes()
    flipped = data.replace(struct.pack("<f", 0.123), struct.pack("<f", 0.124), 1)
    path.write_bytes(flipped)
    assert "damaged" in refusal(lambda: load_model(path))
    try:
        torch.serialization.set_crc32_options(False)
        _pth(path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert (
        load_model(
            path, num_heads=3, decoder_num_heads=3, image_size=32, num_frames=16, position="sinusoid-1d"
        ).geometry.depth
        == 1
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"embed_dim": 3 * 2**20, "num_heads": 3},
        {"embed_dim": 30_000, "num_heads": 3},
        {"depth": 10**9},
        {"depth": HUGE},
        {"depth": 10**30},
        {"decoder_depth": 10**9},
        {"image_size": 8 * 2**20},
        {"num_frames": 2**40},
        {"image_size": 4096, "num_frames": 256},
        {"patch_size": 2**20, "image_size": 2**20},
        {"mlp_ratio": 1e15},
        {"num_heads": 0},
        {"embed_dim": -192},
        {"encoder_eps": -1.0},
        {"fc_eps": 1e300},
        {"position": "../../etc/passwd"},
        {"unknown": 1},
    ],
)
def test_a_geometry_that_needs_more_memory_than_any_machine_has_is_refused(
    folder: Path, changes: dict[str, Any]
) -> None:
    path = folder / "model.json"
    geometry = json.loads(path.read_text())["geometry"]
    edit_json(path, geometry={**geometry, **changes})
    assert str(folder) in refusal(lambda: load_model(folder))


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"format": ' + '{"a":' * 100_000, '{"format": NaN}', "", "\x00", "7", '{"kind": "caf\udce9"}'],
)
def test_json_of_any_other_content_is_refused(folder: Path, run: Path, text: str) -> None:
    data = text.encode("utf-8", "surrogateescape")  # not UTF-8 is an error of its own
    (folder / "model.json").write_bytes(data)
    refusal(lambda: load_model(folder))
    last = last_checkpoint(run)
    assert last is not None
    (last / "state.json").write_bytes(data)
    refusal(lambda: read_state(last))
    refusal(lambda: read_run(run))
    (run / "run.json").write_bytes(data)
    refusal(lambda: read_facts(run))


def test_many_classes_and_odd_names_do_no_harm(tmp_path: Path) -> None:
    classes = ("\x1b[2J", "<script>alert(1)</script>", "a\nb")
    save_model(tmp_path, Classifier(TINY, classes, seed=4))
    assert load_model(tmp_path).classes == classes
    edit_json(tmp_path / "model.json", classes=[str(n) for n in range(100_000)])
    refusal(lambda: load_model(tmp_path))


_WEIGHTS_OF_PARTS = "model.safetensors.index.json"
_PREPROCESSOR = "video_preprocessor_config.json"  # the one that is read


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("config.json", {"hidden_size": 0}),
        ("config.json", {"decoder_hidden_size": 0}),
        ("config.json", {"layer_norm_eps": -1.0}),
        ("config.json", {"id2label": {"0": "a", "9" * 5000: "b"}}),
        ("config.json", {"id2label": {"0": "a", "00": "b"}}),
        ("config.json", {"id2label": {"0": "a", "5": "b"}}),
        (_PREPROCESSOR, {"rescale_factor": 0}),
        (_PREPROCESSOR, {"rescale_factor": 1e-320}),
        (_WEIGHTS_OF_PARTS, {"weight_map": {"a": "b\0"}}),
        (_WEIGHTS_OF_PARTS, {"weight_map": {"a": ".."}}),
        (_WEIGHTS_OF_PARTS, {"weight_map": {"a": "pipe.safetensors"}}),
        (_WEIGHTS_OF_PARTS, {"weight_map": {"a": "pipe.bin"}}),
    ],
)
def test_a_folder_of_transformers_with_impossible_values_is_refused(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    save_model(tmp_path, Classifier(ONE_D, ("a", "b"), seed=4))
    folder = tmp_path / "hf"
    convert(str(tmp_path), folder, to="hf")
    for pipe in ("pipe.safetensors", "pipe.bin"):
        os.mkfifo(folder / pipe)
    if name == _WEIGHTS_OF_PARTS:
        (folder / "model.safetensors").unlink()
        (folder / name).write_text("{}")
    edit_json(folder / name, **changes)
    assert str(folder) in refusal(lambda: load_model(folder))


def test_a_block_number_of_5000_digits_is_refused(tmp_path: Path) -> None:
    weights = Classifier(ONE_D, ("a", "b"), seed=4).state_dict()
    path = tmp_path / "x.pth"
    torch.save({"model": {**weights, f"blocks.{'9' * 5000}.x": torch.zeros(1)}}, path)
    assert "unknown" in refusal(lambda: load_model(path, image_size=32, num_frames=16, num_heads=3))


@pytest.mark.parametrize("fields", [{"image_size": 0}, {"num_frames": 32.0}, {"num_frames": True}])
def test_clips_of_no_or_another_kind_of_size_are_refused(folder: Path, fields: dict[str, Any]) -> None:
    assert str(folder) in refusal(lambda: load_model(folder, **fields))


def test_a_device_that_computes_nothing_is_refused() -> None:
    assert "Use cpu or cuda" in refusal(lambda: choose_device("meta"))
