"""Row 6. Encoded files in plan order → one reproducible tar, then its marker.

The only file that imports webdataset, and so torch where it is installed: lazily, in the one
process that packs.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from vmae_data.encode.encode_source import StagedMember, StagedSample, StagedSource, staged_name
from vmae_data.errors import DataError, NewerFormatError
from vmae_data.format import (
    FORMAT_VERSION,
    NOT_JSON,
    Extent,
    Failure,
    Label,
    MemberEntry,
    SampleEntry,
    SampleFacts,
    ShardHead,
    ShardMarker,
    decode_record,
    encode_record,
    key_of,
    marker_name,
    member_suffix,
    path_from_text,
    tar_name,
)
from vmae_data.storage import (
    StoragePath,
    commit_bytes,
    commit_file,
    copied,
    hash_file,
    list_names,
    read_bytes,
    read_each,
    read_range,
    remove,
    temporary_beside,
    write_error,
)

__all__ = [
    "PackJob",
    "adopt_staged",
    "clean_staging",
    "facts_name",
    "pack_shard",
    "read_heads",
    "read_marker",
    "read_staged",
    "unpack_shard",
]


class PackJob(NamedTuple):
    """One shard to pack: its sources' keys in plan order."""

    dest: StoragePath
    staging: Path
    shard: int
    keys: tuple[str, ...]
    plan: str
    writer: str = ""  # as in store.temporary_beside


def read_staged(staging: Path, key: str) -> StagedSource | None:
    """What a source gave, or None where it hasn't been worked on.

    Only the record counts, and only while the files that it names are whole in size; the sum is
    checked when they are packed.
    """
    path = staging / staged_name(key)
    try:
        staged = msgspec.json.decode(path.read_bytes(), type=StagedSource)
        sizes = [(staging / m.file).stat().st_size == m.size for s in staged.samples for m in s.members]
    except (OSError, *NOT_JSON):
        return None
    return staged if all(sizes) else None


def adopt_staged(shared: Path, staging: Path, key: str) -> StagedSource | None:
    """Take over into another staging what a source gave in an earlier run, or None where there is nothing whole."""
    staged = read_staged(shared, key)
    if staged is None:
        return None
    for sample in staged.samples:
        for member in sample.members:
            data = read_bytes(shared / member.file)
            if hashlib.sha256(data).hexdigest() != member.sha256:
                return None
            commit_bytes(staging / member.file, data)
    commit_bytes(staging / staged_name(key), encode_record(staged))
    return staged


def pack_shard(job: PackJob) -> ShardHead:
    """Write a shard and then its marker; clean the staging of its sources.

    Raises DataError when a staged file is not what its record says.
    """
    staged = [_need(job, key) for key in job.keys]
    samples = [sample for source in staged for sample in source.samples]
    failures = tuple(source.failure for source in staged if source.failure is not None)
    final = job.dest / tar_name(job.shard)
    size, digest = 0, ""
    entries: tuple[SampleEntry, ...] = ()
    if samples:
        here = final if isinstance(final, Path) else job.staging / final.name
        temporary = temporary_beside(here, job.writer)
        try:
            try:
                _write_tar(temporary, job.staging, samples)
            except OSError as error:
                raise write_error(here, error) from error
            size, digest = temporary.stat().st_size, hash_file(temporary)
            entries = tuple(_entries(temporary, samples))
            if here is not final:
                facts = b"".join(encode_record(sample.facts) for sample in samples)
                commit_bytes(job.staging / facts_name(job.shard), facts, job.writer)
            commit_file(temporary, final)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    marker = ShardMarker(
        version=FORMAT_VERSION,
        plan=job.plan,
        shard=job.shard,
        tar=final.name if samples else "",
        bytes=size,
        sha256=digest,
        samples=entries,
        failures=failures,
    )
    commit_bytes(job.dest / marker_name(job.shard), encode_record(marker), job.writer)
    clean_staging(job.staging, job.keys)
    return ShardHead.of(marker)


def facts_name(shard: int) -> str:
    """What a shard's KEY.json files hold, one after the other, kept in staging until the index is written: a store
    would be asked once for each.
    """
    return f"{tar_name(shard)}.facts"


def _need(job: PackJob, key: str) -> StagedSource:
    staged = read_staged(job.staging, key)
    if staged is None:
        raise DataError(f"{job.staging / staged_name(key)}: is gone or damaged; run the same build again")
    return staged


def _members(sample: StagedSample, staging: Path) -> Iterator[tuple[str, bytes]]:
    for phase, member in enumerate(sample.members):
        data = read_bytes(staging / member.file)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            # Taken away, so that the next run encodes it again instead of stopping here for ever.
            (staging / member.file).unlink()
            raise DataError(f"{staging / member.file}: changed since it was written; run the same build again")
        yield member_suffix(phase), data
    yield "json", encode_record(sample.facts)
    if sample.facts.label is not None:
        yield "cls", _label_text(sample.facts.label)


def _label_text(label: Label) -> bytes:
    values = label if isinstance(label, tuple) else (label,)
    return " ".join(str(value) for value in values).encode("ascii")


def _write_tar(path: Path, staging: Path, samples: Sequence[StagedSample]) -> None:
    from webdataset import TarWriter

    with path.open("wb") as file:
        sink = _Sink(file)
        # encoder=False: the bytes go in as they are. Fixed time and owner make the tar reproducible.
        writer: Any = TarWriter(sink, mtime=0, user="vmae", group="vmae", encoder=False)
        try:
            for sample in samples:
                writer.write({"__key__": sample.facts.key, **dict(_members(sample, staging))})
            writer.close()
        finally:
            sink.file = None


class _Sink:
    """Where a tar is written to. What comes after its end is dropped: a tarfile that failed tries once more to
    write when it is forgotten, fails again, and Python tells of that on the terminal.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file: IO[bytes] | None = file

    def write(self, data: bytes) -> int:
        return len(data) if self.file is None else self.file.write(data)


def _entries(path: Path, samples: Sequence[StagedSample]) -> Iterator[SampleEntry]:
    """Where the data of each member lies: read back from the tar, since the writer doesn't know while it writes."""
    with tarfile.open(path) as tar:
        places = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}
    for sample in samples:
        key = sample.facts.key
        facts = encode_record(sample.facts)
        yield SampleEntry(
            key=key,
            label=sample.facts.label,
            facts=_extent(places[f"{key}.json"], hashlib.sha256(facts).hexdigest()),
            members=tuple(
                MemberEntry(
                    extent=_extent(places[f"{key}.{member_suffix(phase)}"], member.sha256),
                    phase=member.phase,
                    codec=member.codec,
                    extradata=member.extradata,
                    packets=member.packets,
                )
                for phase, member in enumerate(sample.members)
            ),
        )


def _extent(place: tuple[int, int], digest: str) -> Extent:
    return Extent(offset=place[0], size=place[1], sha256=digest)


def clean_staging(staging: Path, keys: Sequence[str]) -> None:
    """Take away what the sources of a packed shard left; the record first, so that no record points to nothing."""
    for key in keys:
        staged = read_staged(staging, key)
        (staging / staged_name(key)).unlink(missing_ok=True)
        for sample in staged.samples if staged else ():
            for member in sample.members:
                (staging / member.file).unlink(missing_ok=True)


def unpack_shard(dest: StoragePath, staging: Path, shard: int) -> None:
    """Put a shard's samples back into staging and take its marker away, so that its failures are tried again.

    Raises DataError when a member is not what the marker says.
    """
    marker = read_marker(dest, shard)
    if marker.samples:
        with copied(dest / marker.tar, staging) as tar:
            _unpack_tar(tar, dest / marker.tar, marker, staging)
    # Last: until now a kill leaves the shard as it was.
    remove(dest / marker_name(shard))


def _unpack_tar(tar: Path, name: StoragePath, marker: ShardMarker, staging: Path) -> None:
    sources: dict[str, list[StagedSample]] = {}  # segments of one source are one record
    for entry in marker.samples:
        facts = decode_record(_member_bytes(tar, name, entry.facts), SampleFacts, f"{name}, {entry.key}.json")
        members = []
        for phase, member in enumerate(entry.members):
            file = f"{entry.key}.{member_suffix(phase)}"
            commit_bytes(staging / file, _member_bytes(tar, name, member.extent))
            members.append(
                StagedMember(
                    file=file,
                    size=member.extent.size,
                    sha256=member.extent.sha256,
                    phase=member.phase,
                    codec=member.codec,
                    extradata=member.extradata,
                    packets=member.packets,
                )
            )
        key = key_of(path_from_text(facts.source.path))
        sources.setdefault(key, []).append(StagedSample(facts=facts, members=tuple(members)))
    for key, samples in sources.items():
        commit_bytes(staging / staged_name(key), encode_record(StagedSource(samples=tuple(samples))))


def _member_bytes(tar: Path, name: StoragePath, extent: Extent) -> bytes:
    data = read_range(tar, extent.offset, extent.size)
    if hashlib.sha256(data).hexdigest() != extent.sha256:
        raise DataError(f"{name}: a member's sum is wrong; remove the shard's marker to build it again")
    return data


def read_marker(dest: StoragePath, shard: int) -> ShardMarker:
    """A shard's marker. Raises DataError when it is damaged."""
    path = dest / marker_name(shard)
    return decode_record(read_bytes(path), ShardMarker, str(path))


class _Skipped(msgspec.Struct):
    """A sample's entry that is passed over, seven times faster than it is read."""


class _MarkerFile(msgspec.Struct, kw_only=True):
    """A marker without the entries of its samples."""

    plan: str
    tar: str
    bytes: int
    sha256: str
    samples: tuple[_Skipped, ...]
    failures: tuple[Failure, ...] = ()


def read_heads(dest: StoragePath, shards: Iterable[int], plan: str) -> dict[int, ShardHead]:
    """What is known of the shards that are done: whose marker is of this plan, and whose tar is there in full.

    The folder is listed once, and a store's markers are read some at a time.
    """
    sizes = list_names(dest)
    marked = [shard for shard in shards if marker_name(shard) in sizes]
    heads = {}
    for shard, data in zip(marked, read_each([dest / marker_name(shard) for shard in marked]), strict=True):
        head = _head_of(data, shard, plan, sizes.get(tar_name(shard)), str(dest / marker_name(shard)))
        if head is not None:
            heads[shard] = head
    return heads


def _head_of(data: bytes, shard: int, plan: str, tar_bytes: int | None, name: str) -> ShardHead | None:
    try:
        marker = decode_record(data, _MarkerFile, name)
    except NewerFormatError:
        raise
    except DataError:
        return None  # a damaged marker proves nothing: the shard is made again
    if (marker.samples and tar_bytes != marker.bytes) or marker.plan != plan:
        return None
    return ShardHead(
        shard=shard,
        tar=marker.tar,
        bytes=marker.bytes,
        sha256=marker.sha256,
        num_samples=len(marker.samples),
        failures=marker.failures,
    )
