"""The learning-rate schedule and AdamW's parameter groups.

The learning rate is a pure function of the step. The rules are the published ones: peak = base × batch / 256,
warm-up from 0, then a cosine to the lowest learning rate (VideoMAE utils.py:385-402).
"""

from __future__ import annotations

import math
import re

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.recipes import check_bounds
from vmae_train.models.base import trained_parameters
from vmae_train.models.heads import AUXILIARY
from vmae_train.runs.layout import MAX_STEPS

__all__ = ["OptimSpec", "Schedule", "build_optimizer", "layer_scale"]


class OptimSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW and its learning rates, given for a batch of 256. The warm-up is in epochs or in steps."""

    base_lr: float  # peak for a batch of 256; it is scaled with `train.batch`
    min_lr: float = 0.0  # at the end, for a batch of 256
    warmup_epochs: float | None = None  # epochs in which the learning rate rises from 0
    warmup_steps: int | None = None  # the same in steps
    betas: tuple[float, float] = (0.9, 0.999)  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.05  # of AdamW; norms and biases have none
    layer_decay: float = 1.0  # factor of the learning rate from each block to the one below it
    clip_grad: float | None = None  # largest norm of the gradient; none: no limit

    def __post_init__(self) -> None:
        if (self.warmup_epochs is None) == (self.warmup_steps is None):
            raise ValueError(
                f"optim.warmup_epochs = {self.warmup_epochs}, optim.warmup_steps = {self.warmup_steps}: set exactly one of the two"
            )
        check_bounds(self, base_lr=(0, 1000), eps=(0, 1), weight_decay=(0, 1000), clip_grad=(0, 1e9))
        check_bounds(self, warmup_epochs=(0, 1_000_000), warmup_steps=(0, MAX_STEPS))
        if self.base_lr <= 0 or not 0 <= self.min_lr <= self.base_lr:
            raise ValueError(f"base_lr = {self.base_lr}, min_lr = {self.min_lr}: expected 0 <= min_lr <= base_lr > 0")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay = {self.layer_decay}: expected above 0, at most 1")
        if not all(0 <= beta < 1 for beta in self.betas) or self.eps == 0:
            raise ValueError(f"betas = {self.betas}, eps = {self.eps}: expected betas from 0 to below 1, eps above 0")
        if self.clip_grad == 0:
            raise ValueError(f"clip_grad = {self.clip_grad}: expected above 0. Remove the key for no clipping")


class Schedule(msgspec.Struct, frozen=True, kw_only=True):
    """The learning rate of every step: linear from 0 to the peak (both included), then a cosine."""

    peak: float
    lowest: float
    warmup: int
    steps: int

    @classmethod
    def of(cls, spec: OptimSpec, *, batch: int, steps: int, steps_per_epoch: int) -> Schedule:
        warmup = (
            spec.warmup_steps if spec.warmup_steps is not None else round((spec.warmup_epochs or 0) * steps_per_epoch)
        )
        scale = batch / 256
        return cls(peak=spec.base_lr * scale, lowest=spec.min_lr * scale, warmup=min(warmup, steps), steps=steps)

    def lr(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * step / max(1, self.warmup - 1)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lowest + 0.5 * (self.peak - self.lowest) * (1 + math.cos(math.pi * progress))


def layer_scale(name: str, depth: int, decay: float) -> float:
    """decay^(depth + 1 − i): i = 0 for the patch embedding, k + 1 for block k, depth + 1 for the rest.

    VideoMAE optim_factory.py:24-46. To the rest belongs what an auxiliary task adds to the encoder.
    """
    if name.startswith(AUXILIARY):
        return 1.0
    block = re.search(r"\bblocks\.(\d+)\.", name)
    layer = 0 if "patch_embed." in name else int(block[1]) + 1 if block else depth + 1
    return float(decay ** (depth + 1 - layer))


def _is_decayed(name: str, parameter: Tensor) -> bool:
    """Weights of two or more axes decay. Biases, norms, the mask token and the query of a pooling don't.

    VideoMAE optim_factory.py:49-88.
    """
    name = name.removeprefix(AUXILIARY)
    return parameter.ndim > 1 and not name.endswith(".bias") and name not in ("mask_token", "pooler.query")


def build_optimizer(model: nn.Module, spec: OptimSpec, *, depth: int) -> torch.optim.AdamW:
    """AdamW with one group for each (lr scale, weight decay). A group's `scale` multiplies the schedule's value."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        scale = layer_scale(name, depth, spec.layer_decay)
        decay = spec.weight_decay if _is_decayed(name, parameter) else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": params, "scale": scale, "weight_decay": decay} for (scale, decay), params in groups.items()],
        lr=spec.base_lr,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )
