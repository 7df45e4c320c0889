"""Markers → failures.jsonl, samples.arrow, then index.json, written last."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path

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
    SourceFacts,
    decode_record,
    encode_record,
    expand_series,
)
from vmae_data.labels import label_columns
from vmae_data.names import marker_name
from vmae_data.shards.pack import facts_name
from vmae_data.shards.plan import spec_of
from vmae_data.storage import Span, StoragePath, commit_bytes, hash_file, read_each, read_spans

__all__ = ["failure_lines", "write_index"]


def write_index(
    dest: StoragePath,
    staging: Path,
    plan: PlanFacts,
    heads: Sequence[ShardHead],
    on_source: Callable[[SourceFacts], object] = lambda source: None,
) -> Index:
    """Write failures.jsonl, samples.arrow, and index.json last: with it the data set is complete.

    `staging` may hold the facts of shards that this machine uploaded.
    `on_source` is called with the source of each sample.
    Raises VmaeError if every video failed.
    """
    spec = spec_of(plan)
    failures = [failure for head in heads for failure in head.failures]
    commit_bytes(dest / FAILURES, failure_lines(failures))
    full = [head for head in heads if head.num_samples]
    if not full:
        raise VmaeError(f"{dest}: all {plan.sources} videos failed ({_most_common(failures)}). See {dest / FAILURES}")
    parts, labels, shardlist = [], [], []
    num_sources = source_bytes = 0
    markers = [dest / marker_name(head.shard) for head in full]
    for number, (path, head, data) in enumerate(zip(markers, full, read_each(markers), strict=True)):
        marker = decode_record(data, ShardMarker, str(path))
        facts = _read_facts(dest / marker.tar, staging / facts_name(marker.shard), marker)
        for one in facts:
            on_source(one.source)
        sources = _source_numbers([one.source.path for one in facts])
        parts.append(_rows(number, [num_sources + source for source in sources], marker.samples, facts))
        labels += [entry.label for entry in marker.samples]
        shardlist.append(_listing(head, data))
        num_sources += max(sources) + 1
        source_bytes += sum({one.source.path: one.source.bytes for one in facts}.values())
    table = _table_bytes(parts, labels)
    commit_bytes(dest / SAMPLES, table)
    index = Index(
        version=FORMAT_VERSION,
        id=plan.id,
        samples=len(labels),
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
        source_bytes=source_bytes,
        shardlist=tuple(shardlist),
    )
    commit_bytes(dest / INDEX, encode_record(index))
    return index


def failure_lines(failures: Sequence[Failure]) -> bytes:
    return b"".join(msgspec.json.encode(failure) + b"\n" for failure in failures)


def _most_common(failures: Sequence[Failure]) -> str:
    counts = Counter(failure.reason for failure in failures).most_common(3)
    return ", ".join(f"{count} {reason}" for reason, count in counts)


def _listing(head: ShardHead, marker: bytes) -> ShardListing:
    return ShardListing(
        url=head.tar,
        nsamples=head.num_samples,
        filesize=head.bytes,
        sha256=head.sha256,
        marker_sha256=hashlib.sha256(marker).hexdigest(),
    )


def _read_facts(tar: StoragePath, kept: Path, marker: ShardMarker) -> list[SampleFacts]:
    extents = [entry.facts for entry in marker.samples]
    texts = _kept_facts(kept, extents) or list(read_spans(tar, [Span(e.offset, e.size) for e in extents]))
    return [decode_record(data, SampleFacts, str(tar)) for data in texts]


def _kept_facts(kept: Path, extents: Sequence[Extent]) -> list[bytes]:
    """The facts that were kept when the shard was packed; empty unless all have their checksum."""
    if not kept.is_file():
        return []
    data, ends = kept.read_bytes(), list(accumulate(extent.size for extent in extents))
    texts = [data[end - extent.size : end] for end, extent in zip(ends, extents, strict=True)]
    right = all(hashlib.sha256(text).hexdigest() == e.sha256 for text, e in zip(texts, extents, strict=True))
    return texts if right else []


def _source_numbers(paths: Sequence[str]) -> list[int]:
    """A number for each source in order of first appearance; samples of one source (all in one shard) share it."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(path, len(numbers)) for path in paths]


def _rows(shard: int, sources: Sequence[int], entries: Sequence[SampleEntry], facts: Sequence[SampleFacts]) -> pa.Table:
    """The rows of a shard without labels, one a sample. List columns have one value a phase."""
    phases = max(len(entry.members) for entry in entries)

    def each(kind: pa.DataType, values: list[list[object]]) -> pa.Array:
        return pa.array(values, pa.list_(kind, phases))

    kept = [entry.members[0].phase.source_frames for entry in entries]
    regular = [series if isinstance(series, Regular) else None for series in kept]
    irregular = [None if isinstance(series, Regular) else expand_series(series) for series in kept]
    return pa.table(
        {
            "key": pa.array([entry.key for entry in entries], pa.string()),
            "source": pa.array(sources, pa.int32()),
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


def _table_bytes(parts: Sequence[pa.Table], labels: Sequence[Label | None]) -> bytes:
    """samples.arrow, one row a sample in shard order. One record batch, so that a reader maps each column uncopied."""
    table = pa.concat_tables(parts)
    position = table.column_names.index("shard") + 1
    for name, column in reversed(label_columns(labels).items()):
        table = table.add_column(position, name, column)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=len(labels))
    return bytes(sink.getvalue().to_pybytes())
