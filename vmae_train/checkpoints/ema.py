"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.errors import DataError
from vmae_train.checkpoints.native import read_weights
from vmae_train.distributed import shard_like
from vmae_train.runs.layout import EMA_FILE

__all__ = ["EmaSpec", "ModelEma"]


class EmaSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of the old average that each step keeps; None: no average is kept."""

    decay: float | None = None  # such as 0.9999; none: off

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay = {self.decay}: expected 0 or more, below 1")

    def build(self, model: nn.Module) -> ModelEma | None:
        return None if self.decay is None else ModelEma(model, self.decay)


class ModelEma:
    """average = decay · average + (1 - decay) · weights, after every step; float32, on the model's device.

    The names are those of the state dict: the file can replace model.safetensors.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The average starts at the current weights. Raises ValueError for a decay outside [0, 1)."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: expected 0 or more, below 1")
        self.decay = decay
        self.averages = {name: value.detach().float().clone() for name, value in model.state_dict().items()}
        # A probe's statistics are constant. What only a training has is in no state dict.
        self._parameters = [name for name, _ in model.named_parameters() if name in self.averages]

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Add the weights after an optimizer step: a state dict, or this process's part of each of its tensors."""
        averages = [self.averages[name] for name in self._parameters]
        torch._foreach_lerp_(averages, [weights[name].detach().float() for name in self._parameters], 1 - self.decay)

    def load(self, folder: Path) -> None:
        """Resume from a checkpoint's averages, bit for bit. Raises DataError if they are another model's."""
        path = folder / EMA_FILE
        state = read_weights(path)
        shapes = {name: value.shape for name, value in self.averages.items()}
        if {name: value.shape for name, value in state.items()} != shapes:
            raise DataError(f"{path}: names or shapes of the weights differ from the model's. It is of another model")
        for name, average in self.averages.items():
            average.copy_(shard_like(state[name], average))
