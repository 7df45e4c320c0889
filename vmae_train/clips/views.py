"""Row 12. Sample facts and a draw → which frames make a clip. Numbers only, no torch."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.draws import Draw, Purpose
from vmae_data.errors import MisuseError
from vmae_data.read.shards import SampleView
from vmae_data.read.stream import ClipFrames, Sampler

__all__ = ["ClipSpec", "ExactStride", "Frozen", "SpacedViews", "kept_step"]


class ClipSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which frames make a clip: `stride` counts source frames.

    `frozen` repeats one frame, the control that takes all motion away.
    """

    stride: int = 4
    frozen: bool = False

    def __post_init__(self) -> None:
        if self.stride < 1:
            raise ValueError(f"stride = {self.stride}: must be 1 or more")


def kept_step(stride: int, shard_stride: int) -> int:
    """The stride in kept frames of a clip with `stride` source frames between its frames.

    Raises MisuseError unless the shards' stride divides it.
    """
    if stride % shard_stride:
        raise MisuseError(
            f"the recipe's stride is {stride} source frames, the shards keep one frame in {shard_stride}: "
            f"use a multiple of {shard_stride}, or build shards with a stride that divides {stride}"
        )
    return stride // shard_stride


@dataclass(frozen=True)
class ExactStride:
    """A clip of T frames at a fixed stride from a random start; a short video repeats its tail.

    The published pretraining rule, on kept frames: the offset never reaches the very last frame
    (VideoMAE kinetics.py:515-556; its `off + 1 + stride < n` counts from 1).
    """

    num_frames: int
    step: int

    def __call__(self, sample: SampleView, draw: Draw) -> ClipFrames:
        starts = sample.frames - self.num_frames * self.step + 1
        offset = draw.integer(Purpose.FRAMES, starts) if starts > 0 else 0
        return _frames(stride_positions(sample.frames, self.num_frames, self.step, offset)[None])


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
        return _frames(np.asarray(chosen.decode)[middle_VT])


def _frames(positions_VT: NDArray[np.int64]) -> ClipFrames:
    decode, index = np.unique(positions_VT, return_inverse=True)
    return ClipFrames(tuple(int(n) for n in decode), index.reshape(positions_VT.shape))
