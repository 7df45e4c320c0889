"""A mask specification and an rng → the visible and the masked tokens of each clip.

Token number = slice * patches + patch. A tube mask hides the same patches in every slice (Tong et al., "VideoMAE",
NeurIPS 2022, section 3.3); like the original code, it hides int(ratio * patches) of them. The decoder's running cell
is from Wang et al., "VideoMAE V2", CVPR 2023, section 3.2.

B batch, S slices, P patches per slice, N tokens, V visible, M masked, K decoded, U unscored tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, integer, permutation

__all__ = [
    "Grid",
    "MaskSpec",
    "TokenMask",
    "TubeMask",
    "num_masked_patches",
    "num_masked_tokens",
    "sample_mask",
    "tube_mask",
]

CELL = 2  # patches along one side of the running cell


class MaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a clip is masked, and in which pattern.

    `kind`: `tube` masks the same patches in every slice, `random` single tokens, `frame` complete slices.
    `decoder`: `all` predicts every masked token. `running-cell` predicts a part of them: it skips the share
    `decoder_ratio` of the patches of each cell of 2 × 2. The skipped patches move with every slice.
    """

    kind: Literal["tube", "random", "frame"] = "tube"
    ratio: float = 0.9
    decoder: Literal["all", "running-cell"] = "all"
    decoder_ratio: float = 0.5

    def __post_init__(self) -> None:
        check_bounds(self, decoder_ratio=(0, 1))
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio = {self.ratio}: expected a number between 0 and 1, both excluded")
        if self.decoder == "all":
            return
        if not 1 <= self.skipped_per_cell < CELL**2:
            raise ValueError(
                f"mask.decoder_ratio = {self.decoder_ratio} skips {self.skipped_per_cell} of the {CELL**2} patches of "
                "a cell. Use 0.25, 0.5 or 0.75"
            )
        if self.kind != "tube":
            raise ValueError(
                f"mask.kind = {self.kind}, mask.decoder = running-cell: only tube masks give every sample the same "
                "number of tokens to decode. Use mask.kind = tube"
            )

    @property
    def skipped_per_cell(self) -> int:
        """Patches of a cell that the decoder skips in one slice."""
        return int(CELL**2 * self.decoder_ratio)


class Grid(NamedTuple):
    """Tokens of a clip: slices in time, rows and columns of patches."""

    slices: int
    rows: int
    columns: int

    @property
    def patches(self) -> int:
        """Patches of one slice."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        return self.slices * self.patches


class TokenMask(NamedTuple):
    """Token numbers, ascending. Every sample of a batch has the same counts. `decoded_BK` None: all masked tokens.

    `unscored_BU`: visible tokens that the decoder receives as masked. The loss ignores its predictions for them
    (VideoMAEv2's models/modeling_pretrain.py and engine).
    """

    visible_BV: Int64[Tensor, "B V"]
    masked_BM: Int64[Tensor, "B M"]
    decoded_BK: Int64[Tensor, "B K"] | None = None
    unscored_BU: Int64[Tensor, "B U"] | None = None

    @property
    def predicted_BK(self) -> Int64[Tensor, "B K"]:
        """The tokens that count in the loss."""
        return self.masked_BM if self.decoded_BK is None else self.decoded_BK


TubeMask = TokenMask  # the public name of earlier versions


def num_masked_tokens(spec: MaskSpec, grid: Grid) -> int:
    """Masked tokens of a clip. Raises ValueError if that is none or all of them, or if cells do not fit the grid."""
    if spec.decoder == "running-cell" and (grid.rows % CELL or grid.columns % CELL or grid.slices % CELL**2):
        raise ValueError(
            f"mask.decoder = running-cell: a clip has {grid.slices} slices of {grid.rows} × {grid.columns} patches; expected "
            f"even sides and a multiple of {CELL**2} slices, for the same number of tokens to decode in every sample"
        )
    if spec.kind == "tube":
        return grid.slices * num_masked_patches(patches=grid.patches, ratio=spec.ratio)
    if spec.kind == "frame":
        return grid.patches * _num_masked(grid.slices, spec.ratio, "slices")
    assert spec.kind == "random"
    return _num_masked(grid.tokens, spec.ratio, "tokens")


def num_masked_patches(*, patches: int, ratio: float) -> int:
    """Masked patches of a slice: int(ratio * patches). Raises ValueError if that is none or all of them."""
    return _num_masked(patches, ratio, "patches of a slice")


def _num_masked(total: int, ratio: float, unit: str) -> int:
    count = int(ratio * total)
    if not 0 < count < total:
        raise ValueError(
            f"mask.ratio = {ratio} masks {count} of {total} {unit}; expected at least one masked and one visible"
        )
    return count


def sample_mask(spec: MaskSpec, rng: ClipRng, grid: Grid) -> TokenMask:
    """A mask for each sample of a batch, on its device. Raises ValueError as `num_masked_tokens` does."""
    count = num_masked_tokens(spec, grid)
    if spec.kind == "tube":
        mask = tube_mask(rng, slices=grid.slices, patches=grid.patches, ratio=spec.ratio)
        if spec.decoder == "all":
            return mask
        return mask._replace(
            decoded_BK=_in_running_cell(spec, mask.masked_BM, rng, grid),
            unscored_BU=_in_running_cell(spec, mask.visible_BV, rng, grid),
        )
    size = {"frame": grid.patches, "random": 1}[spec.kind]  # tokens that are masked together
    device, hidden = rng.sample_B.device, count // size
    order_BN = permutation(rng.bits(Purpose.MASK, torch.arange(grid.tokens // size, device=device)))
    within = torch.arange(size, device=device)
    visible_BV, masked_BM = (
        rearrange(unit_BN.sort(dim=-1).values[..., None] * size + within, "b n e -> b (n e)")
        for unit_BN in (order_BN[:, hidden:], order_BN[:, :hidden])
    )
    return TokenMask(visible_BV, masked_BM)


def tube_mask(rng: ClipRng, *, slices: int, patches: int, ratio: float) -> TokenMask:
    """Mask the first int(ratio * patches) patches of a random order, which is each sample's own.

    Raises ValueError if no patch or every patch would be masked.
    """
    device, count = rng.sample_B.device, num_masked_patches(patches=patches, ratio=ratio)
    order_BP = permutation(rng.bits(Purpose.MASK, torch.arange(patches, device=device)))
    first_S1 = torch.arange(slices, device=device)[:, None] * patches
    visible_BV, masked_BM = (
        rearrange(first_S1 + patch_BN.sort(dim=-1).values[:, None], "b s n -> b (s n)")
        for patch_BN in (order_BP[:, count:], order_BP[:, :count])
    )
    return TokenMask(visible_BV, masked_BM)


def _in_running_cell(spec: MaskSpec, token_BM: Tensor, rng: ClipRng, grid: Grid) -> Tensor:
    """The tokens of some tubes that the running cell decodes.

    Patch (row, column) has number 2 · (row mod 2) + column mod 2 in its cell. A queue of four, which begins with the
    skipped ones, covers the numbers. Its head moves on by one with every slice, from one of four phases, as in
    VideoMAEv2's dataset/masking_generator.py. Four slices skip each patch equally often, so the count of a tube is fixed.
    """
    slice_BM, patch_BM = token_BM // grid.patches, token_BM % grid.patches
    number_BM = CELL * ((patch_BM // grid.columns) % CELL) + patch_BM % grid.columns % CELL
    phase_B = integer(rng.bits(Purpose.RUNNING_CELL), CELL**2)
    is_decoded_BM = (number_BM + slice_BM + phase_B[:, None]) % CELL**2 >= spec.skipped_per_cell
    # The count is the same in every sample. A stable sort moves the decoded tokens to the front without a shape that
    # depends on the data.
    count = token_BM.shape[1] * (CELL**2 - spec.skipped_per_cell) // CELL**2
    first_BK = (~is_decoded_BM).to(torch.int8).argsort(dim=-1, stable=True)[:, :count]
    return token_BM.gather(1, first_BK)
