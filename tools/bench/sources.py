"""A folder of videos, or ffmpeg's test sources → originals of a fixed size and length, as a camera would write them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vmae_data.encode.ffmpeg import find_ffmpeg

__all__ = ["FRAME_RATE", "make_originals", "run_ffmpeg"]

FRAME_RATE = 25
SMALLEST = 200_000  # bytes; smaller files are icons and broken downloads
# Moving edges, fine texture and noise: flat test pictures would decode faster than a camera's.
TEST_SOURCES = {
    "test-pattern": "testsrc2=size=1280x720:rate=25",
    "mandelbrot": "mandelbrot=size=1280x720:rate=25:maxiter=400",
    "cells": "life=size=320x180:rate=25:random_seed=1:mold=10:life_color=white:death_color=blue,scale=1280:720",
    "gradients": "gradients=size=1280x720:rate=25:n=6:seed=1:speed=0.05",
}


def run_ffmpeg(*arguments: str | Path | int) -> None:
    """Raises CalledProcessError."""
    words = [find_ffmpeg().path, "-v", "error", "-nostdin", "-y", *map(str, arguments)]
    subprocess.run(words, check=True)


def make_originals(videos: Path | None, folder: Path, *, lines: int, seconds: float, count: int) -> list[Path]:
    """Encode at most `count` files of `lines` lines and `seconds` seconds, 25 frames a second, without sound.

    `videos` are looped to that length. Without them ffmpeg's test sources are taken. Raises SystemExit if no video of
    the folder can be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if videos is None:
        for name, source in list(TEST_SOURCES.items())[:count]:
            texture = f"{source},scale=-2:{lines},noise=alls=6:allf=t+u"
            _encode(folder / f"{name}.mp4", "-f", "lavfi", "-i", texture, "-t", seconds)
        return sorted(folder.glob("*.mp4"))
    for video in sorted(path for path in videos.iterdir() if path.stat().st_size > SMALLEST):
        scaled = ("-vf", f"scale=-2:{lines},setsar=1", "-r", FRAME_RATE)
        target = folder / f"{video.stem}.mp4"
        try:
            _encode(target, "-stream_loop", -1, "-i", video, "-t", seconds, "-an", *scaled)
        except subprocess.CalledProcessError:
            target.unlink(missing_ok=True)
        if len(list(folder.glob("*.mp4"))) == count:
            break
    made = sorted(folder.glob("*.mp4"))
    if not made:
        raise SystemExit(f"{videos}: no video of more than {SMALLEST // 1000} kB can be read")
    return made


def _encode(target: Path, *source: str | Path | float) -> None:
    run_ffmpeg(*source, "-pix_fmt", "yuv420p", "-preset", "veryfast", "-crf", 20, target)
