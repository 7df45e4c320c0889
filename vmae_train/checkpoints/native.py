"""The native format: a model ↔ model.safetensors, exactly its state dict, and model.json, everything else.

model.json is written last: a folder without it is incomplete.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from stat import S_IMODE
from typing import Literal

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import DataError, VmaeError
from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes, commit_file, hash_file, read_bytes, temporary_path, write_error
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry
from vmae_train.models.heads import Classifier, MultiLabelClassifier, RegressedValue, Regressor
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.checksums import verify_files
from vmae_train.runs.layout import DESCRIPTION, WEIGHTS

__all__ = [
    "MODEL_FORMAT",
    "Kind",
    "ModelFile",
    "decode_description",
    "describe",
    "empty_model",
    "encode_description",
    "read_native",
    "read_weights",
    "save_model",
    "write_native",
    "write_weights",
]

MODEL_FORMAT = 2
Kind = Literal["pretrain", "classifier", "multilabel", "regressor"]
_KINDS: dict[type[VideoModel], Kind] = {
    PretrainModel: "pretrain",
    MultiLabelClassifier: "multilabel",
    Regressor: "regressor",
    Classifier: "classifier",
}


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """model.json. `classes`: for classifiers, with one or several classes per clip. `values`: for regressors.

    `weights_sha256` is in converted folders only: the checksums of a checkpoint are in its marker.
    """

    format: int
    kind: Kind
    geometry: Geometry
    classes: tuple[str, ...] = ()
    values: tuple[RegressedValue, ...] = ()
    weights_sha256: str | msgspec.UnsetType = msgspec.UNSET

    def __post_init__(self) -> None:
        if self.kind in ("classifier", "multilabel") and not self.classes:
            raise ValueError("a classifier without classes")
        if self.kind == "regressor" and not self.values:
            raise ValueError("a regressor without values")


class _FormatVersion(msgspec.Struct):
    """The only field that every version of model.json has."""

    format: int


def describe(model: VideoModel) -> ModelFile:
    """What model.json says of a model. `empty_model` is the reverse."""
    return ModelFile(
        format=MODEL_FORMAT,
        kind=next(kind for model_class, kind in _KINDS.items() if isinstance(model, model_class)),
        geometry=model.geometry,
        classes=model.classes,
        values=model.values if isinstance(model, Regressor) else (),
    )


def save_model(folder: Path, model: VideoModel, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model into an existing folder. `weights`: its state dict, if processes share the model.

    Raises VmaeError if a file can't be written.
    """
    state = model.state_dict() if weights is None else weights
    write_weights(folder / WEIGHTS, {name: value.detach().cpu().contiguous() for name, value in state.items()})
    commit_bytes(folder / DESCRIPTION, encode_description(describe(model)))


def write_native(folder: Path, description: ModelFile, state: dict[str, Tensor]) -> None:
    """Write a model with the checksum of its weights into an existing folder. Raises VmaeError."""
    write_weights(folder / WEIGHTS, state)
    description = msgspec.structs.replace(description, weights_sha256=hash_file(folder / WEIGHTS))
    commit_bytes(folder / DESCRIPTION, encode_description(description))


def read_native(folder: Path) -> tuple[ModelFile, dict[str, Tensor]]:
    """The description and the weights, if their checksums are right. Raises DataError."""
    verify_files(folder, (DESCRIPTION, WEIGHTS))
    description = decode_description(read_bytes(folder / DESCRIPTION), str(folder / DESCRIPTION))
    stored = description.weights_sha256
    if stored is not msgspec.UNSET and stored != hash_file(folder / WEIGHTS):
        raise DataError(
            f"{folder / WEIGHTS}: its checksum is not the one in {DESCRIPTION}. The file is damaged. Use another copy"
        )
    return msgspec.structs.replace(description, weights_sha256=msgspec.UNSET), read_weights(folder / WEIGHTS)


def write_weights(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file atomically, without a second copy of the weights in memory.

    The umask sets its permissions. Raises VmaeError if it can't be written.
    """
    temporary = temporary_path(path)
    try:
        temporary.write_bytes(b"")
        mode = temporary.stat().st_mode  # os.umask() would change the umask of every thread
        safetensors.torch.save_file(state, temporary, metadata=metadata)
        if temporary.stat().st_mode != mode:  # since 0.8 safetensors replaces the file by one of mode 0600
            temporary.chmod(S_IMODE(mode))
        commit_file(temporary, path)
    except SafetensorError as error:
        raise VmaeError(f"{path}: can't be written ({error}). Check the folder and the free disk space") from error
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises DataError if it can't be read."""
    try:
        return safetensors.torch.load(read_bytes(path))
    except SafetensorError as error:
        raise DataError(
            f"{path}: weights can't be read ({error}). Use another checkpoint, or remove this one to resume from the one before"
        ) from error


def encode_description(description: ModelFile) -> bytes:
    fields = {**msgspec.to_builtins(description), "geometry": description.geometry.stored()}
    return msgspec.json.format(msgspec.json.encode(fields), indent=2) + b"\n"


def decode_description(data: bytes | str, where: str) -> ModelFile:
    """The reverse of `encode_description`. Raises DataError naming `where`."""
    try:
        version = msgspec.json.decode(data, type=_FormatVersion).format
        if version > MODEL_FORMAT:
            raise DataError(f"{where}: format {version}, but this version reads up to {MODEL_FORMAT}. Update vmae")
        return msgspec.json.decode(data, type=ModelFile)
    except NOT_JSON as error:
        raise DataError(f"{where}: is not a model description ({error}). Use another checkpoint") from error


def empty_model(description: ModelFile) -> VideoModel:
    """A model whose weights are not yet set."""
    geometry = description.geometry
    match description.kind:
        case "pretrain":
            return PretrainModel(geometry, seed=None)
        case "multilabel":
            return MultiLabelClassifier(geometry, description.classes, seed=None)
        case "regressor":
            return Regressor(geometry, description.values, seed=None)
        case "classifier":
            return Classifier(geometry, description.classes, seed=None)
