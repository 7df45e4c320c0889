"""Attentive pooling: all tokens of a clip → one vector, by cross-attention of one learned query.

As in the probes of V-JEPA (Bardes et al., 2024, section 4): cross-attention, then an MLP, each with a residual.

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

__all__ = ["AttentivePooler"]


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
