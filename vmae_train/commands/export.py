"""`vmae-train export`: a checkpoint → ONNX and torch.export files, checked against the checkpoint."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from vmae_data.console import Debug, Json, Quiet, StorageOptions, flag, local_argument, option, progress_style
from vmae_train.console import Best, Checkpoint, ClassNames, Ema, need_torch

Format = Enum("Format", {"ONNX": "onnx", "TORCH_EXPORT": "torch-export"})


def export(
    checkpoint: Checkpoint,
    out: Annotated[Path, option("DIR", "Write this new local folder.", parser=local_argument)],
    to: Annotated[
        list[Format] | None, option("onnx|torch-export", "Write model.onnx, or model.pt2. Repeatable.", "both")
    ] = None,
    no_resize: Annotated[
        bool,
        flag("--no-resize", "Take frames of the model's size only.", "frames of any size, resized inside the model"),
    ] = False,
    best: Best = False,
    ema: Ema = False,
    class_names: ClassNames = None,
    data: Annotated[
        str | None,
        option("URL|VIDEO", "Check the files on frames of these shards or this video.", "the run's shards, else drawn"),
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write a model for other runtimes: uint8 frames in, probabilities out, any number of clips.

    A model of values gives values; a pretrained model without a head gives features. Each written file is run and
    compared with the checkpoint. The folder's README.md says how to use it.

    Examples:
        vmae-train export runs/finetune --out models/exported
        vmae-train export k400.pth --out models/k400 --to onnx --no-resize
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.console import print_json
    from vmae_train.checkpoints.convert import read_class_names
    from vmae_train.export.export_model import export_model, facts_of

    names = read_class_names(class_names) if class_names is not None else None
    options: dict[str, Any] = {"to": [one.value for one in to]} if to else {}
    if not (quiet or as_json):
        print(f"exporting {checkpoint}. A large model takes minutes", file=sys.stderr)
    exported = export_model(
        checkpoint, out, resize=not no_resize, best=best, ema=ema, class_names=names, data=data, **options
    )
    if as_json:
        print_json(facts_of(exported, out))
    elif not quiet:
        print(out)
        for check in exported.checks:
            print(f"  {check}" + (f", on {exported.frames}" if check.difference is not None else ""))
    if exported.output == "features":
        print(f"{checkpoint}: has no head, so the output is features", file=sys.stderr)
