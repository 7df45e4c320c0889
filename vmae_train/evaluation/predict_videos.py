"""A model and shards → predictions or features of every video. Each video is decoded once for all its views.

B videos of a batch, V clips of a video, R crops of a frame, T frames, K classes or values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.boxes import view_boxes
from vmae_train.clips.colour import Planes, planes_of_views
from vmae_train.clips.frame_sampling import view_sampler
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.distributed import Distributed
from vmae_train.evaluation.predictions import Predictions, activate, gather_outputs, merge_by_source
from vmae_train.evaluation.protocol import EvaluationProtocol
from vmae_train.models.base import VideoModel
from vmae_train.models.features import FeatureSpec, clip_features
from vmae_train.models.heads import Classifier, HeadModel, MultiLabelClassifier, Regressor, is_numbered

__all__ = [
    "ViewPredictor",
    "check_classes",
    "check_merge",
    "check_same_classes",
    "load_views",
    "output_kind",
    "output_names",
    "own_batches",
    "padded_requests",
    "predict_videos",
    "with_paths",
]

_MODELS = {
    LabelKind.CLASS: (Classifier, "one class a video"),
    LabelKind.CLASSES: (MultiLabelClassifier, "several classes a video"),
    LabelKind.VALUES: (Regressor, "values for regression"),
}


def check_classes(model: HeadModel, shards: Shards) -> None:
    """Raises MisuseError unless the labels fit the model: their kind, and the name of every class."""
    model_class, labels = _MODELS[shards.label_kind]
    if not isinstance(model, model_class):
        predicted = next(kind for other, kind in _MODELS.values() if isinstance(model, other))
        raise MisuseError(f"{shards.url}: its labels are {labels}, the model predicts {predicted}. Use other data")
    if isinstance(model, Regressor):
        if shards.num_targets != len(model.values):
            raise MisuseError(f"{shards.url}: has {shards.num_targets} values a video, the model {len(model.values)}")
        return
    if not shards.classes:
        raise MisuseError(f"{shards.url}: has no labels. A classifier needs labelled shards")
    if is_numbered(model.classes) and len(model.classes) == len(shards.classes) and model.classes != shards.classes:
        raise MisuseError(
            f"{shards.url}: its classes have names, but the model has numbers only. Name the model's classes with "
            "--class-names FILE: one name per line, in the order of its outputs"
        )
    check_same_classes(shards, model.classes, "the model's", "Build the shards with --classes")


def check_same_classes(shards: Shards, classes: tuple[str, ...], whose: str, advice: str) -> None:
    """Raises MisuseError if the number or a name of the classes differs from `classes`."""
    if shards.classes != classes:
        owner = whose.removesuffix("'s")
        first = next(
            (
                f"class {n} is {own!r} here, {other!r} in {owner}"
                for n, (other, own) in enumerate(zip(classes, shards.classes, strict=False))
                if other != own
            ),
            f"{len(shards.classes)} classes here, {len(classes)} in {owner}",
        )
        raise MisuseError(f"{shards.url}: its classes differ from {whose} ({first}). {advice}")


def own_batches(own: Iterable[Batch], turns: int) -> Iterable[Batch]:
    """The batches of this process, each as soon as it is loaded."""
    return own


def predict_videos(
    model: VideoModel,
    shards: Shards,
    *,
    protocol: EvaluationProtocol,
    loader: LoaderSpec,
    device: torch.device,
    cache: CacheSpec | None = None,
    batch: int = 8,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
    turns: Callable[[Iterable[Batch], int], Iterable[Batch]] = own_batches,
    features: FeatureSpec | None = None,
    progress_label: str = "videos evaluated",
) -> Predictions:
    """The model's prediction for every video: the mean over its views, and over the segments of one source.

    With `features` the outputs are features of the encoder, one vector a video, and the labels may be of any kind.
    The processes share the batches. All return the same predictions as one process would. `turns` gives this process's
    batches, one in each of a number of turns; a training ends them after a signal. Unreadable videos are skipped and
    named.
    Raises MisuseError if labels and model don't fit, or if the shards don't have such clips; DataError if too many videos
    are unreadable.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        if features is None:
            assert isinstance(model, HeadModel)
            check_classes(model, shards)
            check_merge(model, protocol)
            names, kind, size = output_names(model), output_kind(model), model.head.out_features
        else:
            assert features.pool == "mean"
            names, kind, size = (), shards.label_kind, model.geometry.embed_dim
            protocol = protocol._replace(merge="softmax")
    requests = list(padded_requests(range(len(shards)), batch))
    own = requests[distributed.rank :: distributed.world_size]
    predictor = ViewPredictor(model, protocol, device, autocast, features)
    samples: list[int] = []
    outputs: list[NDArray[np.float32]] = []
    with ExitStack() as stack:
        with distributed.all_or_none():
            opened = load_views(predictor, shards, own, batch=batch, loader=loader, cache=cache)
            batches = stack.enter_context(opened)
        progress = stack.enter_context(ProgressBar(progress_label, len(shards), distributed.style(style)))
        with distributed.all_or_none(), torch.inference_mode():
            for turn, loaded in enumerate(turns(batches, -(-len(requests) // distributed.world_size))):
                for sample, output_K in predictor.predict_batch(loaded):
                    samples.append(sample)
                    outputs.append(output_K)
                # The main process shows the progress of all: it has a batch in every turn, and the others keep up.
                in_turn = requests[turn * distributed.world_size : (turn + 1) * distributed.world_size]
                progress.advance(sum(sample != PADDING for request in in_turn for sample in request.samples))
        unreadable = batches.unreadable
    try:
        for by_key in distributed.all_gather(unreadable.by_key, dict[str, str]):
            unreadable.merge(by_key)
    except DataError as error:
        distributed.raise_first(error)  # every process has the same error
    sample_S, output_SK = gather_outputs(distributed, samples, outputs, size)
    return merge_by_source(
        shards,
        sample_S,
        output_SK,
        names=names,
        kind=kind,
        protocol=protocol,
        unreadable=with_paths(shards, unreadable.by_key),
    )


def load_views(
    predictor: ViewPredictor,
    shards: Shards,
    requests: Sequence[Request],
    *,
    batch: int,
    loader: LoaderSpec,
    cache: CacheSpec | None = None,
) -> ClipLoader:
    """The clips of the requested samples, as the predictor's protocol takes them.

    Raises MisuseError if the shards don't have such clips.
    """
    num_frames, clip, clips = (
        predictor.model.geometry.num_frames,
        predictor.protocol.clip,
        predictor.protocol.views.clips,
    )
    check_spacing(clip, shards, num_frames, clips)
    sampler = view_sampler(clip, shards.index, num_frames, clips)
    frames = min(clips * num_frames, int(shards.frames_NP[:, 0].max()))
    return ClipLoader(
        shards,
        sampler,
        requests,
        batch=batch,
        frames=frames,
        seed=0,
        spec=loader,
        cache=cache,
        device=predictor.device,
    )


def output_names(model: HeadModel) -> tuple[str, ...]:
    """The names of the model's outputs: its classes, or its values."""
    return tuple(value.name for value in model.values) if isinstance(model, Regressor) else model.classes


def output_kind(model: HeadModel) -> LabelKind:
    """The kind of labels that the model predicts."""
    return next(kind for kind, (model_class, _) in _MODELS.items() if isinstance(model, model_class))


def check_merge(model: HeadModel, protocol: EvaluationProtocol) -> None:
    """Raises MisuseError for a mean over logits of a model that has none."""
    if protocol.merge == "logit" and isinstance(model, Regressor):
        raise MisuseError("merge = logit: values have no logits. Remove this setting")


class ViewPredictor:
    """Decoded frames of videos → the mean of the model's outputs over the views of each.

    The mean is over probabilities, or, with `protocol.merge` = logit, over logits. With `features` it is over those.
    """

    def __init__(
        self,
        model: VideoModel,
        protocol: EvaluationProtocol,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        features: FeatureSpec | None = None,
    ) -> None:
        self.model, self.protocol, self.device, self.features = model.eval(), protocol, device, features
        self._augment, self._autocast = _centre_crop(model, protocol).to(device), autocast

    def predict(self, planes: Planes, index_BVT: Tensor | None) -> NDArray[np.float32]:
        """(B, K), or features of B videos. None as `index_BVT`: the decoded frames are the only clip.

        Call it in inference mode.
        """
        clips = view_clips(planes, index_BVT, self._augment, self.protocol, self.model.geometry.num_frames)
        with self._autocast():
            by_view = self._outputs(clips)
        output_B: NDArray[np.float32] = (
            rearrange(by_view, "(b n) ... -> b n ...", b=len(planes.size_B2)).mean(dim=1).cpu().numpy()
        )
        return output_B

    def _outputs(self, clips: Tensor) -> Tensor:
        if self.features is not None:
            return clip_features(self.model, clips, self.features).float()
        assert isinstance(self.model, HeadModel)
        logits = self.model(clips).float()
        return activate(logits, output_kind(self.model)) if self.protocol.merge == "softmax" else logits

    def predict_batch(self, loaded: Batch) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """The number and the output of each readable sample of a batch."""
        output_B = self.predict(loaded.planes, loaded.index_BVT)
        for slot, (sample, weight) in enumerate(zip(loaded.request.samples, loaded.weight_B.tolist(), strict=True)):
            if sample != PADDING and weight:
                yield sample, output_B[slot]


def padded_requests(samples: Sequence[int], batch: int) -> Iterator[Request]:
    """Every sample once, in order; the last batch is padded."""
    for step, first in enumerate(range(0, len(samples), batch)):
        part = samples[first : first + batch]
        yield Request(0, step, (*part, *[PADDING] * (batch - len(part))))


def _centre_crop(model: VideoModel, protocol: EvaluationProtocol) -> Augment:
    size, mean, std = model.geometry.image_size, model.geometry.mean, model.geometry.std
    return Augment(AugmentSpec(size=size, crop="center", antialias=protocol.antialias, mean=mean, std=std))


def view_clips(
    planes: Planes, index_BVT: Tensor | None, augment: Augment, protocol: EvaluationProtocol, num_frames: int
) -> Tensor:
    """All views of a batch as clips, (B · R · V, 3, T, S, S); the views of a video are neighbours."""
    if index_BVT is None:
        assert protocol.views.clips == 1
    planes = planes_of_views(planes, index_BVT)
    boxes = view_boxes(planes.size_B2, num_crops=protocol.views.crops, size=augment.size)
    rgb = augment(planes, boxes)
    return augment.normalise(rearrange(rgb, "b c (v t) h w -> (b v) c t h w", t=num_frames))


def with_paths(shards: Shards, unreadable: dict[str, str]) -> dict[str, str]:
    """The reason by key; with the path of the source video, if the plan lists it."""
    if not unreadable:
        return {}
    numbers = [number for number in range(len(shards)) if shards.key(number) in unreadable]
    paths = {shards.key(n): path for n, path in zip(numbers, shards.source_paths(numbers), strict=True)}
    return {
        key: f"{unreadable[key]} (made of {paths[key]})" if paths.get(key) else unreadable[key]
        for key in sorted(unreadable)
    }
