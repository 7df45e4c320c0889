"""What several commands of vmae-train take, and what all of them need."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vmae_data.errors import RecipeError, VmaeError

__all__ = [
    "Checkpoint",
    "Data",
    "Device",
    "DryRun",
    "Recipe",
    "RunOut",
    "Scratch",
    "check_recipe",
    "need_torch",
    "spec_of",
]

Recipe = Annotated[str, typer.Option(help="A recipe's name (`vmae-train recipes`), or a TOML file.")]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="URL[:WEIGHT]",
        help="A folder of shards or its index.json; repeated, the sets are mixed, in the shares that the weights say.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; left out: the GPU where there is one.")]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="A run (its last checkpoint) or a checkpoint's folder, a path or a URL; an official .pth; "
        "a Hugging Face folder.",
    ),
]
RunOut = Annotated[
    str,
    typer.Option(
        metavar="DIR|URL", help="The run's folder, or a folder in a bucket; the same command goes on from it."
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where a run in a bucket works; left out: a folder of this machine's cache."),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Take two steps on the data, write nothing, and say what the whole takes: time, memory, disk."
    ),
]


def need_torch() -> None:
    """One line instead of a traceback where only the data side is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "kornia", "einops", "safetensors", "jaxtyping") if find_spec(name) is None]
    if missing:
        raise VmaeError(f"{', '.join(missing)} not installed; pip install 'vmae[train]'")


def spec_of(name: str) -> Any:
    """Which command a recipe is for: a table that only one of them has says so, else its name or first line."""
    from vmae_data.recipes import read_recipe, recipe_values
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    tables, text = recipe_values("vmae_train", name).keys(), read_recipe("vmae_train", name)
    if "mask" in tables:
        return PretrainSpec
    first = text.splitlines()[0] if text else ""
    return FinetuneSpec if "evaluate" in tables or "finetune" in f"{name} {first}" else PretrainSpec


def check_recipe(name: str, spec: Any) -> None:
    """Raises RecipeError for a recipe with tables that only the other command's recipes have."""
    from vmae_data.recipes import recipe_values
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    own = set(spec.__struct_fields__)
    for command, other in (("pretrain", PretrainSpec), ("finetune", FinetuneSpec)):
        tables = sorted(recipe_values("vmae_train", name).keys() & (set(other.__struct_fields__) - own))
        if tables:
            raise RecipeError(
                f"recipe {name}: is for vmae-train {command} ({', '.join(tables)}); "
                "give it to that command, or take another recipe"
            )
