"""Models on disk: `model.safetensors`, exactly the state dict, and `model.json`, everything else.

A folder is whole when model.json is there: it is written last.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, NotThereError, VmaeError
from vmae_data.store import commit_bytes, commit_file, read_bytes, temporary_beside
from vmae_train.model.fetched import CHECKPOINTS, DESCRIPTION, MARKER, WEIGHTS, fetched
from vmae_train.model.videomae import Classifier, PretrainModel, VideoModel
from vmae_train.model.vit import Geometry

__all__ = ["MODEL_FORMAT", "ModelFile", "load_model", "load_weights", "newest_checkpoint", "save_model"]

MODEL_FORMAT = 1


class ModelFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What model.json says."""

    format: int
    kind: Literal["pretrain", "classifier"]
    geometry: Geometry
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind == "classifier" and not self.classes:
            raise ValueError("a classifier without classes")


class _Version(msgspec.Struct):
    """The one field that every version of model.json has."""

    format: int


def save_model(folder: Path, model: VideoModel) -> None:
    """Write a model into an existing folder. Raises VmaeError when the disk says no."""
    description = ModelFile(
        format=MODEL_FORMAT,
        kind="pretrain" if isinstance(model, PretrainModel) else "classifier",
        geometry=model.geometry,
        classes=model.classes,
    )
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    weights = folder / WEIGHTS
    try:
        safetensors.torch.save_file(state, temporary_beside(weights))
    except SafetensorError as error:
        raise VmaeError(f"{weights}: can't be written ({error}); check the folder and its room") from error
    commit_file(temporary_beside(weights), weights)
    text = msgspec.json.format(msgspec.json.encode(description), indent=2)
    commit_bytes(folder / DESCRIPTION, text + b"\n")


def load_model(path: str | Path, *, device: torch.device | str = "cpu", **model: Any) -> VideoModel:
    """A model in eval mode, from a folder holding model.json or from a run (its newest whole checkpoint).

    `path` may be a URL; what it names is copied to this machine first.

    `model`: fields of Geometry that the caller counts on.
    Raises DataError for what can't be read, MisuseError for a `model` that differs from the file.
    """
    folder = _model_folder(fetched(path))
    description = _read_description(folder / DESCRIPTION)
    _check_expected(folder / DESCRIPTION, description.geometry, model)
    state = _read_weights(folder / WEIGHTS)
    _check_room(folder / DESCRIPTION, description, state)
    if description.kind == "pretrain":
        loaded: VideoModel = PretrainModel(description.geometry, seed=None)
    else:
        loaded = Classifier(description.geometry, description.classes, seed=None)
    _check_state(folder / WEIGHTS, loaded, state)
    loaded.load_state_dict(state)
    return loaded.to(device).eval()


def load_weights(folder: Path, model: VideoModel) -> None:
    """Fill a model with a checkpoint's weights, bit for bit. Raises DataError when they are another model's."""
    state = _read_weights(folder / WEIGHTS)
    _check_state(folder / WEIGHTS, model, state)
    model.load_state_dict(state)


def newest_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest checkpoint that was written to its end, or None."""
    whole = [folder for folder in (run / CHECKPOINTS).glob("step-*") if (folder / MARKER).is_file()]
    return max(whole, key=lambda folder: folder.name, default=None)


def _model_folder(path: Path) -> Path:
    if (path / DESCRIPTION).is_file():
        return path
    checkpoint = newest_checkpoint(path)
    if checkpoint is not None:
        return checkpoint
    if not path.exists():
        found = "nothing there"
    elif path.is_file():
        found = "a file"
    elif (path / CHECKPOINTS).is_dir():
        found = "a run without a finished checkpoint"
    else:
        found = f"a folder without {DESCRIPTION}"
    kind = DataError if path.exists() else NotThereError
    raise kind(
        f"{path}: found {found}, wanted a folder with {DESCRIPTION} or a run with "
        f"checkpoints/step-*/{MARKER}; check the path"
    )


def _read_description(path: Path) -> ModelFile:
    data = read_bytes(path)
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version > MODEL_FORMAT:
            raise DataError(f"{path}: format {version}, this version reads up to {MODEL_FORMAT}; update vmae")
        return msgspec.json.decode(data, type=ModelFile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{path}: not a model's description ({error}); take another checkpoint") from error


def _check_expected(path: Path, geometry: Geometry, expected: dict[str, Any]) -> None:
    known = msgspec.structs.asdict(geometry)
    for name, wanted in expected.items():
        if name not in known:
            raise MisuseError(f"model.{name} is no field of a model; there are {', '.join(known)}")
        if known[name] != (tuple(wanted) if isinstance(wanted, list) else wanted):
            raise MisuseError(
                f"{path}: model.{name} is {known[name]!r}, {wanted!r} was asked for; "
                "leave it out, or take another model"
            )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(read_bytes(path))
    except SafetensorError as error:
        raise DataError(f"{path}: not readable weights ({error}); take another checkpoint") from error


def _check_room(path: Path, description: ModelFile, state: dict[str, Tensor]) -> None:
    """Raises DataError where the model would be larger than the weights that are there, before memory is taken for it."""
    geometry = description.geometry

    def of_blocks(depth: int, dim: int) -> int:
        return depth * (4 * dim**2 + 2 * dim * int(dim * geometry.mlp_ratio))

    claimed = of_blocks(geometry.depth, geometry.embed_dim) + geometry.embed_dim * geometry.cube_dim
    if description.kind == "pretrain":
        claimed += of_blocks(geometry.decoder_depth, geometry.decoder_embed_dim)
    held = sum(value.numel() for value in state.values())
    if claimed > held:
        raise DataError(
            f"{path}: is of a model of at least {claimed} parameters, {WEIGHTS} holds {held}; they are of different models"
        )


def _check_state(path: Path, model: VideoModel, state: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    for what, names in (
        ("lacks", wanted.keys() - state.keys()),
        ("has unknown", state.keys() - wanted.keys()),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise DataError(f"{path}: {what} {len(names)} weights ({listed}); {DESCRIPTION} is of another model")
    for name, value in wanted.items():
        found = state[name]
        if found.shape != value.shape or found.dtype != value.dtype:
            raise DataError(
                f"{path}: {name} is {_describe(found)}, {DESCRIPTION} wants {_describe(value)}; "
                "they are of different models"
            )


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"
