"""The pretraining model: the visible tokens of a clip → predictions of its masked cubes.

The models sample no random numbers themselves: drop path and dropout come from the `rng` argument, and are off without.

B batch, C colours, T frames, H rows, W columns, N tokens, V visible, M predicted, E channels, L blocks,
D values of a cube ((p0 p1 p2) c).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from vmae_train.clips.mask import Grid, TokenMask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.base import VideoModel, described
from vmae_train.models.geometry import Geometry
from vmae_train.models.losses import cube_targets, reconstruction_loss
from vmae_train.models.positions import position_embedding
from vmae_train.models.vit import Block, PatchEmbed, encoder_blocks, run_blocks

__all__ = ["Decoder", "Encoder", "PretrainModel", "grid_of"]


class PretrainModel(VideoModel):
    """Predicts the masked cubes from the visible ones.

    First weights are a pure function of `seed`; None leaves them for a loader to fill. Without `geometry.init` they
    are as published: VideoMAE's and VideoMAEv2's code initialise encoder and decoder, but not the two parts between.
    """

    decoder_position_NE: Tensor

    def __init__(self, geometry: Geometry, *, seed: int | None = 0) -> None:
        super().__init__(geometry)
        with torch.device("meta"):
            self.encoder = Encoder(geometry)
            self.encoder_to_decoder = nn.Linear(geometry.embed_dim, geometry.decoder_embed_dim, bias=False)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, geometry.decoder_embed_dim))
            self.decoder = Decoder(geometry)
        generator = self._materialise(seed, geometry.init or "xavier")
        if generator is not None:
            cut = 0.02 if geometry.init is None else 2.0  # the published code cuts the mask token at one std
            nn.init.trunc_normal_(self.mask_token, std=0.02, a=-cut, b=cut, generator=generator)
            if geometry.init is None:
                bound = 1 / math.sqrt(geometry.embed_dim)  # torch's own first weights of a linear map
                nn.init.uniform_(self.encoder_to_decoder.weight, -bound, bound, generator=generator)
        embedding_NE = position_embedding(geometry, geometry.decoder_embed_dim)
        self.register_buffer("decoder_position_NE", embedding_NE, persistent=False)

    def forward(self, clips_BCTHW: Tensor, mask: TokenMask, rng: ClipRng | None = None) -> Float[Tensor, "B M D"]:
        """Cubes of `mask.predicted_BK`, in that order, in units of `cube_targets`. `clips_BCTHW`: float (B, 3, T, H, W).

        Raises ValueError for clips and masks of other axes, another type or on another device. In eval mode also for
        values that `preprocess` never gives, and for tokens that a clip lacks.
        """
        self._check_clips(clips_BCTHW)
        _check_mask(mask, clips_BCTHW, self.geometry.num_tokens if self.checks_values(clips_BCTHW) else None)
        visible_BV, predicted_BM = mask.visible_BV, mask.predicted_BK
        checkpointing = self.activation_checkpointing
        position_BVE, scale_LB2 = self.position_NE[visible_BV], self._drop_path_scale(rng)
        encoded_BVE = self.encoder(clips_BCTHW, visible_BV, position_BVE, scale_LB2, checkpointing=checkpointing)
        encoded_BVE = self.encoder_to_decoder(encoded_BVE) + self.decoder_position_NE[visible_BV]
        hidden_BM, cross = predicted_BM, self.geometry.decoder_attention == "cross"
        if mask.unscored_BU is not None and not cross:  # without self-attention no prediction depends on them
            hidden_BM = torch.cat((mask.unscored_BU, predicted_BM), dim=1)
        hidden_BME = self.mask_token + self.decoder_position_NE[hidden_BM]
        # Attention ignores order, so the predicted tokens may come last; the embedding carries their positions.
        tokens_BNE = hidden_BME if cross else torch.cat((encoded_BVE, hidden_BME), dim=1)
        context_BVE = encoded_BVE if cross else None
        cubes_BMD: Tensor = self.decoder(tokens_BNE, predicted_BM.shape[1], context_BVE, checkpointing=checkpointing)
        return cubes_BMD

    def features(self, clips_BCTHW: Tensor) -> Float[Tensor, "B E"]:
        """One vector per clip: the mean of the encoder's output over all tokens. Raises ValueError as `forward`."""
        self._check_clips(clips_BCTHW)
        all_BN = torch.arange(self.geometry.num_tokens, device=clips_BCTHW.device).expand(clips_BCTHW.shape[0], -1)
        encoded_BNE: Tensor = self.encoder(clips_BCTHW, all_BN, self.position_NE[all_BN])
        return encoded_BNE.mean(dim=1)

    def loss(
        self,
        clips_BCTHW: Tensor,
        mask: TokenMask,
        *,
        targets_BMD: Float[Tensor, "B M D"] | None = None,
        weight_B: Float[Tensor, " B"] | None = None,
        rng: ClipRng | None = None,
    ) -> Float32[Tensor, ""]:
        """Mean squared error over the predicted cubes, then the (weighted) mean over samples.

        Without targets, they are made from the clips, un-normalised with the model's mean and std.
        Raises ValueError as `forward`.
        """
        if targets_BMD is None:
            self._check_clips(clips_BCTHW)
            scale, shift = self.std_C, self.mean_C
            targets_BMD = cube_targets(clips_BCTHW, mask.predicted_BK, self.geometry, scale_C=scale, shift_C=shift)
        return reconstruction_loss(self(clips_BCTHW, mask, rng), targets_BMD, weight_B)


def _check_mask(mask: Any, clips_BCTHW: Tensor, num_tokens: int | None) -> None:
    """Raises ValueError for another mask. With `num_tokens` the token numbers are checked too."""
    if not isinstance(mask, TokenMask):
        raise ValueError(f"mask is {described(mask)}; expected a TokenMask, as `sample_mask` gives it")
    count, device = len(clips_BCTHW), clips_BCTHW.device
    for name, token_BK in mask._asdict().items():
        if token_BK is None and name in TokenMask._field_defaults:
            continue
        fits = isinstance(token_BK, Tensor) and token_BK.dtype == torch.int64 and token_BK.device == device
        if not fits or token_BK.shape[:-1] != (count,):
            raise ValueError(
                f"mask.{name} is {described(token_BK)}; expected int64 with the axes B = {count} and tokens on {device}"
            )
        if num_tokens is None or not token_BK.numel():
            continue
        first, last = torch.stack(torch.aminmax(token_BK)).tolist()
        if not 0 <= first <= last < num_tokens:
            raise ValueError(f"mask.{name} has tokens {first} to {last}; a clip has 0 to {num_tokens - 1}")


class Encoder(nn.Module):
    """Sees the visible tokens only."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(geometry)
        self.blocks = encoder_blocks(geometry)
        self.norm = nn.LayerNorm(geometry.embed_dim, eps=geometry.encoder_eps)

    def forward(
        self,
        clips_BCTHW: Float[Tensor, "B 3 T H W"],
        visible_BV: Int64[Tensor, "B V"],
        position_BVE: Float[Tensor, "B V E"],
        scale_LB2: Float32[Tensor, "L B 2"] | None = None,
        *,
        checkpointing: bool = False,
    ) -> Float[Tensor, "B V E"]:
        x_BVE = self.patch_embed(clips_BCTHW, visible_BV) + position_BVE
        encoded_BVE: Tensor = self.norm(run_blocks(self.blocks, x_BVE, scale_LB2, checkpointing=checkpointing))
        return encoded_BVE


class Decoder(nn.Module):
    """The tokens of a clip → the cubes of its last `num_predicted` tokens.

    With cross-attention the tokens are those to predict. They attend to the visible ones, the context, and not to each
    other (Fu et al., "Rethinking Patch Dependence for Masked Autoencoders", arXiv 2401.14391).
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim, num_heads = geometry.decoder_embed_dim, geometry.decoder_num_heads
        mlp_ratio = geometry.decoder_mlp_ratio or geometry.mlp_ratio
        cross = geometry.decoder_attention == "cross"
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, geometry.decoder_eps, cross_attention=cross)
            for _ in range(geometry.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=geometry.decoder_norm_eps)
        self.head = nn.Linear(dim, geometry.cube_dim)

    def forward(
        self,
        x_BNE: Float[Tensor, "B N E"],
        num_predicted: int,
        context_BVE: Float[Tensor, "B V E"] | None = None,
        *,
        checkpointing: bool = False,
    ) -> Float[Tensor, "B M D"]:
        x_BME = run_blocks(self.blocks, x_BNE, last=num_predicted, context_BVE=context_BVE, checkpointing=checkpointing)
        cubes_BMD: Tensor = self.head(self.norm(x_BME))
        return cubes_BMD


def grid_of(geometry: Geometry) -> Grid:
    """The token grid of a model's clips."""
    side = geometry.image_size // geometry.patch_size
    return Grid(geometry.slices, side, side)
