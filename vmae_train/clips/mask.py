"""Which tokens of a clip the encoder sees, and which the decoder has to predict.

A token's number is slice * places + place. Tube masks hide the same places in every slice (Tong et al.,
"VideoMAE", NeurIPS 2022, section 3.3; the count of masked places is int(ratio * places), as in the original);
the decoder's running cell is of Wang et al., "VideoMAE V2", CVPR 2023, section 3.2.

B batch, S slices, P places of a slice, N tokens, V visible, M masked, K decoded, U unasked tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, integer, permutation

__all__ = ["Grid", "MaskSpec", "TubeMask", "draw_mask", "num_masked", "num_masked_places", "tube_mask"]

CELL = 2  # places a side of the running cell


class MaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a clip is hidden, and in what pattern.

    `kind`: `tube` hides the same places in every slice, `random` tokens anywhere, `frame` whole slices.
    `decoder`: `all` predicts every hidden token, `running-cell` those of them that a pattern of 2 × 2 cells, moving
    on from slice to slice, lets through; `decoder_ratio` is the share that it leaves out.
    """

    kind: Literal["tube", "random", "frame"] = "tube"
    ratio: float = 0.9
    decoder: Literal["all", "running-cell"] = "all"
    decoder_ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio = {self.ratio} must lie between 0 and 1, both excluded")
        if self.decoder == "all":
            return
        if not 1 <= self.left_out < CELL**2:
            raise ValueError(
                f"mask.decoder_ratio = {self.decoder_ratio} leaves out {self.left_out} of the {CELL**2} places of a "
                "cell; 0.25, 0.5 and 0.75 can be had"
            )
        if self.kind != "tube":
            raise ValueError(
                f"mask.kind = {self.kind}, mask.decoder = running-cell: only tubes leave every sample equally many "
                "tokens to decode; use mask.kind = tube"
            )

    @property
    def left_out(self) -> int:
        """Places of a cell that are not decoded in a slice."""
        return int(CELL**2 * self.decoder_ratio)


class Grid(NamedTuple):
    """Tokens of a clip: slices in time, rows and columns of places."""

    slices: int
    rows: int
    columns: int

    @property
    def places(self) -> int:
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.slices * self.places


class TubeMask(NamedTuple):
    """Token numbers, ascending; every sample of a batch hides equally many. `decoded_BK` None: all masked.

    `unasked_BU` are visible ones that a decoder's pattern lets through: the decoder is given a mask token for each of them
    too, and what it says there counts in no loss (VideoMAEv2's models/modeling_pretrain.py and engine).
    """

    visible_BV: Int64[Tensor, "B V"]
    masked_BM: Int64[Tensor, "B M"]
    decoded_BK: Int64[Tensor, "B K"] | None = None
    unasked_BU: Int64[Tensor, "B U"] | None = None

    @property
    def predicted_BK(self) -> Int64[Tensor, "B K"]:
        """The tokens that count in the loss."""
        return self.masked_BM if self.decoded_BK is None else self.decoded_BK


def num_masked(spec: MaskSpec, grid: Grid) -> int:
    """How many tokens of a clip are hidden. Raises ValueError where that is none or all, or a cell does not fit."""
    if spec.decoder == "running-cell" and (grid.rows % CELL or grid.columns % CELL or grid.slices % CELL**2):
        raise ValueError(
            f"mask.decoder = running-cell: {grid.slices} slices of {grid.rows} × {grid.columns} places; it needs even "
            f"sides, and slices in fours, so that every sample has equally many tokens to decode"
        )
    if spec.kind == "tube":
        return grid.slices * num_masked_places(places=grid.places, ratio=spec.ratio)
    parts, each, what = (grid.slices, grid.places, "slices") if spec.kind == "frame" else (grid.tokens, 1, "tokens")
    count = int(spec.ratio * parts)
    if not 0 < count < parts:
        raise ValueError(
            f"mask.ratio = {spec.ratio} hides {count} of {parts} {what}; at least one must be hidden and one visible"
        )
    return count * each


def draw_mask(spec: MaskSpec, rng: ClipRng, grid: Grid) -> TubeMask:
    """A mask for each sample of a batch, on its device.

    Raises ValueError as `num_masked` does.
    """
    count = num_masked(spec, grid)
    if spec.kind == "tube":
        mask = tube_mask(rng, slices=grid.slices, places=grid.places, ratio=spec.ratio)
        if spec.decoder == "all":
            return mask
        return mask._replace(
            decoded_BK=_let_through(spec, mask.masked_BM, rng, grid),
            unasked_BU=_let_through(spec, mask.visible_BV, rng, grid),
        )
    parts = grid.slices if spec.kind == "frame" else grid.tokens
    each = grid.tokens // parts
    order_BN = permutation(rng.bits(Purpose.MASK, torch.arange(parts, device=rng.sample_B.device)))
    hidden = count // each
    return TubeMask(visible_BV=_whole(order_BN[:, hidden:], each), masked_BM=_whole(order_BN[:, :hidden], each))


def _whole(part_BN: Tensor, each: int) -> Tensor:
    """The tokens of some parts of a clip, ascending."""
    within = torch.arange(each, device=part_BN.device)
    return rearrange(part_BN.sort(dim=-1).values[..., None] * each + within, "b n e -> b (n e)")


def _let_through(spec: MaskSpec, token_BM: Tensor, rng: ClipRng, grid: Grid) -> Tensor:
    """Those of some tubes' tokens that the running cell lets through.

    Place (row, column) is number 2 · (row mod 2) + column mod 2 of its cell, and a queue of four, of which the first
    are left out, is laid over the numbers. Its head moves on by one with every slice, so that what is left out moves
    back by one, from one of four phases: as in VideoMAEv2's code (dataset/masking_generator.py). Over four slices each
    place is left out equally often, so of tubes it always leaves the same number.
    """
    slice_BM, place_BM = token_BM // grid.places, token_BM % grid.places
    number_BM = CELL * ((place_BM // grid.columns) % CELL) + place_BM % grid.columns % CELL
    phase_B = integer(rng.bits(Purpose.RUNNING_CELL), CELL**2)
    is_decoded_BM = (number_BM + slice_BM + phase_B[:, None]) % CELL**2 >= spec.left_out
    # Equally many a sample: a stable sort brings them to the front without a shape that hangs on the data.
    count = token_BM.shape[1] * (CELL**2 - spec.left_out) // CELL**2
    first_BK = (~is_decoded_BM).to(torch.int8).argsort(dim=-1, stable=True)[:, :count]
    return token_BM.gather(1, first_BK)


def num_masked_places(*, places: int, ratio: float) -> int:
    """How many places of a slice are hidden: int(ratio * places).

    Raises ValueError when nothing or everything would be hidden.
    """
    count = int(ratio * places)
    if not 0 < count < places:
        raise ValueError(
            f"mask.ratio = {ratio} hides {count} of {places} places of a slice; "
            "at least one must be hidden and one visible"
        )
    return count


def tube_mask(rng: ClipRng, *, slices: int, places: int, ratio: float) -> TubeMask:
    """Hide the first int(ratio * places) places of a random order of each sample's places.

    Raises ValueError when nothing or everything would be hidden.
    """
    count = num_masked_places(places=places, ratio=ratio)
    numbers = torch.arange(places, device=rng.sample_B.device)
    order_BP = permutation(rng.bits(Purpose.MASK, numbers))
    return TubeMask(
        visible_BV=_tubes(order_BP[:, count:], slices=slices, places=places),
        masked_BM=_tubes(order_BP[:, :count], slices=slices, places=places),
    )


def _tubes(place_BN: Tensor, *, slices: int, places: int) -> Tensor:
    first_S = torch.arange(slices, device=place_BN.device) * places
    token_BSN = first_S[:, None] + place_BN.sort(dim=-1).values[:, None]
    return rearrange(token_BSN, "b s n -> b (s n)")
