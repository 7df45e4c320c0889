"""A finished data set → everything that is wrong with it: each file, checksum, count, key and frame is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import NewerFormatError
from vmae_data.format import FAILURES, INDEX, PLAN, PLAN_TABLE, RESTORE_PLAN, SAMPLES, UNLISTED, Index, PlanFacts
from vmae_data.names import marker_name, path_to_text, tar_name
from vmae_data.pages.html import printable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.storage import LOCK, TEMPORARY, StoragePath, exists, list_tree, listable
from vmae_data.verify.check_member import TableRow
from vmae_data.verify.check_records import failure_problems, index_problems, plan_problems, read_record, read_rows
from vmae_data.verify.check_shard import Problem, ShardReport, ShardTask, check_shard

__all__ = ["Problem", "VerifyReport", "verify_shards"]


class VerifyReport(NamedTuple):
    """All problems, and how much was checked."""

    problems: tuple[Problem, ...]
    shards: int
    samples: int


def verify_shards(folder: StoragePath, *, workers: int, style: ProgressStyle = ProgressStyle.AUTO) -> VerifyReport:
    """Check a finished data set; a problem never ends the check.

    Raises DataError if the folder is no data set, NewerFormatError if a newer version wrote it: this version
    can't check its files.
    """
    if not exists(folder / INDEX):
        Shards.open(str(folder))  # raises if this is no data set; damage is reported below
    problems: list[Problem] = []
    plan = read_record(folder, PLAN, PlanFacts, problems, advice=RESTORE_PLAN)
    index = read_record(folder, INDEX, Index, problems)
    rows = read_rows(folder, index, problems)
    files = _list_folder(folder)
    tasks = _shard_tasks(folder, plan, index, rows, [name for name, _ in files])
    problems += _unexpected_files(files, {task.shard for task in tasks})
    reports = _check_shards(tasks, workers, style)
    markers = [report.marker for report in reports if report.marker is not None]
    for report in reports:
        if report.newer:
            raise NewerFormatError(f"{folder / report.problems[0].file}: {report.problems[0].message}")
        problems += report.problems
    all_read = len(markers) == len(reports)
    if plan is not None:
        problems += plan_problems(folder, plan)
        made_by = {marker.plan for marker in markers} | ({index.plan} if index is not None else set())
        if made_by and made_by.isdisjoint(stage.digest() for stage in plan.stages()):
            problems.append(Problem(PLAN, "is not the plan of the shards and the index"))
    if index is not None:
        problems += index_problems(folder, index, plan, markers, rows, all_read=all_read)
    problems += failure_problems(folder, markers, index, all_read=all_read)
    return VerifyReport(tuple(problems), len(tasks), sum(len(marker.samples) for marker in markers))


def _list_folder(folder: StoragePath) -> list[tuple[str, bool]]:
    """Names in the folder, and whether each is a file. Empty for a web server, which can't list."""
    if isinstance(folder, Path):
        entries = sorted(os.scandir(os.fsencode(folder)), key=lambda entry: entry.name)
        return [(path_to_text(entry.name), entry.is_file(follow_symlinks=True)) for entry in entries]
    paths = list_tree(folder) if listable(folder) else {}
    return sorted({(path.partition("/")[0], "/" not in path) for path in paths})


def _shard_tasks(
    folder: StoragePath,
    plan: PlanFacts | None,
    index: Index | None,
    rows: Sequence[TableRow] | None,
    names: Sequence[str],
) -> list[ShardTask]:
    """A task for every shard that the plan, the index or the folder has."""
    positions = {listing.url: position for position, listing in enumerate(index.shardlist)} if index else {}
    rows_of: dict[int, list[TableRow]] = {}
    for row in rows or ():
        rows_of.setdefault(row.shard, []).append(row)
    # Every task carries the index to its worker, so it goes without the list of all shards.
    index_head = msgspec.structs.replace(index, shardlist=()) if index else None
    digests = [stage.digest() for stage in plan.stages()] if plan else [index.plan] if index else [None]
    tasks = []
    for shard in sorted(_shard_numbers(plan, (*positions, *names))):
        position, digest = positions.get(tar_name(shard)), digests[plan.stage_of(shard) if plan else 0]
        if index is None or position is None:
            tasks.append(ShardTask(folder, shard, index_head, None, None, digest))
        else:
            own_rows = None if rows is None else tuple(rows_of.get(position, ()))
            tasks.append(ShardTask(folder, shard, index_head, index.shardlist[position], own_rows, digest))
    return tasks


def _shard_numbers(plan: PlanFacts | None, names: Sequence[str]) -> set[int]:
    numbers = set(range(plan.shards)) if plan else set()
    for name in names:
        stem = name.partition(".")[0].removeprefix("shard-")
        if stem.isascii() and stem.isdigit() and name in (tar_name(int(stem)), marker_name(int(stem))):
            numbers.add(int(stem))
    return numbers


def _unexpected_files(files: Sequence[tuple[str, bool]], shards: set[int]) -> Iterator[Problem]:
    """Everything in the folder that is not part of the format."""
    expected = {INDEX, PLAN, PLAN_TABLE, SAMPLES, FAILURES, UNLISTED}
    expected |= {name(shard) for shard in shards for name in (tar_name, marker_name)}
    for raw_name, is_file in files:
        name = printable(raw_name)
        if name == LOCK or name.startswith(f"{LOCK}-part-"):
            yield Problem(name, "a lock: a build is running here, or was killed")
        elif name == ".staging":
            yield Problem(name, "staging of an unfinished build. Run the build again")
        elif name.startswith("failures-part-"):
            yield Problem(name, "failures of a part. Merge the parts again")
        elif name.startswith(TEMPORARY):
            yield Problem(name, "a temporary file of a process that was killed")
        elif name not in expected:
            yield Problem(name, "an unexpected file, not part of the data set")
        elif not is_file:
            yield Problem(name, "not a regular file")


def _check_shards(tasks: Sequence[ShardTask], workers: int, style: ProgressStyle) -> list[ShardReport]:
    """Check several shards at a time; the reports are in the order of the tasks."""
    reports: dict[int, ShardReport] = {}
    with ProgressBar("shards verified", len(tasks), style) as progress, Pool(min(workers, max(1, len(tasks)))) as pool:
        remaining = iter(tasks)
        num_problems = 0
        while True:
            while pool.unfinished < 2 * pool.size and (task := next(remaining, None)) is not None:
                pool.submit(task.shard, check_shard, task)
            finished = next_finished((pool,))
            if finished is None:
                return [reports[task.shard] for task in tasks]
            if isinstance(finished.error, WorkerDied):
                problem = Problem(tar_name(finished.tag), f"could not be checked: {finished.error}")
                report = ShardReport(finished.tag, None, (problem,))
            elif finished.error is not None:
                raise finished.error
            else:
                report = finished.result
            reports[finished.tag] = report
            num_problems += len(report.problems)
            progress.advance(1, f"{num_problems} problems" if num_problems else None)
