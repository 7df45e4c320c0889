"""Every file of a checkpoint has a checksum in its marker, compared wherever the file is read: disk or bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy
from vmae_data.errors import DataError
from vmae_train import load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.ema import ModelEma
from vmae_train.checkpoints.load import load_init
from vmae_train.distributed import Distributed
from vmae_train.engines.ddp import DataParallel
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.run_directory import RunDirectory
from vmae_train.runs.run_files import local_copy
from vmae_train.training.checkpoint import RunState, resume, save_checkpoint
from vmae_train.training.optimizer import OptimSpec, build_optimizer

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry()
WEIGHTS, OPTIMIZER, EMA, DESCRIPTION = "model.safetensors", "optimizer.safetensors", "ema.safetensors", "model.json"
STEP = "step-000000003"


def _training() -> tuple[PretrainModel, torch.optim.Optimizer, ModelEma]:
    model = PretrainModel(TINY, seed=2)
    optimizer = build_optimizer(model, OptimSpec(base_lr=1e-3, warmup_steps=1), depth=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer, ModelEma(model, 0.9)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one checkpoint."""
    model, optimizer, ema = _training()
    run = tmp_path / "run"
    tensors = DataParallel(model, model, torch.device("cpu"), Distributed()).gather(optimizer, ema)
    save_checkpoint(run, model, tensors, RunState(step=3, samples=24), keep=1)
    (run / "run.json").write_text("{}")
    return run


def _flip(path: Path) -> None:
    """The lowest bit of the last weight's exponent: the file stays readable."""
    data = bytearray(path.read_bytes())
    at = data.rindex(b"0.9") + 2 if path.suffix == ".json" and b"0.9" in data else len(data) - 2
    data[at] ^= 0x80 if path.suffix != ".json" else 0x01
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, EMA, DESCRIPTION])
def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused_before_the_run_resumes(run: Path, name: str) -> None:
    assert resume(run, *_training()).step == 3
    _flip(run / "checkpoints" / STEP / name)
    with pytest.raises(DataError, match=f"{STEP}/{name}: its checksum is not the one in state.json.*one before"):
        resume(run, *_training())


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_flipped_bit_in_a_model_is_refused_by_every_reader_of_models(run: Path, name: str) -> None:
    _flip(run / "checkpoints" / STEP / name)
    for path in (run, run / "checkpoints" / STEP):
        with pytest.raises(DataError, match=f"{name}: its checksum"):
            load_model(path)
        with pytest.raises(DataError, match=f"{name}: its checksum"):
            load_init(path, TINY, position_resize="recompute")


def test_a_flipped_bit_in_a_moving_average_is_refused(run: Path) -> None:
    _flip(run / "checkpoints" / STEP / EMA)
    load_model(run)
    with pytest.raises(DataError, match=f"{EMA}: its checksum"):
        load_model(run, ema=True)


def test_a_checkpoint_of_an_older_version_has_no_checksums_and_is_read(run: Path) -> None:
    marker = run / "checkpoints" / STEP / "state.json"
    state = json.loads(marker.read_text())
    assert sorted(state.pop("sha256")) == sorted([WEIGHTS, OPTIMIZER, EMA, DESCRIPTION])
    assert state.pop("format") == 2
    marker.write_text(json.dumps(state))
    _flip(marker.parent / WEIGHTS)
    assert resume(run, *_training()).step == 3
    load_model(run, ema=True)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"sha256": None}, "lacks the sha256 of model.safetensors, model.json, optimizer.safetensors"),
        ({"sha256": {WEIGHTS: "0" * 64}}, "lacks the sha256 of model.json, optimizer.safetensors"),
        ({"format": 3}, "format 3, but this version reads up to 2. Update vmae"),
    ],
)
def test_a_checkpoint_that_lost_its_checksums_is_not_taken_for_an_older_versions(
    run: Path, changes: dict[str, object], problem: str
) -> None:
    marker = run / "checkpoints" / STEP / "state.json"
    state = json.loads(marker.read_text()) | changes
    marker.write_text(json.dumps({name: value for name, value in state.items() if value is not None}))
    for read in (lambda: resume(run, *_training()), lambda: load_model(run), lambda: load_model(marker.parent)):
        with pytest.raises(DataError, match=f"{STEP}/state.json: {problem}") as caught:
            read()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMIZER, DESCRIPTION, EMA])
@pytest.mark.parametrize("has_checksums", [True, False])
def test_a_file_that_is_missing_from_a_checkpoint_is_noticed_before_the_run_resumes(
    run: Path, name: str, has_checksums: bool
) -> None:
    marker = run / "checkpoints" / STEP / "state.json"
    if not has_checksums:  # as of an older version
        marker.write_text('{"step": 3, "samples": 24}')
    (marker.parent / name).unlink()
    with pytest.raises(DataError, match=f"{STEP}/{name}: ") as caught:
        resume(run, *_training())
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_in_a_converted_model_is_refused(run: Path, tmp_path: Path) -> None:
    convert(str(run), tmp_path / "native", to="native")
    convert(str(tmp_path / "native"), tmp_path / "again", to="native")
    assert (tmp_path / "again" / DESCRIPTION).read_bytes() == (tmp_path / "native" / DESCRIPTION).read_bytes()
    _flip(tmp_path / "native" / WEIGHTS)
    with pytest.raises(DataError, match="its checksum is not the one in model.json"):
        load_model(tmp_path / "native")


def _uploaded(run: Path, bucket: S3Bucket) -> str:
    for path in run.rglob("*"):
        if path.is_file():
            bucket.store().put(f"run/{path.relative_to(run).as_posix()}", path.read_bytes())
    return f"{bucket.url}/run"


@pytest.mark.processes
def test_a_bit_flipped_on_the_way_from_a_bucket_is_copied_once_more(
    run: Path, s3_bucket: S3Bucket, network: Proxy
) -> None:
    url = _uploaded(run, s3_bucket)
    flip = Fault(kind=Kind.CORRUPT, most=1)
    network.change(Faults(faults=(flip,), methods=("GET",), path_part=WEIGHTS))
    good = (run / "checkpoints" / STEP / WEIGHTS).read_bytes()
    assert (local_copy(url) / "checkpoints" / STEP / WEIGHTS).read_bytes() == good
    network.change(Faults(faults=(flip,), methods=("GET",), path_part=OPTIMIZER))
    directory = RunDirectory(url)
    directory.download()
    assert resume(directory.path, *_training()).step == 3


@pytest.mark.processes
def test_a_bit_flipped_in_a_bucket_is_refused_with_the_url(run: Path, s3_bucket: S3Bucket, network: Proxy) -> None:
    for name in (WEIGHTS, OPTIMIZER):
        _flip(run / "checkpoints" / STEP / name)
    url = _uploaded(run, s3_bucket)
    for _ in range(2):  # a damaged copy is not taken for a good one the second time
        with pytest.raises(DataError, match=f"{url}/checkpoints/{STEP}/{WEIGHTS}: its checksum"):
            load_model(url)
        with pytest.raises(DataError, match=f"{url}/checkpoints/{STEP}/{WEIGHTS}.*Remove its state.json"):
            RunDirectory(url).download()
    assert not list(RunDirectory(url).path.glob("checkpoints/step-*"))
