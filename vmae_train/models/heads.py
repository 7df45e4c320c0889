"""Models with a head: one class, several classes, values.

B batch, T frames, H rows, W columns, N tokens, E channels, K outputs of a head.
"""

from __future__ import annotations

import msgspec
import torch
from jaxtyping import Float
from torch import Tensor, nn

from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, uniform
from vmae_train.models.base import VideoModel, encoder_blocks, generator_of
from vmae_train.models.geometry import Geometry
from vmae_train.models.pooling import AttentivePooler
from vmae_train.models.vit import PatchEmbed, run_blocks

__all__ = ["Classifier", "HeadModel", "MultiLabelClassifier", "RegressedValue", "Regressor"]


class HeadModel(VideoModel):
    """An encoder that sees all tokens, their mean (or an attentive pooling), a norm and a linear head.

    First weights are a pure function of `seed`; None leaves them for a loader to fill.
    """

    def __init__(self, geometry: Geometry, classes: tuple[str, ...], num_outputs: int, *, seed: int | None) -> None:
        super().__init__(geometry, classes)
        self.frozen = False
        dim = geometry.embed_dim
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(geometry)
            self.blocks = encoder_blocks(geometry)
            if geometry.pooling == "attentive":
                self.pooler = AttentivePooler(dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
            self.fc_norm = nn.LayerNorm(dim, eps=geometry.fc_eps)
            self.head = nn.Linear(dim, num_outputs)
        generator = generator_of(seed)
        self._fill(generator, geometry.init or "trunc")
        if generator is not None:
            with torch.no_grad():
                self.head.weight.mul_(geometry.init_scale)
            if geometry.pooling == "attentive":
                self.pooler.reset_query(generator)

    def freeze_encoder(self) -> None:
        """From now on only pooling, norm and head learn: a probe. Nothing is dropped in a frozen encoder."""
        self.frozen = True
        self.patch_embed.requires_grad_(False)
        self.blocks.requires_grad_(False)

    def features(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], rng: ClipRng | None = None) -> Float[Tensor, "B E"]:
        """One vector a clip: its tokens' mean, or what the pooling takes of them, normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x_BNE = self.patch_embed(clips_BCTHW) + self.position_NE
            scale = None if self.frozen else self._drop_path(rng)
            x_BNE = run_blocks(self.blocks, x_BNE, scale, checkpointing=self.options.activation_checkpointing)
        pooled_BE = self.pooler(x_BNE) if self.geometry.pooling == "attentive" else x_BNE.mean(dim=1)
        features_BE: Tensor = self.fc_norm(pooled_BE)
        return features_BE

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], rng: ClipRng | None = None) -> Float[Tensor, "B K"]:
        """The head's outputs: logits, in the order of `classes`."""
        features_BE = self.features(clips_BCTHW, rng)
        rate = self.options.fc_drop_rate
        if rng is not None and self.training and rate:
            numbers = torch.arange(features_BE.shape[1], device=features_BE.device)
            kept_BE = uniform(rng.bits(Purpose.DROPOUT, numbers)) >= rate
            features_BE = features_BE * kept_BE / (1 - rate)
        outputs_BK: Tensor = self.head(features_BE)
        return outputs_BK


class Classifier(HeadModel):
    """Names the one class of a clip: softmax over `classes`."""

    def __init__(self, geometry: Geometry, classes: tuple[str, ...], *, seed: int | None = 0) -> None:
        if not classes:
            raise ValueError("a classifier needs at least one class; got none")
        super().__init__(geometry, tuple(classes), len(classes), seed=seed)


class MultiLabelClassifier(HeadModel):
    """Says of every class whether a clip shows it: a sigmoid each."""

    def __init__(self, geometry: Geometry, classes: tuple[str, ...], *, seed: int | None = 0) -> None:
        if not classes:
            raise ValueError("a classifier needs at least one class; got none")
        super().__init__(geometry, tuple(classes), len(classes), seed=seed)


class RegressedValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that a regressor predicts, with mean and spread of the training set, in the value's own units."""

    name: str
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"value {self.name}: spread {self.spread} must be above 0")


class Regressor(HeadModel):
    """Predicts values in their own units. The head works in spreads from the mean, so that any unit can be learnt."""

    value_mean_K: Tensor
    spread_K: Tensor

    def __init__(self, geometry: Geometry, values: tuple[RegressedValue, ...], *, seed: int | None = 0) -> None:
        if not values:
            raise ValueError("a regressor needs at least one value; got none")
        super().__init__(geometry, (), len(values), seed=seed)
        self.values = tuple(values)
        self.register_buffer("value_mean_K", torch.tensor([value.mean for value in values]), persistent=False)
        self.register_buffer("spread_K", torch.tensor([value.spread for value in values]), persistent=False)

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], rng: ClipRng | None = None) -> Float[Tensor, "B K"]:
        """Values, in the order of `values`, float32."""
        outputs_BK: Tensor = super().forward(clips_BCTHW, rng).float()
        return outputs_BK * self.spread_K + self.value_mean_K
