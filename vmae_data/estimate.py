"""Sources and a recipe → an estimate of the build's time and size. Counts the sources and encodes a sample of them.

Time and size are scaled by the sources' bytes: the only measure of a video that needs no opening.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.staged import EncodeJob, StagedSource
from vmae_data.executors.jobs import encode_job
from vmae_data.format import RULES, Failure, encode_record
from vmae_data.names import path_to_text
from vmae_data.pages.html import printable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.shards.plan import make_plan
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import Listing, find_sources
from vmae_data.sources.val_share import ValShare, split_notes, split_sources
from vmae_data.sources.video_files import file_sizes

__all__ = ["Estimate", "Interval", "choose_sample", "estimate_build", "estimate_lines", "scale_up"]

SAMPLE_VIDEOS = 12
SAMPLE_SECONDS = 20.0  # after that no encode starts
MAX_SECONDS = 120.0  # after that no encode is awaited
TAR_BLOCK = 512
UNMATCHED_SHOWN = 5


class Interval(msgspec.Struct, frozen=True):
    """An estimate, and the bounds within which it would be for 19 of 20 samples, judged from one sample."""

    low: float
    middle: float
    high: float


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """The sources found, and the expected time and size: None if no video of the sample could be measured."""

    videos: int  # found
    missing: int  # listed, but not found
    unlisted: int
    left_out: int  # sources excluded by `exclude`
    unmatched: int  # paths in `exclude` that match no source
    unmatched_first: tuple[str, ...]
    classes: int
    bytes: int  # of the videos found
    shards: int
    workers: int
    sample: int  # videos tried
    sample_unfinished: int
    sample_seconds: float
    sample_failures: dict[str, int]
    seconds: Interval | None
    shard_bytes: Interval | None  # of all shards


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
    share: ValShare | None = None,
    rules: int = RULES,
    style: ProgressStyle = ProgressStyle.AUTO,
    on_start: Callable[[Listing], None] = lambda listing: None,
) -> Estimate:
    """Count the sources of a build, and encode a sample of them in a temporary folder.

    `rules` are those of the plan that the destination holds, if any. Calls `on_start` with the sources when all
    arguments are valid. Raises the same MisuseError as the build.
    """
    binary = find_ffmpeg(ffmpeg)
    found = find_sources(source, classes, annotations=annotations, split=split, columns=spec.columns, rules=rules)
    listing = exclude_sources(found, exclude)
    if share is not None:  # The estimate is of both data sets together.
        listing = listing._replace(notes=(*listing.notes, *split_notes(found, split_sources(found, share, {}))))
    plan = make_plan(listing, spec, split=split, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    sizes = file_sizes(plan.folder, [video.path for video in plan.sources])
    present = [(video, size) for video, size in zip(plan.sources, sizes, strict=True) if size is not None]
    sample = [present[n] for n in choose_sample([size for _, size in present], max(SAMPLE_VIDEOS, workers))]
    on_start(listing)
    with ProgressBar("videos of the sample", len(sample), style) as progress, tempfile.TemporaryDirectory() as folder:
        jobs = [
            encode_job(plan, video, ffmpeg=binary.path, staging=Path(folder), plan_rules=rules) for video, _ in sample
        ]
        started_at = time.monotonic()
        encoded, unfinished = _encode_sample(jobs, workers, progress)
        sample_seconds = time.monotonic() - started_at
    total = sum(size for _, size in present)
    times = [(sample[n][1], seconds) for n, (_, seconds) in encoded.items()]
    tar_sizes = [(sample[n][1], _tar_bytes(staged)) for n, (staged, _) in encoded.items()]
    seconds = scale_up(times, total, len(present))
    failures = Counter(staged.failure.reason for staged, _ in encoded.values() if staged.failure)
    return Estimate(
        videos=len(present),
        missing=len(plan.sources) - len(present),
        unlisted=len(listing.unlisted),
        left_out=listing.num_excluded,
        unmatched=len(listing.unmatched),
        unmatched_first=tuple(path_to_text(path) for path in listing.unmatched[:UNMATCHED_SHOWN]),
        classes=len(listing.classes),
        bytes=total,
        shards=plan.facts.shards,
        workers=workers,
        sample=len(encoded) + unfinished,
        sample_unfinished=unfinished,
        sample_seconds=round(sample_seconds, 3),
        sample_failures=dict(sorted(failures.items())),
        seconds=seconds and Interval(seconds.low / workers, seconds.middle / workers, seconds.high / workers),
        shard_bytes=scale_up(tar_sizes, total, len(present)),
    )


def choose_sample(sizes: Sequence[int], count: int) -> list[int]:
    """The positions of `count` videos from the smallest to the largest: one of each of `count` equal parts by size.

    Each part gives its first video in plan order. That order is a hash of the seed and the key, so the choice is
    random but repeatable.
    """
    by_size = sorted(range(len(sizes)), key=sizes.__getitem__)  # stable: equal sizes stay in plan order
    parts = np.array_split(np.asarray(by_size, dtype=np.int64), min(count, len(sizes)) or 1)
    return sorted(int(part.min()) for part in parts if len(part))


def _encode_sample(
    jobs: Sequence[EncodeJob], workers: int, progress: ProgressBar
) -> tuple[dict[int, tuple[StagedSource, float]], int]:
    """Encode as the build does, until the jobs or the time end.

    Returns the result and the seconds of each finished job by its number, and the number of unfinished jobs.
    """
    encoded: dict[int, tuple[StagedSource, float]] = {}
    waiting = iter(enumerate(jobs))
    started_at = time.monotonic()
    with Pool(min(workers, max(1, len(jobs)))) as pool:
        while True:
            while pool.unfinished < pool.size and time.monotonic() - started_at < SAMPLE_SECONDS:
                number, job = next(waiting, (-1, None))
                if job is None:
                    break
                pool.submit(number, _timed_encode, job)
            finished = next_finished((pool,), timeout=max(0.0, MAX_SECONDS - (time.monotonic() - started_at)))
            if finished is None:
                return encoded, pool.unfinished
            if isinstance(finished.error, WorkerDied):
                job = jobs[finished.tag]
                crash = Failure(key=job.key, path=path_to_text(job.path), reason="crashed", detail=str(finished.error))
                encoded[finished.tag] = StagedSource(failure=crash), 0.0
            elif finished.error is not None:
                raise finished.error
            else:
                encoded[finished.tag] = finished.result
            progress.advance()


def _timed_encode(job: EncodeJob) -> tuple[StagedSource, float]:
    """Runs in a worker process. Starting the process does not count: a build starts each worker only once."""
    started_at = time.monotonic()
    return encode_source(job), time.monotonic() - started_at


def _tar_bytes(staged: StagedSource) -> int:
    """The bytes of a source's samples in a shard: each member has a header and is padded to full blocks."""
    sizes = [member.size for sample in staged.samples for member in sample.members]
    sizes += [len(encode_record(sample.facts)) for sample in staged.samples]
    sizes += [1 for sample in staged.samples if sample.facts.label is not None]
    return sum(TAR_BLOCK + -(-size // TAR_BLOCK) * TAR_BLOCK for size in sizes)


def scale_up(pairs: Sequence[tuple[float, float]], total: float, videos: int) -> Interval | None:
    """(source bytes, y) of a sample → the y of all `videos` of `total` bytes. None if the sample has no bytes or no y.

    The ratio estimator with two of its standard errors (W. G. Cochran, Sampling Techniques, 6.4; the error is 0 if all
    videos were tried), as a factor, so that the lower bound is above 0. One video has no variance: the factor is 2.
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
    return Interval(middle / factor, middle, middle * factor)


def estimate_lines(estimate: Estimate) -> list[str]:
    """The estimate as text."""
    lines = [f"videos      {estimate.videos}, {_size(estimate.bytes)}"]
    lines += [f"missing     {estimate.missing} listed, but not found"] if estimate.missing else []
    lines += [f"not listed  {estimate.unlisted} found, but not in the annotations"] if estimate.unlisted else []
    lines += [f"excluded    {estimate.left_out} sources, by --exclude"] if estimate.left_out else []
    if estimate.unmatched:
        names = ", ".join(map(printable, estimate.unmatched_first))
        more = ", …" if estimate.unmatched > len(estimate.unmatched_first) else ""
        lines.append(f"no match    {estimate.unmatched} paths of --exclude match no source: {names}{more}")
    lines.append(f"classes     {estimate.classes or 'none'}")
    sample = f"sample      {estimate.sample} videos in {_time(estimate.sample_seconds)}"
    if estimate.sample_failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in estimate.sample_failures.items())
        sample += f", {sum(estimate.sample_failures.values())} failed ({reasons})"
    if estimate.sample_unfinished:
        sample += (
            f", {estimate.sample_unfinished} unfinished: long videos, so the estimates of time and size are too low"
        )
    lines.append(sample)
    if estimate.seconds is None or estimate.shard_bytes is None:
        return [*lines, "time, size  unknown: no video of the sample could be measured"]
    time_range, size_range = _range(estimate.seconds, _time), _range(estimate.shard_bytes, _size)
    workers = f"{estimate.workers} worker{'' if estimate.workers == 1 else 's'}"
    shards = f"{estimate.shards} shard{'' if estimate.shards == 1 else 's'}"
    return [
        *lines,
        f"time        about {_time(estimate.seconds.middle)} with {workers}{time_range}",
        f"size        about {_size(estimate.shard_bytes.middle)} in {shards}{size_range}",
    ]


def _range(interval: Interval, shown: Callable[[float], str]) -> str:
    """The bounds in words; nothing if they are shown alike, as they are if every video was tried."""
    low, high = shown(interval.low), shown(interval.high)
    return f" (likely {low} to {high})" if low != high else ""


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
