"""What both trainings look at before the first step, and what they tell of it."""

from __future__ import annotations

import torch

from vmae_data.errors import MisuseError
from vmae_data.read.shards import Shards
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.views import ClipSpec, ExactStride, Frozen, kept_step
from vmae_train.training.engine import TrainSpec
from vmae_train.training.optim import Schedule
from vmae_train.training.run import TrainingOrder

__all__ = ["check_frame_sizes", "clip_rows", "run_rows", "training_sampler"]


def training_sampler(clip: ClipSpec, num_frames: int, shards: Shards) -> ExactStride | Frozen:
    """Raises MisuseError when the shards' stride does not divide the recipe's."""
    sampler = ExactStride(num_frames, kept_step(clip.stride, shards.index.stride))
    return Frozen(sampler) if clip.frozen else sampler


def check_frame_sizes(shards: Shards, spec: AugmentSpec) -> None:
    """Raises MisuseError where a plain random crop finds no room in some video."""
    smallest = int(shards.size_N2.min())
    if spec.crop == "random" and smallest < (spec.size or 0):
        raise MisuseError(
            f"{shards.url}: a video is {smallest} px small, crop = random cuts {spec.size} px without resizing; "
            "use crop = multiscale, or build larger shards"
        )


def clip_rows(shards: Shards, clip: ClipSpec, num_frames: int) -> dict[str, str]:
    """What a clip spans, for the table at the start."""
    rates = sorted(shards.rate_N * shards.index.stride)
    median = float(rates[len(rates) // 2])
    seconds = clip.stride * (num_frames - 1) / median
    short = int((shards.frames_NP[:, 0] < num_frames * (clip.stride // shards.index.stride)).sum())
    rows = {
        "data": f"{shards.url}, {len(shards)} samples, shards of stride {shards.index.stride}",
        "clip": f"{num_frames} frames, stride {clip.stride} source frames; {seconds:.2f} s at {median:.4g} frames/s (median)"
        + (", one frame repeated" if clip.frozen else ""),
    }
    if short:
        rows["short videos"] = f"{short} are shorter than a clip and repeat their last frame"
    return rows


def run_rows(
    train_spec: TrainSpec,
    schedule: Schedule,
    order: TrainingOrder,
    done: int,
    device: torch.device,
    dtype: str,
) -> dict[str, str]:
    """Rates, steps and batch as resolved."""
    return {
        "batch": f"{train_spec.batch} a step, in {train_spec.portions} micro-batches of "
        f"{train_spec.batch // train_spec.portions}",
        "rate": f"peak {schedule.peak:.4g} (base × batch / 256), lowest {schedule.lowest:.4g}, "
        f"warm-up {schedule.warmup} steps",
        "steps": f"{schedule.steps} ({schedule.steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch})"
        + (f", {done} done" if done else ""),
        "device": f"{device}, {dtype.removeprefix('torch.')}, {torch.get_num_threads()} CPU threads",
    }
