from __future__ import annotations

import os
import resource
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_data.decode import decode_all
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.ffmpeg_arguments import Output, encode_arguments
from vmae_data.encode.probe import probe_video
from vmae_data.encode.staged import EncodeJob, StagedSource
from vmae_data.encode.thinning import select_by_stride
from vmae_data.errors import VmaeError
from vmae_data.format import RULES, Regular, expand_series
from vmae_data.names import key_of


def _write(
    path: Path,
    frames: int,
    *,
    width: int = 96,
    height: int = 64,
    rate: Fraction = Fraction(25),
    pts: list[int] | None = None,
) -> None:
    """A video whose frame n has the grey level 20 + 4 n (n below 50), so that a decoded frame reveals its number."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "5", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for n in range(frames):
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = 20 + 4 * n % 200
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts = pts[n] if pts else n
            frame.time_base = 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _encode(path: Path, staging: Path, *, rules: int = RULES, **spec: object) -> StagedSource:
    job = EncodeJob(
        key=key_of(os.fsencode(path.name)),
        path=os.fsencode(path.name),
        folder=bytes(path.parent),
        label=None,
        class_name=None,
        split=None,
        spec=BuildSpec(**{"short_side": 32, "stride": 4, **spec}),
        ffmpeg=find_ffmpeg().path,
        staging=staging,
        rules=rules,
        plan_rules=rules,
    )
    return encode_source(job)


@pytest.mark.parametrize(("frames", "stride"), [(50, 4), (49, 4), (1, 4), (2, 1), (33, 2), (5, 7)])
def test_exactly_every_kth_frame_is_kept(tmp_path: Path, frames: int, stride: int) -> None:
    _write(tmp_path / "v.mp4", frames)
    staged = _encode(tmp_path / "v.mp4", tmp_path, stride=stride, crf=1)
    (sample,) = staged.samples
    kept = list(range(0, frames, stride))
    assert sample.facts.source.frames == frames
    assert expand_series(sample.facts.phases[0].source_frames).tolist() == kept
    video = decode_all((tmp_path / sample.members[0].file).read_bytes(), len(kept), "v")
    levels = video.y_THW.mean(axis=(1, 2))
    np.testing.assert_allclose(levels, [20 + 4 * n for n in kept], atol=2.5)


def test_times_are_those_of_the_frames_not_of_the_header(tmp_path: Path) -> None:
    pts = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21]  # gaps after frames 3 and 7
    _write(tmp_path / "v.mkv", 10, pts=pts)
    (sample,) = _encode(tmp_path / "v.mkv", tmp_path, stride=2).samples
    phase = sample.facts.phases[0]
    base = phase.source_time_base.num / phase.source_time_base.den
    np.testing.assert_allclose(expand_series(phase.source_times) * base * 25, pts[::2], atol=0.05)
    assert phase.frames == 5


def test_the_kept_frames_have_a_constant_frame_rate_and_begin_at_zero(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 40, rate=Fraction(30000, 1001))
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path).samples
    assert (sample.facts.rate.num, sample.facts.rate.den) == (30000, 4004)
    with av.open(str(tmp_path / sample.members[0].file)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == Fraction(30000, 4004)
        seconds = [float(frame.time) for frame in container.decode(stream)]
    np.testing.assert_allclose(seconds, np.arange(10) * 4004 / 30000, atol=1e-6)


def test_every_gop_begins_with_a_key_frame(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 50)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, stride=1, gop=16).samples
    assert sample.members[0].packets.keys == (0, 16, 32, 48)


def test_the_packet_table_describes_the_file(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 50)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, stride=1).samples
    member = sample.members[0]
    data = (tmp_path / member.file).read_bytes()
    decoder = av.CodecContext.create(member.codec, "r")
    decoder.extradata = member.extradata
    decoded = []
    for position, size in zip(member.packets.positions, member.packets.sizes, strict=True):
        decoded += decoder.decode(av.Packet(data[position : position + size]))
    decoded += decoder.decode(None)
    assert len(decoded) == 50  # without a demuxer


def test_the_same_source_gives_the_same_bytes_in_any_folder(tmp_path: Path) -> None:
    for folder in ("a", "b -c;$(d)"):
        (tmp_path / folder).mkdir()
        _write(tmp_path / folder / "v.mp4", 20)
    data = [
        (tmp_path / folder / sample.members[0].file).read_bytes()
        for folder in ("a", "b -c;$(d)")
        for sample in _encode(tmp_path / folder / "v.mp4", tmp_path / folder).samples
    ]
    assert data[0] == data[1]


@pytest.mark.parametrize(
    "name", ["-y.mp4", "a\udcff.mp4", "a'b\"c.mp4", "new\nline.mp4", "%d.mp4", "http:x.mp4", "a;b|c&d.mp4", "é.mp4"]
)
def test_ffmpeg_takes_no_name_for_an_option_or_a_pattern(tmp_path: Path, name: str) -> None:
    _write(tmp_path / "v.mp4", 8)
    (tmp_path / "v.mp4").rename(tmp_path / name)
    assert _encode(tmp_path / name, tmp_path).failure is None


def test_a_file_cut_in_the_middle_fails_unless_truncated_files_are_kept(tmp_path: Path) -> None:
    _write(tmp_path / "whole.mkv", 60, width=192, height=128)
    data = (tmp_path / "whole.mkv").read_bytes()
    # Matroska states its duration at the front, so a cut file declares more than it holds.
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    failed = _encode(tmp_path / "cut.mkv", tmp_path)
    assert failed.failure is not None
    assert failed.failure.reason == "truncated"
    assert "of 2.40 s" in failed.failure.detail
    assert _encode(tmp_path / "cut.mkv", tmp_path, keep_truncated=True).failure is None


def test_frames_are_selected_before_scaling_with_one_thread(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 4)
    source = bytes(tmp_path / "v.mp4")
    output = Output(select_by_stride(4), str(tmp_path / "o.mp4"))
    arguments = encode_arguments("ffmpeg", BuildSpec(), probe_video(source), source, [output], tmp_path / "scratch")
    filters = arguments[arguments.index("-vf") + 1]
    assert filters.index("select=") < filters.index("scale=")
    assert arguments.count("-threads") == 2  # decoder and encoder
    assert all(arguments[n + 1] == "1" for n, name in enumerate(arguments) if name in ("-threads", "-filter_threads"))


def test_a_retried_encode_replaces_what_was_staged(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 8)
    first = _encode(tmp_path / "v.mp4", tmp_path)
    assert _encode(tmp_path / "v.mp4", tmp_path) == first
    assert isinstance(first.samples[0].facts.phases[0].source_frames, Regular)


def test_real_videos_have_the_expected_outcome(real_videos: Path, tmp_path: Path) -> None:
    expected = {
        "arm_wrestling.mp4": (280, 426, 256),
        "structuralize.mp4": (300, 426, 240),
        "part_0.mp4": (32, 454, 256),
        "test.avi": (164, 320, 240),
        "flipping_a_pancake.mkv": (310, 426, 240),
        "rotated_90.mov": (3, 256, 454),
        "rotated_180.mov": (3, 454, 256),
        "unordered.mov": (4, 50, 50),
        "corrupted.mp4": (49, 456, 256),
        "vtest.avi": (795, 342, 256),
        "tree.avi": (68, 320, 240),
    }
    for name, (frames, width, height) in expected.items():
        staged = _encode(real_videos / name, tmp_path, short_side=256)
        assert staged.failure is None, name
        facts = staged.samples[0].facts
        assert (facts.source.frames, facts.width, facts.height) == (frames, width, height), name
        assert facts.phases[0].frames == -(-frames // 4), name


def test_a_video_that_begins_late_is_not_truncated(tmp_path: Path) -> None:
    _write(tmp_path / "late.mkv", 20, pts=[50 + n for n in range(20)])  # 0.8 s of pictures, from second 2
    assert _encode(tmp_path / "late.mkv", tmp_path).failure is None


def test_a_full_disk_is_no_failure_of_the_video(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 200, width=320, height=240)
    (tmp_path / "staging").mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(VmaeError, match="no space left"):
            _encode(tmp_path / "v.mp4", tmp_path / "staging", short_side=240, stride=1, crf=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "staging").iterdir())  # no failure of the video is recorded


def test_a_pipe_is_no_video_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    failure = _encode(tmp_path / "pipe.mp4", tmp_path).failure
    assert failure is not None
    assert failure.reason == "not-a-file"
