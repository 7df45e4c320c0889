"""Row 7. Markers → samples.arrow and failures.jsonl, then index.json, written last."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from vmae_data.errors import VmaeError
from vmae_data.format import (
    FAILURES,
    FORMAT_VERSION,
    INDEX,
    PLAN_TABLE,
    SAMPLES,
    Failure,
    Index,
    PlanFacts,
    Regular,
    SampleEntry,
    SampleFacts,
    ShardListing,
    ShardMarker,
    decode_record,
    encode_record,
    expand_series,
    marker_name,
)
from vmae_data.labels import label_columns
from vmae_data.prepare.plan import spec_of
from vmae_data.store import commit_bytes, hash_file

__all__ = ["failure_lines", "write_index"]


def write_index(dest: Path, plan: PlanFacts, markers: Sequence[ShardMarker]) -> Index:
    """Gather what every shard holds. The index is the last file: with it the data set is whole.

    Raises VmaeError when not a single video could be made.
    """
    spec = spec_of(plan)
    failures = [failure for marker in markers for failure in marker.failures]
    commit_bytes(dest / FAILURES, failure_lines(failures))
    full = [marker for marker in markers if marker.samples]
    if not full:
        raise VmaeError(
            f"{dest}: none of {plan.sources} videos could be made ({_reasons(failures)}); see {dest / FAILURES}"
        )
    rows = _rows(dest, full)
    table = samples_table(rows)
    commit_bytes(dest / SAMPLES, table)
    index = Index(
        version=FORMAT_VERSION,
        id=plan.listing,
        samples=sum(len(marker.samples) for marker in full),
        samples_sha256=hashlib.sha256(table).hexdigest(),
        classes=plan.classes,
        may_flip=spec.may_flip,
        split=plan.split,
        short_side=spec.short_side,
        stride=spec.stride,
        rate=spec.thinning.rate,
        phases=spec.phases,
        profile=spec.profile,
        recipe=plan.recipe,
        plan=plan.digest(),
        plan_table_sha256=hash_file(dest / PLAN_TABLE),
        failures=dict(sorted(Counter(failure.reason for failure in failures).items())),
        source_bytes=sum({row.facts.source.path: row.facts.source.bytes for row in rows}.values()),
        shardlist=tuple(
            ShardListing(
                url=marker.tar,
                nsamples=len(marker.samples),
                filesize=marker.bytes,
                sha256=marker.sha256,
                marker_sha256=hash_file(dest / marker_name(marker.shard)),
            )
            for marker in full
        ),
    )
    commit_bytes(dest / INDEX, encode_record(index))
    return index


def failure_lines(failures: Sequence[Failure]) -> bytes:
    return b"".join(msgspec.json.encode(failure) + b"\n" for failure in failures)


def _reasons(failures: Sequence[Failure]) -> str:
    counts = Counter(failure.reason for failure in failures).most_common(3)
    return ", ".join(f"{count} {reason}" for reason, count in counts)


class _Row(NamedTuple):
    """A sample, and the shard's place in the index."""

    shard: int
    entry: SampleEntry
    facts: SampleFacts


def _rows(dest: Path, markers: Sequence[ShardMarker]) -> list[_Row]:
    return [
        _Row(number, entry, _facts(dest, marker, entry.facts.offset, entry.facts.size))
        for number, marker in enumerate(markers)
        for entry in marker.samples
    ]


def samples_table(rows: Sequence[_Row]) -> bytes:
    """One row a sample, in shard order; columns of lists have one value a phase.

    Written as one record batch, so that a reader maps every column without a copy.
    """
    phases = max(len(entry.members) for _, entry, _ in rows)

    def each(kind: pa.DataType, values: list[list[object]]) -> pa.Array:
        return pa.array(values, pa.list_(kind, phases))

    regular = [
        phase.source_frames if isinstance(phase.source_frames, Regular) else None
        for _, entry, _ in rows
        for phase in (entry.members[0].phase,)
    ]
    irregular = [
        None if kept else expand_series(entry.members[0].phase.source_frames)
        for kept, (_, entry, _) in zip(regular, rows, strict=True)
    ]
    table = pa.table(
        {
            "key": pa.array([entry.key for _, entry, _ in rows], pa.string()),
            "source": pa.array(_source_numbers([facts.source.path for *_, facts in rows]), pa.int32()),
            "shard": pa.array([number for number, *_ in rows], pa.int32()),
            **label_columns([entry.label for _, entry, _ in rows]),
            "width": pa.array([facts.width for *_, facts in rows], pa.int32()),
            "height": pa.array([facts.height for *_, facts in rows], pa.int32()),
            "source_frames": pa.array([facts.source.frames for *_, facts in rows], pa.int32()),
            "rate": pa.array([float(facts.rate) for *_, facts in rows], pa.float64()),
            "source_rate": pa.array([float(facts.source.rate) for *_, facts in rows], pa.float64()),
            "matrix": pa.array([facts.colour.matrix for *_, facts in rows], pa.string()),
            "full_range": pa.array([facts.colour.full_range for *_, facts in rows], pa.bool_()),
            "kept_first": pa.array([kept.first if kept else -1 for kept in regular], pa.int32()),
            "kept_step": pa.array([kept.step if kept else 0 for kept in regular], pa.int32()),
            "kept_list": pa.array(irregular, pa.list_(pa.int32())),
            "frames": each(pa.int32(), [[m.phase.frames for m in e.members] for _, e, _ in rows]),
            "offset": each(pa.int64(), [[m.extent.offset for m in e.members] for _, e, _ in rows]),
            "size": each(pa.int64(), [[m.extent.size for m in e.members] for _, e, _ in rows]),
            "sha256": each(pa.binary(32), [[bytes.fromhex(m.extent.sha256) for m in e.members] for _, e, _ in rows]),
        }
    ).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=len(rows))
    return bytes(sink.getvalue().to_pybytes())


def _facts(dest: Path, marker: ShardMarker, offset: int, size: int) -> SampleFacts:
    with (dest / marker.tar).open("rb") as file:
        file.seek(offset)
        return decode_record(file.read(size), SampleFacts, marker.tar)


def _source_numbers(paths: list[str]) -> np.ndarray:
    """Samples of one source share a number, in order of first appearance."""
    numbers: dict[str, int] = {}
    return np.asarray([numbers.setdefault(path, len(numbers)) for path in paths], dtype=np.int32)
