"""`vmae-shard build`, step by step: find and exclude sources, plan, encode, pack, index."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import ffmpeg_python, find_ffmpeg
from vmae_data.errors import DataError, MisuseError, NewerFormatError, NotFoundError, resumable
from vmae_data.executors.encode_later import encode_later
from vmae_data.executors.jobs import BuildJobs, Executor
from vmae_data.executors.local_processes import run_local
from vmae_data.executors.ray_cluster import require_ray, run_on_ray
from vmae_data.format import FAILURES, INDEX, PLAN, RULES, SAMPLES, UNLISTED, Index, ShardHead, decode_record
from vmae_data.names import path_to_line, path_to_text
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.shards.compare_plan import ComparedPlan, SizeChanges, compare_plan, discard_unstarted
from vmae_data.shards.merge import BuildReport, finish_build, write_part_failures
from vmae_data.shards.pack import ShardJob, pack_shard
from vmae_data.shards.plan import WHOLE, Part, Plan, make_plan, stored_rules, write_appended_plan, write_plan
from vmae_data.shards.subset import SUBSETS, Subset, refuse_parent
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import Listing, find_sources
from vmae_data.sources.val_share import ValShare
from vmae_data.sources.video_files import Folder, is_video
from vmae_data.storage import StoragePath, commit_bytes, exists, list_names, read_bytes, remove, writer_name

__all__ = ["BuildReport", "build_shards", "build_train_and_val"]


def build_train_and_val(
    source: str, dest: StoragePath, spec: BuildSpec, share: ValShare, **options: Any
) -> Iterator[tuple[StoragePath, BuildReport]]:
    """Build the data sets `dest`/train and `dest`/val of one source, each as `build_shards` does with these options.

    Yields the folder and the report of each when it is built.
    """
    share = share.checked()
    if exists(dest / PLAN):
        raise MisuseError(f"{dest}: holds a data set that was built without --val-share. Name another folder")
    for subset in (Subset(name, share, dest) for name in SUBSETS):
        yield subset.dest, build_shards(source, subset.dest, spec, subset=subset, **options)
        options.pop("on_start", None)  # the notes on SOURCE are those of both


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
    append: bool = False,
    retry_failed: bool = False,
    staging: Path | None = None,
    subset: Subset | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    on_start: Callable[[Listing], None] = lambda listing: None,
) -> BuildReport:
    """Turn the videos of `source` into shards in `dest`. Run it again to resume a build that was stopped.

    `annotations` lists the videos of a folder to use, and their labels; `split` selects among its rows.
    `workers`: encodes at a time [default: one per core]; on Ray per task. With `part` only its shards are made and no
    index is written; `merge_parts` writes it when all parts are done.
    Encodes wait for their shard in `staging` [default: inside `dest`; in this machine's cache if `dest` is remote].
    With `append` the videos that `source` gained go into new shards of the data set that `dest` holds.
    `subset` chooses the sources for training, or those for validation: see `build_train_and_val`.
    Failed sources stay failed, unless `retry_failed`: then their shards are packed again.
    `on_start` is called with the sources when every check has passed.
    Raises VmaeError for problems of the whole build: a full disk, a different plan, another running build.
    """
    started_at = time.monotonic()
    workspace = workspace_of(dest, staging)
    ffmpeg_python()  # before any work: a different package named ffmpeg may be installed
    execute: Executor = partial(run_local, workers=workers or len(os.sched_getaffinity(0)))
    if executor == "ray":
        require_ray(address)
        execute = partial(run_on_ray, workers=workers, address=address, ffmpeg=ffmpeg)
    binary = find_ffmpeg(ffmpeg)

    classes = subset.classes(classes) if subset else classes
    find = partial(find_sources, source, classes, annotations=annotations, split=split, columns=spec.columns)
    name, share = (split or subset.name, subset.share) if subset else (split, None)

    def planned(rules: int) -> tuple[Listing, Plan]:
        found = find(rules=rules)
        listing = subset.choose(found, exclude) if subset else exclude_sources(found, exclude)
        version = {"ffmpeg": binary.version, "ffmpeg_sha256": binary.sha256}
        return listing, make_plan(listing, spec, split=name, share=share, **version)

    rules = RULES if append else stored_rules(dest)
    listing, plan = planned(rules)
    _check_destinations(dest, subset, listing.folder)
    if discard_unstarted(workspace, plan, append=append) and rules < RULES:
        listing, plan = planned(RULES)
    with workspace.locked("build", part):
        # Read what is there before anything is written: a newer version may have written it.
        old_index = _read_index(dest / INDEX)
        compared = compare_plan(dest, plan, source=source, append=append, class_folders=listing.class_folders)
        plan = compared.plan
        jobs = BuildJobs(workspace, plan, binary.path, part or WHOLE)
        jobs.require_ffmpeg(binary.sha256, retry_failed=retry_failed)
        with resumable(jobs.describe_saved):
            on_start(listing)
            if part is None:
                workspace.remove_temporary_files()
            if retry_failed:
                jobs.reset_failures()

            write = partial(_write_plan, dest, compared, listing.unlisted)
            encoded, encoded_bytes = _encode_and_pack(jobs, write, old_index, execute, style)

            index, changes = None, SizeChanges(listing if append else None)
            if part is None:
                index = finish_build(workspace, plan.facts, jobs.heads(), changes.note)
            elif not (exists(dest / INDEX) and old_index and old_index.plan == plan.facts.digest()):
                # After the merge, parts write no list.
                write_part_failures(dest, part, jobs.heads())
    return BuildReport(
        heads=jobs.heads(),
        sources=jobs.num_sources(),
        index=index,
        encoded=encoded,
        read_bytes=encoded_bytes,
        seconds=time.monotonic() - started_at,
        unlisted=len(listing.unlisted),
        excluded=listing.num_excluded,
        unmatched=len(listing.unmatched),
        appended=compared.appended,
        changed=changes.paths,
        removed=compared.removed,
    )


def _encode_and_pack(
    jobs: BuildJobs, write: Callable[[], None], index: Index | None, execute: Executor, style: ProgressStyle
) -> tuple[int, int]:
    """Encode every remaining source, pack each shard when its sources are encoded.

    `write` writes the plan, which binds later builds: not before the executor is ready, and asks for its first shard.
    `index` is that of `dest`. It is removed if it lists what this run makes. An append keeps it: until the end, the data
    set is what it was.

    Returns how many sources this run tried to encode, and the bytes of the sources that gave samples.
    """
    encoded = encoded_bytes = 0
    failed = sum(len(head.failures) for head in jobs.done.values())
    with ProgressBar("videos", jobs.num_sources(), style, start=jobs.num_done()) as bar:
        if jobs.finished:
            write()
            return 0, 0
        jobs.staging.mkdir(parents=True, exist_ok=True)
        with closing(execute(_planned(jobs, write, index), encode_later, pack_shard)) as results:
            for result in results:
                if isinstance(result, ShardHead):
                    jobs.done[result.shard] = result
                    continue
                encoded += result.encoded
                encoded_bytes += result.bytes if result.encoded else 0
                failed += result.failed
                bar.advance(1, f"{encoded_bytes / bar.seconds() / 1e6:.1f} MB/s, {failed} failed")
    return encoded, encoded_bytes


def _write_plan(dest: StoragePath, compared: ComparedPlan, unlisted: tuple[bytes, ...]) -> None:
    (write_appended_plan if compared.grown else write_plan)(dest, compared.plan)
    _write_unlisted(dest / UNLISTED, unlisted)


def _planned(jobs: BuildJobs, write: Callable[[], None], index: Index | None) -> Iterator[ShardJob]:
    """The shards that remain. The executor is ready when it asks for the first: then the plan is written."""
    write()
    # The index says that the data set is complete, but a shard is missing.
    if index is None or jobs.breaks(index):
        for name in (INDEX, SAMPLES, FAILURES):
            remove(jobs.dest / name)
    yield from jobs.remaining()


def _check_destinations(dest: StoragePath, subset: Subset | None, source: Folder) -> None:
    """Check also the folders of the other data set and of both, before hours of work on the first."""
    if subset is None:
        refuse_parent(dest)
    for folder in (subset.parent, *subset.dests) if subset else (dest,):
        _check_destination(folder, source)


def _check_destination(dest: StoragePath, source: Folder) -> None:
    """Raise MisuseError if the destination is the source, is a file, or holds videos."""
    if (os.path.realpath(os.fsencode(dest)) if isinstance(dest, Path) else dest) == source:
        raise MisuseError(f"{dest}: is also the source. Name another destination")
    if isinstance(dest, Path):
        existing = next((path for path in (dest, *dest.parents) if path.exists()), dest)
        if existing.exists() and not existing.is_dir():
            raise MisuseError(f"{existing}: is a file. Name a folder, or a path where one can be made")
    video = None if exists(dest / PLAN) else _first_video(dest)
    if video is not None:
        raise MisuseError(f"{dest}: holds videos, such as {path_to_text(video)}. Name a separate folder for the shards")


def _first_video(folder: StoragePath) -> bytes | None:
    """The first video of a folder. Direct subfolders of a local folder are searched too: they may be classes."""
    if not isinstance(folder, Path):
        return next(filter(is_video, map(str.encode, list_names(folder))), None)
    top = os.fsencode(folder)
    for parent, folders, names in os.walk(top):
        video = next((name for name in sorted(names) if is_video(name) and not name.startswith(b".")), None)
        if video is not None:
            return os.path.relpath(os.path.join(parent, video), top)
        folders[:] = sorted(name for name in folders if not name.startswith(b".")) if parent == top else []
    return None


def _read_index(path: StoragePath) -> Index | None:
    """The index, if there is one that is not damaged. Raises NewerFormatError for a newer version's."""
    try:
        data = read_bytes(path)
    except NotFoundError:
        return None
    try:
        return decode_record(data, Index, str(path))
    except NewerFormatError:
        raise
    except DataError:
        return None


def _write_unlisted(path: StoragePath, unlisted: tuple[bytes, ...]) -> None:
    """List the videos that no annotation names, for people to see."""
    if unlisted:
        commit_bytes(path, "".join(f"{path_to_line(name)}\n" for name in unlisted).encode(), writer_name())
    else:
        remove(path)
