from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_data.errors import MisuseError
from vmae_data.format import Rational, Regular
from vmae_data.read.dataset import SampleView, Shards
from vmae_data.read.stream import ClipFrames
from vmae_data.rng import Purpose, Rng
from vmae_train.clips.frame_sampling import (
    ClipSpec,
    DenseSampler,
    StrideSampler,
    TemporalViews,
    UniformSampler,
    kept_step,
    train_sampler,
    view_sampler,
)
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.inference.read_video import read_clip


def _view(frames: int) -> SampleView:
    return SampleView(0, "k", frames, Regular(first=0, step=1, count=frames), frames, 25.0, (frames,))


def _published(n: int, num_frames: int, stride: int, offset: int) -> list[int]:
    """The original's loop: step while the next step stays inside."""
    positions = []
    for _ in range(num_frames):
        positions.append(offset)
        if offset + 1 + stride < n:
            offset += stride
    return positions


@given(st.integers(1, 400), st.sampled_from([1, 2, 4]), st.integers(0, 50))
def test_a_clip_at_an_exact_stride_is_the_published_one(frames: int, stride: int, seed: int) -> None:
    chosen = StrideSampler(16, stride)(_view(frames), Rng(seed, 0, 7))
    positions = np.asarray(chosen.decode)[chosen.index_VT[0]].tolist()
    assert positions == _published(frames, 16, stride, positions[0])
    assert 0 <= positions[0] <= max(0, frames - 16 * stride)


def test_every_possible_start_is_sampled() -> None:
    starts = {StrideSampler(16, 2)(_view(40), Rng(0, epoch, 1)).decode[0] for epoch in range(300)}
    assert starts == set(range(40 - 32 + 1))


def test_evaluation_clips_are_spread_from_end_to_end() -> None:
    chosen = TemporalViews(16, 4, 5)(_view(300), Rng(0, 0, 0))
    positions = np.asarray(chosen.decode)[chosen.index_VT]
    assert positions[:, 0].tolist() == [4 * int(k * (75 - 16) / 4) for k in range(5)]
    assert (np.diff(positions, axis=1) == 4).all()
    assert len(set(chosen.decode)) == len(chosen.decode)  # each frame is decoded once for all clips


def test_a_single_evaluation_clip_is_central_and_a_short_video_repeats_its_tail() -> None:
    chosen = TemporalViews(16, 1, 1)(_view(20), Rng(0, 0, 0))
    assert np.asarray(chosen.decode)[chosen.index_VT[0]].tolist() == list(range(2, 18))
    short = TemporalViews(16, 1, 2)(_view(3), Rng(0, 0, 0))
    assert short.decode == (0, 1, 2)
    assert short.index_VT.tolist() == [[0, 1] + [2] * 14] * 2


def test_a_frozen_clip_repeats_the_middle_frame_of_the_clip_that_it_replaces(demo_shards: Path) -> None:
    index = Shards.open(str(demo_shards)).index
    for frozen, plain in (
        (train_sampler(ClipSpec(frozen=True), index, 16), train_sampler(ClipSpec(), index, 16)),
        (view_sampler(ClipSpec(frozen=True), index, 16, 2), view_sampler(ClipSpec(), index, 16, 2)),
    ):
        clip, moving = frozen(_view(30), Rng(0, 0, 0)), plain(_view(30), Rng(0, 0, 0))
        for view in range(len(moving.index_VT)):
            assert _positions(clip, view) == [_positions(moving, view)[8]] * 16


def test_a_stride_that_the_shards_do_not_divide_is_refused_with_both_numbers(demo_shards: Path) -> None:
    index = Shards.open(str(demo_shards)).index
    assert kept_step(ClipSpec(stride=4), index) == 2
    by_four = msgspec.structs.replace(index, stride=4)
    with pytest.raises(MisuseError, match=r"stride is 2 source frames, the shards keep one frame in 4"):
        kept_step(ClipSpec(stride=2), by_four)
    with pytest.raises(MisuseError, match=r"asks for 6.25 frames a second, the shards keep one frame in 4"):
        kept_step(ClipSpec(rate=6.25), by_four)


def test_the_kept_stride_is_that_of_each_data_set(demo_shards: Path) -> None:
    index = Shards.open(str(demo_shards)).index  # stride 2
    by_four = msgspec.structs.replace(index, stride=4)
    by_rate = msgspec.structs.replace(index, stride=None, rate=Rational(25, 2))
    kept = ClipSpec(stride="kept")
    assert [kept.resolve(one) for one in (index, by_four, by_rate)] == [
        ClipSpec(stride=2),
        ClipSpec(stride=4),
        ClipSpec(rate=12.5),
    ]
    assert [train_sampler(kept, one, 16) for one in (index, by_four, by_rate)] == [StrideSampler(16, 1)] * 3
    dense = ClipSpec(sampler="dense", stride="kept")
    assert train_sampler(dense, by_four, 16) == DenseSampler(16, 4)
    assert train_sampler(dense, by_rate, 16) == DenseSampler(16, 1, by_source=False)
    with pytest.raises(MisuseError, match="frame spacing of its shards"):
        read_clip(Path("video.mp4"), 16, kept)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"stride": "every"}, ClipSpec)


def test_shards_of_a_rate_serve_that_rate_divided_by_an_integer(demo_shards: Path) -> None:
    index = msgspec.structs.replace(Shards.open(str(demo_shards)).index, stride=None, rate=Rational(25, 2))
    assert [kept_step(ClipSpec(rate=rate), index) for rate in (12.5, 6.25, 2.5)] == [1, 2, 5]
    for wrong in (25.0, 10.0):
        with pytest.raises(MisuseError, match=rf"asks for {wrong:g} frames a second, the shards keep 12.5"):
            kept_step(ClipSpec(rate=wrong), index)
    with pytest.raises(MisuseError, match="stride is 4 source frames, the shards keep 12.5 frames a second"):
        kept_step(ClipSpec(stride=4), index)


def test_every_phase_is_sampled_and_its_own_length_counts() -> None:
    view = _view(20)._replace(phase_frames=(20, 18))
    chosen = [StrideSampler(16, 1)(view, Rng(0, epoch, 1)) for epoch in range(200)]
    starts = {phase: {one.decode[0] for one in chosen if one.phase == phase} for phase in (0, 1)}
    assert starts == {0: set(range(5)), 1: set(range(3))}


def _positions(clip: ClipFrames, view: int = 0) -> list[int]:
    return np.asarray(clip.decode)[clip.index_VT[view]].tolist()


LENGTHS = range(1, 401)


def _dense(n: int, stride: int, end_of) -> list[int]:
    """The published rule of dense finetuning: spread over 16 × stride frames, both ends reached."""
    span = 16 * stride
    if n <= span:
        frames = [*np.linspace(0, n, num=n // stride), *[n] * (16 - n // stride)]
        return [int(min(max(x, 0), n - 1)) for x in frames]
    end = end_of(span, n)
    return [int(min(max(x, end - span), end - 1)) for x in np.linspace(end - span, end, 16)]


@pytest.mark.parametrize("stride", [2, 4])
def test_dense_clips_are_the_published_ones_at_every_length(stride: int) -> None:
    for n in LENGTHS:
        rng = Rng(3, 0, n)
        clip = _positions(DenseSampler(16, stride)(_view(n), rng))
        assert clip == _dense(n, stride, lambda span, n: span + rng.integer(Purpose.FRAMES, n - span))  # noqa: B023
        centre = _positions(DenseSampler(16, stride, centre=True)(_view(n), rng))
        assert centre == _dense(n, stride, lambda span, n: (span + n) // 2)


def test_dense_clips_cover_every_possible_start() -> None:
    starts = {_positions(DenseSampler(16, 4)(_view(70), Rng(0, epoch, 1)))[0] for epoch in range(200)}
    assert starts == set(range(70 - 64))


def test_uniform_clips_are_the_published_ones_at_every_length() -> None:
    for n in LENGTHS:
        rng, part = Rng(5, 0, n), n // 16
        random = [i * part + rng.integer(Purpose.FRAMES, part, i) for i in range(16)] if part else []
        assert _positions(UniformSampler(16, short_videos="v1")(_view(n), rng)) == (random or [0] * 16)
        assert _positions(UniformSampler(16)(_view(n), rng)) == (random or [0] * (16 - n) + list(range(n)))
        tick = n / 16
        middle = [int(tick / 2 + tick * x) for x in range(16)]
        assert _positions(UniformSampler(16, 1)(_view(n), rng)) == middle
        both = sorted([int(tick * x) for x in range(16)] + middle)
        clip = UniformSampler(16, 2)(_view(n), rng)
        assert [_positions(clip, 0), _positions(clip, 1)] == [both[0::2], both[1::2]]
        three = UniformSampler(16, 3)(_view(n), rng)
        assert _positions(three, 2) == [int(2 * tick / 3 + tick * x) for x in range(16)]


def test_uniform_clips_sample_the_frame_of_each_segment_independently() -> None:
    clips = np.asarray([_positions(UniformSampler(16)(_view(64), Rng(0, epoch, 1))) for epoch in range(200)])
    within = clips - np.arange(16) * 4
    assert within.min() == 0 and within.max() == 3
    assert abs(np.corrcoef(within[:, 0], within[:, 1])[0, 1]) < 0.25


def _dense_views(n: int, stride: int, clips: int) -> list[list[int]]:
    """The published dense test: all frames of that stride, the last repeated up to a clip, starts evenly spread."""
    frames = list(range(0, n, stride))
    frames += [frames[-1]] * (16 - len(frames))
    step = max((len(frames) - 16) / (clips - 1), 0)
    return [frames[int(k * step) : int(k * step) + 16] for k in range(clips)]


@pytest.mark.parametrize("stride", [1, 4])
def test_dense_test_views_are_the_published_ones_at_every_length(stride: int) -> None:
    for n in LENGTHS:
        clip = TemporalViews(16, stride, 5)(_view(n), Rng(0, 0, 0))
        assert [_positions(clip, view) for view in range(5)] == _dense_views(n, stride, 5)


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_on_thinned_shards_a_frame_is_at_most_half_a_step_from_the_exact_one(kept: int) -> None:
    for n in range(64, 400, 5):
        count = -(-n // kept)
        last = (count - 1) * kept
        thinned = SampleView(0, "k", count, Regular(first=0, step=kept, count=count), n, 25.0, (count,))
        for sampler in (DenseSampler(16, 4), UniformSampler(16), UniformSampler(16, 2)):
            clip = sampler(thinned, Rng(0, 1, n))
            exact = sampler(_view(n), Rng(0, 1, n))
            for view in range(len(clip.index_VT)):
                expected = np.asarray(_positions(exact, view))
                off = np.asarray(_positions(clip, view)) * kept - expected
                behind = expected > last  # nothing was kept there: the last
                assert (off[behind] == last - expected[behind]).all()
                assert np.abs(off[~behind]).max() <= kept / 2
                assert (off[np.abs(off) * 2 == kept] < 0).all()  # ties go down


def test_a_segment_counts_as_a_video_of_its_own() -> None:
    segment = SampleView(0, "k", 25, Regular(first=400, step=4, count=25), 2000, 25.0, (25,))
    assert _positions(UniformSampler(16, 1)(segment, Rng(0, 0, 0)))[-1] <= 24
    assert min(_positions(DenseSampler(16, 4, centre=True)(segment, Rng(0, 0, 0)))) > 0


def test_a_recipe_selects_its_samplers(demo_shards: Path) -> None:
    index = msgspec.structs.replace(Shards.open(str(demo_shards)).index, stride=1, rate=None)
    dense, uniform = ClipSpec(sampler="dense", stride=4), ClipSpec(sampler="uniform", short_videos="v1")
    assert train_sampler(dense, index, 16) == DenseSampler(16, 4)
    assert train_sampler(uniform, index, 16) == UniformSampler(16, short_videos="v1")
    assert view_sampler(dense, index, 16, 5) == TemporalViews(16, 4, 5)
    assert view_sampler(dense, index, 16, 1) == DenseSampler(16, 4, centre=True)
    assert view_sampler(uniform, index, 16, 2) == UniformSampler(16, 2)
    assert view_sampler(uniform, index, 16, 1) == UniformSampler(16, 1)
    by_rate = msgspec.structs.replace(index, stride=None, rate=Rational(25, 4))
    assert train_sampler(ClipSpec(sampler="dense", rate=6.25), by_rate, 16) == DenseSampler(16, 1, by_source=False)
    with pytest.raises(MisuseError, match="by rate"):
        train_sampler(ClipSpec(sampler="dense", rate=6.25), index, 16)


def test_shards_that_are_too_thin_for_a_sampler_are_refused(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    frames = int(np.median(shards.source_frames_N))
    shards.index = msgspec.structs.replace(shards.index, stride=4, rate=None)
    with pytest.raises(MisuseError, match=f"{frames / 16:.3g} source frames apart"):
        check_spacing(ClipSpec(sampler="uniform"), shards, 16, 1 + frames // 64)
    assert check_spacing(ClipSpec(sampler="dense", stride=8), shards, 16) == (
        "each frame is the nearest kept one, at most 2 source frames away, or 3 after the last kept frame"
    )
    with pytest.raises(MisuseError, match="Give 4 or more"):
        check_spacing(ClipSpec(sampler="dense", stride=2), shards, 16)
    assert check_spacing(ClipSpec(), shards, 16) is None
