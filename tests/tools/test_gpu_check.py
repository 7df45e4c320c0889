"""The checks of a GPU, in their small form, which a CPU can run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tools.gpu_check import Check


def _check(out: Path, *words: str) -> tuple[int, dict[str, Check], str]:
    command = [sys.executable, "-m", "tools.gpu_check", "--small", "--out", str(out), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    checks = msgspec.json.decode(out.with_suffix(".json").read_bytes(), type=list[Check])
    assert done.stdout == out.with_suffix(".md").read_text() + "\n"
    return done.returncode, {check.name: check for check in checks}, done.stdout


@pytest.mark.slow
def test_the_small_form_measures_crops_a_step_and_a_training(tmp_path: Path, demo_shards: Path) -> None:
    status, checks, page = _check(tmp_path / "check", "--data", str(demo_shards))
    assert status == 0
    assert list(checks) == ["machine", "tests", "crops", "B", "pipeline"]
    assert not any(check.failed for check in checks.values())
    measured = {figure.name for figure in checks["B"].figures if figure.unit == "clips/s"}
    assert measured >= {"planes to update, eager", "model alone, eager"}
    assert "training from shards" in page


@pytest.mark.slow
def test_a_check_that_fails_is_a_row_and_the_others_run(tmp_path: Path) -> None:
    status, checks, page = _check(tmp_path / "check", "--data", str(tmp_path / "no"), "--checks", "pipeline", "tests")
    assert status == 1
    assert str(tmp_path / "no") in checks["pipeline"].failed
    assert not checks["tests"].failed
    assert "| pipeline | failed |" in page


def test_a_check_ends_with_the_time(tmp_path: Path) -> None:
    status, checks, _ = _check(tmp_path / "check", "--minutes", "0", "--checks", "crops")
    assert status == 1
    assert checks["crops"].failed == "the time is over"
