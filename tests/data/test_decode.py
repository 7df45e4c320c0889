"""A member is decoded by its own packet table, exactly as FFmpeg's demuxer would."""

from __future__ import annotations

import random
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_resize import _encode, _write
from vmae_data import decode
from vmae_data.decode import decode_frames, decode_some, read_packets
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import SampleError
from vmae_data.motion import Vectors, motion_of_frames
from vmae_data.mp4 import packet_table

FRAMES = 40
PROFILES = ("h264", "mpeg4", "mjpeg", "copy")


@pytest.fixture(scope="module", params=PROFILES)
def member(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoded file of 40 frames, 66 × 50 pixels, with key frames 16 apart."""
    folder = tmp_path_factory.mktemp(request.param)
    moving = (
        "-f",
        "lavfi",
        "-i",
        "testsrc2=size=66x50:rate=25,noise=alls=30:allf=t:all_seed=1",
        "-frames:v",
        str(FRAMES),
    )
    options = ("-c:v", "libx264", "-g", "16", "-pix_fmt", "yuv420p", folder / "v.mp4")
    subprocess.run([find_ffmpeg().path, *moving, *options], check=True, capture_output=True)
    (sample,) = _encode(folder / "v.mp4", folder, profile=request.param, stride=1, short_side=50).samples
    return folder / sample.members[0].file


def _frames(data: bytes, numbers: Sequence[int]) -> list[tuple[bytes, ...]]:
    return [tuple(plane.tobytes() for plane in frame[1:]) for frame in decode_frames(data, numbers, "v", (50, 66))]


def test_the_packet_table_equals_what_ffmpegs_demuxer_reads(member: Path) -> None:
    assert packet_table(member.read_bytes()) == read_packets(member, "v")


def test_frames_from_every_start_equal_those_of_ffmpegs_demuxer(member: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = member.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(decode, "packet_table", lambda data: None)
        expected = _frames(data, range(FRAMES))
    assert len(set(expected)) == FRAMES
    # Nothing below may need the demuxer.
    monkeypatch.setattr(decode, "_decode_container", lambda *_: pytest.fail("the demuxer was used"))
    for start in range(FRAMES):
        for step in (1, 3):
            numbers = range(start, min(FRAMES, start + 8 * step), step)
            assert _frames(data, numbers) == [expected[number] for number in numbers]


def test_a_member_of_one_frame_is_decoded_by_its_table(tmp_path: Path) -> None:
    _write(tmp_path / "v.mp4", 1)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path).samples
    path = tmp_path / sample.members[0].file
    assert packet_table(path.read_bytes()) == read_packets(path, "v")
    assert len(decode_some(path.read_bytes(), [0], "v").y_THW) == 1


def test_damaged_tables_change_no_frame_that_ffmpegs_demuxer_reads(
    member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = member.read_bytes()
    tables = range(data.index(b"mdia"), data.index(b"mdat") - 4)
    numbers, compared = [5, 6, 30], 0
    rng = random.Random(0)
    for _ in range(150):
        changed = bytearray(data)
        changed[rng.choice(tables)] = rng.choice((0, 1, 2, 0x7F, 0xFF))
        frames = _frames_or_refusal(bytes(changed), numbers)
        with monkeypatch.context() as patch:
            patch.setattr(decode, "packet_table", lambda data: None)
            expected = _frames_or_refusal(bytes(changed), numbers)
        if expected is not None:
            compared += 1
            assert frames == expected
    assert compared > 30


def test_a_claim_of_tiny_packets_makes_no_table(tmp_path: Path) -> None:
    """The table would take 300 times the bytes of the file."""
    _write(tmp_path / "v.mp4", 9)
    (sample,) = _encode(tmp_path / "v.mp4", tmp_path, profile="mpeg4", stride=1).samples
    data = (tmp_path / sample.members[0].file).read_bytes()

    def claim(count: int, size: int) -> bytes:
        changed = bytearray(data + bytes(count * size))
        for box, start, numbers in ((b"stts", 12, (count,)), (b"stsc", 16, (count,)), (b"stsz", 8, (size, count))):
            struct.pack_into(f">{len(numbers)}I", changed, data.index(box) + start, *numbers)
        return bytes(changed)

    table = packet_table(claim(10_000, 8))
    assert table is not None
    assert table.packets.sizes == (8,) * 10_000
    assert packet_table(claim(10_000, 1)) is None


def _frames_or_refusal(data: bytes, numbers: Sequence[int]) -> list[tuple[bytes, ...]] | None:
    try:
        return _frames(data, numbers)
    except SampleError:
        return None


def test_planes_are_views_that_a_reader_may_copy(member: Path) -> None:
    for frame in decode_frames(member.read_bytes(), [3], "v"):
        assert (frame.y.shape, frame.u.shape, frame.v.shape) == ((50, 66), (25, 33), (25, 33))
        assert frame.y.dtype == np.uint8


def test_reading_motion_vectors_changes_no_frame_and_both_ways_to_decode_read_the_same(
    member: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, numbers = member.read_bytes(), list(range(3, FRAMES, 4))
    found: list[list[Vectors | None]] = [[], []]
    for number, vectors in enumerate(found):
        if number:
            monkeypatch.setattr(decode, "packet_table", lambda data: None)
        decoded = decode_frames(data, numbers, "v", (50, 66), vectors)
        assert [tuple(plane.tobytes() for plane in frame[1:]) for frame in decoded] == _frames(data, numbers)
        assert len(vectors) == len(numbers)
    for own, other in zip(*found, strict=True):
        assert own is other is None or np.array_equal(own, other)
    assert any(own is not None for own in found[0]) == ("mjpeg" not in member.parent.name)


def _vectors(*blocks: tuple[int, int, int, int, int, int]) -> Vectors:
    """Blocks of left, top, width, height and a vector in quarters of a pixel."""
    fields = ("w", "h", "dst_x", "dst_y", "motion_x", "motion_y", "motion_scale")
    rows = [(w, h, x + w // 2, y + h // 2, across, down, 4) for x, y, w, h, across, down in blocks]
    return np.array(rows, dtype=[(name, np.int32) for name in fields])


def test_a_cell_has_the_mean_length_of_its_vectors_and_a_frame_without_any_those_of_its_neighbour() -> None:
    first = _vectors((0, 0, 16, 16, 3, 4), (16, 0, 8, 8, 0, -8), (16, 0, 8, 8, 0, 4), (16, 16, 16, 16, 9, 0))
    second = _vectors((0, 0, 8, 16, 7, 0))
    motion = motion_of_frames([None, first, None, second, second[:0], None], 20, 26)
    assert motion[1].tolist() == [[5, 5, 6, 0], [5, 5, 0, 0], [0, 0, 9, 9]]
    assert motion[3].tolist() == [[7, 0, 0, 0], [7, 0, 0, 0], [0, 0, 0, 0]]
    assert np.array_equal(motion, motion[[1, 1, 3, 3, 3, 3]])
    assert np.array_equal(motion_of_frames([first], 12, 18, top=8, left=8)[0], motion[1][1:, 1:])
    assert not motion_of_frames([None, None], 20, 26).any()
