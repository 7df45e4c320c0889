"""`vmae-train feed`: a training's recipe and data → the clips per second that this machine delivers, without a model.

A stage is busy for a share of the time: fetch and decode of the workers' time, transfer of this process's time,
augmentation of the device's time. The time is that of a training without a model. The busiest stage is the limit.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.fetch import ReadTimings
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed, choose_device
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.setup import TrainingSetup, set_up_training

__all__ = ["FeedReport", "Stage", "feed"]

AUGMENT_SECONDS = 2.0


class Stage(msgspec.Struct, frozen=True, kw_only=True):
    """The cost of one stage of loading."""

    name: str
    seconds_a_clip: float
    busy: float  # share of the time of its workers, process or device


class FeedReport(msgspec.Struct, frozen=True, kw_only=True):
    """The clips of a measurement, and their cost. A clip is one sample's frames, before repeats and views."""

    clips: int
    seconds: float
    clips_per_second: float  # of the loader
    training_clips_per_second: float  # at most: of the loader and the augmentation, without a model
    first_batch_seconds: float
    workers: int
    stages: tuple[Stage, ...]
    limits: str
    cpu_seconds_a_clip: float  # of all processes
    cores_used: float
    read_mb: float  # from the shards
    read_mb_per_second: float
    cache_hits: float | None  # share of the samples; None without a cache
    unreadable: dict[str, str]

    def cores_for(self, clips_per_second: float) -> float:
        """The CPU cores that deliver this many clips per second."""
        return clips_per_second * self.cpu_seconds_a_clip


def feed(
    spec: RunSpec,
    *,
    data: Sequence[str],
    seconds: float,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> FeedReport:
    """Load the batches of a training for `seconds`, as fast as possible, without a model.

    The first batches, while the workers start, are not measured. Raises MisuseError and DataError as a training does,
    and MisuseError if the recipe has too few steps to measure.
    """
    if not 0 < seconds < 1e6:
        raise MisuseError(f"--seconds {seconds:g}: expected a number of seconds, such as 20")
    setup = set_up_training(spec, data, Distributed())
    chosen_device = choose_device(device, threads=spec.train.threads)
    with setup.loader(0, chosen_device) as loader:
        created = time.perf_counter()
        batches = iter(loader)
        batch = next(batches)
        first_batch_seconds = time.perf_counter() - created
        for _ in range(spec.loader.ahead):  # these were decoded before the measurement
            batch = next(batches, batch)
        start, timings, cpu_seconds = time.perf_counter(), loader.timings, _cpu_seconds()
        clips, shown = 0, 0
        with ProgressBar("seconds", int(seconds), style) as progress:
            for batch in _until(start + seconds, batches):
                clips += batch.valid
                elapsed = time.perf_counter() - start
                if min(int(elapsed), int(seconds)) > shown:
                    progress.advance(min(int(elapsed), int(seconds)) - shown, f"{clips / elapsed:.0f} clips/s")
                    shown = min(int(elapsed), int(seconds))
        if not clips:
            raise MisuseError("train.steps: the recipe ends before the measurement. Set more steps or epochs")
        elapsed = time.perf_counter() - start
        timings, cpu_seconds = loader.timings.minus(timings), _cpu_seconds() - cpu_seconds
        unreadable = dict(loader.unreadable.by_key)
    augment_seconds = _augment_seconds(setup, batch, chosen_device)
    training_seconds = _training_seconds(elapsed, augment_seconds * clips, spec.loader.workers, chosen_device)
    stages = _stages(clips, training_seconds, timings, spec.loader.workers, augment_seconds)
    read_mb, cached = (timings.range_bytes + timings.cache_bytes) / 1e6, timings.cache_hits + timings.cache_misses
    return FeedReport(
        clips=clips,
        seconds=elapsed,
        clips_per_second=clips / elapsed,
        training_clips_per_second=clips / training_seconds,
        first_batch_seconds=first_batch_seconds,
        workers=spec.loader.workers,
        stages=stages,
        limits=max(stages, key=lambda stage: stage.busy).name,
        cpu_seconds_a_clip=cpu_seconds / clips,
        cores_used=cpu_seconds / elapsed,
        read_mb=read_mb,
        read_mb_per_second=read_mb / elapsed,
        cache_hits=timings.cache_hits / cached if cached else None,
        unreadable=unreadable,
    )


def _until(stop: float, batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        yield batch
        if time.perf_counter() >= stop:
            return


def _training_seconds(loading: float, augmenting: float, workers: int, device: torch.device) -> float:
    """The time of both. They overlap, unless one process decodes and augments on its CPU."""
    return loading + augmenting if device.type == "cpu" and workers == 0 else max(loading, augmenting)


def _stages(
    clips: int, elapsed: float, timings: ReadTimings, workers: int, augment_seconds: float
) -> tuple[Stage, ...]:
    """`augment_seconds`: of one clip."""
    return tuple(
        Stage(name=name, seconds_a_clip=total / clips, busy=total / (elapsed * parallel))
        for name, total, parallel in (
            ("network", timings.fetch_seconds, max(1, workers)),
            ("decode", timings.decode_seconds, max(1, workers)),
            ("transfer", timings.transfer_seconds, 1),
            ("augment", augment_seconds * clips, 1),
        )
    )


def _augment_seconds(setup: TrainingSetup, batch: Batch, device: torch.device) -> float:
    """Seconds of the device per clip: colour, crop, flip and normalisation of the recipe."""
    augment = Augment(setup.augment).to(device)

    def augment_batch() -> None:
        planes = planes_of_views(batch.planes, batch.index_BVT)
        rgb = augment(planes, augment.sample_boxes(planes.size_B2, batch.rng, batch.may_flip_B))
        augment.normalise(rgb)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    augment_batch()
    start, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - start < AUGMENT_SECONDS:
        augment_batch()
        count += 1
    return (time.perf_counter() - start) / count / len(batch.request.samples)


def _cpu_seconds() -> float:
    """CPU time of this process and its running children."""
    own = os.getpid()
    ticks = sum(
        int(fields[11]) + int(fields[12]) for pid, fields in _processes() if pid == own or int(fields[1]) == own
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process of this machine: its number, and the fields of /proc/PID/stat after the name."""
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                yield int(path.name), (path / "stat").read_text().rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):
                continue  # the process has ended
