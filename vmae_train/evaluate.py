"""`vmae-train evaluate`: a checkpoint and labelled shards → predictions or features → scores → files that the user wants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from vmae_data.amounts import plural
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.storage import StoragePath, commit_bytes
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.frame_spacing import check_spacing, describe_clip
from vmae_train.clips.loader import LoaderSpec
from vmae_train.distributed import Distributed, choose_device
from vmae_train.evaluation.frozen_scores import SEEDS, FeatureSet, FrozenScores, few_shot_scores, knn_scores
from vmae_train.evaluation.metrics import AnyScores, Scores
from vmae_train.evaluation.predict_videos import check_same_classes, predict_videos
from vmae_train.evaluation.predictions import Predictions, compute_scores
from vmae_train.evaluation.predictions_file import write_predictions
from vmae_train.evaluation.protocol import EvaluationProtocol
from vmae_train.evaluation.settings import EvaluationSpec, evaluation_settings, published_clip
from vmae_train.models.base import VideoModel
from vmae_train.models.features import FeatureSpec
from vmae_train.models.heads import HeadModel, is_numbered
from vmae_train.reports.scores_page import write_scores_page
from vmae_train.training.setup import check_cache
from vmae_train.training.summary import print_summary

__all__ = ["Evaluation", "evaluate_checkpoint", "evaluate_features", "order_hint", "write_outputs", "write_scores"]


class Evaluation(NamedTuple):
    """The results of an evaluation."""

    checkpoint: str
    shards: Shards
    predictions: Predictions
    scores: AnyScores
    hint: str | None = None  # what may be wrong with a score that guessing gives


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    *,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    best: bool = False,
    ema: bool = False,
    class_names: tuple[str, ...] | None = None,
    batch: int = 8,
    workers: int = 1,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
) -> Evaluation:
    """Evaluate a model with a head on labelled shards.

    The protocol is that of `recipe` [default: the recipe of the checkpoint's run], changed by `settings`
    (`key=value`). `best`: the run's best checkpoint [default: the last]. `ema`: the moving average of the weights.
    `class_names`: names of the model's outputs, for a model that has only numbers. A model that has the classes of the
    data in another order is scored by their names.
    Raises MisuseError if model, data and settings don't fit together, DataError for what can't be read.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        model = load_model(checkpoint, best=best, ema=ema, classes=class_names)
        if not isinstance(model, HeadModel):
            raise MisuseError(f"{checkpoint}: is a pretraining model. To evaluate it, finetune it first")
        shards = Shards.open(data)
        spec, rows = _settings(checkpoint, model, shards, recipe, settings)
        chosen_device = choose_device(device, distributed=distributed)
        if set(model.classes) == set(shards.classes) and model.classes != shards.classes:
            model.reorder_classes(shards.classes)
            rows["classes"] = "in the order of the data, by name"
    print_summary(f"evaluate {checkpoint}", rows, quiet=distributed.style(style) is ProgressStyle.QUIET)
    predictions = predict_videos(
        model.to(chosen_device),
        shards,
        protocol=spec.protocol(),
        loader=LoaderSpec(workers=workers),
        cache=spec.cache,
        device=chosen_device,
        batch=batch,
        style=style,
        distributed=distributed,
    )
    with distributed.all_or_none():
        scores = compute_scores(predictions)
        return Evaluation(checkpoint, shards, predictions, scores, order_hint(scores, class_names))


def evaluate_features(
    checkpoint: str,
    data: str,
    train: str,
    *,
    knn: bool = False,
    few_shot: Sequence[int] = (),
    layer: int | None = None,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    best: bool = False,
    ema: bool = False,
    batch: int = 8,
    workers: int = 1,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
) -> FrozenScores:
    """Score the features of a pretrained or finetuned model: classifiers are fitted to them on `train`.

    `knn`: nearest neighbours. `few_shot`: numbers of training videos of each class. `layer`: the block,
    counted from 1 [default: the last]. The protocol is that of `evaluate_checkpoint`; both data sets share it.
    Raises MisuseError if model, data and settings don't fit together, DataError for what can't be read.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        model = load_model(checkpoint, best=best, ema=ema)
        features = FeatureSpec("mean", layer)
        try:
            features.check(model.geometry.depth)
        except ValueError as error:
            raise MisuseError(f"{checkpoint}: {error}. Set another --layer") from error
        shards = Shards.open(data)
        spec, rows = _settings(checkpoint, model, shards, recipe, settings)
        training, protocol = Shards.open(train), spec.protocol()
        check_cache(spec.cache, training)
        _check_labels(training, shards, max(few_shot, default=0))
        chosen_device = choose_device(device, distributed=distributed)
        rows |= {
            "views": f"{protocol.views} (clips × crops), mean of features",
            "train": f"{training.url}, {len(training)} samples, shards of {training.index.spacing}",
            "features": f"mean of all tokens of block {layer or model.geometry.depth} of {model.geometry.depth}",
        }
        check_spacing(protocol.clip, training, model.geometry.num_frames, protocol.views.clips)
        if few_shot:
            rows["few-shot"] = ", ".join(_describe_shots(training, shots) for shots in few_shot)
    print_summary(f"evaluate {checkpoint}", rows, quiet=distributed.style(style) is ProgressStyle.QUIET)
    sets: list[FeatureSet] = []
    unreadable: dict[str, str] = {}
    for part, what in ((training, "training videos encoded"), (shards, "videos encoded")):
        found = predict_videos(
            model.to(chosen_device),
            part,
            protocol=protocol,
            loader=LoaderSpec(workers=workers),
            cache=spec.cache,
            device=chosen_device,
            batch=batch,
            style=style,
            distributed=distributed,
            features=features,
            progress_label=what,
        )
        sets.append(_feature_set(found, part))
        unreadable |= {f"{part.url}/{key}": reason for key, reason in found.unreadable.items()}
    train_set, validation = sets
    rounds = SEEDS * len(few_shot)
    with distributed.all_or_none(), ProgressBar("classifiers", rounds, distributed.style(style)) as progress:
        return FrozenScores(
            videos=len(validation.label_N),
            train_videos=len(train_set.label_N),
            layer=layer or model.geometry.depth,
            views=str(protocol.views),
            clip=protocol.clip,
            antialias=protocol.antialias,
            control=protocol.control,
            unreadable=unreadable,
            knn=knn_scores(train_set, validation, len(shards.classes)) if knn else None,
            few_shot=tuple(
                few_shot_scores(train_set, validation, shots, shards.classes, progress.advance) for shots in few_shot
            ),
        )


def _settings(
    checkpoint: str, model: VideoModel, shards: Shards, recipe: str | None, settings: Sequence[str]
) -> tuple[EvaluationSpec, dict[str, str]]:
    """How to evaluate on the shards, and that as a table. Raises MisuseError if they don't fit together."""
    spec, origin, _ = evaluation_settings(checkpoint, published_clip(shards.index), recipe, settings)
    check_cache(spec.cache, shards)
    return spec, _protocol_rows(model, shards, spec.protocol(), origin)


def _check_labels(training: Shards, shards: Shards, shots: int) -> None:
    """Raises MisuseError unless both data sets have one class a video, the same classes, and enough videos of each."""
    for part in (training, shards):
        if part.label_kind is not LabelKind.CLASS:
            kind = "values" if part.label_kind is LabelKind.VALUES else "several classes a video"
            raise MisuseError(f"{part.url}: its labels are {kind}. Scores of features need one class a video")
        if not part.classes or not (part.label_N >= 0).any():
            raise MisuseError(f"{part.url}: has no labels. Scores of features need labelled shards")
    if training.digest == shards.digest:
        raise MisuseError(f"--train {training.url}: holds the videos to evaluate. Name the training shards")
    check_same_classes(shards, training.classes, "the training shards'", "Build both with --classes")
    for number, name in enumerate(training.classes):
        videos = len(np.unique(training.source_N[training.label_N == number]))
        if videos < shots:
            raise MisuseError(
                f"--few-shot {shots}: {training.url} has {videos} videos of class {name!r}. Lower --few-shot, "
                "or add training videos"
            )


def _describe_shots(training: Shards, shots: int) -> str:
    largest = np.bincount(training.label_N[training.label_N >= 0]).max()
    text = plural(shots, "video") + " a class"
    return f"{text} (all there are: every seed chooses the same)" if largest == shots else text


def _feature_set(found: Predictions, shards: Shards) -> FeatureSet:
    """The labelled videos. Raises DataError if there are none."""
    labelled_N = found.label_N >= 0
    if not labelled_N.any():
        raise DataError(f"{shards.url}: no labelled video could be read. Run `vmae-shard verify` on the shards")
    samples = [shards.sample_number(int(number)) for number in found.sample_N[labelled_N]]
    return FeatureSet(found.output_NK[labelled_N], found.label_N[labelled_N], np.asarray(samples, np.uint64))


def order_hint(scores: AnyScores, class_names: tuple[str, ...] | None) -> str | None:
    """A hint if a score is what guessing gives, and only numbers or the user's names tell the order of the classes."""
    if not isinstance(scores, Scores) or not (class_names or is_numbered(scores.classes)):
        return None
    chance = 1 / len(scores.classes)
    spread = math.sqrt(chance * (1 - chance) / scores.videos)
    if len(scores.classes) == 1 or scores.top1 / 100 > chance + 2 * spread:
        return None
    names = "the names in --class-names" if class_names else "the numbers of the model's classes and of the data"
    return (
        f"top-1 {scores.top1:.2f} % is no better than chance ({100 * chance:.2f} %). "
        f"Check that {names} are in the same order as the model's outputs"
    )


def _protocol_rows(model: VideoModel, shards: Shards, protocol: EvaluationProtocol, origin: str) -> dict[str, str]:
    """The protocol, for the table at the start. Raises MisuseError if the shards don't have such clips."""
    frames, size = model.geometry.num_frames, model.geometry.image_size
    nearest = check_spacing(protocol.clip, shards, frames, protocol.views.clips)
    return {
        "data": f"{shards.url}, {len(shards)} samples, shards of {shards.index.spacing}",
        "clip": f"{frames} frames, {describe_clip(protocol.clip, shards, frames)}",
        "views": f"{protocol.views} (clips × crops), mean of {protocol.merge}",
        "resize": f"short side to {size} px, antialias {'on' if protocol.antialias else 'off'}",
        "settings": origin,
        **({"thinned": nearest} if nearest else {}),
        **({"control": protocol.control} if protocol.control else {}),
    }


def write_outputs(
    evaluation: Evaluation, *, out: StoragePath | None, predictions: StoragePath | None, html: StoragePath | None
) -> None:
    """Write scores as JSON, predictions as Parquet, and a page. Raises VmaeError if one can't be written."""
    scores = evaluation.scores
    if out is not None:
        write_scores(scores, out)
    if predictions is not None:
        write_predictions(evaluation.predictions, evaluation.shards, predictions)
    if html is not None:
        write_scores_page(scores, html, model=evaluation.checkpoint, shards=evaluation.shards)


def write_scores(scores: AnyScores | FrozenScores, path: StoragePath) -> None:
    """Write scores as JSON. Raises VmaeError if the file can't be written."""
    commit_bytes(path, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")
