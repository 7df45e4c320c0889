"""A running mean of a model's weights (exponential moving average), kept beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vmae_data.errors import DataError
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.runs.layout import EMA_FILE

__all__ = ["EmaSpec", "WeightMean"]


class EmaSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How slowly the mean of the weights follows them, a share a step; None: none is kept."""

    decay: float | None = None

    def __post_init__(self) -> None:
        if self.decay is not None and not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay = {self.decay}: expected 0 or more, below 1")

    def of(self, model: nn.Module) -> WeightMean | None:
        return None if self.decay is None else WeightMean(model, self.decay)


class WeightMean:
    """mean = decay · mean + (1 - decay) · weights, after every step; float32, on the model's device.

    Names are those of the state dict, so that the file can take the place of model.safetensors.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """The mean begins at the weights as they are. Raises ValueError for a decay that is no share."""
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: expected 0 or more, below 1")
        self.decay = decay
        self._mean = {name: value.detach().float().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""
        weights = model.state_dict()
        means = list(self._mean.values())
        torch._foreach_lerp_(means, [weights[name].detach().float() for name in self._mean], 1 - self.decay)

    @contextmanager
    def in_place_of(self, model: nn.Module) -> Iterator[None]:
        """The model has the means for a while, to be scored or saved; then its own weights again, to the bit."""
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self._mean)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def save(self, folder: Path) -> None:
        """Write ema.safetensors into a checkpoint's folder. Raises VmaeError when the disk says no."""
        state = {name: value.cpu().contiguous() for name, value in self._mean.items()}
        commit_bytes(folder / EMA_FILE, safetensors.torch.save(state))

    def load(self, folder: Path) -> None:
        """Go on from a checkpoint's means, bit for bit. Raises DataError when they are another model's."""
        path = folder / EMA_FILE
        try:
            state: dict[str, Tensor] = safetensors.torch.load(read_bytes(path))
        except SafetensorError as error:
            raise DataError(f"{path}: not readable weights ({error}); take another checkpoint") from error
        wanted = {name: value.shape for name, value in self._mean.items()}
        if {name: value.shape for name, value in state.items()} != wanted:
            raise DataError(f"{path}: holds other weights than the model's; they are of different models")
        for name, mean in self._mean.items():
            mean.copy_(state[name])
