"""`vmae-train evaluate`: a checkpoint and labelled shards → predictions and scores → the files that the user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.storage import StoragePath, commit_bytes
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.frame_spacing import check_spacing, describe_clip
from vmae_train.clips.loader import LoaderSpec
from vmae_train.distributed import Distributed, choose_device
from vmae_train.evaluation.metrics import AnyScores, Scores
from vmae_train.evaluation.predict_videos import predict_videos
from vmae_train.evaluation.predictions import Predictions, compute_scores
from vmae_train.evaluation.predictions_file import write_predictions
from vmae_train.evaluation.protocol import EvaluationProtocol
from vmae_train.evaluation.settings import evaluation_settings, published_clip
from vmae_train.models.heads import HeadModel, is_numbered
from vmae_train.reports.scores_page import write_scores_page
from vmae_train.training.setup import check_cache
from vmae_train.training.summary import print_summary

__all__ = ["Evaluation", "evaluate_checkpoint", "order_hint", "write_outputs"]


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
        chosen_device = choose_device(device, distributed=distributed)
        spec, origin, _ = evaluation_settings(checkpoint, published_clip(shards.index), recipe, settings)
        protocol = spec.protocol()
        check_cache(spec.cache, shards)
        rows = _protocol_rows(model, shards, protocol, origin)
        if set(model.classes) == set(shards.classes) and model.classes != shards.classes:
            model.reorder_classes(shards.classes)
            rows["classes"] = "in the order of the data, by name"
    print_summary(f"evaluate {checkpoint}", rows, quiet=distributed.style(style) is ProgressStyle.QUIET)
    predictions = predict_videos(
        model.to(chosen_device),
        shards,
        protocol=protocol,
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


def _protocol_rows(model: HeadModel, shards: Shards, protocol: EvaluationProtocol, origin: str) -> dict[str, str]:
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
        commit_bytes(out, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")
    if predictions is not None:
        write_predictions(evaluation.predictions, evaluation.shards, predictions)
    if html is not None:
        write_scores_page(scores, html, model=evaluation.checkpoint, data=evaluation.shards.url)
