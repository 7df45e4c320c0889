"""Appends that are killed at random moments: whole, with several phases, and in parts."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tools.soak.faults.fault_run import Result, Workspace, command, digests, left_over, partial_files, run, start
from vmae_data.format import INDEX
from vmae_data.storage import hash_file

__all__ = ["appends_killed"]

_APPENDS, _KILLS = 2, 5
_VARIANTS = (
    ("", (), 1),
    (" with two phases", ("--set", "phases=2"), 1),
    (" of segments", ("--set", "longest_seconds=0.5"), 1),
    (" in two parts", (), 2),
)


def appends_killed(workspace: Workspace) -> Iterator[Result]:
    """A source gains videos twice. Each append is killed several times, and once it is not."""
    for title, settings, parts in _VARIANTS:
        folder, rng, problems = workspace.dest("appended"), random.Random(workspace.seed + 3), list[str]()
        videos, undisturbed, dest = folder / "videos", folder / "undisturbed", folder / "dest"
        _add(workspace.videos, videos, 0)
        run(command(videos, undisturbed, *settings))
        shutil.copytree(undisturbed, dest)
        for append in range(1, _APPENDS + 1):
            _add(workspace.videos, videos, append)
            old = hash_file(dest / INDEX)
            ended = run(command(videos, undisturbed, "--append", *settings))
            problems += [f"the undisturbed append ends with {ended}"] if ended.status else []
            new = hash_file(undisturbed / INDEX)
            for _ in range(_KILLS):
                part = ("--part", f"{rng.randrange(parts)}/{parts}") if parts > 1 else ()
                process = start(command(videos, dest, "--append", *settings, *part))
                time.sleep(rng.uniform(0.1, 0.6) * workspace.seconds)
                process.kill()
                process.communicate()
                problems += [f"processes {left}" for left in (left_over(),) if left]
                problems += [f"partial: {wrong}" for wrong in (partial_files(dest),) if wrong]
                problems += ["neither the old index nor the new"] if hash_file(dest / INDEX) not in (old, new) else []
            problems += _finish(videos, dest, settings, parts)
            if digests(dest) != digests(undisturbed):
                problems.append(f"append {append}: different bytes")
        status = run([sys.executable, "-m", "vmae_data.cli", "verify", str(dest), "--quiet"]).status
        problems += [f"verify ends with {status}"] if status else []
        expected = (
            f"killed {_APPENDS * _KILLS} times: the old index stays until the end, the bytes of undisturbed appends"
        )
        yield Result(f"--append{title}, killed", "; ".join(problems) or expected, expected, not problems)


def _add(every: Path, videos: Path, append: int) -> None:
    """Every third video for the build and for each append."""
    for path in sorted(every.glob("*/*.mp4"))[append :: _APPENDS + 1]:
        (videos / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, videos / path.parent.name)


def _finish(videos: Path, dest: Path, settings: tuple[str, ...], parts: int) -> list[str]:
    """Run an append to its end. Returns what went wrong."""
    if parts == 1:
        ends = [run(command(videos, dest, "--append", *settings))]
    else:
        own = [("--part", f"{number}/{parts}") for number in range(parts)]
        ends = [run(command(videos, dest, "--append", *settings, *part)) for part in own]
        ends.append(run([sys.executable, "-m", "vmae_data.cli", "merge", str(dest), "--quiet"]))
    return [f"the last append ends with {end}" for end in ends if end.status]
