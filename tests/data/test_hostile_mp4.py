"""Malicious mp4 members are refused before they are opened, allocated or decoded."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.refusals import data_refusal
from vmae_data.decode import decode_frames
from vmae_data.read.dataset import Shards

pytestmark = pytest.mark.processes


@pytest.fixture
def mp4(demo_shards: Path) -> bytes:
    shards = Shards.open(str(demo_shards))
    return shards.sample(0).data


def _size(demo_shards: Path) -> tuple[int, int]:
    return Shards.open(str(demo_shards)).frame_size(0)


def _patched(data: bytes, box: bytes, offset: int, new: bytes) -> bytes:
    """Overwrite bytes after the name of a box."""
    start = data.index(box) + len(box) + offset
    return data[:start] + new + data[start + len(new) :]


@pytest.mark.parametrize("claim", [10**9, 2**32 - 1, 10**7])
def test_an_mp4_that_claims_more_frames_than_bytes_is_refused_before_it_is_opened(mp4: bytes, claim: int) -> None:
    same_size_for_all = struct.pack(">III", 0, 4, claim)
    data = _patched(mp4, b"stsz", 0, same_size_for_all)
    before = _peak_after_reset()
    assert f"claims {claim} frames" in data_refusal(lambda: list(decode_frames(data, (0,), "key")))
    assert _peak() - before < 50


def test_a_fragmented_mp4_is_refused(mp4: bytes) -> None:
    assert "fragmented" in data_refusal(lambda: list(decode_frames(mp4 + b"\0\0\0\x08moof", (0,), "key")))


def test_invalid_mp4_boxes_are_refused(mp4: bytes) -> None:
    for length in (1, 7, 100):
        start = mp4.index(b"moov") - 4
        data = mp4[:start] + struct.pack(">I", length) + mp4[start + 4 :]
        data_refusal(lambda data=data: list(decode_frames(data, range(2), "key")))
    deep = b"".join(struct.pack(">I", 8 * (2000 - n)) + b"trak" for n in range(2000))
    data_refusal(lambda: list(decode_frames(struct.pack(">I", 16008) + b"moov" + deep, (0,), "key")))


def _exp_golomb(value: int) -> str:
    bits = f"{value + 1:b}"
    return "0" * (len(bits) - 1) + bits


def _parameter_set(blocks: int) -> bytes:
    """An H.264 sequence parameter set of frames that are `blocks` × 16 pixels wide and high."""
    ue = _exp_golomb
    bits = f"{66:08b}{0:08b}{52:08b}" + ue(0) + ue(0) + ue(2) + ue(1) + "0" + ue(blocks - 1) * 2 + "1" + "1" + "0" + "0"
    bits += "1"
    bits += "0" * (-len(bits) % 8)
    return b"\x67" + int(bits, 2).to_bytes(len(bits) // 8)


@pytest.mark.parametrize("blocks", [1000, 4096])
def test_an_mp4_that_claims_huge_frames_allocates_no_memory(mp4: bytes, demo_shards: Path, blocks: int) -> None:
    start = mp4.index(b"avcC") + 4 + 6
    length = struct.unpack(">H", mp4[start : start + 2])[0]
    made = _parameter_set(blocks)
    data = mp4[: start + 2] + made.ljust(length, b"\0") + mp4[start + 2 + length :]
    assert len(made) <= length
    for size in (None, _size(demo_shards)):
        before = _peak_after_reset()
        data_refusal(lambda size=size: list(decode_frames(data, range(3), "key", size)))
        assert _peak() - before < 100


def _peak_after_reset() -> float:
    """Reset the peak of the resident memory, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> float:
    text = Path("/proc/self/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1000


def test_frames_whose_size_differs_from_the_table_are_refused(mp4: bytes, demo_shards: Path) -> None:
    height, width = _size(demo_shards)
    for wrong in ((height + 2, width), (height, width - 2), (2, 2)):
        data_refusal(lambda wrong=wrong: list(decode_frames(mp4, (0,), "key", wrong)))
    assert len(list(decode_frames(mp4, (0, 1), "key", (height, width)))) == 2
