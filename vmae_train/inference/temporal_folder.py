"""Features for temporal localisation → a folder with one .npy for each video, and a JSON file about them.

ActionFormer and OpenTAD read such folders. Feature `i` of a video is of source frames `i * stride` to
`i * stride + window`, so its middle is at (i * stride + window / 2) / fps seconds. Both programs compute it so.
T features of a video, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.names import source_key
from vmae_data.read.dataset import Shards
from vmae_data.storage import commit_bytes, write_error
from vmae_train.inference.embed import Embedder, Features
from vmae_train.inference.features_file import SUFFIXES
from vmae_train.inference.find_videos import Member, VideoFile
from vmae_train.inference.journal import Journal, JournalRow
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec

__all__ = ["SIDECAR", "Layout", "TemporalFolder", "shard_members"]

Layout = Literal["actionformer", "opentad"]
SIDECAR = "features.json"
_EDITED = ("subset", "annotations")  # people fill these in


class _Sidecar(msgspec.Struct):
    """What a later run keeps of the file."""

    database: dict[str, dict[str, Any]] = {}


class TemporalFolder(Journal[Features]):
    """The features of earlier runs of the command, and those of this one. Raises as `Journal` does.

    `uneven`: videos whose frames are not evenly spaced in time, and by how many seconds a feature's time is wrong.
    """

    def __init__(
        self, path: Path, embedder: Embedder, spec: WindowSpec, layout: Layout, videos: Iterable[VideoFile]
    ) -> None:
        if path.suffix in SUFFIXES or path.is_file():
            raise MisuseError(f"--out {path}: --layout writes a folder. Name one")
        if embedder.features.pool != "mean":
            raise MisuseError(f"--layout {layout}: has one vector for each window. Remove --pool")
        self.layout, self.spec = layout, spec
        self.shape, self.dtype = embedder.shape, embedder.dtype
        self._ids = _ids(videos)
        self.uneven: dict[str, float] = {}
        super().__init__(path, {**embedder.record(), **spec.record(), "layout": layout})
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(path, error) from error

    def holds(self, video: str, version: str) -> bool:
        return super().holds(video, version) and (self.path / f"{self._ids[video]}.npy").is_file()

    def add_result(self, result: VideoResult[Features], version: str) -> None:
        assert result.length is not None and self.spec.frames is not None
        features_TC = np.stack([row.values for row in result.rows])
        data = io.BytesIO()
        np.save(data, features_TC)
        commit_bytes(self.path / f"{self._ids[result.video]}.npy", data.getvalue())
        seconds_a_frame = result.length.seconds / result.length.frames
        started_at = np.asarray([row.start for row in result.rows])
        error = np.abs(started_at - np.arange(len(started_at)) * self.spec.frame_stride * seconds_a_frame).max()
        about = np.asarray([len(features_TC), error])
        self.add(result.video, version, result.length, [JournalRow.of(self._ids[result.video], None, None, about)])

    def write(self) -> int:
        """Write the file about all recorded videos, and return the number of their features.

        `subset`, `annotations` and keys that are not of this program stay as the file has them.
        """
        stored = self._stored_database()
        database, count = {}, 0
        for entry in self.entries():
            assert entry.length is not None
            (row,) = entry.rows
            features, error = row.values(float).tolist()
            fps = entry.length.frames / entry.length.seconds
            count += int(features)
            own = {
                "subset": "unlabelled",
                "duration": entry.length.seconds,
                "fps": fps,
                "frame": entry.length.frames,
                "annotations": [],
                "feature_stride": self.spec.frame_stride,
                "offset_frames": self._offset,
                "features": int(features),
                "time_error": round(error, 6),
                "path": entry.video,
            }
            kept = stored.get(row.video, {})
            database[row.video] = own | {key: kept[key] for key in kept if key in _EDITED or key not in own}
            if error * fps > self.spec.frame_stride / 2:
                self.uneven[entry.video] = error
        about = {"layout": self.layout, "config": self._config(), "database": database}
        commit_bytes(self.path / SIDECAR, msgspec.json.format(msgspec.json.encode(about)) + b"\n")
        return count

    def _stored_database(self) -> dict[str, dict[str, Any]]:
        """The videos in the file that is there, by id. Raises DataError if people's annotations in it can't be read."""
        path = self.path / SIDECAR
        if not path.exists():
            return {}
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Sidecar).database
        except NOT_JSON as error:
            raise DataError(f"{path}: can't be read ({error}). Correct it, or remove it to get a new one") from error

    @property
    def _offset(self) -> int:
        """Source frames from the first of a feature to its middle."""
        assert self.spec.frames is not None
        return self.spec.frames // 2

    def _config(self) -> dict[str, Any]:
        """The keys of the program's own configuration, with its names."""
        stride, (channels,) = self.spec.frame_stride, self.shape
        if self.layout == "actionformer":
            window = self.spec.frames
            names = {"file_prefix": "", "file_ext": ".npy", "default_fps": None}
            return {"feat_stride": stride, "num_frames": window, "input_dim": channels, **names}
        return {"feature_stride": stride, "sample_stride": 1, "offset_frames": self._offset, "fps": -1}


def _ids(videos: Iterable[VideoFile]) -> dict[str, str]:
    """Video → its id, the file's name without suffix. Raises MisuseError if two videos have one id."""
    ids: dict[str, str] = {}
    names: dict[str, str] = {}
    for video in videos:
        identity = Path(video.name).stem
        other = names.setdefault(identity, video.name)
        if other != video.name:
            raise MisuseError(
                f"{other} and {video.name}: both would be {identity}.npy. Rename one, or use several --out folders"
            )
        ids[video.name] = identity
    return ids


def shard_members(url: str) -> list[VideoFile]:
    """The samples of shards as videos. Raises MisuseError if the shards lack frames or hold segments."""
    shards = Shards.open(url)
    index, advice = shards.index, "Build shards with stride = 1, or name the source videos"
    if index.stride != 1:
        kept = f"one frame in {index.stride}" if index.rate is None else f"{float(index.rate):g} frames a second"
        raise MisuseError(f"{url}: keeps {kept}, but temporal localisation needs every source frame. {advice}")
    keys = [shards.key(number) for number in range(len(shards))]
    if any(source_key(key) != key for key in keys):
        raise MisuseError(f"{url}: its samples are segments of longer videos. Name the source videos")
    videos = []
    for number, path in enumerate(shards.source_paths(range(len(shards)))):
        member = shards.member_range(number)
        extent = Member(member.offset, member.size, member.sha256.hex())
        name = os.path.join(shards.url, path or keys[number])
        videos.append(VideoFile(name, shards.shard_path(member.shard), extent))
    return videos
