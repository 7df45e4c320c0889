"""docs/tutorial.md: its commands run in their order, with fewer videos and steps, and print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
FEWER = {
    "--videos 160": "--videos 24",
    "train.steps=300": "train.steps=6",
    "runs/finetune\n": "runs/finetune --set train.steps=6\n",
}
PROGRAMS = {"vmae-shard": ["-m", "vmae_data.cli"], "vmae-train": ["-m", "vmae_train.cli"]}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CLASSES = r"(?:pan|rotate|zoom)-(?:[a-z]+)"


def _words(text: str) -> str:
    """Text without what differs between machines and amounts: numbers, units, bars, classes, the widths of tables."""
    text = text.replace(" (decode)", "")  # what a slow machine waits for
    text = re.sub(r", [\d.]+ clips/s(?=, )", "", text)  # unknown in the first steps
    text = re.sub(r"[\s─│┌┐└┘├┤┬┴█▏▎▍▌▋▊▉]+", " ", text)
    text = re.sub(rf"videos/{CLASSES}/\S+|{CLASSES}", "CLASS", text)
    return re.sub(r"\d+(?:\.\d+)?(?: (?:kB|MB)| shards?\b)?", "N", text)


def _run(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


@pytest.mark.slow
@pytest.mark.processes
def test_the_commands_of_the_tutorial_run_and_print_what_it_shows(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    for full, small in FEWER.items():
        assert full in text
        text = text.replace(full, small)
    printed, shown = "", 0
    for language, block in BLOCK.findall(text):
        if language == "text":
            for line in block.splitlines():
                assert _words(line).strip() in _words(printed), f"{line!r} was not printed:\n{printed}"
            printed, shown = "", shown + 1
        elif language == "python":
            printed += _run(tmp_path, ["-c", block])
        else:
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                printed += _run(tmp_path, [*PROGRAMS[program], *arguments]) if program in PROGRAMS else ""
    assert shown == 8
    for name in ("shards.html", "reconstruction.png", "report.html", "predictions.csv", "features.npz"):
        assert (tmp_path / name).stat().st_size > 0, name
