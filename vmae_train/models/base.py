"""What all models share: geometry, options, the way from frames to clips, first weights.

B batch, C colours, T frames, H rows, W columns, S the model's image size, N tokens, E channels, L blocks.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float32, UInt8
from torch import Tensor, nn

from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import Geometry, Init, TrainOptions
from vmae_train.models.positions import position_code
from vmae_train.models.vit import Block, drop_path_scale, initialise

__all__ = ["VideoModel", "encoder_blocks", "generator_of", "per_colour"]


class VideoModel(nn.Module):
    """What both models share: geometry, classes, first weights, the way from frames to clips."""

    mean_C: Tensor
    std_C: Tensor
    position_NE: Tensor

    def __init__(self, geometry: Geometry, classes: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.geometry = geometry
        self.classes = classes
        self.options = TrainOptions()

    def set_options(self, options: TrainOptions) -> None:
        """How it trains from now on. Compiling leaves the names of the weights as they are."""
        self.options = options
        if options.compile:
            for part in self.modules():
                if isinstance(part, Block):  # all blocks are alike: one compilation serves them all
                    part.compile()

    def preprocess(self, frames_BTHWC: UInt8[Tensor, "B T H W 3"]) -> Float32[Tensor, "B 3 T S S"]:
        """RGB frames to clips: short side to the model's size, centre, (rgb / 255 - mean) / std.

        Raises ValueError for another number of frames than the model's.
        """
        if frames_BTHWC.shape[1] != self.geometry.num_frames:
            raise ValueError(f"{frames_BTHWC.shape[1]} frames given; a clip has {self.geometry.num_frames}")
        frames = rearrange(frames_BTHWC.to(self.mean_C.device), "b t h w c -> (b t) c h w").float()
        frames = _centre_square(frames, self.geometry.image_size) / 255
        rgb01 = rearrange(frames, "(b t) c h w -> b c t h w", b=len(frames_BTHWC))
        return (rgb01 - per_colour(self.mean_C)) / per_colour(self.std_C)

    def _fill(self, generator: torch.Generator | None, init: Init) -> None:
        """Memory for the parts built on the meta device, then first weights, then the fixed numbers.

        Building on the meta device draws nothing from the global generator.
        """
        self.to_empty(device="cpu")
        if generator is not None:
            initialise(self, init=init, generator=generator)
        geometry = self.geometry
        self.register_buffer("mean_C", torch.tensor(geometry.mean), persistent=False)
        self.register_buffer("std_C", torch.tensor(geometry.std), persistent=False)
        self.register_buffer("position_NE", position_code(geometry, geometry.embed_dim), persistent=False)

    def _drop_path(self, rng: ClipRng | None) -> Tensor | None:
        """(L, B, 2) factors of the encoder's branches, in training only."""
        if rng is None or not self.training or not self.options.drop_path:
            return None
        return drop_path_scale(rng, depth=self.geometry.depth, rate=self.options.drop_path)


def encoder_blocks(geometry: Geometry) -> nn.ModuleList:
    return nn.ModuleList(
        Block(geometry.embed_dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
        for _ in range(geometry.depth)
    )


def generator_of(seed: int | None) -> torch.Generator | None:
    return None if seed is None else torch.Generator().manual_seed(seed)


def per_colour(x_C: Tensor) -> Tensor:
    return rearrange(x_C, "c -> c 1 1 1")


def _centre_square(frames: Tensor, size: int) -> Tensor:
    height, width = frames.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        resized = (size * height // short, size * width // short)
        frames = F.interpolate(frames, resized, mode="bilinear", antialias=True, align_corners=False)
        height, width = resized
    top, left = (height - size) // 2, (width - size) // 2
    return frames[..., top : top + size, left : left + size]
