"""A run, a checkpoint or a file of any format → a model.

The formats: native (model.json and model.safetensors), Hugging Face, and single files of other training programs.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import torch
from torch import Tensor

from vmae_data.arguments import check_flag
from vmae_data.errors import DataError, MisuseError, NotFoundError, UnusablePathError
from vmae_data.names import first_names
from vmae_train.checkpoints.huggingface import CONFIG, read_hf
from vmae_train.checkpoints.infer import (
    CLIP_FIELDS,
    ForeignCheckpoint,
    infer_description,
    same_value,
    without_position_code,
)
from vmae_train.checkpoints.native import ModelFile, empty_model, read_native, read_weights
from vmae_train.checkpoints.official import DEEPSPEED_FILE, read_official
from vmae_train.distributed import check_device, shard_like
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, PositionResize, hidden_dim
from vmae_train.models.heads import is_numbered
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.best import best_checkpoint
from vmae_train.runs.checksums import verify_files
from vmae_train.runs.layout import CHECKPOINTS, DESCRIPTION, EMA_FILE, MARKER, WEIGHTS, newest_checkpoint
from vmae_train.runs.run_files import local_copy

__all__ = ["ReadModel", "load_init", "load_model", "load_weights", "read_model"]

# A training sets these itself; a checkpoint for --init may have other values.
_FREE_FIELDS = (
    *("init", "init_scale", "pooling", "standardize", "position_grid"),
    *("encoder_eps", "decoder_eps", "decoder_norm_eps", "fc_eps"),
)
# Fields of Geometry that a recipe keeps outside its [model].
_RECIPE_KEYS = {"mean": "augment.mean", "std": "augment.std"}


class ReadModel(NamedTuple):
    """A model as read: complete description, weights by official names, notes for the user."""

    path: Path
    description: ModelFile
    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()
    is_encoder: bool = False  # of a pretraining model: the decoder is missing

    def with_new_decoder(self, seed: int) -> ReadModel:
        """An encoder as a complete pretraining model."""
        if not self.is_encoder:
            return self
        new = PretrainModel(self.description.geometry, seed=seed).state_dict()
        return self._replace(state=new | self.state)

    def build(self) -> VideoModel:
        """The model, in eval mode. Raises DataError if the weights don't match the description."""
        _check_size(self.path, self.description, self.state)
        model = empty_model(self.description)
        _check_state(self.path, model, self.state)
        model.load_state_dict(self.state)
        return model.eval()

    def warn(self) -> None:
        """Give the notes as warnings to the caller of the calling function."""
        for note in self.notes:
            warnings.warn(f"{self.path}: {note}", stacklevel=3)


def load_model(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    classes: Sequence[str] | None = None,
    position_resize: PositionResize = "recompute",
    best: bool = False,
    ema: bool = False,
    **model: Any,
) -> VideoModel:
    """A model in eval mode, from any path that `read_model` reads. Raises as it does; notes become warnings.

    `best`: the run's best checkpoint [default: the last]. `ema`: the moving average of the weights; raises DataError
    if the training kept none. Raises VmaeError for a device that does not exist.
    """
    device = check_device(device)
    check_flag("best", best)
    check_flag("ema", ema)
    read = read_model(path, model, classes=classes, position_resize=position_resize, best=best)
    if ema:
        average = read.path.parent / EMA_FILE
        if not average.is_file():
            raise DataError(f"{path}: has no {EMA_FILE}. Only training runs with ema.decay keep a moving average")
        verify_files(average.parent, (EMA_FILE,))
        read = read._replace(state=read_weights(average))
    read.warn()
    return read.build().to(device)


def load_init(
    path: str | Path, recipe: Geometry, *, position_resize: PositionResize, with_decoder: bool = True, seed: int = 0
) -> VideoModel:
    """The model of --init, resized to the recipe's clips; notes become warnings.

    An encoder is enough: its decoder is new, a function of `seed`. The recipe completes what the file does not state. With `with_decoder` false, the decoder may be any.
    Raises MisuseError listing how the model's geometry differs from the recipe's.
    """
    expected = {
        name: value
        for name, value in msgspec.structs.asdict(recipe).items()
        if name not in _FREE_FIELDS and (with_decoder or not name.startswith("decoder_"))
    }
    # Any number of heads describes a decoder that is dropped.
    recipe_fields = expected if with_decoder else {**expected, "decoder_num_heads": 1}
    read = _read(local_copy(path), {}, None, recipe_fields=recipe_fields)
    read = _resized(read, position_resize, image_size=recipe.image_size, num_frames=recipe.num_frames)
    own = msgspec.structs.asdict(read.description.geometry)
    if read.description.kind != "pretrain":
        expected = {name: value for name, value in expected.items() if not name.startswith("decoder_")}
    different = [name for name, value in expected.items() if own[name] != value]
    if different:
        listed = ", ".join(f"{name} {own[name]} (recipe {expected[name]})" for name in different)
        keys = dict.fromkeys(_RECIPE_KEYS.get(name, "model") for name in different)
        raise MisuseError(
            f"--init {path}: differs from the recipe's model ({listed}). Change the recipe's {' and '.join(keys)}"
        )
    if read.is_encoder and with_decoder:
        read = read._replace(notes=(*read.notes, "has no decoder, so the decoder starts new"))
    read.warn()
    return read.with_new_decoder(seed).build()


def load_weights(folder: Path, model: VideoModel) -> None:
    """Set a model's weights to a checkpoint's, bit for bit. Raises DataError if they belong to another model."""
    state = read_weights(folder / WEIGHTS)
    _check_state(folder / WEIGHTS, model, state)
    own = model.state_dict()
    # Not strict: the names are right, and the state dict lacks what only a training needs.
    model.load_state_dict({name: shard_like(value, own[name]) for name, value in state.items()}, strict=False)


def read_model(
    path: str | Path,
    user_fields: dict[str, Any],
    *,
    classes: Sequence[str] | None = None,
    position_resize: str = "recompute",
    best: bool = False,
) -> ReadModel:
    """Read a native folder, a run (its newest complete checkpoint), a checkpoint file of VideoMAE or VideoMAEv2, a
    DeepSpeed checkpoint folder, or a folder of Hugging Face's transformers.

    A URL of a run or a native checkpoint is copied to this machine first.
    `user_fields`: fields of Geometry. They complete what the file does not state, and must agree with what it states.
    But image_size and num_frames resize the model to other clips; `position_resize` sets its new position embedding.
    `classes`: names of the outputs, if the file has none or calls them 0, 1, 2 ….
    Raises DataError for what can't be read, MisuseError for a field that does not fit the file.
    """
    if classes is not None:
        _check_names(classes)
    for name in user_fields:
        if name not in Geometry.__struct_fields__:
            known = ", ".join(Geometry.__struct_fields__)
            raise MisuseError(f"model.{name} is not a field of a model. The fields are {known}")
    try:
        resize: PositionResize = msgspec.convert(position_resize, PositionResize)
    except msgspec.ValidationError as error:
        expected = " or ".join(get_args(PositionResize))
        raise MisuseError(f"model.position_resize = {position_resize!r}: expected {expected}") from error
    folder = local_copy(path)
    read = _read(best_checkpoint(folder) if best else folder, user_fields, classes, recipe_fields=None)
    for name, value in user_fields.items():
        own = getattr(read.description.geometry, name)
        if name not in CLIP_FIELDS and not same_value(own, value):
            raise MisuseError(
                f"{read.path}: the model has model.{name} = {own!r}, you set {value!r}. Remove the setting, "
                "or use another model"
            )
    if classes is not None:
        read = read._replace(description=_named(read, tuple(classes)))
    return _resized(read, resize, **{name: user_fields.get(name) for name in CLIP_FIELDS})


def _check_names(classes: Sequence[str]) -> None:
    """Raises MisuseError unless these are distinct texts, in order."""
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise MisuseError(f"classes are of type {type(classes).__name__}: expected a list of names")
    for number, name in enumerate(classes):
        if not isinstance(name, str) or not name:
            raise MisuseError(f"classes[{number}] = {name!r}: expected a name, a text that is not empty")
    if len(set(classes)) != len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise MisuseError(f"classes name {twice!r} twice. Give every class its own name")


def _named(read: ReadModel, classes: tuple[str, ...]) -> ModelFile:
    """The description with class names. Raises MisuseError for a model that has none, or others."""
    own = read.description.classes
    if not own:
        raise MisuseError(
            f"{read.path}: has no classes to name: its kind is {read.description.kind}. Remove your names"
        )
    if len(own) != len(classes):
        raise MisuseError(f"{read.path}: the head has {len(own)} outputs, but you gave {len(classes)} classes")
    if own != classes and not is_numbered(own):
        raise MisuseError(f"{read.path}: has other class names than you gave. Remove your names")
    return msgspec.structs.replace(read.description, classes=classes)


def _read(
    path: Path, user_fields: dict[str, Any], classes: Sequence[str] | None, *, recipe_fields: dict[str, Any] | None
) -> ReadModel:
    """Read any format. User fields precede the values of published models, recipe fields follow them.

    Only a training has recipe fields, and only for a training an encoder is enough.
    """
    content: ForeignCheckpoint | tuple[ModelFile, dict[str, Tensor]]
    if path.name == WEIGHTS and any((path.parent / name).is_file() for name in (DESCRIPTION, CONFIG)):
        path = path.parent  # the files beside it state what it lacks
    zero_3 = next(path.glob("zero_pp_rank_*_model_states.pt"), None)
    if path.is_file():
        content = read_official(path)
    elif zero_3 is not None:
        content = read_official(zero_3)  # says what to do
    elif (path / DEEPSPEED_FILE).is_file():
        path = path / DEEPSPEED_FILE
        content = read_official(path)
    elif (path / CONFIG).is_file() and not (path / DESCRIPTION).is_file():
        content = read_hf(path)
    else:
        folder = _native_folder(path)
        path, content = folder / WEIGHTS, read_native(folder)
    notes: tuple[str, ...] = ()
    if isinstance(content, ForeignCheckpoint):
        if content.kind == "encoder" and recipe_fields is None:
            raise DataError(
                f"{path}: has neither encoder_to_decoder.weight nor head.weight: it is only an encoder. "
                "Start a training from it with --init, or use the complete model"
            )
        description = infer_description(content, user_fields, classes, recipe_fields=recipe_fields or {})
        state, notes = content.state, content.notes
    else:
        description, state = content
    state, code_notes = without_position_code(path, description.geometry, state)
    is_encoder = isinstance(content, ForeignCheckpoint) and content.kind == "encoder"
    return ReadModel(path, description, state, notes + code_notes, is_encoder)


def _native_folder(path: Path) -> Path:
    if (path / DESCRIPTION).is_file():
        return path
    checkpoint = newest_checkpoint(path)
    if checkpoint is not None:
        return checkpoint
    problem = f"a folder without {DESCRIPTION} and {CONFIG}"
    if not path.exists():
        problem = "nothing at this path"
    elif (path / CHECKPOINTS).is_dir():
        problem = "a run without a complete checkpoint"
    error_class = UnusablePathError if path.exists() else NotFoundError
    raise error_class(
        f"{path}: found {problem}; expected a folder with {DESCRIPTION}, a run with {CHECKPOINTS}/step-*/{MARKER}, "
        f"a checkpoint file of VideoMAE, or a transformers folder with {CONFIG}. Check the path"
    )


def _resized(
    read: ReadModel, position_resize: PositionResize, *, image_size: int | None, num_frames: int | None
) -> ReadModel:
    description = read.description
    try:
        sides = [msgspec.convert(value, int | None) for value in (image_size, num_frames)]
        geometry = description.geometry.resized(position_resize, image_size=sides[0], num_frames=sides[1])
    except (ValueError, TypeError) as error:
        raise MisuseError(f"{read.path}: {error}. Set other values") from error
    return read._replace(description=msgspec.structs.replace(description, geometry=geometry))


def _check_size(path: Path, description: ModelFile, state: dict[str, Tensor]) -> None:
    """Raises DataError if the description needs far more memory than the weights, before that memory is allocated.

    A model that is a little larger lacks some weights; `_check_state` names them.
    """
    geometry = description.geometry

    def block_weights(depth: int, dim: int, ratio: float) -> int:
        return depth * (4 * dim**2 + 2 * dim * hidden_dim(dim, ratio))

    described = block_weights(geometry.depth, geometry.embed_dim, geometry.mlp_ratio)
    described += geometry.embed_dim * geometry.cube_dim
    if description.kind == "pretrain":
        ratio = geometry.decoder_mlp_ratio or geometry.mlp_ratio
        described += block_weights(geometry.decoder_depth, geometry.decoder_embed_dim, ratio)
    stored = sum(value.numel() for value in state.values())
    if described > 2 * stored:
        raise DataError(
            f"{path}: the description is of a model with at least {described} parameters, the file holds {stored}. "
            "They belong to different models"
        )


def _check_state(path: Path, model: VideoModel, state: dict[str, Tensor]) -> None:
    expected = model.state_dict()
    for problem, names in (("missing", expected.keys() - state.keys()), ("unknown", state.keys() - expected.keys())):
        if names:
            listed = first_names((name[:80] for name in sorted(names)), 3)
            count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
            raise DataError(f"{path}: {count} {problem}: {listed}. The file is incomplete or of another model")
    for name, value in expected.items():
        stored = state[name]
        if stored.shape != value.shape:
            shapes = [" × ".join(map(str, x.shape)) or "1" for x in (stored, value)]
            raise DataError(
                f"{path}: {name} has {shapes[0]} numbers, but this model has {shapes[1]}. "
                "The weights are of another model"
            )
        if stored.dtype != value.dtype:
            types = [str(x.dtype).removeprefix("torch.") for x in (stored, value)]
            raise DataError(f"{path}: {name} is {types[0]}, but this model needs {types[1]}. Use another checkpoint")
