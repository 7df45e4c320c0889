"""A video file or URL → a clip for a model."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from vmae_data.decode import DecodedVideo
from vmae_data.encode.open_source import open_source, read_pictures
from vmae_data.errors import DataError, MisuseError, SourceError
from vmae_data.format import INDEX
from vmae_data.storage import copy_here, exists, node_folder, refuse_special, storage_path
from vmae_data.storage.remote import stat
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.frame_sampling import ClipSpec, stride_positions

__all__ = ["local_video", "read_clip"]

U8 = NDArray[np.uint8]
BT709 = 1  # in Planes.matrix_B


def local_video(url: str) -> Path | None:
    """The local path of a video; a remote video is copied to this machine first. None if the URL is not a video.

    Raises StoreError.
    """
    source = storage_path(url)
    if source.name == INDEX:
        return None
    if isinstance(source, Path):
        refuse_special(source, folder=True)
        return source if source.is_file() else None
    # A web server may answer for a folder as for a file.
    version = None if exists(source / INDEX) else stat(source)
    if version is None:
        return None
    folder = node_folder("videos") / hashlib.sha256(repr((str(source), version)).encode()).hexdigest()[:32]
    folder.mkdir(exist_ok=True)
    path = folder / re.sub(r"[^\w.-]+", "-", source.name, flags=re.ASCII)
    if not path.is_file():
        copy_here(source, path)
    return path


def read_clip(path: Path, num_frames: int, clip: ClipSpec, short_side: int = 256) -> U8:
    """The middle clip of a video in RGB, (T, H, W, 3); a short video repeats its last frame.

    The pictures are those that a build makes of the video: upright, cropped as the container says, with square pixels
    and this short side, or less if the video is smaller. Raises DataError if no frame decodes, MisuseError for a frame
    spacing that only shards have.
    """
    if clip.stride == "kept":
        raise MisuseError(f"{path}: the run uses the frame spacing of its shards (clip.stride = kept). Use shards")
    try:
        video = open_source(path)
        kept = video.frames_at_rate(clip.rate) if clip.rate is not None else range(len(video.times))
        stride = clip.stride or 1
        span = (num_frames - 1) * stride + 1
        positions = stride_positions(len(kept) + 1, num_frames, stride, max(0, len(kept) - span) // 2)
        chosen, index = np.unique(positions, return_inverse=True)
        planes = read_pictures(video, [kept[position] for position in chosen], short_side)
    except SourceError as error:
        raise DataError(
            f"{path}: is {error.reason} ({error.detail}). Use a video file or a folder of shards"
        ) from error
    return _rgb(planes)[index]


def _rgb(planes: DecodedVideo) -> U8:
    """The colours as training converts them, rounded."""
    y, u, v = (torch.from_numpy(plane)[None] for plane in planes)
    size, matrix = torch.tensor([y.shape[-2:]]), torch.tensor([BT709])
    rgb = planes_to_rgb(Planes(y, u, v, size, matrix, full_range_B=torch.tensor([False])))
    return np.ascontiguousarray(rearrange(rgb[0].round().byte(), "c t h w -> t h w c").numpy())
