"""The vision transformer: cubes → tokens, blocks, drop path, first weights.

Parameter names are those of the published checkpoints. Pre-norm blocks, exact GELU, biases for q and v but not for k,
no class token. Tong et al., "VideoMAE", NeurIPS 2022.

B batch, C colours, T frames, H rows, W columns, N tokens, K chosen tokens, Q tokens of an output, E channels, L blocks,
P pixels of a cube (p0 p1 p2).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, uniform
from vmae_train.models.geometry import Geometry, Init, hidden_dim

__all__ = [
    "Block",
    "CrossAttention",
    "Mlp",
    "PatchEmbed",
    "drop_path_scale",
    "encoder_blocks",
    "init_weights",
    "run_blocks",
    "take_cubes",
]


def take_cubes(
    clips_BCTHW: Float[Tensor, "B C T H W"], token_BK: Int64[Tensor, "B K"], *, tubelet_size: int, patch_size: int
) -> Float[Tensor, "B K C P"]:
    """A copy of the cubes of the given tokens. Pixels of other tokens are not read."""
    cubes = rearrange(
        clips_BCTHW,
        "b c (t p0) (h p1) (w p2) -> b t h w c p0 p1 p2",
        p0=tubelet_size,
        p1=patch_size,
        p2=patch_size,
    )
    rows, columns = cubes.shape[2:4]
    sample_B1 = torch.arange(cubes.shape[0], device=token_BK.device)[:, None]
    slice_BK, patch_BK = token_BK // (rows * columns), token_BK % (rows * columns)
    return cubes[sample_B1, slice_BK, patch_BK // columns, patch_BK % columns].flatten(3)


class PatchEmbed(nn.Module):
    """Cubes to tokens. `proj` holds the weights of a convolution, which on single cubes is one linear map."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.tubelet_size, self.patch_size = geometry.tubelet_size, geometry.patch_size
        kernel = (geometry.tubelet_size, geometry.patch_size, geometry.patch_size)
        self.proj = nn.Conv3d(3, geometry.embed_dim, kernel_size=kernel, stride=kernel)

    def forward(
        self, clips_BCTHW: Float[Tensor, "B 3 T H W"], token_BK: Int64[Tensor, "B K"] | None = None
    ) -> Float[Tensor, "B K E"]:
        """Tokens of the given cubes; None: of all."""
        if token_BK is not None:
            cubes = take_cubes(clips_BCTHW, token_BK, tubelet_size=self.tubelet_size, patch_size=self.patch_size)
            values = cubes.flatten(2)
        else:
            values = rearrange(
                clips_BCTHW,
                "b c (t p0) (h p1) (w p2) -> b (t h w) (c p0 p1 p2)",
                p0=self.tubelet_size,
                p1=self.patch_size,
                p2=self.patch_size,
            )
        weight = rearrange(self.proj.weight, "e c p0 p1 p2 -> e (c p0 p1 p2)")
        return F.linear(values, weight, self.proj.bias)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `scale_B2` multiplies the two branches of each sample.

    With `cross_attention` the tokens attend to those of a context, and not to each other.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, eps: float, *, cross_attention: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = CrossAttention(dim, num_heads) if cross_attention else Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden_dim(dim, mlp_ratio))

    def forward(
        self,
        x_BNE: Float[Tensor, "B N E"],
        scale_B2: Float32[Tensor, "B 2"] | None = None,
        last: int | None = None,
        context_BVE: Float[Tensor, "B V E"] | None = None,
    ) -> Float[Tensor, "B Q E"]:
        """`last`: only the last so many tokens are computed. They attend to all, or to the context."""
        residual_BQE = x_BNE if last is None else x_BNE[:, -last:]
        if context_BVE is None:
            attended_BQE = self.attn(self.norm1(x_BNE), last)
        else:
            attended_BQE = self.attn(self.norm1(residual_BQE), context_BVE)
        x_BQE = residual_BQE + _scaled(attended_BQE, scale_B2, 0)
        return x_BQE + _scaled(self.mlp(self.norm2(x_BQE)), scale_B2, 1)


def _scaled(branch_BNE: Tensor, scale_B2: Tensor | None, branch: int) -> Tensor:
    return branch_BNE if scale_B2 is None else branch_BNE * scale_B2[:, branch, None, None].to(branch_BNE.dtype)


def drop_path_scale(rng: ClipRng, *, depth: int, rate: float) -> Float32[Tensor, "L B 2"]:
    """Factors of the two branches of every block, for each sample: 0, or 1 / (1 - the block's rate).

    Rates rise linearly from 0 in the first block to `rate` in the last (Huang et al., "Stochastic depth", ECCV 2016).
    """
    device = rng.sample_B.device
    numbers = torch.arange(2 * depth, device=device)
    uniform_LB2 = rearrange(uniform(rng.bits(Purpose.DROP_PATH, numbers)), "b (l two) -> l b two", two=2)
    rates_L11 = torch.linspace(0, rate, depth, device=device)[:, None, None]
    return (uniform_LB2 >= rates_L11).float() / (1 - rates_L11)


def run_blocks(
    blocks: nn.ModuleList,
    x_BNE: Tensor,
    scale_LB2: Tensor | None = None,
    *,
    last: int | None = None,
    context_BVE: Tensor | None = None,
    checkpointing: bool = False,
) -> Tensor:
    """All blocks in turn; the last block computes only the last `last` tokens, or all.

    All blocks with cross-attention attend to the same context.
    `checkpointing` keeps only the activations between blocks and recomputes the others.
    """
    for number, block in enumerate(blocks):
        scale_B2 = None if scale_LB2 is None else scale_LB2[number]
        wanted = last if number == len(blocks) - 1 else None
        if checkpointing and torch.is_grad_enabled():
            # No generator is used inside a block, so no state has to be restored.
            x_BNE = checkpoint(
                block, x_BNE, scale_B2, wanted, context_BVE, use_reentrant=False, preserve_rng_state=False
            )
        else:
            x_BNE = block(x_BNE, scale_B2, wanted, context_BVE)
    return x_BNE


def encoder_blocks(geometry: Geometry) -> nn.ModuleList:
    return nn.ModuleList(
        Block(geometry.embed_dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
        for _ in range(geometry.depth)
    )


class Attention(nn.Module):
    """Self-attention: all tokens, or the last ones, attend to all."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BNE: Tensor, last: int | None = None) -> Tensor:
        # A bias of k adds the same number to all scores of a query, which softmax cancels.
        bias = torch.cat((self.q_bias, torch.zeros_like(self.q_bias), self.v_bias))
        q, k, v = rearrange(
            F.linear(x_BNE, self.qkv.weight, bias),
            "b n (three h e) -> three b h n e",
            three=3,
            h=self.num_heads,
        )
        if last is not None:
            q = q[:, :, -last:]
        joined_BQE = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
        return self.proj(joined_BQE)  # type: ignore[no-any-return]


class CrossAttention(nn.Module):
    """Every token attends to all tokens of a context. Its weights have names of their own: no file confuses the two."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BQE: Tensor, context_BVE: Tensor) -> Tensor:
        q, k, v = (
            rearrange(part, "b n (h e) -> b h n e", h=self.num_heads)
            for part in (self.q(x_BQE), self.k(context_BVE), self.v(context_BVE))
        )
        joined_BQE = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
        return self.proj(joined_BQE)  # type: ignore[no-any-return]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x_BNE: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x_BNE)))  # type: ignore[no-any-return]


@torch.no_grad()
def init_weights(module: nn.Module, *, init: Init, generator: torch.Generator) -> None:
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
