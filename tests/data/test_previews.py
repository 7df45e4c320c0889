from __future__ import annotations

import base64
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from vmae_data.errors import SampleError
from vmae_data.pages import previews as module
from vmae_data.pages.previews import MOST_FRAMES, MOST_RATE, SIDE, Previews
from vmae_data.read.dataset import Shards


def _bytes(video: str) -> bytes:
    assert video.startswith("data:video/mp4;base64,")
    return base64.b64decode(video.partition(",")[2])


def _times(data: bytes) -> tuple[str, list[float]]:
    """The codec, and when each frame is shown."""
    with av.open(io.BytesIO(data)) as file:
        return file.streams.video[0].codec.name, [float(frame.time or 0) for frame in file.decode(video=0)]


def _member(codec: str, frames: int, rate: Fraction, size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        stream = file.add_stream(codec, rate=rate, options={"bf": "0"})
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 40 + number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(stream.encode(None))
    return out.getvalue()


def _add(previews: Previews, data: bytes, frames: int, rate: float) -> str:
    return previews.add(data, "key", frames=frames, rate=rate, is_bt709=False, full_range=False)


def test_a_member_in_h264_plays_as_it_is_at_the_speed_of_its_source(demo_shards: Path) -> None:
    shards, previews = Shards.open(str(demo_shards)), Previews()
    assert shards.index.stride == 2  # a thinned video
    for number in range(3):
        data = shards.sample(number).data
        frames, rate = int(shards.frames_NP[number, 0]), float(shards.rate_N[number])
        assert rate == pytest.approx(shards.source_rate_N[number] / 2)
        assert _bytes(_add(previews, data, frames, rate)) == data
        assert _times(data) == ("h264", pytest.approx([n / rate for n in range(frames)], abs=1e-3))
    assert list(previews.notes()) == [
        "Videos play the kept frames at the speed of the source, without sound. They need a browser that plays H.264."
    ]


@pytest.mark.parametrize(("codec", "rate"), [("mpeg4", Fraction(15)), ("mjpeg", Fraction(50)), ("mpeg4", Fraction(5))])
def test_the_start_of_another_codec_is_encoded_and_keeps_its_speed(codec: str, rate: Fraction) -> None:
    previews, data = Previews(), _member(codec, 80, rate, (400, 240))
    made = _bytes(_add(previews, data, 80, float(rate)))
    name, times = _times(made)
    step = -(-float(rate) // MOST_RATE)
    assert name == "h264"
    assert times == pytest.approx([n * step / float(rate) for n in range(min(MOST_FRAMES, round(80 / step)))], abs=1e-3)
    with av.open(io.BytesIO(made)) as file:
        assert (file.streams.video[0].height, file.streams.video[0].width) == (SIDE, 266)
    assert made == _bytes(_add(Previews(), data, 80, float(rate)))
    (_, note) = previews.notes()
    assert "So their start was encoded for this page: at most 60 frames, 12.5 per second" in note


def test_a_large_member_is_encoded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _member("libx264", 8, Fraction(10))
    monkeypatch.setattr(module, "MEMBER_BYTES", len(data) - 1)
    previews = Previews()
    assert _bytes(_add(previews, data, 8, 10)) != data
    assert (previews.members, previews.encoded) == (0, 1)


def test_a_video_of_hours_between_its_frames_plays_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMBER_BYTES", 0)
    made = _bytes(_add(Previews(), _member("libx264", 3, Fraction(10)), 3, 1e-6))
    assert _times(made)[1] == pytest.approx([0, 1000, 2000])


def test_a_full_page_counts_the_videos_that_it_omits() -> None:
    data = _member("libx264", 8, Fraction(10))
    previews = Previews(page_bytes=2 * len(data))
    assert [bool(_add(previews, data, 8, 10)) for _ in range(4)] == [True, True, False, False]
    assert previews.bytes <= previews.page_bytes
    (_, note) = previews.notes()
    assert note.startswith("2 of 4 videos show frames only: a page has at most ")


def test_a_member_that_does_not_decode_is_an_error_with_its_key() -> None:
    data = bytearray(_member("mpeg4", 8, Fraction(10)))
    at = data.index(b"mdat")
    data[at + 40 :] = bytes(len(data) - at - 40)
    with pytest.raises(SampleError):
        _add(Previews(), bytes(data), 8, 10)
