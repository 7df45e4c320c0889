"""The files next to the shards → their problems: each must agree with the plan, the index, the table and the markers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from vmae_data.errors import DataError, NewerFormatError, NotFoundError
from vmae_data.format import (
    FAILURES,
    FORMAT_VERSION,
    INDEX,
    NOT_JSON,
    PLAN,
    PLAN_TABLE,
    REBUILD,
    SAMPLES,
    Failure,
    Index,
    PlanFacts,
    ShardMarker,
    decode_record,
    encode_record,
)
from vmae_data.labels import label_text, table_labels
from vmae_data.names import key_of, path_from_text, tar_name
from vmae_data.pages.html import printable
from vmae_data.storage import StoragePath, exists, hash_file, read_bytes
from vmae_data.verify.check_member import REWRITTEN, TableRow, abbreviate, without_name
from vmae_data.verify.check_shard import Problem

__all__ = ["failure_problems", "index_problems", "plan_problems", "read_record", "read_rows"]

_UNREADABLE_TABLE = (DataError, OSError, pa.ArrowException, KeyError, IndexError, ValueError, TypeError)


def read_record(
    folder: StoragePath, name: str, kind: type[Any], problems: list[Problem], *, advice: str = REBUILD
) -> Any:
    """A record of the folder, or None and a problem."""
    try:
        data = read_bytes(folder / name)
        record = decode_record(data, kind, str(folder / name), advice=advice)
    except NewerFormatError:
        raise
    except NotFoundError:
        problems.append(Problem(name, "missing"))
        return None
    except DataError as error:
        problems.append(Problem(name, without_name(error, name)))
        return None
    if encode_record(record) != data:
        problems.append(Problem(name, REWRITTEN))
    return record


def read_rows(folder: StoragePath, index: Index | None, problems: list[Problem]) -> list[TableRow] | None:
    """The rows of samples.arrow; None if it is damaged, because then its values are worth nothing."""
    try:
        data = read_bytes(folder / SAMPLES)
        if index is not None and hashlib.sha256(data).hexdigest() != index.samples_sha256:
            problems.append(Problem(SAMPLES, f"checksum differs from {INDEX}"))
            return None
        columns = _columns(data)
        columns["label"] = table_labels(columns)
        for name in ("frames", "offset", "size", "sha256"):
            columns[name] = list(map(tuple, columns[name]))
        return [TableRow(*values) for values in zip(*(columns[name] for name in TableRow._fields), strict=True)]
    except NotFoundError:
        problems.append(Problem(SAMPLES, "missing"))
    except _UNREADABLE_TABLE as error:
        problems.append(Problem(SAMPLES, f"can't be read ({printable(str(error))})"))
    return None


def _columns(data: bytes) -> dict[str, list[Any]]:
    """A table as plain lists. It is validated first: a damaged offset would point outside the memory."""
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    table.validate(full=True)
    columns: dict[str, list[Any]] = table.to_pydict()
    return columns


def plan_problems(folder: StoragePath, plan: PlanFacts) -> Iterator[Problem]:
    """plan.arrow against plan.json."""
    try:
        columns = _columns(read_bytes(folder / PLAN_TABLE))
        keys, paths, shards = (columns[name] for name in ("key", "path", "shard"))
        names = [label_text(label, plan.classes) for label in table_labels(columns)]
        expected_keys = [key_of(path_from_text(path)) for path in paths]
    except NotFoundError:
        yield Problem(PLAN_TABLE, "missing")
        return
    except _UNREADABLE_TABLE as error:
        yield Problem(PLAN_TABLE, f"can't be read ({printable(str(error))})")
        return
    if len(keys) != plan.sources:
        yield Problem(PLAN_TABLE, f"has {len(keys)} sources; {PLAN} states {plan.sources}")
    if keys != expected_keys:
        yield Problem(PLAN_TABLE, "keys do not match the paths")
    if sorted(set(shards)) != list(range(plan.shards)) or shards != sorted(shards):
        yield Problem(PLAN_TABLE, f"does not fill the {plan.shards} shards of {PLAN} in order")
    # The digests that the plan stores: of relative paths and class names, sorted.
    lines = [f"{path}\t{name}\n".encode() for path, name in zip(paths, names, strict=True)]
    for stage in plan.stages():
        if hashlib.sha256(b"".join(sorted(lines[: stage.sources]))).hexdigest() != stage.listing:
            yield Problem(PLAN_TABLE, f"paths and labels do not match {PLAN}")
    for before in plan.appended_to:
        if shards[before.sources - 1 : before.sources + 1] != [before.shards - 1, before.shards]:
            yield Problem(PLAN_TABLE, f"its first {before.sources} sources do not fill {before.shards} shards")


def index_problems(
    folder: StoragePath,
    index: Index,
    plan: PlanFacts | None,
    markers: Sequence[ShardMarker],
    rows: Sequence[TableRow] | None,
    *,
    all_read: bool,
) -> Iterator[Problem]:
    """Every field of the index follows from the other files. `all_read`: `markers` are complete."""
    compared: list[tuple[str, object, object]] = [
        ("kind", index.kind, "wids-shard-index-v1"),
        ("wids_version", index.wids_version, 1),
        ("version", index.version, FORMAT_VERSION),
        ("samples", index.samples, sum(listing.nsamples for listing in index.shardlist)),
    ]
    if rows is not None:
        compared.append(("samples (rows of samples.arrow)", index.samples, len(rows)))
    if plan is not None:
        compared += [
            ("plan", index.plan, plan.digest()),
            ("id", index.id, plan.id),
            ("classes", index.classes, plan.classes),
            ("split", index.split, plan.split),
            ("recipe", index.recipe, plan.recipe),
            *(
                (name, getattr(index, name), plan.recipe.get(name))
                for name in ("may_flip", "short_side", "stride", "profile")
            ),
        ]
    if all_read:
        full = [marker for marker in markers if marker.samples]
        compared += [
            ("samples (of the markers)", index.samples, sum(len(marker.samples) for marker in full)),
            ("shards", [listing.url for listing in index.shardlist], [tar_name(marker.shard) for marker in full]),
            ("phases", index.phases, max((len(e.members) for m in full for e in m.samples), default=0)),
        ]
    for what, value, expected in compared:
        if value != expected:
            yield Problem(INDEX, f"{what}: {abbreviate(value)}; the other files state {abbreviate(expected)}")
    path = folder / PLAN_TABLE
    if exists(path) and hash_file(path) != index.plan_table_sha256:
        yield Problem(PLAN_TABLE, f"checksum differs from {INDEX}")


def failure_problems(
    folder: StoragePath, markers: Sequence[ShardMarker], index: Index | None, *, all_read: bool
) -> Iterator[Problem]:
    """failures.jsonl against the failures in the markers and the counts in the index."""
    try:
        data = read_bytes(folder / FAILURES)
        failures = [msgspec.json.decode(line, type=Failure) for line in data.splitlines()]
    except NotFoundError:
        yield Problem(FAILURES, "missing")
        return
    except (DataError, *NOT_JSON) as error:
        yield Problem(FAILURES, f"can't be read ({printable(str(error))})")
        return
    counts = dict(sorted(Counter(failure.reason for failure in failures).items()))
    if index is not None and counts != index.failures:
        yield Problem(FAILURES, f"has {abbreviate(counts)}; {INDEX} states {abbreviate(index.failures)}")
    expected = b"".join(msgspec.json.encode(failure) + b"\n" for marker in markers for failure in marker.failures)
    if all_read and data != expected:
        yield Problem(FAILURES, "differs from the failures in the markers")
