"""Kills, signals, hangs, retries, and two builds at once."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator

from tools.soak.faults.workspace import (
    Ended,
    Result,
    Workspace,
    after,
    command,
    digests,
    digests_but_lock,
    finished,
    left_over,
    partial_files,
    run,
    start,
)
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.format import INDEX
from vmae_data.shards.workspace import STAGING

__all__ = ["hang", "kills", "retries_killed", "signals", "two_builds"]


def two_builds(workspace: Workspace) -> Iterator[Result]:
    dest = workspace.dest("two")
    builds = [start(command(workspace.videos, dest)) for _ in range(2)]
    said = [build.communicate(timeout=600)[1].strip() for build in builds]
    status = sorted(build.returncode for build in builds)
    right = status == [0, 1] and any("another build is writing here" in words for words in said)
    right = right and digests(dest) == digests(workspace.whole) and not left_over()
    expected = "one is refused, the other gives the undisturbed build's bytes"
    yield Result("two builds into one destination", expected if right else f"status {status}: {said}", expected, right)


def signals(workspace: Workspace) -> Iterator[Result]:
    rng = random.Random(workspace.seed + 1)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        name = f"{signal.Signals(number).name.lower()}-{rng.random():.3f}"
        dest = workspace.dest(name)
        process = start(command(workspace.videos, dest))
        many = rng.randrange(1, 15)  # half of the sources: the build has not ended when it is told to
        while len(finished(dest)) < many and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        expected = f"status {status}, one line, no process left; it goes on to the same bytes"
        title = f"{signal.Signals(number).name} in the middle"
        yield after(workspace, dest, title, expected, Ended(process.returncode, said.strip()), status, "")


_WRAPPER = """\
#!/bin/sh
# ffmpeg, but for one source: there it says nothing for ever, and what it started is not it.
case "$*" in *HANG*) if [ -e FLAG ]; then sleep 600; fi ;; esac
exec "FFMPEG" "$@"
"""


def hang(workspace: Workspace) -> Iterator[Result]:
    """An ffmpeg that never ends is ended, its source is listed; `--retry-failed` alone brings it in."""
    folder = workspace.dest("hang")
    videos, flag, wrapper = folder / "videos", folder / "flag", folder / "ffmpeg"
    (videos / "a").mkdir(parents=True)
    good = sorted(path for path in workspace.videos.glob("*/*.mp4") if "scene" in path.name)[:4]
    for number, path in enumerate(good):
        shutil.copy(path, videos / "a" / ("HANG.mp4" if number == 0 else path.name))
    script = _WRAPPER.replace("FLAG", str(flag), 1).replace("FFMPEG", find_ffmpeg().path)
    wrapper.write_text(script)
    wrapper.chmod(0o755)
    whole, dest = folder / "whole", folder / "dest"
    settings = {"VMAE_FFMPEG": str(wrapper), "VMAE_SILENCE_SECONDS": "3"}
    run(command(videos, whole), **settings)
    flag.touch()
    ended = run(command(videos, dest), **settings)
    lines = (dest / "failures.jsonl").read_text()
    expected = "failure stalled, the others made, no process left"
    right = ended.status == 0 and lines.count("\n") == 1 and '"stalled"' in lines and not left_over()
    yield Result("an ffmpeg that hangs", expected if right else f"{ended} {lines} {left_over()}", expected, right)
    flag.unlink()
    again = run(command(videos, dest), **settings)
    kept = '"stalled"' in (dest / "failures.jsonl").read_text()
    retried = run(command(videos, dest, "--retry-failed"), **settings)
    same = digests(dest) == digests(whole)
    expected = "a plain run retries nothing; with --retry-failed the bytes of a build without the fault"
    found = expected if kept and same else f"{again}, kept {kept}; {retried}, same bytes {same}"
    yield Result("--retry-failed after a hang", found, expected, kept and same)


def retries_killed(workspace: Workspace) -> Iterator[Result]:
    """A source is mended; `--retry-failed` is killed in the middle, and run again."""
    for title, settings in (("", ()), (" of segments", ("--set", "longest_seconds=0.5"))):
        folder = workspace.dest("retried")
        videos, dest, whole = folder / "videos", folder / "dest", folder / "whole"
        shutil.copytree(workspace.videos, videos)
        run(command(videos, whole, *settings))
        good = sorted(videos.glob("*/scene-*.mp4"))[3]
        data = good.read_bytes()
        good.write_bytes(data[:100])
        run(command(videos, dest, *settings))
        good.write_bytes(data)
        rng = random.Random(workspace.seed + 2)
        problems = []
        for _ in range(6):
            process = start(command(videos, dest, "--retry-failed", *settings))
            time.sleep(rng.uniform(0.5, 1.5) * workspace.seconds / 2)
            process.kill()
            process.communicate()
            problems += [f"processes {left}" for left in (left_over(),) if left]
            problems += [f"not whole: {wrong}" for wrong in (partial_files(dest),) if wrong]
        run(command(videos, dest, "--retry-failed", *settings))
        if digests(dest) != digests(whole) or (dest / STAGING).exists():
            other = sorted(name for name, digest in digests(dest).items() if digests(whole).get(name) != digest)
            problems.append(f"other bytes: {other}")
        expected = "killed 6 times, then run to its end: the undisturbed build's bytes"
        yield Result(f"--retry-failed{title}, killed", "; ".join(problems) or expected, expected, not problems)


def kills(workspace: Workspace) -> Iterator[Result]:
    """kill -9 at random moments, again and again; each time that a build is whole, it is held against the first."""
    rng, dest, whole, problems = random.Random(workspace.seed), workspace.dest("killed"), 0, []
    done: set[str] = set()
    for number in range(workspace.kills):
        process = start(command(workspace.videos, dest))
        time.sleep(rng.uniform(0, 1.2 * workspace.seconds))
        process.kill()
        process.communicate()
        if left := left_over():
            problems.append(f"kill {number}: processes {left} live on")
        if wrong := partial_files(dest):
            problems.append(f"kill {number}: called whole, but isn't: {wrong}")
        now = finished(dest)
        if lost := done - now:
            problems.append(f"kill {number}: lost {sorted(lost)}")
        done = now
        if (dest / INDEX).exists():
            whole += 1
            if digests_but_lock(dest) != digests(workspace.whole):
                problems.append(f"kill {number}: an index, but other bytes")
            dest, done = workspace.dest("killed"), set()
        print(f"  kill {number + 1} of {workspace.kills}: {len(now)} finished", end="\r", file=sys.stderr, flush=True)
    run(command(workspace.videos, dest))
    if digests(dest) != digests(workspace.whole):
        problems.append("other bytes at the end")
    expected = f"{workspace.kills} kills: nothing finished is lost, no process left, the undisturbed build's bytes"
    found = "; ".join(problems) or f"{expected} ({whole + 1} times to the end)"
    yield Result("kill -9 at random moments", found, expected, not problems)
