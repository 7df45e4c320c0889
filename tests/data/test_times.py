"""Times and first frames of unusual sources."""

from __future__ import annotations

import os
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.encodes import encode, kept_frames, planes, reason, sample_of
from tools.soak.damages.clips import Bench, picture_is_right
from tools.soak.damages.mp4_boxes import patched
from vmae_data.encode.probe import probe_video
from vmae_data.encode.times import continuous_times, exact_times, mended_times
from vmae_data.format import Rational

pytestmark = pytest.mark.processes

_SINE = "-f lavfi -i sine=d=1.6"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def _damaged(source: Path, path: Path, *numbers: int) -> Path:
    """A copy with zeros in place of these packets of the video."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for number in numbers:
        start = data.index(packets[number])
        data[start : start + len(packets[number])] = bytes(len(packets[number]))
    path.write_bytes(data)
    return path


def test_times_that_start_again_continue() -> None:
    part = list(range(0, 2000, 40))
    assert continuous_times([*part, *part, *part], 40, 1000) == (list(range(0, 6000, 40)), 2, 0)


@pytest.mark.parametrize("wrong", [3_600_000, -3_600_000])
@pytest.mark.parametrize("frames", [1, 3])
def test_a_few_time_stamps_that_are_far_off_are_ignored(wrong: int, frames: int) -> None:
    times = list(range(0, 4000, 40))
    stamps = [time + wrong if 10 <= n < 10 + frames else time for n, time in enumerate(times)]
    assert continuous_times(stamps, 40, 1000) == (times, 0, frames)


@pytest.mark.parametrize("more", [0, 1])
def test_time_stamps_that_stand_still_after_a_jump_continue(more: int) -> None:
    times = list(range(0, 4000, 40))
    stamps = [*times[:10], *(3_600_000 + more * n for n in range(90))]
    assert continuous_times(stamps, 40, 1000) == (times, 0, 90)


@pytest.mark.parametrize("more", [0, 1])
def test_time_stamps_that_stand_still_from_the_first_frame_on_continue(more: int) -> None:
    stamps = [3_600_000 + more * n for n in range(90)]
    assert continuous_times(stamps, 40, 1000).times == list(range(3_600_000, 3_603_600, 40))


def test_time_stamps_that_stand_still_until_the_clock_catches_up_continue() -> None:
    """As a muxer writes time stamps that step back by a second."""
    times = list(range(0, 4000, 40))
    stamps = [*times[:50], *(times[49] + n for n in range(1, 26)), *times[50:75]]
    assert continuous_times(stamps, 40, 1000).times == times


@given(st.lists(st.integers(1, 10**6), max_size=60), st.integers(1, 5000))
def test_rising_time_stamps_are_the_times(steps: list[int], step: int) -> None:
    times = np.cumsum([0, *(2 * one for one in steps)]).tolist()
    assert continuous_times(times, step, 1000) == (times, 0, 0)


@pytest.mark.parametrize("wrong", [3_600_000, -3_600_000])
@pytest.mark.parametrize("frame", [0, 49, 99])
def test_one_wrong_time_stamp_anywhere_is_ignored(wrong: int, frame: int) -> None:
    times = list(range(0, 4000, 40))
    stamps = [time + wrong if n == frame else time for n, time in enumerate(times)]
    found, restarts, outliers = mended_times(stamps, Fraction(40), 1000)
    assert ([time - found[1] + 40 for time in found], restarts, outliers) == (times, 0, 1)


@pytest.mark.parametrize("first", [0, 5, 9])
@pytest.mark.parametrize("more", [0, 1])
def test_a_clock_that_wrong_time_stamps_hold_is_released(first: int, more: int) -> None:
    """Every 10th frame is stamped an hour ahead. Muxers raise all later time stamps to that."""
    times = list(range(0, 4000, 40))
    stamps: list[int] = []
    for number, time in enumerate(times):
        wrong = 3_600_000 if number % 10 == first else 0
        stamps.append(max(time + wrong, stamps[-1] + more if stamps else 0))
    found, restarts, _ = mended_times(stamps, Fraction(40), 1000)
    assert ([time - found[0] for time in found], restarts) == (times, 0)


@pytest.mark.parametrize("frames_before", [0, 10])
def test_a_held_clock_keeps_the_exact_rate(frames_before: int) -> None:
    """A thousandth of a second is no multiple of 1/29.97 s."""
    times = [round(1001 * n / 30) for n in range(3000)]
    stamps = [time if n < frames_before else 3_600_000 for n, time in enumerate(times)]
    found = mended_times(stamps, Fraction(1001, 30), 1000).times
    assert all(abs(a - b - found[0]) <= 2 for a, b in zip(found, times, strict=True))


def test_a_clock_that_is_held_for_two_seconds_catches_up() -> None:
    times = list(range(0, 4000, 40))
    stamps = [max(time, 2400) if n >= 10 else time for n, time in enumerate(times)]
    assert mended_times(stamps, Fraction(40), 1000) == (times, 0, 51)


@given(st.lists(st.integers(1, 10**9), max_size=60), st.integers(1, 5000))
def test_rising_time_stamps_with_gaps_are_the_times(steps: list[int], step: int) -> None:
    times = np.cumsum([0, 3000, *(2 * one for one in steps), 3000]).tolist()
    assert mended_times(times, Fraction(step), 1000) == (times, 0, 0)


def test_time_stamps_that_only_change_places_are_kept() -> None:
    stamps = [0, 40, 120, 80, 160, 240, 200, *range(280, 2000, 40)]
    assert continuous_times(stamps, 40, 1000).times == stamps


@given(
    st.sampled_from([Rational(30, 1), Rational(24000, 1001), Rational(60, 1), Rational(25, 1), Rational(240, 1)]),
    st.integers(0, 999),
    st.integers(1, 100),
)
def test_times_that_a_container_rounded_are_exact_again(rate: Rational, start: int, scale: int) -> None:
    """The first frame is shown at any time, such as 21.4 ms. A finer clock keeps the rounding of an earlier one."""
    times = [round(start / 7 + 1000 * n * rate.den / rate.num) * scale for n in range(300)]
    exact, base = exact_times(times, Rational(1, 1000 * scale), rate)
    assert {after - before for before, after in pairwise(exact)} == {base.den * rate.den // rate.num}


@given(st.lists(st.integers(0, 100_000), min_size=1, max_size=50), st.sampled_from([1000, 12800, 25]))
def test_no_time_moves_by_more_than_a_tick_or_a_millisecond(stamps: list[int], ticks: int) -> None:
    times = sorted(stamps)
    exact, base = exact_times(times, Rational(1, ticks), Rational(30000, 1001))
    assert exact == sorted(exact)
    most = max(1 / ticks, 1 / 1000)
    assert all(abs(a / base.den - b / ticks) < most for a, b in zip(exact, times, strict=True))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".flv"])
def test_a_clock_of_milliseconds_keeps_the_frames_that_an_exact_one_does(
    bench: Bench, tmp_path: Path, suffix: str
) -> None:
    rounded = bench.clip("thirty.mkv", source="-r 30")
    path = tmp_path / f"v{suffix}"
    bench.run("-i", str(rounded), "-c", "copy", str(path))
    sample = sample_of(path, rate=7.5)
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert picture_is_right(planes(path, sample), kept_frames(sample))
    assert kept_frames(sample_of(path, rate=7.5, rules=1)) != kept_frames(sample)


@pytest.mark.parametrize(
    ("suffix", "codecs"),
    [
        (".flv", "-c:v copy -c:a aac"),
        (".wmv", "-c:v wmv2 -q:v 2 -c:a wmav2"),
        (".wtv", "-c:v mpeg2video -q:v 2 -c:a mp2"),
    ],
)
def test_a_longer_audio_explains_the_duration_of_the_file(
    bench: Bench, tmp_path: Path, suffix: str, codecs: str
) -> None:
    path = tmp_path / f"v{suffix}"
    bench.run("-i", str(bench.clip("intact.mp4")), *_SINE.split(), *codecs.split(), str(path))
    assert len(kept_frames(sample_of(path))) == 25
    assert reason(path, rules=1) == "truncated"
    if suffix == ".flv":  # libavformat reads no duration from the others if they are cut
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert reason(path) == "truncated"


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        (".mp4", "-c:v libx264 -g 1"),
        (".mkv", "-c:v libx264 -g 1"),
        (".mov", "-c:v prores -pix_fmt yuv422p10le"),
        (".avi", "-c:v mpeg4 -g 1"),
        (".webm", "-c:v libvpx-vp9 -g 1 -cpu-used 8 -deadline realtime"),
        (".mkv", "-c:v ffv1 -g 1"),
    ],
)
def test_a_damaged_first_packet_costs_one_frame(bench: Bench, tmp_path: Path, suffix: str, codec: str) -> None:
    path = _damaged(bench.clip(f"{codec.split()[1]}{suffix}", codec), tmp_path / f"v{suffix}", 0)
    sample = sample_of(path)
    assert sample.facts.source.frames == 24
    assert any("ffmpeg complained" in remark for remark in sample.facts.remarks)
    assert picture_is_right(planes(path, sample), list(range(1, 25)))
    assert reason(path, rules=1) == "unreadable"


@pytest.mark.parametrize(
    ("suffix", "codec", "decoded"),
    [
        (".mp4", "-c:v libx264 -bf 0", 43),
        (".mov", "-output_ts_offset 3 -c:v libx264 -bf 0", 43),
        (".mp4", "-c:v libx265 -x265-params log-level=error:pools=1", 40),
        (".webm", "-c:v libvpx-vp9 -cpu-used 8 -deadline realtime", 40),
    ],
)
def test_a_damaged_first_key_frame_is_no_early_end(
    bench: Bench, tmp_path: Path, suffix: str, codec: str, decoded: int
) -> None:
    """The last frame ends where the container says. The first group of pictures is lost."""
    clip = bench.clip(f"groups-{len(codec)}{suffix}", f"{codec} -g 10", frames=50)
    path = _damaged(clip, tmp_path / f"v{suffix}", 0)
    failure = encode(path).failure
    assert failure and failure.reason == "damaged"
    assert failure.detail.startswith(f"{50 - decoded} of 50 frames don't decode (")
    sample = sample_of(path, keep_truncated=True)
    assert sample.facts.source.frames == decoded
    assert sample.facts.remarks[1:] == (f"its first {(50 - decoded) / 25:.2f} s do not decode",)
    if "offset" not in codec:
        assert reason(path, rules=2) == "truncated"


def test_a_container_whose_frames_all_fail_is_undecodable(bench: Bench, tmp_path: Path) -> None:
    path = _damaged(bench.clip("intact.mp4"), tmp_path / "v.mp4", *range(25))
    assert reason(path) == "undecodable"


def test_encrypted_frames_are_named(bench: Bench, tmp_path: Path) -> None:
    keys = f"-encryption_scheme cenc-aes-ctr -encryption_key {'0' * 32} -encryption_kid {'1' * 32}"
    clip = bench.clip("intact.mp4")
    bench.run("-i", str(clip), "-c", "copy", *keys.split(), str(tmp_path / "v.mp4"))
    failure = encode(tmp_path / "v.mp4").failure
    assert failure and (failure.reason, failure.detail) == ("undecodable", "the frames are encrypted")


def test_frames_that_decode_are_kept_though_most_are_damaged(bench: Bench, tmp_path: Path) -> None:
    clip = bench.clip("mjpeg.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p")
    path = _damaged(clip, tmp_path / "v.mov", *range(1, 24))
    assert reason(path) == "damaged"
    assert kept_frames(sample_of(path, keep_truncated=True)) == [0, 1]
    assert reason(path, keep_truncated=True, rules=1) == "ffmpeg-failed"


@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "mpeg4"), (".mkv", "wmv2"), (".flv", "flv")])
def test_frames_before_the_first_key_frame_are_left_out(bench: Bench, tmp_path: Path, suffix: str, codec: str) -> None:
    whole = bench.clip(f"gop-{codec}{suffix}", f"-c:v {codec} -q:v 2 -g 6 -sc_threshold 1000000000")
    path = tmp_path / f"v{suffix}"
    bench.run("-i", str(whole), "-ss", "0.08", "-c", "copy", "-copyinkf", str(path))
    sample = sample_of(path, stride=2)
    assert "begins with 4 frames that lack their references: they are left out" in sample.facts.remarks
    assert (sample.facts.source.frames, kept_frames(sample)) == (23, list(range(4, 23, 2)))
    assert picture_is_right(planes(path, sample), [frame + 2 for frame in kept_frames(sample)])
    assert kept_frames(sample_of(path, stride=2, rules=1)) == list(range(0, 23, 2))


def test_a_video_without_any_key_frame_keeps_all_frames(bench: Bench, tmp_path: Path) -> None:
    whole = bench.clip("one-gop.avi", "-c:v mpeg4 -q:v 2 -g 100")
    bench.run("-i", str(whole), "-ss", "0.08", "-c", "copy", "-copyinkf", str(tmp_path / "v.avi"))
    assert len(kept_frames(sample_of(tmp_path / "v.avi"))) == 23


def test_a_frame_a_minute_is_built(bench: Bench, tmp_path: Path) -> None:
    path = bench.clip("slow.avi", "-c:v mpeg4 -q:v 2", source="-r 1/60")
    path = Path(os.path.realpath(path)).rename(tmp_path / "slow.avi")
    sample = sample_of(path)
    assert sample.facts.rate == Rational(1, 60)
    assert picture_is_right(planes(path, sample), list(range(25)))
    assert reason(path, rules=1) == "encode-mismatch"


def test_a_display_matrix_of_zeros_turns_nothing(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    path.write_bytes(patched(bench.clip("intact.mp4").read_bytes(), "moov/trak/tkhd", 40, ">9i", *[0] * 9))
    sample = sample_of(path)
    assert (sample.facts.source.rotation, sample.facts.remarks) == (0, ())
    assert picture_is_right(planes(path, sample), list(range(25)))


@pytest.mark.parametrize(("size", "rate"), [("720x576", "25"), ("720x480", "30000/1001")])
def test_raw_dv_has_the_rate_of_its_frames(bench: Bench, tmp_path: Path, size: str, rate: str) -> None:
    pixels = "yuv420p" if rate == "25" else "yuv411p"
    clip = bench.clip(f"{size}.dv", f"-c:v dvvideo -pix_fmt {pixels}", size=size, frames=2, source=f"-r {rate}")
    num, _, den = rate.partition("/")
    for name in ("v.dv", "v.mov"):  # libavformat knows it by its bytes
        path = tmp_path / name
        path.write_bytes(clip.read_bytes())
        assert probe_video(bytes(path)).frame_rate == Rational(int(num), int(den or 1))


def test_packets_that_mp4_refuses_are_encoded_in_profile_copy(bench: Bench, tmp_path: Path) -> None:
    path, plain = tmp_path / "v.mkv", bench.clip("plain.mp4", "-c:v libx264 -bf 0")
    bench.run("-itsoffset", "-0.5", "-i", str(plain), "-c", "copy", "-avoid_negative_ts", "disabled", str(path))
    sample = sample_of(path, profile="copy", short_side=64)
    assert sample.facts.profile == "h264"
    assert picture_is_right(planes(path, sample), list(range(25)))
    assert reason(path, profile="copy", short_side=64, rules=1) == "ffmpeg-failed"
