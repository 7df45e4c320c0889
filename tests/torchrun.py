"""Commands that torchrun starts. A time limit turns a hang into a failure."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from vmae_train.runs.log import read_log

__all__ = ["HANGS_SECONDS", "needs_deepspeed", "process_of_rank", "run_torchrun", "torchrun", "wait_for_lines"]

HANGS_SECONDS = 120

needs_deepspeed = pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")


def torchrun(processes: int, module: str, *arguments: str | Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return [*launcher, "-m", module, *map(str, arguments)]


def run_torchrun(
    processes: int, module: str, *arguments: str | Path, status: int = 0, limit: float = HANGS_SECONDS
) -> subprocess.CompletedProcess[str]:
    """Run with a time limit: a hang is a failure."""
    command = torchrun(processes, module, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def wait_for_lines(process: subprocess.Popen[Any], run: Path, lines: int) -> None:
    """Until the log of a run has this many steps, or its launcher ends."""
    until = time.monotonic() + HANGS_SECONDS
    while len(read_log(run, "train")) < lines and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)


def process_of_rank(launcher: int, rank: int) -> int:
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    raise AssertionError(f"no process of rank {rank}")
