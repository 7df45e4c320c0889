"""A clip of a real video as the trainer has it: planes of YUV 4:2:0, not turned into RGB by anybody."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from numpy.typing import NDArray

from vmae_train.clips.colour import Planes

BT709_FROM_LINES = 720


class RealClip(NamedTuple):
    """Planes of one clip, and the same frames as RGB by ffmpeg's converter (T, H, W, 3), as decord gives them."""

    planes: Planes
    rgb_THWC: NDArray[np.uint8]


def read_real_clip(path: Path, *, num_frames: int, stride: int, first: int) -> RealClip:
    """Frames `first`, `first + stride` … of a video that is stored as yuv420p, limited range."""
    with av.open(str(path)) as container:
        wanted = islice(container.decode(video=0), first, first + num_frames * stride, stride)
        frames = list(wanted)
    names = {frame.format.name for frame in frames}
    if len(frames) < num_frames or names != {"yuv420p"}:
        raise SystemExit(f"{path}: {len(frames)} frames of {', '.join(names)}; {num_frames} of yuv420p are needed")
    height, width = frames[0].height // 2 * 2, frames[0].width // 2 * 2
    is_709 = frames[0].colorspace == 1 or (frames[0].colorspace == 2 and height >= BT709_FROM_LINES)
    planes = [np.stack([_plane(frame, i) for frame in frames])[None] for i in range(3)]
    rgb = np.stack([frame.to_ndarray(format="rgb24")[:height, :width] for frame in frames])
    return RealClip(
        Planes(
            torch.from_numpy(planes[0][..., :height, :width].copy()),
            torch.from_numpy(planes[1][..., : height // 2, : width // 2].copy()),
            torch.from_numpy(planes[2][..., : height // 2, : width // 2].copy()),
            size_B2=torch.tensor([[height, width]]),
            matrix_B=torch.tensor([int(is_709)]),
            full_range_B=torch.tensor([False]),
        ),
        rgb,
    )


def _plane(frame: av.VideoFrame, i: int) -> NDArray[np.uint8]:
    plane = frame.planes[i]
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]
