"""Servers for tests: free ports on loopback, and processes that end when the tests end for any reason."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from vmae_data.processes import die_with_parent

START_SECONDS = 60
STARTS = 3


def free_ports(count: int) -> list[int]:
    """Ports that are free now; another process may take one a moment later, so a start is retried."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for unbound in sockets:
            unbound.bind(("127.0.0.1", 0))
        return [bound.getsockname()[1] for bound in sockets]


@contextlib.contextmanager
def running(
    command: list[str], folder: Path, answers: Callable[[], None], environment: Mapping[str, str] | None = None
) -> Iterator[bool]:
    """A server process in a folder, its output in `server.log`. Gives whether `answers` stopped raising in time."""
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **(environment or {})},
            preexec_fn=functools.partial(die_with_parent, os.getpid()),
        )
    try:
        yield _in_time(process, answers)
    finally:
        process.kill()
        process.wait()


def _in_time(process: subprocess.Popen[bytes], answers: Callable[[], None]) -> bool:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(Exception):  # refused, 5xx, missing: all mean not yet
            answers()
            return True
        time.sleep(0.1)
    return False


def never_started(name: str, folder: Path) -> RuntimeError:
    """The error after `STARTS` tries."""
    log = (folder / "server.log").read_text(errors="replace")[-2000:]
    return RuntimeError(f"{name} did not start in {STARTS} tries of {START_SECONDS} s: {log}")
