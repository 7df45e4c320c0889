"""Row 12. Sample facts and a draw → which frames make a clip. Numbers only, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from vmae_data.draws import Draw, Purpose
from vmae_data.errors import MisuseError
from vmae_data.format import Index
from vmae_data.read.shards import SampleView
from vmae_data.read.stream import ClipFrames, Sampler

__all__ = ["ClipSpec", "ExactStride", "Frozen", "SpacedViews", "kept_step"]


class ClipSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which frames make a clip: `stride` counts source frames, `rate` frames a second (of shards built by rate).

    `frozen` repeats one frame, the control that takes all motion away.
    """

    stride: int | None = None  # 4 where no rate is given
    rate: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.stride is not None and self.rate is not None:
            raise ValueError(f"stride = {self.stride}, rate = {self.rate}: give one of the two")
        if self.stride is None and self.rate is None:
            force_setattr(self, "stride", 4)
        if self.stride is not None and self.stride < 1:
            raise ValueError(f"stride = {self.stride}: must be 1 or more")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate = {self.rate}: must be above 0")

    @classmethod
    def of(cls, index: Index) -> ClipSpec:
        """Neighbouring kept frames of a data set."""
        return cls(stride=index.stride) if index.rate is None else cls(rate=float(index.rate))


def kept_step(clip: ClipSpec, index: Index) -> int:
    """The step in kept frames between the frames of a clip.

    Raises MisuseError where the shards don't hold such frames: their stride must divide the clip's,
    or the clip's rate their own.
    """
    if index.rate is not None:
        return _step_by_rate(clip, float(index.rate))
    if clip.stride is None or index.stride is None:
        raise MisuseError(
            f"the recipe asks for {clip.rate:g} frames a second, the shards keep one frame in {index.stride}, "
            "whatever the source's rate: give clip.stride instead, or build shards by rate"
        )
    if clip.stride % index.stride:
        raise MisuseError(
            f"the recipe's stride is {clip.stride} source frames, the shards keep one frame in {index.stride}: "
            f"use a multiple of {index.stride}, or build shards with a stride that divides {clip.stride}"
        )
    return clip.stride // index.stride


def _step_by_rate(clip: ClipSpec, rate: float) -> int:
    if clip.rate is None:
        raise MisuseError(
            f"the recipe's stride is {clip.stride} source frames, the shards keep {rate:g} frames a second of sources "
            f"of any rate: give clip.rate instead, {rate:g} or an integer part of it, or build shards with a stride"
        )
    step = round(rate / clip.rate)
    if step < 1 or not math.isclose(step * clip.rate, rate, rel_tol=1e-6):
        raise MisuseError(
            f"the recipe asks for {clip.rate:g} frames a second, the shards keep {rate:g}: "
            f"use {rate:g}, {rate / 2:g}, {rate / 3:g} …, or build shards at {clip.rate:g}"
        )
    return step


@dataclass(frozen=True)
class ExactStride:
    """A clip of T frames at a fixed stride from a random start, in a random phase of those that were kept;
    a short video repeats its tail.

    The published pretraining rule, on kept frames: the offset never reaches the very last frame
    (VideoMAE kinetics.py:515-556; its `off + 1 + stride < n` counts from 1).
    """

    num_frames: int
    step: int

    def __call__(self, sample: SampleView, draw: Draw) -> ClipFrames:
        phases = len(sample.phase_frames)
        phase = draw.integer(Purpose.PHASE, phases) if phases > 1 else 0
        frames = sample.phase_frames[phase]
        starts = frames - self.num_frames * self.step + 1
        offset = draw.integer(Purpose.FRAMES, starts) if starts > 0 else 0
        return _frames(stride_positions(frames, self.num_frames, self.step, offset)[None], phase)


def stride_positions(frames: int, num_frames: int, step: int, offset: int) -> NDArray[np.int64]:
    """Positions in the kept frames: offset, offset + step, … while another step stays before the last frame."""
    steps = max(0, (frames - 2 - offset) // step)
    return offset + step * np.minimum(np.arange(num_frames), steps)


@dataclass(frozen=True)
class SpacedViews:
    """Evaluation: `num_clips` clips at a fixed stride, evenly spread from the first frame to the last.

    The published dense test rule on kept frames (VideoMAE kinetics.py:141-152); one clip is centred.
    """

    num_frames: int
    step: int
    num_clips: int

    def __call__(self, sample: SampleView, draw: Draw) -> ClipFrames:
        thinned = np.arange(0, sample.frames, self.step)
        spare = max(0, len(thinned) - self.num_frames)
        if self.num_clips == 1:
            starts = [spare // 2]
        else:
            starts = [int(k * (spare / (self.num_clips - 1))) for k in range(self.num_clips)]
        places = np.asarray(starts)[:, None] + np.arange(self.num_frames)[None]
        return _frames(thinned[np.minimum(places, len(thinned) - 1)])


@dataclass(frozen=True)
class Frozen:
    """A control: the clip's middle frame, repeated. Whoever answers from it does not answer from motion."""

    sampler: Sampler

    def __call__(self, sample: SampleView, draw: Draw) -> ClipFrames:
        chosen = self.sampler(sample, draw)
        middle_VT = np.repeat(chosen.index_VT[:, [chosen.index_VT.shape[1] // 2]], chosen.index_VT.shape[1], axis=1)
        return _frames(np.asarray(chosen.decode)[middle_VT], chosen.phase)


def _frames(positions_VT: NDArray[np.int64], phase: int = 0) -> ClipFrames:
    decode, index = np.unique(positions_VT, return_inverse=True)
    return ClipFrames(tuple(int(n) for n in decode), index.reshape(positions_VT.shape), phase)
