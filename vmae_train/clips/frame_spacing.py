"""How far apart a clip's frames lie on the shards at hand, checked and in words."""

from __future__ import annotations

import numpy as np

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_train.clips.frame_sampling import ClipSpec, kept_step

__all__ = ["check_spacing", "clip_words", "kept_spacing"]


def check_spacing(clip: ClipSpec, shards: Shards, num_frames: int, num_clips: int = 1) -> str | None:
    """What a person should know of a sampler that wants frames which thinned shards may not hold; None where it finds each.

    Raises MisuseError where more than half of the videos would give the same frame to neighbours of a clip.
    """
    clip, kept = clip.on(shards.index), shards.index.stride
    if clip.sampler == "stride" or shards.index.rate is not None or kept is None or kept == 1:
        return None
    if clip.sampler == "uniform":
        spacing = float(np.median(shards.source_frames_N)) / num_frames / num_clips
        if spacing < kept:
            raise MisuseError(
                f"{shards.url}: clip.sampler = uniform wants frames {spacing:.3g} source frames apart (median, {num_clips} "
                f"{'clip' if num_clips == 1 else 'clips'} of {num_frames}), the shards keep one in {kept}; "
                "build shards with stride 1"
            )
    elif isinstance(clip.stride, int) and clip.stride < kept:
        raise MisuseError(f"clip.stride = {clip.stride}: the shards keep one frame in {kept}; give {kept} or more")
    behind = f", or {kept - 1} behind the last" if kept - 1 > kept / 2 else ""
    return f"each wanted frame is the nearest kept one, at most {kept / 2:g} source frames away{behind}"


def clip_words(clip: ClipSpec, shards: Shards, num_frames: int) -> str:
    """How a clip's frames are chosen, for a person to read."""
    clip = clip.on(shards.index)
    if clip.sampler == "uniform":
        return f"one of each {num_frames}th part of the video"
    spacing = f"stride {clip.stride} source frames" if clip.rate is None else f"{clip.rate:g} frames a second"
    kept_rate = float(np.median(shards.rate_N))
    between = kept_spacing(clip, shards)
    if clip.sampler == "dense":  # both ends of num_frames × stride are reached
        seconds = between * num_frames / kept_rate
        return f"spread over {num_frames} × {spacing}; {seconds:.2f} s at {kept_rate:.4g} kept frames/s (median)"
    return f"{spacing}; {between * (num_frames - 1) / kept_rate:.2f} s at {kept_rate:.4g} kept frames/s (median)"


def kept_spacing(clip: ClipSpec, shards: Shards) -> float:
    """Kept frames from one frame of a clip to the next."""
    if clip.sampler == "dense" and isinstance(clip.stride, int) and shards.index.stride:
        return clip.stride / shards.index.stride
    return kept_step(clip, shards.index)
