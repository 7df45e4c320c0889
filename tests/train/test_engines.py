"""Real torchrun runs with the engines of `train.engine`: the losses and checkpoints of one process."""

from __future__ import annotations

import os
import signal
import subprocess
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.torchrun import HANGS_SECONDS, needs_deepspeed, process_of_rank, run_torchrun, torchrun, wait_for_lines
from tests.train.many_trainings import Training, train
from vmae_data.errors import MisuseError
from vmae_data.recipes import load_recipe
from vmae_train.distributed import Distributed
from vmae_train.engines import choose
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

STEPS, SAVED = 8, 5
FILES = ("model", "optimizer", "ema")

# The learning rates differ by layer: an engine that mixes up the optimizer's groups trains another model.
SMALL = ("model.depth=1", "optim.warmup_steps=2", "optim.clip_grad=0.1", "optim.layer_decay=0.8", "ema.decay=0.9")
SMALL += ("log.every_steps=1", f"train.steps={STEPS}", f"checkpoint.every_steps={SAVED}", "loader.workers=0")
ZERO = {f"zero{stage}": ("train.engine=deepspeed", f"train.zero_stage={stage}") for stage in range(4)}
SETTINGS = {"ddp": (), "fsdp2": ("train.engine=fsdp2",), **ZERO}


def engines(*names: str) -> pytest.MarkDecorator:
    """A parameter `engine`. Those of DeepSpeed are skipped where it is not installed."""
    return pytest.mark.parametrize(
        "engine", [pytest.param(n, marks=needs_deepspeed if n in ZERO else ()) for n in names]
    )


class Runs:
    """Runs of `pretrain` in a folder, by name."""

    def __init__(self, folder: Path, shards: Path) -> None:
        self.folder, self.shards = folder, shards

    def training(self, name: str, *settings: str, resumes: str | None = None, finetune: bool = False) -> Training:
        source = None if resumes is None else str(self.folder / resumes)
        out = str(self.folder / name)
        return Training(data=str(self.shards), out=out, settings=SMALL + settings, resumes=source, finetune=finetune)

    def by_processes(self, processes: int, *trainings: Training) -> None:
        """All of them in one launch. Nothing is printed."""
        listing = self.folder / "trainings.json"
        listing.write_bytes(msgspec.json.encode(trainings))
        done = run_torchrun(processes, "tests.train.many_trainings", listing, limit=2 * HANGS_SECONDS)
        assert done.stdout + done.stderr == ""

    def numbers(self, name: str, key: str = "loss") -> list[float]:
        return [line[key] for line in read_log(self.folder / name, "train")]

    def files(self, name: str) -> list[Path]:
        return [self.folder / name / f"checkpoints/step-{STEPS:09d}/{file}.safetensors" for file in FILES]

    def assert_same_bytes(self, *names: str) -> None:
        for paths in zip(*map(self.files, names), strict=True):
            assert len({path.read_bytes() for path in paths}) == 1, paths

    def assert_same(self, name: str, expected: str = "one", *, rtol: float = 1e-5) -> None:
        """The same losses, and whole weights, moments and averages of the same names."""
        for key in ("loss", "grad_norm"):
            assert len(self.numbers(name, key)) == STEPS
            np.testing.assert_allclose(self.numbers(name, key), self.numbers(expected, key), rtol=rtol, err_msg=name)
        for paths in zip(self.files(name), self.files(expected), strict=True):
            own, other = map(load_file, paths)
            assert own.keys() == other.keys()
            for key, value in own.items():
                np.testing.assert_allclose(value, other[key], rtol=1e-4, atol=1e-6, err_msg=f"{paths[0]}: {key}")


@pytest.fixture(scope="module")
def runs(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs that tests compare others with: one process."""
    runs = Runs(tmp_path_factory.mktemp("runs"), demo_shards)
    train(runs.training("one"), Distributed())
    # Gradients are clipped, or these tests would not see whether an engine clips them.
    assert min(runs.numbers("one", "grad_norm")) > 0.1
    return runs


def test_two_processes_of_fsdp2_train_as_one_does_and_one_resumes_their_run(runs: Runs) -> None:
    fsdp2 = SETTINGS["fsdp2"]
    runs.by_processes(2, runs.training("fsdp2", *fsdp2), runs.training("fsdp2 again", *fsdp2, resumes="fsdp2"))
    train(runs.training("fsdp2 → one", resumes="fsdp2"), Distributed())
    for name in ("fsdp2", "fsdp2 → one"):
        runs.assert_same(name, rtol=1e-6)
    runs.assert_same_bytes("fsdp2", "fsdp2 again")


def test_processes_share_a_decoder_with_cross_attention(runs: Runs) -> None:
    cross = ("model.decoder_attention=cross",)
    names = ["ddp", "fsdp2"] + ["zero3"] * (find_spec("deepspeed") is not None)
    train(runs.training("cross", *cross), Distributed())
    runs.by_processes(2, *(runs.training(f"cross {name}", *cross, *SETTINGS[name]) for name in names))
    for name in names:
        runs.assert_same(f"cross {name}", "cross", rtol=1e-6)


@needs_deepspeed
def test_two_processes_of_deepspeed_train_as_one_does_and_others_resume_their_runs(runs: Runs) -> None:
    zero0, zero1, zero3 = (SETTINGS[name] + ("train.micro_batch=2",) for name in ("zero0", "zero1", "zero3"))
    runs.by_processes(
        2,
        runs.training("zero0", *zero0),
        runs.training("zero1", *zero1),
        runs.training("zero3", *zero3),
        runs.training("zero3 again", *zero3, resumes="zero3"),
        runs.training("zero1 → zero3", *zero3, resumes="zero1"),
        runs.training("zero0 → zero1", *zero1, resumes="zero0"),
        runs.training("half", *zero1, "train.precision=float16"),
    )
    train(runs.training("zero3 → one", resumes="zero3"), Distributed())
    for name in ("zero0", "zero1", "zero3", "zero1 → zero3", "zero0 → zero1", "zero3 → one"):
        runs.assert_same(name, rtol=1e-6)
    runs.assert_same_bytes("zero3", "zero3 again")
    assert "takes no float16" in (runs.folder / "half.error").read_text()


@pytest.mark.parametrize("micro", [2, 1])
def test_accumulation_in_one_process_changes_no_loss(runs: Runs, micro: int) -> None:
    train(runs.training(f"micro {micro}", f"train.micro_batch={micro}"), Distributed())
    runs.assert_same(f"micro {micro}", rtol=1e-6)


@pytest.mark.slow
@engines("fsdp2", "zero2", "zero3")
def test_an_engine_accumulates_resumes_and_stops_as_one_process_does(runs: Runs, engine: str) -> None:
    """Two processes, each with a share of 4 samples: 1 × 4, 4 × 1."""
    own, other = SETTINGS[engine], "ddp" if engine == "fsdp2" else "fsdp2"
    at_once, one_by_one = f"{engine} × 4", f"{engine} × 1"
    wild = ("optim.base_lr=1000", "optim.weight_decay=1000", "checkpoint.every_steps=1")
    runs.by_processes(
        2,
        runs.training(at_once, *own),
        runs.training(one_by_one, *own, "train.micro_batch=1"),
        runs.training(f"{engine} again", *own, "train.micro_batch=1", resumes=one_by_one),
        runs.training(f"{engine} → {other}", *SETTINGS[other], resumes=one_by_one),
        runs.training(f"{other} for {engine}", *SETTINGS[other]),
        runs.training(f"{other} → {engine}", *own, "train.micro_batch=1", resumes=f"{other} for {engine}"),
        runs.training(f"{engine} bfloat16", *own, "train.precision=bfloat16"),
        runs.training(f"{engine} wild", *own, *wild),
    )
    for name in (at_once, one_by_one, f"{engine} → {other}", f"{other} → {engine}"):
        runs.assert_same(name, rtol=1e-6)
    runs.assert_same_bytes(one_by_one, f"{engine} again")
    assert runs.numbers(f"{engine} bfloat16") != runs.numbers("one")
    np.testing.assert_allclose(runs.numbers(f"{engine} bfloat16"), runs.numbers("one"), rtol=1e-3)
    for path in runs.files(f"{engine} bfloat16"):
        assert {value.dtype for value in load_file(path).values()} == {np.dtype("float32")}
    assert "is not finite" in (runs.folder / f"{engine} wild.error").read_text()
    for path in (runs.folder / f"{engine} wild").glob("checkpoints/step-*/*.safetensors"):
        assert all(np.isfinite(value).all() for value in load_file(path).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    "names", [("ddp", "fsdp2"), pytest.param(tuple(ZERO), marks=needs_deepspeed)], ids=["torch", "deepspeed"]
)
def test_four_processes_train_as_one_does_and_resume_its_run(runs: Runs, names: tuple[str, ...]) -> None:
    more = ("train.micro_batch=1", "model.activation_checkpointing=true")
    whole = [runs.training(f"{name} by four", *SETTINGS[name], *more) for name in names]
    resumed = [runs.training(f"one → {name} by four", *SETTINGS[name], *more, resumes="one") for name in names]
    runs.by_processes(4, *whole, *resumed)
    for training in (*whole, *resumed):
        runs.assert_same(Path(training.out).name)


@pytest.mark.slow
@engines("fsdp2", "zero3")
def test_a_finetuning_validates_as_one_process_does(runs: Runs, engine: str) -> None:
    """24 videos in batches of 5: the processes evaluate different numbers of batches."""
    short = ("train.steps=6", "evaluate.every_steps=3", "evaluate.batch=5")
    one, two = f"one finetuning for {engine}", f"finetuning by {engine}"
    runs.by_processes(2, runs.training(two, *SETTINGS[engine], *short, finetune=True))
    train(runs.training(one, *short, finetune=True), Distributed())
    np.testing.assert_allclose(runs.numbers(two), runs.numbers(one), rtol=1e-5)
    logs = [read_log(runs.folder / name) for name in (two, one)]
    scores = [[line for line in log if line["kind"] == "validation"] for log in logs]
    assert [line["step"] for line in scores[0]] == [3, 6]
    assert [line["top1"] for line in scores[0]] == [line["top1"] for line in scores[1]]


def test_two_processes_reconstruct_besides_the_labels_as_one_does(runs: Runs) -> None:
    settings = ("aux.reconstruction=0.5", "evaluate.views=1x1")
    train(runs.training("aux", *settings, finetune=True), Distributed())
    runs.by_processes(
        2,
        runs.training("aux by two", *settings, "train.micro_batch=2", finetune=True),
        runs.training("aux → two", *settings, resumes="aux", finetune=True),
    )
    for name in ("aux by two", "aux → two"):
        runs.assert_same(name, "aux")
        for key in ("label_loss", "reconstruction_loss"):
            np.testing.assert_allclose(runs.numbers(name, key), runs.numbers("aux", key), rtol=1e-5)


def test_stage_3_refuses_compiled_blocks() -> None:
    settings = ["model.compile=true", *SETTINGS["zero3"]]
    with pytest.raises(MisuseError, match="stage 3 can't be compiled"):
        load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings)


def test_a_missing_or_another_deepspeed_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    two = Distributed(0, 2)
    monkeypatch.setattr(choose, "version", missing)
    choose.check_engine("deepspeed", Distributed())  # one process has nothing to share
    choose.check_engine("fsdp2", two)
    with pytest.raises(
        MisuseError, match=r"deepspeed is not installed. Run .*'vmae\[deepspeed\]'`, or set train.engine"
    ):
        choose.check_engine("deepspeed", two)
    monkeypatch.setattr(choose, "version", lambda name: "0.20.1")
    with pytest.raises(MisuseError, match=r"version 0.20.1 is installed, expected 0.19.x"):
        choose.check_engine("deepspeed", two)


@pytest.mark.slow
@engines("ddp", "fsdp2", "zero3")
def test_a_killed_process_ends_all_and_the_launcher_says_why(demo_shards: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "run"
    arguments: list[str | Path] = [
        "pretrain",
        "--recipe",
        "pretrain/demo",
        "--data",
        demo_shards,
        "--out",
        out,
        "--quiet",
    ]
    for setting in (*SMALL, *SETTINGS[engine], "train.micro_batch=2", "train.steps=100000"):
        arguments += ["--set", setting]
    process = subprocess.Popen(torchrun(2, "vmae_train.cli", *arguments), stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, out, 3)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    _, printed = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in printed
    assert "vmae_train/" not in printed  # no traceback of ours: the other process has nothing to report
