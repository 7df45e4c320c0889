"""The models: one that predicts hidden cubes, and those with a head: one class, several classes, values.

Nothing here draws: drop path and dropout are made of the draws that are handed in, and are off without them.

B batch, C colours, T frames, H rows, W columns, S the model's image size, N tokens, V visible, M asked for,
E channels, L blocks, D values of a cube ((p0 p1 p2) c), K outputs of a head.
"""

from __future__ import annotations

import msgspec
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from vmae_data.draws import Purpose
from vmae_train.clips.draws import ClipDraws, uniform
from vmae_train.clips.mask import TubeMask
from vmae_train.model.geometry import Geometry, Init, TrainOptions
from vmae_train.model.loss import cube_targets, weighted_mean
from vmae_train.model.pooling import AttentivePooler
from vmae_train.model.position import position_code
from vmae_train.model.vit import Block, PatchEmbed, drop_path_scale, initialise, run_blocks

__all__ = [
    "Classifier",
    "HeadModel",
    "MultiLabelClassifier",
    "PretrainModel",
    "RegressedValue",
    "Regressor",
    "VideoModel",
    "classifier_from_pretrained",
    "take_encoder",
]


class VideoModel(nn.Module):
    """What both models share: geometry, classes, first weights, the way from frames to clips."""

    mean_C: Tensor
    std_C: Tensor
    position_NE: Tensor

    def __init__(self, geometry: Geometry, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.geometry = geometry
        self.classes = classes
        self.options = TrainOptions()

    def set_options(self, options: TrainOptions) -> None:
        """How it trains from now on. Compiling leaves the names of the weights as they are."""
        self.options = options
        if options.compile:
            for part in self.modules():
                if isinstance(part, Block):  # all blocks are alike: one compilation serves them all
                    part.compile()

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

    def _drop_path(self, draws: ClipDraws | None) -> Tensor | None:
        """(L, B, 2) factors of the encoder's branches, in training only."""
        if draws is None or not self.training or not self.options.drop_path:
            return None
        return drop_path_scale(draws, depth=self.geometry.depth, rate=self.options.drop_path)


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

    def forward(
        self, clips_BCTHW: Float[Tensor, "B 3 T H W"], mask: TubeMask, draws: ClipDraws | None = None
    ) -> Float[Tensor, "B M D"]:
        """Cubes of `mask.decoded_BK`, else of `mask.masked_BM`, in that order, in units of `cube_targets`."""
        asked_BM = _asked(mask)
        keep = self.options.activation_checkpointing
        seen_BVE = self.encoder(
            clips_BCTHW, mask.visible_BV, self.position_NE[mask.visible_BV], self._drop_path(draws), checkpointing=keep
        )
        seen_BVE = self.encoder_to_decoder(seen_BVE) + self.decoder_position_NE[mask.visible_BV]
        hidden_BME = self.mask_token + self.decoder_position_NE[asked_BM]
        # Attention does not care for order, so what is asked for may stand last; the code says where it is.
        tokens_BNE = torch.cat((seen_BVE, hidden_BME), dim=1)
        cubes_BMD: Tensor = self.decoder(tokens_BNE, asked_BM.shape[1], checkpointing=keep)
        return cubes_BMD

    def loss(
        self,
        clips_BCTHW: Float[Tensor, "B 3 T H W"],
        mask: TubeMask,
        *,
        targets_BMD: Float[Tensor, "B M D"] | None = None,
        weight_B: Float[Tensor, " B"] | None = None,
        draws: ClipDraws | None = None,
    ) -> Float32[Tensor, ""]:
        """Mean squared error over the cubes asked for, then the (weighted) mean over samples.

        Without targets they are made from the clips, un-normalised with the model's mean and std.
        """
        if targets_BMD is None:
            rgb01 = clips_BCTHW.float() * _per_colour(self.std_C) + _per_colour(self.mean_C)
            targets_BMD = cube_targets(rgb01, _asked(mask), self.geometry)
        predictions_BMD = self(clips_BCTHW, mask, draws)
        error_B: Tensor = (predictions_BMD.float() - targets_BMD).square().mean(dim=(1, 2))
        return weighted_mean(error_B, weight_B)


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
            self.blocks = _encoder_blocks(geometry)
            if geometry.pooling == "attentive":
                self.pooler = AttentivePooler(dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
            self.fc_norm = nn.LayerNorm(dim, eps=geometry.fc_eps)
            self.head = nn.Linear(dim, num_outputs)
        generator = _generator(seed)
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

    def features(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], draws: ClipDraws | None = None) -> Float[Tensor, "B E"]:
        """One vector a clip: its tokens' mean, or what the pooling takes of them, normalised."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x_BNE = self.patch_embed(clips_BCTHW) + self.position_NE
            scale = None if self.frozen else self._drop_path(draws)
            x_BNE = run_blocks(self.blocks, x_BNE, scale, checkpointing=self.options.activation_checkpointing)
        pooled_BE = self.pooler(x_BNE) if self.geometry.pooling == "attentive" else x_BNE.mean(dim=1)
        features_BE: Tensor = self.fc_norm(pooled_BE)
        return features_BE

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], draws: ClipDraws | None = None) -> Float[Tensor, "B K"]:
        """The head's outputs: logits, in the order of `classes`."""
        features_BE = self.features(clips_BCTHW, draws)
        rate = self.options.fc_drop_rate
        if draws is not None and self.training and rate:
            numbers = torch.arange(features_BE.shape[1], device=features_BE.device)
            kept_BE = uniform(draws.bits(Purpose.DROPOUT, numbers)) >= rate
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

    def forward(self, clips_BCTHW: Float[Tensor, "B 3 T H W"], draws: ClipDraws | None = None) -> Float[Tensor, "B K"]:
        """Values, in the order of `values`, float32."""
        outputs_BK: Tensor = super().forward(clips_BCTHW, draws).float()
        return outputs_BK * self.spread_K + self.value_mean_K


def take_encoder(model: HeadModel, pretrained: PretrainModel) -> None:
    """Give a model with a head a pretrained encoder.

    The encoder's norm is dropped, pooling, norm and head stay new, as in VideoMAE's finetuning.
    load_state_dict raises where shapes differ.
    """
    weights = pretrained.encoder.state_dict()
    found = model.load_state_dict(
        {name: value for name, value in weights.items() if not name.startswith("norm.")}, strict=False
    )
    assert not found.unexpected_keys
    assert all(name.startswith(("pooler.", "fc_norm.", "head.")) for name in found.missing_keys)


def classifier_from_pretrained(
    pretrained: PretrainModel,
    classes: tuple[str, ...],
    *,
    seed: int = 0,
    geometry: Geometry | None = None,
) -> Classifier:
    """A classifier with a pretrained encoder. `geometry` replaces the pretrained one (another `init_scale`)."""
    classifier = Classifier(geometry or pretrained.geometry, classes, seed=seed)
    take_encoder(classifier, pretrained)
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
        scale_LB2: Float32[Tensor, "L B 2"] | None = None,
        *,
        checkpointing: bool = False,
    ) -> Float[Tensor, "B V E"]:
        x_BVE = self.patch_embed(clips_BCTHW, visible_BV) + position_BVE
        seen_BVE: Tensor = self.norm(run_blocks(self.blocks, x_BVE, scale_LB2, checkpointing=checkpointing))
        return seen_BVE


class Decoder(nn.Module):
    """From the tokens of a clip to the cubes of the last `num_asked` of them."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        dim, num_heads = geometry.decoder_embed_dim, geometry.decoder_num_heads
        mlp_ratio = geometry.decoder_mlp_ratio or geometry.mlp_ratio
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, geometry.decoder_eps) for _ in range(geometry.decoder_depth)
        )
        self.norm = nn.LayerNorm(dim, eps=geometry.decoder_norm_eps)
        self.head = nn.Linear(dim, geometry.cube_dim)

    def forward(
        self, x_BNE: Float[Tensor, "B N E"], num_asked: int, *, checkpointing: bool = False
    ) -> Float[Tensor, "B M D"]:
        x_BNE = run_blocks(self.blocks, x_BNE, checkpointing=checkpointing)
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
