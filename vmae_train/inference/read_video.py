"""A video file or URL → a clip for a model."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import INDEX
from vmae_data.storage import copy_here, exists, node_folder, storage_path
from vmae_data.storage.remote import stat
from vmae_train.clips.frame_sampling import ClipSpec, stride_positions

__all__ = ["local_video", "read_clip"]

U8 = NDArray[np.uint8]


def local_video(url: str) -> Path | None:
    """The local path of a video; a remote video is copied to this machine first. None if the URL is not a video.

    Raises StoreError.
    """
    source = storage_path(url)
    if source.name == INDEX:
        return None
    if isinstance(source, Path):
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


def read_clip(path: Path, num_frames: int, clip: ClipSpec) -> U8:
    """The middle clip of a video, upright, (T, H, W, 3); a short video repeats its last frame.

    The video is decoded twice, first to count its frames: headers are unreliable, and a long video does not fit into
    memory. Raises DataError if no frame decodes, MisuseError for a frame spacing that only shards have.
    """
    if clip.stride == "kept":
        raise MisuseError(f"{path}: the run uses the frame spacing of its shards (clip.stride = kept). Use shards")
    total = sum(1 for _ in _decode(path))
    if total == 0:
        raise DataError(f"{path}: no frame decodes. Use a video file or a folder of shards")
    stride = clip.stride or max(1, round(_frame_rate(path) / (clip.rate or 1)))
    span = (num_frames - 1) * stride + 1
    positions = stride_positions(total + 1, num_frames, stride, max(0, total - span) // 2)
    frames: dict[int, U8] = {}
    chosen = set(positions.tolist())
    for number, frame in enumerate(_decode(path)):
        if number in chosen:
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            quarter_turns = round(frame.rotation / 90) % 4  # counterclockwise in PyAV and in NumPy
            frames[number] = np.rot90(rgb, k=quarter_turns).copy()
        if number == positions[-1]:
            break
    return np.stack([frames[number] for number in positions.tolist()])


def _frame_rate(path: Path) -> float:
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 1)


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame that decodes; a damaged packet loses only its own frames."""
    av.logging.set_level(None)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{path}: contains no video. Use a video file or a folder of shards")
            for packet in container.demux(container.streams.video[0]):
                with suppress(av.InvalidDataError):
                    yield from packet.decode()
    except (av.FFmpegError, OSError) as error:
        reason = str(error).partition("] ")[2].partition(":")[0] or str(error)
        raise DataError(f"{path}: does not decode ({reason}). Use a video file or a folder of shards") from error
