"""Folders of Hugging Face's transformers: config.json, model.safetensors (in one piece or several), preprocessor_config.json.

Its decoder.norm and fc_norm have eps 1e-5, whatever config.json says of the others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.checkpoints.description import Kind, ModelFile
from vmae_train.checkpoints.infer import Foreign
from vmae_train.checkpoints.layouts import from_hf_names, to_hf_names
from vmae_train.checkpoints.unpickle import read_pickle
from vmae_train.checkpoints.weights import write_weights
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD
from vmae_train.models.geometry import Geometry, hidden_dim

__all__ = ["CONFIG", "read_hf", "write_hf"]

CONFIG = "config.json"
_WEIGHTS, _PARTS, _PICKLED = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_PREPROCESSOR = "preprocessor_config.json"
_FIXED_EPS = 1e-5
_PROBLEMS: dict[str | None, Kind] = {
    None: "classifier",
    "single_label_classification": "classifier",
    "multi_label_classification": "multilabel",
    "regression": "regressor",
}


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of config.json that fix the model; defaults are transformers' own."""

    model_type: str
    architectures: tuple[str, ...] = ()
    image_size: int | tuple[int, int] = 224
    patch_size: int | tuple[int, int] = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    decoder_num_attention_heads: int = 6
    decoder_hidden_size: int = 384
    decoder_num_hidden_layers: int = 4
    decoder_intermediate_size: int = 1536
    norm_pix_loss: bool = True
    problem_type: str | None = None
    id2label: dict[str, str] | None = None


class _Preprocessor(msgspec.Struct, frozen=True):
    image_mean: tuple[float, float, float] = IMAGENET_MEAN
    image_std: tuple[float, float, float] = IMAGENET_STD


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]


def read_hf(folder: Path) -> Foreign:
    """A VideoMAE of transformers 4 or 5. Raises DataError for another model or an unreadable file."""
    config = _decode(folder / CONFIG, _Config)
    named = _read_weights(folder)
    pretrain = "encoder_to_decoder.weight" in named
    _check(folder, config, named, pretrain)
    state = {
        name: value.float() if value.is_floating_point() else value
        for name, value in from_hf_names(named, pretrain=pretrain).items()
    }
    kind: Kind = "pretrain" if pretrain else _PROBLEMS[config.problem_type]
    classes = None
    if not pretrain and config.id2label is not None:
        classes = tuple(config.id2label[name] for name in sorted(config.id2label, key=int))
    return Foreign(folder, kind, state, _says(folder, config), classes, _remarks(state))


def _says(folder: Path, config: _Config) -> dict[str, Any]:
    preprocessor = _Preprocessor()
    if (folder / _PREPROCESSOR).is_file():
        preprocessor = _decode(folder / _PREPROCESSOR, _Preprocessor)
    ratio = config.intermediate_size / config.hidden_size
    says: dict[str, Any] = {
        "image_size": _square(config.image_size),
        "patch_size": _square(config.patch_size),
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
        "mean": preprocessor.image_mean,
        "std": preprocessor.image_std,
    }
    if config.decoder_intermediate_size != hidden_dim(config.decoder_hidden_size, ratio):
        says["decoder_mlp_ratio"] = config.decoder_intermediate_size / config.decoder_hidden_size
    return says


def _check(folder: Path, config: _Config, named: dict[str, Tensor], pretrain: bool) -> None:
    """Raises DataError for what transformers can have and this model can't."""
    wrong = [
        f"{name} = {found!r} (wanted {wanted!r})"
        for name, found, wanted in (
            ("model_type", config.model_type, "videomae"),
            ("num_channels", config.num_channels, 3),
            ("hidden_act", config.hidden_act, "gelu"),
            ("qkv_bias", config.qkv_bias, True),
            ("norm_pix_loss", config.norm_pix_loss or not pretrain, True),
            ("use_mean_pooling", config.use_mean_pooling or pretrain, True),
        )
        if found != wanted
    ]
    if not isinstance(_square(config.image_size), int) or not isinstance(_square(config.patch_size), int):
        wrong.append(f"image_size = {config.image_size}, patch_size = {config.patch_size} (wanted squares)")
    if config.problem_type not in _PROBLEMS:
        wrong.append(f"problem_type = {config.problem_type!r} (wanted {', '.join(map(str, _PROBLEMS))})")
    if config.id2label is not None and not all(name.isdecimal() for name in config.id2label):
        wrong.append("id2label with names that are no numbers")
    if wrong:
        raise DataError(f"{folder / CONFIG}: {', '.join(wrong)}; take another model")
    if not pretrain and "classifier.weight" not in named:
        raise DataError(f"{folder}: an encoder alone, without decoder or classifier; take the whole model")


def _remarks(state: dict[str, Tensor]) -> tuple[str, ...]:
    biases = [value for name, value in state.items() if name.endswith(("attn.q_bias", "attn.v_bias"))]
    if biases and not any(bool(value.any()) for value in biases):
        return (
            "every q and v bias is 0: early releases of transformers 5 lost them in reading; "
            "compare with the model that this one was made from",
        )
    return ()


def _square(size: int | tuple[int, int]) -> int | tuple[int, int]:
    return size[0] if isinstance(size, tuple) and size[0] == size[1] else size


def _read_weights(folder: Path) -> dict[str, Tensor]:
    if (folder / _WEIGHTS).is_file():
        return _read_safetensors(folder / _WEIGHTS)
    if (folder / _PARTS).is_file():
        weight_map = _decode(folder / _PARTS, _Index).weight_map
        state: dict[str, Tensor] = {}
        for part in sorted(set(weight_map.values())):
            if Path(part).name != part:
                raise DataError(f"{folder / _PARTS}: names {part!r}, which is not in this folder; take another copy")
            state |= _read_safetensors(folder / part)
        return state
    if (folder / _PICKLED).is_file():
        content = read_pickle(folder / _PICKLED)
        if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
            return content
        raise DataError(f"{folder / _PICKLED}: holds no dict of weights; take another copy")
    raise DataError(f"{folder}: found {CONFIG}, wanted {_WEIGHTS}, {_PARTS} or {_PICKLED} beside it; copy it there")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not readable weights ({error}); take another copy") from error


def _decode(path: Path, kind: type[Any]) -> Any:
    try:
        return msgspec.json.decode(read_bytes(path), type=kind)
    except NOT_JSON as error:
        raise DataError(f"{path}: not a file of transformers' VideoMAE ({error}); take another model") from error


def write_hf(folder: Path, description: ModelFile, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Write into an existing folder; returns what is worth knowing of it. config.json is written last.

    Raises MisuseError for a model that transformers can't have, VmaeError when the disk says no.
    """
    geometry = description.geometry
    _check_writable(folder, description)
    named = to_hf_names(state, pretrain=description.kind == "pretrain")
    write_weights(folder / _WEIGHTS, named, metadata={"format": "pt"})
    commit_bytes(folder / _PREPROCESSOR, _json(_preprocessor(geometry)))
    commit_bytes(folder / CONFIG, _json(_config(description)))
    eps = geometry.decoder_norm_eps if description.kind == "pretrain" else geometry.fc_eps
    if eps != _FIXED_EPS:
        norm = "decoder.norm" if description.kind == "pretrain" else "fc_norm"
        return (f"transformers has eps {_FIXED_EPS:g} in {norm}, this model {eps:g}: outputs differ by a little",)
    return ()


def _check_writable(folder: Path, description: ModelFile) -> None:
    geometry = description.geometry
    can_not = None
    if geometry.position != "sinusoid-1d":
        can_not = f"position code {geometry.position}"
    elif geometry.position_grid is not None:
        can_not = "interpolated position code"
    elif geometry.pooling != "mean":
        can_not = f"{geometry.pooling} pooling"
    elif description.kind == "pretrain" and geometry.encoder_eps != geometry.decoder_eps:
        can_not = f"two eps ({geometry.encoder_eps:g} in the encoder, {geometry.decoder_eps:g} in the decoder)"
    elif any(value.mean != 0 or value.spread != 1 for value in description.values):
        can_not = "head in spreads from a mean"
    if can_not:
        raise MisuseError(f"{folder}: transformers' VideoMAE knows no {can_not}; use --to native")


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
        "image_processor_type": "VideoMAEImageProcessor",
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
