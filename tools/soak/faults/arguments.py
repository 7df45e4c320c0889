"""What comes from outside a build: paths that are no files, numbers without bounds, closed streams, hangups."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator

from tools.soak.faults.fault_run import Ended, Result, Workspace, after, command, digests, finished, run, start

__all__ = ["closed_streams", "hangups", "numbers", "special_paths"]

_NUMBERS = {
    "short_side": ("inf", "2" * 30, "8194", "-16"),
    "stride": ("nan", "1e300", "1001", "9" * 5000),
    "longest_seconds": ("inf", "-inf", "1e-300", "1e999"),
    "seed": ("9" * 5000, "-1", f"0x{'f' * 5000}", str(2**63)),
    "samples_per_shard": ("0", "1e9", "[" * 20_000, "{a=" * 20_000),
}
_CLOSED = ("0<&-", "1>&-", "2>&-", "1>&- 2>&-", "0<&- 1>&- 2>&-", "2>/dev/full")


def special_paths(workspace: Workspace) -> Iterator[Result]:
    """A pipe, a socket, a device and a folder for each file that a build reads."""
    folder, dest = workspace.dest("special"), workspace.dest("special-dest")
    (folder / "folder.toml").mkdir(parents=True)
    os.mkfifo(folder / "pipe.toml")
    for name, device in (("zero", "/dev/zero"), ("tty", "/dev/ptmx")):
        (folder / f"{name}.toml").symlink_to(device)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.toml"))
        for name in ("pipe", "socket", "zero", "tty", "folder"):
            wrong = []
            for option in ("--recipe", "--annotations", "--exclude", "--classes", "--ffmpeg"):
                ended = run(command(workspace.videos, dest, option, str(folder / f"{name}.toml")))
                if not _is_refused(ended, f"{name}.toml") or dest.exists():
                    wrong.append(f"{option}: {ended}")
            yield _result(f"{name} as a file", "status 2, one line that names it", wrong)


def numbers(workspace: Workspace) -> Iterator[Result]:
    dest = workspace.dest("numbers")
    for key, values in _NUMBERS.items():
        wrong = []
        for value in values:
            ended = run(command(workspace.videos, dest, "--set", f"{key}={value}"))
            if not _is_refused(ended, key) or len(ended.words) > 300 or dest.exists():
                wrong.append(f"{value[:20]}: {ended}")
        yield _result(f"{key} out of bounds", "status 2, one short line that names it", wrong)


def closed_streams(workspace: Workspace) -> Iterator[Result]:
    for number, streams in enumerate(_CLOSED):
        dest = workspace.dest(f"closed-{number}")
        words = [word for word in command(workspace.videos, dest) if word != "--quiet"]
        status = run(["sh", "-c", f'exec "$@" {streams}', "sh", *words]).status
        right = status == 0 and digests(dest) == digests(workspace.undisturbed)
        yield _result(f"streams {streams}", "the bytes of the undisturbed build", [] if right else [f"status {status}"])


def hangups(workspace: Workspace) -> Iterator[Result]:
    """SIGHUP to the process, to its group as a terminal sends it, and under nohup."""
    for name, ignored, to_group in (("process", False, False), ("group", False, True), ("nohup", True, True)):
        dest = workspace.dest(f"hangup-{name}")
        signals = "--ignore-signal=HUP" if ignored else "--default-signal=HUP"
        process = start(["setsid", "env", signals, *command(workspace.videos, dest)])
        while len(finished(dest)) < 5 and process.poll() is None:
            time.sleep(0.01)
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGHUP)
        _, stderr = process.communicate(timeout=600)
        ended = Ended(process.returncode, stderr.strip())
        if ignored:
            right = ended.status == 0 and digests(dest) == digests(workspace.undisturbed)
            yield _result("SIGHUP under nohup", "the bytes of the undisturbed build", [] if right else [str(ended)])
        else:
            expected = "status 129, one line, no process left; it resumes to the same bytes"
            yield after(workspace, dest, f"SIGHUP to the {name}", expected, ended, 129, "")


def _is_refused(ended: Ended, named: str) -> bool:
    return ended.status == 2 and "\n" not in ended.words and named in ended.words


def _result(name: str, expected: str, wrong: list[str]) -> Result:
    return Result(name, "; ".join(wrong) or expected, expected, not wrong)
