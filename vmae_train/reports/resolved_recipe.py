"""A run's recipe → the values that the training used, as far as the run's files show them."""

from __future__ import annotations

from typing import Any

import msgspec

from vmae_data.errors import RecipeError
from vmae_data.recipes import build_spec, with_defaults
from vmae_train.models.geometry import ModelSpec
from vmae_train.reports.run_reader import StoredRun
from vmae_train.training.run_spec import RunSpec

__all__ = ["resolved_recipe"]


def resolved_recipe(run: StoredRun) -> dict[str, Any]:
    """The recipe with the shape of its model, the size of its clips and its precision.

    A value that is not known remains as the recipe has it. Keys that the program has gained since have their defaults.
    """
    recipe = dict(run.facts.recipe)
    for field in msgspec.structs.fields(RunSpec):
        table = recipe.get(field.name, {})
        if isinstance(table, dict):
            recipe[field.name] = with_defaults(table, field.type)
    train = recipe["train"]
    if train.get("precision") == "auto":
        recipe["train"] = {**train, "precision": _precision(run)}
    try:
        geometry = build_spec(recipe["model"], ModelSpec, "the run's recipe, model").geometry()
    except RecipeError:  # of another version
        return recipe
    known = msgspec.to_builtins(geometry)
    recipe["model"] = {k: known.get(k) if value is None else value for k, value in recipe["model"].items()}
    recipe["augment"] = {**recipe["augment"], "size": geometry.image_size}
    return recipe


def _precision(run: StoredRun) -> str:
    """The precision of each start. Logs of older versions don't have it: it was float32 on a CPU."""
    found = [start.precision or ("auto" if start.gpu else "float32") for start in run.starts]
    return ", then ".join(dict.fromkeys(found)) or "auto"
