"""`vmae-train evaluate`, read as a table of contents: data, model, how it looks, answers, scores, files that tell of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.recipes import recipe_values, with_settings
from vmae_data.storage import StoragePath, commit_bytes, writable_paths
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.frame_sampling import ClipSpec, kept_step
from vmae_train.clips.frame_spacing import check_spacing, describe_clip
from vmae_train.clips.loader import LoaderSpec
from vmae_train.distributed import Distributed, choose_device
from vmae_train.evaluation.answer_videos import answer_videos
from vmae_train.evaluation.answers import Answers, scores_of
from vmae_train.evaluation.metrics import AnyScores, Merge
from vmae_train.evaluation.predictions import write_predictions
from vmae_train.evaluation.protocol import EvaluationProtocol, parse_views
from vmae_train.models.heads import HeadModel
from vmae_train.reports.scores_page import write_scores
from vmae_train.runs.log import print_start
from vmae_train.runs.metadata import read_facts, run_of
from vmae_train.training.setup import check_cache

__all__ = ["Evaluated", "EvaluationRequest", "Told", "evaluate_checkpoint", "write_told"]


class _Views(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an evaluation takes of a recipe's `[evaluate]`."""

    views: str = "5x3"
    merge: Merge = "softmax"


class _Resize(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an evaluation takes of a recipe's `[augment]`."""

    antialias: bool = True


class ProtocolSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an evaluation takes of a finetuning recipe, and `--set` may change; and the cache, of `--set` only."""

    clip: ClipSpec = ClipSpec()
    evaluate: _Views = _Views()
    augment: _Resize = _Resize()
    cache: CacheSpec = CacheSpec()


class EvaluationRequest(NamedTuple):
    """How videos are looked at: as `recipe` says, else as the checkpoint's run did; changed by `settings` (`key=value`).

    `best`: of a run the checkpoint that scored best on the way. `ema`: with the mean of the weights.
    """

    recipe: str | None = None
    settings: Sequence[str] = ()
    batch: int = 8
    workers: int = 1
    best: bool = False
    ema: bool = False


class Told(NamedTuple):
    """Files to write, paths or URLs: scores as JSON, answers as Parquet, a page."""

    out: str | None = None
    predictions: str | None = None
    html: str | None = None

    def places(self) -> dict[str, StoragePath]:
        """By option. Raises MisuseError where a file can't be written, or two are the same."""
        places = writable_paths({f"--{name}": url for name, url in self._asdict().items()})
        return {option.removeprefix("--"): place for option, place in places.items()}


class Evaluated(NamedTuple):
    checkpoint: str
    shards: Shards
    answers: Answers
    scores: AnyScores


def evaluate_checkpoint(
    checkpoint: str,
    data: str,
    request: EvaluationRequest,
    *,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
) -> Evaluated:
    """Score a model with a head on labelled shards.

    Raises MisuseError for a model, data or settings that don't fit each other, DataError for what can't be read.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        model = load_model(checkpoint, best=request.best, ema=request.ema)
        if not isinstance(model, HeadModel):
            raise MisuseError(f"{checkpoint}: is a pretraining model; finetune it first, then evaluate")
        shards = Shards.open(data)
        where = choose_device(device, distributed=distributed)
        found = _look_spec(checkpoint, shards, request)
        spec = found.spec
        protocol = EvaluationProtocol(
            parse_views(spec.evaluate.views), spec.clip, spec.evaluate.merge, spec.augment.antialias
        )
        check_cache(spec.cache, shards)
        rows = _rows(model, shards, protocol, found)
    print_start(f"evaluate {checkpoint}", rows, quiet=distributed.style(style) is ProgressStyle.QUIET)
    answers = answer_videos(
        model.to(where),
        shards,
        protocol=protocol,
        loader=LoaderSpec(workers=request.workers),
        cache=spec.cache,
        device=where,
        batch=request.batch,
        style=style,
        distributed=distributed,
    )
    with distributed.all_or_none():
        return Evaluated(checkpoint, shards, answers, scores_of(answers))


class _Found(NamedTuple):
    spec: ProtocolSpec
    origin: str  # where it is from
    advice: str = ""  # where nothing says how clips were chosen


def _rows(model: HeadModel, shards: Shards, protocol: EvaluationProtocol, found: _Found) -> dict[str, str]:
    """How videos are looked at, for the table at the start. Raises MisuseError where the shards don't hold such clips."""
    frames, size = model.geometry.num_frames, model.geometry.image_size
    nearest = check_spacing(protocol.clip, shards, frames, protocol.views.clips)
    return {
        "data": f"{shards.url}, {len(shards)} samples, shards of {shards.index.spacing}",
        "clip": f"{frames} frames, {describe_clip(protocol.clip, shards, frames)}",
        "views": f"{protocol.views} (clips × crops), mean of {protocol.merge}",
        "resize": f"short side to {size} px, antialias {'on' if protocol.antialias else 'off'}",
        "how": "; ".join(text for text in (found.origin, found.advice) if text),
        **({"thinned": nearest} if nearest else {}),
        **({"control": protocol.control} if protocol.control else {}),
    }


def _look_spec(checkpoint: str, shards: Shards, request: EvaluationRequest) -> _Found:
    """The recipe that is named, else the run's, else what is published; with the settings."""
    run, advice = run_of(checkpoint), ""
    named = {text.partition("=")[0].strip() for text in request.settings}
    if request.recipe is not None:
        values, origin = recipe_values("vmae_train", request.recipe), f"recipe {request.recipe}"
        if "mask" in values:
            raise MisuseError(f"--recipe {request.recipe}: is a pretraining recipe; name that of the finetuning")
    elif run is not None:
        values, origin = read_facts(run).recipe, "the run's recipe"
    else:
        values, origin = {}, "as published models of Kinetics are"
        if not named & {"clip.stride", "clip.rate"}:
            values = {"clip": msgspec.to_builtins(_published_clip(shards))}
        if any(name.startswith("clip.") for name in named):
            origin = "settings"
        else:
            advice = f"{checkpoint} does not say how its clips were chosen, --recipe or --set clip.… does"
    if named and origin != "settings":
        origin += " and settings"
    taken: dict[str, Any] = {"clip": dict(values.get("clip", {}))}
    for table, kind in (("evaluate", _Views), ("augment", _Resize)):
        taken[table] = {key: value for key, value in values.get(table, {}).items() if key in kind.__struct_fields__}
    return _Found(with_settings(taken, ProtocolSpec, request.settings, origin), origin, advice)


def _published_clip(shards: Shards) -> ClipSpec:
    """Stride 4, as the published models of Kinetics are scored; neighbouring frames of shards that hold no such clips."""
    try:
        kept_step(ClipSpec(), shards.index)
    except MisuseError:
        return ClipSpec(stride="kept")
    return ClipSpec()


def write_told(found: Evaluated, places: dict[str, StoragePath]) -> None:
    """The files that were asked for. Raises VmaeError where one can't be written."""
    if "out" in places:
        commit_bytes(places["out"], msgspec.json.format(msgspec.json.encode(found.scores)) + b"\n")
    if "predictions" in places:
        write_predictions(found.answers, found.shards, places["predictions"])
    if "html" in places:
        write_scores(found.scores, places["html"], model=found.checkpoint, data=found.shards.url)
