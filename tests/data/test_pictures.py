"""What of a decoded picture reaches a shard: its crop, size, aspect, rotation and colours, also if they change midway."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.test_resize import _encode
from tools.soak.damages.mp4_boxes import replace_mkv_colours, replace_mp4_colours
from vmae_data.decode import DecodedVideo, decode_all
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.open_source import open_source, read_pictures
from vmae_data.encode.staged import StagedSource
from vmae_data.format import expand_series

pytestmark = pytest.mark.processes

_TAGS = "-color_range tv -colorspace bt709 -color_trc bt709 -color_primaries bt709"
_RED = "color=c=0xC04030:s=96x64:r=25:d=1"


def _ffmpeg(words: str, path: Path) -> Path:
    subprocess.run([find_ffmpeg().path, "-y", "-v", "error", *words.split(), str(path)], check=True)
    return path


def _joined(*paths: Path) -> Path:
    """TS files one after the other, as a recorder writes them."""
    joined = paths[0].with_name(f"joined{paths[0].suffix}")
    joined.write_bytes(b"".join(path.read_bytes() for path in paths))
    return joined


def _concatenated(*paths: Path) -> Path:
    script = paths[0].with_name("list.txt")
    script.write_text("".join(f"file '{path}'\n" for path in paths))
    return _ffmpeg(f"-f concat -safe 0 -i {script} -c copy", paths[0].with_name(f"joined{paths[0].suffix}"))


def _planes(staged: StagedSource, staging: Path) -> DecodedVideo:
    assert staged.failure is None, staged.failure
    (member,) = staged.samples[0].members
    return decode_all((staging / member.file).read_bytes(), member.phase.frames, "v")


def _gray(path: Path, codec: str, pixels: str, level_range: str) -> Path:
    """The left half has the level 16 of 8 bits, the right half 235."""
    levels = np.full((48, 64), 16, np.uint16)
    levels[:, 32:] = 235
    if pixels != "gray":
        levels <<= int(pixels[4:6]) - 8
    raw = path.with_suffix(".raw")
    raw.write_bytes(levels.astype("u1" if pixels == "gray" else "<u2").tobytes() * 5)
    tag = f"-vf setparams=range={level_range} -color_range {level_range}"
    return _ffmpeg(f"-f rawvideo -pix_fmt {pixels} -s 64x48 -i {raw} {tag} -pix_fmt {pixels} {codec}", path)


@pytest.mark.parametrize(
    ("codec", "pixels", "suffix"),
    [
        ("-c:v ffv1", "gray", ".mkv"),
        ("-c:v ffv1", "gray16le", ".mkv"),
        ("-c:v libx265 -x265-params log-level=error:pools=1:lossless=1", "gray", ".mp4"),
        ("-c:v libaom-av1 -cpu-used 8 -crf 1", "gray", ".mkv"),
    ],
)
def test_gray_of_limited_range_keeps_its_levels(tmp_path: Path, codec: str, pixels: str, suffix: str) -> None:
    for level_range, profile, levels in (
        ("tv", "h264", (16, 235)),
        ("tv", "mjpeg", (0, 255)),
        ("pc", "h264", (30, 218)),
    ):
        path = _gray(tmp_path / f"{level_range}{suffix}", codec, pixels, level_range)
        video = _planes(_encode(path, tmp_path, short_side=48, crf=1, qscale=1, profile=profile), tmp_path)
        assert (int(video.y_THW[0, 20, 10]), int(video.y_THW[0, 20, 50])) == pytest.approx(levels, abs=1), profile


def test_gray_is_taken_for_full_range_by_older_rules(tmp_path: Path) -> None:
    path = _gray(tmp_path / "v.mkv", "-c:v ffv1", "gray", "tv")
    video = _planes(_encode(path, tmp_path, rules=1, short_side=48, crf=1), tmp_path)
    assert (int(video.y_THW[0, 20, 10]), int(video.y_THW[0, 20, 50])) == (30, 218)


def cropped_mp4(folder: Path) -> Path:
    """320 × 240, of which the container shows the middle 120 lines."""
    path = whole(folder / "v.mp4")
    crop = struct.pack(">8I", 320, 1, 120, 1, 0, 1, 0, 1)  # width, height, offsets of the centre
    path.write_bytes(replace_mp4_colours(path.read_bytes(), b"clap", crop))
    return path


def cropped_mkv(folder: Path) -> Path:
    """The same by PixelCropTop and PixelCropBottom."""
    path = whole(folder / "v.mkv")
    path.write_bytes(replace_mkv_colours(path.read_bytes(), b"\x54\xbb\x81\x3c\x54\xaa\x81\x3c"))
    return path


def whole(path: Path) -> Path:
    words = "-f lavfi -i testsrc=size=320x240:rate=25 -t 0.4 -vf setsar=1 -c:v libx264 -pix_fmt yuv420p"
    return _ffmpeg(f"{words} {_TAGS} -movflags +write_colr", path)


@pytest.mark.parametrize("make", [cropped_mp4, cropped_mkv])
@pytest.mark.parametrize("profile", ["h264", "copy"])
def test_a_container_crop_is_applied_and_its_aspect_kept(
    tmp_path: Path, make: Callable[[Path], Path], profile: str
) -> None:
    staged = _encode(make(tmp_path), tmp_path, short_side=240, stride=1, crf=1, profile=profile)
    video, facts = _planes(staged, tmp_path), staged.samples[0].facts
    assert (facts.source.width, facts.source.height) == (facts.width, facts.height) == (320, 120)
    assert facts.profile == "h264"
    uncropped = _planes(_encode(whole(tmp_path / "whole.mp4"), tmp_path, short_side=240, stride=1, crf=1), tmp_path)
    assert np.abs(video.y_THW.astype(int) - uncropped.y_THW[:, 60:180]).mean() < 1


def test_a_crop_to_less_than_a_patch_is_too_small(tmp_path: Path) -> None:
    path = cropped_mkv(tmp_path)
    path.write_bytes(
        path.read_bytes().replace(b"\x54\xbb\x81\x3c\x54\xaa\x81\x3c", b"\x54\xbb\x81\x7c\x54\xaa\x81\x6c")
    )
    failure = _encode(path, tmp_path).failure
    assert failure is not None
    assert (failure.reason, failure.detail.startswith("320 × 8 ")) == ("too-small", True)


def _halves(folder: Path, first: str, second: str, *, suffix: str = ".ts", codec: str = "-c:v libx264 -crf 1") -> Path:
    """A red second twice, with other options."""
    parts = [
        _ffmpeg(f"-f lavfi -i {_RED} {codec} {options}", folder / f"{name}{suffix}")
        for name, options in (("a", first), ("b", second))
    ]
    return _joined(*parts) if suffix == ".ts" else _concatenated(*parts)


def _tagged(matrix: str, pixels: str = "yuv420p", level_range: str = "tv") -> str:
    name = "bt709" if matrix == "bt709" else "smpte170m"
    return (
        f"-vf scale=out_color_matrix={matrix}:out_range={level_range} -pix_fmt {pixels} "
        f"-colorspace {name} -color_trc {name} -color_primaries {name} -color_range {level_range}"
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_tagged("bt709"), _tagged("bt601")),
        (_tagged("bt709"), _tagged("bt601", "yuv420p10le")),
        (_tagged("bt601"), _tagged("bt709", level_range="pc")),
        (_tagged("bt601", "yuv444p"), _tagged("bt601", "yuv420p")),
        ("-vf scale=out_color_matrix=bt601 -pix_fmt yuv420p", _tagged("bt709")),
    ],
)
def test_colours_that_change_midway_are_converted_in_both_parts(tmp_path: Path, first: str, second: str) -> None:
    staged = _encode(_halves(tmp_path, first, second), tmp_path, short_side=64, crf=1)
    video, facts = _planes(staged, tmp_path), staged.samples[0].facts
    assert facts.source.frames == 50
    assert not any("changes" in remark for remark in facts.remarks)
    for plane in (video.y_THW, video.u_THW, video.v_THW):
        levels = plane.mean(axis=(1, 2))
        assert np.abs(levels - levels[0]).max() < 1.5


@pytest.mark.parametrize("turned", [False, True])
def test_pictures_of_another_size_are_scaled_to_the_first_and_noted(tmp_path: Path, turned: bool) -> None:
    parts = [
        _ffmpeg(
            f"-f lavfi -i testsrc2=s={size}:r=25:d=1 -c:v libvpx-vp9 -deadline realtime -b:v 2M",
            tmp_path / f"{size}.webm",
        )
        for size in ("160x120", "96x64", "200x180")
    ]
    path = _concatenated(*parts)
    if turned:
        path = _ffmpeg(f"-display_rotation 90 -i {path} -c copy", tmp_path / "turned.mp4")
    for phases in (1, 2):
        staged = _encode(path, tmp_path, short_side=64, crf=1, stride=4, phases=phases)
        assert staged.failure is None
        facts = staged.samples[0].facts
        assert (facts.width, facts.height) == ((64, 86) if turned else (86, 64))
        assert facts.source.frames == 75
        note = "from 160 × 120 to 96 × 64: all pictures are scaled to the first size"
        assert facts.remarks == (f"the picture's size changes between frames 24 and 28 {note}",)
    video = _planes(_encode(path, tmp_path, short_side=64, crf=1, stride=1), tmp_path)
    for number, part in enumerate(parts):
        first = _first_picture(part, "transpose=cclock," if turned else "", facts.width, facts.height)
        assert np.abs(video.y_THW[25 * number].astype(int) - first).mean() < 3


def _first_picture(path: Path, turn: str, width: int, height: int) -> NDArray[np.int64]:
    """Luma, decoded and scaled by ffmpeg alone."""
    words = f"-v error -i {path} -frames:v 1 -vf {turn}scale={width}:{height}:flags=bicubic:out_color_matrix=bt709"
    raw = subprocess.run(
        [find_ffmpeg().path, *words.split(), "-pix_fmt", "yuv420p", "-f", "rawvideo", "-"],
        capture_output=True,
        check=True,
    ).stdout
    return np.frombuffer(raw[: width * height], np.uint8).reshape(height, width).astype(int)


def _size_change(folder: Path) -> Path:
    parts = [
        _ffmpeg(f"-f lavfi -i testsrc2=s={size}:r=25:d=0.48 -c:v libx264 -pix_fmt yuv420p", folder / f"{size}.ts")
        for size in ("96x64", "128x96")
    ]
    return _joined(*parts)


@pytest.mark.parametrize(
    ("keys", "place"),
    [
        ({"stride": 1}, "at frame 12"),
        ({"stride": 5}, "between frames 10 and 15"),
        ({"stride": 5, "rules": 2}, "at frame 15"),
    ],
)
def test_the_place_of_a_change_of_size_is_as_exact_as_the_kept_frames(
    tmp_path: Path, keys: dict[str, object], place: str
) -> None:
    """The second part begins with frame 12."""
    path = _size_change(tmp_path)
    facts = _encode(path, tmp_path, short_side=64, **keys).samples[0].facts  # type: ignore[arg-type]
    assert any(f"size changes {place} from 96 × 64 to 128 × 96" in remark for remark in facts.remarks)
    failure = _encode(path, tmp_path, short_side=64, size_changes="refuse", **keys).failure  # type: ignore[arg-type]
    assert failure is not None
    assert failure.detail == f"the picture's size changes {place}; encode it with one size"


def test_the_place_of_a_change_of_size_is_an_upper_bound_if_a_rate_chooses_the_frames(tmp_path: Path) -> None:
    path = _size_change(tmp_path)
    facts = _encode(path, tmp_path, short_side=64, stride=None, rate=5.0).samples[0].facts
    assert any("size changes at or before frame 15 from 96 × 64 to 128 × 96" in remark for remark in facts.remarks)


@pytest.mark.parametrize("keys", [{"size_changes": "refuse"}, {"rules": 1}])
@pytest.mark.parametrize("profile", ["h264", "copy"])
def test_a_change_of_size_is_refused_if_the_recipe_or_older_rules_say_so(
    tmp_path: Path, keys: dict[str, object], profile: str
) -> None:
    path = _size_change(tmp_path)
    failure = _encode(path, tmp_path, short_side=64, stride=1, profile=profile, **keys).failure  # type: ignore[arg-type]
    assert failure is not None
    assert (failure.reason, "frame 12" in failure.detail) == ("size-changes", True)


def test_copy_encodes_a_source_whose_pictures_change(tmp_path: Path) -> None:
    for path in (_size_change(tmp_path), _halves(tmp_path, _tagged("bt709"), _tagged("bt601"))):
        for choice in ("scale", "refuse"):
            staged = _encode(path, tmp_path, short_side=64, stride=1, profile="copy", size_changes=choice)
            if staged.failure is None:
                assert staged.samples[0].facts.profile == "h264"


def test_a_change_of_colours_is_no_change_of_size(tmp_path: Path) -> None:
    path = _halves(tmp_path, _tagged("bt709"), _tagged("bt601"))
    for profile in ("h264", "copy"):
        staged = _encode(path, tmp_path, short_side=64, stride=1, profile=profile, size_changes="refuse")
        assert staged.failure is None, staged.failure


@pytest.mark.parametrize(
    "codec", ["-c:v mpeg2video -q:v 2", "-c:v libx264", "-c:v libx265 -x265-params log-level=error:pools=1"]
)
def test_a_sample_aspect_that_changes_midway_is_noted(tmp_path: Path, codec: str) -> None:
    path = _halves(tmp_path, "-vf setsar=1", "-vf setsar=4/3", codec=f"{codec} -pix_fmt yuv420p")
    remarks = _encode(path, tmp_path).samples[0].facts.remarks
    assert "the sample aspect changes midway: all pictures have the first one's" in remarks
    steady = _ffmpeg(f"-f lavfi -i {_RED} {codec} -vf setsar=4/3 -pix_fmt yuv420p", tmp_path / "steady.ts")
    assert not any("midway" in remark for remark in _encode(steady, tmp_path).samples[0].facts.remarks)


def dolby_vision(folder: Path, profile: int) -> Path:
    """HEVC whose container states a profile of Dolby Vision; its colours are plain ones."""
    words = f"-f lavfi -i {_RED} -c:v libx265 -x265-params log-level=error:pools=1 -tag:v hvc1 -pix_fmt yuv420p10le"
    path = _ffmpeg(f"{words} {_TAGS} -movflags +write_colr", folder / f"{profile}.mp4")
    level, has_pictures, compatible = 1, 5, 0 if profile == 5 else 1
    stated = bytes((1, 0, profile << 1, level << 3 | has_pictures, compatible << 4)) + bytes(19)
    path.write_bytes(replace_mp4_colours(path.read_bytes(), b"dvcC", stated))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_only_dolby_vision_without_a_compatible_base_is_noted(tmp_path: Path, suffix: str) -> None:
    for profile, noted in ((5, True), (8, False)):
        path = dolby_vision(tmp_path, profile)
        if suffix != ".mp4":
            path = _ffmpeg(f"-i {path} -c copy -strict unofficial", path.with_suffix(suffix))
        remarks = _encode(path, tmp_path).samples[0].facts.remarks
        assert any(remark.startswith("Dolby Vision, profile 5") for remark in remarks) == noted, remarks


@pytest.mark.parametrize(
    ("matrix", "name"),
    [("ictcp", "ICtCp"), ("ycgco", "YCgCo"), ("bt2020c", "BT.2020 with constant luminance"), ("ipt-c2", "IPT-C2")],
)
def test_colours_that_ffmpeg_does_not_convert_are_noted_and_the_video_is_made(
    tmp_path: Path, matrix: str, name: str
) -> None:
    words = f"-f lavfi -i {_RED},format=yuv420p,setparams=colorspace={matrix} -c:v ffv1"
    path = _ffmpeg(words, tmp_path / "v.mkv")
    note = f"its colours are coded as {name} and not converted, so they are wrong"
    assert _encode(path, tmp_path).samples[0].facts.remarks == (note,)
    failure = _encode(path, tmp_path, rules=1).failure
    assert failure is not None
    assert failure.reason == "undecodable"


@pytest.mark.parametrize(
    "matrix",
    [
        "-display_rotation 90",
        "-display_rotation 90 -display_hflip",
        "-display_hflip",
        "-display_vflip",
        "-display_rotation 180",
        "-display_rotation 270",
        "-display_rotation 270 -display_hflip",
        "-display_rotation 30",
    ],
)
def test_pictures_are_turned_as_by_ffmpeg_itself_and_to_the_bytes_of_older_rules(tmp_path: Path, matrix: str) -> None:
    _ffmpeg("-f lavfi -i testsrc2=s=96x64:r=25:d=0.4 -c:v libx264 -pix_fmt yuv420p", tmp_path / "upright.mp4")
    path = _ffmpeg(f"{matrix} -i {tmp_path / 'upright.mp4'} -c copy", tmp_path / "v.mp4")
    newer, older = (_encode(path, tmp_path, rules=rules).samples[0] for rules in (2, 1))
    assert newer == older


def _with_aspect(folder: Path) -> Path:
    words = "-f lavfi -i testsrc2=s=96x128:r=25:d=0.4 -vf setsar=1/2 -c:v libx264 -pix_fmt yuv420p"
    return _ffmpeg(words, folder / "2024-08-20T13:28:35Z.mp4")


def _mirrored(folder: Path) -> Path:
    return _ffmpeg(f"-display_rotation 90 -display_hflip -i {whole(folder / 'whole.mp4')} -c copy", folder / "v.mov")


def _untagged_hd(folder: Path) -> Path:
    words = "-f lavfi -i testsrc2=s=1280x720:r=25:d=0.4 -vf scale=out_color_matrix=bt709 -c:v libx264 -pix_fmt yuv420p"
    return _ffmpeg(words, folder / "v.mkv")


def _limited_gray(folder: Path) -> Path:
    return _gray(folder / "v.mkv", "-c:v ffv1", "gray10le", "tv")


def _unconverted(folder: Path) -> Path:
    return _ffmpeg(f"-f lavfi -i {_RED},format=yuv420p,setparams=colorspace=ictcp -c:v ffv1", folder / "v.mkv")


@pytest.mark.parametrize(
    "make",
    [_with_aspect, _mirrored, cropped_mp4, cropped_mkv, _untagged_hd, _limited_gray, _size_change, _unconverted],
)
def test_an_opened_video_gives_the_pictures_of_a_build(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    built = _planes(_encode(path, tmp_path, short_side=64, stride=2, crf=0), tmp_path)
    video = open_source(path)
    read = read_pictures(video, range(0, len(video.times), 2), 64)
    for found, expected in zip(read, built, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_opened_video_has_the_frames_that_a_build_keeps_at_a_rate(tmp_path: Path) -> None:
    path = _ffmpeg("-f lavfi -i testsrc2=s=96x64:r=30:d=2 -c:v libx264 -pix_fmt yuv420p", tmp_path / "v.mp4")
    (sample,) = _encode(path, tmp_path, stride=None, rate=6.25).samples
    kept = expand_series(sample.facts.phases[0].source_frames).tolist()
    assert list(open_source(path).kept_frames(6.25)) == kept


def test_copy_encodes_a_mirrored_source(tmp_path: Path) -> None:
    _ffmpeg("-f lavfi -i testsrc2=s=96x64:r=25:d=0.4 -c:v libx264 -pix_fmt yuv420p", tmp_path / "upright.mp4")
    path = _ffmpeg(f"-display_vflip -i {tmp_path / 'upright.mp4'} -c copy", tmp_path / "v.mp4")
    staged = [_encode(path, tmp_path, short_side=64, stride=1, profile=profile) for profile in ("copy", "h264")]
    assert staged[0].samples[0].facts.profile == "h264"
    assert staged[0].samples[0].members == staged[1].samples[0].members


def test_copy_does_not_need_a_matrix_that_ffmpeg_converts(tmp_path: Path) -> None:
    words = f"-f lavfi -i {_RED},format=yuv420p -c:v libx264 -x264-params colormatrix=YCgCo -bsf:v h264_metadata=matrix_coefficients=14"
    path = _ffmpeg(words, tmp_path / "v.mp4")
    for rules in (1, 2):
        staged = _encode(path, tmp_path, rules=rules, short_side=64, stride=1, profile="copy")
        assert staged.samples[0].facts.profile == "copy"
