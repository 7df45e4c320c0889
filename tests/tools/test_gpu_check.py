"""The checks of a GPU, in their small form, which a CPU can run."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import msgspec
import pytest

from tools.gpu_check import Check, Figure, run


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
    names = {figure.name for figure in checks["B"].figures}
    has_transformers = find_spec("transformers") is not None
    assert names & {"transformers", "transformers with SDPA, model alone"} == {
        "transformers with SDPA, model alone" if has_transformers else "transformers"
    }
    assert "training from shards" in page


@pytest.mark.slow
def test_a_check_that_fails_is_a_row_and_the_others_run(tmp_path: Path) -> None:
    status, checks, page = _check(tmp_path / "check", "--data", str(tmp_path / "no"), "--checks", "pipeline", "tests")
    assert status == 1
    assert str(tmp_path / "no") in checks["pipeline"].failed
    assert not checks["tests"].failed
    assert "| pipeline | failed |" in page


def test_a_check_that_takes_too_long_keeps_its_figures_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = Figure("a step", 1.5, "ms")
    script, left = tmp_path / "python", tmp_path / "left"
    line = msgspec.json.encode(figure).decode()
    script.write_text(f"#!/bin/sh\necho '{line}'\nprintf '{{\"name\": \"half'\nsleep 600 &\necho $! > {left}\nwait\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    check = run("crops", [], 3)
    assert (check.figures, check.failed) == ((figure,), "the time is over")
    command = Path(f"/proc/{left.read_text().strip()}/cmdline")  # empty: it has ended, and nobody asked for its status
    assert not command.exists() or not command.read_bytes()


def test_a_check_ends_with_the_time(tmp_path: Path) -> None:
    status, checks, _ = _check(tmp_path / "check", "--minutes", "0", "--checks", "crops")
    assert status == 1
    assert checks["crops"].failed == "the time is over"
