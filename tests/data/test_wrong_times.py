"""Wrong time stamps in files: joined recordings, frames far ahead, gaps."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from tests.encodes import kept_frames, planes, reason, sample_of
from tools.soak.damages.clips import Bench, picture_is_right
from vmae_data.encode.open_source import open_source
from vmae_data.encode.times import mended_times
from vmae_data.format import RULES, Rational, expand_series

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


_AVC, _VP9 = "-c:v libx264 -bf 0", "-c:v libvpx-vp9 -b:v 1M -cpu-used 8 -deadline realtime"


def _stamped(bench: Bench, path: Path, times: str, codec: str = _AVC) -> Path:
    """A clip of 25 frames, copied into `path` with other time stamps: ffmpeg's filter `setts`."""
    plain = bench.clip(f"plain-{codec.split()[1]}.mp4", codec)
    bench.run("-i", str(plain), "-c", "copy", "-bsf:v", f"setts={times}", str(path))
    return path


def test_the_time_stamps_of_joined_live_files_continue(bench: Bench, tmp_path: Path) -> None:
    part = bench.clip("live.webm", "-c:v libvpx -b:v 1M -f webm -live 1").read_bytes()
    path = tmp_path / "v.webm"
    path.write_bytes(part + part)
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 50, 4))
    assert expand_series(sample.facts.phases[0].source_times).tolist() == list(range(0, 2000, 160))
    assert any("start again 1 times" in remark for remark in sample.facts.remarks)
    assert len(kept_frames(sample_of(path, rate=6.25, rules=1))) < 9


@pytest.mark.parametrize("frames", [(13, 13), (13,) * 6, (13, 50), (50, 13), (9, 50), (10, 10, 3)])
def test_short_recordings_that_are_joined_keep_their_frames(
    bench: Bench, tmp_path: Path, frames: tuple[int, ...]
) -> None:
    """Each begins less than a second before the end of the one before it."""
    parts = {
        count: bench.clip(f"short{count}.webm", "-c:v libvpx -b:v 1M -f webm -live 1", frames=count).read_bytes()
        for count in frames
    }
    path = tmp_path / "v.webm"
    path.write_bytes(b"".join(parts[count] for count in frames))
    for spec in ({"stride": 1}, {"rate": 25.0}):
        sample = sample_of(path, **spec)
        assert kept_frames(sample) == list(range(sum(frames)))
        assert any(f"start again {len(frames) - 1} times" in remark for remark in sample.facts.remarks)


def test_frames_in_a_wrong_order_do_not_begin_again() -> None:
    """They fill the gap that they left."""
    groups = [*range(16), *range(24, 32), *range(16, 24), *range(32, 50)]
    for order in ([*range(10), 12, 10, 11, *range(13, 40)], groups, [*range(30), 27, 28, 29]):
        found = mended_times([40 * n for n in order], Fraction(40), 1000)
        assert (found.times, found.restarts) == ([40 * n for n in order], 0)


@pytest.mark.parametrize("starts", [(0, 100), (0, 36000), (36000, 0)])
def test_recordings_of_other_times_that_are_joined_in_ts_are_whole(
    bench: Bench, tmp_path: Path, starts: tuple[int, int]
) -> None:
    parts = [bench.clip(f"at{start}.ts", f"-bf 0 -output_ts_offset {start}").read_bytes() for start in starts]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(parts))
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 50, 4))
    assert any("jump by more than 10 s 1 times" in remark for remark in sample.facts.remarks)
    assert reason(path, rules=2) == "truncated"


@pytest.mark.parametrize("suffix", [".mkv", ".flv", ".nut"])
def test_a_first_frame_of_time_zero_before_times_of_the_day_loses_no_video(
    bench: Bench, tmp_path: Path, suffix: str
) -> None:
    """Recorders write the first frame before they know the time: then seconds since 1970 follow."""
    path = _stamped(bench, tmp_path / f"v{suffix}", "ts=if(N\\,TS+1700000000/TB\\,TS)")
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert any("jump by more than 30 hours 1 times" in remark for remark in sample.facts.remarks)
    assert reason(path, rules=2) == "truncated"


@pytest.mark.parametrize(("field", "ignored"), [("ts", 15), ("pts", 1)])
def test_a_frame_stamped_an_hour_ahead_hides_no_other(bench: Bench, tmp_path: Path, field: str, ignored: int) -> None:
    path = _stamped(bench, tmp_path / "v.mkv", f"{field}=if(eq(N\\,10)\\,{field.upper()}+3600/TB\\,{field.upper()})")
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert sample.facts.remarks == (
        f"the time stamps of {ignored} frames are far from their neighbours': they are ignored",
    )


# In mp4, a wrong pts hides frames by an edit list, or ffmpeg takes the dts of later frames for their pts.
@pytest.mark.parametrize(
    ("suffix", "field", "frames", "codec"),
    [
        (".mp4", "pts", "N-24", _AVC),
        *(
            (suffix, field, frames, codec)
            for suffix, field, codec in (
                (".mp4", "ts", _AVC), (".mp4", "ts", _VP9), (".mkv", "ts", _AVC), (".mkv", "pts", _VP9),
            )
            for frames in ("N", "N-24", "N-10", "mod(N\\,10)", "mod(N\\,10)-5")
        ),
    ],
)  # fmt: skip
def test_frames_stamped_an_hour_ahead_spoil_neither_times_nor_rate(
    bench: Bench, tmp_path: Path, suffix: str, field: str, frames: str, codec: str
) -> None:
    wrong = f"{field}=if(eq({frames}\\,0)\\,{field.upper()}+3600/TB\\,{field.upper()})"
    path = _stamped(bench, tmp_path / f"v{suffix}", wrong, codec)
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert (sample.facts.source.rate, sample.facts.rate) == (Rational(25, 1), Rational(25, 4))
    times = expand_series(sample.facts.phases[0].source_times)
    base = sample.facts.phases[0].source_time_base
    assert set(np.diff(times).tolist()) == {4 * base.den // 25}
    assert any("far from their neighbours': they are ignored" in remark for remark in sample.facts.remarks)
    assert picture_is_right(planes(path, sample), kept_frames(sample))


@pytest.mark.parametrize(
    ("frames", "wrong"), [("eq(N\\,10)", 1), ("eq(N\\,24)", 1), ("gte(N\\,22)", 3), ("not(mod(N\\,10)-5)", 2)]
)
def test_a_wrong_pts_in_flv_does_not_make_it_truncated(bench: Bench, tmp_path: Path, frames: str, wrong: int) -> None:
    path = _stamped(bench, tmp_path / "v.flv", f"pts=if({frames}\\,PTS+3600/TB\\,PTS)")
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert picture_is_right(planes(path, sample), kept_frames(sample))
    assert any(f"the time stamps of {wrong} frames are" in remark for remark in sample.facts.remarks)
    assert reason(path, rules=2) == "truncated"


@pytest.mark.parametrize(
    ("suffix", "frames", "words"),
    [
        (".mp4", "eq(N\\,10)", "the time stamps of 1 frames are more than 30 hours off: ffmpeg ignores them"),
        (".mp4", "eq(N\\,24)", "the time stamps of 1 frames are more than 30 hours off: ffmpeg ignores them"),
        (".mp4", "gte(N\\,22)", "the time stamps of 3 frames are more than 30 hours off: ffmpeg ignores them"),
        (".mkv", "eq(N\\,0)", "jump by more than 30 hours 1 times"),
        (".mkv", "eq(N\\,24)", "jump by more than 30 hours 1 times"),
        (".nut", "lt(N\\,3)", "jump by more than 30 hours 1 times"),
    ],
)
def test_time_stamps_that_ffmpeg_ignores_are_noted(
    bench: Bench, tmp_path: Path, suffix: str, frames: str, words: str
) -> None:
    path = _stamped(bench, tmp_path / f"v{suffix}", f"pts=if({frames}\\,PTS+31*3600/TB\\,PTS)")
    sample = sample_of(path, stride=4)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert any(words in remark for remark in sample.facts.remarks)
    assert picture_is_right(planes(path, sample), kept_frames(sample))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv"])
@pytest.mark.parametrize("first", [12, 22, 23])
def test_several_last_frames_an_hour_later_are_a_gap(bench: Bench, tmp_path: Path, suffix: str, first: int) -> None:
    """Recordings pause. Frames after a pause must not move; if the time stamps are wrong, all frames are there too."""
    path = _stamped(bench, tmp_path / f"v{suffix}", f"ts=TS+gte(N\\,{first})*3600/TB")
    times = [Fraction(n, 25) + 3600 * (n >= first) for n in range(25)]
    ticks = (times[0] + Fraction(4, 25) * n for n in range(int(times[-1] * 25) // 4 + 1))
    shown = list(dict.fromkeys(bisect_right(times, tick) - 1 for tick in ticks))
    sample = sample_of(path, rate=6.25)
    assert kept_frames(sample) == shown
    assert picture_is_right(planes(path, sample), kept_frames(sample))
    assert kept_frames(sample_of(path, stride=1)) == list(range(25))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_an_hour_without_frames_stays_in_the_times(bench: Bench, tmp_path: Path, suffix: str) -> None:
    path = bench.clip(f"gap{suffix}", "-bf 0 -vf setpts=N+gte(N\\,12)*90000 -fps_mode passthrough")
    path = path.rename(tmp_path / path.name)
    newer, older = (sample_of(path, rate=6.25, rules=rules) for rules in (RULES, 2))
    assert newer == older
    assert not any("ignored" in remark for remark in newer.facts.remarks)


def test_inference_takes_the_rate_of_a_build(bench: Bench, tmp_path: Path) -> None:
    path = _stamped(bench, tmp_path / "v.mp4", "ts=if(eq(N\\,0)\\,TS+3600/TB\\,TS)")
    assert open_source(path).kept_frames(6.25) == tuple(range(0, 25, 4))
    assert sample_of(path, profile="copy", short_side=64).facts.profile == "h264"
