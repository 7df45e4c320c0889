"""`--dry-run`: two real steps, no files, and numbers that agree with a real run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command import call_command

SETTINGS = ["--set", "train.batch=4", "--set", "loader.workers=0"]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_dry_run_estimates_the_training_and_writes_nothing(command: str, demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["vmae_train", command, "--recipe", f"{command}/demo", "--data", demo_shards, "--out", out, *SETTINGS]
    arguments += ["--val", demo_shards] if command == "finetune" else []
    done = call_command(*arguments, "--set", "train.steps=30", "--dry-run", "--json")
    result = json.loads(done.stdout)
    assert not out.exists()
    assert result["steps"] == 30 and result["batch"] == 4 and result["memory_mb"] > 50
    assert result["total_seconds"] == pytest.approx(30 * result["step_seconds"])
    assert 0 <= result["wait_seconds"] <= result["step_seconds"]
    assert [warning["name"] for warning in result["cautions"]] == ["endless warm-up"]
    assert "warning: the warm-up takes all 30 steps" in done.stderr
    if command == "pretrain":
        call_command(*arguments, "--quiet", "--set", "train.steps=2")
        (checkpoint,) = (out / "checkpoints").iterdir()
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6
        assert result["checkpoint_mb"] == pytest.approx(size, rel=0.02)
        assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"] == pytest.approx(result["loss"])


@pytest.mark.parametrize(("every_steps", "kept"), [(30, "2 checkpoints"), (31, "1 checkpoint")])
def test_the_disk_estimate_of_a_dry_run_includes_the_best_checkpoint(
    every_steps: int, kept: str, demo_shards: Path, tmp_path: Path
) -> None:
    arguments = [
        "vmae_train",
        "finetune",
        "--recipe",
        "finetune/demo",
        "--data",
        demo_shards,
        "--val",
        demo_shards,
        *SETTINGS,
    ]
    keys = ("checkpoint.keep=1", "train.steps=30", f"evaluate.every_steps={every_steps}")
    arguments += [word for key in keys for word in ("--set", key)]
    printed = " ".join(
        call_command(*arguments, "--out", tmp_path / "run", "--dry-run").stdout.replace("│", " ").split()
    )
    (disk,) = re.findall(r"disk ([\d.]+) MB: ", printed)
    (number, size) = re.findall(rf"MB: ({kept}) of ([\d.]+) MB, and one more while it is written", printed)[0]
    assert float(disk) == pytest.approx((int(number.split()[0]) + 1) * float(size), abs=0.3)
