from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_data.draws import Draw
from vmae_data.errors import MisuseError
from vmae_data.format import Rational, Regular
from vmae_data.read.shards import SampleView, Shards
from vmae_train.clips.views import ClipSpec, ExactStride, Frozen, SpacedViews, kept_step


def _view(frames: int) -> SampleView:
    return SampleView(0, "k", frames, Regular(first=0, step=1, count=frames), frames, 25.0, (frames,))


def _published(n: int, num_frames: int, stride: int, offset: int) -> list[int]:
    """The original's loop, in words: step on while the step after it stays inside."""
    found = []
    for _ in range(num_frames):
        found.append(offset)
        if offset + 1 + stride < n:
            offset += stride
    return found


@given(st.integers(1, 400), st.sampled_from([1, 2, 4]), st.integers(0, 50))
def test_an_exact_stride_clip_is_the_published_one(frames: int, stride: int, seed: int) -> None:
    chosen = ExactStride(16, stride)(_view(frames), Draw(seed, 0, 7))
    positions = np.asarray(chosen.decode)[chosen.index_VT[0]].tolist()
    assert positions == _published(frames, 16, stride, positions[0])
    assert 0 <= positions[0] <= max(0, frames - 16 * stride)


def test_every_possible_start_is_drawn() -> None:
    starts = {ExactStride(16, 2)(_view(40), Draw(0, epoch, 1)).decode[0] for epoch in range(300)}
    assert starts == set(range(40 - 32 + 1))


def test_evaluation_clips_are_spread_from_end_to_end() -> None:
    chosen = SpacedViews(16, 4, 5)(_view(300), Draw(0, 0, 0))
    positions = np.asarray(chosen.decode)[chosen.index_VT]
    assert positions[:, 0].tolist() == [4 * int(k * (75 - 16) / 4) for k in range(5)]
    assert (np.diff(positions, axis=1) == 4).all()
    assert len(set(chosen.decode)) == len(chosen.decode)  # each frame is decoded once for all clips


def test_a_single_evaluation_clip_is_central_and_a_short_video_repeats_its_tail() -> None:
    chosen = SpacedViews(16, 1, 1)(_view(20), Draw(0, 0, 0))
    assert np.asarray(chosen.decode)[chosen.index_VT[0]].tolist() == list(range(2, 18))
    short = SpacedViews(16, 1, 2)(_view(3), Draw(0, 0, 0))
    assert short.decode == (0, 1, 2)
    assert short.index_VT.tolist() == [[0, 1] + [2] * 14] * 2


def test_a_frozen_clip_has_one_frame_only() -> None:
    chosen = Frozen(ExactStride(16, 1))(_view(30), Draw(0, 0, 0))
    assert len(chosen.decode) == 1
    assert chosen.index_VT.tolist() == [[0] * 16]


def test_a_stride_that_the_shards_dont_divide_is_refused_with_both_numbers(demo_shards: Path) -> None:
    index = Shards.open(str(demo_shards)).index
    assert kept_step(ClipSpec(stride=4), index) == 2
    by_four = msgspec.structs.replace(index, stride=4)
    with pytest.raises(MisuseError, match=r"stride is 2 source frames, the shards keep one frame in 4"):
        kept_step(ClipSpec(stride=2), by_four)
    with pytest.raises(MisuseError, match=r"asks for 6.25 frames a second, the shards keep one frame in 4"):
        kept_step(ClipSpec(rate=6.25), by_four)


def test_shards_of_a_rate_serve_integer_parts_of_it(demo_shards: Path) -> None:
    index = msgspec.structs.replace(Shards.open(str(demo_shards)).index, stride=None, rate=Rational(25, 2))
    assert [kept_step(ClipSpec(rate=rate), index) for rate in (12.5, 6.25, 2.5)] == [1, 2, 5]
    for wrong in (25.0, 10.0):
        with pytest.raises(MisuseError, match=rf"asks for {wrong:g} frames a second, the shards keep 12.5"):
            kept_step(ClipSpec(rate=wrong), index)
    with pytest.raises(MisuseError, match="stride is 4 source frames, the shards keep 12.5 frames a second"):
        kept_step(ClipSpec(stride=4), index)


def test_every_phase_is_drawn_and_its_own_length_counts() -> None:
    view = _view(20)._replace(phase_frames=(20, 18))
    chosen = [ExactStride(16, 1)(view, Draw(0, epoch, 1)) for epoch in range(200)]
    starts = {phase: {one.decode[0] for one in chosen if one.phase == phase} for phase in (0, 1)}
    assert starts == {0: set(range(5)), 1: set(range(3))}
