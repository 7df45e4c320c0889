"""docs/tutorial.md: its commands run in their order, with fewer videos and steps, and print what it shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
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
    "train.steps=200": "train.steps=4",
    "train.steps=100": "train.steps=4",
}
PROGRAMS = {"vmae-shard": ["-m", "vmae_data.cli"], "vmae-train": ["-m", "vmae_train.cli"]}
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CLASSES = r"(?:pan|rotate|zoom)-(?:[a-z]+)|cooking|hands|street|wrestling"


def _words(text: str) -> str:
    """Text without what differs between machines and amounts: numbers, units, bars, classes, the widths of tables."""
    text = text.replace(" (decode)", "")  # what a slow machine waits for
    text = re.sub(r", [\d.]+ clips/s(?=, )", "", text)  # unknown in the first steps
    text = re.sub(r"[\s─│┌┐└┘├┤┬┴█▏▎▍▌▋▊▉]+", " ", text)
    text = re.sub(rf"videos/(?:{CLASSES})/\S+|{CLASSES}", "CLASS", text)
    return re.sub(r"\d+(?:\.\d+)?(?: (?:kB|MB)| shards?\b)?", "N", text)


def _run(folder: Path, arguments: list[str]) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr + done.stdout


def _make_own_videos(made: Path, folder: Path) -> None:
    """24 videos in four class folders, one of them with the name that the page predicts."""
    _run(made.parent, [*PROGRAMS["vmae-shard"], "demo", str(made), "--videos", "24"])
    for number, video in enumerate(sorted(made.rglob("*.mp4"))):
        name, suffix = (
            ("cooking/kitchen", ".mkv"),
            ("hands/desk", ".mov"),
            ("street/camera", ".mp4"),
            ("wrestling/phone", ".mp4"),
        )[number % 4]
        path = folder / f"{name}-{number // 4:02}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)


@pytest.mark.slow
@pytest.mark.processes
def test_the_commands_of_the_tutorial_run_and_print_what_it_shows(tmp_path: Path) -> None:
    text = PAGE.read_text("utf-8")
    for full, small in FEWER.items():
        assert full in text
        text = text.replace(full, small)
    _make_own_videos(tmp_path / "own", tmp_path / "my-videos")
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
    assert shown == 11
    names = ("shards.html", "reconstruction.png", "report.html", "predictions.csv", "features.npz", "my-features.npz")
    for name in names:
        assert (tmp_path / name).stat().st_size > 0, name
