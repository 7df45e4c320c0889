"""uint8 frames → RandAugment: a sequence of random operations, the same for all frames of a clip.

Cubuk et al., "RandAugment", 2020, in the form `rand-mM-nN-mstdS-inc1` of VideoMAE's finetuning: 15 operations whose
strength grows with the magnitude, which is sampled from a normal distribution for each operation.

B clips, L layers (operations in sequence).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose, integer, normal, uniform
from vmae_train.clips import image_ops
from vmae_train.clips.affine import Interpolation, affine
from vmae_train.clips.rng import HostRng

__all__ = ["Op", "Policy", "RandAugmentSpec", "rand_augment", "sample_policy"]

MAX_MAGNITUDE = 10.0
SKIPPED = -1


class Op(IntEnum):
    """The operations, numbered as they are sampled. Numbers are part of the format of a run: never renumber."""

    AUTO_CONTRAST = 0
    EQUALIZE = 1
    INVERT = 2
    ROTATE = 3
    POSTERIZE = 4
    SOLARIZE = 5
    SOLARIZE_ADD = 6
    COLOR = 7
    CONTRAST = 8
    BRIGHTNESS = 9
    SHARPNESS = 10
    SHEAR_X = 11
    SHEAR_Y = 12
    TRANSLATE_X = 13
    TRANSLATE_Y = 14


# The greatest strength of geometric operations: degrees, or shares of a side.
_GEOMETRIC = {Op.ROTATE: 30, Op.SHEAR_X: 0.3, Op.SHEAR_Y: 0.3, Op.TRANSLATE_X: 0.45, Op.TRANSLATE_Y: 0.45}


class RandAugmentSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`layers` operations are sampled for a clip; each is applied with probability `prob`.

    `magnitude` and `magnitude_std` are on a scale of 0 to 10.
    """

    layers: int = 4  # operations sampled for a clip
    magnitude: float = 7.0  # mean strength, 0 to 10
    magnitude_std: float = 0.5  # its standard deviation
    prob: float = 0.5  # of each operation
    interpolation: Interpolation = "bicubic"  # of the geometric operations

    def __post_init__(self) -> None:
        check_bounds(self, layers=(1, 100), magnitude=(0, MAX_MAGNITUDE), magnitude_std=(0, 1000), prob=(0, 1))


class Policy(NamedTuple):
    """The operations of each clip, on the host because they decide which work is done.

    `op_BL`: an Op, or -1 for none. `level_BL`: the magnitude, 0 to 10. `sign_BL`: 1 or -1.
    """

    op_BL: NDArray[np.int64]
    level_BL: NDArray[np.float64]
    sign_BL: NDArray[np.float64]


def sample_policy(spec: RandAugmentSpec, rng: HostRng) -> Policy:
    """Operations are sampled with replacement."""
    layer_L = np.arange(spec.layers)
    op_BL = integer(rng.bits(Purpose.RANDAUGMENT_OP, layer_L), len(Op))
    applied_BL = uniform(rng.bits(Purpose.RANDAUGMENT_APPLY, layer_L)) < spec.prob
    noise_BL = normal(rng.bits(Purpose.RANDAUGMENT_MAGNITUDE, layer_L))
    return Policy(
        op_BL=np.where(applied_BL, op_BL, SKIPPED),
        level_BL=np.clip(spec.magnitude + spec.magnitude_std * noise_BL, 0, MAX_MAGNITUDE),
        sign_BL=np.where(integer(rng.bits(Purpose.RANDAUGMENT_SIGN, layer_L), 2) == 1, -1.0, 1.0),
    )


def rand_augment(
    frames: UInt8[Tensor, "B C T H W"], size_B2: Int64[Tensor, "B 2"], policy: Policy, interpolation: Interpolation
) -> UInt8[Tensor, "B C T H W"]:
    """Apply the policy to full frames; `frames` is not changed.

    In each layer, all clips with the same operation form one batch. No step waits for the device.
    """
    frames = frames.clone()
    for op_B, level_B, sign_B in zip(policy.op_BL.T, policy.level_BL.T, policy.sign_BL.T, strict=True):
        is_geometric_B = np.isin(op_B, list(_GEOMETRIC))
        groups = [(Op(op), op_B == op) for op in np.unique(op_B[~is_geometric_B]) if op != SKIPPED]
        for op, chosen_B in groups:
            index = _to(np.flatnonzero(chosen_B), frames)
            strength = np.array(
                [strength_of(op, v, s) for v, s in zip(level_B[chosen_B], sign_B[chosen_B], strict=True)]
            )
            changed = _colour_op(op, frames[index], size_B2[index], _to(strength.astype(np.float32), frames))
            frames.index_copy_(0, index, changed)
        if is_geometric_B.any():
            rows = np.flatnonzero(is_geometric_B)
            index = _to(rows, frames)
            matrix = _matrices([(Op(op_B[row]), level_B[row], sign_B[row]) for row in rows], size_B2[index])
            frames.index_copy_(0, index, affine(frames[index], size_B2[index], matrix, interpolation))
    return frames


def strength_of(op: Op, level: float, sign: float) -> float:
    """The parameter of an operation at a magnitude: degrees, bits, a threshold, a factor or a share."""
    share = level / MAX_MAGNITUDE
    if op is Op.POSTERIZE:
        return 4.0 - int(share * 4)
    if op is Op.SOLARIZE:
        return 256.0 - int(share * 256)
    if op is Op.SOLARIZE_ADD:
        return float(int(share * 110))
    if op in (Op.COLOR, Op.CONTRAST, Op.BRIGHTNESS, Op.SHARPNESS):
        return 1.0 + sign * share * 0.9
    if op in _GEOMETRIC:
        return sign * share * _GEOMETRIC[op]
    return 0.0  # auto contrast, equalize and invert have no strength


def _colour_op(op: Op, frames: Tensor, size_N2: Tensor, strength_N: Tensor) -> Tensor:
    if op is Op.COLOR:
        return image_ops.colour(frames, strength_N)
    if op is Op.SHARPNESS:
        return image_ops.sharpness(frames, size_N2, strength_N)
    by_strength = {
        Op.INVERT: image_ops.invert_table,
        Op.POSTERIZE: image_ops.posterise_table,
        Op.SOLARIZE: image_ops.solarise_table,
        Op.SOLARIZE_ADD: image_ops.solarise_add_table,
        Op.BRIGHTNESS: image_ops.brightness_table,
    }
    if op in by_strength:
        return image_ops.look_up(frames, by_strength[op](strength_N))
    inside = image_ops.inside_frame(size_N2, *frames.shape[-2:])
    if op is Op.CONTRAST:
        return image_ops.look_up(frames, image_ops.contrast_table(frames, inside, strength_N))
    by_frame = image_ops.equalise_table if op is Op.EQUALIZE else image_ops.autocontrast_table
    return image_ops.look_up(frames, by_frame(frames, inside))


def _matrices(ops: list[tuple[Op, float, float]], size_N2: Tensor) -> Tensor:
    """The inverse matrix of each clip, N 2 3: rotation about the centre, shear from the corner, translation."""
    linear = np.tile(np.eye(2), (len(ops), 1, 1))
    shift = np.zeros((len(ops), 2))  # in widths and heights of the frame
    for row, (op, level, sign) in enumerate(ops):
        strength = strength_of(op, level, sign)
        if op is Op.ROTATE:
            angle = -math.radians(strength)
            cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
            linear[row] = [[cos, sin], [-sin, cos]]
        elif op is Op.SHEAR_X:
            linear[row, 0, 1] = strength
        elif op is Op.SHEAR_Y:
            linear[row, 1, 0] = strength
        else:
            shift[row, 0 if op is Op.TRANSLATE_X else 1] = strength
    rotated = np.array([[op is Op.ROTATE] for op, _, _ in ops])
    linear_N22, shift_N2, rotated_N1 = (_to(x, size_N2) for x in (linear, shift, rotated))
    size_N2 = size_N2.flip(-1).double()  # x before y
    centre_N2 = size_N2 / 2
    # Products and sums as separate steps, as in PIL.
    back_N2 = centre_N2 - (linear_N22[..., 0] * centre_N2[:, :1] + linear_N22[..., 1] * centre_N2[:, 1:])
    offset_N2 = torch.where(rotated_N1, back_N2, shift_N2 * size_N2)
    return torch.cat((linear_N22, offset_N2[..., None]), dim=-1)


def _to(values: NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(values).to(like.device, non_blocking=True)
