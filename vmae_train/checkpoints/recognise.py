"""Weights by the names of any program → official names, and what kind of model they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vmae_data.errors import DataError
from vmae_train.checkpoints.infer import ForeignCheckpoint
from vmae_train.checkpoints.native import Kind
from vmae_train.checkpoints.weight_names import official_names

__all__ = ["recognise"]

_PARTS_OF_ENCODER = ("patch_embed.", "blocks.", "norm.")


def recognise(
    path: Path,
    stored: dict[str, Tensor],
    fields: dict[str, Any],
    *,
    kind: Kind = "classifier",
    classes: tuple[str, ...] | None = None,
    notes: Sequence[str] = (),
) -> ForeignCheckpoint:
    """A model or an encoder; `kind` is that of a model with a head. Half precision becomes float32, which is exact.

    Raises DataError for weights of another model, and for those that DeepSpeed's ZeRO-3 has elsewhere.
    """
    empty = next((name for name, value in stored.items() if not value.numel()), None)
    if empty:
        raise DataError(
            f"{path}: {empty} is empty: DeepSpeed's ZeRO-3 keeps the weights in one file per GPU. "
            "Join them first with the zero_to_fp32.py of that folder"
        )
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in official_names(path, stored).items()
    }
    if "encoder_to_decoder.weight" in state:
        return ForeignCheckpoint(path, "pretrain", state, fields, None, tuple(notes))
    if "head.weight" in state:
        if "fc_norm.weight" not in state and "norm.weight" in state:
            # Without mean pooling these programs norm all tokens and take the first.
            state = {f"fc_{name}" if name.startswith("norm.") else name: value for name, value in state.items()}
            fields = {**fields, "pooling": "first", "fc_eps": fields.get("encoder_eps", 1e-6)}
            notes = (*notes, "its head reads the first token, not the mean of the tokens")
        return ForeignCheckpoint(path, kind, state, fields, classes, tuple(notes))
    if "patch_embed.proj.weight" in state and "blocks.0.norm1.weight" in state:
        parts = {f"encoder.{name}": value for name, value in state.items() if name.startswith(_PARTS_OF_ENCODER)}
        return ForeignCheckpoint(path, "encoder", parts, fields, None, tuple(notes))
    raise DataError(
        f"{path}: has neither encoder_to_decoder.weight nor head.weight, and no encoder. Use the file of a VideoMAE model"
    )
