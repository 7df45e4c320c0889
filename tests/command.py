"""Our commands, run as a user runs them."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch


def command_line(*arguments: str | Path) -> list[str]:
    """`vmae_data` or `vmae_train` and its arguments, as a process of its own."""
    return [sys.executable, "-m", f"{arguments[0]}.cli", *map(str, arguments[1:])]


def run_command(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a process of its own and check its exit status."""
    done = subprocess.run(command_line(*arguments), capture_output=True, text=True, timeout=240, check=False, **options)
    return _checked(done, status)


def call_command(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """`run_command` inside this process. It saves the seconds that a new process needs to import torch."""
    stdout, stderr, handlers = io.StringIO(), io.StringIO(), {n: signal.getsignal(n) for n in _STOP_SIGNALS}
    main, words = import_module(f"{arguments[0]}.cli").main, [str(word) for word in arguments]
    try:
        with redirect_stdout(stdout), redirect_stderr(stderr), patch.object(sys, "argv", words):
            main()
    except SystemExit as ended:
        done = subprocess.CompletedProcess(words, int(ended.code or 0), stdout.getvalue(), stderr.getvalue())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return _checked(done, status)


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def _checked(done: subprocess.CompletedProcess[str], status: int) -> subprocess.CompletedProcess[str]:
    assert done.returncode == status, f"{done.args}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
