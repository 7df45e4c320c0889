"""A clip specification and shards → whether they fit, and the spacing of a clip's frames in words and numbers."""

from __future__ import annotations

import numpy as np

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_train.clips.frame_sampling import ClipSpec, kept_step

__all__ = ["check_spacing", "describe_clip", "kept_spacing"]


def check_spacing(clip: ClipSpec, shards: Shards, num_frames: int, num_clips: int = 1) -> str | None:
    """A note for the log if thinned shards may not hold the exact frames of the sampler; None if they hold them all.

    Raises MisuseError if more than half of the videos would repeat a frame within a clip.
    """
    clip, kept = clip.resolve(shards.index), shards.index.stride
    if clip.sampler == "stride" or shards.index.rate is not None or kept is None or kept == 1:
        return None
    if clip.sampler == "uniform":
        spacing = float(np.median(shards.source_frames_N)) / num_frames / num_clips
        if spacing < kept:
            raise MisuseError(
                f"{shards.url}: clip.sampler = uniform needs frames {spacing:.3g} source frames apart (median, {num_clips} "
                f"{'clip' if num_clips == 1 else 'clips'} of {num_frames}), the shards keep one in {kept}. "
                "Build shards with stride 1"
            )
    elif isinstance(clip.stride, int) and clip.stride < kept:
        raise MisuseError(f"clip.stride = {clip.stride}: the shards keep one frame in {kept}. Give {kept} or more")
    at_end = f", or {kept - 1} after the last kept frame" if kept - 1 > kept / 2 else ""
    return f"each frame is the nearest kept one, at most {kept / 2:g} source frames away{at_end}"


def describe_clip(clip: ClipSpec, shards: Shards, num_frames: int) -> str:
    """How the frames of a clip are chosen, in words."""
    clip = clip.resolve(shards.index)
    if clip.sampler == "uniform":
        return f"one frame of each of {num_frames} equal segments of the video"
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
