"""Our commands, run as a user runs them."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from vmae_data.processes import STOP_SIGNALS


def command_line(*arguments: str | Path) -> list[str]:
    """`vmae_data` or `vmae_train` and its arguments, as a process of its own."""
    return [sys.executable, "-m", f"{arguments[0]}.cli", *map(str, arguments[1:])]


def run_command(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, and check its exit status."""
    done = subprocess.run(command_line(*arguments), capture_output=True, text=True, timeout=240, check=False, **options)
    return _checked(done, status)


def call_command(
    *arguments: str | Path, status: int = 0, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, which saves a start of Python, and check its exit status.

    What the command changes is restored: the environment, the working directory, the handlers of signals.
    """
    words = [str(word) for word in arguments]
    main = importlib.import_module(f"{words[0]}.cli").main
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            patch.object(sys, "argv", words),
            patch.dict(os.environ, env or {}, clear=env is not None),
            contextlib.chdir(cwd or "."),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            restored_handlers(),
        ):
            main()
    except SystemExit as end:
        code = end.code
    assert isinstance(code, int)
    return _checked(subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue()), status)


@contextlib.contextmanager
def restored_handlers() -> Iterator[None]:
    """Around a command in this process: the handlers of signals that it sets are removed."""
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _checked(done: subprocess.CompletedProcess[str], status: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == status, f"{done.args}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
