"""The model that predicts hidden cubes, and how its encoder gets a head.

Nothing in these models draws: drop path and dropout are made of the draws that are handed in, and are off without them.

B batch, C colours, T frames, H rows, W columns, N tokens, V visible, M asked for, E channels, L blocks,
D values of a cube ((p0 p1 p2) c).
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from vmae_train.clips.mask import TubeMask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.base import VideoModel, encoder_blocks, generator_of, per_colour
from vmae_train.models.geometry import Geometry
from vmae_train.models.heads import Classifier, HeadModel, MultiLabelClassifier, RegressedValue, Regressor
from vmae_train.models.losses import cube_targets, weighted_mean
from vmae_train.models.positions import position_code
from vmae_train.models.vit import Block, PatchEmbed, run_blocks

__all__ = [
    "Classifier",
    "Continued",
    "HeadModel",
    "MultiLabelClassifier",
    "PretrainModel",
    "RegressedValue",
    "Regressor",
    "VideoModel",
    "classifier_on",
    "take_encoder",
    "take_head",
]


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
        generator = generator_of(seed)
        self._fill(generator, geometry.init or "xavier")
        if generator is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02, generator=generator)
        code_NE = position_code(geometry, geometry.decoder_embed_dim)
        self.register_buffer("decoder_position_NE", code_NE, persistent=False)

    def forward(
        self, clips_BCTHW: Float[Tensor, "B 3 T H W"], mask: TubeMask, rng: ClipRng | None = None
    ) -> Float[Tensor, "B M D"]:
        """Cubes of `mask.decoded_BK`, else of `mask.masked_BM`, in that order, in units of `cube_targets`."""
        asked_BM = _asked(mask)
        keep = self.options.activation_checkpointing
        seen_BVE = self.encoder(
            clips_BCTHW, mask.visible_BV, self.position_NE[mask.visible_BV], self._drop_path(rng), checkpointing=keep
        )
        seen_BVE = self.encoder_to_decoder(seen_BVE) + self.decoder_position_NE[mask.visible_BV]
        hidden_BM = asked_BM if mask.unasked_BU is None else torch.cat((mask.unasked_BU, asked_BM), dim=1)
        hidden_BME = self.mask_token + self.decoder_position_NE[hidden_BM]
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
        rng: ClipRng | None = None,
    ) -> Float32[Tensor, ""]:
        """Mean squared error over the cubes asked for, then the (weighted) mean over samples.

        Without targets they are made from the clips, un-normalised with the model's mean and std.
        """
        if targets_BMD is None:
            rgb01 = clips_BCTHW.float() * per_colour(self.std_C) + per_colour(self.mean_C)
            targets_BMD = cube_targets(rgb01, _asked(mask), self.geometry)
        predictions_BMD = self(clips_BCTHW, mask, rng)
        error_B: Tensor = (predictions_BMD.float() - targets_BMD).square().mean(dim=(1, 2))
        return weighted_mean(error_B, weight_B)


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


def _asked(mask: TubeMask) -> Tensor:
    return mask.masked_BM if mask.decoded_BK is None else mask.decoded_BK


def take_encoder(model: HeadModel, trained: PretrainModel | HeadModel) -> None:
    """Give a model with a head another's encoder.

    A pretrained encoder's norm is dropped; pooling, norm and head stay new, as in VideoMAE's finetuning.
    load_state_dict raises where shapes differ.
    """
    weights = (trained.encoder if isinstance(trained, PretrainModel) else trained).state_dict()
    found = model.load_state_dict(
        {name: value for name, value in weights.items() if name.startswith(("patch_embed.", "blocks."))}, strict=False
    )
    assert not found.unexpected_keys
    assert all(name.startswith(("pooler.", "fc_norm.", "head.")) for name in found.missing_keys)


def take_head(model: Classifier, trained: Classifier) -> bool:
    """Give a classifier another's last norm, and of its head the rows of the model's own classes.

    Rows are taken only where all the classes are named by both, as VideoMAEv2 cuts the head of Kinetics-710 down to
    that of Kinetics-400; numbers are no names. Else the head stays new. Says whether rows were taken.
    """
    model.fc_norm.load_state_dict(trained.fc_norm.state_dict())
    place = {name: number for number, name in enumerate(trained.classes)}
    if not set(model.classes) <= place.keys() or all(name.isdecimal() for name in model.classes):
        return False
    rows = [place[name] for name in model.classes]
    model.head.load_state_dict({name: value[rows] for name, value in trained.head.state_dict().items()})
    return True


class Continued(NamedTuple):
    """A classifier on a trained encoder, and in words what became of the trained model's head."""

    model: Classifier
    head: str


def classifier_on(
    given: PretrainModel | HeadModel, recipe: Geometry, classes: tuple[str, ...], *, seed: int, new_head: bool
) -> Continued:
    """The given classifier where its classes are these, else a classifier of these on its encoder.

    `recipe` decides pooling and head. Without `new_head`, of a classifier's head is kept what `take_head` takes.
    """
    trained = given if isinstance(given, Classifier) and not new_head else None
    if trained is not None and trained.geometry.pooling != recipe.pooling:
        trained = None
    if trained is not None and trained.classes == classes:
        return Continued(trained, "")
    own = {name: getattr(recipe, name) for name in ("pooling", "init", "init_scale", "fc_eps")}
    model = Classifier(msgspec.structs.replace(given.geometry, **own), classes, seed=seed)
    take_encoder(model, given)
    if trained is None:
        return Continued(model, "")
    if take_head(model, trained):
        return Continued(model, f"; of the {len(trained.classes)} classes of its head those of the data are kept")
    return Continued(model, f"; a new head: the {len(trained.classes)} classes of its own are others than the data's")
