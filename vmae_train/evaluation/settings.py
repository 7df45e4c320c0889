"""A checkpoint, a recipe and settings → how the checkpoint's videos are sampled, resized and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vmae_data.arguments import check_texts
from vmae_data.errors import MisuseError, RecipeError
from vmae_data.format import Index
from vmae_data.read.cache import CacheSpec
from vmae_data.recipes import recipe_values, with_settings
from vmae_data.storage import exists, storage_path
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.frame_sampling import ClipSpec, kept_step
from vmae_train.evaluation.protocol import EvaluateSpec, EvaluationProtocol, parse_views
from vmae_train.runs.metadata import read_facts, run_of

__all__ = ["EvaluationSettings", "EvaluationSpec", "evaluation_settings", "published_clip"]

_HF_CONFIG = "config.json"  # of a folder of transformers
# The other keys of these tables don't change an evaluation. --set refuses them.
_KEYS = {"evaluate": ("views", "merge"), "augment": ("antialias",)}


class EvaluationSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of a finetuning recipe that an evaluation uses, with the keys of `_KEYS`; and the cache."""

    clip: ClipSpec = ClipSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    augment: AugmentSpec = AugmentSpec()
    cache: CacheSpec = CacheSpec()

    def protocol(self) -> EvaluationProtocol:
        views, merge = parse_views(self.evaluate.views), self.evaluate.merge
        return EvaluationProtocol(views, self.clip, merge, self.augment.antialias)


class EvaluationSettings(NamedTuple):
    """The settings of an evaluation, where they come from in words, and whether anything states the clips."""

    spec: EvaluationSpec
    origin: str
    is_stated: bool


def published_clip(index: Index) -> ClipSpec:
    """Stride 4, the protocol of the published Kinetics models; adjacent kept frames if the shards have no such clips."""
    try:
        kept_step(ClipSpec(), index)
    except MisuseError:
        return ClipSpec(stride="kept")
    return ClipSpec()


def evaluation_settings(
    checkpoint: str, published: ClipSpec, recipe: str | Path | None, settings: Sequence[str]
) -> EvaluationSettings:
    """The recipe's tables, or the run's, or those of the published models, with the settings.

    `published` are the clips of a checkpoint that belongs to no run. Raises MisuseError, RecipeError, DataError.
    """
    check_texts("settings", settings)
    if recipe is not None and not isinstance(recipe, str | Path):
        raise MisuseError(f"recipe = {recipe!r}: expected the name of a recipe, or the path of a TOML file")
    run, advice = run_of(checkpoint), ""
    keys = {setting.partition("=")[0].strip() for setting in settings}
    if recipe is not None:
        values, origin = recipe_values("vmae_train", str(recipe)), f"recipe {recipe}"
        if "mask" in values:
            raise MisuseError(f"--recipe {recipe}: is a pretraining recipe. Name a finetuning recipe")
    elif run is not None:
        values, origin = read_facts(run).recipe, "the run's recipe"
    else:
        # VideoMAE's own evaluation resizes with OpenCV, without antialias; transformers' processors with it.
        antialias = exists(storage_path(checkpoint) / _HF_CONFIG)
        values, origin = {"augment": {"antialias": antialias}}, "as published models of Kinetics"
        if not keys & {"clip.stride", "clip.rate"}:
            values["clip"] = msgspec.to_builtins(published)
        if any(key.startswith("clip.") for key in keys):
            origin = "those of --set"
        else:
            advice = f"; {checkpoint} does not state how its clips were sampled. Set --recipe or --set clip.…"
    if keys and origin != "those of --set":
        origin += " and settings"
    for key in keys:
        table, _, name = key.partition(".")
        if name and table in _KEYS and name.partition(".")[0] not in _KEYS[table]:
            raise RecipeError(f"{origin}: {key}: no such key; the keys there: {', '.join(_KEYS[table])}")
    tables: dict[str, Any] = {"clip": dict(values.get("clip", {}))}
    for table, names in _KEYS.items():
        tables[table] = {name: value for name, value in values.get(table, {}).items() if name in names}
    return EvaluationSettings(with_settings(tables, EvaluationSpec, settings, origin), origin + advice, not advice)
