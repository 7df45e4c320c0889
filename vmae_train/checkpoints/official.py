"""The official format, and other single files: checkpoints of VideoMAE, DeepSpeed, Lightning and mmaction2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.storage import commit_file, temporary_path
from vmae_train.checkpoints.infer import ForeignCheckpoint
from vmae_train.checkpoints.native import ModelFile, decode_description, encode_description, read_weights
from vmae_train.checkpoints.recognise import recognise
from vmae_train.checkpoints.unpickle import InertObject, read_pickle
from vmae_train.checkpoints.weight_names import has_hf_names

__all__ = ["DEEPSPEED_FILE", "read_official", "write_official"]

DEEPSPEED_FILE = "mp_rank_00_model_states.pt"
# Where training programs keep the weights, the likelier ones first: VideoMAE, DeepSpeed, Lightning and mmaction2.
_CONTAINERS = ("model", "module", "state_dict")
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict")
_DESCRIPTION = "vmae"  # our own key; VideoMAE's code ignores it
_ARGUMENTS = {"input_size": "image_size", "num_frames": "num_frames"}
_EPS = 1e-6
# transformers stores its eps in config.json, which a lone file lacks; these are its defaults.
_HF_EPS = {"encoder_eps": 1e-12, "decoder_eps": 1e-12, "decoder_norm_eps": 1e-5, "fc_eps": 1e-5}


def read_official(path: Path) -> ForeignCheckpoint | tuple[ModelFile, dict[str, Tensor]]:
    """A checkpoint file: a pickle or safetensors; or the description and the weights, if this program wrote the file.

    Raises DataError for a file without such weights, or with code to run.
    """
    if path.suffix == ".safetensors":
        return _foreign(path, read_weights(path), {}, ())
    content = read_pickle(path)
    weights, notes = _find_weights(path, content)
    description = content.get(_DESCRIPTION)
    if isinstance(description, str):
        return decode_description(description, f"{path}, {_DESCRIPTION}"), weights
    arguments = content.get("args")
    stored = arguments.fields if isinstance(arguments, InertObject) else {}
    fields = {ours: stored[name] for name, ours in _ARGUMENTS.items() if isinstance(stored.get(name), int)}
    return _foreign(path, weights, fields, notes)


def _foreign(
    path: Path, weights: dict[str, Tensor], fields: dict[str, Any], notes: tuple[str, ...]
) -> ForeignCheckpoint:
    if has_hf_names(weights):
        fields = {**fields, **_HF_EPS}
        notes += (
            "has transformers' names without its config.json, so transformers' default eps and ImageNet's mean and std "
            "are assumed",
        )
    return recognise(path, weights, fields, notes=notes)


def _find_weights(path: Path, content: Any) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights, and a note if the file has others too, or only a moving average of them."""
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__}; expected a dict of weights")
    present = [name for name in (*_CONTAINERS, *_AVERAGES) if isinstance(content.get(name), Mapping)]
    notes: tuple[str, ...] = ()
    if present:
        content = content[present[0]]
        if present[1:] or present[0] in _AVERAGES:
            others = f"; {', '.join(present[1:])} left out" if present[1:] else ", a moving average of the weights"
            notes = (f"took the weights under {present[0]}{others}",)
    other = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if other or not content:
        found = ", ".join(other[:5]) or "nothing"
        expected = " or ".join(_CONTAINERS)
        raise DataError(f"{path}: found {found}; expected weights, at the top or under {expected}")
    return {str(name): value for name, value in content.items()}, notes


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
    elif description.kind == "pretrain" and geometry.decoder_attention == "cross":
        unsupported = "decoder with cross-attention"
    if unsupported:
        raise MisuseError(f"{path}: VideoMAE's code has no {unsupported}. Use --to native, or vmae-train export")
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
