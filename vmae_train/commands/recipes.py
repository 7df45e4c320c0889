"""`vmae-train recipes`: the training recipes, or one of them with every value."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Json, print_recipes, progress_style, recipe_argument
from vmae_train.console import Settings, need_torch, spec_of


def recipes(
    name: Annotated[str | None, recipe_argument("vmae_train")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the training recipes, or show one with every value.

    Examples:
        vmae-train recipes
        vmae-train recipes pretrain/k400 --set train.epochs=100
    """
    if name is not None:
        need_torch(progress_style(False, as_json))
    print_recipes("vmae_train", name, spec_of, settings, as_json)
