"""Drawn videos that an audit finds odd, and ordinary ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = [
    "FRAMES",
    "HEIGHT",
    "RATE",
    "U8",
    "WIDTH",
    "blurred_frames",
    "frames_with_cuts",
    "half_frozen_frames",
    "moving_frames",
    "write_frames",
]

U8 = NDArray[np.uint8]
HEIGHT, WIDTH, RATE, FRAMES = 96, 128, 24, 72


def _texture(seed: int) -> NDArray[np.float32]:
    """A picture larger than a frame, with detail at every scale, so that every window of it is unique."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((2 * HEIGHT, 2 * WIDTH), dtype=np.float32)
    for cells in (3, 6, 12, 48, 128):
        layer = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        picture += np.asarray(layer.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC)) * 40 / cells**0.3
    return picture + 128


def moving_frames(seed: int, start: int = 0, stop: int = FRAMES) -> Iterator[U8]:
    """A window that moves over the texture."""
    texture = _texture(seed)
    for n in range(start, stop):
        y, x = round(48 + 40 * np.sin(n / 17 + seed)), round(64 + 50 * np.cos(n / 23))
        yield texture[y : y + HEIGHT, x : x + WIDTH].clip(0, 255).astype(np.uint8)


def blurred_frames(seed: int) -> Iterator[U8]:
    for frame in moving_frames(seed):
        small = Image.fromarray(frame).resize((WIDTH // 12, HEIGHT // 12), Image.Resampling.BOX)
        yield np.asarray(small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


def half_frozen_frames(seed: int) -> Iterator[U8]:
    frames = list(moving_frames(seed))
    half = len(frames) // 2
    return iter(frames[:half] + [frames[half]] * half)


def frames_with_cuts(seed: int) -> Iterator[U8]:
    third = FRAMES // 3
    for n in range(3):
        yield from moving_frames(seed + 100 * n, n * third, (n + 1) * third)


def write_frames(
    path: Path, frames: Iterator[U8], *, crf: int = 18, scale: float = 1.0, mirrored: bool = False
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = round(WIDTH * scale), round(HEIGHT * scale), "yuv420p"
        for grey in frames:
            image = Image.fromarray(grey[:, ::-1] if mirrored else grey)
            if scale != 1:
                image = image.resize((stream.width, stream.height), Image.Resampling.BICUBIC)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), format="rgb24")))
        file.mux(stream.encode(None))
