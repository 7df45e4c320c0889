from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.data.test_resize import _encode, _write
from vmae_data.decode import decode_some
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.probe import probe_video
from vmae_data.format import Rational, expand_series


@pytest.mark.parametrize(("profile", "codec"), [("h264", "h264"), ("mpeg4", "mpeg4"), ("mjpeg", "mjpeg")])
def test_every_profile_keeps_the_same_frames_and_states_its_colours(tmp_path: Path, profile: str, codec: str) -> None:
    _write(tmp_path / "v.mp4", 40, rate=Fraction(30000, 1001))
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, profile=profile, qscale=2, crf=2).samples
    member = sample.members[0]
    assert (member.codec, sample.facts.profile) == (codec, profile)
    assert expand_series(member.phase.source_frames).tolist() == list(range(0, 40, 4))
    video = decode_some((tmp_path / member.file).read_bytes(), [0, 3, 9], "v")
    levels = video.y_THW.mean(axis=(1, 2))
    colour = sample.facts.colour
    if colour.full_range:  # the source's 20 + 4 n is limited range
        levels = levels * 219 / 255 + 16
    assert (colour.matrix, colour.full_range) == (("bt601", True) if profile == "mjpeg" else ("bt709", False))
    np.testing.assert_allclose(levels, [20, 20 + 4 * 12, 20 + 4 * 36], atol=2.5)


def test_mpeg4_and_mjpeg_are_steady_and_give_the_same_bytes_every_time(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 40)
    for profile in ("mpeg4", "mjpeg"):
        first = _encode(tmp_path / "v.mp4", tmp_path, profile=profile)
        assert _encode(tmp_path / "v.mp4", tmp_path, profile=profile) == first
        (sample,) = first.samples
        with av.open(str(tmp_path / sample.members[0].file)) as container:
            assert container.streams.video[0].average_rate == Fraction(25, 4)
    assert len(sample.members[0].packets.keys) == 10  # every frame of mjpeg is a key frame


def test_a_frame_rate_that_mpeg4_cannot_count_is_rounded(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 20, rate=Fraction(90000, 3003))
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, profile="mpeg4", stride=1).samples
    assert sample.facts.phases[0].frames == 20


def test_a_frame_rate_of_huge_numbers_is_rounded(tmp_path: Path) -> None:
    """25 frames in 10.600053 s, in ticks of a microsecond, as an irregular recording has them."""
    _write(tmp_path / "v.mp4", 25)
    with av.open(str(tmp_path / "v.mp4")) as given, av.open(str(tmp_path / "odd.mp4"), "w") as odd:
        stream = odd.add_stream_from_template(given.streams.video[0])
        stream.time_base = Fraction(1, 1_000_000)
        for number, packet in enumerate(p for p in given.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 1_000_000)
            packet.pts = packet.dts = 424_002 * number
            packet.duration = 424_002 if number < 24 else 424_005
            odd.mux(packet)
    assert probe_video(bytes(tmp_path / "odd.mp4")).frame_rate == Rational(25_000_000, 10_600_053)
    for profile in ("h264", "mpeg4"):
        staged = _encode(tmp_path / "odd.mp4", tmp_path, profile=profile, stride=4)
        assert staged.failure is None
        assert staged.samples[0].facts.phases[0].frames == 7


def test_copy_keeps_the_packets(tmp_path: Path) -> None:
    _write(tmp_path / "v.mkv", 30)
    (sample,) = _encode(tmp_path / "v.mkv", tmp_path, profile="copy", stride=1, short_side=64).samples
    assert (sample.facts.profile, sample.facts.width, sample.facts.height) == ("copy", 96, 64)
    assert (sample.facts.colour.matrix, sample.facts.colour.assumed) == ("bt601", True)
    with av.open(str(tmp_path / "v.mkv")) as container:
        expected = [frame.to_ndarray() for frame in container.decode(video=0)]
    with av.open(str(tmp_path / sample.members[0].file)) as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("why", ["too large", "uneven times"])
def test_copy_encodes_a_source_that_it_cannot_copy(tmp_path: Path, why: str) -> None:
    uneven = [0, 1, 2, 3, 10, 11, 12, 13] if why == "uneven times" else None
    _write(tmp_path / "v.mkv", 8, pts=uneven)
    short_side = 32 if why == "too large" else 64
    (sample,) = _encode(tmp_path / "v.mkv", tmp_path, profile="copy", stride=1, short_side=short_side).samples
    assert sample.facts.profile == "h264"
    assert sample.facts.phases[0].frames == 8


@pytest.mark.parametrize(("x264", "profile"), [("intra-refresh=1", "h264"), ("open-gop=1:bframes=3", "copy")])
def test_copied_packets_decode_from_each_of_their_key_frames(tmp_path: Path, x264: str, profile: str) -> None:
    """A gradual refresh has no frame to start from, though containers list one. Leading frames need the frames before."""
    source, options = "testsrc2=s=64x64:r=25:d=2", f"{x264}:keyint=12"
    command = [find_ffmpeg().path, "-v", "error", "-f", "lavfi", "-i", source, "-pix_fmt", "yuv420p"]
    subprocess.run([*command, "-x264-params", options, str(tmp_path / "v.mp4")], check=True)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, profile="copy", stride=1, short_side=64).samples
    assert sample.facts.profile == profile
    data = (tmp_path / sample.members[0].file).read_bytes()
    expected = decode_some(data, range(50), "v")
    for number in range(50):
        np.testing.assert_array_equal(decode_some(data, [number], "v").y_THW[0], expected.y_THW[number])
