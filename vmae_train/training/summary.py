"""The resolved values of a training, printed as a table before the first step."""

from __future__ import annotations

import sys

import torch

from vmae_data.amounts import plural
from vmae_data.read.batches import TrainingOrder
from vmae_data.read.dataset import Shards
from vmae_data.read.order import WINDOW_SHARDS, stream_count
from vmae_data.read.stream import is_remote
from vmae_train.clips.frame_spacing import check_spacing, describe_clip, kept_spacing
from vmae_train.clips.loader import MAX_ASPECT, padded_size
from vmae_train.training.setup import TrainingSetup

__all__ = ["print_summary", "training_rows"]


def print_summary(title: str, rows: dict[str, str], *, quiet: bool) -> None:
    """Print a table to stderr."""
    if quiet:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console(file=sys.stderr, highlight=False).print(table)


def training_rows(setup: TrainingSetup, device: torch.device, dtype: torch.dtype, done: int) -> dict[str, str]:
    """Data, clips, batch, learning rate, steps and device. `done` steps are finished."""
    train, schedule, order = setup.spec.train, setup.schedule, setup.order
    return {
        **_data_rows(setup),
        **_appended_row(order),
        "batch": f"{train.batch} a step, {_layout_text(setup)}"
        + (f"; {train.repeats} clips of each video" if train.repeats > 1 else ""),
        "learning rate": f"peak {schedule.peak:.4g} (base × batch / 256), lowest {schedule.lowest:.4g}, "
        f"warm-up {schedule.warmup} steps",
        "steps": f"{schedule.steps} ({schedule.steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch})"
        + (f", {done} done" if done else ""),
        "device": f"{device}, {str(dtype).removeprefix('torch.')}, {plural(torch.get_num_threads(), 'CPU thread')}",
        **_cache_row(setup),
    }


def _appended_row(order: TrainingOrder) -> dict[str, str]:
    """From which epochs on appended shards are read."""
    later = [f"{sum(stage.shards)} shards from epoch {stage.epoch} on" for stage in order.stages[1:]]
    return {"appended": f"{sum(order.stages[0].shards)} shards at first, {', '.join(later)}"} if later else {}


def _data_rows(setup: TrainingSetup) -> dict[str, str]:
    """The rows of each data set; numbered if there are several."""
    mixture = setup.mixture
    if len(mixture.sets) == 1:
        return _rows_of(setup, mixture.sets[0])
    total = sum(mixture.weights)
    rows: dict[str, str] = {}
    for i, shards in enumerate(mixture.sets):
        share = mixture.weights[i] / total if mixture.weights else len(shards) / len(mixture)
        numbered = _rows_of(setup, shards)
        numbered["data"] += f"; {share:.1%} of a batch on average"
        rows |= {f"{name} {i + 1}": text for name, text in numbered.items()}
    return rows


def _rows_of(setup: TrainingSetup, shards: Shards) -> dict[str, str]:
    clip, num_frames = setup.spec.clip.resolve(shards.index), setup.geometry.num_frames
    rows = {
        "data": f"{shards.url}, {len(shards)} samples, shards of {shards.index.spacing}",
        "clip": f"{num_frames} frames, {describe_clip(clip, shards, num_frames)}"
        + (", one frame repeated" if clip.frozen else ""),
    }
    if shards.note:
        rows["index"] = shards.note
    if nearest := check_spacing(clip, shards, num_frames):
        rows["thinned"] = nearest
    if setup.spec.augment.flip and not shards.index.may_flip:
        rows["no flip"] = "the data set forbids flips of its videos"
    wide = int((shards.size_N2 > padded_size(setup.mixture)).any(axis=1).sum())
    if wide:
        rows["wide videos"] = f"{wide} are wider than {MAX_ASPECT} × the short side: their centre is used"
    needed = num_frames if clip.sampler == "uniform" else num_frames * kept_spacing(clip, shards)
    short = int((shards.frames_NP[:, 0] < needed).sum())
    if short:
        rows["short videos"] = f"{short} are shorter than a clip: their frames are repeated"
    return rows


def _layout_text(setup: TrainingSetup) -> str:
    layout = setup.layout
    steps = layout.grad_accum_steps
    text = f"in {steps} micro-batches of {layout.micro_batch}" if steps > 1 else "at once"
    train = setup.spec.train
    engine = f"deepspeed, stage {train.zero_stage}" if train.engine == "deepspeed" else train.engine
    processes = f"{layout.world_size} processes" + ("" if engine == "ddp" else f" by {engine}")
    return f"{processes}, each {text}" if layout.world_size > 1 else text


def _cache_row(setup: TrainingSetup) -> dict[str, str]:
    """The cache's limit, and the size of the window of shards that samples come from."""
    cache = setup.spec.cache
    if cache.dir is None:
        return {}
    if not is_remote(setup.mixture.urls):
        return {"cache": "not used: the data is on this machine"}
    sizes = [listed.filesize for shards in setup.mixture.sets for listed in shards.index.shardlist]
    open_shards = min(len(sizes), stream_count(setup.spec.train.batch) * (WINDOW_SHARDS + 1))
    window = open_shards * sum(sizes) / len(sizes)
    return {
        "cache": f"{cache.dir}, at most {cache.limit / 1e9:.4g} GB; samples come from a window of about "
        f"{window / 1e9:.4g} GB of {sum(sizes) / 1e9:.4g} GB, shared by the nodes"
    }
