"""Which containers a build opens: the suffixes that folders take, those that a listing can name, and the rest."""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import av
import pytest

from tests.encodes import encode, kept_frames, planes, reason, sample_of
from tools.soak.damages.clips import Bench, picture_is_right
from vmae_data.encode.probe import DEMUXERS, open_container
from vmae_data.format import RULES
from vmae_data.sources.find import find_sources
from vmae_data.sources.video_files import UNOPENED_SUFFIXES, VIDEO_SUFFIXES, video_suffixes

pytestmark = pytest.mark.processes

_JPEG = "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"
_OPENED = [
    (".y4m", "-c:v wrapped_avframe", "yuv4mpegpipe"),
    (".y4m", "-c:v wrapped_avframe -pix_fmt yuv420p10le -strict -1", "yuv4mpegpipe"),
    (".mjpeg", _JPEG, "mjpeg"),
    (".mjpg", f"{_JPEG} -f mjpeg -vf setsar=1,scale=192:128", "jpeg_pipe"),
    (".apng", "-c:v apng -pix_fmt rgb24", "apng"),
    (".obu", "-c:v libaom-av1 -cpu-used 8 -crf 10 -g 8", "obu"),
    (".drc", "-c:v vc2 -pix_fmt yuv422p", "dirac"),
    (".vc2", "-c:v vc2 -pix_fmt yuv422p", "dirac"),
    (".266", "-c:v libvvenc -pix_fmt yuv420p10le -qp 10 -f vvc", "vvc"),
]
_UNOPENED = [
    (".swf", "-c:v flv -q:v 2", "96x64"),
    (".gxf", f"{_JPEG.replace('420', '422')} -r 25", "720x576"),
    (".h261", "-c:v h261 -q:v 2", "176x144"),
    (".h263", "-c:v h263 -q:v 2", "176x144"),
    (".webp", "-c:v libwebp_anim", "96x64"),
    (".dnxhd", "-c:v dnxhd -b:v 36M -pix_fmt yuv422p -s 1920x1080", "96x64"),
    (".m3u8", "-bf 0 -f hls", "96x64"),
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def _notes(folder: Path) -> str:
    return " ".join(find_sources(str(folder)).notes)


@pytest.mark.parametrize(("suffix", "options", "demuxer"), _OPENED)
def test_a_container_of_a_single_file_is_built_from_a_folder(
    bench: Bench, tmp_path: Path, suffix: str, options: str, demuxer: str
) -> None:
    path = tmp_path / f"v{suffix}"
    shutil.copy(bench.clip(f"{demuxer}{suffix}", options), path)
    with open_container(bytes(path)) as container:
        assert container.format.name == demuxer
    assert [source.path for source in find_sources(str(tmp_path)).sources] == [path.name.encode()]
    for spec in ({"stride": 4}, {"rate": 6.25}):
        sample = sample_of(path, **spec)
        assert kept_frames(sample) == list(range(0, 25, 4))
        assert sample.facts.rate.num / sample.facts.rate.den == 6.25
        assert picture_is_right(planes(path, sample), kept_frames(sample))
    assert reason(path, rules=2) == "unreadable"


@pytest.mark.parametrize(("suffix", "options", "size"), _UNOPENED)
def test_no_note_advises_to_list_a_video_that_is_not_opened(
    bench: Bench, tmp_path: Path, suffix: str, options: str, size: str
) -> None:
    shutil.copy(bench.clip(f"unopened{suffix}", options, size=size), tmp_path / f"v{suffix}")
    (tmp_path / "a.mp4").touch()
    note = _notes(tmp_path)
    failure = encode(tmp_path / f"v{suffix}").failure
    assert failure is not None
    assert failure.reason == "unreadable"
    assert failure.detail == "the file has a format that builds don't open"
    assert f"1 file in a format that builds don't open left out (1 {suffix}). Convert" in note
    assert "listing" not in note


def test_a_listing_takes_a_video_of_any_other_suffix(bench: Bench, tmp_path: Path) -> None:
    shutil.copy(bench.clip("plain.mp4", "-bf 0"), tmp_path / "v.bin")
    (tmp_path / "a.mp4").touch()
    assert "a listing can name them" in _notes(tmp_path)
    assert reason(tmp_path / "v.bin") == "none"


def test_every_suffix_is_taken_or_unopened_or_unknown(tmp_path: Path) -> None:
    """libavformat names the suffixes of its demuxers."""
    assert not VIDEO_SUFFIXES & UNOPENED_SUFFIXES
    for name in DEMUXERS.split(","):
        suffixes = {f".{one}".encode() for one in av.format.ContainerFormat(name, "r").extensions}
        assert not suffixes & UNOPENED_SUFFIXES, name
    for number, suffix in enumerate(sorted(UNOPENED_SUFFIXES)):
        (tmp_path / f"{number}{suffix.decode()}").touch()
    (tmp_path / "a.mp4").touch()
    note = _notes(tmp_path)
    assert f"{len(UNOPENED_SUFFIXES)} files in a format that builds don't open" in note
    assert "listing" not in note


def test_older_rules_have_fewer_suffixes() -> None:
    assert video_suffixes(1) < video_suffixes(2) < video_suffixes(3) == video_suffixes(RULES) == VIDEO_SUFFIXES


def test_a_single_picture_is_no_video(bench: Bench, tmp_path: Path) -> None:
    for name in ("v.mjpeg", "v.jpg"):
        shutil.copy(bench.clip("still.mjpeg", _JPEG, frames=1), tmp_path / name)
    two = bench.clip("two.apng", "-c:v apng -pix_fmt rgb24", frames=2).read_bytes()
    second = two.rindex(b"fcTL") - 4
    (tmp_path / "v.apng").write_bytes(two[:second] + two[two.rindex(b"IEND") - 4 :])
    for name in ("v.mjpeg", "v.jpg", "v.apng"):
        failure = encode(tmp_path / name).failure
        assert failure is not None
        assert (failure.reason, failure.detail) == ("no-video", "the file is a single picture")


def test_an_apng_has_the_frames_that_it_declares(bench: Bench, tmp_path: Path) -> None:
    """ffmpeg says nothing of a cut. At a frame that it refuses it stops, with a message."""
    whole, path = bench.clip("apng.apng", "-c:v apng -pix_fmt rgb24").read_bytes(), tmp_path / "v.apng"
    controls = [match.start() for match in re.finditer(b"fcTL", whole)]
    assert len(controls) == 25
    cut = whole[: controls[10] - 4]
    beyond = bytearray(whole)
    struct.pack_into(">I", beyond, controls[10] + 4 + 12, 500)  # a frame that begins outside of the picture
    for data in (cut, cut + whole[-12:], bytes(beyond)):
        path.write_bytes(data)
        failure = encode(path).failure
        assert failure is not None
        assert failure.reason == "truncated"
        assert failure.detail.startswith("10 of the 25 frames that it declares decode")
        assert kept_frames(sample_of(path, stride=1, keep_truncated=True)) == list(range(10))
    path.write_bytes(whole[: controls[24] - 4])
    assert sample_of(path).facts.remarks == ()


@pytest.mark.parametrize(
    ("suffix", "options", "size"),
    [
        (".y4m", "-c:v wrapped_avframe", "96x64"),
        (".gif", "-c:v gif -pix_fmt gray", "96x64"),
        (".nut", "-bf 0", "96x64"),
        (".dv", "-c:v dvvideo -pix_fmt yuv420p", "720x576"),
    ],
)
def test_a_cut_of_a_format_without_a_declared_duration_is_noted(
    bench: Bench, tmp_path: Path, suffix: str, options: str, size: str
) -> None:
    """libavformat reports the duration of the frames that are left."""
    whole, path = bench.clip(f"whole{suffix}", options, size=size), tmp_path / f"v{suffix}"
    with av.open(str(whole)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole.read_bytes()[: starts[10]])
    sample = sample_of(path, stride=1)
    assert kept_frames(sample) == list(range(10))
    assert any("a cut may not show" in remark for remark in sample.facts.remarks)
    if suffix != ".y4m":
        assert not any("cut" in remark for remark in sample_of(path, stride=1, rules=2).facts.remarks)


def test_a_name_with_a_pattern_opens_no_other_file(bench: Bench, tmp_path: Path) -> None:
    """A sequence of pictures would be read from the files 0.mjpeg, 1.mjpeg …"""
    options = next(options for _, options, demuxer in _OPENED if demuxer == "jpeg_pipe")
    short, whole = bench.clip("short.mjpg", f"{options} -frames:v 5"), bench.clip("jpeg_pipe.mjpg", options)
    for number in range(3):
        shutil.copy(whole, tmp_path / f"{number}.mjpg")
    shutil.copy(short, tmp_path / "%d.mjpg")
    assert kept_frames(sample_of(tmp_path / "%d.mjpg")) == list(range(5))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("v.y4m", b"YUV4MPEG2 W60000 H60000 F25:1 Ip A1:1 C420jpeg\nFRAME\n" + bytes(5000)),
        ("v.y4m", b"YUV4MPEG2 W-5 H60000 F0:0 C420jpeg\nFRAME\n" + bytes(5000)),
        ("v.y4m", b"YUV4MPEG2 W16 H16 F25:1 C420jpeg\n"),
        ("v.apng", b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s2I5BI", 13, b"IHDR", 60000, 60000, 8, 6, 0, 0, 0, 0)),
        ("v.drc", b"BBCD\x00\x00\x00\x00\x0d" + bytes(2000)),
        ("v.obu", b"\x12\x00\x0a\x0b" + bytes(2000)),
        ("v.266", b"\x00\x00\x00\x01\x00\x79" + bytes(2000)),
        ("v.mjpeg", b"\xff\xd8\xff\xc0\x00\x11\x08\xea\x60\xea\x60\x03" + bytes(2000)),
    ],
)
def test_a_header_that_claims_nonsense_is_a_failure(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    assert reason(tmp_path / name) in ("unreadable", "undecodable", "too-large")


def test_the_docs_list_the_suffixes_of_each_rules_and_those_that_are_not_opened() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-sets.md").read_text()
    rows = re.findall(r"^\| `(\.[^`]+)` \|", page, flags=re.MULTILINE)
    first, second, third, unopened = (frozenset(row.encode().split()) for row in rows)
    assert (first, first | second, first | second | third) == tuple(map(video_suffixes, (1, 2, 3)))
    assert unopened == UNOPENED_SUFFIXES
