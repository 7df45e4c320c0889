"""`vmae-train evaluate`, read as a table of contents: model, data, answers, scores, and the files that tell of them."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.shards import Shards
from vmae_data.store import Place, commit_bytes, writable_place
from vmae_train.accuracy import write_scores
from vmae_train.clips.loader import LoaderSpec
from vmae_train.clips.views import ClipSpec
from vmae_train.evaluation.answers import scores_of
from vmae_train.evaluation.evaluate import answer_videos, parse_views
from vmae_train.evaluation.metrics import AnyScores, Merge
from vmae_train.evaluation.predictions import write_predictions
from vmae_train.model.load import load_model
from vmae_train.model.videomae import HeadModel
from vmae_train.training.run import run_clip
from vmae_train.training.world import World, choose_device

__all__ = ["Looks", "Told", "evaluate_checkpoint"]


class Looks(NamedTuple):
    """How videos are looked at. `stride` None: as the checkpoint's run did, else as its shards allow.

    `best`: of a run the checkpoint that scored best on the way. `ema`: with the mean of the weights.
    """

    views: str = "5x3"
    merge: Merge = "softmax"
    stride: int | None = None
    frozen: bool = False
    batch: int = 8
    workers: int = 1
    best: bool = False
    ema: bool = False


class Told(NamedTuple):
    """Files to write, paths or URLs: scores as JSON, answers as Parquet, a page."""

    out: str | None = None
    predictions: str | None = None
    html: str | None = None


class _Places(NamedTuple):
    out: Place | None
    predictions: Place | None
    html: Place | None


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    looks: Looks,
    told: Told,
    *,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    world: World | None = None,
) -> AnyScores:
    """Score a model with a head on labelled shards.

    Raises MisuseError for a model, data or places that don't fit each other, DataError for what can't be read.
    """
    world = world or World()
    with world.agreed():
        views = parse_views(looks.views)
        places = _Places(*(_place(url, f"--{name}") for name, url in told._asdict().items()))
        model = load_model(checkpoint, best=looks.best, ema=looks.ema)
        if not isinstance(model, HeadModel):
            raise MisuseError(f"{checkpoint}: is a pretraining model; finetune it first, then evaluate")
        shards = Shards.open(data)
        where = choose_device(device, world=world)
        clip = ClipSpec(stride=looks.stride) if looks.stride else run_clip(checkpoint) or ClipSpec(stride="kept")
        clip = msgspec.structs.replace(clip, frozen=clip.frozen or looks.frozen)
    answers = answer_videos(
        model.to(where),
        shards,
        views=views,
        clip=clip,
        merge=looks.merge,
        loader=LoaderSpec(workers=looks.workers),
        device=where,
        batch=looks.batch,
        style=style,
        world=world,
    )
    with world.agreed():
        scores = scores_of(answers)
    with world.agreed():
        if world.is_main:
            if places.out is not None:
                commit_bytes(places.out, msgspec.json.format(msgspec.json.encode(scores)) + b"\n")
            if places.predictions is not None:
                write_predictions(answers, places.predictions)
            if places.html is not None:
                write_scores(scores, places.html, model=checkpoint, data=data)
    return scores


def _place(url: str | None, option: str) -> Place | None:
    return None if url is None else writable_place(url, option)
