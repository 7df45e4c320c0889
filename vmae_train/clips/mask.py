"""Which tokens of a clip the encoder sees: tube masks, the same places hidden in every slice.

A token's number is slice * places + place. Tong et al., "VideoMAE", NeurIPS 2022, section 3.3; the count of
masked places is int(ratio * places), as in the original.

B batch, P places of a slice, V visible tokens, M masked tokens, K decoded tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import torch
from einops import rearrange
from jaxtyping import Int64
from torch import Tensor

from vmae_data.draws import Purpose
from vmae_train.clips.draws import ClipDraws, permutation

__all__ = ["MaskSpec", "TubeMask", "num_masked_places", "tube_mask"]


class MaskSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of a clip is hidden, and in what pattern."""

    kind: Literal["tube"] = "tube"
    ratio: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise ValueError(f"mask.ratio = {self.ratio} must lie between 0 and 1, both excluded")


class TubeMask(NamedTuple):
    """Token numbers, ascending; every sample of a batch hides equally many. `decoded_BK` None: all masked."""

    visible_BV: Int64[Tensor, "B V"]
    masked_BM: Int64[Tensor, "B M"]
    decoded_BK: Int64[Tensor, "B K"] | None = None


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


def tube_mask(draws: ClipDraws, *, slices: int, places: int, ratio: float) -> TubeMask:
    """Hide the first int(ratio * places) places of a random order of each sample's places.

    Raises ValueError when nothing or everything would be hidden.
    """
    count = num_masked_places(places=places, ratio=ratio)
    numbers = torch.arange(places, device=draws.sample_B.device)
    order_BP = permutation(draws.bits(Purpose.MASK, numbers))
    return TubeMask(
        visible_BV=_tubes(order_BP[:, count:], slices=slices, places=places),
        masked_BM=_tubes(order_BP[:, :count], slices=slices, places=places),
    )


def _tubes(place_BN: Tensor, *, slices: int, places: int) -> Tensor:
    first_S = torch.arange(slices, device=place_BN.device) * places
    token_BSN = first_S[:, None] + place_BN.sort(dim=-1).values[:, None]
    return rearrange(token_BSN, "b s n -> b (s n)")
