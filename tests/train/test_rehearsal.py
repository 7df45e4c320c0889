"""`--dry-run`: two real steps, nothing written, figures that agree with a real run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.command import call_command

SETTINGS = ["--set", "train.batch=4", "--set", "loader.workers=0"]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_dry_run_says_what_the_whole_takes_and_writes_nothing(
    command: str, demo_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["vmae_train", command, "--recipe", f"{command}/demo", "--data", demo_shards, "--out", out, *SETTINGS]
    words += ["--val", demo_shards] if command == "finetune" else []
    done = call_command(*words, "--set", "train.steps=30", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert not out.exists()
    assert found["steps"] == 30 and found["batch"] == 4 and found["memory_mb"] > 50
    assert found["total_seconds"] == pytest.approx(30 * found["step_seconds"])
    assert 0 <= found["wait_seconds"] <= found["step_seconds"]
    assert [caution["name"] for caution in found["cautions"]] == ["endless warm-up"]
    assert "warning: the warm-up takes all 30 steps" in done.stderr
    if command == "pretrain":
        call_command(*words, "--quiet", "--set", "train.steps=2")
        (checkpoint,) = (out / "checkpoints").iterdir()
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6
        assert found["checkpoint_mb"] == pytest.approx(size, rel=0.02)
        assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"] == pytest.approx(found["loss"])


@pytest.mark.parametrize(("every_steps", "kept"), [(30, "2 checkpoints"), (31, "1 checkpoint")])
def test_the_disk_of_a_dry_run_has_the_best_checkpoint_where_one_will_be_kept(
    every_steps: int, kept: str, demo_shards: Path, tmp_path: Path
) -> None:
    words = [
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
    words += [word for key in keys for word in ("--set", key)]
    told = " ".join(call_command(*words, "--out", tmp_path / "run", "--dry-run").stdout.replace("│", " ").split())
    (disk,) = re.findall(r"disk ([\d.]+) MB: ", told)
    (number, size) = re.findall(rf"MB: ({kept}) of ([\d.]+) MB, and one more while it is written", told)[0]
    assert float(disk) == pytest.approx((int(number.split()[0]) + 1) * float(size), abs=0.3)
