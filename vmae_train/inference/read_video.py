"""A video file or URL → its clips for a model.

V views of a video, T frames of a clip, F decoded frames, H rows, W columns, C colours.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray

from vmae_data.arguments import check_integer
from vmae_data.decode import DecodedVideo
from vmae_data.encode.open_source import OpenedSource, map_pictures, open_source, read_pictures, write_pictures
from vmae_data.errors import DataError, MisuseError, SourceError
from vmae_data.format import INDEX
from vmae_data.storage import copy_here, exists, node_folder, refuse_special, storage_path
from vmae_data.storage.remote import stat
from vmae_train.clips.colour import Planes, planes_to_rgb
from vmae_train.clips.frame_sampling import ClipSpec, stride_positions
from vmae_train.clips.loader import MAX_ASPECT
from vmae_train.inference.windows import VideoLength, Window, WindowSpec, plan_windows

__all__ = [
    "SHORT_SIDE",
    "Part",
    "WindowClips",
    "local_video",
    "read_clip",
    "read_clips",
    "read_windows",
    "video_windows",
]

U8 = NDArray[np.uint8]
BT709 = 1  # in Planes.matrix_B
SHORT_SIDE = 256  # of a build, unless its recipe has another
BYTES_ON_DISK = 4 << 30  # of decoded pictures in the temporary folder: a longer video is decoded in several passes


def local_video(url: str | Path) -> Path | None:
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


class WindowClips(NamedTuple):
    """A window of a video, and its decoded frames in BT.709 and limited range; `window.index_VT` counts them."""

    window: Window
    planes: DecodedVideo
    length: VideoLength  # of the video


class Part(NamedTuple):
    """Neighbouring windows of a video, and the frames of all of them, once each."""

    windows: tuple[Window, ...]
    numbers: tuple[int, ...]  # source frames, ascending
    planes: DecodedVideo
    length: VideoLength

    def clips(self) -> Iterator[WindowClips]:
        """The frames of each window."""
        numbers = np.asarray(self.numbers)
        for window in self.windows:
            at = np.searchsorted(numbers, window.frames)
            yield WindowClips(window, DecodedVideo(*(plane[at] for plane in self.planes)), self.length)


def video_windows(video: OpenedSource, clip: ClipSpec, spec: WindowSpec, num_frames: int, views: int) -> list[Window]:
    """The windows of a video, as `plan_windows` gives them. Raises MisuseError for a spacing that only shards have."""
    if clip.stride == "kept":
        raise MisuseError(
            "the clips have the frame spacing of the shards (clip.stride = kept), which a video has not. "
            "Set --set clip.stride=N to the stride that the shards were built with"
        )
    return plan_windows(video, clip, spec, num_frames=num_frames, num_clips=views)


def read_windows(video: OpenedSource, windows: Sequence[Window], short_side: int) -> Iterator[Part]:
    """The frames of the windows: upright, with square pixels and this short side, or less if the video is smaller.

    A frame more than 2.4 times as wide or high is cropped at its centre, as the reader of shards does. A part has as
    many windows as fit on the disk; each part decodes the video anew. Raises SourceError.
    """
    for some, numbers in _parts(windows, _most_frames(video, short_side, 1)):
        yield _part(video, some, numbers, read_pictures(video, numbers, short_side), short_side)


def write_windows(video: OpenedSource, windows: Sequence[Window], short_side: int, target: Path, sharers: int) -> bool:
    """Write the frames of the windows for `map_windows`, if they fit into this share of the disk. Raises SourceError."""
    (_, numbers), *others = _parts(windows, _most_frames(video, short_side, sharers))
    if others:
        return False
    write_pictures(video, numbers, short_side, target)
    return True


def map_windows(video: OpenedSource, windows: Sequence[Window], short_side: int, target: Path) -> Part:
    """The frames that `write_windows` wrote. The file may be removed as soon as this returns."""
    numbers = tuple(sorted({frame for window in windows for frame in window.frames}))
    return _part(video, windows, numbers, map_pictures(video, len(numbers), short_side, target), short_side)


def _part(
    video: OpenedSource, windows: Sequence[Window], numbers: tuple[int, ...], planes: DecodedVideo, short_side: int
) -> Part:
    length = VideoLength(len(video.kept_frames()), video.seconds()[-1])
    return Part(tuple(windows), numbers, _centre(planes, short_side), length)


def _most_frames(video: OpenedSource, short_side: int, sharers: int) -> int:
    """The pictures that `sharers` may each have in the temporary folder."""
    width, height = video.picture_size(short_side)
    room = min(BYTES_ON_DISK, shutil.disk_usage(tempfile.gettempdir()).free // 2 // sharers)
    return max(1, room // (width * height * 3 // 2))


def _parts(windows: Sequence[Window], most: int) -> Iterator[tuple[list[Window], tuple[int, ...]]]:
    """Neighbouring windows with at most `most` frames together, and their frames; one window may have more."""
    part: list[Window] = []
    numbers: set[int] = set()
    for window in windows:
        if part and len(numbers) + len({*window.frames} - numbers) > most:
            yield part, tuple(sorted(numbers))
            part, numbers = [], set()
        part.append(window)
        numbers.update(window.frames)
    if part:
        yield part, tuple(sorted(numbers))


def _centre(planes: DecodedVideo, short_side: int) -> DecodedVideo:
    room = int(MAX_ASPECT * short_side) // 2 * 2
    height, width = planes.y_THW.shape[1:]
    top, left = max(0, height - room) // 4 * 2, max(0, width - room) // 4 * 2
    height, width = min(height, room), min(width, room)
    rows, columns = slice(top, top + height), slice(left, left + width)
    half_rows, half_columns = (slice(part.start // 2, part.stop // 2) for part in (rows, columns))
    return DecodedVideo(
        planes.y_THW[:, rows, columns],
        planes.u_THW[:, half_rows, half_columns],
        planes.v_THW[:, half_rows, half_columns],
    )


def read_clips(
    path: str | Path, num_frames: int = 16, *, stride: int = 4, views: int = 1, short_side: int = SHORT_SIDE
) -> torch.Tensor:
    """Clips of a video in RGB, uint8 (V, T, H, W, 3), spread evenly from its first frame to its last.

    A clip takes every `stride`-th frame. One view is the middle of the video; a short video repeats its last frame.
    The pictures are those that `read_clip` gives. `model.preprocess` makes the model's clips of them.
    Raises MisuseError for other values, DataError for a file that is no video.
    """
    for name, value in (("num_frames", num_frames), ("stride", stride), ("views", views), ("short_side", short_side)):
        check_integer(name, value, 1, 1 << 14)
    video = local_video(path)
    if video is None:
        raise DataError(f"{path}: is no video file. Check the path")
    try:
        opened = open_source(video)
        windows = plan_windows(opened, ClipSpec(stride=stride), WindowSpec(), num_frames=num_frames, num_clips=views)
        (part,) = read_windows(opened, windows, short_side)
        (clips,) = part.clips()
    except SourceError as error:
        raise DataError(f"{path}: is {error.reason} ({error.detail}). Use another video file") from error
    return torch.from_numpy(_rgb(clips.planes)[clips.window.index_VT])


def read_clip(path: Path, num_frames: int, clip: ClipSpec, short_side: int = SHORT_SIDE) -> U8:
    """The middle clip of a video in RGB, (T, H, W, 3); a short video repeats its last frame.

    The pictures are those that a build makes of the video: upright, cropped as the container says, with square pixels
    and this short side, or less if the video is smaller. Raises DataError if no frame decodes, MisuseError for a frame
    spacing that only shards have.
    """
    if clip.stride == "kept":
        raise MisuseError(f"{path}: the run uses the frame spacing of its shards (clip.stride = kept). Use shards")
    try:
        video = open_source(path)
        kept = video.kept_frames(clip.rate)
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
