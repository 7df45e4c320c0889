"""A damaged source, and the outcomes that a build of it may have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.soak.damages.clips import FRAMES, Bench

__all__ = ["LUMA", "RECIPE", "Damage", "Outcome", "built", "failed"]

RECIPE = ("stride=2", "crf=18", "short_side=32")
# Filters by which ffmpeg alone makes what a build makes. ffmpeg turns pictures upright before them.
LUMA = "scale=WxH:flags=bicubic+accurate_rnd:out_color_matrix=bt709:out_range=tv,format=yuv420p,extractplanes=y"


class Outcome(NamedTuple):
    """Built (no `reason`), or a failure with this reason. `words` are part of a note or of the failure's detail."""

    reason: str = ""
    words: str = ""
    frames: range = range(FRAMES, FRAMES + 1)  # allowed numbers of decoded source frames
    size: tuple[int, int] | None = None
    right: bool = True  # the kept frames are compared with the pictures that their numbers stand for
    luma: str = ""  # filters by which ffmpeg alone makes the luma of all frames; WxH stands for the size
    kept: Sequence[int] | None = None  # the numbers of the kept frames
    profile: str = ""  # by which it is encoded
    rate: str = ""  # of the source, in frames a second
    track: int = 0  # the video track that is built

    def text(self) -> str:
        """One line of docs/damages.md."""
        words = f" “{self.words}”" if self.words else ""
        if self.reason:
            return f"failure `{self.reason}`{words}"
        return (
            "built"
            + (f", with the note{words}" if words else "")
            + (f", {self.size[0]} × {self.size[1]}" if self.size else "")
            + (f", every {self.kept.step}th frame" if isinstance(self.kept, range) else "")
            + (f", {self.rate} frames a second" if self.rate else "")
            + (f", as `{self.profile}`" if self.profile else "")
        )


def built(
    words: str = "",
    *,
    frames: int | range = FRAMES,
    size: tuple[int, int] | None = None,
    right: bool = True,
    luma: str = LUMA,
    kept: Sequence[int] | None = None,
    profile: str = "",
    rate: str = "",
    track: int = 0,
) -> Outcome:
    numbers = range(frames, frames + 1) if isinstance(frames, int) else frames
    return Outcome("", words, numbers, size, right, luma, kept, profile, rate, track)


def failed(reason: str, words: str = "") -> Outcome:
    return Outcome(reason, words)


class Damage(NamedTuple):
    """One source of the table. `make` writes it to a new path. Any outcome of `expected` is right."""

    group: str
    name: str
    make: Callable[[Bench, Path], None]
    expected: tuple[Outcome, ...]
    suffix: str = ".mp4"
    file: bytes = b""  # its name, if the name is the damage
    fast: bool = False  # in the subset that the tests build
    recipe: tuple[str, ...] = RECIPE
