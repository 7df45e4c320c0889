"""What stands beside the weights: which model they are of. Native checkpoints hold it as model.json."""

from __future__ import annotations

from typing import Literal

import msgspec

from vmae_data.errors import DataError
from vmae_data.format import NOT_JSON
from vmae_train.models.geometry import Geometry
from vmae_train.models.videomae import (
    Classifier,
    MultiLabelClassifier,
    PretrainModel,
    RegressedValue,
    Regressor,
    VideoModel,
)

__all__ = ["MODEL_FORMAT", "Kind", "ModelFile", "decode_description", "describe", "empty_model", "encode_description"]

MODEL_FORMAT = 2
Kind = Literal["pretrain", "classifier", "multilabel", "regressor"]


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What model.json says. `classes` of classifiers (one class a clip, or several), `values` of regressors."""

    format: int
    kind: Kind
    geometry: Geometry
    classes: tuple[str, ...] = ()
    values: tuple[RegressedValue, ...] = ()

    def __post_init__(self) -> None:
        if self.kind in ("classifier", "multilabel") and not self.classes:
            raise ValueError("a classifier without classes")
        if self.kind == "regressor" and not self.values:
            raise ValueError("a regressor without values")


class _Version(msgspec.Struct):
    """The one field that every version of model.json has."""

    format: int


def describe(model: VideoModel) -> ModelFile:
    """What a model is, without its weights."""
    kind: Kind = "classifier"
    if isinstance(model, PretrainModel):
        kind = "pretrain"
    elif isinstance(model, MultiLabelClassifier):
        kind = "multilabel"
    elif isinstance(model, Regressor):
        kind = "regressor"
    return ModelFile(
        format=MODEL_FORMAT,
        kind=kind,
        geometry=model.geometry,
        classes=model.classes,
        values=model.values if isinstance(model, Regressor) else (),
    )


def empty_model(description: ModelFile) -> VideoModel:
    """A model whose weights a loader has to fill."""
    geometry = description.geometry
    if description.kind == "pretrain":
        return PretrainModel(geometry, seed=None)
    if description.kind == "multilabel":
        return MultiLabelClassifier(geometry, description.classes, seed=None)
    if description.kind == "regressor":
        return Regressor(geometry, description.values, seed=None)
    return Classifier(geometry, description.classes, seed=None)


def encode_description(description: ModelFile) -> bytes:
    return msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n"


def decode_description(data: bytes | str, where: str) -> ModelFile:
    """Read what `encode_description` wrote. Raises DataError naming `where`."""
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > MODEL_FORMAT:
            raise DataError(f"{where}: format {version}, this version reads up to {MODEL_FORMAT}; update vmae")
        return msgspec.json.decode(data, type=ModelFile)
    except NOT_JSON as error:
        raise DataError(f"{where}: not a model's description ({error}); take another checkpoint") from error
