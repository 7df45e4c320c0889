"""A checkpoint and video files or shards → the model's output for each video, or for windows of it.

B windows of a batch, V views of a window, T frames, F decoded frames, H rows, W columns.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.arguments import MAX_BATCH, check_integer
from vmae_data.decode import FramePlanes
from vmae_data.errors import DataError, SourceError, StoreError, VmaeError
from vmae_data.names import source_key
from vmae_data.pages.pictures import Picture, picture, planes_to_rgb
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.storage import RemotePath, storage_path
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.colour import Planes
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.loader import LoaderSpec
from vmae_train.distributed import choose_device
from vmae_train.evaluation.predict_videos import ViewPredictor, load_views, padded_requests, with_paths
from vmae_train.evaluation.settings import evaluation_settings, published_clip
from vmae_train.inference.find_videos import VideoFile
from vmae_train.inference.load_videos import VideoReading, load_videos
from vmae_train.inference.read_video import BT709, SHORT_SIDE, WindowClips
from vmae_train.inference.windows import VideoLength, WindowSpec
from vmae_train.models.base import VideoModel
from vmae_train.models.features import FeatureSpec
from vmae_train.runs.metadata import VideoFormat, read_facts, run_of

__all__ = ["VideoResult", "VideoRunner"]

Row = TypeVar("Row")
WHOLE = WindowSpec()
WHOLE_PICTURES, PICTURE_SIDE = 6, 120


class VideoResult(NamedTuple, Generic[Row]):
    """What was computed of a video: a row for each window; or why there is none.

    `length` is that of a video file. `pictures`: some of its frames in order, if asked for. `partial`: other segments
    of the source can't be read.
    """

    video: str
    rows: tuple[Row, ...]
    error: str | None = None
    pictures: tuple[Picture, ...] = ()
    length: VideoLength | None = None
    partial: bool = False


class _Loading(Generic[Row]):
    """A video whose windows are loaded or wait for their batch."""

    def __init__(self, video: VideoFile) -> None:
        self.name = video.name
        self.rows: list[Row] = []
        self.pictures: list[Picture] = []
        self.length: VideoLength | None = None
        self.error: str | None = None
        self.windows: int | None = None  # once all are loaded

    def result(self) -> VideoResult[Row] | None:
        """None while a window has no output."""
        if self.error is not None:
            return VideoResult(self.name, (), self.error)
        if len(self.rows) != self.windows:
            return None
        return VideoResult(self.name, tuple(self.rows), None, tuple(self.pictures), self.length)


class VideoRunner(ABC, Generic[Row]):
    """A checkpoint that runs on videos as its own evaluation does: views, frames, resize and mean over the views.

    `recipe` and `settings` (`key=value`) change that as they do for `vmae-train evaluate`. `origin` says where the
    protocol comes from. `is_stated` is false if nothing states how the clips of the checkpoint were sampled.
    `clips` counts the clips that the model has computed: each view of each window.
    Raises MisuseError for settings that don't fit, DataError for what can't be read.
    """

    merges_segments = True  # whether the segments of a source are one row, their mean

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | None = None,
        *,
        recipe: str | None = None,
        settings: Sequence[str] = (),
        best: bool = False,
        ema: bool = False,
        class_names: tuple[str, ...] | None = None,
        batch: int = 8,
        features: FeatureSpec | None = None,
    ) -> None:
        check_integer("batch", batch, 1, MAX_BATCH)
        self.checkpoint = str(checkpoint)
        model = load_model(checkpoint, best=best, ema=ema, classes=class_names)
        spec, self.origin, self.is_stated = evaluation_settings(self.checkpoint, ClipSpec(), recipe, settings)
        self.protocol, (built, self.guess) = spec.protocol(), _video_format(self.checkpoint)
        self._check(model)
        self.clip = self.protocol.clip if built is None else self.protocol.clip.resolve(built.spacing)
        self.short_side = max(built.short_side if built is not None else SHORT_SIDE, model.geometry.image_size)
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self.clips = 0
        self._batch = batch
        self._views = ViewPredictor(self.model, self.protocol, self.device, features=features)

    @abstractmethod
    def _check(self, model: VideoModel) -> None:
        """Raises MisuseError if the model can't do this, or not with the protocol."""

    @abstractmethod
    def _row(self, video: str, start: float | None, end: float | None, output: NDArray[np.float64]) -> Row:
        """The mean over the views of a window as a row."""

    @abstractmethod
    def record(self) -> dict[str, Any]:
        """All that the rows depend on, except the videos and the windows."""

    def protocol_record(self) -> dict[str, Any]:
        """The part of `record` that comes from the checkpoint and its settings."""
        return {
            "weights_sha256": _weights_sha256(self.model),
            "clip": msgspec.to_builtins(self.clip),
            "views": str(self.protocol.views),
            "antialias": self.protocol.antialias,
            "short_side": self.short_side,
        }

    def describe_clips(self) -> str:
        """Frames, spacing, views and device, for a repr."""
        clip, geometry = self.clip, self.model.geometry
        spacing = f"stride {clip.stride}" if clip.rate is None else f"{clip.rate:g} frames/s"
        frames = f"{geometry.num_frames} frames of {geometry.image_size} px"
        return f"{frames}, {spacing}, views {self.protocol.views}, {self.device}"

    def preprocess(self, frames_BTHWC: Tensor | NDArray[np.uint8]) -> Tensor:
        """RGB frames, uint8 (B, T, H, W, 3), to the clips of the model. Raises ValueError for anything else."""
        if isinstance(frames_BTHWC, np.ndarray):
            frames_BTHWC = torch.from_numpy(np.array(frames_BTHWC))  # a copy: torch warns of read-only arrays
        if isinstance(frames_BTHWC, Tensor) and frames_BTHWC.is_floating_point():
            raise ValueError(
                f"frames are {str(frames_BTHWC.dtype).removeprefix('torch.')}; expected uint8, 0 to 255. "
                "Scale them to 255, round, and convert with .to(torch.uint8)"
            )
        return self.model.preprocess(frames_BTHWC, antialias=self.protocol.antialias)

    def run_video(self, path: str | Path, spec: WindowSpec) -> tuple[Row, ...]:
        """The rows of a video file or URL. Raises DataError for a file that is no video."""
        (result,) = self.run_videos([VideoFile(str(path), storage_path(path))], spec)
        if result.error is not None:
            raise DataError(f"{path}: {result.error}")
        return result.rows

    def run_videos(
        self, videos: Iterable[VideoFile], spec: WindowSpec = WHOLE, *, pictures: bool = False, workers: int = 0
    ) -> Iterator[VideoResult[Row]]:
        """A result for each video, in order. Windows of several videos share a batch.

        `pictures`: with a frame of each window, or some frames of a whole video. `workers`: decode in so many processes.
        A file that can't be read is a result with an error, also if its store does not answer. Raises StoreError if the
        stores of two videos in a row don't, and MisuseError for windows or clips that can't be made.
        """
        is_silent = False
        reading = self._reading(spec)
        unfinished: deque[_Loading[Row]] = deque()
        waiting: list[tuple[_Loading[Row], WindowClips]] = []
        for video, loaded in load_videos(videos, reading, workers=workers):
            loading: _Loading[Row] = _Loading(video)
            unfinished.append(loading)
            count = 0
            try:
                for clips in loaded:
                    count += 1
                    loading.length = clips.length
                    waiting.append((loading, clips))
                    if pictures:
                        loading.pictures += _pictures(clips, 1 if spec.is_several else WHOLE_PICTURES)
                    if len(waiting) == self._batch:
                        self._run(waiting)
            except (SourceError, DataError, StoreError) as error:
                if is_silent and isinstance(error, StoreError):
                    raise
                is_silent, loading.error = isinstance(error, StoreError), str(error)
            else:
                is_silent = False
            loading.windows = count
            while unfinished and (result := unfinished[0].result()):
                unfinished.popleft()
                yield result
        self._run(waiting)
        for loading in unfinished:
            last = loading.result()
            assert last is not None
            yield last

    def _reading(self, spec: WindowSpec) -> VideoReading:
        spec.check(self.model.geometry.num_frames)
        num_frames, clip, clips = self.model.geometry.num_frames, self.clip, self.protocol.views.clips
        if spec.frames is not None:  # the window decides the spacing
            clip, clips = ClipSpec(stride=spec.frames // num_frames), 1
        return VideoReading(clip, spec, num_frames, clips, self.short_side)

    def _run(self, waiting: list[tuple[_Loading[Row], WindowClips]]) -> None:
        """Run the model on the windows that wait, and empty the list."""
        if not waiting:
            return
        planes, index_BVT = collate([clips for _, clips in waiting], self.device)
        with torch.inference_mode():
            output_B = self._views.predict(planes, index_BVT).astype(np.float64)
        self.clips += index_BVT.shape[0] * index_BVT.shape[1] * self.protocol.views.crops
        for (loading, clips), output in zip(waiting, output_B, strict=True):
            loading.rows.append(self._row(loading.name, clips.window.start, clips.window.end, output))
        waiting.clear()

    def shard_clip(self, shards: Shards) -> ClipSpec:
        """The clips that `run_shards` takes. A checkpoint that does not state them has those of published models."""
        return (self.protocol.clip if self.is_stated else published_clip(shards.index)).resolve(shards.index)

    def run_shards(
        self,
        shards: Shards,
        *,
        samples: Sequence[int] | None = None,
        kept: Collection[str] = (),
        workers: int = 0,
        style: ProgressStyle = ProgressStyle.QUIET,
    ) -> Iterator[VideoResult[Row]]:
        """A result for each source video of shards, named by URL and key, but not for `kept` names.

        `samples`: only these, by number, ascending [default: all]. A result comes when the last segment of the source is
        done. Labels don't matter. An unreadable sample is a result with an error.
        Raises MisuseError if the shards don't have such clips, DataError if too many are unreadable.
        """
        asked = range(len(shards)) if samples is None else samples
        numbers = [n for n in asked if f"{shards.url}/{source_key(shards.key(n))}" not in kept]
        protocol = self.protocol._replace(clip=self.shard_clip(shards))
        views = ViewPredictor(self.model, protocol, self.device, features=self._views.features)
        requests = list(padded_requests(numbers, self._batch))
        missing = np.bincount(shards.source_N[numbers], minlength=1) if numbers else np.zeros(1, np.int64)
        outputs: dict[int, dict[int, NDArray[np.float32]]] = {}
        loader = LoaderSpec(workers=workers)
        with (
            load_views(views, shards, requests, batch=self._batch, loader=loader) as batches,
            ProgressBar("videos of shards", len(asked), style, start=len(asked) - len(numbers)) as progress,
            torch.inference_mode(),
        ):
            for loaded in batches:
                for sample, output in views.predict_batch(loaded):
                    self.clips += self.protocol.views.clips * self.protocol.views.crops
                    source = int(shards.source_N[sample])
                    outputs.setdefault(source, {})[sample] = output
                    if len(outputs[source]) == missing[source]:
                        yield self._merged(shards, outputs.pop(source))
                    progress.advance()
            unreadable = batches.unreadable.by_key
        for some in outputs.values():  # the others of their segments are unreadable
            yield self._merged(shards, some)._replace(partial=True)
        for key, reason in with_paths(shards, unreadable).items():
            yield VideoResult(f"{shards.url}/{key}", (), reason)

    def _merged(self, shards: Shards, output_S: dict[int, NDArray[np.float32]]) -> VideoResult[Row]:
        """The samples of one source: their mean, or a row for each."""
        samples = sorted(output_S)
        name = f"{shards.url}/{source_key(shards.key(samples[0]))}"
        rows = [output_S[sample].astype(np.float64) for sample in samples]
        if self.merges_segments:
            return VideoResult(name, (self._row(name, None, None, np.sum(rows, axis=0) / len(rows)),))
        names = [f"{shards.url}/{shards.key(sample)}" for sample in samples]
        return VideoResult(name, tuple(self._row(one, None, None, row) for one, row in zip(names, rows, strict=True)))


def collate(windows: Sequence[WindowClips], device: torch.device) -> tuple[Planes, Tensor]:
    """The frames of several windows, padded to a common size and number; and the frames of each view, (B, V, T)."""
    shapes = np.asarray([clips.planes.y_THW.shape for clips in windows])
    frames, height, width = (int(length) for length in shapes.max(axis=0))

    def padded(number: int, rows: int, columns: int) -> Tensor:
        plane_BFHW = np.zeros((len(windows), frames, rows, columns), np.uint8)
        for slot, clips in enumerate(windows):
            plane = clips.planes[number]
            plane_BFHW[slot, : plane.shape[0], : plane.shape[1], : plane.shape[2]] = plane
        return torch.from_numpy(plane_BFHW).to(device)

    planes = Planes(
        y_BTHW=padded(0, height, width),
        u_BTHW=padded(1, height // 2, width // 2),
        v_BTHW=padded(2, height // 2, width // 2),
        size_B2=torch.from_numpy(shapes[:, 1:].astype(np.int64)).to(device),
        matrix_B=torch.full((len(windows),), BT709, device=device),
        full_range_B=torch.zeros(len(windows), dtype=torch.bool, device=device),
    )
    index_BVT = np.stack([clips.window.index_VT for clips in windows]).astype(np.int64)
    return planes, torch.from_numpy(index_BVT).to(device)


def _pictures(clips: WindowClips, count: int) -> Iterator[Picture]:
    """`count` frames of a window, evenly spaced; one is in its middle."""
    for share in (np.arange(count) + 0.5) / count:
        number = int(share * len(clips.window.frames))
        frame = FramePlanes(number, *(plane[number] for plane in clips.planes))
        yield picture(planes_to_rgb(frame, is_bt709=True, full_range=False), side=PICTURE_SIDE)


def _weights_sha256(model: VideoModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _video_format(checkpoint: str) -> tuple[VideoFormat | None, str | None]:
    """How the videos were built that a checkpoint's run was validated or trained on.

    Older runs don't hold it: then it is read from their shards, if they are on this machine. If they are not found
    either, there is also a warning.
    """
    run = run_of(checkpoint)
    facts = read_facts(run) if run is not None else None
    if facts is not None and facts.video_format is not None:
        return facts.video_format, None
    urls = [url for url in (facts.validation, *facts.data) if url is not None] if facts is not None else []
    for url in urls:
        try:
            if not isinstance(storage_path(url), RemotePath):
                return VideoFormat.of(Shards.open(url).index), None
        except VmaeError:
            continue
    warning = (
        f"the run's shards ({', '.join(urls)}) are not found from this folder, so videos are resized to a short side of "
        f"{SHORT_SIDE} px. Start the command where the training was started, if its shards are smaller or larger"
    )
    return None, warning if urls else None
