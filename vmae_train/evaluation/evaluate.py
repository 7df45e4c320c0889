"""Row 19. A classifier and an index → scores. Each video is decoded once for all its views, and counted once.

B videos of a batch, V clips of a video, R crops of a frame, T frames, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressStyle, meter
from vmae_data.read.cache import CacheSpec
from vmae_data.read.shards import LabelKind, Shards
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.boxes import view_boxes
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import EMPTY, Batch, ClipLoader, LoaderSpec, Request
from vmae_train.clips.views import ClipSpec, check_spacing, view_sampler
from vmae_train.evaluation.metrics import Scores, score
from vmae_train.model.videomae import Classifier
from vmae_train.training.world import World

__all__ = ["Views", "check_classes", "check_one_class", "check_same_classes", "evaluate", "parse_views"]


class Views(NamedTuple):
    """How often a video is looked at: clips in time × crops in space."""

    clips: int
    crops: int

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


def parse_views(text: str) -> Views:
    """`5x3` → 5 clips, 3 crops. Raises MisuseError."""
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise MisuseError(f"--views {text}: expected CLIPSxCROPS, such as 5x3")
    return Views(int(found[1]), int(found[2]))


def check_one_class(shards: Shards) -> None:
    """Raises MisuseError where a video has several classes, or values for regression."""
    if shards.label_kind is not LabelKind.CLASS:
        what = "several classes a video" if shards.label_kind is LabelKind.CLASSES else "values for regression"
        raise MisuseError(f"{shards.url}: its labels are {what}; this version learns and scores one class a video")


def check_classes(model: Classifier, shards: Shards) -> None:
    """Raises MisuseError unless the data's classes are the model's, name by name."""
    check_one_class(shards)
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


def evaluate(
    model: Classifier,
    shards: Shards,
    *,
    views: Views,
    clip: ClipSpec,
    loader: LoaderSpec,
    cache: CacheSpec | None = None,
    device: torch.device,
    batch: int = 8,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    style: ProgressStyle = ProgressStyle.AUTO,
    world: World | None = None,
) -> Scores:
    """Softmax of every view, averaged over the views of a video (and over the segments of one source).

    `clip` says how a video's frames are sampled. The processes of `world` share out the batches and all get the scores,
    the same as one process alone. Videos that can't be read or have no label are left out and named.
    Raises DataError when nothing is left.
    """
    world = world or World()
    with world.agreed():
        check_classes(model, shards)
        geometry = model.geometry
        check_spacing(clip, shards, geometry.num_frames, views.clips)
        sampler = view_sampler(clip, shards.index, geometry.num_frames, views.clips)
    spec = AugmentSpec(size=geometry.image_size, crop="center", mean=geometry.mean, std=geometry.std)
    augment = Augment(spec).to(device)
    found = _Answers(len(model.classes))
    model.eval()
    frames = min(views.clips * geometry.num_frames, int(shards.frames_NP[:, 0].max()))
    requests = list(_in_order(len(shards), batch))[world.rank :: world.size]
    mine = sum(sample != EMPTY for request in requests for sample in request.samples)
    with (
        world.agreed(),
        ClipLoader(
            shards, sampler, requests, batch=batch, frames=frames, seed=0, spec=loader, cache=cache, device=device
        ) as batches,
    ):
        with meter("videos evaluated", mine, world.style(style)) as shown, torch.inference_mode():
            for one in batches:
                clips = view_clips(one, augment, views, geometry.num_frames)
                with autocast():
                    logits = model(clips)
                found.add(one, rearrange(logits.float().softmax(dim=-1), "(b n) k -> b n k", b=batch).mean(dim=1))
                shown.advance(sum(sample != EMPTY for sample in one.request.samples))
        unreadable = batches.unreadable
    try:
        for others in world.gather_record(unreadable.by_key, dict[str, str]):
            unreadable.join(others)
        probability, label = _by_source(shards, found.gathered(world), len(model.classes))
    except DataError as error:
        world.raise_first(error)  # all find the same
    listed = dict(sorted(unreadable.by_key.items()))
    control = "one frame repeated" if clip.frozen else None
    return score(probability, label, classes=model.classes, views=str(views), unreadable=listed, control=control)


def _in_order(total: int, batch: int) -> Iterator[Request]:
    """Every sample once; the last batch is filled up with empty places."""
    for step, first in enumerate(range(0, total, batch)):
        samples = range(first, min(first + batch, total))
        yield Request(0, step, (*samples, *[EMPTY] * (batch - len(samples))))


def view_clips(batch: Batch, augment: Augment, views: Views, num_frames: int) -> Tensor:
    """All views of a batch as clips, (B · R · V, 3, T, S, S), a video's views together."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    if batch.index_BVT is None:
        assert views.clips == 1
    boxes = view_boxes(planes.size_B2, num_crops=views.crops, size=augment.size)
    rgb = augment(planes, boxes)
    return augment.normalise(rearrange(rgb, "b c (v t) h w -> (b v) c t h w", t=num_frames))


class _Answers:
    """What a process found: sample numbers, and probabilities on the host."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        self._samples: list[int] = []
        self._rows: list[NDArray[np.float32]] = []

    def add(self, batch: Batch, probability_BK: Tensor) -> None:
        values = probability_BK.cpu().numpy()
        for place, (sample, weight) in enumerate(zip(batch.request.samples, batch.weight_B.tolist(), strict=True)):
            if sample != EMPTY and weight:
                self._samples.append(sample)
                self._rows.append(values[place])

    def gathered(self, world: World) -> _Gathered:
        """Those of all processes, by sample number: so sums don't hang on who found what."""
        samples = np.asarray(self._samples, dtype=np.int64)
        rows = np.asarray(self._rows, dtype=np.float32).reshape(-1, self._num_classes)
        numbers = np.concatenate([np.frombuffer(data, dtype=np.int64) for data in world.gather(samples.tobytes())])
        flat = np.concatenate([np.frombuffer(data, dtype=np.float32) for data in world.gather(rows.tobytes())])
        order = np.argsort(numbers)
        return _Gathered(numbers[order], flat.reshape(-1, self._num_classes)[order])


class _Gathered(NamedTuple):
    """Ascending sample numbers, each once, and the mean of their views' probabilities."""

    sample_N: NDArray[np.int64]
    probability_NK: NDArray[np.float32]


class _Labelled(NamedTuple):
    probability_NK: NDArray[np.float64]
    label_N: NDArray[np.int64]


def _by_source(shards: Shards, found: _Gathered, num_classes: int) -> _Labelled:
    """The mean over the segments of a source, wherever they were read. Raises DataError when no source has a label."""
    sources = int(shards.source_N.max()) + 1
    sum_NK, count_N = np.zeros((sources, num_classes)), np.zeros(sources, dtype=np.int64)
    label_N = np.full(sources, -1, dtype=np.int64)
    source = shards.source_N[found.sample_N]
    np.add.at(sum_NK, source, found.probability_NK.astype(np.float64))
    np.add.at(count_N, source, 1)
    label_N[source] = shards.label_N[found.sample_N]
    known = (count_N > 0) & (label_N >= 0)
    if not known.any():
        raise DataError(f"{shards.url}: not one labelled video could be read; verify the shards")
    return _Labelled(sum_NK[known] / count_N[known, None], label_N[known])
