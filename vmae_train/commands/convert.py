"""`vmae-train convert`: a model from one layout to another."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from vmae_data.console import Debug, Quiet, Settings, StorageOptions, local_argument
from vmae_train.commands.options import need_torch

__all__ = ["convert"]


class Layout(Enum):
    """How a model lies on disk."""

    NATIVE = "native"
    OFFICIAL = "official"
    HF = "hf"


def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A run, a checkpoint, an official .pth, or a Hugging Face folder."),
    ],
    dest: Annotated[
        Path, typer.Argument(parser=local_argument, metavar="DST", help="A new folder; for official, a new file.")
    ],
    to: Annotated[Layout, typer.Option(help="Ours; VideoMAE's own .pth; a folder for transformers.")],
    settings: Settings = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            parser=local_argument, metavar="FILE", help="Names for the head's outputs, one a line, where SRC has none."
        ),
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a model between layouts; its weights stay the same to the bit.

    What SRC does not say is inferred for published sizes, else given: --set model.num_heads=4. With --set
    model.image_size=… or model.num_frames=… the model becomes one for other clips
    (--set model.position_resize=recompute or interpolate).
    """
    need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.checkpoints.convert import ConvertSpec, read_class_names
    from vmae_train.checkpoints.convert import convert as run

    spec = load_recipe("vmae_train", None, ConvertSpec, settings or ())
    names = read_class_names(classes) if classes is not None else None
    for remark in run(source, dest, to=to.value, spec=spec, classes=names):
        print(f"{source}: {remark}", file=sys.stderr)
    if not quiet:
        print(dest)
