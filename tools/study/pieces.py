"""Pieces of a study: commands with what they need, run once each, several at a time, and not again when they are done."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.storage import commit_bytes

__all__ = ["Done", "Piece", "in_order", "is_done", "overview", "parse_seeds", "read_done", "run_pieces"]


SCRIPTS = Path(sys.executable).parent


class Piece(NamedTuple):
    """One command. `out` is the folder or file that it writes, `minutes` the CPU time it is expected to take."""

    name: str
    words: tuple[str, ...]
    out: Path
    minutes: float
    needs: tuple[Piece, ...] = ()


class Done(msgspec.Struct, frozen=True):
    """The record of a piece that has ended well: written last, so without it the command runs again and resumes."""

    words: tuple[str, ...]
    cpu_seconds: float


def parse_seeds(text: str) -> tuple[int, ...]:
    """Numbers between commas, without repeats. Raises ValueError for other text."""
    return tuple(dict.fromkeys(int(part) for part in text.split(",")))


def in_order(pieces: Iterable[Piece]) -> list[Piece]:
    """Each piece once, after all that it needs."""
    ordered: dict[Piece, None] = {}
    for piece in pieces:
        ordered |= dict.fromkeys((*in_order(piece.needs), piece))
    return list(ordered)


def read_done(folder: Path, piece: Piece) -> Done | None:
    """The record of a piece with these very words; None if there is none, or if what it wrote is gone."""
    try:
        done = msgspec.json.decode(_record(folder, piece).read_bytes(), type=Done)
    except FileNotFoundError:
        return None
    return done if done.words == piece.words and piece.out.exists() else None


def is_done(folder: Path, piece: Piece) -> bool:
    return read_done(folder, piece) is not None


def overview(folder: Path, pieces: Sequence[Piece]) -> str:
    """A line for each piece: done or not, CPU minutes measured or estimated; and what remains."""
    lines, spent, left = [], 0.0, 0.0
    for piece in pieces:
        done = read_done(folder, piece)
        minutes = piece.minutes if done is None else done.cpu_seconds / 60
        spent, left = (spent, left + minutes) if done is None else (spent + minutes, left)
        lines.append(f"{'to do' if done is None else 'done':5} {minutes:7.1f}  {piece.name}")
    remaining = sum(line.startswith("to do") for line in lines)
    lines.append(f"{len(pieces)} pieces: {spent:.0f} CPU minutes spent, {remaining} pieces of about {left:.0f} remain")
    return "\n".join(lines)


def run_pieces(folder: Path, pieces: Sequence[Piece], workers: int) -> None:
    """Run what is not done, `workers` commands at a time. Each command is printed as a person would type it.

    After a failure no other piece starts. Exits with its status when those that run have ended.
    """
    finished = {piece for piece in pieces if is_done(folder, piece)}
    pending = [piece for piece in pieces if piece not in finished]
    commands = _Commands(folder, len(pending))
    running: dict[Future[int], Piece] = {}
    status = 0
    with ThreadPoolExecutor(workers) as pool:
        try:
            while running or (pending and not status):
                ready = [piece for piece in pending if finished.issuperset(piece.needs)]
                for piece in ready[: 0 if status else workers - len(running)]:
                    pending.remove(piece)
                    running[pool.submit(commands.run, piece)] = piece
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    piece = running.pop(future)
                    finished.add(piece)
                    status = status or future.result()
        except BaseException:
            commands.stop()
            raise
    if status:
        sys.exit(status)


class _Commands:
    """The commands that run now."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._count = folder, count
        self._started = 0
        self._stopped = False
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def run(self, piece: Piece) -> int:
        """Run a command to its end, and record it if its status is 0. Returns the status."""
        program, *rest = piece.words
        path = sys.executable if program == "python" else str(SCRIPTS / program)
        piece.out.parent.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        with self._lock:
            if self._stopped:
                return 143
            self._started += 1
            print(f"\n[{self._started}/{self._count}] $ {shlex.join(piece.words)}", file=sys.stderr, flush=True)
            process = subprocess.Popen([path, *rest], env=environment)
            self._running[process.pid] = process
        _, ended, usage = os.wait4(process.pid, 0)
        with self._lock:
            del self._running[process.pid]
        code = os.waitstatus_to_exitcode(ended)
        process.returncode = code
        if code == 0:
            done = Done(piece.words, usage.ru_utime + usage.ru_stime)
            record = _record(self._folder, piece)
            record.parent.mkdir(parents=True, exist_ok=True)
            commit_bytes(record, msgspec.json.encode(done))
        return code if code >= 0 else 128 - code

    def stop(self) -> None:
        """End the commands: a training saves a checkpoint first."""
        with self._lock:
            self._stopped = True
            for process in self._running.values():
                process.terminate()


def _record(folder: Path, piece: Piece) -> Path:
    return folder / "done" / f"{piece.name}.json"
