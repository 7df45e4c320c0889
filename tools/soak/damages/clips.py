"""Intact videos to damage: a test picture that a program can recognise, in any codec and container."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmae_data.encode.ffmpeg import find_ffmpeg

__all__ = ["FRAMES", "RATE", "Bench", "picture_is_right"]

FRAMES = 25
RATE = 25
DARKEST, STEP = 40, 4  # grey level of the lower right quarter in frame 0, and its increase a frame
BRIGHT, GROUND = 220, 30
NOISE = 8


class Bench:
    """Encodes clips with ffmpeg, each once, into one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ffmpeg = find_ffmpeg().path
        folder.mkdir(parents=True, exist_ok=True)

    def clip(
        self, name: str, options: str = "", *, size: str = "96x64", frames: int = FRAMES, source: str = ""
    ) -> Path:
        """The clip of this name, encoded at the first call. The suffix chooses the container.

        `options` are ffmpeg's output options, `source` its input options. The default codec is x264.
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
        """Run ffmpeg. Raises CalledProcessError."""
        subprocess.run(
            [self.ffmpeg, "-nostdin", "-y", "-v", "error", *words], check=True, stdin=subprocess.DEVNULL, timeout=120
        )

    def _raw(self, size: str, frames: int) -> Path:
        path = self.folder / f"{size}-{frames}.raw"
        if not path.exists():
            width, height = map(int, size.split("x"))
            # Noise makes frames as large as a real video's, so that damage hits pictures and not only headers.
            noise = np.random.default_rng(0).integers(-NOISE, NOISE + 1, (frames, height, width), np.int16)
            pictures = np.full((frames, height, width), GROUND, np.int16)
            pictures[:, : height // 2, : width // 2] = BRIGHT
            for number in range(frames):
                pictures[number, height // 2 :, width // 2 :] = min(235, DARKEST + STEP * number)
            path.write_bytes((pictures + noise).astype(np.uint8).tobytes())
        return path


def picture_is_right(y_THW: NDArray[np.uint8], kept: list[int]) -> bool:
    """Whether these are the frames `kept` of a clip, upright: upper left bright, lower right brighter in each frame."""
    height, width = y_THW.shape[1:]
    quarters = y_THW[:, : height // 2 * 2, : width // 2 * 2].astype(float)
    upper, lower = quarters[:, : height // 2], quarters[:, height // 2 :]
    bright = upper[:, :, : width // 2].mean(axis=(1, 2))
    others = [upper[:, :, width // 2 :].mean(axis=(1, 2)), lower[:, :, : width // 2].mean(axis=(1, 2))]
    rising = lower[:, :, width // 2 :].mean(axis=(1, 2))
    expected = np.array([min(235, DARKEST + STEP * number) for number in kept], float)
    upright = all((bright > other + 60).all() for other in others)
    # Codecs and colour ranges stretch levels by less than a fifth.
    return bool(
        upright and (abs((rising - rising[0]) - (expected - expected[0])) <= 6 + 0.2 * (expected - expected[0])).all()
    )
