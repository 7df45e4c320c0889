"""Faults of the machine while a build runs: kills, hangs, full disks, two builds at once, files without permission."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.build import STAGING
from vmae_data.format import INDEX, ShardMarker, decode_record
from vmae_data.prepare.ffmpeg import find_ffmpeg
from vmae_data.prepare.resize import StagedSource
from vmae_data.store import hash_file

__all__ = ["FAULTS", "Result", "Site", "digests"]

_MARK = "VMAE_SOAK_MARK"
_NOBODY = 65534
_NO_ROOM = "no room left on the disk"


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


class Site(NamedTuple):
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


def _after(site: Site, dest: Path, name: str, expected: str, ended: Ended, status: int, words: str) -> Result:
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
    again = run(command(site.videos, dest))
    if again.status != 0:
        problems.append(f"the next build ends with {again.status}: {again.words}")
    elif digests(dest) != digests(site.whole):
        problems.append("other bytes than the undisturbed build's")
    shutil.rmtree(dest, ignore_errors=True)
    return Result(name, "; ".join(problems) or expected, expected, not problems)


def kills(site: Site) -> Iterator[Result]:
    """kill -9 at random moments, again and again; each time that a build is whole, it is held against the first."""
    draws, dest, whole, problems = random.Random(site.seed), site.dest("killed"), 0, []
    done: set[str] = set()
    for number in range(site.kills):
        process = start(command(site.videos, dest))
        time.sleep(draws.uniform(0, 1.2 * site.seconds))
        process.kill()
        process.communicate()
        if left := left_over():
            problems.append(f"kill {number}: processes {left} live on")
        if wrong := partial_files(dest):
            problems.append(f"kill {number}: called whole, but isn't: {wrong}")
        now = _finished(dest)
        if lost := done - now:
            problems.append(f"kill {number}: lost {sorted(lost)}")
        done = now
        if (dest / INDEX).exists():
            whole += 1
            if digests_but_lock(dest) != digests(site.whole):
                problems.append(f"kill {number}: an index, but other bytes")
            dest, done = site.dest("killed"), set()
        print(f"  kill {number + 1} of {site.kills}: {len(now)} finished", end="\r", file=sys.stderr, flush=True)
    run(command(site.videos, dest))
    if digests(dest) != digests(site.whole):
        problems.append("other bytes at the end")
    expected = f"{site.kills} kills: nothing finished is lost, no process left, the undisturbed build's bytes"
    found = "; ".join(problems) or f"{expected} ({whole + 1} times to the end)"
    yield Result("kill -9 at random moments", found, expected, not problems)


def digests_but_lock(dest: Path) -> dict[str, str]:
    """A kill may leave the lock's name, which locks nothing, and an empty staging folder."""
    return {name: digest for name, digest in digests(dest).items() if name != ".lock"}


def _finished(dest: Path) -> set[str]:
    found = {path.name.removesuffix(".staged.json") for path in (dest / STAGING).glob("[!.]*.staged.json")}
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        found |= {entry.key for entry in marker.samples} | {failure.key for failure in marker.failures}
    return found


def signals(site: Site) -> Iterator[Result]:
    draws = random.Random(site.seed + 1)
    for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        name = f"{signal.Signals(number).name.lower()}-{draws.random():.3f}"
        dest = site.dest(name)
        process = start(command(site.videos, dest))
        many = draws.randrange(1, 15)  # half of the sources: the build has not ended when it is told to
        while len(_finished(dest)) < many and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        expected = f"status {status}, one line, no process left; it goes on to the same bytes"
        title = f"{signal.Signals(number).name} in the middle"
        yield _after(site, dest, title, expected, Ended(process.returncode, said.strip()), status, "")


_WRAPPER = """\
#!/bin/sh
# ffmpeg, but for one source: there it says nothing for ever, and what it started is not it.
case "$*" in *HANG*) if [ -e FLAG ]; then sleep 600; fi ;; esac
exec "FFMPEG" "$@"
"""


def hang(site: Site) -> Iterator[Result]:
    """An ffmpeg that never ends is ended, its source is listed; `--retry-failed` alone brings it in."""
    folder = site.dest("hang")
    videos, flag, wrapper = folder / "videos", folder / "flag", folder / "ffmpeg"
    (videos / "a").mkdir(parents=True)
    good = sorted(path for path in site.videos.glob("*/*.mp4") if "scene" in path.name)[:4]
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


def retries_killed(site: Site) -> Iterator[Result]:
    """A source is mended; `--retry-failed` is killed in the middle, and run again."""
    for title, settings in (("", ()), (" of segments", ("--set", "longest_seconds=0.5"))):
        folder = site.dest("retried")
        videos, dest, whole = folder / "videos", folder / "dest", folder / "whole"
        shutil.copytree(site.videos, videos)
        run(command(videos, whole, *settings))
        good = sorted(videos.glob("*/scene-*.mp4"))[3]
        data = good.read_bytes()
        good.write_bytes(data[:100])
        run(command(videos, dest, *settings))
        good.write_bytes(data)
        draws = random.Random(site.seed + 2)
        problems = []
        for _ in range(6):
            process = start(command(videos, dest, "--retry-failed", *settings))
            time.sleep(draws.uniform(0.5, 1.5) * site.seconds / 2)
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


def file_sizes(site: Site) -> Iterator[Result]:
    """RLIMIT_FSIZE: a write fails in the middle of a file, in our processes and in ffmpeg."""
    largest = max(path.stat().st_size for path in site.whole.iterdir())
    for limit in (500, 2500, 5000, largest // 3, largest - 1):
        yield at_limit(site, limit)


def at_limit(site: Site, limit: int) -> Result:
    """A build that may write no file of more bytes than this."""
    launcher = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    launcher += "os.execv(sys.argv[2], sys.argv[2:])"
    dest = site.dest(f"limit-{limit}")
    ended = run([sys.executable, "-c", launcher, str(limit), *command(site.videos, dest)])
    expected = f"status 1, “{_NO_ROOM}”; it goes on to the same bytes"
    return _after(site, dest, f"files of at most {limit} bytes", expected, ended, 1, _NO_ROOM)


_NO_SPACE = """\
import errno, os
_replace = os.replace
def replace(old, new, **more):
    if os.environ["VMAE_SOAK_FULL"] in os.fspath(new):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), new)
    return _replace(old, new, **more)
os.replace = replace
"""


def no_space(site: Site) -> Iterator[Result]:
    """ENOSPC where a file is given its name, for each kind of file."""
    folder = site.dest("patch")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_NO_SPACE)
    names = ["plan.arrow", "plan.json", ".staged.json", ".mp4", "shard-000001.tar", "shard-000001.json"]
    for name in (*names, "failures.jsonl", "samples.arrow", "index.json"):
        dest = site.dest("full")
        path = os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))
        ended = run(command(site.videos, dest), PYTHONPATH=path, VMAE_SOAK_FULL=name)
        expected = f"status 1, “{_NO_ROOM}”; it goes on to the same bytes"
        yield _after(site, dest, f"no space left for {name}", expected, ended, 1, _NO_ROOM)


def small_disk(site: Site) -> Iterator[Result]:
    """A real file system that fills up, and is then made larger."""
    total = sum(path.stat().st_size for path in site.whole.iterdir())
    for share in (0.02, 0.3, 0.7, 1.0):
        name, expected = f"a disk of {share:.0%} of the shards", f"status 1, “{_NO_ROOM}”; it goes on to the same bytes"
        disk = site.dest("disk")
        disk.mkdir()
        size = max(8192, int(total * share)) // 4096 * 4096
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            yield Result(name, "skipped: mounting is not allowed here", expected, True)
            return
        try:
            ended = run(command(site.videos, disk / "dest"))
            subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
            yield _after(site, disk / "dest", name, expected, ended, 1, _NO_ROOM)
        finally:
            subprocess.run(["umount", disk], check=True)


def two_builds(site: Site) -> Iterator[Result]:
    dest = site.dest("two")
    builds = [start(command(site.videos, dest)) for _ in range(2)]
    said = [build.communicate(timeout=600)[1].strip() for build in builds]
    status = sorted(build.returncode for build in builds)
    right = status == [0, 1] and any("another build is writing here" in words for words in said)
    right = right and digests(dest) == digests(site.whole) and not left_over()
    expected = "one is refused, the other gives the undisturbed build's bytes"
    yield Result("two builds into one destination", expected if right else f"status {status}: {said}", expected, right)


_AS_ANOTHER = [
    ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"],
    # Where another user can't reach the interpreter: root, but bound by files' modes as everybody is.
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"],
]
_START_ANOTHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import vmae_data'], check=True)"


def _switch() -> list[str] | None:
    """What starts a command as somebody who may not read every file; None where nothing does."""
    if os.geteuid() != 0:
        return []
    for words in _AS_ANOTHER:
        with contextlib.suppress(OSError):
            if (
                subprocess.run(
                    [*words, sys.executable, "-c", _START_ANOTHER], capture_output=True, check=False
                ).returncode
                == 0
            ):
                return words
    return None


def no_permission(site: Site) -> Iterator[Result]:
    """Files and folders without permission, for a user who is not almighty."""
    switch = _switch()
    if switch is None:
        yield Result("no permission", "skipped: can't be run as another user here", "", True)
        return
    folder = site.dest("rights")
    videos, closed = folder / "videos", folder / "closed"
    (videos / "a").mkdir(parents=True)
    for path in (site.folder, folder.parent, folder):
        path.chmod(0o755)
    good = sorted(site.videos.glob("*/scene-*.mp4"))[:2]
    for path in good:
        shutil.copy(path, videos / "a")
    (videos / "a" / good[0].name).chmod(0)
    (folder / "out").mkdir()
    if switch is _AS_ANOTHER[0]:
        os.chown(folder / "out", _NOBODY, _NOBODY)
    failures = folder / "out" / "failures.jsonl"
    ended = run([*switch, *command(videos, folder / "out")])
    lines = failures.read_text() if failures.exists() else ""
    right = ended.status == 0 and lines.count("\n") == 1 and '"unreadable"' in lines and "Permission denied" in lines
    expected = "failure unreadable “Permission denied”, the other one made"
    yield Result("a file without permission", expected if right else f"{ended} {lines}", expected, right)
    (videos / "b").mkdir(mode=0)
    ended = run([*switch, *command(videos, folder / "out")])
    right = ended.status == 2 and "videos/b: can't be read (Permission denied)" in ended.words
    expected = "status 2, names the folder"
    yield Result("a folder without permission", expected if right else str(ended), expected, right)
    (videos / "b").rmdir()
    closed.mkdir(mode=0o555)
    for name in (closed, closed / "new"):
        ended = run([*switch, *command(videos, name)])
        right = ended.status == 1 and "closed" in ended.words and "Permission denied" in ended.words
        right = right and "\n" not in ended.words
        expected = "status 1, one line that names the folder"
        title = "a destination" if name == closed else "a destination's folder"
        yield Result(f"{title} without permission", expected if right else str(ended), expected, right)


def link_loop(site: Site) -> Iterator[Result]:
    """Folders that link to each other: every video once."""
    folder = site.dest("loop")
    (folder / "videos" / "a").mkdir(parents=True)
    shutil.copy(sorted(site.videos.glob("*/scene-*.mp4"))[0], folder / "videos" / "a")
    (folder / "videos" / "a" / "up").symlink_to("..")
    (folder / "videos" / "b").symlink_to("a")
    ended = run([*command(folder / "videos", folder / "out"), "--json"])
    samples = json.loads((folder / "out" / INDEX).read_text())["samples"] if ended.status == 0 else ended.words
    expected = "the video once"
    yield Result("folders that link in a loop", expected if samples == 1 else f"{samples}", expected, samples == 1)


FAULTS = (two_builds, signals, hang, retries_killed, file_sizes, no_space, small_disk, no_permission, link_loop, kills)
