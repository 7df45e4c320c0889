"""The official format: checkpoints of VideoMAE and VideoMAEv2, pickles with the weights under `model` or `module`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.storage import commit_file, temporary_path
from vmae_train.checkpoints.infer import ForeignCheckpoint
from vmae_train.checkpoints.native import ModelFile, decode_description, encode_description
from vmae_train.checkpoints.unpickle import InertObject, read_pickle
from vmae_train.checkpoints.weight_names import strip_wrappers

__all__ = ["DEEPSPEED_FILE", "read_official", "write_official"]

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_CONTAINERS = ("model", "module")
_DESCRIPTION = "vmae"  # our own key; VideoMAE's code ignores it
_ARGUMENTS = {"input_size": "image_size", "num_frames": "num_frames"}
_EPS = 1e-6


def read_official(path: Path) -> ForeignCheckpoint | tuple[ModelFile, dict[str, Tensor]]:
    """A published checkpoint; or the description and the weights, if this program wrote the file.

    Half-precision weights become float32, which is exact. Raises DataError for a file without such weights, or with
    code to run.
    """
    content = read_pickle(path)
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in strip_wrappers(path, _find_weights(path, content)).items()
    }
    description = content.get(_DESCRIPTION)
    if isinstance(description, str):
        return decode_description(description, f"{path}, {_DESCRIPTION}"), state
    arguments = content.get("args")
    stored = arguments.fields if isinstance(arguments, InertObject) else {}
    fields = {ours: stored[name] for name, ours in _ARGUMENTS.items() if isinstance(stored.get(name), int)}
    if "encoder_to_decoder.weight" in state:
        return ForeignCheckpoint(path, "pretrain", state, fields)
    if "head.weight" in state:
        return ForeignCheckpoint(path, "classifier", state, fields)
    raise DataError(
        f"{path}: has neither encoder_to_decoder.weight nor head.weight. Use the file of a complete VideoMAE model"
    )


def _find_weights(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict of weights")
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        found = ", ".join(other[:5]) or "nothing"
        raise DataError(f"{path}: found {found}; expected weights, at the top or under {' or '.join(_CONTAINERS)}")
    return {str(name): value for name, value in content.items()}


def write_official(path: Path, description: ModelFile, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Write a file that VideoMAE's own code loads; returns notes for the user.

    Raises MisuseError for a model that VideoMAE's code does not have, VmaeError if the file can't be written.
    """
    geometry = description.geometry
    unsupported = None
    if geometry.position != "sinusoid-1d":
        unsupported = f"position embedding {geometry.position}"
    elif geometry.position_grid is not None:
        unsupported = "interpolated position embedding"
    elif geometry.pooling != "mean":
        unsupported = f"{geometry.pooling} pooling"
    if unsupported:
        raise MisuseError(f"{path}: VideoMAE's code has no {unsupported}. Use --to native")
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:  # given a path, torch.save writes its name into the file
            torch.save({"model": state, _DESCRIPTION: encode_description(description).decode()}, file)
        commit_file(temporary, path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # of PyTorch's writer
        reason = (cause.strerror or cause) if isinstance(cause, OSError) else cause
        raise VmaeError(f"{path}: can't be written ({reason}). Check the folder and the free disk space") from error
    finally:
        temporary.unlink(missing_ok=True)
    eps = {geometry.encoder_eps, geometry.fc_eps}
    if description.kind == "pretrain":
        eps = {geometry.encoder_eps, geometry.decoder_eps, geometry.decoder_norm_eps}
    if eps == {_EPS}:
        return ()
    listed = " and ".join(f"{value:g}" for value in sorted(eps))
    return (f"VideoMAE's code uses eps {_EPS:g} in every norm, this model {listed}. Outputs differ slightly",)
