"""`vmae-train convert`: a model in one format → the same weights in another."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    StorageOptions,
    argument,
    local_argument,
    option,
    path_option,
    progress_style,
)
from vmae_train.console import need_torch, print_result

Layout = Enum("Layout", {"NATIVE": "native", "OFFICIAL": "official", "HF": "hf"})


def convert(
    source: Annotated[
        str, argument("SRC", "Read a run, a checkpoint folder, an official .pth file, or a Hugging Face folder.")
    ],
    dest: Annotated[
        Path, argument("DST", "Write this new local folder, or this new file for official.", parser=local_argument)
    ],
    to: Annotated[
        Layout, option("native|official|hf", "Write this project's format, VideoMAE's .pth, or Hugging Face's folder.")
    ],
    settings: Annotated[
        list[str] | None,
        option("KEY=VALUE", "Set one key of the model. Repeatable.", "from SRC, else from the weights", "--set"),
    ] = None,
    classes: Annotated[
        Path | None, path_option("FILE", "Name the classes if SRC does not: one name per line of FILE.", "from SRC")
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a model to another format without changing its weights.

    VideoMAE's code and transformers have no sinusoid-3d positions: models of the demo recipes convert to native only.
    vmae-train export writes every model, as ONNX and torch.export files.

    A published size is recognised from the weights. Describe any other size with --set, such as
    --set model.num_heads=4. To convert for other clips, set model.image_size or model.num_frames. Then
    model.position_resize (recompute or interpolate) chooses the new position embedding.

    Examples:
        vmae-train convert checkpoint.pth models/k400 --to native
        vmae-train convert runs/finetune models/hf --to hf
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.recipes import load_recipe
    from vmae_train.checkpoints.convert import ConvertSpec, read_class_names
    from vmae_train.checkpoints.convert import convert as run

    spec = load_recipe("vmae_train", None, ConvertSpec, settings or ())
    names = read_class_names(classes) if classes is not None else None
    for note in run(source, dest, to=to.value, spec=spec, classes=names):
        print(f"{source}: {note}", file=sys.stderr)
    print_result(quiet, as_json, {"out": str(dest)}, str(dest))
