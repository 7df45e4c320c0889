"""A trained encoder → features of clips: the tokens of a block, or their mean over a slice or the whole clip.

B clips, C colours, T frames, H rows, W columns, N tokens, S tubelet slices, P tokens of a slice, E channels.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from einops import rearrange
from torch import Tensor

from vmae_train.models.base import VideoModel
from vmae_train.models.heads import HeadModel
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import run_blocks

__all__ = ["FeatureSpec", "Pool", "clip_features"]

Pool = Literal["mean", "slice", "none"]


class FeatureSpec(NamedTuple):
    """Which block's output, counted from 1 [default: the last], and which of its tokens share a vector."""

    pool: Pool = "mean"
    layer: int | None = None

    def check(self, depth: int) -> None:
        """Raises ValueError for another pooling, and for a block that an encoder of `depth` blocks has not."""
        if self.pool not in get_args(Pool):
            raise ValueError(f"pool = {self.pool!r}: expected {', '.join(get_args(Pool))}")
        if self.layer is not None and (isinstance(self.layer, bool) or not isinstance(self.layer, int)):
            raise ValueError(f"layer = {self.layer!r}: expected an integer")
        if self.layer is not None and not 1 <= self.layer <= depth:
            raise ValueError(f"layer = {self.layer}: the encoder has blocks 1 to {depth}")


def clip_features(model: VideoModel, clips_BCTHW: Tensor, spec: FeatureSpec) -> Tensor:
    """(B, E) for `mean`, (B, S, E) for `slice`, (B, N, E) for `none`. `clips_BCTHW`: as `preprocess` gives them.

    The last block's output is normed where the model itself norms it. A pretraining model norms every token, before
    the mean. A model with a head norms the mean: of a clip, of a slice, or the single token. With attentive pooling
    its norm belongs to the pooler, so the tokens stay as they are; and so do those of any earlier block.
    """
    assert isinstance(model, PretrainModel | HeadModel)
    encoder = model.encoder if isinstance(model, PretrainModel) else model
    layer = spec.layer or model.geometry.depth
    x_BNE = encoder.patch_embed(clips_BCTHW) + model.position_NE
    x_BNE = run_blocks(encoder.blocks[:layer], x_BNE)
    is_last = layer == model.geometry.depth
    if is_last and isinstance(model, PretrainModel):
        x_BNE = model.encoder.norm(x_BNE)
    pooled = x_BNE
    if spec.pool == "mean":
        pooled = x_BNE.mean(dim=1)
    elif spec.pool == "slice":
        pooled = rearrange(x_BNE, "b (s p) e -> b s p e", s=model.geometry.slices).mean(dim=2)
    if is_last and isinstance(model, HeadModel) and model.geometry.pooling != "attentive":
        pooled = model.fc_norm(pooled)
    features: Tensor = pooled
    return features
