"""A small build for tests that stop, kill and compare builds, and what they share."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from vmae_data.build import BuildReport, build_shards
from vmae_data.cli import main
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

    def start(self, dest: StoragePath, **options: Any) -> ForkServerProcess:
        """The same build in a process of its own, which may be killed."""
        return start_process(self.build, dest, **options)

    def paths_of(self, shard: int) -> list[str]:
        """The sources of a shard, in plan order."""
        table = pa.ipc.open_file(str(self.shards / PLAN_TABLE)).read_all().to_pydict()
        return [path for path, number in zip(table["path"], table["shard"], strict=True) if number == shard]

    def hold_last(self, shard: int) -> None:
        """The last source of a shard waits in its encode, until `release`."""
        self.held.write_text(Path(self.paths_of(shard)[-1]).name)

    def release(self) -> None:
        self.held.unlink(missing_ok=True)


HELD_FFMPEG = """\
#!/bin/sh
while name=$(cat "{held}" 2>/dev/null); do
  case "$*" in *"$name"*) sleep 0.05;; *) break;; esac
done
exec "{ffmpeg}" "$@"
"""


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["pytest", "tests.builds", "vmae_data.verify.verify", "obstore.store"])


def start_process(function: Callable[..., object], *arguments: Any, **options: Any) -> ForkServerProcess:
    """Call a function in a process with our environment. It is forked from a small server: no imports are repeated."""
    process = _FORKS.Process(target=_call, args=(dict(os.environ), function, arguments, options))
    process.start()
    return process


def _call(environment: dict[str, str], function: Callable[..., object], arguments: Any, options: Any) -> None:
    os.environ.clear()
    os.environ.update(environment)
    function(*arguments, **options)


def start_command(words: list[str], output: Path) -> ForkServerProcess:
    """Run `vmae-shard` in a process whose stdout and stderr are a file, also those of its children."""
    return start_process(_call_command, words, output)


def _call_command(words: list[str], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["vmae-shard", *words]
    main()


def digests(folder: StoragePath) -> dict[str, str]:
    """Relative path → sha256 of every file below a folder, here or in a bucket."""
    if isinstance(folder, RemotePath):
        return {path: hashlib.sha256(read_bytes(folder / path)).hexdigest() for path in list_tree(folder)}
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def staged_keys(staging: Path) -> set[str]:
    """The sources whose encodes wait in a staging folder."""
    return {path.name.partition(".")[0] for path in staging.glob("[!.]*.staged.json")}


def wait_until(
    condition: Callable[[], object], process: subprocess.Popen[Any] | ForkServerProcess | None = None
) -> None:
    """Wait for a condition, at most until the process ends that has to fulfil it."""
    until = time.monotonic() + 60
    while not condition() and time.monotonic() < until and not _ended(process):
        time.sleep(0.01)
    assert condition()


def _ended(process: subprocess.Popen[Any] | ForkServerProcess | None) -> bool:
    if process is None:
        return False
    return process.poll() is not None if isinstance(process, subprocess.Popen) else not process.is_alive()


def processes_with(text: str) -> list[int]:
    """Other processes with a text in their command line or environment, without zombies."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            data = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if os.fsencode(text) in data and alive and int(folder.name) != os.getpid():
                pids.append(int(folder.name))
    return pids
