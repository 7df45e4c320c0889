"""A mask specification and an rng → the visible and the masked tokens of each clip.

Token number = slice * patches + patch. A tube mask hides the same patches in every slice (Tong et al., "VideoMAE",
NeurIPS 2022, section 3.3); like the original code, it hides int(ratio * patches) of them. The decoder's running cell
is from Wang et al., "VideoMAE V2", CVPR 2023, section 3.2. A motion mask prefers what moves, as in Fan et al.,
"Motion-Guided Masking for Spatiotemporal Representation Learning", ICCV 2023; the rule is this project's own.

B batch, S slices, P patches per slice, N tokens, V visible, M masked, K decoded, U unscored tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Int32, Int64
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_data.motion import CELL as MOTION_CELL
from vmae_data.read.dataset import Shards
from vmae_data.recipes import check_bounds
from vmae_data.rng import Purpose, fine_uniform
from vmae_train.clips.boxes import Boxes
from vmae_train.clips.loader import Batch
from vmae_train.clips.rng import ClipRng, integer, permutation

__all__ = [
    "Grid",
    "MaskKind",
    "MaskSpec",
    "TokenMask",
    "TubeMask",
    "batch_mask",
    "check_vectors",
    "motion_of_patches",
    "num_masked_patches",
    "num_masked_tokens",
    "sample_mask",
    "tube_mask",
]

MaskKind = Literal["tube", "random", "frame", "motion"]
CELL = 2  # patches along one side of the running cell
POINTS = 4  # along one side of a patch, at which its motion is read


class MaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a clip is masked, and in which pattern.

    `kind`: `tube` masks the same patches in every slice, `random` single tokens, `frame` complete slices. `motion` masks
    equally many patches in every slice, and rather those that move: `_motion_mask` is the rule.
    `motion_weight`: how much rather. 0 gives tubes.
    `decoder`: `all` predicts every masked token. The others skip the share `decoder_ratio` of them. `random` draws the
    skipped tokens. `running-cell` skips patches of each cell of 2 × 2. The skipped patches move with every slice.
    """

    kind: MaskKind = "tube"  # pattern of the mask
    ratio: float = 0.9  # share of the tokens that is masked
    decoder: Literal["all", "random", "running-cell"] = "all"  # which masked tokens are predicted
    decoder_ratio: float = 0.5  # share of the masked tokens that is skipped
    motion_weight: float = 1.0  # preference for moving patches, with `motion`

    def __post_init__(self) -> None:
        check_bounds(self, decoder_ratio=(0, 1), motion_weight=(0, 1000))
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio = {self.ratio}: expected a number between 0 and 1, both excluded")
        if self.decoder == "random" and not 0 < self.decoder_ratio < 1:
            raise ValueError(
                f"mask.decoder_ratio = {self.decoder_ratio:g}: expected a number between 0 and 1, both excluded"
            )
        if self.decoder != "running-cell":
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
    if spec.kind in ("tube", "motion"):
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


def check_vectors(shards: Shards) -> None:
    """Raises MisuseError for shards whose codec has no motion vectors, or whose frames are all key frames."""
    index = shards.index
    if index.profile not in ("h264", "mpeg4", "copy"):
        found = f"profile = {index.profile}, which has no motion vectors"
    elif index.profile != "copy" and index.recipe.get("gop") == 1:
        found = "gop = 1, and key frames have no motion vectors"
    else:
        return
    raise MisuseError(
        f"mask.kind = motion: {shards.url} was built with {found}. Use another mask.kind, or shards of profile h264 "
        "with a larger gop"
    )


def sample_mask(
    spec: MaskSpec, rng: ClipRng, grid: Grid, motion_BSP: Int64[Tensor, "B S P"] | None = None
) -> TokenMask:
    """A mask for each sample of a batch, on its device. Only motion masks read `motion_BSP`.

    Raises ValueError as `num_masked_tokens` does, and for a motion mask of clips whose motion is unknown.
    """
    mask = _sample_kind(spec, rng, grid, motion_BSP)
    if spec.decoder == "all":
        return mask
    if spec.decoder == "random":
        return mask._replace(decoded_BK=_in_random_part(spec, mask.masked_BM, rng))
    return mask._replace(
        decoded_BK=_in_running_cell(spec, mask.masked_BM, rng, grid),
        unscored_BU=_in_running_cell(spec, mask.visible_BV, rng, grid),
    )


def _sample_kind(spec: MaskSpec, rng: ClipRng, grid: Grid, motion_BSP: Int64[Tensor, "B S P"] | None) -> TokenMask:
    """As `sample_mask`, with all masked tokens decoded."""
    count = num_masked_tokens(spec, grid)
    if spec.kind == "motion":
        if motion_BSP is None:
            raise ValueError("mask.kind = motion: the motion of these clips is not known. Use another kind of mask")
        return _motion_mask(spec, rng, motion_BSP)
    if spec.kind == "tube":
        return tube_mask(rng, slices=grid.slices, patches=grid.patches, ratio=spec.ratio)
    size = {"frame": grid.patches, "random": 1}[spec.kind]  # tokens that are masked together
    device, hidden = rng.sample_B.device, count // size
    order_BN = permutation(rng.bits(Purpose.MASK, torch.arange(grid.tokens // size, device=device)))
    within = torch.arange(size, device=device)
    visible_BV, masked_BM = (
        rearrange(unit_BN.sort(dim=-1).values[..., None] * size + within, "b n e -> b (n e)")
        for unit_BN in (order_BN[:, hidden:], order_BN[:, :hidden])
    )
    return TokenMask(visible_BV, masked_BM)


def batch_mask(spec: MaskSpec, rng: ClipRng, grid: Grid, batch: Batch, boxes: Boxes) -> TokenMask:
    """The mask of the clips that the boxes cut from a batch. Raises ValueError as `sample_mask` does."""
    if spec.kind != "motion" or batch.motion_BFHW is None:
        return sample_mask(spec, rng, grid)
    return sample_mask(spec, rng, grid, motion_of_patches(batch.motion_BFHW, batch.index_BVT, boxes, grid))


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


def _motion_mask(spec: MaskSpec, rng: ClipRng, motion_BSP: Int64[Tensor, "B S P"]) -> TokenMask:
    """In each slice, mask patches by weighted sampling without replacement.

    The weight of a patch is 1 + motion_weight · its motion / the mean motion of its slice. A patch has one exponential
    number E for all slices, and the smallest E / weight are masked. So the mask follows what moves, and is a tube where
    nothing moves: the tube of `tube_mask`, whose order of the patches is that of E. The numbers E come in float64 from
    the host, sums are of integers, and divisions are exact to the bit: every device gives the same mask.
    """
    device, patches = rng.sample_B.device, motion_BSP.shape[-1]
    count = num_masked_patches(patches=patches, ratio=spec.ratio)
    number_BP = -np.log1p(-fine_uniform(rng.host.bits(Purpose.MASK, np.arange(patches))))
    number_B1P = torch.from_numpy(number_BP).to(device, non_blocking=True)[:, None]
    total_BS1 = motion_BSP.sum(dim=-1, keepdim=True).clamp_min(1)
    weight_BSP = 1 + spec.motion_weight * ((motion_BSP * patches).double() / total_BS1.double())
    order_BSP = (number_B1P / weight_BSP).argsort(dim=-1, stable=True)
    first_S1 = torch.arange(motion_BSP.shape[1], device=device)[:, None] * patches
    visible_BV, masked_BM = (
        rearrange(first_S1 + patch_BSN.sort(dim=-1).values, "b s n -> b (s n)")
        for patch_BSN in (order_BSP[..., count:], order_BSP[..., :count])
    )
    return TokenMask(visible_BV, masked_BM)


def motion_of_patches(
    motion_BFHW: Int32[Tensor, "B F H W"], index_BVT: Int64[Tensor, "B V T"] | None, boxes: Boxes, grid: Grid
) -> Int64[Tensor, "BR S P"]:
    """The motion of cells of the decoded frames → that of each patch and slice of the cropped and flipped clips.

    It is the sum over the frames of the slice and over 4 × 4 points of the patch. `motion_BFHW` is as in a `Batch`. R
    boxes per sample, sample-major, give R clips per sample.
    """
    if index_BVT is not None:
        motion_BFHW = motion_BFHW.take_along_dim(rearrange(index_BVT, "b v t -> b (v t)")[..., None, None], dim=1)
    rows_BI = _cell_at(boxes.top_B, boxes.height_B, grid.rows, motion_BFHW.shape[2])
    columns_BJ = _cell_at(boxes.left_B, boxes.width_B, grid.columns, motion_BFHW.shape[3])
    columns_BJ = torch.where(boxes.flip_B[:, None], columns_BJ.flip(-1), columns_BJ)
    slice_BHWS = reduce(motion_BFHW.long(), "b (s t) h w -> b h w s", "sum", s=grid.slices)
    repeats = len(rows_BI) // len(slice_BHWS)
    sample_B11 = torch.arange(len(rows_BI), device=rows_BI.device)[:, None, None] // repeats
    points_BIJS = slice_BHWS[sample_B11, rows_BI[:, :, None], columns_BJ[:, None, :]]
    return reduce(points_BIJS, "b (r i) (c j) s -> b s (r c)", "sum", i=POINTS, j=POINTS)


def _cell_at(start_B: Tensor, extent_B: Tensor, patches: int, cells: int) -> Tensor:
    """The cell of each point along one side: `POINTS` at equal distances for each patch. Boxes are of whole pixels."""
    count = POINTS * patches
    twice = 2 * torch.arange(count, device=start_B.device) + 1
    pixel_BI = (2 * count * start_B.long()[:, None] + twice * extent_B.long()[:, None]) // (2 * count)
    return (pixel_BI // MOTION_CELL).clamp(0, cells - 1)


def _in_random_part(spec: MaskSpec, token_BM: Tensor, rng: ClipRng) -> Tensor:
    """Some of the masked tokens, ascending: int(decoder_ratio * M) are skipped."""
    count = token_BM.shape[1] - int(spec.decoder_ratio * token_BM.shape[1])
    order_BM = permutation(rng.bits(Purpose.DECODED, torch.arange(token_BM.shape[1], device=token_BM.device)))
    return token_BM.gather(1, order_BM[:, :count].sort(dim=-1).values)


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
