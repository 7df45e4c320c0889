"""`vmae-train feed`: the data side of a training, run alone: what this machine can bring, stage by stage, and what a GPU needs.

A stage is busy for a share of the time: reading and decoding of the workers' time, handing over of this process's,
augmentation of the device's. The busiest one limits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle, meter
from vmae_data.read.fetch import ReadTimings
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch, ClipLoader
from vmae_train.distributed import Distributed, choose_device
from vmae_train.training.setup import RunSpec, TrainingSetup, set_up_training

__all__ = ["FeedReport", "Stage", "feed"]

AUGMENT_SECONDS = 2.0


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """What one step of the data's way costs."""

    name: str
    seconds_a_clip: float
    busy: float  # share of the time of those who do it


class FeedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was brought, and what that took. A clip is one sample's frames, before repeats and views."""

    clips: int
    seconds: float
    clips_per_second: float
    first_batch_seconds: float
    workers: int
    stages: tuple[Stage, ...]
    limits: str
    cpu_seconds_a_clip: float  # of all processes
    cores_used: float
    read_mb: float  # from where the shards lie
    read_mb_per_second: float
    cache_hits: float | None  # share of the samples, None without a cache
    unreadable: dict[str, str]

    def cores_for(self, appetite: float) -> float:
        """CPU cores that bring so many clips a second."""
        return appetite * self.cpu_seconds_a_clip


def feed(
    spec: RunSpec,
    *,
    data: Sequence[str],
    seconds: float,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> FeedReport:
    """Bring a training's batches for `seconds`, as fast as they come, without a model.

    The first batches, on which everything starts, are counted apart. Raises MisuseError and DataError as a training does,
    and MisuseError where the recipe's steps are too few to measure.
    """
    if not 0 < seconds < 1e6:
        raise MisuseError(f"--seconds {seconds:g}: expected a number of seconds, such as 20")
    setup = set_up_training(spec, data, Distributed())
    where = choose_device(device, threads=spec.train.threads)
    with setup.loader(0, where) as loader:
        counted = _bring(loader, setup, seconds, style)
    return _report(counted, setup, _augment_seconds(setup, counted.last, where))


class _Counted(msgspec.Struct, frozen=True):
    """The measured stretch."""

    clips: int
    seconds: float
    first: float
    took: ReadTimings
    cpu: float
    last: Any  # Batch
    unreadable: dict[str, str]


def _bring(loader: ClipLoader, setup: TrainingSetup, seconds: float, style: ProgressStyle) -> _Counted:
    began = time.perf_counter()
    batches = iter(loader)
    last = next(batches)
    first = time.perf_counter() - began
    for _ in range(setup.spec.loader.ahead):  # until then they were decoded while nobody waited
        last = next(batches, last)
    start, took, cpu = time.perf_counter(), loader.timings, _cpu_seconds()
    clips, shown_for = 0, 0
    with meter("seconds", int(seconds), style) as shown:
        for last in _for_seconds(batches, start + seconds):
            clips += last.valid
            passed = min(int(time.perf_counter() - start), int(seconds))
            if passed > shown_for:
                shown.advance(passed - shown_for, f"{clips / (time.perf_counter() - start):.0f} clips/s")
                shown_for = passed
    if not clips:
        raise MisuseError("feed: the recipe ends before anything was measured; give --set train.steps=…")
    return _Counted(
        clips,
        time.perf_counter() - start,
        first,
        loader.timings.minus(took),
        _cpu_seconds() - cpu,
        last,
        dict(loader.unreadable.by_key),
    )


def _for_seconds(batches: Iterator[Batch], stop: float) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if time.perf_counter() >= stop:
            return


def _augment_seconds(setup: TrainingSetup, batch: Batch, device: torch.device) -> float:
    """Of the device, a clip: colour, crop, flip and normalisation of the recipe."""
    augment = Augment(setup.augment).to(device)

    def once() -> None:
        planes = planes_of_views(batch.planes, batch.index_BVT)
        rgb = augment(planes, augment.sample_boxes(planes.size_B2, batch.rng, batch.may_flip_B))
        augment.normalise(rgb)

    def settle_device() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    once()
    settle_device()
    began, times = time.perf_counter(), 0
    while times < 3 or time.perf_counter() - began < AUGMENT_SECONDS:
        once()
        times += 1
        settle_device()
    return (time.perf_counter() - began) / times / len(batch.request.samples)


def _report(counted: _Counted, setup: TrainingSetup, augment: float) -> FeedReport:
    clips, seconds, took = counted.clips, counted.seconds, counted.took
    workers = setup.spec.loader.workers
    rate = clips / seconds
    stages = (
        Stage(
            name="network",
            seconds_a_clip=took.fetch_seconds / clips,
            busy=took.fetch_seconds / (max(1, workers) * seconds),
        ),
        Stage(
            name="decode",
            seconds_a_clip=took.decode_seconds / clips,
            busy=took.decode_seconds / (max(1, workers) * seconds),
        ),
        Stage(name="transfer", seconds_a_clip=took.transfer_seconds / clips, busy=took.transfer_seconds / seconds),
        Stage(name="augment", seconds_a_clip=augment, busy=augment * rate),
    )
    asked = took.cache_hits + took.cache_misses
    return FeedReport(
        clips=clips,
        seconds=seconds,
        clips_per_second=rate,
        first_batch_seconds=counted.first,
        workers=workers,
        stages=stages,
        limits=max(stages, key=lambda stage: stage.busy).name,
        cpu_seconds_a_clip=counted.cpu / clips,
        cores_used=counted.cpu / seconds,
        read_mb=took.range_bytes / 1e6 + took.cache_bytes / 1e6,
        read_mb_per_second=(took.range_bytes + took.cache_bytes) / 1e6 / seconds,
        cache_hits=took.cache_hits / asked if asked else None,
        unreadable=counted.unreadable,
    )


def _cpu_seconds() -> float:
    """Of this process and its children, those that run too."""
    own = os.getpid()
    ticks = sum(
        int(fields[11]) + int(fields[12]) for pid, fields in _processes() if pid == own or int(fields[1]) == own
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process of this machine: its number, and what stands behind the name in /proc/PID/stat."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                yield int(path.name), (path / "stat").read_text().rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):
                continue  # it ended meanwhile
