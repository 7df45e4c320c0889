"""Builds in processes, and the checks after a fault: no process left, no partial file counted as complete, same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.encode.staged import StagedSource
from vmae_data.format import ShardMarker, decode_record
from vmae_data.shards.workspace import STAGING
from vmae_data.storage import hash_file

__all__ = [
    "NO_SPACE",
    "Ended",
    "Result",
    "Workspace",
    "after",
    "command",
    "digests",
    "digests_but_lock",
    "finished",
    "left_over",
    "partial_files",
    "run",
    "start",
]

_MARK = "VMAE_SOAK_MARK"
NO_SPACE = "no space left on the disk"


class Result(NamedTuple):
    """One check: what was found, what was expected, and whether they agree."""

    name: str
    found: str
    expected: str
    as_expected: bool


class Ended(NamedTuple):
    """A build that ended: its exit status and stderr."""

    status: int
    words: str


class Workspace(NamedTuple):
    """Sources, and an undisturbed build of them to compare with."""

    folder: Path
    videos: Path
    undisturbed: Path
    seconds: float  # duration of the undisturbed build
    kills: int
    seed: int

    def dest(self, name: str) -> Path:
        path = self.folder / "faults" / name
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        return path


def command(videos: Path, dest: Path, *more: str) -> list[str]:
    words = ["build", str(videos), str(dest), "--recipe", "demo", "--set", "samples_per_shard=8"]
    return [sys.executable, "-m", "vmae_data.cli", *words, "--workers", "2", "--quiet", *more]


def start(words: Sequence[str], **settings: str) -> subprocess.Popen[str]:
    """Start a build. An environment variable marks its processes and their children."""
    environment = {**os.environ, _MARK: f"{os.getpid()}-mark", **settings}
    return subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(words: Sequence[str], **settings: str) -> Ended:
    process = start(words, **settings)
    _, stderr = process.communicate(timeout=600)
    return Ended(process.returncode, stderr.strip())


def digests(dest: Path) -> dict[str, str]:
    """Checksum of every file below a destination, so that no other file may be there."""
    return {str(path.relative_to(dest)): hash_file(path) for path in dest.rglob("*") if path.is_file()}


def left_over() -> list[str]:
    """Processes of marked builds that are still alive after two seconds."""
    until = time.monotonic() + 2
    while (found := _marked()) and time.monotonic() < until:
        time.sleep(0.02)
    return found


def _marked() -> list[str]:
    mark = f"{_MARK}={os.getpid()}-mark".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            dead = (folder / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            if not dead and mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(folder.name)
    return found


def partial_files(dest: Path) -> list[str]:
    """Files that a record counts as complete and that are not. Records are written after their files, removed before."""
    wrong = []
    for path in (dest / STAGING).glob("[!.]*.staged.json"):
        staged = decode_record(path.read_bytes(), StagedSource, path.name)
        members = [member for sample in staged.samples for member in sample.members]
        wrong += [member.file for member in members if not _matches(dest / STAGING / member.file, member.sha256)]
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        if marker.samples and not _matches(dest / marker.tar, marker.sha256):
            wrong.append(marker.tar)
    return wrong


def _marker(path: Path) -> ShardMarker:
    return decode_record(path.read_bytes(), ShardMarker, path.name)


def _matches(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def after(workspace: Workspace, dest: Path, name: str, expected: str, ended: Ended, status: int, words: str) -> Result:
    """Check a build that met a fault: status, one line of stderr, nothing left; then resume it and compare the bytes."""
    problems = []
    if ended.status != status:
        problems.append(f"status {ended.status}")
    if words not in ended.words or "\n" in ended.words:
        problems.append(f"words {ended.words[-300:]!r}")
    if left := left_over():
        problems.append(f"processes {left} are still alive")
    if dest.exists() and (wrong := partial_files(dest)):
        problems.append(f"counted as complete, but partial: {wrong}")
    again = run(command(workspace.videos, dest))
    if again.status != 0:
        problems.append(f"the next build ends with {again.status}: {again.words}")
    elif digests(dest) != digests(workspace.undisturbed):
        problems.append("bytes differ from the undisturbed build")
    shutil.rmtree(dest, ignore_errors=True)
    return Result(name, "; ".join(problems) or expected, expected, not problems)


def digests_but_lock(dest: Path) -> dict[str, str]:
    """Digests without the lock file. A kill may leave it, and it locks nothing then."""
    return {name: digest for name, digest in digests(dest).items() if name != ".lock"}


def finished(dest: Path) -> set[str]:
    found = {path.name.removesuffix(".staged.json") for path in (dest / STAGING).glob("[!.]*.staged.json")}
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        found |= {entry.key for entry in marker.samples} | {failure.key for failure in marker.failures}
    return found
