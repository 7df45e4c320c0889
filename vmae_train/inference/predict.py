"""A model with a head and video files → predictions for each video or for windows of it.

B windows or clips of a batch, V views of a window, T frames, F decoded frames, H rows, W columns, K classes or values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.decode import FramePlanes
from vmae_data.errors import DataError, MisuseError, SourceError, VmaeError
from vmae_data.format import Index
from vmae_data.pages.pictures import Picture, picture, planes_to_rgb
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.storage import RemotePath, storage_path
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.colour import Planes
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.loader import LoaderSpec
from vmae_train.distributed import choose_device
from vmae_train.evaluation.predict_videos import (
    ViewPredictor,
    check_merge,
    output_kind,
    output_names,
    predict_videos,
)
from vmae_train.evaluation.predictions import activate
from vmae_train.evaluation.settings import evaluation_settings, published_clip
from vmae_train.inference.find_videos import VideoFile
from vmae_train.inference.load_videos import VideoReading, load_videos
from vmae_train.inference.read_video import BT709, SHORT_SIDE, WindowClips
from vmae_train.inference.windows import WindowSpec
from vmae_train.models.heads import HeadModel
from vmae_train.runs.metadata import read_facts, run_of

__all__ = ["Prediction", "Predictor", "VideoResult"]


WHOLE = WindowSpec()
WHOLE_PICTURES, PICTURE_SIDE = 6, 120


class Prediction(NamedTuple):
    """The model's output for a span of a video, in seconds from its first frame; None for a sample of shards."""

    video: str
    start: float | None
    end: float | None
    names: tuple[str, ...]  # of the classes or values
    outputs: tuple[float, ...]  # probabilities or values
    kind: LabelKind

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """Names and probabilities, the most probable first; values in the model's order."""
        pairs = list(zip(self.names, self.outputs, strict=True))
        if self.kind is not LabelKind.VALUES:
            pairs.sort(key=lambda pair: -pair[1])
        return pairs[:count]

    def __repr__(self) -> str:
        span = "" if self.start is None or self.end is None else f", {self.start:.2f}–{self.end:.2f} s"
        best = ", ".join(f"{name} {value:.3g}" for name, value in self.top(3))
        return f"Prediction({self.video}{span}: {best}{', …' if len(self.names) > 3 else ''})"


class VideoResult(NamedTuple):
    """The predictions of a video, or why there are none. `pictures`: some of its frames in order, if asked for."""

    video: str
    predictions: tuple[Prediction, ...]
    error: str | None = None
    pictures: tuple[Picture, ...] = ()


class _Loading:
    """A video whose windows are loaded or wait for their batch."""

    def __init__(self, video: VideoFile) -> None:
        self.name = video.name
        self.predictions: list[Prediction] = []
        self.pictures: list[Picture] = []
        self.error: str | None = None
        self.windows: int | None = None  # once all are loaded

    def result(self) -> VideoResult | None:
        """None while a window has no prediction."""
        if self.error is not None:
            return VideoResult(self.name, (), self.error)
        if len(self.predictions) != self.windows:
            return None
        return VideoResult(self.name, tuple(self.predictions), None, tuple(self.pictures))


class Predictor:
    """A finetuned checkpoint that predicts videos as its own evaluation does: views, frames, resize and mean.

    `recipe` and `settings` (`key=value`) change that as they do for `vmae-train evaluate`. `origin` says where the
    protocol comes from. `is_stated` is false if nothing states how the clips of the checkpoint were sampled.
    Raises MisuseError for a pretraining model and for settings that don't fit, DataError for what can't be read.
    """

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
    ) -> None:
        self.checkpoint = str(checkpoint)
        model = load_model(checkpoint, best=best, ema=ema, classes=class_names)
        if not isinstance(model, HeadModel):
            raise MisuseError(f"{checkpoint}: is a pretraining model. To predict with it, finetune it first")
        spec, self.origin, self.is_stated = evaluation_settings(self.checkpoint, ClipSpec(), recipe, settings)
        self.protocol, index = spec.protocol(), _data_index(self.checkpoint)
        self.clip = self.protocol.clip if index is None else self.protocol.clip.resolve(index)
        check_merge(model, self.protocol)
        self.short_side = max(index.short_side if index is not None else SHORT_SIDE, model.geometry.image_size)
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self.names, self.kind = output_names(model), output_kind(model)
        self._batch, self._views = batch, ViewPredictor(self.model, self.protocol, self.device)

    def __repr__(self) -> str:
        views, clip = self.protocol.views, self.clip
        spacing = f"stride {clip.stride}" if clip.rate is None else f"{clip.rate:g} frames/s"
        geometry = self.model.geometry
        return (
            f"Predictor({self.checkpoint}: {len(self.names)} {self.kind.name.lower()} outputs, "
            f"{geometry.num_frames} frames of {geometry.image_size} px, {spacing}, views {views}, {self.device})"
        )

    def predict(
        self, path: str | Path, *, window: float | None = None, stride: float | None = None
    ) -> tuple[Prediction, ...]:
        """The prediction of a video file or URL, or one for each window. Raises DataError for a file that is no video.

        `window` and `stride`: seconds of a window, and from one start to the next [default: the window].
        """
        (result,) = self.predict_videos([VideoFile(str(path), storage_path(path))], WindowSpec(window, stride))
        if result.error is not None:
            raise DataError(f"{path}: {result.error}")
        return result.predictions

    @torch.inference_mode()
    def predict_clips(self, frames_BTHWC: Tensor) -> Tensor:
        """Probabilities (B, K) of clips in RGB, uint8 (B, T, H, W, 3), as `read_clips` gives them; or values.

        Each clip is one view: its short side is resized to the model's size, and its centre is cropped.
        Raises ValueError for other axes, another type or another number of frames.
        """
        if isinstance(frames_BTHWC, Tensor) and frames_BTHWC.is_floating_point():
            raise ValueError(
                f"frames are {str(frames_BTHWC.dtype).removeprefix('torch.')}; expected uint8, 0 to 255. "
                "Scale them to 255, round, and convert with .to(torch.uint8)"
            )
        clips = self.model.preprocess(frames_BTHWC, antialias=self.protocol.antialias)
        return activate(self.model(clips).float(), self.kind).cpu()

    def predict_videos(
        self, videos: Iterable[VideoFile], spec: WindowSpec = WHOLE, *, pictures: bool = False, workers: int = 0
    ) -> Iterator[VideoResult]:
        """A result for each video, in order. Windows of several videos share a batch.

        `pictures`: with a frame of each window, or some frames of a whole video. `workers`: decode in so many processes.
        A file that can't be read is a result with an error. Raises StoreError, and MisuseError for windows or clips
        that can't be made.
        """
        spec.check()
        geometry, views = self.model.geometry, self.protocol.views.clips
        reading = VideoReading(self.clip, spec, geometry.num_frames, views, self.short_side)
        unfinished: deque[_Loading] = deque()
        waiting: list[tuple[_Loading, WindowClips]] = []
        for video, loaded in load_videos(videos, reading, workers=workers):
            loading = _Loading(video)
            unfinished.append(loading)
            count = 0
            try:
                for clips in loaded:
                    count += 1
                    waiting.append((loading, clips))
                    if pictures:
                        loading.pictures += _pictures(clips, 1 if spec.seconds is not None else WHOLE_PICTURES)
                    if len(waiting) == self._batch:
                        self._predict(waiting)
            except (SourceError, DataError) as error:
                loading.error = str(error)
            loading.windows = count
            while unfinished and (result := unfinished[0].result()):
                unfinished.popleft()
                yield result
        self._predict(waiting)
        for loading in unfinished:
            last = loading.result()
            assert last is not None
            yield last

    def _predict(self, waiting: list[tuple[_Loading, WindowClips]]) -> None:
        """Predict the windows that wait, and empty the list."""
        if not waiting:
            return
        planes, index_BVT = collate([clips for _, clips in waiting], self.device)
        with torch.inference_mode():
            output_BK = self._views.predict(planes, index_BVT).astype(np.float64)
        if self.protocol.merge == "logit":
            output_BK = activate(torch.from_numpy(output_BK), self.kind).numpy()
        for (loading, clips), output_K in zip(waiting, output_BK, strict=True):
            start, end = clips.window.start, clips.window.end
            loading.predictions.append(self._prediction(loading.name, start, end, output_K))
        waiting.clear()

    def _prediction(self, video: str, start: float | None, end: float | None, output_K: NDArray) -> Prediction:
        return Prediction(video, start, end, self.names, tuple(map(float, output_K)), self.kind)

    def predict_shards(
        self, shards: Shards, *, workers: int = 0, style: ProgressStyle = ProgressStyle.QUIET
    ) -> Iterator[VideoResult]:
        """A result for each source video of shards, named by URL and key; unreadable ones have an error.

        Raises as the evaluation's `predict_videos` does, but for labels, which don't matter.
        """
        protocol = self.protocol if self.is_stated else self.protocol._replace(clip=published_clip(shards.index))
        found = predict_videos(
            self.model,
            shards,
            protocol=protocol,
            loader=LoaderSpec(workers=workers),
            device=self.device,
            batch=self._batch,
            style=style,
            check_labels=False,
        )
        for key, output_K in zip(found.key, found.output_NK, strict=True):
            name = f"{shards.url}/{key}"
            yield VideoResult(name, (self._prediction(name, None, None, output_K),))
        for key, reason in found.unreadable.items():
            yield VideoResult(f"{shards.url}/{key}", (), reason)


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


def _data_index(checkpoint: str) -> Index | None:
    """The index of the shards that a checkpoint's run was validated or trained on, if it is on this machine."""
    run = run_of(checkpoint)
    facts = read_facts(run) if run is not None else None
    for url in (facts.validation, *facts.data) if facts is not None else ():
        try:
            if url is not None and not isinstance(storage_path(url), RemotePath):
                return Shards.open(url).index
        except VmaeError:
            continue
    return None
