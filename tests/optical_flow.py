"""What motion a video shows, as an optical flow of the whole frame measures it."""

from __future__ import annotations

from collections.abc import Sequence

import av
import numpy as np
from numpy.typing import NDArray

from vmae_data.demo.scenes import ARM, CLASSES, MODEL_SHORT_SIDE, Motion


def as_model_sees(frames: Sequence[av.VideoFrame], stride: int) -> NDArray[np.float64]:
    """The kept frames with the short side at the model's: frame × height × width × channel."""
    width, height = frames[0].width, frames[0].height
    scale = MODEL_SHORT_SIDE / min(width, height)
    size = {"width": round(width * scale), "height": round(height * scale)}
    kept = [frame.reformat(**size, format="rgb24", interpolation="BICUBIC") for frame in frames[::stride]]
    return np.stack([frame.to_ndarray() for frame in kept]).astype(np.float64)


def flow(frames: NDArray[np.float64]) -> Motion:
    """Optical flow as Lucas and Kanade measure it: the Motion that explains most of what changes (least squares)."""
    kernel = np.exp(-0.5 * (np.arange(-4, 5) / 1.5) ** 2)
    for axis in (1, 2):
        frames = np.apply_along_axis(np.convolve, axis, frames, kernel / kernel.sum(), "valid")
    down, across = np.gradient((frames[1:] + frames[:-1]) / 2, axis=(1, 2))
    height, width = down.shape[1:3]
    y = ((np.arange(height) - (height - 1) / 2) / ARM)[:, None, None]
    x = ((np.arange(width) - (width - 1) / 2) / ARM)[:, None]
    explained = np.stack([across, down, down * x - across * y, across * x + down * y], -1).reshape(-1, 4)
    found, *_ = np.linalg.lstsq(explained, -np.diff(frames, axis=0).ravel(), rcond=None)
    return Motion(*found.tolist())


def class_of(motion: Motion) -> str:
    return max(CLASSES, key=lambda name: float(np.dot(CLASSES[name], motion)))
