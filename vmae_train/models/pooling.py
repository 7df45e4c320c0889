"""What a probe, or a finetuning with `standardize`, puts on the encoder's tokens: standardisation, and attentive pooling.

Attentive pooling: all tokens of a clip → one vector, by cross-attention of one learned query. As in the probes of
V-JEPA (Bardes et al., 2024, section 4): cross-attention, then an MLP, each with a residual.

B batch, N tokens, E channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vmae_train.models.geometry import hidden_dim
from vmae_train.models.vit import Mlp

__all__ = ["AttentivePooler", "Standardize"]


class Standardize(nn.Module):
    """(x - mean) / spread of each channel, with fixed statistics, also while the encoder learns. New: mean 0, spread 1.

    Masked autoencoders have channels of very different spreads, so a linear head on them hardly learns. MAE's linear
    probe has a batch norm without weights here (He et al., 2022, section A.1). Statistics that are fixed before the
    first step depend neither on the batch nor on the number of processes.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))

    def reset(self) -> None:
        self.mean.zero_()
        self.spread.fill_(1)

    def fit(self, mean_E: Tensor, square_E: Tensor) -> None:
        """Set the statistics from the means of the values and of their squares."""
        self.mean.copy_(mean_E)
        self.spread.copy_(((square_E - mean_E.square()).clamp_min(0) + 1e-6).sqrt())

    def is_fitted(self) -> bool:
        """Whether it has statistics: those of a trained head stay."""
        return bool(self.mean.any())

    def forward(self, x: Float[Tensor, "*B E"]) -> Float[Tensor, "*B E"]:
        standardized: Tensor = (x - self.mean) / self.spread
        return standardized


class AttentivePooler(nn.Module):
    """The tokens of a clip → one vector."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden_dim(dim, mlp_ratio))

    def reset_query(self, generator: torch.Generator) -> None:
        nn.init.trunc_normal_(self.query, std=0.02, generator=generator)

    def forward(self, x_BNE: Float[Tensor, "B N E"]) -> Float[Tensor, "B E"]:
        query_B1E = self.query.expand(x_BNE.shape[0], -1, -1)
        q = rearrange(self.q(query_B1E), "b n (h e) -> b h n e", h=self.num_heads)
        k, v = rearrange(self.kv(self.norm1(x_BNE)), "b n (two h e) -> two b h n e", two=2, h=self.num_heads)
        attended_B1E = rearrange(F.scaled_dot_product_attention(q, k, v), "b h n e -> b n (h e)")
        pooled_B1E = query_B1E + self.proj(attended_B1E)
        pooled_B1E = pooled_B1E + self.mlp(self.norm2(pooled_B1E))
        pooled_BE: Tensor = rearrange(pooled_B1E, "b 1 e -> b e")
        return pooled_BE
