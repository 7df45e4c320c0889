"""What all models share: geometry, training options, frames → clips, first weights.

B batch, C colours, T frames, H rows, W columns, S the model's image size, N tokens, E channels, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32
from torch import Tensor, nn

from vmae_train.clips.colour import per_colour
from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import Geometry, Init, ModelSpec
from vmae_train.models.positions import position_embedding
from vmae_train.models.vit import Block, drop_path_scale, init_weights

__all__ = ["VideoModel", "described", "trained_parameters", "training_only_parameters"]


class VideoModel(nn.Module):
    """The base of the pretraining model and of the models with a head."""

    mean_C: Tensor
    std_C: Tensor
    position_NE: Tensor

    def __init__(self, geometry: Geometry, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.geometry = geometry
        self.classes = classes
        self.drop_path = self.fc_drop_rate = 0.0
        self.activation_checkpointing = False

    def __repr__(self) -> str:
        """One line. The parts have PyTorch's own: `print(model.encoder)`, `print(model.blocks)`."""
        geometry, numbers = self.geometry, sum(parameter.numel() for parameter in self.parameters())
        clip = f"{geometry.num_frames} frames of {geometry.image_size} px"
        size = f"{geometry.depth} blocks of {geometry.embed_dim} channels, {numbers / 1e6:.4g} M parameters"
        return f"{type(self).__name__}({', '.join([size, clip, *self._outputs()])})"

    def _outputs(self) -> tuple[str, ...]:
        """The outputs of a head, for the repr."""
        return ()

    def set_options(self, spec: ModelSpec) -> None:
        """Set drop path, dropout of the head, activation checkpointing and compilation from a recipe.

        None of them changes the function of the trained model. Compilation keeps the names of the weights.
        """
        self.drop_path, self.fc_drop_rate = spec.drop_path, spec.fc_drop_rate
        self.activation_checkpointing = spec.activation_checkpointing
        if spec.compile:
            for part in self.modules():
                if isinstance(part, Block):  # all blocks are alike: one compilation serves them all
                    part.compile()

    def preprocess(self, frames_BTHWC: Tensor, *, antialias: bool = True) -> Float32[Tensor, "B 3 T S S"]:
        """RGB frames, uint8 (B, T, H, W, 3), to clips: short side resized to the model's size, centre crop, (rgb / 255 - mean) / std.

        Resizes with antialias, as transformers' processors; without, as VideoMAE's own evaluation.
        Raises ValueError for other axes than B T H W 3, another type than uint8, another number of frames, and frames so
        narrow that a side of more than 16384 pixels would result.
        """
        self.check_frames(frames_BTHWC)
        frames = rearrange(frames_BTHWC.to(self.mean_C.device), "b t h w c -> (b t) c h w").float()
        frames = _centre_square(frames, self.geometry.image_size, antialias=antialias) / 255
        rgb01 = rearrange(frames, "(b t) c h w -> b c t h w", b=len(frames_BTHWC))
        return (rgb01 - per_colour(self.mean_C)) / per_colour(self.std_C)

    def check_frames(self, frames_BTHWC: Any) -> None:
        """Raises ValueError for other axes than B T H W 3, another type than uint8, and another number of frames."""
        shape = tuple(getattr(frames_BTHWC, "shape", ()))
        if len(shape) != 5 or shape[-1] != 3 or 0 in shape or frames_BTHWC.dtype != torch.uint8:
            raise ValueError(
                f"frames are {described(frames_BTHWC)}; expected a tensor of uint8 with the axes B T H W 3"
            )
        if shape[1] != self.geometry.num_frames:
            raise ValueError(f"{shape[1]} frames given; a clip has {self.geometry.num_frames}")

    def _check_clips(self, clips_BCTHW: Tensor) -> None:
        """Raises ValueError for clips of other axes, another type or on another device than the model's.

        And for values that `checks_values` forbids.
        """
        size, device, dtype = self.geometry.image_size, self.mean_C.device, next(self.parameters()).dtype
        shape = tuple(getattr(clips_BCTHW, "shape", ()))
        fits = shape == (*shape[:1], 3, self.geometry.num_frames, size, size) and clips_BCTHW.device == device
        if fits and clips_BCTHW.dtype != dtype:
            fits = torch.is_autocast_enabled(device.type) and clips_BCTHW.dtype in _AUTOCAST_TYPES
        if not fits:
            raise ValueError(
                f"clips are {described(clips_BCTHW)}; expected a tensor of {_name(dtype)} with the axes "
                f"B 3 {self.geometry.num_frames} {size} {size} on {device}, as `preprocess` gives it"
            )
        if self.checks_values(clips_BCTHW):
            self._check_range(clips_BCTHW)

    def checks_values(self, tensor: Tensor) -> bool:
        """Whether the values of an input are checked: in eval mode only, since a check waits for the device."""
        if self.training or tensor.is_meta or type(tensor) is not Tensor or not tensor.numel():
            return False
        is_captured = tensor.is_cuda and torch.cuda.is_current_stream_capturing()
        return not (torch.compiler.is_compiling() or is_captured)

    def _check_range(self, clips_BCTHW: Tensor) -> None:
        """Raises ValueError for NaN, and for values far from those of `preprocess`, such as pixels of 0 to 255."""
        colours = list(zip(self.geometry.mean, self.geometry.std, strict=True))
        black, white = (f(((level - mean) / std) for mean, std in colours) for f, level in ((min, 0), (max, 1)))
        least, most = torch.stack(torch.aminmax(clips_BCTHW.detach())).tolist()
        limit = max(_MAX_VALUE, -black, white)
        if not (-limit <= least and most <= limit):
            raise ValueError(
                f"clips have values from {least:.4g} to {most:.4g}; expected {black:.4g} to {white:.4g}, "
                "as `preprocess` gives them"
            )

    def _materialise(self, seed: int | None, init: Init) -> torch.Generator | None:
        """Memory for the parts built on the meta device, first weights from the seed, then the constant buffers.

        Building on the meta device uses no global generator. Returns the generator for further weights; a `seed` of
        None leaves the weights for a loader to fill.
        """
        self.to_empty(device="cpu")
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if generator is not None:
            init_weights(self, init=init, generator=generator)
        geometry = self.geometry
        self.register_buffer("mean_C", torch.tensor(geometry.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(geometry.std), persistent=False)
        self.register_buffer("position_NE", position_embedding(geometry, geometry.embed_dim), persistent=False)
        return generator

    def _drop_path_scale(self, rng: ClipRng | None) -> Tensor | None:
        """(L, B, 2) factors of the encoder's branches, in training only."""
        if rng is None or not self.training or not self.drop_path:
            return None
        return drop_path_scale(rng, depth=self.geometry.depth, rate=self.drop_path)


def trained_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Names and parameters that an optimizer updates: all but frozen ones."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def training_only_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters that the state dict lacks: a prediction does not need them."""
    kept = model.state_dict()
    return {name: parameter for name, parameter in trained_parameters(model) if name not in kept}


# Autocast converts these by itself.
_AUTOCAST_TYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_VALUE = 10  # more than a million normal random numbers have
_MAX_SIDE = 16384  # as of a frame in a shard


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def described(value: object) -> str:
    """Type, shape and device of a tensor, or the type of anything else, for an error."""
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}"
    return f"{_name(value.dtype)} of shape {tuple(value.shape)} on {value.device}"


def _centre_square(frames: Tensor, size: int, *, antialias: bool) -> Tensor:
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        resized = (size * height // short, size * width // short)
        if max(resized) > _MAX_SIDE:
            raise ValueError(
                f"frames of {height} × {width} pixels (H × W) would be {resized[0]} × {resized[1]} with a short side of "
                f"{size}; the limit of a side is {_MAX_SIDE}. Crop them first"
            )
        frames = F.interpolate(frames, resized, mode="bilinear", antialias=antialias, align_corners=False)
        height, width = resized
    top, left = round((height - size) / 2), round((width - size) / 2)  # half a pixel to even, as `view_boxes`
    return frames[..., top : top + size, left : left + size]
