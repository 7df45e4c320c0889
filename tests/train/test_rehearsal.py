"""`--dry-run`: two real steps, nothing written, figures that agree with a real run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import run_command

SETTINGS = ["--set", "train.batch=4", "--set", "loader.workers=0"]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_dry_run_says_what_the_whole_takes_and_writes_nothing(
    command: str, demo_shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ["vmae_train", command, "--recipe", f"{command}/demo", "--data", demo_shards, "--out", out, *SETTINGS]
    words += ["--val", demo_shards] if command == "finetune" else []
    done = run_command(*words, "--set", "train.steps=30", "--dry-run", "--json")
    found = json.loads(done.stdout)
    assert not out.exists()
    assert found["steps"] == 30 and found["batch"] == 4 and found["memory_mb"] > 50
    assert found["total_seconds"] == pytest.approx(30 * found["step_seconds"])
    assert 0 <= found["wait_seconds"] <= found["step_seconds"]
    assert [caution["name"] for caution in found["cautions"]] == ["endless warm-up"]
    assert "warning: the warm-up takes all 30 steps" in done.stderr
    if command == "pretrain":
        run_command(*words, "--quiet", "--set", "train.steps=2")
        (checkpoint,) = (out / "checkpoints").iterdir()
        size = sum(file.stat().st_size for file in checkpoint.iterdir()) / 1e6
        assert found["checkpoint_mb"] == pytest.approx(size, rel=0.02)
        assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["loss"] == pytest.approx(found["loss"])
