"""Is everything in a data set what it was when it was built? Every file, sum, count, key and frame is looked at."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from vmae_data.errors import DataError, NewerFormatError, NotThereError
from vmae_data.format import (
    FAILURES,
    FORMAT_VERSION,
    INDEX,
    NOT_JSON,
    PLAN,
    PLAN_TABLE,
    SAMPLES,
    UNLISTED,
    Failure,
    Index,
    PlanFacts,
    ShardMarker,
    decode_record,
    encode_record,
    key_of,
    marker_name,
    path_from_text,
    path_to_text,
    tar_name,
)
from vmae_data.html import printable
from vmae_data.labels import label_words, table_labels
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.progress import ProgressStyle, meter
from vmae_data.read.dataset import Shards
from vmae_data.storage import LOCK, TEMPORARY, StoragePath, exists, hash_file, list_tree, listable, read_bytes
from vmae_data.verify.check_member import REWRITTEN, TableRow, shortly, without_name
from vmae_data.verify.check_shard import Problem, ShardReport, ShardTask, check_shard

__all__ = ["Problem", "VerifyReport", "verify_shards"]


class VerifyReport(NamedTuple):
    """All that is wrong, and how much was looked at."""

    problems: tuple[Problem, ...]
    shards: int
    samples: int


def verify_shards(folder: StoragePath, *, workers: int, style: ProgressStyle = ProgressStyle.AUTO) -> VerifyReport:
    """Check a finished data set; a problem never ends the check.

    Raises DataError where the folder is no data set, NewerFormatError where a newer version wrote it: what is right
    there is not known here.
    """
    _need_data_set(folder)
    problems: list[Problem] = []
    plan = _read_record(folder, PLAN, PlanFacts, problems)
    index = _read_record(folder, INDEX, Index, problems)
    rows = _read_table(folder, index, problems)
    listed = _listed(folder)
    tasks = _tasks(folder, plan, index, rows, [one.name for one in listed])
    problems += _foreign_files(listed, {task.shard for task in tasks})
    reports = _check_shards(tasks, workers, style)
    markers = [report.marker for report in reports if report.marker is not None]
    for report in reports:
        if report.newer:
            raise NewerFormatError(f"{folder / report.problems[0].file}: {report.problems[0].found}")
        problems += report.problems
    whole = len(markers) == len(reports)
    if plan is not None:
        problems += _plan_problems(folder, plan)
        made_by = {marker.plan for marker in markers} | ({index.plan} if index is not None else set())
        if len(made_by) == 1 and made_by != {plan.digest()}:
            problems.append(Problem(PLAN, "is not the plan that the shards and the index were made by"))
    if index is not None:
        problems += _index_problems(index, plan, markers, rows, whole=whole)
        problems += _plan_table_problems(folder, index)
    problems += _failure_problems(folder, markers, index, whole=whole)
    return VerifyReport(tuple(problems), len(tasks), sum(len(marker.samples) for marker in markers))


def _need_data_set(folder: StoragePath) -> None:
    """What the reader refuses to open for not being there is no data set; damage is ours to list."""
    if not exists(folder / INDEX):
        Shards.open(str(folder))


def _read_record(folder: StoragePath, name: str, kind: type[Any], problems: list[Problem]) -> Any:
    """A record of the folder, or None and the problem."""
    try:
        data = read_bytes(folder / name)
        record = decode_record(data, kind, str(folder / name))
    except NewerFormatError:
        raise
    except NotThereError:
        problems.append(Problem(name, "missing"))
        return None
    except DataError as error:
        problems.append(Problem(name, without_name(error, name)))
        return None
    if encode_record(record) != data:
        problems.append(Problem(name, REWRITTEN))
    return record


class _Table(NamedTuple):
    rows: list[TableRow]
    shard_N: list[int]


def _read_table(folder: StoragePath, index: Index | None, problems: list[Problem]) -> _Table | None:
    """The rows of samples.arrow; None where it is damaged, for what it says then is worth nothing."""
    try:
        data = read_bytes(folder / SAMPLES)
        if index is not None and hashlib.sha256(data).hexdigest() != index.samples_sha256:
            problems.append(Problem(SAMPLES, f"its sum is not the one in {INDEX}"))
            return None
        columns = _columns(data)
        columns["label"] = table_labels(columns)
        names = [name for name in TableRow._fields if name not in ("frames", "offset", "size", "sha256")]
        plain = zip(*(columns[name] for name in names), strict=True)
        listed = zip(*(map(tuple, columns[name]) for name in ("frames", "offset", "size", "sha256")), strict=True)
        rows = [TableRow(*one, *many) for one, many in zip(plain, listed, strict=True)]
        return _Table(rows, columns["shard"])
    except NotThereError:
        problems.append(Problem(SAMPLES, "missing"))
        return None
    except (DataError, OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
        problems.append(Problem(SAMPLES, f"can't be read ({printable(str(error))})"))
        return None


def _columns(data: bytes) -> dict[str, list[Any]]:
    """A table as plain lists. A flipped byte in its offsets would lead out of the memory, so they are validated."""
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    table.validate(full=True)
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def _tasks(
    folder: StoragePath, plan: PlanFacts | None, index: Index | None, table: _Table | None, names: Sequence[str]
) -> list[ShardTask]:
    """A task for every shard that the plan, the index or the folder knows of."""
    listings = {listing.url: place for place, listing in enumerate(index.shardlist)} if index else {}
    by_place: dict[int, list[TableRow]] = {}
    for row, place in zip(table.rows, table.shard_N, strict=True) if table else ():
        by_place.setdefault(place, []).append(row)
    # It goes to the workers with every task, so it travels without the list of all shards.
    about = msgspec.structs.replace(index, shardlist=()) if index else None
    digest = plan.digest() if plan else index.plan if index else None
    tasks = []
    for shard in sorted(_shard_numbers(plan, (*listings, *names))):
        listed = listings.get(tar_name(shard))
        if index is None or listed is None:
            tasks.append(ShardTask(folder, shard, about, None, None, digest))
        else:
            rows = tuple(by_place.get(listed, ())) if table else None
            tasks.append(ShardTask(folder, shard, about, index.shardlist[listed], rows, digest))
    return tasks


def _shard_numbers(plan: PlanFacts | None, names: Sequence[str]) -> set[int]:
    numbers = set(range(plan.shards)) if plan else set()
    for name in names:
        stem = name.partition(".")[0].removeprefix("shard-")
        if stem.isascii() and stem.isdigit() and name in (tar_name(int(stem)), marker_name(int(stem))):
            numbers.add(int(stem))
    return numbers


def _check_shards(tasks: Sequence[ShardTask], workers: int, style: ProgressStyle) -> list[ShardReport]:
    """All shards, some at a time, told in their order."""
    reports: dict[int, ShardReport] = {}
    with meter("shards verified", len(tasks), style) as shown, Pool(min(workers, max(1, len(tasks)))) as pool:
        coming = iter(tasks)
        found = 0
        while True:
            while pool.unfinished < 2 * pool.size and (task := next(coming, None)) is not None:
                pool.submit(task.shard, check_shard, task)
            finished = next_finished((pool,))
            if finished is None:
                return [reports[task.shard] for task in tasks]
            reports[finished.tag] = _report(finished)
            found += len(reports[finished.tag].problems)
            shown.advance(1, f"{found} problems" if found else None)


def _report(finished: Finished) -> ShardReport:
    if isinstance(finished.error, WorkerDied):
        problem = Problem(tar_name(finished.tag), f"could not be checked: {finished.error}")
        return ShardReport(finished.tag, None, (problem,))
    if finished.error is not None:
        raise finished.error
    report: ShardReport = finished.result
    return report


class _Listed(NamedTuple):
    """What lies in the folder: a name, and whether it is a file's."""

    name: str
    is_file: bool


def _listed(folder: StoragePath) -> list[_Listed]:
    """Everything in the folder, by name. Nothing of a web server, which does not say."""
    if isinstance(folder, Path):
        entries = sorted(os.scandir(os.fsencode(folder)), key=lambda entry: entry.name)
        return [_Listed(path_to_text(entry.name), entry.is_file(follow_symlinks=True)) for entry in entries]
    paths = list_tree(folder) if listable(folder) else {}
    return sorted({_Listed(path.partition("/")[0], "/" not in path) for path in paths})


def _foreign_files(listed: Sequence[_Listed], shards: set[int]) -> Iterator[Problem]:
    """Everything in the folder that the format does not know."""
    known = {INDEX, PLAN, PLAN_TABLE, SAMPLES, FAILURES, UNLISTED}
    known |= {name(shard) for shard in shards for name in (tar_name, marker_name)}
    for entry in listed:
        name = printable(entry.name)
        if name == LOCK or name.startswith(f"{LOCK}-part-"):
            yield Problem(name, "a lock: a build is writing here, or was killed")
        elif name == ".staging":
            yield Problem(name, "staging of a build that was not finished; run the build again")
        elif name.startswith("failures-part-"):
            yield Problem(name, "failures of a part; merge the parts again")
        elif name.startswith(TEMPORARY):
            yield Problem(name, "left half written by a process that was killed")
        elif name not in known:
            yield Problem(name, "a foreign file, not part of the data set")
        elif not entry.is_file:
            yield Problem(name, "not a regular file")


def _plan_problems(folder: StoragePath, plan: PlanFacts) -> Iterator[Problem]:
    """The plan's table holds what its facts say."""
    try:
        columns = _columns(read_bytes(folder / PLAN_TABLE))
        keys, paths, shards = (columns[name] for name in ("key", "path", "shard"))
        names = [label_words(label, plan.classes) for label in table_labels(columns)]
        raw = [path_from_text(path) for path in paths]
    except NotThereError:
        yield Problem(PLAN_TABLE, "missing")
        return
    except (DataError, OSError, pa.ArrowException, KeyError, IndexError, TypeError, ValueError) as error:
        yield Problem(PLAN_TABLE, f"can't be read ({printable(str(error))})")
        return
    if len(keys) != plan.sources:
        yield Problem(PLAN_TABLE, f"has {len(keys)} sources, {PLAN} says {plan.sources}")
    if keys != [key_of(path) for path in raw]:
        yield Problem(PLAN_TABLE, "has keys that are not those of its paths")
    if sorted(set(shards)) != list(range(plan.shards)) or shards != sorted(shards):
        yield Problem(PLAN_TABLE, f"does not fill the {plan.shards} shards of {PLAN} in order")
    if _listing_digest(paths, names) != plan.listing:
        yield Problem(PLAN_TABLE, f"its paths and labels are not those of {PLAN}")


def _listing_digest(paths: Sequence[str], names: Sequence[str]) -> str:
    """As the plan makes it: of relative paths and class names, sorted."""
    lines = sorted(f"{path}\t{name}\n".encode() for path, name in zip(paths, names, strict=True))
    return hashlib.sha256(b"".join(lines)).hexdigest()


def _plan_table_problems(folder: StoragePath, index: Index) -> Iterator[Problem]:
    path = folder / PLAN_TABLE
    if exists(path) and (digest := hash_file(path)) != index.plan_table_sha256:
        yield Problem(PLAN_TABLE, f"its sum is {shortly(digest)}, {INDEX} says {shortly(index.plan_table_sha256)}")


def _index_problems(
    index: Index, plan: PlanFacts | None, markers: Sequence[ShardMarker], table: _Table | None, *, whole: bool
) -> Iterator[Problem]:
    """Every field of the index follows from the other files."""
    said: list[tuple[str, object, object]] = [
        ("kind", index.kind, "wids-shard-index-v1"),
        ("wids_version", index.wids_version, 1),
        ("version", index.version, FORMAT_VERSION),
        ("samples", index.samples, sum(listing.nsamples for listing in index.shardlist)),
    ]
    if table is not None:
        said.append(("samples (rows of samples.arrow)", index.samples, len(table.rows)))
    if plan is not None:
        said += [
            ("plan", index.plan, plan.digest()),
            ("id", index.id, plan.listing),
            ("classes", index.classes, plan.classes),
            ("split", index.split, plan.split),
            ("recipe", index.recipe, plan.recipe),
            *(
                (name, getattr(index, name), plan.recipe.get(name))
                for name in ("may_flip", "short_side", "stride", "profile")
            ),
        ]
    if whole:
        full = [marker for marker in markers if marker.samples]
        said += [
            ("samples (of the markers)", index.samples, sum(len(marker.samples) for marker in full)),
            ("shards", [listing.url for listing in index.shardlist], [tar_name(marker.shard) for marker in full]),
            ("phases", index.phases, max((len(e.members) for m in full for e in m.samples), default=0)),
        ]
    for what, found, wanted in said:
        if found != wanted:
            yield Problem(INDEX, f"{what}: {shortly(found)}, the other files say {shortly(wanted)}")


def _failure_problems(
    folder: StoragePath, markers: Sequence[ShardMarker], index: Index | None, *, whole: bool
) -> Iterator[Problem]:
    """failures.jsonl is what the markers say, and the index has counted it."""
    try:
        data = read_bytes(folder / FAILURES)
        failures = [msgspec.json.decode(line, type=Failure) for line in data.splitlines()]
    except NotThereError:
        yield Problem(FAILURES, "missing")
        return
    except (DataError, *NOT_JSON) as error:
        yield Problem(FAILURES, f"can't be read ({printable(str(error))})")
        return
    counts = dict(sorted(Counter(failure.reason for failure in failures).items()))
    if index is not None and counts != index.failures:
        yield Problem(FAILURES, f"holds {shortly(counts)}, {INDEX} says {shortly(index.failures)}")
    told = [failure for marker in markers for failure in marker.failures]
    if whole and data != b"".join(msgspec.json.encode(failure) + b"\n" for failure in told):
        yield Problem(FAILURES, "is not what the markers say")
