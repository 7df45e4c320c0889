"""Real torchrun runs with the engines of `train.engine`: the losses and checkpoints of one process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.command import call_command
from tests.torchrun import HANGS_SECONDS, process_of_rank, run_torchrun, torchrun, wait_for_lines
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

STEPS, HALF = 20, 10
FILES = ("model", "optimizer", "ema")
ENGINES = ("fsdp2", "deepspeed")


def _pretrain(shards: Path, out: Path, *settings: str, steps: int = STEPS) -> list[str | Path]:
    arguments: list[str | Path] = ["pretrain", "--recipe", "pretrain/demo", "--data", shards, "--out", out, "--quiet"]
    small = ("model.depth=1", "optim.warmup_steps=2", "optim.clip_grad=0.1", "ema.decay=0.9", "log.every_steps=1")
    for setting in (*small, f"train.steps={steps}", f"checkpoint.every_steps={HALF}", *settings):
        arguments += ["--set", setting]
    return arguments


def _numbers(run: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in read_log(run, "train")]


def _assert_equal(run: Path, expected: Path, *, rtol: float = 1e-5) -> None:
    """The same losses, and whole weights, moments and averages of the same names."""
    assert len(_numbers(run)) == STEPS
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(_numbers(run, name), _numbers(expected, name), rtol=rtol)
    for name in FILES:
        own, other = (load_file(path / f"checkpoints/step-{STEPS:09d}/{name}.safetensors") for path in (run, expected))
        assert own.keys() == other.keys()
        for key, value in own.items():
            np.testing.assert_allclose(value, other[key], rtol=1e-4, atol=1e-6, err_msg=f"{name}: {key}")


def _cut_to_half(run: Path, out: Path) -> Path:
    """A copy of a finished run that was killed at step 10."""
    shutil.copytree(run, out)
    shutil.rmtree(out / f"checkpoints/step-{STEPS:09d}")
    (out / "evaluation.json").unlink(missing_ok=True)
    return out


@pytest.fixture(scope="module")
def one_process(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one_process"
    call_command("vmae_train", *_pretrain(demo_shards, out))
    # Gradients are clipped, or these tests would not see whether an engine clips them.
    assert min(_numbers(out, "grad_norm")) > 0.1
    return out


@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_train_as_one_does_and_one_resumes_their_run(
    demo_shards: Path, one_process: Path, tmp_path: Path, engine: str
) -> None:
    run_torchrun(2, "vmae_train.cli", *_pretrain(demo_shards, tmp_path / "two", f"train.engine={engine}"))
    _assert_equal(tmp_path / "two", one_process)
    resumed = _cut_to_half(tmp_path / "two", tmp_path / "resumed")
    call_command("vmae_train", *_pretrain(demo_shards, resumed))
    _assert_equal(resumed, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_four_processes_resume_the_run_of_one(
    demo_shards: Path, one_process: Path, tmp_path: Path, engine: str
) -> None:
    resumed = _cut_to_half(one_process, tmp_path / "resumed")
    settings = (f"train.engine={engine}", "train.micro_batch=1", "model.activation_checkpointing=true")
    run_torchrun(4, "vmae_train.cli", *_pretrain(demo_shards, resumed, *settings))
    _assert_equal(resumed, one_process)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_of_an_engine_resumes_exactly(demo_shards: Path, tmp_path: Path, engine: str) -> None:
    arguments = _pretrain(demo_shards, tmp_path / "whole", f"train.engine={engine}")
    run_torchrun(2, "vmae_train.cli", *arguments)
    resumed = _cut_to_half(tmp_path / "whole", tmp_path / "resumed")
    run_torchrun(2, "vmae_train.cli", *_pretrain(demo_shards, resumed, f"train.engine={engine}"))
    for name in FILES:
        paths = (run / f"checkpoints/step-{STEPS:09d}/{name}.safetensors" for run in (tmp_path / "whole", resumed))
        assert len({path.read_bytes() for path in paths}) == 1, name


@pytest.mark.parametrize("micro", [2, 1])
def test_accumulation_in_one_process_changes_no_loss(
    demo_shards: Path, one_process: Path, tmp_path: Path, micro: int
) -> None:
    call_command("vmae_train", *_pretrain(demo_shards, tmp_path / "run", f"train.micro_batch={micro}"))
    _assert_equal(tmp_path / "run", one_process, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_accumulation_in_two_processes_changes_no_loss(
    demo_shards: Path, one_process: Path, tmp_path: Path, engine: str
) -> None:
    """A share of 4 samples: 1 × 4, 2 × 2, 4 × 1."""
    for micro in (4, 2, 1):
        out = tmp_path / str(micro)
        settings = (f"train.engine={engine}", f"train.micro_batch={micro}")
        run_torchrun(2, "vmae_train.cli", *_pretrain(demo_shards, out, *settings))
        _assert_equal(out, one_process, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_a_finetuning_validates_as_one_process_does(demo_shards: Path, tmp_path: Path, engine: str) -> None:
    """24 videos in batches of 5: the processes evaluate different numbers of batches."""
    arguments: list[str | Path] = ["finetune", "--recipe", "finetune/demo", "--data", demo_shards]
    arguments += ["--val", demo_shards, "--quiet"]
    settings = ("train.steps=6", "model.depth=1", "optim.warmup_steps=2", "evaluate.every_steps=3", "evaluate.batch=5")
    for setting in (*settings, "log.every_steps=1"):
        arguments += ["--set", setting]
    two = ["--out", tmp_path / "two", "--set", f"train.engine={engine}"]
    run_torchrun(2, "vmae_train.cli", *arguments, *two)
    call_command("vmae_train", *arguments, "--out", tmp_path / "one")
    np.testing.assert_allclose(_numbers(tmp_path / "two"), _numbers(tmp_path / "one"), rtol=1e-5)
    scores = [[line for line in read_log(tmp_path / run) if line["kind"] == "validation"] for run in ("two", "one")]
    assert [line["step"] for line in scores[0]] == [3, 6]
    assert [line["top1"] for line in scores[0]] == [line["top1"] for line in scores[1]]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", *ENGINES])
def test_a_killed_process_ends_all_and_the_launcher_says_why(demo_shards: Path, tmp_path: Path, engine: str) -> None:
    out = tmp_path / "run"
    arguments = _pretrain(demo_shards, out, f"train.engine={engine}", "train.micro_batch=2", steps=100000)
    process = subprocess.Popen(torchrun(2, "vmae_train.cli", *arguments), stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, out, 3)
    os.kill(process_of_rank(process.pid, 1), signal.SIGKILL)
    _, printed = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 1
    assert "Signal 9 (SIGKILL)" in printed
    assert "vmae_train/" not in printed  # no traceback of ours: the other process has nothing to report
