"""`vmae-shard recipes`: the build recipes, or one of them with every value."""

from __future__ import annotations

from typing import Annotated

from vmae_data.commands.options import Settings
from vmae_data.console import Debug, Json, print_recipes, recipe_argument


def recipes(
    name: Annotated[str | None, recipe_argument("vmae_data")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the build recipes, or show one with every value.

    Examples:
        vmae-shard recipes
        vmae-shard recipes k400 --set crf=20
    """
    from vmae_data.encode.build_spec import BuildSpec

    print_recipes("vmae_data", name, lambda _name: BuildSpec, settings, as_json)
