"""Checkpoints of VideoMAE and VideoMAEv2: a pickle that holds the weights under `model`, or under `module`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.storage import commit_file, temporary_beside
from vmae_train.checkpoints.description import ModelFile, decode_description, encode_description
from vmae_train.checkpoints.infer import Foreign
from vmae_train.checkpoints.layouts import plain_names
from vmae_train.checkpoints.unpickle import Inert, read_pickle

__all__ = ["DEEPSPEED_FILE", "foreign_of", "read_official", "write_official"]

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
_CONTAINERS = ("model", "module")
_DESCRIPTION = "vmae"  # ours; the original code takes no notice of it
_ARGUMENTS = {"input_size": "image_size", "num_frames": "num_frames"}


def read_official(path: Path) -> Foreign | tuple[ModelFile, dict[str, Tensor]]:
    """A published checkpoint; or, where we wrote it, its whole description and its weights.

    Raises DataError for a file that holds no such weights, or that wants to run something.
    """
    content = read_pickle(path)
    state = _float32(plain_names(path, _weights(path, content)))
    described = content.get(_DESCRIPTION)
    if isinstance(described, str):
        return decode_description(described, f"{path}, {_DESCRIPTION}"), state
    arguments = content.get("args")
    fields = arguments.fields if isinstance(arguments, Inert) else {}
    says = {ours: fields[name] for name, ours in _ARGUMENTS.items() if isinstance(fields.get(name), int)}
    return foreign_of(path, state, says)


def foreign_of(path: Path, state: dict[str, Tensor], says: dict[str, Any]) -> Foreign:
    """Which of the two published kinds of model it is. Raises DataError for neither."""
    if "encoder_to_decoder.weight" in state:
        return Foreign(path, "pretrain", state, says)
    if "head.weight" in state:
        return Foreign(path, "classifier", state, says)
    raise DataError(f"{path}: has neither encoder_to_decoder.weight nor head.weight; wanted a whole VideoMAE model")


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; wanted a dict of weights")
    for name in _CONTAINERS:
        if isinstance(content.get(name), Mapping):
            content = content[name]
            break
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        found = ", ".join(other[:5]) or "nothing"
        raise DataError(f"{path}: found {found}; wanted weights, alone or under {' or '.join(_CONTAINERS)}")
    return {str(name): value for name, value in content.items()}


def _float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights kept in half precision are widened, which is exact."""
    return {name: value.float() if value.is_floating_point() else value for name, value in state.items()}


def write_official(path: Path, description: ModelFile, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Write a file that VideoMAE's own code loads; returns what is worth knowing of it.

    Raises MisuseError for a model that the original code can't have, VmaeError when the disk says no.
    """
    geometry = description.geometry
    if geometry.position != "sinusoid-1d":
        raise MisuseError(f"{path}: VideoMAE's code knows no position code {geometry.position}; use --to native")
    if geometry.position_grid is not None:
        raise MisuseError(f"{path}: an interpolated position code is not kept in VideoMAE's layout; use --to native")
    if geometry.pooling != "mean":
        raise MisuseError(f"{path}: VideoMAE's code knows no {geometry.pooling} pooling; use --to native")
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as file:  # an open file: a path's name would get into the bytes
            torch.save({"model": state, _DESCRIPTION: encode_description(description).decode()}, file)
        commit_file(temporary, path)
    except (OSError, RuntimeError) as error:
        met = error.__context__ if isinstance(error.__context__, OSError) else error  # what PyTorch's writer met
        why = (met.strerror or met) if isinstance(met, OSError) else met
        raise VmaeError(f"{path}: can't be written ({why}); check the folder and its room") from error
    finally:
        temporary.unlink(missing_ok=True)
    eps = {geometry.encoder_eps, geometry.fc_eps} if description.kind != "pretrain" else {
        geometry.encoder_eps, geometry.decoder_eps, geometry.decoder_norm_eps
    }  # fmt: skip
    if eps != {1e-6}:
        return (f"VideoMAE's code has eps 1e-6 in every norm, this model {_listed(eps)}: outputs differ by a little",)
    return ()


def _listed(eps: set[float]) -> str:
    return " and ".join(f"{value:g}" for value in sorted(eps))
