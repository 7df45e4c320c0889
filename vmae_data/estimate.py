"""What a build would take, before it is started: its sources counted, and a sample of them really encoded.

Time and size are scaled by the sources' bytes, the only measure of a video that is known without opening it.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import EncodeJob, StagedSource, encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.executors.jobs import encode_job
from vmae_data.format import encode_record, path_to_text
from vmae_data.html import printable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.shards.plan import Plan, make_plan
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import SourceVideo, find_sources
from vmae_data.sources.video_files import sizes_of

__all__ = ["Estimate", "Spread", "estimate_build", "estimate_lines"]

SAMPLE_VIDEOS = 12
SAMPLE_SECONDS = 20.0  # no video is begun after that
LONGEST_SECONDS = 120.0  # and none is waited for after that
TAR_BLOCK = 512
UNMATCHED_SHOWN = 5


class Spread(msgspec.Struct, frozen=True):
    """An estimate, and where it would lie in 19 of 20 samples, as far as one sample can tell."""

    low: float
    middle: float
    high: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What was found, and what is expected. Without a video that could be measured, the expectations are None."""

    videos: int  # found
    missing: int  # listed, but not there
    unlisted: int
    left_out: int  # sources that `exclude` named
    unmatched: int  # paths that it named and that are no sources here
    unmatched_first: tuple[str, ...]
    classes: int
    bytes: int  # of the videos found
    shards: int
    workers: int
    sample: int  # videos tried
    sample_unfinished: int
    sample_seconds: float
    sample_failures: dict[str, int]
    seconds: Spread | None
    shard_bytes: Spread | None  # of all shards


class _Sized(NamedTuple):
    source: SourceVideo
    bytes: int


class _Measured(NamedTuple):
    """One encode of the sample: what went in, how long it took in its process, what came out."""

    source_bytes: int
    seconds: float
    shard_bytes: int
    failure: str | None


class _Timed(NamedTuple):
    staged: StagedSource
    seconds: float


class _Sample(NamedTuple):
    measured: list[_Measured]
    tried: int
    seconds: float


def estimate_build(
    source: str,
    spec: BuildSpec,
    *,
    workers: int,
    annotations: str | None = None,
    split: str | None = None,
    classes: tuple[str, ...] = (),
    exclude: str | None = None,
    ffmpeg: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    on_start: Callable[[], None] = lambda: None,
) -> Estimate:
    """Count what a build would read, and encode a sample of it in a temporary folder.

    `on_start` is called when nothing speaks against it any more. Raises MisuseError as the build would.
    """
    binary = find_ffmpeg(ffmpeg)
    found = find_sources(source, classes, annotations=annotations, split=split, columns=spec.columns)
    remaining = exclude_sources(found, exclude)
    listing = remaining.listing
    plan = make_plan(listing, spec, split=split, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    there = list(_there(plan))
    chosen = choose_sample(there, max(SAMPLE_VIDEOS, workers))
    on_start()
    with ProgressBar("videos of the sample", len(chosen), style) as bar, tempfile.TemporaryDirectory() as folder:
        sample = _measure(plan, chosen, binary.path, Path(folder), workers, bar)
    total = sum(sized.bytes for sized in there)
    seconds = scale_up([(one.source_bytes, one.seconds) for one in sample.measured], total, len(there))
    size = scale_up([(one.source_bytes, one.shard_bytes) for one in sample.measured], total, len(there))
    return Estimate(
        videos=len(there),
        missing=len(plan.sources) - len(there),
        unlisted=len(listing.unlisted),
        left_out=remaining.left_out,
        unmatched=len(remaining.unmatched),
        unmatched_first=tuple(path_to_text(path) for path in remaining.unmatched[:UNMATCHED_SHOWN]),
        classes=len(listing.classes),
        bytes=total,
        shards=plan.facts.shards,
        workers=workers,
        sample=sample.tried,
        sample_unfinished=sample.tried - len(sample.measured),
        sample_seconds=round(sample.seconds, 3),
        sample_failures=dict(sorted(Counter(one.failure for one in sample.measured if one.failure).items())),
        seconds=seconds and Spread(*(value / workers for value in (seconds.low, seconds.middle, seconds.high))),
        shard_bytes=size,
    )


def _there(plan: Plan) -> Iterator[_Sized]:
    """The sources whose files are there, in plan order."""
    sizes = sizes_of(plan.folder, [source.path for source in plan.sources])
    for source, size in zip(plan.sources, sizes, strict=True):
        if size is not None:
            yield _Sized(source, size)


def choose_sample(there: Sequence[_Sized], count: int) -> list[_Sized]:
    """`count` videos from the smallest to the largest: one of each of `count` equal parts by size, in plan order.

    The plan's order is a hash of the seed and the key, so the choice within a part is by chance, and repeats.
    """
    by_size = sorted(range(len(there)), key=lambda n: there[n].bytes)  # stable: equal ones stay in plan order
    parts = np.array_split(np.asarray(by_size, dtype=np.int64), min(count, len(there)) or 1)
    return [there[n] for n in sorted(int(part.min()) for part in parts if len(part))]


def _measure(
    plan: Plan, chosen: Sequence[_Sized], ffmpeg: str, folder: Path, workers: int, bar: ProgressBar
) -> _Sample:
    """Encode the sample as the build would, as many at a time, until it is done or time is up."""
    measured: list[_Measured] = []
    tried = 0
    coming = iter(chosen)
    started_at = time.monotonic()

    def spent() -> float:
        return time.monotonic() - started_at

    with Pool(min(workers, max(1, len(chosen)))) as pool:
        while True:
            while pool.unfinished < pool.size and spent() < SAMPLE_SECONDS:
                sized = next(coming, None)
                if sized is None:
                    break
                tried += 1
                pool.submit(sized, timed_encode, encode_job(plan, sized.source, ffmpeg=ffmpeg, staging=folder))
            finished = next_finished((pool,), timeout=max(0.0, LONGEST_SECONDS - spent()))
            if finished is None:
                return _Sample(measured, tried, spent())
            if isinstance(finished.error, WorkerDied):
                measured.append(_Measured(finished.tag.bytes, 0.0, 0, "crashed"))
            elif finished.error is not None:
                raise finished.error
            else:
                measured.append(_measured(finished.tag, finished.result))
            bar.advance()


def timed_encode(job: EncodeJob) -> _Timed:
    """In a worker process: the start of the process is not counted, since a build starts each only once."""
    started_at = time.monotonic()
    staged = encode_source(job)
    return _Timed(staged, time.monotonic() - started_at)


def _measured(sized: _Sized, timed: _Timed) -> _Measured:
    failure = timed.staged.failure
    return _Measured(sized.bytes, timed.seconds, _tar_bytes(timed.staged), failure.reason if failure else None)


def _tar_bytes(staged: StagedSource) -> int:
    """What a source's samples take in a shard: each member has a header, and is filled up to whole blocks."""
    sizes = [member.size for sample in staged.samples for member in sample.members]
    sizes += [len(encode_record(sample.facts)) for sample in staged.samples]
    sizes += [1 for sample in staged.samples if sample.facts.label is not None]
    return sum(TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK for size in sizes)


def scale_up(pairs: Sequence[tuple[float, float]], total: float, videos: int) -> Spread | None:
    """From (source bytes, y) of a sample to the y of all `videos`, `total` bytes; None where there is nothing to go by.

    The ratio estimator and two of its standard errors (W. G. Cochran, Sampling Techniques, 6.4; nothing is left to
    chance where all were tried), as a factor, so that the lower end is above 0. One video alone says nothing of its
    spread: a factor of 2 stands for that.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (zip(*pairs, strict=True) if pairs else ((), ())))
    if not x.sum() or not y.sum():
        return None
    ratio, n = y.sum() / x.sum(), len(x)
    factor = 2.0
    if n > 1:
        variance = float(np.square(y - ratio * x).sum()) / (n * (n - 1)) * max(0.0, 1 - n / videos)
        factor = 1 + 2 * math.sqrt(variance) / float(y.mean())
    middle = float(ratio * total)
    return Spread(middle / factor, middle, middle * factor)


def estimate_lines(found: Estimate) -> list[str]:
    """The estimate in words."""
    lines = [f"videos      {found.videos}, {_size(found.bytes)}"]
    lines += [f"missing     {found.missing} listed, not there"] if found.missing else []
    lines += [f"not listed  {found.unlisted} there, not in the annotations"] if found.unlisted else []
    lines += [f"left out    {found.left_out} that --exclude names"] if found.left_out else []
    if found.unmatched:
        names = ", ".join(map(printable, found.unmatched_first))
        more = ", …" if found.unmatched > len(found.unmatched_first) else ""
        lines.append(f"no source   {found.unmatched} that --exclude names: {names}{more}")
    lines.append(f"classes     {found.classes or 'none'}")
    failed = sum(found.sample_failures.values())
    words = ", ".join(f"{count} {reason}" for reason, count in found.sample_failures.items())
    sample = f"sample      {found.sample} videos in {_time(found.sample_seconds)}"
    if failed:
        sample += f", {failed} failed ({words})"
    if found.sample_unfinished:
        sample += f", {found.sample_unfinished} not finished: long videos, so time and size come out too low"
    lines.append(sample)
    if found.seconds is None or found.shard_bytes is None:
        return [*lines, "time, size  unknown: no video of the sample could be measured"]
    time_range = f"{_time(found.seconds.low)} to {_time(found.seconds.high)}"
    size_range = f"{_size(found.shard_bytes.low)} to {_size(found.shard_bytes.high)}"
    workers = f"{found.workers} worker{'' if found.workers == 1 else 's'}"
    shards = f"{found.shards} shard{'' if found.shards == 1 else 's'}"
    return [
        *lines,
        f"time        about {_time(found.seconds.middle)} with {workers} (likely {time_range})",
        f"size        about {_size(found.shard_bytes.middle)} in {shards} (likely {size_range})",
    ]


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.2g} min" if seconds < 90 * 60 else f"{seconds / 3600:.3g} h"
