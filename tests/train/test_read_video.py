from __future__ import annotations

import subprocess
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.inference.read_video import read_clip
from vmae_train.inference.reconstruct import reconstruct_file

pytestmark = pytest.mark.processes


def _write_video(path: Path, frames: int, *, rotation: int = 0) -> None:
    """Frame n is grey with value 8 n + 40; its upper left quarter is white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(frames):
            rgb = np.full((48, 64, 3), 8 * number + 40, np.uint8)
            rgb[:24, :32] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    if rotation:
        _rotate(path, rotation)


def _rotate(path: Path, degrees: int) -> None:
    """Write the display matrix of a quarter turn into the track header, as cameras do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 4 + 20 + 16
    assert data[at : at + 4] == (0x10000).to_bytes(4, "big")
    one, minus = (0x10000).to_bytes(4, "big"), (-0x10000).to_bytes(4, "big", signed=True)
    zero, unit = bytes(4), (0x40000000).to_bytes(4, "big")
    turned = {90: (zero, one, zero, minus, zero, zero), 270: (zero, minus, zero, one, zero, zero)}[degrees]
    data[at : at + 36] = b"".join((*turned, zero, zero, unit))
    path.write_bytes(bytes(data))


def test_a_video_file_is_drawn(tiny_pretraining: Path, tmp_path: Path) -> None:
    _write_video(tmp_path / "video.mp4", 25)
    out = tmp_path / "video.png"
    reconstruct_file(str(tiny_pretraining), str(tmp_path / "video.mp4"), out, videos=1, seed=0, device="cpu")
    with Image.open(out) as still:
        assert still.width > 8 * 128


def test_a_video_that_is_too_narrow_for_the_model_is_refused_in_one_line(
    tiny_pretraining: Path, tmp_path: Path
) -> None:
    with av.open(str(tmp_path / "strip.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(10))
        stream.width, stream.height, stream.pix_fmt = 8256, 16, "yuv420p"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 8256, 3), np.uint8), format="rgb24")))
        container.mux(stream.encode())
    out = tmp_path / "video.png"
    with pytest.raises(DataError, match=r"strip\.mp4: frames of 16 × 8256 pixels .* limit of a side is 16384"):
        reconstruct_file(str(tiny_pretraining), str(tmp_path / "strip.mp4"), out, videos=1, seed=0, device="cpu")


def test_a_clip_is_from_the_middle_of_a_video_with_the_stride(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    _write_video(path, 20)
    clip = read_clip(path, 4, ClipSpec(stride=3))
    frame_numbers = (clip[:, 30:, 40:].mean(axis=(1, 2, 3)) - 40) / 8
    assert np.rint(frame_numbers).tolist() == [5, 8, 11, 14]


def test_a_short_video_repeats_its_last_frame_and_a_single_frame_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    _write_video(path, 5)
    frame_numbers = (read_clip(path, 8, ClipSpec(stride=2))[:, 30:, 40:].mean(axis=(1, 2, 3)) - 40) / 8
    assert np.rint(frame_numbers).tolist() == [0, 2, 4, 4, 4, 4, 4, 4]
    _write_video(path, 1)
    assert read_clip(path, 16, ClipSpec()).shape == (16, 48, 64, 3)


@pytest.mark.parametrize(("rotation", "corner"), [(90, (0, -1)), (270, (-1, 0))])
def test_a_rotated_video_is_turned_upright(tmp_path: Path, rotation: int, corner: tuple[int, int]) -> None:
    path = tmp_path / "video.mp4"
    _write_video(path, 6, rotation=rotation)
    frame = read_clip(path, 1, ClipSpec(stride=1))[0]
    assert frame.shape == (64, 48, 3)
    corners = {(y, x): int(frame[y * 4, x * 4].mean()) for y in (0, -1) for x in (0, -1)}
    assert max(corners, key=lambda position: corners[position]) == corner


def test_a_script_that_names_other_files_is_refused_in_one_line(tiny_pretraining: Path, tmp_path: Path) -> None:
    _write_video(tmp_path / "other.mp4", 20)
    script = tmp_path / "script.mp4"
    script.write_text("ffconcat version 1.0\nfile 'other.mp4'\n")
    with pytest.raises(DataError, match=r"script\.mp4: is unreadable") as error:
        reconstruct_file(str(tiny_pretraining), str(script), tmp_path / "o.png", videos=1, seed=0, device="cpu")
    assert "\n" not in str(error.value)


def test_a_clip_has_square_pixels_and_any_name(tmp_path: Path) -> None:
    _write_video(tmp_path / "v.mp4", 6)
    path = tmp_path / "2024-08-20T13:28:35Z.mp4"
    words = f"-y -v error -i {tmp_path / 'v.mp4'} -vf setsar=1/2 -c:v libx264 file:{path}"
    subprocess.run([find_ffmpeg().path, *words.split()], check=True)
    assert read_clip(path, 2, ClipSpec(stride=1)).shape == (2, 48, 32, 3)
    assert read_clip(path, 2, ClipSpec(stride=1), short_side=16).shape == (2, 24, 16, 3)


def test_a_clip_by_rate_has_the_frames_that_a_build_keeps(tmp_path: Path) -> None:
    _write_video(tmp_path / "v.mp4", 20)  # at 10 frames a second
    clip = read_clip(tmp_path / "v.mp4", 3, ClipSpec(rate=4))
    frame_numbers = (clip[:, 30:, 40:].mean(axis=(1, 2, 3)) - 40) / 8
    assert np.rint(frame_numbers).tolist() == [5, 7, 10]
