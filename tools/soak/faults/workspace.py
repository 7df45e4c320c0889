"""Builds as processes that are disturbed, and what must be true after: nothing left over, nothing partial, the same bytes."""

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

from vmae_data.encode.encode_source import StagedSource
from vmae_data.format import ShardMarker, decode_record
from vmae_data.shards.workspace import STAGING
from vmae_data.storage import hash_file

__all__ = [
    "NO_ROOM",
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
NO_ROOM = "no room left on the disk"


class Result(NamedTuple):
    """One fault: what was found, and whether it is what was expected."""

    name: str
    found: str
    expected: str
    as_expected: bool


class Ended(NamedTuple):
    """A build that ended."""

    status: int
    words: str


class Workspace(NamedTuple):
    """Sources, and the bytes that an undisturbed build of them gives."""

    folder: Path
    videos: Path
    whole: Path
    seconds: float  # that the undisturbed build took
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
    """A build as a process; what it starts is known by a variable of its surroundings."""
    around = {**os.environ, _MARK: f"{os.getpid()}-mark", **settings}
    return subprocess.Popen(words, env=around, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(words: Sequence[str], **settings: str) -> Ended:
    process = start(words, **settings)
    _, said = process.communicate(timeout=600)
    return Ended(process.returncode, said.strip())


def digests(dest: Path) -> dict[str, str]:
    """Of every file of a destination, folders in it included: nothing else may lie there."""
    return {str(path.relative_to(dest)): hash_file(path) for path in dest.rglob("*") if path.is_file()}


def left_over() -> list[str]:
    """Processes that a build started and that live, after two seconds at most."""
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
    """What a record calls whole and isn't. A record goes before its files, and comes after them."""
    wrong = []
    for path in (dest / STAGING).glob("[!.]*.staged.json"):
        staged = decode_record(path.read_bytes(), StagedSource, path.name)
        members = [member for sample in staged.samples for member in sample.members]
        wrong += [member.file for member in members if not _is(dest / STAGING / member.file, member.sha256)]
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        if marker.samples and not _is(dest / marker.tar, marker.sha256):
            wrong.append(marker.tar)
    return wrong


def _marker(path: Path) -> ShardMarker:
    return decode_record(path.read_bytes(), ShardMarker, path.name)


def _is(path: Path, sha256: str) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def after(workspace: Workspace, dest: Path, name: str, expected: str, ended: Ended, status: int, words: str) -> Result:
    """After a fault: its status and one line of words, nothing left; then a build that goes on, and its bytes."""
    problems = []
    if ended.status != status:
        problems.append(f"status {ended.status}")
    if words not in ended.words or "\n" in ended.words:
        problems.append(f"words {ended.words[-300:]!r}")
    if left := left_over():
        problems.append(f"processes {left} live on")
    if dest.exists() and (wrong := partial_files(dest)):
        problems.append(f"called whole, but isn't: {wrong}")
    again = run(command(workspace.videos, dest))
    if again.status != 0:
        problems.append(f"the next build ends with {again.status}: {again.words}")
    elif digests(dest) != digests(workspace.whole):
        problems.append("other bytes than the undisturbed build's")
    shutil.rmtree(dest, ignore_errors=True)
    return Result(name, "; ".join(problems) or expected, expected, not problems)


def digests_but_lock(dest: Path) -> dict[str, str]:
    """A kill may leave the lock's name, which locks nothing, and an empty staging folder."""
    return {name: digest for name, digest in digests(dest).items() if name != ".lock"}


def finished(dest: Path) -> set[str]:
    found = {path.name.removesuffix(".staged.json") for path in (dest / STAGING).glob("[!.]*.staged.json")}
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        found |= {entry.key for entry in marker.samples} | {failure.key for failure in marker.failures}
    return found
