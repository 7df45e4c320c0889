"""A model with a head and video files → predictions for each video or for windows of it.

B clips of a batch, T frames, H rows, W columns, C colours, K classes or values.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.arguments import check_integer
from vmae_data.errors import MisuseError
from vmae_data.read.dataset import LabelKind
from vmae_train.evaluation.predict_videos import check_merge, output_kind, output_names
from vmae_train.evaluation.predictions import activate
from vmae_train.inference.video_runner import VideoRunner
from vmae_train.inference.windows import WindowSpec
from vmae_train.models.base import VideoModel
from vmae_train.models.heads import HeadModel

__all__ = ["Prediction", "Predictor"]


class Prediction(NamedTuple):
    """The model's output for a span of a video, in seconds from its first frame; None for a sample of shards."""

    video: str
    start: float | None
    end: float | None
    names: tuple[str, ...]  # of the classes or values
    outputs: tuple[float, ...]  # probabilities or values
    kind: LabelKind

    def top(self, count: int | None = None) -> list[tuple[str, float]]:
        """Names and probabilities, the most probable first; values in the model's order.

        `count`: so many of them [default: all]. Raises MisuseError for another value.
        """
        if count is not None:
            check_integer("count", count, 0, sys.maxsize)
        pairs = list(zip(self.names, self.outputs, strict=True))
        if self.kind is not LabelKind.VALUES:
            pairs.sort(key=lambda pair: -pair[1])
        return pairs[:count]

    def __repr__(self) -> str:
        span = "" if self.start is None or self.end is None else f", {self.start:.2f}–{self.end:.2f} s"
        best = ", ".join(f"{name} {value:.3g}" for name, value in self.top(3))
        return f"Prediction({self.video}{span}: {best}{', …' if len(self.names) > 3 else ''})"


class Predictor(VideoRunner[Prediction]):
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
        super().__init__(
            checkpoint,
            device,
            recipe=recipe,
            settings=settings,
            best=best,
            ema=ema,
            class_names=class_names,
            batch=batch,
        )
        assert isinstance(self.model, HeadModel)
        self.names, self.kind = output_names(self.model), output_kind(self.model)

    def __repr__(self) -> str:
        kind = self.kind.name.lower()
        return f"Predictor({self.checkpoint}: {len(self.names)} {kind} outputs, {self.describe_clips()})"

    def _check(self, model: VideoModel) -> None:
        if not isinstance(model, HeadModel):
            raise MisuseError(f"{self.checkpoint}: is a pretraining model. To predict with it, finetune it first")
        check_merge(model, self.protocol)

    def _row(self, video: str, start: float | None, end: float | None, output: NDArray[np.float64]) -> Prediction:
        if self.protocol.merge == "logit":
            output = activate(torch.from_numpy(output), self.kind).numpy()
        return Prediction(video, start, end, self.names, tuple(map(float, output)), self.kind)

    def record(self) -> dict[str, Any]:
        kind, merge = self.kind.name.lower(), self.protocol.merge
        outputs = {"names": list(self.names), "kind": kind, "merge": merge, "dtype": "float64"}
        return {**self.protocol_record(), **outputs}

    def predict(
        self, path: str | Path, *, window: float | None = None, stride: float | None = None
    ) -> tuple[Prediction, ...]:
        """The prediction of a video file or URL, or one for each window. Raises DataError for a file that is no video.

        `window` and `stride`: seconds of a window, and from one start to the next [default: the window].
        """
        return self.run_video(path, WindowSpec(window, stride))

    @torch.inference_mode()
    def predict_clips(self, frames_BTHWC: Tensor | NDArray[np.uint8]) -> Tensor:
        """Probabilities (B, K) of clips in RGB, uint8 (B, T, H, W, 3), as `read_clips` gives them; or values.

        Each clip is one view: its short side is resized to the model's size, and its centre is cropped.
        Raises ValueError for other axes, another type or another number of frames.
        """
        clips = self.preprocess(frames_BTHWC)
        return activate(self.model(clips).float(), self.kind).cpu()
