"""Our commands, run as a person runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any


def command_line(*arguments: str | Path) -> list[str]:
    """`vmae_data` or `vmae_train` and its arguments, as a process of its own."""
    return [sys.executable, "-m", f"{arguments[0]}.cli", *map(str, arguments[1:])]


def run_command(*arguments: str | Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run to the end and look at the exit status."""
    done = subprocess.run(command_line(*arguments), capture_output=True, text=True, timeout=240, check=False, **options)
    assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done
