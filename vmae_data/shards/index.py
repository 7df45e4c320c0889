"""Row 7. Markers → samples.arrow and failures.jsonl, then index.json, written last."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from vmae_data.errors import VmaeError
from vmae_data.format import (
    FAILURES,
    FORMAT_VERSION,
    INDEX,
    PLAN_TABLE,
    SAMPLES,
    Extent,
    Failure,
    Index,
    Label,
    PlanFacts,
    Regular,
    SampleEntry,
    SampleFacts,
    ShardHead,
    ShardListing,
    ShardMarker,
    decode_record,
    encode_record,
    expand_series,
    marker_name,
)
from vmae_data.labels import label_columns
from vmae_data.shards.pack import facts_name
from vmae_data.shards.plan import spec_of
from vmae_data.storage import Span, StoragePath, commit_bytes, hash_file, read_each, read_spans

__all__ = ["failure_lines", "write_index"]


def write_index(dest: StoragePath, staging: Path, plan: PlanFacts, heads: Sequence[ShardHead]) -> Index:
    """Gather what every shard holds. The index is the last file: with it the data set is whole.

    `staging` may hold facts of shards that this machine sent to a store.

    Raises VmaeError when not a single video could be made.
    """
    spec = spec_of(plan)
    failures = [failure for head in heads for failure in head.failures]
    commit_bytes(dest / FAILURES, failure_lines(failures))
    full = [head for head in heads if head.num_samples]
    if not full:
        raise VmaeError(
            f"{dest}: none of {plan.sources} videos could be made ({_reasons(failures)}); see {dest / FAILURES}"
        )
    gathered = _gather(dest, staging, full)
    commit_bytes(dest / SAMPLES, gathered.table)
    index = Index(
        version=FORMAT_VERSION,
        id=plan.listing,
        samples=sum(head.num_samples for head in full),
        samples_sha256=hashlib.sha256(gathered.table).hexdigest(),
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
        source_bytes=gathered.source_bytes,
        shardlist=tuple(
            ShardListing(
                url=head.tar,
                nsamples=head.num_samples,
                filesize=head.bytes,
                sha256=head.sha256,
                marker_sha256=digest,
            )
            for head, digest in zip(full, gathered.marker_sums, strict=True)
        ),
    )
    commit_bytes(dest / INDEX, encode_record(index))
    return index


def failure_lines(failures: Sequence[Failure]) -> bytes:
    return b"".join(msgspec.json.encode(failure) + b"\n" for failure in failures)


def _reasons(failures: Sequence[Failure]) -> str:
    counts = Counter(failure.reason for failure in failures).most_common(3)
    return ", ".join(f"{count} {reason}" for reason, count in counts)


class _Gathered(NamedTuple):
    """What the shards hold, gathered one by one."""

    table: bytes  # samples.arrow
    source_bytes: int
    marker_sums: list[str]


def _gather(dest: StoragePath, staging: Path, heads: Sequence[ShardHead]) -> _Gathered:
    """One row a sample, in shard order.

    The table is written as one record batch, so that a reader maps every column without a copy.
    """
    labels: list[Label | None] = []
    parts, sums, sources, source_bytes = [], [], 0, 0
    markers = [dest / marker_name(head.shard) for head in heads]
    for number, (path, data) in enumerate(zip(markers, read_each(markers), strict=True)):
        marker = decode_record(data, ShardMarker, str(path))
        sums.append(hashlib.sha256(data).hexdigest())
        facts = _read_facts(dest / marker.tar, staging / facts_name(marker.shard), marker)
        paths = _numbers_of([one.source.path for one in facts])
        source_bytes += sum({one.source.path: one.source.bytes for one in facts}.values())
        parts.append(_rows(number, sources, paths, marker.samples, facts))
        labels += [entry.label for entry in marker.samples]
        sources += max(paths) + 1
    table = pa.concat_tables(parts)
    place = table.column_names.index("shard") + 1
    for name, column in reversed(label_columns(labels).items()):
        table = table.add_column(place, name, column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=len(labels))
    return _Gathered(bytes(sink.getvalue().to_pybytes()), source_bytes, sums)


def _read_facts(tar: StoragePath, kept: Path, marker: ShardMarker) -> list[SampleFacts]:
    extents = [entry.facts for entry in marker.samples]
    found = _kept_facts(kept, extents) or list(read_spans(tar, [Span(e.offset, e.size) for e in extents]))
    return [decode_record(data, SampleFacts, str(tar)) for data in found]


def _kept_facts(kept: Path, extents: Sequence[Extent]) -> list[bytes]:
    """The facts that were kept when the shard was packed; nothing where they aren't all there and right."""
    if not kept.is_file():
        return []
    data, ends = kept.read_bytes(), list(accumulate(extent.size for extent in extents))
    found = [data[end - extent.size : end] for end, extent in zip(ends, extents, strict=True)]
    right = all(hashlib.sha256(one).hexdigest() == e.sha256 for one, e in zip(found, extents, strict=True))
    return found if right else []


def _rows(
    shard: int, sources: int, source: Sequence[int], entries: Sequence[SampleEntry], facts: Sequence[SampleFacts]
) -> pa.Table:
    """The rows of a shard, without labels; columns of lists have one value a phase. `sources` were before."""
    phases = max(len(entry.members) for entry in entries)

    def each(kind: pa.DataType, values: list[list[object]]) -> pa.Array:
        return pa.array(values, pa.list_(kind, phases))

    kept = [entry.members[0].phase.source_frames for entry in entries]
    regular = [series if isinstance(series, Regular) else None for series in kept]
    irregular = [None if isinstance(series, Regular) else expand_series(series) for series in kept]
    return pa.table(
        {
            "key": pa.array([entry.key for entry in entries], pa.string()),
            "source": pa.array([sources + number for number in source], pa.int32()),
            "shard": pa.array([shard] * len(entries), pa.int32()),
            "width": pa.array([one.width for one in facts], pa.int32()),
            "height": pa.array([one.height for one in facts], pa.int32()),
            "source_frames": pa.array([one.source.frames for one in facts], pa.int32()),
            "rate": pa.array([float(one.rate) for one in facts], pa.float64()),
            "source_rate": pa.array([float(one.source.rate) for one in facts], pa.float64()),
            "matrix": pa.array([one.colour.matrix for one in facts], pa.string()),
            "full_range": pa.array([one.colour.full_range for one in facts], pa.bool_()),
            "kept_first": pa.array([series.first if series else -1 for series in regular], pa.int32()),
            "kept_step": pa.array([series.step if series else 0 for series in regular], pa.int32()),
            "kept_list": pa.array(irregular, pa.list_(pa.int32())),
            "frames": each(pa.int32(), [[m.phase.frames for m in e.members] for e in entries]),
            "offset": each(pa.int64(), [[m.extent.offset for m in e.members] for e in entries]),
            "size": each(pa.int64(), [[m.extent.size for m in e.members] for e in entries]),
            "sha256": each(pa.binary(32), [[bytes.fromhex(m.extent.sha256) for m in e.members] for e in entries]),
        }
    )


def _numbers_of(paths: Sequence[str]) -> list[int]:
    """Samples of one source, which all lie in one shard, share a number, in order of first appearance."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(path, len(numbers)) for path in paths]
