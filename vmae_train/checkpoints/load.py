"""Models on disk, read in every layout, written in ours: `model.safetensors`, exactly the state dict, and `model.json`,
everything else.

A folder is whole when model.json is there: it is written last.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, NotThereError
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.checkpoints.description import (
    MODEL_FORMAT,
    ModelFile,
    decode_description,
    describe,
    empty_model,
    encode_description,
)
from vmae_train.checkpoints.huggingface import CONFIG, read_hf
from vmae_train.checkpoints.infer import Foreign, check_given, complete, without_position_code
from vmae_train.checkpoints.official import DEEPSPEED_FILE, read_official
from vmae_train.checkpoints.weights import write_weights
from vmae_train.models.geometry import Geometry, PositionResize, hidden_dim
from vmae_train.models.videomae import VideoModel
from vmae_train.runs.best import best_checkpoint
from vmae_train.runs.layout import CHECKPOINTS, DESCRIPTION, EMA_FILE, MARKER, WEIGHTS, newest_checkpoint
from vmae_train.runs.run_files import local_copy

__all__ = [
    "MODEL_FORMAT",
    "ModelFile",
    "ReadModel",
    "load_model",
    "load_start",
    "load_weights",
    "read_model",
    "save_model",
    "write_native",
]

# What other clips may change, and what only a fresh head or the trainer decides.
_CLIP_FIELDS = ("image_size", "num_frames")
_OWN_FIELDS = (
    *("init", "init_scale", "pooling", "position_grid"),
    *("encoder_eps", "decoder_eps", "decoder_norm_eps", "fc_eps"),
)
# Fields of a model that a recipe does not have in its [model].
_PIXEL_KEYS = {"mean": "augment.mean", "std": "augment.std"}


class ReadModel(NamedTuple):
    """A model as read: whole description, weights by official names, what is worth knowing of it."""

    path: Path
    description: ModelFile
    state: dict[str, Tensor]
    remarks: tuple[str, ...] = ()

    def build(self) -> VideoModel:
        """The model, in eval mode. Raises DataError where the weights are not the description's."""
        _check_room(self.path, self.description, self.state)
        model = empty_model(self.description)
        _check_state(self.path, model, self.state)
        model.load_state_dict(self.state)
        return model.eval()


def save_model(folder: Path, model: VideoModel) -> None:
    """Write a model into an existing folder. Raises VmaeError when the disk says no."""
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_native(folder, describe(model), state)


def write_native(folder: Path, description: ModelFile, state: dict[str, Tensor]) -> None:
    write_weights(folder / WEIGHTS, state)
    commit_bytes(folder / DESCRIPTION, encode_description(description))


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
    """A model in eval mode, from what `read_model` reads. Raises as it does; remarks are warnings.

    `best`: of a run the checkpoint that scored best on the way, not the last. `ema`: the mean of the weights, where the
    training kept one. Raises DataError where there is none.
    """
    read = read_model(path, model, classes=classes, position_resize=position_resize, best=best)
    if ema:
        read = read._replace(state=_mean_weights(read.path.parent))
    for remark in read.remarks:
        warnings.warn(f"{read.path}: {remark}", stacklevel=2)
    return read.build().to(device)


def read_model(
    path: str | Path,
    given: dict[str, Any],
    *,
    classes: Sequence[str] | None = None,
    position_resize: str = "recompute",
    best: bool = False,
) -> ReadModel:
    """From a folder holding model.json, a run (its newest whole checkpoint), a checkpoint file of VideoMAE or
    VideoMAEv2, a DeepSpeed checkpoint folder or a folder of Hugging Face's transformers.

    `given`: fields of Geometry. They fill what the file does not say, and must agree with what it does; but
    image_size and num_frames make the model one for other clips, its position code as `position_resize` says.
    A run or a checkpoint of ours may be a URL; it is copied to this machine first.
    `classes`: names for the outputs of a file that has none.
    Raises DataError for what can't be read, MisuseError for a `given` that does not fit the file.
    """
    resize = _checked(given, position_resize)
    folder = local_copy(path)
    read = _read(best_checkpoint(folder) if best else folder, given, {}, classes)
    rest = {name: value for name, value in given.items() if name not in _CLIP_FIELDS}
    check_given(read.path, read.description.geometry, rest)
    if classes is not None and tuple(classes) != (read.description.classes or tuple(classes)):
        raise MisuseError(f"{read.path}: names its classes itself, and otherwise; leave the names out")
    clips = {name: given.get(name) for name in _CLIP_FIELDS}
    return _resized(read, resize, **clips)


def _mean_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / EMA_FILE
    if not path.is_file():
        raise DataError(f"{path}: not there; a mean of the weights is kept by trainings with ema.decay")
    return _read_weights(path)


def load_start(
    path: str | Path, recipe: Geometry, *, position_resize: PositionResize, with_decoder: bool = True
) -> VideoModel:
    """The model that a training starts from, made one for the recipe's clips.

    What its file does not say is taken from the recipe. A training that drops the decoder takes any: `with_decoder`
    false.
    Raises MisuseError for a model of another geometry than the recipe's, as one list of the differences.
    """
    asked = {
        name: value
        for name, value in msgspec.structs.asdict(recipe).items()
        if name not in _OWN_FIELDS and (with_decoder or not name.startswith("decoder_"))
    }
    fill = asked if with_decoder else {**asked, "decoder_num_heads": 1}  # nobody will ask what it answers
    read = _read(local_copy(path), {}, fill, None)
    read = _resized(read, position_resize, image_size=recipe.image_size, num_frames=recipe.num_frames)
    found = msgspec.structs.asdict(read.description.geometry)
    headless = read.description.kind == "pretrain"
    different = [
        name
        for name, wanted in asked.items()
        if (headless or not name.startswith("decoder_")) and found[name] != wanted
    ]
    if different:
        what = ", ".join(f"{name} {found[name]} (recipe {asked[name]})" for name in different)
        keys = dict.fromkeys(_PIXEL_KEYS.get(name, "model") for name in different)
        raise MisuseError(
            f"--init {path}: is not the recipe's model ({what}); change the recipe's {' and '.join(keys)}"
        )
    for remark in read.remarks:
        warnings.warn(f"{read.path}: {remark}", stacklevel=2)
    return read.build()


def load_weights(folder: Path, model: VideoModel) -> None:
    """Fill a model with a checkpoint's weights, bit for bit. Raises DataError when they are another model's."""
    state = _read_weights(folder / WEIGHTS)
    _check_state(folder / WEIGHTS, model, state)
    model.load_state_dict(state)


def _checked(given: dict[str, Any], position_resize: str) -> PositionResize:
    for name in given:
        if name not in Geometry.__struct_fields__:
            known = ", ".join(Geometry.__struct_fields__)
            raise MisuseError(f"model.{name} is no field of a model; there are {known}")
    try:
        resize: PositionResize = msgspec.convert(position_resize, PositionResize)
    except msgspec.ValidationError as error:
        wanted = " or ".join(get_args(PositionResize))
        raise MisuseError(f"model.position_resize = {position_resize!r}: expected {wanted}") from error
    return resize


def _read(path: Path, given: dict[str, Any], fill: dict[str, Any], classes: Sequence[str] | None) -> ReadModel:
    """In whatever layout it is. `fill` is weaker than what published sizes have, `given` is stronger."""
    found: Foreign | tuple[ModelFile, dict[str, Tensor]]
    if path.is_file():
        found = read_official(path)
    elif (path / DEEPSPEED_FILE).is_file():
        path = path / DEEPSPEED_FILE
        found = read_official(path)
    elif (path / CONFIG).is_file() and not (path / DESCRIPTION).is_file():
        found = read_hf(path)
    else:
        folder = _model_folder(path)
        description = decode_description(read_bytes(folder / DESCRIPTION), str(folder / DESCRIPTION))
        path, found = folder / WEIGHTS, (description, _read_weights(folder / WEIGHTS))
    if isinstance(found, Foreign):
        description, state, remarks = complete(found, given, classes, fill=fill), found.state, found.remarks
    else:
        (description, state), remarks = found, ()
    coded = without_position_code(path, description.geometry, state)
    return ReadModel(path, description, coded.state, remarks + coded.remarks)


def _resized(
    read: ReadModel, position_resize: PositionResize, *, image_size: int | None, num_frames: int | None
) -> ReadModel:
    description = read.description
    try:
        geometry = description.geometry.resized(position_resize, image_size=image_size, num_frames=num_frames)
    except (ValueError, TypeError) as error:
        raise MisuseError(f"{read.path}: {error}; give other values") from error
    return read._replace(description=msgspec.structs.replace(description, geometry=geometry))


def _model_folder(path: Path) -> Path:
    if (path / DESCRIPTION).is_file():
        return path
    checkpoint = newest_checkpoint(path)
    if checkpoint is not None:
        return checkpoint
    if not path.exists():
        found = "nothing there"
    elif (path / CHECKPOINTS).is_dir():
        found = "a run without a finished checkpoint"
    else:
        found = f"a folder without {DESCRIPTION} and {CONFIG}"
    kind = DataError if path.exists() else NotThereError
    raise kind(
        f"{path}: found {found}, wanted a folder with {DESCRIPTION}, a run with checkpoints/step-*/{MARKER}, "
        f"a checkpoint of VideoMAE, or a folder of transformers with {CONFIG}; check the path"
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(read_bytes(path))
    except SafetensorError as error:
        raise DataError(f"{path}: not readable weights ({error}); take another checkpoint") from error


def _check_room(path: Path, description: ModelFile, state: dict[str, Tensor]) -> None:
    """Raises DataError where the model would be far larger than the weights that are there, before memory is taken for
    it. What is a little larger lacks some weights, which are then named.
    """
    geometry = description.geometry

    def of_blocks(depth: int, dim: int, ratio: float) -> int:
        return depth * (4 * dim**2 + 2 * dim * hidden_dim(dim, ratio))

    claimed = of_blocks(geometry.depth, geometry.embed_dim, geometry.mlp_ratio) + geometry.embed_dim * geometry.cube_dim
    if description.kind == "pretrain":
        ratio = geometry.decoder_mlp_ratio or geometry.mlp_ratio
        claimed += of_blocks(geometry.decoder_depth, geometry.decoder_embed_dim, ratio)
    held = sum(value.numel() for value in state.values())
    if claimed > 2 * held:
        raise DataError(
            f"{path}: its description is of a model of at least {claimed} parameters, it holds {held}; "
            "they are of different models"
        )


def _check_state(path: Path, model: VideoModel, state: dict[str, Tensor]) -> None:
    wanted = model.state_dict()
    for what, names in (
        ("missing", wanted.keys() - state.keys()),
        ("not of such a model", state.keys() - wanted.keys()),
    ):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            count = "1 weight is" if len(names) == 1 else f"{len(names)} weights are"
            raise DataError(f"{path}: {count} {what}: {listed}; they are another model's, or not whole")
    for name, value in wanted.items():
        found = state[name]
        if found.shape != value.shape:
            raise DataError(
                f"{path}: {name} holds {_numbers(found)}, where this model has {_numbers(value)}; "
                "its weights are of different models"
            )
        if found.dtype != value.dtype:
            raise DataError(
                f"{path}: {name} is kept as {_kind(found)}, where this model has {_kind(value)}; take another checkpoint"
            )


def _numbers(x: Tensor) -> str:
    return f"{' × '.join(map(str, x.shape)) or 1} numbers"


def _kind(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
