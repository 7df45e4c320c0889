"""Geometry and the parts both models share: cubes, position codes, blocks, first weights.

Parameter names are the published checkpoints' own. Pre-norm blocks, exact GELU, q and v biases but no k bias,
no class token. Tong et al., "VideoMAE", NeurIPS 2022; sizes from its scripts.

B batch, C colours, T frames, H rows, W columns, N tokens, E channels, D values of a cube (c p0 p1 p2).
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from vmae_train.clips import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "Block",
    "Geometry",
    "ModelSpec",
    "PatchEmbed",
    "initialise",
    "position_code",
    "take_tokens",
]

Position = Literal["sinusoid-1d", "sinusoid-3d"]
Init = Literal["xavier", "trunc"]


class Geometry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that fixes a model's function beside its weights; stored with them.

    `init` None: xavier in pretraining, trunc in a classifier, as published.
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
    position: Position
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
        if not 0 < self.mlp_ratio <= _MOST_MLP_RATIO:
            raise ValueError(f"model.mlp_ratio = {self.mlp_ratio} must be above 0, and {_MOST_MLP_RATIO} at most")
        for name, value, most in (
            ("tokens", self.num_tokens, _MOST_TOKENS),
            ("values of a token", max(self.embed_dim, self.decoder_embed_dim, self.cube_dim), _MOST_CHANNELS),
            ("numbers of the position code", self.num_tokens * max(self.embed_dim, self.decoder_embed_dim), _MOST_CODE),
        ):
            if value > most:
                raise ValueError(f"model: {value} {name}; at most {most} can be computed with")
        if min(self.std) <= 0:
            raise ValueError(f"std = {self.std} must be above 0 in every channel")

    @property
    def slices(self) -> int:
        """Token frames of a clip."""
        return self.num_frames // self.tubelet_size

    @property
    def places(self) -> int:
        """Tokens of one slice."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_tokens(self) -> int:
        return self.slices * self.places

    @property
    def cube_dim(self) -> int:
        """Values of one cube: tubelet × patch × patch × 3."""
        return self.tubelet_size * self.patch_size**2 * 3


# Far above any model that is trained. They are for descriptions that somebody else wrote: a position code takes memory
# by these numbers alone, whatever the weights are.
_MOST_TOKENS, _MOST_CHANNELS, _MOST_CODE = 1 << 20, 1 << 17, 1 << 29
_MOST_MLP_RATIO = 256
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


class _Size(msgspec.Struct, frozen=True):
    embed_dim: int
    depth: int
    num_heads: int
    decoder_embed_dim: int
    decoder_depth: int
    decoder_num_heads: int
    image_size: int = 224
    patch_size: int = 16
    position: Position = "sinusoid-1d"


# Decoder depths are those of the pretraining scripts. `tiny` is ours: it learns on two CPU cores.
_SIZES = {
    "tiny": _Size(192, 4, 3, 96, 4, 3, image_size=32, patch_size=8, position="sinusoid-3d"),
    "S": _Size(384, 12, 6, 192, 4, 3),
    "B": _Size(768, 12, 12, 384, 4, 6),
    "L": _Size(1024, 24, 16, 512, 12, 8),
    "H": _Size(1280, 32, 16, 640, 12, 8),
}


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A published size, and what differs from it; None: as in that size."""

    size: Literal["tiny", "S", "B", "L", "H"]
    embed_dim: int | None = None
    depth: int | None = None
    num_heads: int | None = None
    mlp_ratio: float = 4.0
    decoder_embed_dim: int | None = None
    decoder_depth: int | None = None
    decoder_num_heads: int | None = None
    image_size: int | None = None
    patch_size: int | None = None
    num_frames: int = 16
    tubelet_size: int = 2
    position: Position | None = None
    init: Init | None = None
    init_scale: float = 0.001

    def __post_init__(self) -> None:
        self.geometry()

    def geometry(
        self,
        *,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> Geometry:
        """Everything resolved. Raises ValueError naming the knobs that don't fit each other."""
        own = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        del own["size"]
        published = msgspec.structs.asdict(_SIZES[self.size])
        return Geometry(**{**published, **own, "mean": mean, "std": std})


def position_code(geometry: Geometry, dim: int) -> Float32[Tensor, "N E"]:
    """The fixed code of every token, one for the encoder's and one for the decoder's dim."""
    if geometry.position == "sinusoid-1d":
        return _sinusoid(torch.arange(geometry.num_tokens), dim).float()
    # Each axis gets a third of the channels, an even number; channels left over stay zero.
    third = dim // 3 // 2 * 2
    side = geometry.image_size // geometry.patch_size
    axes = torch.meshgrid(torch.arange(geometry.slices), torch.arange(side), torch.arange(side), indexing="ij")
    code = torch.cat([_sinusoid(axis.flatten(), third) for axis in axes], dim=-1)
    return F.pad(code, (0, dim - 3 * third)).float()


def _sinusoid(number_N: Tensor, dim: int) -> Tensor:
    """Sine on even, cosine on odd channels of number / 10000^(2 (channel // 2) / dim)."""
    pair = torch.arange(dim, dtype=torch.float64) // 2
    angle = number_N[:, None] / 10000 ** (2 * pair / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


def take_tokens(values_BND: Float[Tensor, "B N D"], token_BK: Int64[Tensor, "B K"]) -> Float[Tensor, "B K D"]:
    """The named tokens of each sample."""
    return values_BND.gather(1, token_BK[..., None].expand(-1, -1, values_BND.shape[-1]))


class PatchEmbed(nn.Module):
    """Cubes to tokens. `proj` holds the convolution's weights; on single cubes it is one linear map."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.tubelet_size, self.patch_size = geometry.tubelet_size, geometry.patch_size
        kernel = (geometry.tubelet_size, geometry.patch_size, geometry.patch_size)
        self.proj = nn.Conv3d(3, geometry.embed_dim, kernel_size=kernel, stride=kernel)

    def forward(
        self, clips_BCTHW: Float[Tensor, "B 3 T H W"], token_BK: Int64[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K E"]:
        """Tokens of the named cubes only, or of all."""
        cubes_BND = rearrange(
            clips_BCTHW,
            "b c (t p0) (h p1) (w p2) -> b (t h w) (c p0 p1 p2)",
            p0=self.tubelet_size,
            p1=self.patch_size,
            p2=self.patch_size,
        )
        if token_BK is not None:
            cubes_BND = take_tokens(cubes_BND, token_BK)
        weight = rearrange(self.proj.weight, "e c p0 p1 p2 -> e (c p0 p1 p2)")
        return F.linear(cubes_BND, weight, self.proj.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x_BNE: Float[Tensor, "B N E"]) -> Float[Tensor, "B N E"]:
        x_BNE = x_BNE + self.attn(self.norm1(x_BNE))
        return x_BNE + self.mlp(self.norm2(x_BNE))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over all tokens given."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNE: Tensor) -> Tensor:
        # A bias of k adds the same to all scores of a query, so softmax would not see it.
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = rearrange(
            F.linear(x_BNE, self.qkv.weight, bias),
            "b n (three h e) -> three b h n e",
            three=3,
            h=self.num_heads,
        )
        joined_BNE = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
        return self.proj(joined_BNE)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x_BNE: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNE)))  # type: ignore[no-any-return]


@torch.no_grad()
def initialise(module: nn.Module, *, init: Init, generator: torch.Generator) -> None:
    """First weights, a pure function of the generator's seed: linear maps by `init`, biases 0, norms 1 and 0.

    The convolution keeps PyTorch's own (uniform in ± 1 / sqrt(fan in)), as published.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            if init == "xavier":
                nn.init.xavier_uniform_(part.weight, generator=generator)
            else:
                nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, nn.Conv3d):
            bound = 1 / math.sqrt(part.weight[0].numel())
            nn.init.uniform_(part.weight, -bound, bound, generator=generator)
            assert part.bias is not None
            nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, Attention):
            nn.init.zeros_(part.q_bias)
            nn.init.zeros_(part.v_bias)
