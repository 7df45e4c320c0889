"""The lines of kind "start" in a run's log."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.command import call_command
from tests.tiny_runs import TINY_RUN, pretrain_tiny
from vmae_train.runs.log import read_log
from vmae_train.runs.starts import command_text, describe_start, read_starts
from vmae_train.runs.trackers import numbers_of

HOME = Path("/home/alice")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--out", "runs/a b"], "--out runs/a b"),
        (["--storage-option", "secret_access_key=hush"], "--storage-option secret_access_key=…"),
        (["--storage-option=secret_access_key=hush"], "--storage-option=secret_access_key=…"),
        (["--storage-option", "Header.Authorization=hush"], "--storage-option Header.Authorization=…"),
        (["--storage-option", "endpoint=https://me:hush@host"], "--storage-option endpoint=…"),
        (["--storage-option", "region=eu-west-1"], "--storage-option region=eu-west-1"),
        (["--data", "https://me:hush@host/a"], "--data https://host/a"),
        (["--data", "https://host/a?X-Amz-Signature=hush"], "--data https://host/a?…"),
        (["--data", "/home/alice/my shards:2"], "--data ~/my shards:2"),
        (["--set", "cache.dir=/home/alice/c"], "--set cache.dir=~/c"),
        (["--data", "/home/alicent/x"], "--data /home/alicent/x"),
        (["--out", "caf\udce9"], "--out caf\ufffd"),
    ],
)
def test_a_command_is_shown_without_secrets_and_home_folder(words: list[str], shown: str) -> None:
    for program in ("/home/alice/venv/bin/vmae-train", "/x/vmae_train/cli.py"):
        text = command_text([program, "pretrain", *words], HOME)
        assert text is not None
        assert text.replace("'", "") == f"vmae-train pretrain {shown}"
        assert "hush" not in text
    assert command_text(["/home/alice/train.py", *words], HOME) is None


def test_a_shown_command_is_quoted_for_a_shell_which_expands_the_home_folder() -> None:
    words = ["/usr/bin/vmae-train", "pretrain", "--data", "/home/alice/my shards", "--out", "a b"]
    assert command_text(words, HOME) == "vmae-train pretrain --data ~/'my shards' --out 'a b'"


def test_a_run_logs_each_start_with_its_step_and_no_secret(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = [word for key in (*TINY_RUN, "checkpoint.every_steps=2") for word in ("--set", key)]
    command = ["vmae_train", "pretrain", "--recipe", "pretrain/demo", "--data", demo_shards, "--out", out, *words]
    secret = ["--storage-option", "secret_access_key=hush", "--quiet", "--device", "cpu"]
    call_command(*command, *secret)
    call_command(*command, *secret)  # a finished run does not start
    assert [start.step for start in read_starts(read_log(out))] == [0]
    shutil.rmtree(out / "checkpoints" / "step-000000004")
    call_command(*command, *secret)
    lines = read_log(out)
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [start.step for start in read_starts(lines)] == [0, 2]
    first, second = read_starts(lines)
    assert first.command == second.command
    assert "vmae-train pretrain --recipe pretrain/demo" in (first.command or "")
    assert (first.processes, first.gpu, first.torch) == (1, None, torch.__version__)
    assert first.time.endswith("Z")
    text = (out / "log.jsonl").read_text()
    assert "hush" not in text
    names = "kind step time command vmae python torch cpu gpu processes precision"  # not the host, not the user
    assert " ".join(json.loads(text.splitlines()[0])) == names


def test_a_training_that_python_starts_has_no_command(demo_shards: Path, tmp_path: Path) -> None:
    pretrain_tiny(demo_shards, tmp_path / "run", "train.steps=1")
    (start,) = read_starts(read_log(tmp_path / "run"))
    assert start.command is None


def test_trackers_chart_nothing_of_a_start_and_other_lines_are_no_starts() -> None:
    line = {"kind": "start", "step": 0, "processes": 4}
    assert numbers_of(line, "pretrain") == {}
    assert read_starts([line, {"kind": "train", "step": 1}]) == []
    start = describe_start(3, device=torch.device("cpu"), dtype=torch.bfloat16, processes=2)
    assert (start.processes, start.precision) == (2, "bfloat16")
