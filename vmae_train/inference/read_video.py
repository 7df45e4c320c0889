"""Clips of plain video files, which no shard was made of."""

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

__all__ = ["fetched_video", "read_clip"]

U8 = NDArray[np.uint8]


def fetched_video(url: str) -> Path | None:
    """The local path of a video that a path or URL names, copied here where it lies elsewhere; None where it names none.

    Raises StoreError.
    """
    place = storage_path(url)
    if place.name == INDEX:
        return None
    if isinstance(place, Path):
        return place if place.is_file() else None
    # A web server may answer for a folder as for a file.
    found = None if exists(place / INDEX) else stat(place)
    if found is None:
        return None
    version = hashlib.sha256(repr((str(place), found)).encode()).hexdigest()[:32]
    folder = node_folder("videos") / version
    folder.mkdir(exist_ok=True)
    path = folder / re.sub(r"[^\w.-]+", "-", place.name, flags=re.ASCII)
    if not path.is_file():
        copy_here(place, path)
    return path


def read_clip(path: Path, num_frames: int, clip: ClipSpec) -> U8:
    """A clip of the middle, upright, (T, H, W, 3); a short video repeats its tail.

    Decoded twice, first to count: headers lie, and a long video does not fit into memory.

    Raises DataError where no frame decodes, MisuseError for a spacing that only shards have.
    """
    if clip.stride == "kept":
        raise MisuseError(f"{path}: the run's clips are spaced as its shards are (clip.stride = kept); name shards")
    total = sum(1 for _ in _decode(path))
    if total == 0:
        raise DataError(f"{path}: no frame decodes; name a video file or a folder of shards")
    stride = clip.stride or max(1, round(_rate(path) / (clip.rate or 1)))
    span = (num_frames - 1) * stride + 1
    positions = stride_positions(total + 1, num_frames, stride, max(0, total - span) // 2)
    kept: dict[int, U8] = {}
    wanted = set(positions.tolist())
    for number, frame in enumerate(_decode(path)):
        if number in wanted:
            rgb = np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)
            kept[number] = np.rot90(rgb, k=_quarter_turns(frame)).copy()
        if number == positions[-1]:
            break
    return np.stack([kept[number] for number in positions.tolist()])


def _rate(path: Path) -> float:
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        return float(stream.average_rate or stream.guessed_rate or 1)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """PyAV's rotation counts counterclockwise, as NumPy's rot90 does."""
    return round(frame.rotation / 90) % 4


def _decode(path: Path) -> Iterator[av.VideoFrame]:
    """Every frame that decodes; a damaged packet costs its own frames only."""
    av.logging.set_level(None)
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise DataError(f"{path}: holds no video; name a video file or a folder of shards")
            for packet in container.demux(container.streams.video[0]):
                with suppress(av.InvalidDataError):
                    yield from packet.decode()
    except (av.FFmpegError, OSError) as error:
        what = str(error).partition("] ")[2].partition(":")[0] or str(error)
        raise DataError(f"{path}: does not decode ({what}); name a video file or a folder of shards") from error
