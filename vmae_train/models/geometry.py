"""A recipe's [model] table → the geometry of a model: everything except weights that fixes its function.

Sizes: Tong et al., "VideoMAE", NeurIPS 2022, from its scripts; g: Wang et al., "VideoMAE V2", CVPR 2023.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec

from vmae_data.recipes import check_bounds
from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["Geometry", "Init", "ModelSpec", "Pooling", "PositionResize", "hidden_dim", "published_size"]

Position = Literal["sinusoid-1d", "sinusoid-3d"]
PositionResize = Literal["recompute", "interpolate"]
DecoderAttention = Literal["self", "cross"]
Pooling = Literal["mean", "slices", "attentive", "first"]
Init = Literal["xavier", "trunc"]
SizeName = Literal["tiny", "S", "B", "L", "H", "g"]


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything except weights that fixes a model's function. Stored with the weights.

    `init` None: first weights as published: xavier in pretraining, except between encoder and decoder, and trunc in a
    classifier. `decoder_mlp_ratio` None: `mlp_ratio`.
    `decoder_attention`: `self`, all tokens of a clip attend to all; `cross`, the masked tokens attend to the visible ones.
    `position_grid`: slices and side of the position embedding that is interpolated to this model's grid; None: the
    embedding is computed for this grid. `pooling`: how a classifier reduces its tokens to one vector. `slices` joins the
    means of the tubelet slices, so that time is kept.
    `first` takes the first token, as classifiers of other programs that were made without mean pooling.
    `standardize`: the head standardizes what it takes from the encoder.
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
    decoder_attention: DecoderAttention = "self"
    standardize: bool = False

    def __post_init__(self) -> None:
        for name in _COUNTS:
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected 1 or more")
        for name, divisor in _DIVISORS:
            value, by = getattr(self, name), getattr(self, divisor)
            if value % by:
                raise ValueError(f"model.{name} = {value}: expected a multiple of model.{divisor} = {by}")
        for name in ("embed_dim", "decoder_embed_dim"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"model.{name} = {getattr(self, name)}: expected an even number, for pairs of sine and cosine"
                )
        for name in ("mlp_ratio", "decoder_mlp_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= _MAX_MLP_RATIO:
                raise ValueError(f"model.{name} = {value}: expected above 0 and at most {_MAX_MLP_RATIO}")
        if self.position_grid is not None and min(self.position_grid) < 1:
            raise ValueError(f"model.position_grid = {self.position_grid}: expected slices and side of 1 or more")
        self._check_limits()
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("encoder_eps", "decoder_eps", "decoder_norm_eps", "fc_eps"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected 0 to 1")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std = {self.std}: expected above 0 in every channel, and finite")
        if not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean = {self.mean}: expected finite numbers")

    def _check_limits(self) -> None:
        channels = max(self.embed_dim, self.decoder_embed_dim)
        slices, side = self.position_grid or (0, 0)
        tokens = max(self.num_tokens, slices * side**2)
        for name, value, limit in (
            ("blocks", max(self.depth, self.decoder_depth), _MAX_BLOCKS),
            ("tokens", tokens, _MAX_TOKENS),
            ("values of a token", max(channels, self.cube_dim), _MAX_CHANNELS),
            ("numbers in the position embedding", tokens * channels, _MAX_EMBEDDING),
        ):
            if value > limit:
                raise ValueError(f"model: {value} {name} exceed the limit of {limit}")

    @property
    def slices(self) -> int:
        """Token frames of a clip."""
        return self.num_frames // self.tubelet_size

    @property
    def side(self) -> int:
        """Patches along one side of a slice."""
        return self.image_size // self.patch_size

    @property
    def patches(self) -> int:
        """Patches (tokens) of one slice."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        return self.slices * self.patches

    @property
    def cube_dim(self) -> int:
        """Values of one cube: tubelet × patch × patch × 3."""
        return self.tubelet_size * self.patch_size**2 * 3

    def pools_as(self, other: Geometry) -> bool:
        """Whether a head on the one model fits the tokens of the other."""
        return (self.pooling, self.standardize) == (other.pooling, other.standardize)

    def stored(self) -> dict[str, Any]:
        """The fields for JSON. Later fields are not written if they are off: so every version writes and reads the same."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        if self.decoder_attention == "self":
            del fields["decoder_attention"]
        if not self.standardize:
            del fields["standardize"]
        return fields

    def resized(self, resize: PositionResize, *, image_size: int | None, num_frames: int | None) -> Geometry:
        """The same model for clips of another size or length; None keeps it.

        `recompute` computes the position embedding for the new grid, as VideoMAE does: with the 1-D form, every token
        gets another one. `interpolate` stretches the embedding that the weights were trained with, as VideoMAEv2 does.
        Raises ValueError for a size that is not a multiple of the patch or the tubelet.
        """
        grid = None
        if resize == "interpolate":
            grid = self.position_grid or (self.slices, self.side)
        new = msgspec.structs.replace(
            self,
            image_size=self.image_size if image_size is None else image_size,
            num_frames=self.num_frames if num_frames is None else num_frames,
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

# Far above any model that is trained. They bound descriptions from foreign files: a position embedding takes memory by
# these numbers alone, whatever the weights are.
_MAX_TOKENS, _MAX_CHANNELS, _MAX_EMBEDDING = 1 << 20, 1 << 17, 1 << 29
_MAX_MLP_RATIO = 256
_MAX_BLOCKS = 1024


def hidden_dim(dim: int, ratio: float) -> int:
    """Channels inside an MLP: dim × ratio, truncated. A ratio that was made by a division gives its dividend again."""
    return int(dim * ratio + 1e-6)


def _published(*shape: int, **others: Any) -> Geometry:
    """`shape`: embed_dim, depth and num_heads of the encoder, then of the decoder."""
    names = ("embed_dim", "depth", "num_heads", "decoder_embed_dim", "decoder_depth", "decoder_num_heads")
    fields: dict[str, Any] = dict(zip(names, shape, strict=True))
    fields |= {"image_size": 224, "patch_size": 16, "mlp_ratio": 4.0, "position": "sinusoid-1d", **others}
    return Geometry(num_frames=16, tubelet_size=2, **fields)


# Decoder depths are those of the pretraining scripts. `tiny` is ours: it learns on two CPU cores.
# VideoMAEv2's H has the decoder of g: --set model.decoder_embed_dim=512 --set model.decoder_depth=4.
_SIZES: dict[SizeName, Geometry] = {
    "tiny": _published(192, 4, 3, 96, 4, 3, image_size=32, patch_size=8, position="sinusoid-3d"),
    "S": _published(384, 12, 6, 192, 4, 3),
    "B": _published(768, 12, 12, 384, 4, 6),
    "L": _published(1024, 24, 16, 512, 12, 8),
    "H": _published(1280, 32, 16, 640, 12, 8),
    "g": _published(1408, 40, 16, 512, 4, 8, patch_size=14, mlp_ratio=48 / 11),
}


def published_size(embed_dim: int, depth: int) -> Geometry | None:
    """The published model with this width and depth, which no other shares; None if there is none."""
    for name, size in _SIZES.items():
        if name != "tiny" and (size.embed_dim, size.depth) == (embed_dim, depth):
            return size
    return None


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published size, and what differs from it; None: as in that size.

    `drop_path` is the rate of the last block, rising from 0 at the first; `fc_drop_rate` is the dropout of the head.
    `position_resize`: how the position embedding of --init's weights is adapted if they were trained on clips of
    another size or length.
    """

    size: SizeName  # the published size that the other keys change
    embed_dim: int | None = None  # width of the encoder
    depth: int | None = None  # blocks of the encoder
    num_heads: int | None = None  # attention heads of the encoder
    mlp_ratio: float | None = None  # width of an MLP, as a multiple of `embed_dim`
    decoder_embed_dim: int | None = None  # width of the decoder
    decoder_depth: int | None = None  # blocks of the decoder
    decoder_num_heads: int | None = None  # attention heads of the decoder
    decoder_attention: DecoderAttention = "self"  # self: all tokens to all; cross: masked tokens to visible ones
    image_size: int | None = None  # pixels of a clip's side
    patch_size: int | None = None  # pixels of a patch's side
    num_frames: int = 16  # frames of a clip
    tubelet_size: int = 2  # frames of a token
    position: Position | None = None  # embedding of the token's number, or of time, row and column
    position_resize: PositionResize = "recompute"  # for initial weights of another clip size
    init: Init | None = None  # distribution of the first weights; none: as published
    init_scale: float = 0.001  # factor of the first weights of a classifier's head
    drop_path: float = 0.0  # stochastic depth: rate of the last block
    fc_drop_rate: float = 0.0  # dropout before the head
    activation_checkpointing: bool = False  # recompute activations: less memory, more time
    compile: bool = False  # use torch.compile

    def __post_init__(self) -> None:
        for name in ("drop_path", "fc_drop_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"model.{name} = {getattr(self, name)}: expected 0 or more, below 1")
        check_bounds(self, init_scale=(0, 1000))
        self.geometry()

    def geometry(
        self,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Geometry:
        """Everything resolved. Raises ValueError that names the settings that contradict each other."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        fields = {name: own[name] for name in Geometry.__struct_fields__ if name in own}
        return msgspec.structs.replace(_SIZES[self.size], **fields, mean=mean, std=std)
