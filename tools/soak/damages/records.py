"""What a damage is, and what a build must make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tools.soak.damages.clips import FRAMES, Bench

__all__ = ["Damage", "Outcome", "failed", "made"]


class Outcome(NamedTuple):
    """Made (no reason) or a failure with this reason; `words` stand in a remark or in the failure's detail."""

    reason: str = ""
    words: str = ""
    frames: range = range(FRAMES, FRAMES + 1)  # how many of the source's frames may have been decoded
    size: tuple[int, int] | None = None
    right: bool = True  # the kept frames are looked at and must be those that their numbers say

    def told(self) -> str:
        """For people, one line."""
        words = f" “{self.words}”" if self.words else ""
        if self.reason:
            return f"failure `{self.reason}`{words}"
        return (
            "made"
            + (f", with the remark{words}" if words else "")
            + (f", {self.size[0]} × {self.size[1]}" if self.size else "")
        )


def made(
    words: str = "", *, frames: int | range = FRAMES, size: tuple[int, int] | None = None, right: bool = True
) -> Outcome:
    return Outcome("", words, range(frames, frames + 1) if isinstance(frames, int) else frames, size, right)


def failed(reason: str, words: str = "") -> Outcome:
    return Outcome(reason, words)


class Damage(NamedTuple):
    """One source of the table. `make` writes it at a path that is not there yet; any of `expected` will do."""

    group: str
    name: str
    make: Callable[[Bench, Path], None]
    expected: tuple[Outcome, ...]
    suffix: str = ".mp4"
    file: bytes = b""  # its name, where the name is the damage
    fast: bool = False  # belongs to the subset that the tests build
    real: bool = False
