"""A pretrained or finetuned model and video files → features of each video or of windows of it.

B clips of a batch, T frames, H rows, W columns, C colours, S tubelet slices, N tokens, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.arguments import check_flag, check_texts
from vmae_data.errors import MisuseError
from vmae_train.inference.video_runner import VideoRunner
from vmae_train.inference.windows import WindowSpec
from vmae_train.models.base import VideoModel
from vmae_train.models.features import FeatureSpec, Pool, clip_features

__all__ = ["Embedder", "Features"]


class Features(NamedTuple):
    """The features of a span of a video, in seconds from its first frame; None for a sample of shards.

    `values` are (E,), with pool `slice` (S, E), with pool `none` (N, E).
    """

    video: str
    start: float | None
    end: float | None
    values: NDArray[Any]

    def __repr__(self) -> str:
        span = "" if self.start is None or self.end is None else f", {self.start:.2f}–{self.end:.2f} s"
        shape = " × ".join(map(str, self.values.shape))
        return f"Features({self.video}{span}: {shape} {self.values.dtype})"


class Embedder(VideoRunner[Features]):
    """A checkpoint that gives the features of videos. Clips are those of its own evaluation.

    `pool`: `mean` over all tokens, one vector for each tubelet `slice`, or `none`, every token. `layer`: the block,
    counted from 1 [default: the last]. `models/features.py` says what is normed. `float16`: round the features.
    With `mean` a vector is the mean over all views; the others are of one view, in the middle.
    `recipe` and `settings` (`key=value`) change the clips as they do for `vmae-train evaluate`.
    Raises MisuseError for settings that don't fit, DataError for what can't be read.
    """

    merges_segments = False

    def __init__(
        self,
        checkpoint: str | Path,
        device: str | None = None,
        *,
        pool: Pool = "mean",
        layer: int | None = None,
        float16: bool = False,
        recipe: str | None = None,
        settings: Sequence[str] = (),
        best: bool = False,
        ema: bool = False,
        batch: int = 8,
    ) -> None:
        check_texts("settings", settings)
        check_flag("float16", float16)
        self.features = FeatureSpec(pool, layer)
        self.dtype = np.dtype(np.float16 if float16 else np.float32)
        if pool != "mean" and not any(setting.startswith("evaluate.views") for setting in settings):
            settings = [*settings, "evaluate.views='1x1'"]
        super().__init__(
            checkpoint,
            device,
            recipe=recipe,
            settings=settings,
            best=best,
            ema=ema,
            batch=batch,
            features=self.features,
        )

    def __repr__(self) -> str:
        return f"Embedder({self.checkpoint}: {self.describe_features()}, {self.describe_clips()})"

    def describe_features(self) -> str:
        """Their axes and their block."""
        depth = self.model.geometry.depth
        return f"{' × '.join(map(str, self.shape))} of block {self.features.layer or depth} of {depth}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The axes of the features of a window."""
        geometry = self.model.geometry
        lengths = {"mean": (), "slice": (geometry.slices,), "none": (geometry.num_tokens,)}[self.features.pool]
        return (*lengths, geometry.embed_dim)

    def _check(self, model: VideoModel) -> None:
        try:
            self.features.check(model.geometry.depth)
        except ValueError as error:
            raise MisuseError(f"{self.checkpoint}: {error}. Set another value") from error
        views = self.protocol.views
        if self.features.pool != "mean" and views != (1, 1):
            raise MisuseError(
                f"views = {views}: slices and tokens of several views have no common mean. Use 1x1, or pool = mean"
            )

    def _row(self, video: str, start: float | None, end: float | None, output: NDArray[np.float64]) -> Features:
        return Features(video, start, end, output.astype(self.dtype))

    def record(self) -> dict[str, Any]:
        features = {
            "pool": self.features.pool,
            "layer": self.features.layer or self.model.geometry.depth,
            "shape": list(self.shape),
            "dtype": self.dtype.name,
        }
        return {**self.protocol_record(), **features}

    def embed(
        self, path: str | Path, *, window: float | None = None, stride: float | None = None
    ) -> tuple[Features, ...]:
        """The features of a video file or URL, or those of each window. Raises DataError for a file that is no video.

        `window` and `stride`: seconds of a window, and from one start to the next [default: the window].
        """
        return self.run_video(path, WindowSpec(window, stride))

    @torch.inference_mode()
    def embed_clips(self, frames_BTHWC: Tensor | NDArray[np.uint8]) -> Tensor:
        """Features (B, …) of clips in RGB, uint8 (B, T, H, W, 3), as `read_clips` gives them.

        Each clip is one view: its short side is resized to the model's size, and its centre is cropped.
        Raises ValueError for other axes, another type or another number of frames.
        """
        clips = self.preprocess(frames_BTHWC)
        features = clip_features(self.model, clips, self.features).float().cpu()
        return features.half() if self.dtype == np.float16 else features
