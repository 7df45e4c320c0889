"""Row 12. Sample facts and a draw → which frames make a clip. Numbers only, no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from msgspec.structs import force_setattr
from numpy.typing import NDArray

from vmae_data.errors import MisuseError
from vmae_data.format import Index, expand_series
from vmae_data.read.dataset import SampleView
from vmae_data.read.stream import ClipFrames, Sampler
from vmae_data.rng import Purpose, Rng

__all__ = [
    "ClipSpec",
    "DenseClip",
    "ExactStride",
    "Frozen",
    "SpacedViews",
    "UniformClip",
    "UniformViews",
    "kept_step",
    "train_sampler",
    "view_sampler",
]


class ClipSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which frames make a clip: `stride` counts source frames, `rate` frames a second (of shards built by rate).

    `stride = "kept"` takes neighbouring kept frames, so each of several data sets has the spacing it was built with.

    `sampler`: `stride` is pretraining's exact stride; `dense` spreads a clip's frames over num_frames × stride
    source frames, as published finetuning does (so 16 frames lie 64 / 15 apart, not 4); `uniform` (TSN) takes one
    frame of each of num_frames equal parts of the video. What `uniform` makes of a video with fewer frames than a
    clip differs between the original (`v1`: its first frame, 16 times) and VideoMAEv2 (`v2`: the first repeated,
    then all). `frozen` repeats one frame, the control that takes all motion away.
    """

    sampler: Literal["stride", "dense", "uniform"] = "stride"
    short_videos: Literal["v1", "v2"] = "v2"

    stride: int | Literal["kept"] | None = None  # 4 where no rate is given
    rate: float | None = None
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.stride is not None and self.rate is not None:
            raise ValueError(f"stride = {self.stride}, rate = {self.rate}: give one of the two")
        if self.stride is None and self.rate is None:
            force_setattr(self, "stride", 4)
        if isinstance(self.stride, int) and self.stride < 1:
            raise ValueError(f"stride = {self.stride}: must be 1 or more")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"rate = {self.rate}: must be above 0")

    def on(self, index: Index) -> ClipSpec:
        """The same in numbers, for a data set: "kept" is the stride or rate that it was built with."""
        if self.stride != "kept":
            return self
        if index.rate is not None:
            return msgspec.structs.replace(self, stride=None, rate=float(index.rate))
        return msgspec.structs.replace(self, stride=index.stride)


def kept_step(clip: ClipSpec, index: Index) -> int:
    """The step in kept frames between the frames of a clip.

    Raises MisuseError where the shards don't hold such frames: their stride must divide the clip's,
    or the clip's rate their own.
    """
    if clip.stride == "kept":
        return 1
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


def train_sampler(clip: ClipSpec, index: Index, num_frames: int, *, centre: bool = False) -> Sampler:
    """The sampler of a recipe for a data set; `centre` takes the clip in the middle, for a validation in between.

    Raises MisuseError where the shards don't hold such frames.
    """
    clip, by_source = clip.on(index), index.rate is None
    sampler: Sampler
    if clip.sampler == "uniform":
        sampler = UniformClip(num_frames, centre, clip.short_videos, by_source)
    elif clip.sampler == "dense":
        # A recipe by rate on shards by stride ends in kept_step's refusal.
        stride = clip.stride if by_source and isinstance(clip.stride, int) else kept_step(clip, index)
        sampler = DenseClip(num_frames, stride, centre, by_source)
    elif centre:
        sampler = SpacedViews(num_frames, kept_step(clip, index), 1)
    else:
        sampler = ExactStride(num_frames, kept_step(clip, index))
    return Frozen(sampler) if clip.frozen else sampler


def view_sampler(clip: ClipSpec, index: Index, num_frames: int, num_clips: int) -> Sampler:
    """The sampler of an evaluation with `num_clips` clips a video. Raises MisuseError as `train_sampler` does."""
    sampler: Sampler
    if clip.sampler == "uniform":
        sampler = UniformViews(num_frames, num_clips, index.rate is None)
        if num_clips == 1:
            sampler = UniformClip(num_frames, True, clip.short_videos, index.rate is None)
    elif clip.sampler == "dense" and num_clips == 1:
        return train_sampler(clip, index, num_frames, centre=True)
    else:
        sampler = SpacedViews(num_frames, kept_step(clip, index), num_clips)
    return Frozen(sampler) if clip.frozen else sampler


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

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
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

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
        thinned = np.arange(0, sample.frames, self.step)
        spare = max(0, len(thinned) - self.num_frames)
        if self.num_clips == 1:
            starts = [spare // 2]
        else:
            starts = [int(k * (spare / (self.num_clips - 1))) for k in range(self.num_clips)]
        places = np.asarray(starts)[:, None] + np.arange(self.num_frames)[None]
        return _frames(thinned[np.minimum(places, len(thinned) - 1)])


@dataclass(frozen=True)
class DenseClip:
    """T frames spread over T × stride frames, at a random place or (`centre`) in the middle.

    The published dense rule of finetuning (VideoMAE kinetics.py:251-272; the middle one: VideoMAEv2
    dataset/datasets.py): both ends are reached, so the spacing is T × stride / (T - 1).
    """

    num_frames: int
    stride: int
    centre: bool = False
    by_source: bool = True

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
        video = _video_of(sample, self.by_source)
        span = self.num_frames * self.stride
        wanted: NDArray[np.float64]
        if video.frames <= span:
            count = video.frames // self.stride
            tail = np.full(self.num_frames - count, float(video.frames))
            wanted = np.concatenate([np.linspace(0, video.frames, count), tail]).clip(0, video.frames - 1)
        else:
            stop = span + draw.integer(Purpose.FRAMES, video.frames - span)
            if self.centre:
                stop = (span + video.frames) // 2
            wanted = np.asarray(np.linspace(stop - span, stop, self.num_frames).clip(stop - span, stop - 1))
        return _frames(video.nearest(wanted.astype(np.int64))[None])


@dataclass(frozen=True)
class UniformClip:
    """One frame of each of T equal parts of the video (TSN): a random one, or (`centre`) the one in its middle.

    VideoMAE ssv2.py:250-263; `short_videos` as `ClipSpec` says.
    """

    num_frames: int
    centre: bool = False
    short_videos: Literal["v1", "v2"] = "v2"
    by_source: bool = True

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
        video = _video_of(sample, self.by_source)
        part = video.frames // self.num_frames
        numbers = np.arange(self.num_frames)
        if self.centre:
            wanted = _uniform(video.frames, self.num_frames, clip=1, num_clips=2)
        elif part:
            wanted = np.asarray([i * part + draw.integer(Purpose.FRAMES, part, i) for i in range(self.num_frames)])
        elif self.short_videos == "v1":
            wanted = np.zeros_like(numbers)
        else:
            wanted = np.maximum(0, numbers - (self.num_frames - video.frames))
        return _frames(video.nearest(wanted)[None])


@dataclass(frozen=True)
class UniformViews:
    """Evaluation by TSN: clip s of S takes frames int(s × tick / S + tick × i), where tick = frames / T.

    Two clips are the published two-phase test (VideoMAE ssv2.py:238-248); any number is VideoMAEv2's form of it.
    """

    num_frames: int
    num_clips: int
    by_source: bool = True

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
        video = _video_of(sample, self.by_source)
        wanted = [_uniform(video.frames, self.num_frames, clip, self.num_clips) for clip in range(self.num_clips)]
        return _frames(np.stack([video.nearest(one) for one in wanted]))


def _uniform(frames: int, num_frames: int, clip: int, num_clips: int) -> NDArray[np.int64]:
    tick = frames / num_frames
    return (clip * tick / num_clips + tick * np.arange(num_frames)).astype(np.int64)


@dataclass(frozen=True)
class _Video:
    """What was kept of a video, or of a segment: `at`, counted in the `frames` frames that they stand for."""

    at: NDArray[np.int64]
    frames: int

    def nearest(self, wanted: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which kept frame is nearest to each wanted frame; of two as near the earlier."""
        above = np.searchsorted(self.at, wanted).clip(0, len(self.at) - 1)
        below = np.maximum(above - 1, 0)
        nearer = np.abs(wanted - self.at[below]) <= np.abs(self.at[above] - wanted)
        return np.where(nearer, below, above)


def _video_of(sample: SampleView, by_source: bool) -> _Video:
    """In source frames, or (for shards built by rate) in kept ones, which are evenly spaced in time."""
    if not by_source:
        return _Video(np.arange(sample.frames), sample.frames)
    at = np.asarray(expand_series(sample.kept), dtype=np.int64)
    step = int(np.diff(at).max()) if len(at) > 1 else sample.source_frames
    if at[0] == 0 and 0 < sample.source_frames - at[-1] <= step:  # the whole source: its length is the published one's
        return _Video(at, sample.source_frames)
    # A segment is a video of its own, and where it ends nothing says: past its last kept frame so far as that is nearest.
    at -= at[0]
    beyond = int(np.median(np.diff(at))) // 2 if len(at) > 1 else 0
    return _Video(at, int(at[-1]) + beyond + 1)


@dataclass(frozen=True)
class Frozen:
    """A control: the clip's middle frame, repeated. Whoever answers from it does not answer from motion."""

    sampler: Sampler

    def __call__(self, sample: SampleView, draw: Rng) -> ClipFrames:
        chosen = self.sampler(sample, draw)
        middle_VT = np.repeat(chosen.index_VT[:, [chosen.index_VT.shape[1] // 2]], chosen.index_VT.shape[1], axis=1)
        return _frames(np.asarray(chosen.decode)[middle_VT], chosen.phase)


def _frames(positions_VT: NDArray[np.int64], phase: int = 0) -> ClipFrames:
    decode, index = np.unique(positions_VT, return_inverse=True)
    return ClipFrames(tuple(int(n) for n in decode), index.reshape(positions_VT.shape), phase)
