from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.test_resize import _encode, _write
from vmae_data.decode import decode_all
from vmae_data.encode.build_spec import BuildSpec, Thinning
from vmae_data.encode.staged import StagedSample
from vmae_data.encode.thinning import cut_video, select_frames
from vmae_data.errors import RecipeError
from vmae_data.format import Rational, expand_series
from vmae_data.names import key_of
from vmae_data.recipes import load_recipe

RATES = [Rational(25, 1), Rational(30000, 1001), Rational(24, 1)]


def _last_shown(times: list[Fraction], end: Fraction, rate: Fraction, offset: Fraction) -> list[int]:
    """The rule, written directly: each tick keeps the last frame displayed by then, no frame twice."""
    kept: list[int] = []
    tick = times[0] + offset / rate
    while tick < end:
        shown = max(n for n, time in enumerate(times) if time <= tick)
        kept += [shown] if shown not in kept else []
        tick += 1 / rate
    return kept or [0]


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=40, unique=True),
    st.sampled_from([1000, 12800, 90000]),
    st.sampled_from(RATES),
    st.sampled_from([Rational(25, 4), Rational(4, 1), Rational(50, 1), Rational(30000, 4004)]),
    st.integers(1, 4),
)
def test_a_rate_keeps_the_last_frame_displayed_by_each_tick(
    stamps: list[int], base: int, nominal: Rational, rate: Rational, phases: int
) -> None:
    times = sorted(stamps)
    (cut,) = cut_video(times, Rational(1, base), nominal, Thinning(0, rate, phases))
    seconds = [Fraction(time, base) for time in times]
    end = seconds[-1] + Fraction(nominal.den, nominal.num)
    for phase, kept in enumerate(cut.kept):
        offset = Fraction(phase, phases)
        assert list(kept) == _last_shown(seconds, end, Fraction(rate.num, rate.den), offset)


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 8), st.floats(0.05, 3))
def test_segments_cover_a_video_without_gaps_and_none_is_too_long(
    frames: int, stride: int, phases: int, longest: float
) -> None:
    phases = min(phases, stride)
    thinning = Thinning(stride, None, phases, longest)
    cuts = cut_video(range(frames), Rational(1, 25), Rational(25, 1), thinning)
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
    assert cuts[-1].stop == frames
    assert [n for cut in cuts for n in cut.kept[0]] == list(range(0, frames, stride))
    most = max(1, int(longest * 25 / stride))
    lengths = [len(cut.kept[0]) for cut in cuts]
    assert max(lengths) <= most
    assert max(lengths) - min(lengths) <= 1
    assert all(cut.start <= n < cut.stop for cut in cuts for kept in cut.kept for n in kept)
    assert all(kept for cut in cuts for kept in cut.kept)


def _is_within(kept: tuple[int, ...], times: list[int], base: int, longest: float) -> bool:
    return Fraction(times[kept[-1]] - times[kept[0]], base) <= Fraction(repr(longest))


@given(
    st.lists(st.integers(1, 4000), min_size=1, max_size=80),
    st.sampled_from([1000, 12800, 90000]),
    st.sampled_from([Thinning(1), Thinning(4), Thinning(4, None, 3), Thinning(0, Rational(25, 4), 2)]),
    st.sampled_from([0.01, 0.5, 1.0, 2.3, 7.5]),
)
def test_no_segment_is_longer_than_the_longest_by_the_frames_own_times(
    steps: list[int], base: int, thinning: Thinning, longest: float
) -> None:
    times = np.cumsum(steps).tolist()
    uncut = cut_video(times, Rational(1, base), Rational(25, 1), thinning)[0].kept
    cuts = cut_video(times, Rational(1, base), Rational(25, 1), thinning._replace(longest_seconds=longest))
    assert [cut.start for cut in cuts] == [0, *(cut.stop for cut in cuts[:-1])]
    assert cuts[-1].stop == len(times)
    for phase in range(thinning.phases):
        kept = [cut.kept[phase] for cut in cuts]
        assert all(_is_within(one, times, base, longest) for one in kept)
        assert all(cut.start <= n < cut.stop for cut in cuts for n in cut.kept[phase])
        # A segment without a kept frame adds its first frame.
        added = {cut.start for cut in cuts} - set(uncut[phase])
        assert [n for one in kept for n in one if n not in added] == list(uncut[phase])


@pytest.mark.parametrize("nominal", [Rational(5, 1), Rational(30, 1)])
@pytest.mark.parametrize("thinning", [Thinning(0, Rational(25, 1)), Thinning(1), Thinning(2, None, 2)])
def test_segments_of_an_uneven_video_last_about_equally_long(nominal: Rational, thinning: Thinning) -> None:
    """Ten seconds at 5 frames per second, ten at 30, ten at 5, with any nominal frame rate."""
    times = [*range(0, 10_000, 200), *range(10_000, 20_000, 33), *range(20_000, 30_001, 200)]
    cuts = cut_video(times, Rational(1, 1000), nominal, thinning._replace(longest_seconds=4.0))
    assert len(cuts) == 8
    seconds = [(times[after.start] - times[cut.start]) / 1000 for cut, after in itertools.pairwise(cuts)]
    assert min(seconds) >= 3.75 - 0.41
    assert max(seconds) <= 3.75 + 0.41


def test_a_gap_without_frames_is_no_segment() -> None:
    cuts = cut_video([0, 40, 80, 10**12, 10**12 + 40], Rational(1, 1000), Rational(25, 1), Thinning(1, None, 1, 2.0))
    assert [(cut.start, cut.stop) for cut in cuts] == [(0, 3), (3, 5)]


@given(st.sets(st.integers(0, 700), min_size=1, max_size=60))
def test_the_select_expression_is_true_for_exactly_the_kept_frames(kept: set[int]) -> None:
    functions = {
        "mod": lambda a, b: a % b,
        "floor": int,
        "pow": pow,
        "lt": lambda a, b: a < b,
        "if_": lambda c, a, b: a if c else b,
    }
    code = compile(select_frames(sorted(kept)).replace("if(", "if_("), "select", "eval")
    # Python evaluates both branches of if_, where pow(2, negative) is a fraction: harmless.
    found = {n for n in range(720) if eval(code, {"__builtins__": {}}, functions | {"n": n})}
    assert found == kept


def _levels(folder: Path, sample: StagedSample, phase: int = 0) -> list[int]:
    """The number of the source frame that each kept frame displays, from its grey level."""
    member = sample.members[phase]
    video = decode_all((folder / member.file).read_bytes(), member.phase.frames, "v")
    return [round(float(level - 20) / 4) for level in video.y_THW.mean(axis=(1, 2))]


def test_a_video_with_gaps_is_kept_at_a_rate(tmp_path: Path) -> None:
    pts = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 30]
    _write(tmp_path / "v.mkv", len(pts), pts=pts)
    (sample,) = _encode(tmp_path / "v.mkv", tmp_path, stride=None, rate=6.25, crf=1).samples
    kept = _last_shown([Fraction(n, 25) for n in pts], Fraction(31, 25), Fraction(25, 4), Fraction(0))
    assert kept == [0, 3, 6, 7, 8, 10]  # by hand: ticks at 0, 4, 8, 12, 16, 20, 24 and 28 of a 25th
    assert expand_series(sample.facts.phases[0].source_frames).tolist() == kept
    assert _levels(tmp_path, sample) == kept
    assert (sample.facts.rate.num, sample.facts.rate.den) == (25, 4)


def test_a_slower_source_keeps_all_frames_and_gets_a_remark(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 12, rate=Fraction(5))
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, stride=None, rate=6.25, crf=1).samples
    assert _levels(tmp_path, sample) == list(range(12))
    assert "shows 5 frames a second, fewer than the 6.25 asked for" in sample.facts.remarks


def test_frame_times_and_not_the_container_decide_if_a_source_is_slower(tmp_path: Path) -> None:
    _write(tmp_path / "slow.mkv", 12, pts=[*range(6), *range(94, 100)])  # 25 per second in its header
    _write(tmp_path / "steady.mkv", 30)
    slow, steady = (
        _encode(tmp_path / name, tmp_path, stride=None, rate=25.0, crf=1).samples[0].facts
        for name in ("slow.mkv", "steady.mkv")
    )
    assert "shows 2.78 frames a second, fewer than the 25 asked for" in slow.remarks
    assert not any("asked for" in remark for remark in steady.remarks)


def test_phases_are_members_of_one_sample(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 30)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, phases=2, crf=1).samples
    assert [member.file for member in sample.members] == [f"{sample.facts.key}.mp4", f"{sample.facts.key}.p1.mp4"]
    for phase in (0, 1):
        assert _levels(tmp_path, sample, phase) == list(range(2 * phase, 30, 4))
        assert expand_series(sample.facts.phases[phase].source_frames).tolist() == list(range(2 * phase, 30, 4))


def test_a_phase_without_a_frame_in_a_short_video_keeps_its_last(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 2)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, phases=4, crf=1).samples
    assert [_levels(tmp_path, sample, phase) for phase in range(4)] == [[0], [1], [1], [1]]


@pytest.mark.parametrize("phases", [1, 2])
def test_a_long_video_is_cut_into_segments_of_steady_times(tmp_path: Path, phases: int) -> None:
    (tmp_path / "100%d").mkdir()
    path = tmp_path / "100%d" / "v.mp4"
    _write(path, 50)
    staged = _encode(path, tmp_path / "100%d", stride=2, longest_seconds=0.8, crf=1, phases=phases)
    assert [(s.facts.segment.start, s.facts.segment.stop) for s in staged.samples if s.facts.segment] == [
        (0, 16),
        (16, 32),
        (32, 50),
    ]
    for number, sample in enumerate(staged.samples):
        assert sample.facts.key == key_of(os.fsencode("v.mp4"), number)
        start, stop = 16 * number, (16, 32, 50)[number]
        for phase in range(phases):
            assert _levels(tmp_path / "100%d", sample, phase) == list(range(start + phase, stop, 2))
            with av.open(str(tmp_path / "100%d" / sample.members[phase].file)) as container:
                times = [frame.pts for frame in container.decode(video=0)]
            assert np.array_equal(np.diff(times), np.full(len(times) - 1, times[1]))
    assert not list((tmp_path / "100%d").glob(".tmp-*"))


def test_segments_of_a_slower_source_are_within_the_longest(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 24, rate=Fraction(5))
    samples = _encode(tmp_path / "v.mp4", tmp_path, stride=None, rate=25.0, longest_seconds=2.0, crf=1).samples
    kept = [_levels(tmp_path, sample) for sample in samples]
    assert kept == [list(range(8)), list(range(8, 16)), list(range(16, 24))]
    for sample in samples:
        phase = sample.facts.phases[0]
        times = expand_series(phase.source_times)
        assert (times[-1] - times[0]) * float(phase.source_time_base) <= 2.0


def test_a_video_of_hours_has_hundreds_of_segments(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 400)
    samples = _encode(tmp_path / "v.mp4", tmp_path, stride=1, longest_seconds=0.08).samples
    assert [sample.facts.phases[0].frames for sample in samples] == [2] * 200
    segments = [sample.facts.segment for sample in samples if sample.facts.segment]
    assert [(segment.start, segment.stop) for segment in segments] == [(n, n + 2) for n in range(0, 400, 2)]


def test_kept_frames_follow_from_the_decoded_frames_not_from_the_packets(tmp_path: Path) -> None:
    """The last packets do not decode."""
    _write(tmp_path / "v.mp4", 60, width=192, height=128)
    data = bytearray((tmp_path / "v.mp4").read_bytes())
    with av.open(str(tmp_path / "v.mp4")) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[50:]:
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = bytes(packet.size)
    (tmp_path / "v.mp4").write_bytes(data)
    staged = _encode(
        tmp_path / "v.mp4", tmp_path, stride=None, rate=5.0, longest_seconds=1.0, keep_truncated=True, crf=1
    )
    decoded = staged.samples[0].facts.source.frames
    assert decoded < 60
    kept = [n for sample in staged.samples for n in expand_series(sample.facts.phases[0].source_frames).tolist()]
    assert kept == list(range(0, decoded, 5))
    assert [n for sample in staged.samples for n in _levels(tmp_path, sample)] == kept


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("stride=4", "rate=6.25"), "set exactly one of the two"),
        (("phases=5",), "expected 1 to 4, the stride"),
        (("longest_seconds=0",), "longest_seconds = 0.0: expected seconds, 0.01 or more"),
        (('profile="copy"',), 'copy" keeps every frame'),
        (("rate=0",), "expected 0.01 to 1000"),
        (("qscale=0",), "expected 1 to 31"),
    ],
)
def test_invalid_and_contradictory_settings_are_refused(settings: tuple[str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("vmae_data", None, BuildSpec, settings)


def test_frames_have_display_times_even_if_the_container_stores_none(real_videos: Path, tmp_path: Path) -> None:
    """Packets of an AVI with B frames have decoding times only. PyAV makes pts of them that step back (1, 2, 4, 3)."""
    (tmp_path / "test.avi").symlink_to(real_videos / "test.avi")
    (sample,) = _encode(tmp_path / "test.avi", tmp_path, stride=None, rate=5.0).samples
    assert expand_series(sample.facts.phases[0].source_frames).tolist() == list(range(0, 164, 5))
    assert expand_series(sample.facts.phases[0].source_times).tolist() == list(range(1, 165, 5))
