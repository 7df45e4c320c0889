"""Whole videos to damage: a picture that can be known again by looking at it, in any codec and container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmae_data.encode.ffmpeg import find_ffmpeg

__all__ = ["FRAMES", "RATE", "Bench", "picture_is_right"]

FRAMES = 25
RATE = 25
DARKEST, STEP = 40, 4  # grey level of the lower right quarter in frame 0, and its rise from frame to frame
BRIGHT, GROUND = 220, 30
NOISE = 8


class Bench:
    """Makes clips with ffmpeg, each once; a folder of its own holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffmpeg = find_ffmpeg().path
        folder.mkdir(parents=True, exist_ok=True)

    def clip(
        self, name: str, options: str = "", *, size: str = "96x64", frames: int = FRAMES, source: str = ""
    ) -> Path:
        """A clip in the container that its name says, made once for each name.

        `options` are ffmpeg's, for the output; `source` those for the input. x264 where none names a codec.
        """
        path = self.folder / name
        if not path.exists():
            raw = self._raw(size, frames)
            words = ["-f", "rawvideo", "-pix_fmt", "gray", "-s", size, "-r", str(RATE), *source.split(), "-i", str(raw)]
            codec = [] if "-c:v" in options else ["-c:v", "libx264", "-g", "8", "-bf", "2", "-crf", "10"]
            pixels = [] if "-pix_fmt" in options else ["-pix_fmt", "yuv420p"]
            exact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact"]
            self.run(*words, *codec, *pixels, *exact, *options.split(), str(path))
        return path

    def run(self, *words: str) -> None:
        """ffmpeg with these words. Raises CalledProcessError: a clip that can't be made is our mistake."""
        subprocess.run(
            [self.ffmpeg, "-nostdin", "-y", "-v", "error", *words], check=True, stdin=subprocess.DEVNULL, timeout=120
        )

    def _raw(self, size: str, frames: int) -> Path:
        path = self.folder / f"{size}-{frames}.raw"
        if not path.exists():
            width, height = map(int, size.split("x"))
            # Noise, so that frames are as large as those of a real video, and a damage hits pictures, not only headers.
            noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (frames, height, width), np.int16)
            pictures = np.full((frames, height, width), GROUND, np.int16)
            pictures[:, : height // 2, : width // 2] = BRIGHT
            for number in range(frames):
                pictures[number, height // 2 :, width // 2 :] = min(235, DARKEST + STEP * number)
            path.write_bytes((pictures + noise).astype(np.uint8).tobytes())
        return path


def picture_is_right(y_THW: NDArray[np.uint8], kept: list[int]) -> bool:
    """Whether these are the frames `kept` of a clip, upright: the upper left is bright, the lower right rises."""
    height, width = y_THW.shape[1:]
    quarters = y_THW[:, : height // 2 * 2, : width // 2 * 2].astype(float)
    upper, lower = quarters[:, : height // 2], quarters[:, height // 2 :]
    bright = upper[:, :, : width // 2].mean(axis=(1, 2))
    others = [upper[:, :, width // 2 :].mean(axis=(1, 2)), lower[:, :, : width // 2].mean(axis=(1, 2))]
    rising = lower[:, :, width // 2 :].mean(axis=(1, 2))
    wanted = np.array([min(235, DARKEST + STEP * number) for number in kept], float)
    upright = all((bright > other + 60).all() for other in others)
    # Codecs and ranges stretch levels, by less than a fifth.
    return bool(upright and (abs((rising - rising[0]) - (wanted - wanted[0])) <= 6 + 0.2 * (wanted - wanted[0])).all())
