"""Row 19. A model with a head and an index → answers. Each video is decoded once for all its views, and counted once.

B videos of a batch, V clips of a video, R crops of a frame, T frames, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressStyle, meter
from vmae_data.read.batches import PADDING, Request
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.boxes import view_boxes
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.frame_sampling import view_sampler
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.distributed import Distributed
from vmae_train.evaluation.answers import Answers, Found, activate, answers_from, merge_by_source
from vmae_train.evaluation.protocol import EvaluationProtocol, Views
from vmae_train.models.heads import Classifier, HeadModel, MultiLabelClassifier, Regressor

__all__ = ["answer_videos", "check_classes", "check_same_classes"]

_KINDS = {
    LabelKind.CLASS: (Classifier, "one class a video"),
    LabelKind.CLASSES: (MultiLabelClassifier, "several classes a video"),
    LabelKind.VALUES: (Regressor, "values for regression"),
}


def check_classes(model: HeadModel, shards: Shards) -> None:
    """Raises MisuseError unless the data's labels are what the model answers: their kind, and the classes name by name."""
    wanted, labels = _KINDS[shards.label_kind]
    if not isinstance(model, wanted):
        answers = next(words for kind, words in _KINDS.values() if isinstance(model, kind))
        raise MisuseError(f"{shards.url}: its labels are {labels}, the model answers {answers}; name other data")
    if isinstance(model, Regressor):
        if shards.num_targets != len(model.values):
            raise MisuseError(f"{shards.url}: has {shards.num_targets} values a video, the model {len(model.values)}")
        return
    if not shards.classes:
        raise MisuseError(f"{shards.url}: has no labels; a classifier needs a labelled data set")
    check_same_classes(shards, model.classes, "the model's", "build it with --classes")


def check_same_classes(shards: Shards, classes: tuple[str, ...], whose: str, advice: str) -> None:
    """Raises MisuseError where a class has another name than in `classes`, or there are more or fewer."""
    if shards.classes != classes:
        owner = whose.removesuffix("'s")
        first = next(
            (
                f"class {n} is {b!r} here, {a!r} in {owner}"
                for n, (a, b) in enumerate(zip(classes, shards.classes, strict=False))
                if a != b
            ),
            f"{len(shards.classes)} classes here, {len(classes)} in {owner}",
        )
        raise MisuseError(f"{shards.url}: other classes than {whose} ({first}); {advice}")


def answer_videos(
    model: HeadModel,
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
) -> Answers:
    """What the model says of every video: the mean over its views, and over the segments of one source.

    `look.merge`: softmax (of several classes, sigmoid) of each view before the mean, or of the mean of the logits. The
    processes of `world` share out the batches and all get the answers, the same as one process alone. Videos that can't
    be read are left out and named.
    Raises MisuseError where labels and model don't fit, DataError for too many that can't be read.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        check_classes(model, shards)
        if protocol.merge == "logit" and isinstance(model, Regressor):
            raise MisuseError("merge = logit: values have no logits; leave it out")
        geometry, views, clip = model.geometry, protocol.views, protocol.clip
        check_spacing(clip, shards, geometry.num_frames, views.clips)
        sampler = view_sampler(clip, shards.index, geometry.num_frames, views.clips)
    spec = AugmentSpec(
        size=geometry.image_size, crop="center", antialias=protocol.antialias, mean=geometry.mean, std=geometry.std
    )
    augment, kind = Augment(spec).to(device), shards.label_kind
    found = Found(model.head.out_features)
    model.eval()
    frames = min(views.clips * geometry.num_frames, int(shards.frames_NP[:, 0].max()))
    requests = list(_in_order(len(shards), batch))
    mine = requests[distributed.rank :: distributed.size]
    with (
        distributed.all_or_none(),
        ClipLoader(
            shards, sampler, mine, batch=batch, frames=frames, seed=0, spec=loader, cache=cache, device=device
        ) as batches,
    ):
        with meter("videos evaluated", len(shards), distributed.style(style)) as shown, torch.inference_mode():
            for turn, one in enumerate(batches):
                clips = view_clips(one, augment, views, geometry.num_frames)
                with autocast():
                    logits = model(clips)
                outputs = activate(logits.float(), kind) if protocol.merge == "softmax" else logits.float()
                found.add(one, rearrange(outputs, "(b n) k -> b n k", b=batch).mean(dim=1))
                # The others are about as far: the main process, which shows it, has a batch in every turn.
                turns = requests[turn * distributed.size : (turn + 1) * distributed.size]
                shown.advance(sum(sample != PADDING for request in turns for sample in request.samples))
        unreadable = batches.unreadable
    try:
        for others in distributed.all_gather(unreadable.by_key, dict[str, str]):
            unreadable.join(others)
    except DataError as error:
        distributed.raise_first(error)  # all find the same
    return answers_from(
        shards,
        merge_by_source(shards, found.gathered(distributed), protocol.merge),
        tuple(value.name for value in model.values) if isinstance(model, Regressor) else model.classes,
        protocol=protocol,
        unreadable=_with_paths(shards, unreadable.by_key),
    )


def _with_paths(shards: Shards, unreadable: dict[str, str]) -> dict[str, str]:
    """By key, why a video could not be read; with the file that it was made of, where the plan tells."""
    if not unreadable:
        return {}
    numbers = [number for number in range(len(shards)) if shards.key(number) in unreadable]
    found = {shards.key(n): path for n, path in zip(numbers, shards.source_paths(numbers), strict=True)}
    told = {key: f" (made of {found[key]})" if found.get(key) else "" for key in unreadable}
    return {key: f"{unreadable[key]}{told[key]}" for key in sorted(unreadable)}


def _in_order(total: int, batch: int) -> Iterator[Request]:
    """Every sample once; the last batch is filled up with empty places."""
    for step, first in enumerate(range(0, total, batch)):
        samples = range(first, min(first + batch, total))
        yield Request(0, step, (*samples, *[PADDING] * (batch - len(samples))))


def view_clips(batch: Batch, augment: Augment, views: Views, num_frames: int) -> Tensor:
    """All views of a batch as clips, (B · R · V, 3, T, S, S), a video's views together."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    if batch.index_BVT is None:
        assert views.clips == 1
    boxes = view_boxes(planes.size_B2, num_crops=views.crops, size=augment.size)
    rgb = augment(planes, boxes)
    return augment.normalise(rearrange(rgb, "b c (v t) h w -> (b v) c t h w", t=num_frames))
