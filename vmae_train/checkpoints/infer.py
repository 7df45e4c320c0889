"""Weights in a format that states little → a complete model description.

Fields come from the shapes of the weights, from the file, from the published sizes, from the user and from a recipe.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_train.checkpoints.native import MODEL_FORMAT, Kind, ModelFile
from vmae_train.models.geometry import Geometry, published_size
from vmae_train.models.heads import RegressedValue
from vmae_train.models.positions import position_embedding

__all__ = [
    "CLIP_FIELDS",
    "ForeignCheckpoint",
    "infer_description",
    "same_value",
    "without_position_code",
]

# The user may set these to another value than the model's: `load` resizes the model to such clips.
CLIP_FIELDS = ("image_size", "num_frames")
# By decoder width, for the published encoders. VideoMAEv2's H has the decoder of g.
_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
_PUBLISHED_FRAMES = 16
# The weights don't determine these.
_NOT_IN_WEIGHTS = ("image_size", "num_frames", "num_heads", "decoder_num_heads")


class ForeignCheckpoint(NamedTuple):
    """A model in a format that is not ours: its weights by official names, and the fields of Geometry in its files.

    An `encoder` has the weights of a pretraining model's encoder, and no others. `classes` None: the files name none.
    """

    path: Path
    kind: Kind | Literal["encoder"]
    state: dict[str, Tensor]
    fields: dict[str, Any]
    classes: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


def infer_description(
    checkpoint: ForeignCheckpoint,
    user_fields: dict[str, Any],
    classes: Sequence[str] | None,
    *,
    recipe_fields: dict[str, Any],
) -> ModelFile:
    """The complete description of a model.

    `user_fields` and `recipe_fields` (fields of Geometry) complete what the file does not state. The values of a
    published model of this size come after the user's and before the recipe's. Without names, the classes are called
    0, 1, 2 ….

    Raises DataError for weights that are not a VideoMAE's or contradict the file. Raises MisuseError for a missing
    field, for fields that don't fit together, and for another size than the recipe's.
    """
    path, kind = checkpoint.path, checkpoint.kind
    pretrain = kind == "pretrain"
    weight_fields = _fields_from_weights(checkpoint)
    for name, value in weight_fields.items():
        stated = checkpoint.fields.get(name, value)
        if not same_value(value, stated):
            raise DataError(
                f"{path}: the file states {name} = {stated!r}, its weights have {value!r}. "
                "They belong to different models"
            )
    fixed = {**weight_fields, **checkpoint.fields}
    published = _published_fields(fixed, pretrain=pretrain)
    if kind == "encoder":  # the decoder will be new: the recipe's
        published = {
            name: value for name, value in published.items() if name[:8] != "decoder_" or name not in recipe_fields
        }
    _check_recipe_heads(path, weight_fields, {**published, **user_fields, **fixed}, recipe_fields)
    trained_clips = {name: published[name] for name in CLIP_FIELDS if name in published}
    geometry = _geometry(path, {**recipe_fields, **published, **user_fields, **trained_clips, **fixed})
    if kind == "pretrain" or kind == "encoder":
        return ModelFile(format=MODEL_FORMAT, kind="pretrain", geometry=geometry)
    names = _output_names(checkpoint, classes)
    if kind == "regressor":
        values = tuple(RegressedValue(name=name) for name in names)
        return ModelFile(format=MODEL_FORMAT, kind=kind, geometry=geometry, values=values)
    return ModelFile(format=MODEL_FORMAT, kind=kind, geometry=geometry, classes=names)


def _fields_from_weights(checkpoint: ForeignCheckpoint) -> dict[str, Any]:
    """The fields of Geometry that the shapes of the weights determine."""
    state, pretrain = checkpoint.state, checkpoint.kind == "pretrain"
    prefix = "encoder." if checkpoint.kind in ("pretrain", "encoder") else ""
    projection = _weight(checkpoint, f"{prefix}patch_embed.proj.weight", axes=5)
    embed_dim, channels, tubelet, height, width = projection.shape
    if channels != 3 or height != width:
        raise DataError(
            f"{checkpoint.path}: patch_embed expects cubes of {tuple(projection.shape)[1:]}; "
            "expected 3 colour channels and a square patch"
        )
    fc1 = _weight(checkpoint, f"{prefix}blocks.0.mlp.fc1.weight", axes=2)
    fields: dict[str, Any] = {
        "embed_dim": embed_dim,
        "tubelet_size": tubelet,
        "patch_size": height,
        "depth": _depth(state, f"{prefix}blocks."),
        "mlp_ratio": len(fc1) / embed_dim,
    }
    if not pretrain:
        return fields
    decoder_dim = len(_weight(checkpoint, "encoder_to_decoder.weight", axes=2))
    hidden = len(_weight(checkpoint, "decoder.blocks.0.mlp.fc1.weight", axes=2))
    fields |= {"decoder_embed_dim": decoder_dim, "decoder_depth": _depth(state, "decoder.blocks.")}
    fields["decoder_attention"] = "cross" if "decoder.blocks.0.attn.k.weight" in state else "self"
    if hidden != int(decoder_dim * fields["mlp_ratio"] + 1e-6):
        fields["decoder_mlp_ratio"] = hidden / decoder_dim
    return fields


def _weight(checkpoint: ForeignCheckpoint, name: str, *, axes: int) -> Tensor:
    weight = checkpoint.state.get(name)
    if weight is None or weight.ndim != axes:
        problem = f"lacks {name}" if weight is None else f"{name} has {weight.ndim} axes; expected {axes}"
        raise DataError(f"{checkpoint.path}: is not a VideoMAE: {problem}. Use another file")
    return weight


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    numbers = [int(match[1]) for name in state if (match := re.match(rf"{re.escape(prefix)}(\d{{1,9}})\.", name))]
    return max(numbers, default=-1) + 1


def _published_fields(fixed: dict[str, Any], *, pretrain: bool) -> dict[str, Any]:
    """The values of the published model of this size; and the position embedding of all published models."""
    size = published_size(fixed["embed_dim"], fixed["depth"])
    fields: dict[str, Any] = {"position": "sinusoid-1d"}
    if size is not None:
        fields |= {"num_heads": size.num_heads, "num_frames": _PUBLISHED_FRAMES}
        if size.patch_size == fixed["patch_size"]:
            fields["image_size"] = size.image_size
    if pretrain:
        heads = _DECODER_HEADS.get(fixed["decoder_embed_dim"])
        return {**fields, "decoder_num_heads": heads} if size is not None and heads else fields
    # A model with a head has no decoder, but its description needs one: the decoder of its size, or any.
    if size is None:
        return {**fields, "decoder_embed_dim": fixed["embed_dim"], "decoder_depth": 1, "decoder_num_heads": 1}
    names = ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    return {**fields, **{name: getattr(size, name) for name in names}}


def _check_recipe_heads(
    path: Path, weight_fields: dict[str, Any], known: dict[str, Any], recipe_fields: dict[str, Any]
) -> None:
    """Raises MisuseError if only the recipe sets the number of heads, and its width differs from the weights'."""
    for heads, width in (("num_heads", "embed_dim"), ("decoder_num_heads", "decoder_embed_dim")):
        if heads in known or width not in weight_fields or width not in recipe_fields:
            continue
        if weight_fields[width] != recipe_fields[width]:
            different = [
                f"{name} {value} (recipe {recipe_fields[name]})"
                for name, value in weight_fields.items()
                if name in recipe_fields and not same_value(value, recipe_fields[name])
            ]
            raise MisuseError(
                f"--init {path}: has another size than the recipe's model ({', '.join(different)}). "
                "Change the recipe's model, or use another file"
            )


def _geometry(path: Path, fields: dict[str, Any]) -> Geometry:
    missing = [name for name in _NOT_IN_WEIGHTS if name not in fields]
    if missing:
        settings = " ".join(f"--set model.{name}=…" for name in missing)
        raise MisuseError(
            f"{path}: its weights don't determine {', '.join(missing)}, and {fields['embed_dim']} × {fields['depth']} "
            f"blocks is not a published size. Run vmae-train convert {path} FOLDER --to native {settings} and use "
            f"FOLDER, or call load_model(…, {'=…, '.join(missing)}=…)"
        )
    try:
        return msgspec.convert(fields, Geometry)
    except msgspec.ValidationError as error:
        raise MisuseError(f"{path}: {error}. Set other values, or use another model") from error


def _output_names(checkpoint: ForeignCheckpoint, classes: Sequence[str] | None) -> tuple[str, ...]:
    outputs = len(_weight(checkpoint, "head.weight", axes=2))
    names = tuple(classes or checkpoint.classes or (str(number) for number in range(outputs)))
    if len(names) != outputs:
        source = "you gave" if classes else "the file names"
        raise MisuseError(f"{checkpoint.path}: the head has {outputs} outputs, but {source} {len(names)} classes")
    return names


def same_value(own: Any, other: Any) -> bool:
    if isinstance(own, float) and isinstance(other, int | float):
        return abs(own - other) <= 1e-9 * abs(own)
    return bool(own == (tuple(other) if isinstance(other, list) else other))


def without_position_code(
    path: Path, geometry: Geometry, state: dict[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The weights without a stored position embedding, which some copies of the published models have; and a note on that.

    Raises DataError for a class token, and for a learned position embedding: the models have neither.
    """
    for name in ("cls_token", "encoder.cls_token"):
        if name in state:
            raise DataError(f"{path}: has a class token ({name}), which these models don't have. Use another file")
    state, dropped = dict(state), []
    for name, dim in (
        ("pos_embed", geometry.embed_dim),
        ("encoder.pos_embed", geometry.embed_dim),
        ("decoder.pos_embed", geometry.decoder_embed_dim),
    ):
        stored = state.pop(name, None)
        if stored is None:
            continue
        if stored.ndim < 2 or stored.numel() != geometry.num_tokens * dim:
            raise DataError(
                f"{path}: {name} is a position embedding of {' × '.join(map(str, stored.shape))} numbers, but "
                f"{geometry.num_frames} frames of {geometry.image_size} px need {geometry.num_tokens} × {dim}. "
                "Set the clips of the model (image_size, num_frames), or use another file"
            )
        if not _is_rounded(stored, position_embedding(geometry, dim)):
            raise DataError(f"{path}: {name} is a learned position embedding. These models use only fixed ones")
        dropped.append(name)
    if not dropped:
        return state, ()
    return state, (f"{', '.join(dropped)}: skipped the fixed position embedding, which is computed and not stored",)


def _is_rounded(stored: Tensor, code: Tensor) -> bool:
    """Whether the numbers are the code's, in full or half precision, or in half precision widened later."""
    stored = stored.float().reshape(code.shape)
    return any(
        torch.equal(stored.to(kind).float(), stored)
        and stored.allclose(code, rtol=max(torch.finfo(kind).eps / 2, 1e-5), atol=1e-5)
        for kind in (torch.float32, torch.float16, torch.bfloat16)
    )
