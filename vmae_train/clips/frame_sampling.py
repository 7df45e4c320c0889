"""A sample's facts and an rng → the frames of its clips. Numbers only, no torch.

V views of a video, T frames of a clip, K kept frames.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.format import Index, Rational, expand_series
from vmae_data.read.dataset import SampleView
from vmae_data.read.stream import ClipFrames, Sampler
from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose, Rng, bits, integer

__all__ = [
    "ClipSpec",
    "DenseSampler",
    "Spacing",
    "StrideSampler",
    "TemporalViews",
    "UniformSampler",
    "kept_step",
    "stride_positions",
    "train_sampler",
    "view_sampler",
]


class Spacing(NamedTuple):
    """How the frames of a video were thinned, as an index says it: by `stride` in source frames, or by `rate`."""

    stride: int | None = 1
    rate: Rational | None = None


class ClipSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which frames make a clip: `stride` in source frames, or `rate` in frames per second (shards built by rate).

    `stride = "kept"` takes consecutive kept frames, so each of several data sets has the spacing it was built with.

    `sampler`: `stride` is pretraining's exact stride. `dense` spreads a clip over num_frames × stride source frames, as
    published finetuning does (so 16 frames are 64 / 15 frames apart, not 4). `uniform` (TSN) takes one frame of each of
    num_frames equal segments of the video. `short_videos`: how `uniform` fills a clip from fewer frames than it needs.
    The original (`v1`) repeats the first frame 16 times; VideoMAEv2 (`v2`) repeats the first, then takes all.
    `frozen` repeats one frame: a control without motion.
    """

    # exact stride, spread over num_frames × stride, or spread over the video
    sampler: Literal["stride", "dense", "uniform"] = "stride"
    short_videos: Literal["v1", "v2"] = "v2"  # how `uniform` fills clips of too few frames

    stride: int | Literal["kept"] | None = None  # 4 if no rate is given
    rate: float | None = None  # frames per second, in place of `stride`
    frozen: bool = False  # repeat one frame: a control without motion

    def __post_init__(self) -> None:
        if self.stride is not None and self.rate is not None:
            raise ValueError(f"stride = {self.stride}, rate = {self.rate}: set exactly one of the two")
        if self.stride is None and self.rate is None:
            force_setattr(self, "stride", 4)
        check_bounds(self, rate=(0.001, 1000), **({"stride": (1, 1_000_000)} if self.stride != "kept" else {}))

    def resolve(self, index: Index | Spacing) -> ClipSpec:
        """The same in numbers, for one data set: "kept" becomes the stride or rate that it was built with."""
        if self.stride != "kept":
            return self
        if index.rate is not None:
            return msgspec.structs.replace(self, stride=None, rate=float(index.rate))
        return msgspec.structs.replace(self, stride=index.stride)


def kept_step(clip: ClipSpec, index: Index | Spacing) -> int:
    """The step in kept frames between the frames of a clip.

    Raises MisuseError if the shards do not hold such frames: their stride must divide the clip's, or the clip's rate
    must divide theirs.
    """
    if clip.stride == "kept":
        return 1
    if index.rate is not None:
        return _step_by_rate(clip, float(index.rate))
    if clip.stride is None or index.stride is None:
        raise MisuseError(
            f"the recipe asks for {clip.rate:g} frames a second, the shards keep one frame in {index.stride} at any "
            "frame rate of the source. Give clip.stride instead, or build shards by rate"
        )
    if clip.stride % index.stride:
        raise MisuseError(
            f"the recipe's stride is {clip.stride} source frames, the shards keep one frame in {index.stride}. "
            f"Use a multiple of {index.stride}, or build shards with a stride that divides {clip.stride}"
        )
    return clip.stride // index.stride


def _step_by_rate(clip: ClipSpec, rate: float) -> int:
    if clip.rate is None:
        raise MisuseError(
            f"the recipe's stride is {clip.stride} source frames, the shards keep {rate:g} frames a second at any "
            f"frame rate of the source. Give clip.rate instead ({rate:g} divided by an integer), or build shards with "
            "a stride"
        )
    step = round(rate / clip.rate)
    if step < 1 or not math.isclose(step * clip.rate, rate, rel_tol=1e-6):
        raise MisuseError(
            f"the recipe asks for {clip.rate:g} frames a second, the shards keep {rate:g}. "
            f"Use {rate:g}, {rate / 2:g}, {rate / 3:g} …, or build shards at {clip.rate:g}"
        )
    return step


def train_sampler(clip: ClipSpec, index: Index | Spacing, num_frames: int, *, centre: bool = False) -> Sampler:
    """The sampler of a recipe for a data set; `centre` takes the clip in the middle, for validation during training.

    Raises MisuseError if the shards do not hold such frames.
    """
    clip, by_source = clip.resolve(index), index.rate is None
    sampler: Sampler
    if clip.sampler == "uniform":
        sampler = UniformSampler(num_frames, 1 if centre else None, clip.short_videos, by_source)
    elif clip.sampler == "dense":
        # kept_step refuses a recipe by rate on shards by stride.
        stride = clip.stride if by_source and isinstance(clip.stride, int) else kept_step(clip, index)
        sampler = DenseSampler(num_frames, stride, centre, by_source)
    elif centre:
        sampler = TemporalViews(num_frames, kept_step(clip, index), 1)
    else:
        sampler = StrideSampler(num_frames, kept_step(clip, index))
    return partial(_frozen, sampler) if clip.frozen else sampler


def view_sampler(clip: ClipSpec, index: Index | Spacing, num_frames: int, num_clips: int) -> Sampler:
    """The sampler of an evaluation with `num_clips` clips per video. Raises MisuseError as `train_sampler` does."""
    if clip.sampler == "dense" and num_clips == 1:
        return train_sampler(clip, index, num_frames, centre=True)
    sampler: Sampler
    if clip.sampler == "uniform":
        sampler = UniformSampler(num_frames, num_clips, by_source=index.rate is None)
    else:
        sampler = TemporalViews(num_frames, kept_step(clip, index), num_clips)
    return partial(_frozen, sampler) if clip.frozen else sampler


def _frozen(sampler: Sampler, sample: SampleView, rng: Rng) -> ClipFrames:
    """A control: the clip's middle frame, repeated. A model that scores well on it does not rely on motion."""
    clip = sampler(sample, rng)
    num_frames = clip.index_VT.shape[1]
    middle_VT = np.repeat(clip.index_VT[:, [num_frames // 2]], num_frames, axis=1)
    return _clip_frames(np.asarray(clip.decode)[middle_VT], clip.phase)


@dataclass(frozen=True)
class StrideSampler:
    """A clip of T frames at an exact stride, from a random start in a random phase of the kept ones.

    A short video repeats its tail. The published pretraining rule, on kept frames: the offset never reaches the very
    last frame (VideoMAE kinetics.py:515-556; its `off + 1 + stride < n` counts from 1).
    """

    num_frames: int
    step: int

    def __call__(self, sample: SampleView, rng: Rng) -> ClipFrames:
        phases = len(sample.phase_frames)
        phase = rng.integer(Purpose.PHASE, phases) if phases > 1 else 0
        frames = sample.phase_frames[phase]
        starts = frames - self.num_frames * self.step + 1
        offset = rng.integer(Purpose.FRAMES, starts) if starts > 0 else 0
        return _clip_frames(stride_positions(frames, self.num_frames, self.step, offset)[None], phase)


def stride_positions(frames: int, num_frames: int, step: int, offset: int) -> NDArray[np.int64]:
    """Positions in the kept frames: offset, offset + step, … while another step stays before the last frame."""
    steps = max(0, (frames - 2 - offset) // step)
    return offset + step * np.minimum(np.arange(num_frames), steps)


@dataclass(frozen=True)
class TemporalViews:
    """Evaluation: `num_views` clips at an exact stride, spread evenly from the first frame to the last.

    The published dense test rule on kept frames (VideoMAE kinetics.py:141-152); a single clip is central.
    """

    num_frames: int
    step: int
    num_views: int

    def __call__(self, sample: SampleView, rng: Rng) -> ClipFrames:
        thinned = np.arange(0, sample.frames, self.step)
        spare = max(0, len(thinned) - self.num_frames)
        if self.num_views == 1:
            starts = [spare // 2]
        else:
            starts = [int(k * (spare / (self.num_views - 1))) for k in range(self.num_views)]
        index_VT = np.asarray(starts)[:, None] + np.arange(self.num_frames)[None]
        return _clip_frames(thinned[np.minimum(index_VT, len(thinned) - 1)])


@dataclass(frozen=True)
class DenseSampler:
    """T frames spread over T × stride frames, at a random position or (`centre`) in the middle.

    The published dense rule of finetuning (VideoMAE kinetics.py:251-272; the central one: VideoMAEv2
    dataset/datasets.py). Both ends are reached, so the spacing is T × stride / (T - 1).
    """

    num_frames: int
    stride: int
    centre: bool = False
    by_source: bool = True

    def __call__(self, sample: SampleView, rng: Rng) -> ClipFrames:
        kept_K, length = _timeline(sample, self.by_source)
        span = self.num_frames * self.stride
        if length <= span:
            count = length // self.stride
            tail = np.full(self.num_frames - count, float(length))
            target_T = np.concatenate([np.linspace(0, length, count), tail]).clip(0, length - 1)
        else:
            stop = span + rng.integer(Purpose.FRAMES, length - span)
            if self.centre:
                stop = (span + length) // 2
            target_T = np.linspace(stop - span, stop, self.num_frames).clip(stop - span, stop - 1)
        return _clip_frames(_nearest(kept_K, target_T.astype(np.int64))[None])


@dataclass(frozen=True)
class UniformSampler:
    """One frame of each of T equal segments of the video (TSN).

    `num_views` None: a random frame of each segment (VideoMAE ssv2.py:250-263; `short_videos` as in `ClipSpec`).
    1: the frame in the middle of each. View s of S > 1: frames int(s × tick / S + tick × i), where tick = length / T.
    Two views are the published two-phase test (VideoMAE ssv2.py:238-248); any number is VideoMAEv2's form of it.
    """

    num_frames: int
    num_views: int | None = None
    short_videos: Literal["v1", "v2"] = "v2"
    by_source: bool = True

    def __call__(self, sample: SampleView, rng: Rng) -> ClipFrames:
        kept_K, length = _timeline(sample, self.by_source)
        if self.num_views is None:
            target_VT = self._random(length, rng)[None]
        elif self.num_views == 1:
            target_VT = self._view(length, 1, 2)[None]
        else:
            target_VT = np.stack([self._view(length, view, self.num_views) for view in range(self.num_views)])
        return _clip_frames(_nearest(kept_K, target_VT))

    def _random(self, length: int, rng: Rng) -> NDArray[np.int64]:
        segment = length // self.num_frames
        number_T = np.arange(self.num_frames)
        if segment:
            return number_T * segment + integer(bits(*rng, Purpose.FRAMES, number_T), segment)
        if self.short_videos == "v1":
            return np.zeros_like(number_T)
        return np.maximum(0, number_T - (self.num_frames - length))

    def _view(self, length: int, view: int, num_views: int) -> NDArray[np.int64]:
        tick = length / self.num_frames
        return (view * tick / num_views + tick * np.arange(self.num_frames)).astype(np.int64)


def _timeline(sample: SampleView, by_source: bool) -> tuple[NDArray[np.int64], int]:
    """Positions of the kept frames of a video or segment, and its length.

    Counted in source frames, or (shards built by rate) in kept ones, which are evenly spaced in time.
    """
    if not by_source:
        return np.arange(sample.frames), sample.frames
    kept_K = np.asarray(expand_series(sample.kept), dtype=np.int64)
    step = int(np.diff(kept_K).max()) if len(kept_K) > 1 else sample.source_frames
    if kept_K[0] == 0 and 0 < sample.source_frames - kept_K[-1] <= step:
        return kept_K, sample.source_frames  # the complete source has its published length
    # A segment counts as a video of its own. Nothing records its end: it ends where the last kept frame stops being the
    # nearest one.
    kept_K -= kept_K[0]
    beyond = int(np.median(np.diff(kept_K))) // 2 if len(kept_K) > 1 else 0
    return kept_K, int(kept_K[-1]) + beyond + 1


def _nearest(kept_K: NDArray[np.int64], target: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the kept frame nearest to each target frame; ties take the earlier one."""
    above = np.searchsorted(kept_K, target).clip(0, len(kept_K) - 1)
    below = np.maximum(above - 1, 0)
    is_below = np.abs(target - kept_K[below]) <= np.abs(kept_K[above] - target)
    return np.where(is_below, below, above)


def _clip_frames(positions_VT: NDArray[np.int64], phase: int = 0) -> ClipFrames:
    decode, index = np.unique(positions_VT, return_inverse=True)
    return ClipFrames(tuple(int(n) for n in decode), index.reshape(positions_VT.shape), phase)
