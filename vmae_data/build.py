"""`vmae-shard build`, read as a table of contents: sources, plan, encodes, shards, index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Literal, NamedTuple

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import ffmpeg_python, find_ffmpeg
from vmae_data.errors import DataError, MisuseError, NewerFormatError, NotThereError
from vmae_data.executors.jobs import BuildJobs, Progress, ShardDone
from vmae_data.executors.local import run_local
from vmae_data.executors.ray_cluster import need_ray, run_on_ray
from vmae_data.format import FAILURES, INDEX, PLAN, SAMPLES, UNLISTED, Index, decode_record, path_to_line, path_to_text
from vmae_data.progress import Meter, ProgressStyle, meter
from vmae_data.shards.merge import BuildReport, finish, made_of, write_part_failures
from vmae_data.shards.plan import WHOLE, Part, compare_plan, make_plan, write_plan
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import find_sources
from vmae_data.sources.video_files import Folder, is_video
from vmae_data.storage import StoragePath, commit_bytes, exists, list_names, read_bytes, remove, writer_name

__all__ = ["BuildReport", "build_shards"]


def build_shards(
    source: str,
    dest: StoragePath,
    spec: BuildSpec,
    *,
    workers: int | None = None,
    annotations: str | None = None,
    split: str | None = None,
    classes: tuple[str, ...] = (),
    exclude: str | None = None,
    ffmpeg: str | None = None,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    part: Part | None = None,
    retry_failed: bool = False,
    staging: Path | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    on_start: Callable[[], None] = lambda: None,
) -> BuildReport:
    """Turn the videos of `source` into shards in `dest`; run again, it goes on where it was stopped.

    `annotations` say which videos of a folder are meant, and what they show; `split` which of their rows.
    `workers` encodes run at a time (left out: one a core), on Ray in each task. With `part` only its
    shards are made and no index is written: `merge_parts` does that when all parts are done.
    Finished encodes wait for their shard in `dest`, or for one in a store on this machine: in the node's own
    folder, or below `staging`. Sources that failed stay failed, unless `retry_failed`: then shards with failures are packed again.
    `on_start` is called when nothing speaks against the build any more.
    Raises VmaeError for what no single video is to blame for: a full disk, another plan, another build.
    """
    started_at = time.monotonic()
    workspace = workspace_of(dest, staging)
    ffmpeg_python()  # before any work: another package of that name may hide it
    if executor == "ray":
        need_ray(address)
    binary = find_ffmpeg(ffmpeg)
    found = find_sources(source, classes, annotations=annotations, split=split, columns=spec.columns)
    remaining = exclude_sources(found, exclude)
    listing = remaining.listing
    plan = make_plan(listing, spec, split=split, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    _refuse_destination(dest, listing.folder)
    with workspace.held("build", part):
        # What is there is read before anything is written: it may be of a newer version.
        _refuse_newer_index(dest / INDEX)
        plan = compare_plan(dest, plan)
        work = BuildJobs(workspace, plan, binary.path, part or WHOLE)
        write_plan(dest, plan)
        on_start()
        _name_unlisted(dest / UNLISTED, listing.unlisted)
        if part is None:
            workspace.clean_half_written()
        if retry_failed:
            work.forget_failures()
        if not work.finished:
            workspace.staging.mkdir(parents=True, exist_ok=True)
            # The index says that the data set is whole, which it isn't while a shard is missing.
            for name in (INDEX, SAMPLES, FAILURES):
                remove(dest / name)
        with meter("videos", work.num_sources(), style, start=work.num_done()) as shown:
            encoded = _carry_out(work, _execute(work, executor, workers, address, ffmpeg), shown)
        index = None
        if part is None:
            index = finish(workspace, plan.facts, work.heads())
        elif not exists(dest / INDEX):  # merged already: a part that is run again adds nothing
            write_part_failures(dest, part, work.heads())
    return BuildReport(
        made=made_of(work.num_sources(), work.heads()),
        index=index,
        encoded=encoded.sources,
        read_bytes=encoded.bytes,
        seconds=time.monotonic() - started_at,
        unlisted=len(listing.unlisted),
        left_out=remaining.left_out,
        unmatched=len(remaining.unmatched),
    )


def _refuse_destination(dest: StoragePath, source: Folder) -> None:
    if (os.path.realpath(os.fsencode(dest)) if isinstance(dest, Path) else dest) == source:
        raise MisuseError(f"{dest}: is the source itself; name another destination")
    if isinstance(dest, Path):
        there = next((path for path in (dest, *dest.parents) if path.exists()), dest)
        if there.exists() and not there.is_dir():
            raise MisuseError(f"{there}: is a file; name a folder, or a place where one can be made")
    video = None if exists(dest / PLAN) else _video_in(dest)
    if video is not None:
        raise MisuseError(
            f"{dest}: holds videos, such as {path_to_text(video)}; name a folder of its own for the shards"
        )


def _video_in(folder: StoragePath) -> bytes | None:
    """A video right in a folder, or of one of this machine in a folder of it, as where each class has its own."""
    if not isinstance(folder, Path):
        return next(filter(is_video, map(str.encode, list_names(folder))), None)
    top = os.fsencode(folder)
    for parent, folders, names in os.walk(top):
        video = next((name for name in sorted(names) if is_video(name) and not name.startswith(b".")), None)
        if video is not None:
            return os.path.relpath(os.path.join(parent, video), top)
        folders[:] = sorted(name for name in folders if not name.startswith(b".")) if parent == top else []
    return None


def _refuse_newer_index(path: StoragePath) -> None:
    """A newer version's data set is not ours to change; a damaged index is, for it is written anew."""
    try:
        data = read_bytes(path)
    except NotThereError:
        return
    try:
        decode_record(data, Index, str(path))
    except NewerFormatError:
        raise
    except DataError:
        return


def _name_unlisted(path: StoragePath, unlisted: tuple[bytes, ...]) -> None:
    """A video that no annotation names is left out: a person should be able to see which."""
    if unlisted:
        commit_bytes(path, "".join(f"{path_to_line(name)}\n" for name in unlisted).encode(), writer_name())
    else:
        remove(path)


def _execute(
    work: BuildJobs, executor: Literal["local", "ray"], workers: int | None, address: str | None, ffmpeg: str | None
) -> Generator[Progress, None, None]:
    """The shards that are still to be made, by whoever makes them."""
    if work.finished:
        return
    if executor == "ray":
        yield from run_on_ray(work.to_do(), workers=workers, address=address, ffmpeg=ffmpeg)
    else:
        yield from run_local(work.to_do(), workers=workers or len(os.sched_getaffinity(0)))


class _Encoded(NamedTuple):
    """What a run encoded."""

    sources: int
    bytes: int  # of those that gave samples


def _carry_out(work: BuildJobs, progress: Generator[Progress, None, None], shown: Meter) -> _Encoded:
    """Follow an executor to its end."""
    encoded, size = 0, 0
    failed = sum(len(head.failures) for head in work.done.values())
    with closing(progress):
        for done in progress:
            if isinstance(done, ShardDone):
                work.done[done.shard] = done.head
                continue
            if done.encoded:
                encoded += 1
                size += done.bytes
            failed += done.failed
            shown.advance(1, f"{size / shown.seconds() / 1e6:.1f} MB/s, {failed} failed")
    return _Encoded(encoded, size)
