"""From weights whose file says little to a whole description: what shapes tell, what published sizes are, what is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from vmae_data.errors import DataError, MisuseError
from vmae_train.checkpoints.description import MODEL_FORMAT, Kind, ModelFile
from vmae_train.models.geometry import Geometry, PublishedSize, published_size
from vmae_train.models.heads import RegressedValue
from vmae_train.models.positions import position_code

__all__ = ["Coded", "Foreign", "check_given", "complete", "without_position_code"]

# By width, for the encoders that were published: VideoMAEv2's H has g's decoder.
_DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
_PUBLISHED_FRAMES = 16


class Foreign(NamedTuple):
    """A model from a file that is not ours: weights by official names, and what the file says of them.

    `says`: fields of Geometry. `classes` None: the file names none.
    """

    path: Path
    kind: Kind
    state: dict[str, Tensor]
    says: dict[str, Any]
    classes: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()


def complete(
    foreign: Foreign, given: dict[str, Any], classes: Sequence[str] | None, *, fill: dict[str, Any]
) -> ModelFile:
    """The whole description. `given`: fields of Geometry that the caller knows; they fill what the file does not say.
    `fill`: the same, of a recipe; but what published models of the size have comes before it.

    Without names, classes are called by their numbers. Raises DataError for weights that are no VideoMAE's or that
    contradict the file, MisuseError for what is neither said nor given, or given otherwise, and for another size than
    the recipe's.
    """
    shapes = _shapes(foreign)
    fixed = {**shapes, **foreign.says}
    for name, value in shapes.items():
        if name in foreign.says and not _same(value, foreign.says[name]):
            raise DataError(
                f"{foreign.path}: says {name} = {foreign.says[name]!r}, its weights have {value!r}; "
                "they are of different models"
            )
    assumed = _assumed(fixed, pretrain=foreign.kind == "pretrain")
    _check_heads(foreign.path, shapes, {**assumed, **given, **fixed}, fill)
    clips: dict[str, Any] = {name: assumed[name] for name in ("image_size", "num_frames") if name in assumed}
    known: dict[str, Any] = {
        **fill,
        **assumed,
        **given,
        **clips,
        **fixed,
    }  # other clips than those trained on are `resized`'s affair
    lacking = [name for name in _TOLD if name not in known]
    if lacking:
        sets, arguments = (" ".join(f"--set model.{name}=…" for name in lacking), "=…, ".join(lacking))
        raise MisuseError(
            f"{foreign.path}: its weights don't say {', '.join(lacking)}, and {known['embed_dim']} × {known['depth']} "
            f"blocks is no published size; give it as vmae-train convert {foreign.path} FOLDER --to native {sets}, and "
            f"take that folder, or as load_model(…, {arguments}=…)"
        )
    try:
        geometry = msgspec.convert(known, Geometry)
    except msgspec.ValidationError as error:
        raise MisuseError(f"{foreign.path}: {error}; give other values, or take another model") from error
    if foreign.kind == "regressor":
        values = tuple(RegressedValue(name=name) for name in _classes(foreign, classes))
        return ModelFile(format=MODEL_FORMAT, kind=foreign.kind, geometry=geometry, values=values)
    named = () if foreign.kind == "pretrain" else _classes(foreign, classes)
    return ModelFile(format=MODEL_FORMAT, kind=foreign.kind, geometry=geometry, classes=named)


def _check_heads(path: Path, shapes: dict[str, Any], said: dict[str, Any], recipe: dict[str, Any]) -> None:
    """Raises MisuseError where heads would be taken from a recipe of another width than the weights'."""
    if not any(
        heads not in said and width in shapes and width in recipe and shapes[width] != recipe[width]
        for heads, width in (("num_heads", "embed_dim"), ("decoder_num_heads", "decoder_embed_dim"))
    ):
        return
    different = [
        f"{name} {value} (recipe {recipe[name]})"
        for name, value in shapes.items()
        if name in recipe and not _same(value, recipe[name])
    ]
    raise MisuseError(
        f"--init {path}: is of another size than the recipe's model ({', '.join(different)}); "
        "change the recipe's model, or take another file"
    )


def check_given(path: Path, geometry: Geometry, given: dict[str, Any]) -> None:
    """Raises MisuseError where a given field is unknown, or is another than the model's."""
    known = msgspec.structs.asdict(geometry)
    for name, wanted in given.items():
        if name not in known:
            raise MisuseError(f"model.{name} is no field of a model; there are {', '.join(known)}")
        if not _same(known[name], wanted):
            raise MisuseError(
                f"{path}: model.{name} is {known[name]!r}, {wanted!r} was asked for; "
                "leave it out, or take another model"
            )


class Coded(NamedTuple):
    """Weights without a position code, and what is worth knowing of that."""

    state: dict[str, Tensor]
    remarks: tuple[str, ...] = ()


def without_position_code(path: Path, geometry: Geometry, state: dict[str, Tensor]) -> Coded:
    """The weights without a stored position code, which some copies of the original keep beside them.

    Raises DataError where it is not the fixed one (a learned code can't be used), and for a class token.
    """
    for name in ("cls_token", "encoder.cls_token"):
        if name in state:
            raise DataError(f"{path}: has a class token ({name}), which these models have not; take another file")
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
                f"{path}: {name} is a position code of {_by(stored)} numbers, {geometry.num_frames} frames of "
                f"{geometry.image_size} px have {geometry.num_tokens} × {dim}; say which clips the model is for "
                "(image_size, num_frames), or take another file"
            )
        if not _is_rounded(stored, position_code(geometry, dim)):
            raise DataError(f"{path}: {name} is a learned position code; only the fixed ones can be used")
        dropped.append(name)
    if not dropped:
        return Coded(state)
    return Coded(state, (f"{', '.join(dropped)}: the fixed position code, which is computed, not kept; left out",))


def _is_rounded(stored: Tensor, code: Tensor) -> bool:
    """Whether numbers are the code's, as it is or as kept in half precision, also where they were widened since."""
    stored = stored.float().reshape(code.shape)
    return any(
        torch.equal(stored.to(kind).float(), stored)
        and stored.allclose(code, rtol=max(torch.finfo(kind).eps / 2, 1e-5), atol=1e-5)
        for kind in (torch.float32, torch.float16, torch.bfloat16)
    )


def _by(x: Tensor) -> str:
    return " × ".join(map(str, x.shape))


_TOLD = ("image_size", "num_frames", "num_heads", "decoder_num_heads")


def _shapes(foreign: Foreign) -> dict[str, Any]:
    """What the shapes of the weights tell."""
    state, pretrain = foreign.state, foreign.kind == "pretrain"
    prefix = "encoder." if pretrain else ""
    proj = _weight(foreign, f"{prefix}patch_embed.proj.weight", axes=5)
    embed_dim, colours, tubelet, patch, across = proj.shape
    if colours != 3 or patch != across:
        raise DataError(f"{foreign.path}: cubes of {tuple(proj.shape)[1:]}; wanted 3 colours and a square patch")
    fc1 = _weight(foreign, f"{prefix}blocks.0.mlp.fc1.weight", axes=2)
    found: dict[str, Any] = {
        "embed_dim": embed_dim,
        "tubelet_size": tubelet,
        "patch_size": patch,
        "depth": _depth(state, f"{prefix}blocks."),
        "mlp_ratio": len(fc1) / embed_dim,
    }
    if not pretrain:
        return found
    decoder_dim = len(_weight(foreign, "encoder_to_decoder.weight", axes=2))
    hidden = len(_weight(foreign, "decoder.blocks.0.mlp.fc1.weight", axes=2))
    found |= {"decoder_embed_dim": decoder_dim, "decoder_depth": _depth(state, "decoder.blocks.")}
    if hidden != int(decoder_dim * found["mlp_ratio"] + 1e-6):
        found["decoder_mlp_ratio"] = hidden / decoder_dim
    return found


def _weight(foreign: Foreign, name: str, *, axes: int) -> Tensor:
    found = foreign.state.get(name)
    if found is None or found.ndim != axes:
        what = "lacks" if found is None else f"has with {found.ndim} axes"
        raise DataError(f"{foreign.path}: no VideoMAE: {what} {name}; take another file")
    return found


def _depth(state: dict[str, Tensor], prefix: str) -> int:
    numbers = [int(found[1]) for name in state if (found := re.match(rf"{re.escape(prefix)}(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _assumed(fixed: dict[str, Any], *, pretrain: bool) -> dict[str, Any]:
    """What a published model of these sizes has; and the code that all published models have."""
    size = published_size(fixed["embed_dim"], fixed["depth"])
    assumed: dict[str, Any] = {"position": "sinusoid-1d"}
    if size is not None:
        assumed |= {"num_heads": size.num_heads, "num_frames": _PUBLISHED_FRAMES}
        if size.patch_size == fixed["patch_size"]:
            assumed["image_size"] = size.image_size
    if pretrain:
        heads = _DECODER_HEADS.get(fixed["decoder_embed_dim"])
        return {**assumed, "decoder_num_heads": heads} if size is not None and heads else assumed
    return {**assumed, **_decoder_of(size, fixed["embed_dim"])}


def _decoder_of(size: PublishedSize | None, embed_dim: int) -> dict[str, int]:
    """A model with a head has no decoder; its description names the one its size is published with, or any."""
    if size is None:
        return {"decoder_embed_dim": embed_dim, "decoder_depth": 1, "decoder_num_heads": 1}
    return {name: getattr(size, name) for name in ("decoder_embed_dim", "decoder_depth", "decoder_num_heads")}


def _classes(foreign: Foreign, classes: Sequence[str] | None) -> tuple[str, ...]:
    outputs = len(_weight(foreign, "head.weight", axes=2))
    names = tuple(classes or foreign.classes or (str(number) for number in range(outputs)))
    if len(names) != outputs:
        whose = "were given" if classes else "are named"
        raise MisuseError(f"{foreign.path}: its head has {outputs} outputs, {len(names)} classes {whose}")
    return names


def _same(known: Any, wanted: Any) -> bool:
    if isinstance(known, float) and isinstance(wanted, int | float):
        return abs(known - wanted) <= 1e-9 * abs(known)
    return bool(known == (tuple(wanted) if isinstance(wanted, list) else wanted))
