"""The two models: one that predicts hidden cubes, one that names classes.

B batch, C colours, T frames, H rows, W columns, S the model's image size, N tokens, V visible, M asked for,
E channels, D values of a cube ((p0 p1 p2) c), K classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from vmae_train.clips.mask import TubeMask
from vmae_train.model.loss import cube_targets
from vmae_train.model.vit import (
    Block,
    Geometry,
    Init,
    PatchEmbed,
    initialise,
    position_code,
)

__all__ = ["Classifier", "PretrainModel", "VideoModel", "classifier_from_pretrained"]


class VideoModel(nn.Module):
    """What both models share: geometry, classes, first weights, the way from frames to clips."""

    mean_C: Tensor
    std_C: Tensor
    position_NE: Tensor

    def __init__(self, geometry: Geometry, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.geometry = geometry
        self.classes = classes

    def preprocess(self, frames_BTHWC: UInt8[Tensor, "B T H W 3"]) -> Float32[Tensor, "B 3 T S S"]:
        """RGB frames to clips: short side to the model's size, centre, (rgb / 255 - mean) / std.

        Raises ValueError for another number of frames than the model's.
        """
        if frames_BTHWC.shape[1] != self.geometry.num_frames:
            raise ValueError(f"{frames_BTHWC.shape[1]} frames given; a clip has {self.geometry.num_frames}")
        frames = rearrange(frames_BTHWC.to(self.mean_C.device), "b t h w c -> (b t) c h w").float()
        frames = _centre_square(frames, self.geometry.image_size) / 255
        rgb01 = rearrange(frames, "(b t) c h w -> b c t h w", b=len(frames_BTHWC))
        return (rgb01 - _per_colour(self.mean_C)) / _per_colour(self.std_C)

    def _fill(self, generator: torch.Generator | None, init: Init) -> None:
        """Memory for the parts built on the meta device, then first weights, then the fixed numbers.

        Building on the meta device draws nothing from the global generator.
        """
        self.to_empty(device="cpu")
        if generator is not None:
            initialise(self, init=init, generator=generator)
        geometry = self.geometry
        self.register_buffer("mean_C", torch.tensor(geometry.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(geometry.std), persistent=False)
        self.register_buffer("position_NE", position_code(geometry, geometry.embed_dim), persistent=False)


class PretrainModel(VideoModel):
    """Predicts the hidden cubes from the visible ones.

    First weights are a pure function of `seed`; None leaves them for a loader to fill.
    """

    decoder_position_NE: Tensor

    def __init__(self, geometry: Geometry, *, seed: int | None = 0) -> None:
        super().__init__(geometry)
        with torch.device("meta"):
            self.encoder = Encoder(geometry)
            self.encoder_to_decoder = nn.Linear(geometry.embed_dim, geometry.decoder_embed_dim, bias=False)
            self.mask_token = nn.Parameter(torch.zeros(1, 1, geometry.decoder_embed_dim))
            self.decoder = Decoder(geometry)
        generator = _generator(seed)
        self._fill(generator, geometry.init or "xavier")
        if generator is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        code_NE = position_code(geometry, geometry.decoder_embed_dim)
        self.register_buffer("decoder_position_NE", code_NE, persistent=False)

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], mask: TubeMask) -> Float[Tensor, "B M D"]:
        """Cubes of `mask.decoded_BK`, else of `mask.masked_BM`, in that order, in units of `cube_targets`."""
        asked_BM = _asked(mask)
        seen_BVE = self.encoder(clips_BCTHW, mask.visible_BV, self.position_NE[mask.visible_BV])
        seen_BVE = self.encoder_to_decoder(seen_BVE) + self.decoder_position_NE[mask.visible_BV]
        hidden_BME = self.mask_token + self.decoder_position_NE[asked_BM]
        # Attention does not care for order, so what is asked for may stand last; the code says where it is.
        cubes_BMD: Tensor = self.decoder(torch.cat((seen_BVE, hidden_BME), dim=1), asked_BM.shape[1])
        return cubes_BMD

    def loss(
        self,
        clips_BCTHW: Float[Tensor, "B 3 T H W"],
        mask: TubeMask,
        *,
        targets_BMD: Float[Tensor, "B M D"] | None = None,
        weight_B: Float[Tensor, " B"] | None = None,
    ) -> Float32[Tensor, ""]:
        """Mean squared error over the cubes asked for, then the (weighted) mean over samples.

        Without targets they are made from the clips, un-normalised with the model's mean and std.
        """
        if targets_BMD is None:
            rgb01 = clips_BCTHW.float() * _per_colour(self.std_C) + _per_colour(self.mean_C)
            targets_BMD = cube_targets(rgb01, _asked(mask), self.geometry)
        predictions_BMD = self(clips_BCTHW, mask)
        error_B: Tensor = (predictions_BMD.float() - targets_BMD).square().mean(dim=(1, 2))
        if weight_B is None:
            return error_B.mean()
        # All weights 0 gives 0, not a division by it.
        return (error_B * weight_B).sum() / weight_B.sum().clamp_min(torch.finfo(torch.float32).tiny)


class Classifier(VideoModel):
    """Names the class of a clip from the mean of its tokens.

    First weights are a pure function of `seed`; None leaves them for a loader to fill.
    """

    def __init__(self, geometry: Geometry, classes: tuple[str, ...], *, seed: int | None = 0) -> None:
        if not classes:
            raise ValueError("a classifier needs at least one class; got none")
        super().__init__(geometry, tuple(classes))
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(geometry)
            self.blocks = _encoder_blocks(geometry)
            self.fc_norm = nn.LayerNorm(geometry.embed_dim, eps=geometry.fc_eps)
            self.head = nn.Linear(geometry.embed_dim, len(classes))
        self._fill(_generator(seed), geometry.init or "trunc")
        if seed is not None:
            with torch.no_grad():
                self.head.weight.mul_(geometry.init_scale)

    def features(self, clips_BCTHW: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B E"]:
        """The mean of a clip's tokens, normalised."""
        x_BNE = self.patch_embed(clips_BCTHW) + self.position_NE
        for block in self.blocks:
            x_BNE = block(x_BNE)
        features_BE: Tensor = self.fc_norm(x_BNE.mean(dim=1))
        return features_BE

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"]) -> Float[Tensor, "B K"]:
        """Logits, in the order of `classes`."""
        logits_BK: Tensor = self.head(self.features(clips_BCTHW))
        return logits_BK


def classifier_from_pretrained(
    pretrained: PretrainModel,
    classes: tuple[str, ...],
    *,
    seed: int = 0,
    geometry: Geometry | None = None,
) -> Classifier:
    """A classifier with a pretrained encoder; the encoder's norm is dropped, fc_norm and head are new.

    `geometry` replaces the pretrained one (another `init_scale`); load_state_dict raises where shapes differ.
    """
    classifier = Classifier(geometry or pretrained.geometry, classes, seed=seed)
    found = classifier.load_state_dict(
        {name: value for name, value in pretrained.encoder.state_dict().items() if not name.startswith("norm.")},
        strict=False,
    )
    assert not found.unexpected_keys
    assert all(name.startswith(("fc_norm.", "head.")) for name in found.missing_keys)
    return classifier


class Encoder(nn.Module):
    """Sees the visible tokens only."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(geometry)
        self.blocks = _encoder_blocks(geometry)
        self.norm = nn.LayerNorm(geometry.embed_dim, eps=geometry.encoder_eps)

    def forward(
        self,
        clips_BCTHW: Float[Tensor, "B 3 T H W"],
        visible_BV: Int64[Tensor, "B V"],
        position_BVE: Float[Tensor, "B V E"],
    ) -> Float[Tensor, "B V E"]:
        x_BVE = self.patch_embed(clips_BCTHW, visible_BV) + position_BVE
        for block in self.blocks:
            x_BVE = block(x_BVE)
        seen_BVE: Tensor = self.norm(x_BVE)
        return seen_BVE


class Decoder(nn.Module):
    """From the tokens of a clip to the cubes of the last `num_asked` of them."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim, num_heads = geometry.decoder_embed_dim, geometry.decoder_num_heads
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, geometry.mlp_ratio, geometry.decoder_eps) for _ in range(geometry.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=geometry.decoder_norm_eps)
        self.head = nn.Linear(dim, geometry.cube_dim)

    def forward(self, x_BNE: Float[Tensor, "B N E"], num_asked: int) -> Float[Tensor, "B M D"]:
        for block in self.blocks:
            x_BNE = block(x_BNE)
        cubes_BMD: Tensor = self.head(self.norm(x_BNE[:, -num_asked:]))
        return cubes_BMD


def _encoder_blocks(geometry: Geometry) -> nn.ModuleList:
    return nn.ModuleList(
        Block(geometry.embed_dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
        for _ in range(geometry.depth)
    )


def _generator(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


def _asked(mask: TubeMask) -> Tensor:
    return mask.masked_BM if mask.decoded_BK is None else mask.decoded_BK


def _centre_square(frames: Tensor, size: int) -> Tensor:
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        resized = (size * height // short, size * width // short)
        frames = F.interpolate(frames, resized, mode="bilinear", antialias=True, align_corners=False)
        height, width = resized
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size]


def _per_colour(x_C: Tensor) -> Tensor:
    return rearrange(x_C, "c -> c 1 1 1")
