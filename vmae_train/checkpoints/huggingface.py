"""Folders of Hugging Face's transformers: config.json, model.safetensors (one file or several), preprocessor files.

transformers' decoder.norm and fc_norm always have eps 1e-5, whatever config.json sets for the other norms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes, read_bytes, refuse_special
from vmae_train.checkpoints.infer import ForeignCheckpoint
from vmae_train.checkpoints.native import Kind, ModelFile, write_weights
from vmae_train.checkpoints.recognise import recognise
from vmae_train.checkpoints.unpickle import read_pickle
from vmae_train.checkpoints.weight_names import to_hf_names
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.models.geometry import Geometry, hidden_dim

__all__ = ["CONFIG", "read_hf", "write_hf"]

CONFIG = "config.json"
# In the order in which transformers looks for them: one file, or an index of several.
_WEIGHTS, _PICKLED = "model.safetensors", "pytorch_model.bin"
_FILES = (_WEIGHTS, f"{_WEIGHTS}.index.json", _PICKLED, f"{_PICKLED}.index.json")
_PROCESSOR, _PREPROCESSOR = "processor_config.json", "preprocessor_config.json"
_VIDEO_PREPROCESSOR = "video_preprocessor_config.json"
_PREPROCESSORS = (_VIDEO_PREPROCESSOR, _PREPROCESSOR)
_CARD = "README.md"
_FIXED_EPS = 1e-5
_PROBLEMS: dict[str | None, Kind] = {
    None: "classifier",
    "single_label_classification": "classifier",
    "multi_label_classification": "multilabel",
    "regression": "regressor",
}


_Count = Annotated[int, msgspec.Meta(ge=1)]
_Positive = Annotated[float, msgspec.Meta(gt=0)]


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that determine the model; the defaults are those of transformers."""

    model_type: str
    architectures: tuple[str, ...] = ()
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: _Count = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: _Count = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    norm_pix_loss: bool = True
    problem_type: str | None = None
    id2label: dict[str, str] | None = None


_Colours = tuple[float, float, float]


class _Preprocessor(msgspec.Struct, frozen=True):
    """The fields that change colours; the defaults are those of transformers' VideoMAE classes."""

    do_rescale: bool = True
    rescale_factor: _Positive = 1 / 255
    do_normalize: bool = True
    image_mean: float | _Colours = 0.5
    image_std: float | _Colours = 0.5

    def normalisation(self) -> tuple[_Colours, _Colours]:
        """Mean and standard deviation of clips whose values are 0 to 1."""
        scale = 255 * self.rescale_factor if self.do_rescale else 255.0
        mean, std = (self.image_mean, self.image_std) if self.do_normalize else (0.0, 1.0)
        return _colours(mean, scale), _colours(std, scale)


def _colours(value: float | _Colours, scale: float) -> _Colours:
    red, green, blue = value if isinstance(value, tuple) else (value, value, value)
    return red / scale, green / scale, blue / scale


class _Processor(msgspec.Struct, frozen=True):
    """processor_config.json, which holds the others since transformers 5."""

    video_processor: _Preprocessor | None = None
    image_processor: _Preprocessor | None = None


class _ShardIndex(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def read_hf(folder: Path) -> ForeignCheckpoint:
    """A VideoMAE of transformers 4 or 5; half-precision weights become float32, which is exact.

    Raises DataError for another model or an unreadable file.
    """
    config = _decode(folder / CONFIG, _Config)
    stored = _read_weights(folder)
    pretrain = "encoder_to_decoder.weight" in stored
    _check_config(folder, config, pretrain)
    classes = None
    if not pretrain and config.id2label is not None:
        classes = tuple(config.id2label[number] for number in sorted(config.id2label, key=int))
    mean, std, notes = _normalisation(folder)
    fields = {**_geometry_fields(config), "mean": mean, "std": std}
    read = recognise(folder, stored, fields, kind=_PROBLEMS[config.problem_type], classes=classes, notes=notes)
    biases = [value for name, value in read.state.items() if name.endswith(("attn.q_bias", "attn.v_bias"))]
    if biases and not any(bool(value.any()) for value in biases):
        lost = (
            "every q and v bias is 0. Early releases of transformers 5 lost these biases when they read a model; "
            "compare with the original model"
        )
        return read._replace(notes=(*read.notes, lost))
    return read


def _normalisation(folder: Path) -> tuple[_Colours, _Colours, tuple[str, ...]]:
    """Mean and standard deviation of clips whose values are 0 to 1, from the first file that transformers would read.

    A note says that no file states them, or that another file states others.
    """
    nested = _decode(folder / _PROCESSOR, _Processor) if (folder / _PROCESSOR).is_file() else _Processor()
    found = [part for part in (nested.video_processor, nested.image_processor) if part is not None]
    found += [_decode(folder / name, _Preprocessor) for name in _PREPROCESSORS if (folder / name).is_file()]
    if not found:
        files = ", ".join((_PROCESSOR, *_PREPROCESSORS))
        return IMAGENET_MEAN, IMAGENET_STD, (f"none of {files} is there, so ImageNet's mean and std are assumed",)
    stated = list(dict.fromkeys(part.normalisation() for part in found))
    mean, std = stated[0]
    if len(stated) == 1:
        return mean, std, ()
    return mean, std, (f"its files of preprocessing differ; took mean {mean} and std {std}",)


def _geometry_fields(config: _Config) -> dict[str, Any]:
    ratio = config.intermediate_size / config.hidden_size
    fields: dict[str, Any] = {
        "image_size": _side(config.image_size),
        "patch_size": _side(config.patch_size),
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": ratio,
        "decoder_embed_dim": config.decoder_hidden_size,
        "decoder_depth": config.decoder_num_hidden_layers,
        "decoder_num_heads": config.decoder_num_attention_heads,
        "position": "sinusoid-1d",
        "encoder_eps": config.layer_norm_eps,
        "decoder_eps": config.layer_norm_eps,
        "decoder_norm_eps": _FIXED_EPS,
        "fc_eps": _FIXED_EPS,
    }
    if config.decoder_intermediate_size != hidden_dim(config.decoder_hidden_size, ratio):
        fields["decoder_mlp_ratio"] = config.decoder_intermediate_size / config.decoder_hidden_size
    return fields


def _check_config(folder: Path, config: _Config, pretrain: bool) -> None:
    """Raises DataError for settings that transformers supports and this program does not."""
    wrong = [
        f"{name} = {found!r} (expected {expected!r})"
        for name, found, expected in (
            ("model_type", config.model_type, "videomae"),
            ("num_channels", config.num_channels, 3),
            ("hidden_act", config.hidden_act, "gelu"),
            ("qkv_bias", config.qkv_bias, True),
            ("norm_pix_loss", config.norm_pix_loss or not pretrain, True),
        )
        if found != expected
    ]
    if not isinstance(_side(config.image_size), int) or not isinstance(_side(config.patch_size), int):
        wrong.append(f"image_size = {config.image_size}, patch_size = {config.patch_size} (expected squares)")
    if config.problem_type not in _PROBLEMS:
        wrong.append(f"problem_type = {config.problem_type!r} (expected one of {', '.join(map(str, _PROBLEMS))})")
    names = config.id2label or {}
    if names.keys() != {str(number) for number in range(len(names))}:
        wrong.append("the keys of id2label are not 0, 1, 2 …")
    if wrong:
        raise DataError(f"{folder / CONFIG}: {', '.join(wrong)}. Use another model")


def _side(size: int | tuple[int, int]) -> int | tuple[int, int]:
    """One number if the size is a square."""
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = next((folder / name for name in _FILES if (folder / name).is_file()), None)
    if path is None:
        raise DataError(f"{folder}: has {CONFIG}, but none of {', '.join(_FILES)}. Copy the weights into the folder")
    if path.suffix != ".json":
        return _read_part(path)
    state: dict[str, Tensor] = {}
    for file in sorted(set(_decode(path, _ShardIndex).weight_map.values())):
        if Path(file).name != file or not file.isprintable():
            raise DataError(f"{path}: names {file!r}, which is not in this folder. Use another copy")
        state |= _read_part(folder / file)
    return state


def _read_part(path: Path) -> dict[str, Tensor]:
    refuse_special(path)
    try:
        content = safetensors.torch.load_file(path) if path.suffix == ".safetensors" else read_pickle(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: weights can't be read ({error}). Use another copy") from error
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return content
    raise DataError(f"{path}: is not a dict of weights. Use another copy")


def _decode(path: Path, file_type: type[Any]) -> Any:
    try:
        return msgspec.json.decode(read_bytes(path), type=file_type)
    except NOT_JSON as error:
        raise DataError(f"{path}: is not a VideoMAE file of transformers ({error}). Use another model") from error


def write_hf(folder: Path, description: ModelFile, state: dict[str, Tensor], card: str) -> tuple[str, ...]:
    """Write into an existing folder, config.json last; `card` is its README.md. Returns notes for the user.

    Raises MisuseError for a model that transformers does not have, VmaeError if a file can't be written.
    """
    geometry, pretrain = description.geometry, description.kind == "pretrain"
    _check_writable(folder, description)
    write_weights(folder / _WEIGHTS, to_hf_names(state, pretrain=pretrain), metadata={"format": "pt"})
    pixels = _preprocessor(geometry)
    commit_bytes(folder / _PREPROCESSOR, _json({"image_processor_type": "VideoMAEImageProcessor", **pixels}))
    # transformers 5 takes this file first. 4 knows only the other.
    commit_bytes(folder / _VIDEO_PREPROCESSOR, _json({"video_processor_type": "VideoMAEVideoProcessor", **pixels}))
    commit_bytes(folder / _CARD, card.encode())
    commit_bytes(folder / CONFIG, _json(_config(description)))
    norm, eps = ("decoder.norm", geometry.decoder_norm_eps) if pretrain else ("fc_norm", geometry.fc_eps)
    if eps == _FIXED_EPS:
        return ()
    return (f"transformers uses eps {_FIXED_EPS:g} in {norm}, this model {eps:g}. Outputs differ slightly",)


def _check_writable(folder: Path, description: ModelFile) -> None:
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
    elif description.kind == "pretrain" and geometry.encoder_eps != geometry.decoder_eps:
        unsupported = f"encoder eps {geometry.encoder_eps:g} with decoder eps {geometry.decoder_eps:g}"
    elif any(value.mean != 0 or value.spread != 1 for value in description.values):
        unsupported = "head for normalised values"
    if unsupported:
        raise MisuseError(
            f"{folder}: transformers' VideoMAE has no {unsupported}. Use --to native, or vmae-train export"
        )


def _config(description: ModelFile) -> dict[str, Any]:
    geometry, pretrain = description.geometry, description.kind == "pretrain"
    decoder_ratio = geometry.decoder_mlp_ratio or geometry.mlp_ratio
    config: dict[str, Any] = {
        "architectures": ["VideoMAEForPreTraining" if pretrain else "VideoMAEForVideoClassification"],
        "model_type": "videomae",
        "image_size": geometry.image_size,
        "patch_size": geometry.patch_size,
        "num_channels": 3,
        "num_frames": geometry.num_frames,
        "tubelet_size": geometry.tubelet_size,
        "hidden_size": geometry.embed_dim,
        "num_hidden_layers": geometry.depth,
        "num_attention_heads": geometry.num_heads,
        "intermediate_size": hidden_dim(geometry.embed_dim, geometry.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": geometry.encoder_eps,
        "qkv_bias": True,
        "use_mean_pooling": not pretrain,
        "decoder_num_attention_heads": geometry.decoder_num_heads,
        "decoder_hidden_size": geometry.decoder_embed_dim,
        "decoder_num_hidden_layers": geometry.decoder_depth,
        "decoder_intermediate_size": hidden_dim(geometry.decoder_embed_dim, decoder_ratio),
        "norm_pix_loss": True,
        "torch_dtype": "float32",
    }
    if not pretrain:
        names = description.classes or tuple(value.name for value in description.values)
        config["problem_type"] = next(name for name, kind in _PROBLEMS.items() if name and kind == description.kind)
        config["id2label"] = {str(number): name for number, name in enumerate(names)}
        config["label2id"] = {name: number for number, name in enumerate(names)}
    return config


def _preprocessor(geometry: Geometry) -> dict[str, Any]:
    return {
        "do_resize": True,
        "size": {"shortest_edge": geometry.image_size},
        "resample": 2,  # bilinear
        "do_center_crop": True,
        "crop_size": {"height": geometry.image_size, "width": geometry.image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(geometry.mean),
        "image_std": list(geometry.std),
    }


def _json(values: dict[str, Any]) -> bytes:
    return msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n"
