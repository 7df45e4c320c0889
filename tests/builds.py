"""A small build for tests that stop, kill and compare builds, and what they share."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vmae_data.build import BuildReport, build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import PLAN_TABLE
from vmae_data.progress import ProgressStyle
from vmae_data.storage import RemotePath, StoragePath, list_tree, read_bytes

QUIET = ProgressStyle.QUIET


class SmallBuild(NamedTuple):
    """12 videos, 3 of them broken, their 3 shards, and an ffmpeg whose encode of a chosen source waits."""

    videos: Path
    shards: Path
    spec: BuildSpec
    ffmpeg: Path
    held: Path  # a file with the name of the source that waits; no source waits without it

    @property
    def settings(self) -> list[str]:
        """The same recipe and ffmpeg for a command."""
        return ["--recipe", "demo", "--set", "samples_per_shard=4", "--ffmpeg", str(self.ffmpeg)]

    def build(self, dest: StoragePath, source: str | Path | None = None, **options: Any) -> BuildReport:
        given = {"workers": 2, "style": QUIET, "ffmpeg": str(self.ffmpeg), **options}
        return build_shards(str(source or self.videos), dest, self.spec, **given)

    def hold_last(self, shard: int) -> None:
        """The last source of a shard waits in its encode, until `release`."""
        table = pa.ipc.open_file(str(self.shards / PLAN_TABLE)).read_all().to_pydict()
        paths = [path for path, number in zip(table["path"], table["shard"], strict=True) if number == shard]
        self.held.write_text(Path(paths[-1]).name)

    def release(self) -> None:
        self.held.unlink(missing_ok=True)


HELD_FFMPEG = """\
#!/bin/sh
while name=$(cat "{held}" 2>/dev/null); do
  case "$*" in *"$name"*) sleep 0.05;; *) break;; esac
done
exec "{ffmpeg}" "$@"
"""


def digests(folder: StoragePath) -> dict[str, str]:
    """Relative path → sha256 of every file below a folder, here or in a bucket."""
    if isinstance(folder, RemotePath):
        return {path: hashlib.sha256(read_bytes(folder / path)).hexdigest() for path in list_tree(folder)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def staged_keys(staging: Path) -> set[str]:
    """The sources whose encodes wait in a staging folder."""
    return {path.name.partition(".")[0] for path in staging.glob("[!.]*.staged.json")}


def wait_until(condition: Callable[[], object], process: subprocess.Popen[Any] | None = None) -> None:
    """Wait for a condition that a process has to bring about."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until and (process is None or process.poll() is None):
        time.sleep(0.01)
    assert condition()


def processes_with(text: str) -> list[int]:
    """Other processes whose command line contains a text, without zombies."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if text in line and alive and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
