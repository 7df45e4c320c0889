"""`vmae-shard build`, read as a table of contents: sources, plan, encodes, shards, index."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.format import (
    FAILURES,
    INDEX,
    SAMPLES,
    UNLISTED,
    Failure,
    Index,
    ShardMarker,
    encode_record,
    path_to_line,
    path_to_text,
)
from vmae_data.prepare.exclude import exclude_sources
from vmae_data.prepare.ffmpeg import ffmpeg_python, find_ffmpeg
from vmae_data.prepare.index import write_index
from vmae_data.prepare.pack import PackJob, pack_shard, read_marker, read_staged, unpack_shard
from vmae_data.prepare.plan import BuildSpec, Plan, make_plan, settle_plan
from vmae_data.prepare.resize import EncodeJob, StagedSource, encode_job, encode_source, staged_name
from vmae_data.prepare.sources import find_sources
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.progress import Meter, ProgressStyle, meter
from vmae_data.store import TEMPORARY, commit_bytes, lock

__all__ = ["BuildReport", "build_shards"]

STAGING = ".staging"


@dataclass(frozen=True)
class BuildReport:
    """What a build ended with."""

    index: Index
    encoded: int  # in this run
    read_bytes: int  # of sources that gave samples in this run
    seconds: float  # of this run
    failed: int  # in all
    reasons: dict[str, int]
    unlisted: int  # videos of the source that its annotations don't name
    left_out: int = 0  # sources that `exclude` named
    unmatched: int = 0  # paths that it named and that are no sources here


def build_shards(
    source: str,
    dest: Path,
    spec: BuildSpec,
    *,
    workers: int,
    annotations: str | None = None,
    split: str | None = None,
    classes: tuple[str, ...] = (),
    exclude: str | None = None,
    ffmpeg: str | None = None,
    retry_failed: bool = False,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> BuildReport:
    """Turn the videos of `source` into shards in `dest`; run again, it goes on where it was stopped.

    `annotations` say which videos of a folder are meant, and what they show; `split` which of their rows.
    Sources that failed stay failed, unless `retry_failed`: then shards with failures are packed again.
    Raises VmaeError for what no single video is to blame for: a full disk, another plan, another build.
    """
    started_at = time.monotonic()
    ffmpeg_python()  # before any work: another package of that name may hide it
    binary = find_ffmpeg(ffmpeg)
    found = find_sources(source, classes, annotations=annotations, split=split, columns=spec.columns)
    remaining = exclude_sources(found, exclude)
    listing = remaining.listing
    plan = make_plan(listing, spec, split=split, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    if os.path.realpath(os.fsencode(dest)) == listing.folder:
        raise MisuseError(f"{dest}: is the source itself; name another destination")
    with lock(dest, "build"):
        settle_plan(dest, plan)
        _name_unlisted(dest / UNLISTED, listing.unlisted)
        staging = dest / STAGING
        _clean_leftovers(dest, staging)
        walk = _Walk(dest, staging, plan, binary.path)
        if retry_failed:
            walk.forget_failures()
        with meter("videos", plan.facts.sources, style, start=walk.already_done()) as shown:
            walk.run(workers, shown)
        index = write_index(dest, plan, walk.markers())
        with suppress(OSError):
            staging.rmdir()
    return BuildReport(
        index=index,
        encoded=walk.encoded,
        read_bytes=walk.bytes,
        seconds=time.monotonic() - started_at,
        failed=sum(index.failures.values()),
        reasons=index.failures,
        unlisted=len(listing.unlisted),
        left_out=remaining.left_out,
        unmatched=remaining.unmatched,
    )


def _name_unlisted(path: Path, unlisted: tuple[bytes, ...]) -> None:
    """A video that no annotation names is left out: a person should be able to see which."""
    if unlisted:
        commit_bytes(path, "".join(f"{path_to_line(name)}\n" for name in unlisted).encode())
    else:
        path.unlink(missing_ok=True)


def _clean_leftovers(dest: Path, staging: Path) -> None:
    """What a killed run left half written; the lock is ours, so nobody is writing it."""
    staging.mkdir(exist_ok=True)
    for folder in (dest, staging):
        for path in folder.glob(f"{TEMPORARY}*"):
            path.unlink()


class _Encode(NamedTuple):
    shard: int
    job: EncodeJob


class _Pack(NamedTuple):
    shard: int


class _Walk:
    """Shards in order, their sources in plan order; a shard is packed when all its sources are staged."""

    def __init__(self, dest: Path, staging: Path, plan: Plan, ffmpeg: str) -> None:
        self.dest, self.staging, self.plan, self.ffmpeg = dest, staging, plan, ffmpeg
        self.digest = plan.facts.digest()
        self.done = {n: m for n in range(plan.facts.shards) if (m := read_marker(dest, n, self.digest)) is not None}
        self.missing: dict[int, int] = {}  # how many sources of a shard in work are not staged yet
        self.encoded = 0
        self.bytes = 0
        self.failed = sum(len(marker.failures) for marker in self.done.values())
        self.tried_again: set[str] = set()

    def forget_failures(self) -> None:
        """Make every source that failed, in a packed shard or in staging, be tried again."""
        (self.dest / INDEX).unlink(missing_ok=True)
        for shard, marker in list(self.done.items()):
            if marker.failures:
                unpack_shard(self.dest, self.staging, marker)
                del self.done[shard]
        for source in self.plan.sources:
            staged = read_staged(self.staging, source.key)
            if staged is not None and staged.failure is not None:
                (self.staging / staged_name(source.key)).unlink()
        self.failed = 0

    def already_done(self) -> int:
        return sum(len(self.plan.shard_sources(shard)) for shard in self.done)

    def markers(self) -> list[ShardMarker]:
        return [self.done[shard] for shard in range(self.plan.facts.shards)]

    def run(self, workers: int, shown: Meter) -> None:
        if len(self.done) == self.plan.facts.shards:
            return
        # The index says that the data set is whole, which it isn't while a shard is missing.
        for name in (INDEX, SAMPLES, FAILURES):
            (self.dest / name).unlink(missing_ok=True)
        with Pool(workers) as encoders, Pool(1) as packer:
            jobs = self._jobs(packer, shown)
            while True:
                # A waiting task for each worker keeps it busy; more would only hold memory.
                while encoders.unfinished < 2 * workers and (task := next(jobs, None)) is not None:
                    encoders.submit(task, encode_source, task.job)
                finished = next_finished((encoders, packer))
                if finished is None:
                    return
                if isinstance(finished.tag, _Pack):
                    self.done[finished.tag.shard] = self._packed(finished)
                else:
                    self._encoded(finished, encoders, packer, shown)

    def _jobs(self, packer: Pool, shown: Meter) -> Iterator[_Encode]:
        """Everything that is still to be encoded; a shard that lacks nothing goes to the packer at once."""
        for shard in range(self.plan.facts.shards):
            if shard in self.done:
                continue
            sources = self.plan.shard_sources(shard)
            todo = [source for source in sources if read_staged(self.staging, source.key) is None]
            self.missing[shard] = len(todo)
            shown.advance(len(sources) - len(todo))
            if not todo:
                self._pack(shard, packer)
            for source in todo:
                yield _Encode(shard, encode_job(self.plan, source, ffmpeg=self.ffmpeg, staging=self.staging))

    def _encoded(self, finished: Finished, encoders: Pool, packer: Pool, shown: Meter) -> None:
        task: _Encode = finished.tag
        if isinstance(finished.error, WorkerDied):
            # A library may crash on a bad file, but a worker may also be killed for memory: try once more.
            if task.job.key not in self.tried_again:
                self.tried_again.add(task.job.key)
                encoders.submit(task, encode_source, task.job)
                return
            staged = StagedSource(failure=_crash(task.job, finished.error))
            commit_bytes(self.staging / staged_name(task.job.key), encode_record(staged))
        elif finished.error is not None:
            raise finished.error
        else:
            staged = finished.result
        self.encoded += 1
        self.failed += staged.failure is not None
        self.bytes += sum(sample.facts.source.bytes for sample in staged.samples)
        seconds = self.encoded / max(shown.rate(), 1e-9)
        shown.advance(1, f"{self.bytes / seconds / 1e6:.1f} MB/s, {self.failed} failed")
        self.missing[task.shard] -= 1
        if self.missing[task.shard] == 0:
            self._pack(task.shard, packer)

    def _pack(self, shard: int, packer: Pool) -> None:
        keys = tuple(source.key for source in self.plan.shard_sources(shard))
        job = PackJob(dest=self.dest, staging=self.staging, shard=shard, keys=keys, plan=self.digest)
        packer.submit(_Pack(shard), pack_shard, job)

    def _packed(self, finished: Finished) -> ShardMarker:
        if isinstance(finished.error, WorkerDied):
            raise VmaeError(f"packing shard {finished.tag.shard}: {finished.error}; run the same build again")
        if finished.error is not None:
            raise finished.error
        marker: ShardMarker = finished.result
        return marker


def _crash(job: EncodeJob, error: WorkerDied) -> Failure:
    return Failure(key=job.key, path=path_to_text(job.path), reason="crashed", detail=f"{error}, twice")
