"""What fixes a model's function beside its weights, and the published sizes.

Sizes: Tong et al., "VideoMAE", NeurIPS 2022, from its scripts; g: Wang et al., "VideoMAE V2", CVPR 2023.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Geometry", "ModelSpec", "PositionResize", "PublishedSize", "TrainOptions", "hidden_dim", "published_size"]

Position = Literal["sinusoid-1d", "sinusoid-3d"]
PositionResize = Literal["recompute", "interpolate"]
Pooling = Literal["mean", "attentive"]
Init = Literal["xavier", "trunc"]
SizeName = Literal["tiny", "S", "B", "L", "H", "g"]


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that fixes a model's function beside its weights; stored with them.

    `init` None: xavier in pretraining, trunc in a classifier, as published. `decoder_mlp_ratio` None: `mlp_ratio`.
    `position_grid`: slices and side of the position code that is interpolated to this model's own; None: the code is
    made for this model's own. `pooling`: how a classifier makes one vector of its tokens.
    """

    image_size: int
    patch_size: int
    num_frames: int
    tubelet_size: int
    embed_dim: int
    depth: int
    num_heads: int
    mlp_ratio: float
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    decoder_mlp_ratio: float | None = None
    position: Position
    position_grid: tuple[int, int] | None = None
    pooling: Pooling = "mean"
    init: Init | None = None
    init_scale: float = 0.001
    encoder_eps: float = 1e-6
    decoder_eps: float = 1e-6
    decoder_norm_eps: float = 1e-6  # of the decoder's last norm; Hugging Face has 1e-5 here and in fc_norm
    fc_eps: float = 1e-6
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)} must be at least 1")
        for name, divisor in _DIVISORS:
            value, by = getattr(self, name), getattr(self, divisor)
            if value % by:
                raise ValueError(f"model.{name} = {value} must be a multiple of model.{divisor} = {by}")
        for name in ("embed_dim", "decoder_embed_dim"):
            if getattr(self, name) % 2:
                raise ValueError(f"model.{name} = {getattr(self, name)} must be even: sine and cosine take turns")
        for name in ("mlp_ratio", "decoder_mlp_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MOST_MLP_RATIO:
                raise ValueError(f"model.{name} = {value} must be above 0, and {_MOST_MLP_RATIO} at most")
        if self.position_grid is not None and min(self.position_grid) < 1:
            raise ValueError(f"model.position_grid = {self.position_grid}: slices and side must be at least 1")
        self._check_room()
        if min(self.std) <= 0:
            raise ValueError(f"std = {self.std} must be above 0 in every channel")

    def _check_room(self) -> None:
        channels = max(self.embed_dim, self.decoder_embed_dim)
        slices, side = self.position_grid or (0, 0)
        tokens = max(self.num_tokens, slices * side**2)
        for name, value, most in (
            ("tokens", tokens, _MOST_TOKENS),
            ("values of a token", max(channels, self.cube_dim), _MOST_CHANNELS),
            ("numbers of the position code", tokens * channels, _MOST_CODE),
        ):
            if value > most:
                raise ValueError(f"model: {value} {name}; at most {most} can be computed with")

    @property
    def slices(self) -> int:
        """Token frames of a clip."""
        return self.num_frames // self.tubelet_size

    @property
    def side(self) -> int:
        """Tokens along one side of a slice."""
        return self.image_size // self.patch_size

    @property
    def places(self) -> int:
        """Tokens of one slice."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        return self.slices * self.places

    @property
    def cube_dim(self) -> int:
        """Values of one cube: tubelet × patch × patch × 3."""
        return self.tubelet_size * self.patch_size**2 * 3

    def resized(self, resize: PositionResize, *, image_size: int | None, num_frames: int | None) -> Geometry:
        """The same model for other clips; None: as it is.

        `recompute` makes the code for the new grid, as VideoMAE does: with the 1-D code, every token's changes.
        `interpolate` stretches the code that the weights were trained with, as VideoMAEv2 does.
        Raises ValueError for a size that is no multiple of the patch or the tubelet.
        """
        grid = None
        if resize == "interpolate":
            grid = self.position_grid or (self.slices, self.side)
        new = msgspec.structs.replace(
            self,
            image_size=image_size or self.image_size,
            num_frames=num_frames or self.num_frames,
            position_grid=grid,
        )
        if (new.slices, new.side) == (self.slices, self.side):
            return msgspec.structs.replace(new, position_grid=self.position_grid)
        return msgspec.structs.replace(new, position_grid=None) if grid == (new.slices, new.side) else new


_COUNTS = (
    *("image_size", "patch_size", "num_frames", "tubelet_size", "embed_dim", "depth", "num_heads"),
    *("decoder_embed_dim", "decoder_depth", "decoder_num_heads"),
)
_DIVISORS = (
    ("image_size", "patch_size"),
    ("num_frames", "tubelet_size"),
    ("embed_dim", "num_heads"),
    ("decoder_embed_dim", "decoder_num_heads"),
)

# Far above any model that is trained. They are for descriptions that somebody else wrote: a position code takes memory
# by these numbers alone, whatever the weights are.
_MOST_TOKENS, _MOST_CHANNELS, _MOST_CODE = 1 << 20, 1 << 17, 1 << 29
_MOST_MLP_RATIO = 256


def hidden_dim(dim: int, ratio: float) -> int:
    """Channels inside an MLP: dim × ratio, cut off. A ratio made by a division gives its dividend again."""
    return int(dim * ratio + 1e-6)


class PublishedSize(msgspec.Struct, frozen=True):
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    image_size: int = 224
    patch_size: int = 16
    mlp_ratio: float = 4.0
    position: Position = "sinusoid-1d"


# Decoder depths are those of the pretraining scripts. `tiny` is ours: it learns on two CPU cores.
# VideoMAEv2's H has the decoder of g: --set model.decoder_embed_dim=512 --set model.decoder_depth=4.
_SIZES: dict[SizeName, PublishedSize] = {
    "tiny": PublishedSize(192, 4, 3, 96, 4, 3, image_size=32, patch_size=8, position="sinusoid-3d"),
    "S": PublishedSize(384, 12, 6, 192, 4, 3),
    "B": PublishedSize(768, 12, 12, 384, 4, 6),
    "L": PublishedSize(1024, 24, 16, 512, 12, 8),
    "H": PublishedSize(1280, 32, 16, 640, 12, 8),
    "g": PublishedSize(1408, 40, 16, 512, 4, 8, patch_size=14, mlp_ratio=48 / 11),
}


def published_size(embed_dim: int, depth: int) -> PublishedSize | None:
    """The published model of these two numbers, which no other shares; None: there is none."""
    for name, size in _SIZES.items():
        if name != "tiny" and (size.embed_dim, size.depth) == (embed_dim, depth):
            return size
    return None


class TrainOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a model trains; none of it changes what a trained model says."""

    drop_path: float = 0.0
    fc_drop_rate: float = 0.0
    activation_checkpointing: bool = False
    compile: bool = False


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published size, and what differs from it; None: as in that size.

    `drop_path` is the last block's rate, rising from 0 at the first; `fc_drop_rate` is the head's dropout.
    `position_resize` says what becomes of the position code of --init's weights where they were trained on clips of
    another size or length.
    """

    size: SizeName
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float | None = None
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_frames: int = 16
    tubelet_size: int = 2
    position: Position | None = None
    position_resize: PositionResize = "recompute"
    init: Init | None = None
    init_scale: float = 0.001
    drop_path: float = 0.0
    fc_drop_rate: float = 0.0
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("drop_path", "fc_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected 0 or more, below 1")
        self.geometry()

    @property
    def options(self) -> TrainOptions:
        return TrainOptions(**{name: getattr(self, name) for name in TrainOptions.__struct_fields__})

    def geometry(
        self,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Geometry:
        """Everything resolved. Raises ValueError naming the knobs that don't fit each other."""
        published: dict[str, Any] = msgspec.structs.asdict(_SIZES[self.size])
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        fields = {name: own[name] for name in Geometry.__struct_fields__ if name in own}
        return Geometry(**{**published, **fields, "mean": mean, "std": std})
