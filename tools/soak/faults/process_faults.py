"""Kills, signals, hangs, retries, and two builds at once."""

from __future__ import annotations

import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator

from tools.soak.faults.fault_run import (
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

__all__ = ["hang", "kills", "retries_killed", "signals", "troubles", "two_builds"]


def two_builds(workspace: Workspace) -> Iterator[Result]:
    dest = workspace.dest("two")
    builds = [start(command(workspace.videos, dest)) for _ in range(2)]
    stderr = [build.communicate(timeout=600)[1].strip() for build in builds]
    status = sorted(build.returncode for build in builds)
    right = status == [0, 1] and any("another build is writing here" in words for words in stderr)
    right = right and digests(dest) == digests(workspace.undisturbed) and not left_over()
    expected = "one is refused, the other gives the bytes of the undisturbed build"
    yield Result(
        "two builds into one destination", expected if right else f"status {status}: {stderr}", expected, right
    )


def signals(workspace: Workspace) -> Iterator[Result]:
    rng = random.Random(workspace.seed + 1)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        name = f"{signal.Signals(number).name.lower()}-{rng.random():.3f}"
        dest = workspace.dest(name)
        process = start(command(workspace.videos, dest))
        many = rng.randrange(1, 15)  # about half of the sources, so that the build is still running
        while len(finished(dest)) < many and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
        expected = f"status {status}, one line, no process left; it resumes to the same bytes"
        title = f"{signal.Signals(number).name} in the middle"
        yield after(workspace, dest, title, expected, Ended(process.returncode, stderr.strip()), status, "")


_WRAPPER = """\
#!/bin/sh
# ffmpeg, except for one source: there it hangs without output, as a child of this script.
case "$*" in *HANG*) if [ -e FLAG ]; then sleep 600; fi ;; esac
exec "FFMPEG" "$@"
"""


def hang(workspace: Workspace) -> Iterator[Result]:
    """A hanging ffmpeg is killed and its source is listed. Only `--retry-failed` builds it."""
    folder = workspace.dest("hang")
    videos, flag, wrapper = folder / "videos", folder / "flag", folder / "ffmpeg"
    (videos / "a").mkdir(parents=True)
    good = sorted(path for path in workspace.videos.glob("*/*.mp4") if "scene" in path.name)[:4]
    for number, path in enumerate(good):
        shutil.copy(path, videos / "a" / ("HANG.mp4" if number == 0 else path.name))
    script = _WRAPPER.replace("FLAG", str(flag), 1).replace("FFMPEG", find_ffmpeg().path)
    wrapper.write_text(script)
    wrapper.chmod(0o755)
    undisturbed, dest = folder / "undisturbed", folder / "dest"
    settings = {"VMAE_FFMPEG": str(wrapper), "VMAE_SILENCE_SECONDS": "3"}
    run(command(videos, undisturbed), **settings)
    flag.touch()
    ended = run(command(videos, dest), **settings)
    lines = (dest / "failures.jsonl").read_text()
    expected = "failure stalled, the others built, no process left"
    right = ended.status == 0 and lines.count("\n") == 1 and '"stalled"' in lines and not left_over()
    yield Result("an ffmpeg that hangs", expected if right else f"{ended} {lines} {left_over()}", expected, right)
    flag.unlink()
    again = run(command(videos, dest), **settings)
    kept = '"stalled"' in (dest / "failures.jsonl").read_text()
    retried = run(command(videos, dest, "--retry-failed"), **settings)
    same = digests(dest) == digests(undisturbed)
    expected = "a plain run retries nothing; with --retry-failed the bytes of a build without the fault"
    found = expected if kept and same else f"{again}, kept {kept}; {retried}, same bytes {same}"
    yield Result("--retry-failed after a hang", found, expected, kept and same)


_TROUBLES = (
    "[vf#0:0 @ 0x1] [fatal] pthread_create() failed: Resource temporarily unavailable",
    "[out#0/mp4 @ 0x1] [error] Error opening output x: Permission denied",
    "[in#0 @ 0x1] [error] Error opening input: Too many open files",
)
_TROUBLED = """\
#!/bin/sh
case "$*" in *-encoders*|*-version*) ;; *) if [ -s FLAG ]; then cat FLAG >&2; exit 1; fi;; esac
exec FFMPEG "$@"
"""


def troubles(workspace: Workspace) -> Iterator[Result]:
    """An ffmpeg that this machine stops. No video is to blame, and the next build makes the same bytes."""
    folder = workspace.dest("troubles")
    folder.mkdir()
    flag, wrapper, undisturbed = folder / "flag", folder / "ffmpeg", folder / "undisturbed"
    wrapper.write_text(_TROUBLED.replace("FLAG", str(flag)).replace("FFMPEG", find_ffmpeg().path))
    wrapper.chmod(0o755)
    settings = {"VMAE_FFMPEG": str(wrapper)}
    run(command(workspace.videos, undisturbed), **settings)
    for number, message in enumerate(_TROUBLES):
        dest = folder / f"dest-{number}"
        flag.write_text(message + "\n")
        ended = run(command(workspace.videos, dest), **settings)
        flag.unlink()
        again = run(command(workspace.videos, dest), **settings)
        expected = "status 1, one line; then the same bytes"
        right = ended.status == 1 and "\n" not in ended.words and digests(dest) == digests(undisturbed)
        yield Result(message, expected if right else f"{ended}; {again}", expected, right)


def retries_killed(workspace: Workspace) -> Iterator[Result]:
    """A broken source is repaired. `--retry-failed` is killed in the middle and run again."""
    for title, settings in (("", ()), (" of segments", ("--set", "longest_seconds=0.5"))):
        folder = workspace.dest("retried")
        videos, dest, undisturbed = folder / "videos", folder / "dest", folder / "undisturbed"
        shutil.copytree(workspace.videos, videos)
        run(command(videos, undisturbed, *settings))
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
            problems += [f"partial: {wrong}" for wrong in (partial_files(dest),) if wrong]
        run(command(videos, dest, "--retry-failed", *settings))
        if digests(dest) != digests(undisturbed) or (dest / STAGING).exists():
            other = sorted(name for name, digest in digests(dest).items() if digests(undisturbed).get(name) != digest)
            problems.append(f"different bytes: {other}")
        expected = "killed 6 times, then run to the end: the bytes of the undisturbed build"
        yield Result(f"--retry-failed{title}, killed", "; ".join(problems) or expected, expected, not problems)


def kills(workspace: Workspace) -> Iterator[Result]:
    """kill -9 at random moments. Each complete build is compared with the undisturbed one."""
    rng, dest, complete, problems = random.Random(workspace.seed), workspace.dest("killed"), 0, []
    done: set[str] = set()
    for number in range(workspace.kills):
        process = start(command(workspace.videos, dest))
        time.sleep(rng.uniform(0, 1.2 * workspace.seconds))
        process.kill()
        process.communicate()
        if left := left_over():
            problems.append(f"kill {number}: processes {left} are still alive")
        if wrong := partial_files(dest):
            problems.append(f"kill {number}: counted as complete, but partial: {wrong}")
        now = finished(dest)
        if lost := done - now:
            problems.append(f"kill {number}: lost {sorted(lost)}")
        done = now
        if (dest / INDEX).exists():
            complete += 1
            if digests_but_lock(dest) != digests(workspace.undisturbed):
                problems.append(f"kill {number}: an index, but different bytes")
            dest, done = workspace.dest("killed"), set()
        print(f"  kill {number + 1} of {workspace.kills}: {len(now)} finished", end="\r", file=sys.stderr, flush=True)
    run(command(workspace.videos, dest))
    if digests(dest) != digests(workspace.undisturbed):
        problems.append("different bytes at the end")
    expected = f"{workspace.kills} kills: nothing finished is lost, no process left, the bytes of the undisturbed build"
    found = "; ".join(problems) or f"{expected} ({complete + 1} complete builds)"
    yield Result("kill -9 at random moments", found, expected, not problems)
