"""Options of several vmae-train commands, the checks that come before all work, and results as text or JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vmae_data.console import (
    argument,
    flag,
    is_first_process,
    option,
    path_option,
    print_json,
    recipe_option,
    settings_option,
)
from vmae_data.errors import RecipeError, VmaeError

if TYPE_CHECKING:
    from vmae_data.progress import ProgressStyle

__all__ = [
    "AcceptAppended",
    "Best",
    "Checkpoint",
    "ClassNames",
    "ClipRecipe",
    "Data",
    "Device",
    "DryRun",
    "Ema",
    "EvaluationData",
    "FinetuneRecipe",
    "Init",
    "PretrainRecipe",
    "Recipe",
    "RunOut",
    "Scratch",
    "Settings",
    "VideoBatch",
    "VideoWorkers",
    "Videos",
    "check_recipe",
    "need_torch",
    "print_result",
    "print_scores",
    "print_unreadable",
    "spec_of",
    "with_views",
]

_RECIPE = "Use a recipe: a name from `vmae-train recipes`, or a TOML file."
Recipe = Annotated[str, recipe_option("vmae_train", _RECIPE)]
PretrainRecipe = Annotated[str, recipe_option("vmae_train", _RECIPE, folder="pretrain")]
FinetuneRecipe = Annotated[str, recipe_option("vmae_train", _RECIPE, folder="finetune")]
Settings = Annotated[list[str] | None, settings_option(lambda command, recipe: _completed_spec(command, recipe))]
Data = Annotated[
    list[str],
    option("URL[:WEIGHT]", "Read a folder of shards. Repeat to mix data sets in the ratio of their weights."),
]
EvaluationData = Annotated[str, option("URL", "Evaluate on these labelled shards.")]
Device = Annotated[str | None, option("DEVICE", "Compute on cpu or cuda.", "cuda if there is a GPU, else cpu")]
Checkpoint = Annotated[
    str, argument("CKPT", "Load a run, a checkpoint folder, an official .pth or a Hugging Face folder. Path or URL.")
]
ClipRecipe = Annotated[
    str | None,
    recipe_option(
        "vmae_train",
        "Sample and resize clips as this finetuning recipe does.",
        "the run's recipe, else as published",
        folder="finetune",
    ),
]
Best = Annotated[bool, flag("--best", "Use the run's best checkpoint.", "the last one")]
Ema = Annotated[bool, flag("--ema", "Use the moving average of the weights (ema.decay).", "the weights themselves")]
Videos = Annotated[list[str], argument("VIDEO…", "Read these videos: files, folders, listings, shards. Paths or URLs.")]
VideoBatch = Annotated[int, option("N", "Give the model N windows at a time.", min=1, max=1 << 16)]
VideoWorkers = Annotated[int, option("N", "Decode several videos in N processes.", min=0, max=1024)]
ClassNames = Annotated[
    Path | None,
    path_option("FILE", "Name the classes of a model that has numbers only: one name per line.", "the model's"),
]
RunOut = Annotated[
    str, option("DIR|URL", "Write the run to this folder, local or in a bucket. Resume the run that it holds.")
]
Scratch = Annotated[
    Path | None, path_option("DIR", "Keep local files in DIR while --out is in a bucket.", "the local cache")
]
Init = Annotated[str | None, option("CKPT", "Start from the weights of this run or checkpoint.", "random weights")]
AcceptAppended = Annotated[
    bool,
    flag("--accept-appended", "Continue a run on data sets that were appended to, from its next epoch.", "refuse them"),
]
DryRun = Annotated[
    bool, flag("--dry-run", "Train two steps, estimate time, memory and disk, and write nothing.", "train the run")
]


def need_torch(style: ProgressStyle) -> None:
    """One line instead of a traceback if only the data side is installed. Says why nothing happens yet."""
    from importlib.util import find_spec

    from vmae_data.progress import announce

    missing = [name for name in ("torch", "kornia", "einops", "safetensors", "jaxtyping") if find_spec(name) is None]
    if missing:
        raise VmaeError(f"{', '.join(missing)} not installed. Run `python -m pip install 'vmae[train]'`")
    if is_first_process():
        announce("loading torch", style)


def with_views(settings: list[str] | None, views: str | None, default: str | None = None) -> list[str]:
    """The settings of --set, and that of --views. Raises MisuseError for other views.

    `default`: the views if neither sets them [default: those of the protocol].
    """
    from vmae_train.evaluation.protocol import parse_views

    keys = {setting.partition("=")[0].strip() for setting in settings or ()}
    views = views or (None if "evaluate.views" in keys else default)
    return [*(settings or ()), *([f"evaluate.views='{parse_views(views)}'"] if views else [])]


def _completed_spec(command: str, recipe: str | None) -> Any:
    """Whose keys the shell completes after `--set`."""
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    if recipe and command not in ("pretrain", "finetune"):
        return spec_of(recipe)
    return PretrainSpec if command == "pretrain" else FinetuneSpec


def spec_of(name: str) -> Any:
    """The spec of a recipe: from a table that only one command has, else from the recipe's name or first line."""
    from vmae_data.recipes import read_recipe, recipe_values
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    tables, text = recipe_values("vmae_train", name).keys(), read_recipe("vmae_train", name)
    if "mask" in tables:
        return PretrainSpec
    first = text.splitlines()[0] if text else ""
    return FinetuneSpec if "evaluate" in tables or "finetune" in f"{name} {first}" else PretrainSpec


def check_recipe(name: str, spec: Any) -> None:
    """Raises RecipeError if a recipe has tables that only the other command knows."""
    from vmae_data.recipes import recipe_values
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    own = set(spec.__struct_fields__)
    for command, other in (("pretrain", PretrainSpec), ("finetune", FinetuneSpec)):
        tables = sorted(recipe_values("vmae_train", name).keys() & (set(other.__struct_fields__) - own))
        if tables:
            raise RecipeError(
                f"recipe {name}: is for vmae-train {command} ({', '.join(tables)}). Use that command, or another recipe"
            )


def print_result(quiet: bool, as_json: bool, values: dict[str, Any], text: str) -> None:
    """Print one result: `values` as JSON, or `text`."""
    from vmae_data.pages.html import printable

    if as_json:
        print_json(values)
    elif not quiet:
        print(printable(text))


def print_scores(scores: Any, quiet: bool, as_json: bool) -> None:
    import msgspec

    texts = [str(scores.headline)]
    if scores.headline.key == "top1":
        texts += [f"top-5 {scores.top5:.2f} %"] if scores.top5 is not None else []
        texts.append(f"mean of classes {scores.mean_class:.2f} %")
    elif scores.headline.key == "mae":
        texts.append(f"RMSE {scores.rmse:.4g}")
    texts += [f"{scores.videos} videos", f"{scores.views} views" + (f" ({scores.control})" if scores.control else "")]
    print_result(quiet, as_json, msgspec.to_builtins(scores), ", ".join(texts))


def print_unreadable(unreadable: dict[str, str]) -> None:
    """One warning for each video that was skipped."""
    from vmae_data.pages.html import printable

    for key, why in unreadable.items():
        print(f"skipped, unreadable: {printable(key)}: {printable(why.removeprefix(f'{key}: '))}", file=sys.stderr)
