"""Encoded files in plan order → one reproducible tar, then its marker."""

from __future__ import annotations

import hashlib
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import msgspec

from vmae_data.encode.staged import EncodeJob, StagedMember, StagedSample, StagedSource, staged_name
from vmae_data.errors import DataError, NewerFormatError
from vmae_data.format import (
    FORMAT_VERSION,
    NOT_JSON,
    Extent,
    Failure,
    Label,
    MemberEntry,
    PlanFacts,
    SampleEntry,
    SampleFacts,
    ShardHead,
    ShardMarker,
    decode_record,
    encode_record,
)
from vmae_data.names import key_of, marker_name, member_suffix, path_from_text, tar_name
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
    temporary_path,
    write_error,
)

__all__ = [
    "ShardJob",
    "adopt_staged",
    "clean_staging",
    "facts_name",
    "pack_shard",
    "read_heads",
    "read_marker",
    "read_staged",
    "unpack_shard",
]


class ShardJob(NamedTuple):
    """One shard to make: encode its sources into staging, then pack them into `dest`."""

    dest: StoragePath
    staging: Path
    shard: int
    encodes: tuple[EncodeJob, ...]  # one a source, in plan order
    plan: str  # digest
    writer: str = ""  # see `temporary_path`

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(job.key for job in self.encodes)


def read_staged(staging: Path, key: str, plan: str) -> StagedSource | None:
    """The record of a source encoded for a plan; None if there is none, or if a file that it names is not complete.

    The cache keeps the staging of a bucket whose objects were deleted: it may hold encodes for another plan.
    Only sizes are compared here; packing verifies the checksums.
    """
    staged = _read_record(staging, key)
    return staged if staged is not None and staged.plan in ("", plan) else None


def _read_record(staging: Path, key: str) -> StagedSource | None:
    path = staging / staged_name(key)
    try:
        staged = msgspec.json.decode(path.read_bytes(), type=StagedSource)
        complete = [(staging / m.file).stat().st_size == m.size for s in staged.samples for m in s.members]
    except (OSError, *NOT_JSON):
        return None
    return staged if all(complete) else None


def adopt_staged(shared: Path, staging: Path, key: str, plan: str) -> StagedSource | None:
    """Copy what an earlier run encoded of a source into another staging folder; None if that is not complete."""
    staged = read_staged(shared, key, plan)
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


def pack_shard(job: ShardJob) -> ShardHead:
    """Write a shard's tar, then its marker; then remove its sources from staging.

    Raises DataError if a staged file differs from its record.
    """
    staged = [_require_staged(job, key) for key in job.keys]
    samples = [sample for source in staged for sample in source.samples]
    failures = tuple(source.failure for source in staged if source.failure is not None)
    final = job.dest / tar_name(job.shard)
    size, digest = 0, ""
    entries: tuple[SampleEntry, ...] = ()
    if samples:
        here = final if isinstance(final, Path) else job.staging / final.name
        temporary = temporary_path(here, job.writer)
        try:
            try:
                write_tar(temporary, job.staging, samples)
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
    """The concatenated KEY.json files of a shard, kept in staging for the index: a store would get a request for each."""
    return f"{tar_name(shard)}.facts"


def _require_staged(job: ShardJob, key: str) -> StagedSource:
    staged = read_staged(job.staging, key, job.plan)
    if staged is None:
        raise DataError(f"{job.staging / staged_name(key)}: is gone or damaged. Run the same build again")
    return staged


def write_tar(path: Path, staging: Path, samples: Sequence[StagedSample]) -> None:
    """A tar without times and owners: the same samples give the same bytes."""
    with path.open("wb") as file:
        output = _TarOutput(file)
        # encoder=False: the bytes are written as they are.
        writer = _import_tar_writer()(output, mtime=0, user="vmae", group="vmae", encoder=False)
        try:
            for sample in samples:
                writer.write({"__key__": sample.facts.key, **dict(_members(sample, staging))})
            writer.close()
        finally:
            output.file = None


def _import_tar_writer() -> Any:
    """webdataset imports torch where torch is installed (2 s per build), and writes tars without it: hide torch meanwhile."""
    if "torch" in sys.modules or "webdataset" in sys.modules:
        from webdataset import TarWriter
    else:
        sys.modules["torch"] = None  # type: ignore[assignment]  # the documented way to make an import fail
        try:
            from webdataset import TarWriter
        finally:
            del sys.modules["torch"]
    return TarWriter


class _TarOutput:
    """A file, until `file` is None. A TarWriter that failed writes again when it is deleted; that must not reach a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file: IO[bytes] | None = file

    def write(self, data: bytes) -> int:
        return len(data) if self.file is None else self.file.write(data)


def _members(sample: StagedSample, staging: Path) -> Iterator[tuple[str, bytes]]:
    for phase, member in enumerate(sample.members):
        data = read_bytes(staging / member.file)
        if hashlib.sha256(data).hexdigest() != member.sha256:
            # Removed, so that the next run encodes it again instead of failing here each time.
            (staging / member.file).unlink()
            raise DataError(f"{staging / member.file}: changed since it was written. Run the same build again")
        yield member_suffix(phase), data
    yield "json", encode_record(sample.facts)
    if sample.facts.label is not None:
        yield "cls", _label_text(sample.facts.label)


def _label_text(label: Label) -> bytes:
    values = label if isinstance(label, tuple) else (label,)
    return " ".join(str(value) for value in values).encode("ascii")


def _entries(path: Path, samples: Sequence[StagedSample]) -> Iterator[SampleEntry]:
    """The position of each member's data, read back from the tar."""
    with tarfile.open(path) as tar:
        positions = {member.name: (member.offset_data, member.size) for member in tar.getmembers()}

    def extent(name: str, digest: str) -> Extent:
        offset, size = positions[name]
        return Extent(offset=offset, size=size, sha256=digest)

    for sample in samples:
        key = sample.facts.key
        yield SampleEntry(
            key=key,
            label=sample.facts.label,
            facts=extent(f"{key}.json", hashlib.sha256(encode_record(sample.facts)).hexdigest()),
            members=tuple(
                MemberEntry(
                    extent=extent(f"{key}.{member_suffix(phase)}", member.sha256),
                    phase=member.phase,
                    codec=member.codec,
                    extradata=member.extradata,
                    packets=member.packets,
                )
                for phase, member in enumerate(sample.members)
            ),
        )


def clean_staging(staging: Path, keys: Sequence[str]) -> None:
    """Remove the staged files of packed sources; each record first, so that no record names a missing file."""
    for key in keys:
        staged = _read_record(staging, key)
        (staging / staged_name(key)).unlink(missing_ok=True)
        for sample in staged.samples if staged else ():
            for member in sample.members:
                (staging / member.file).unlink(missing_ok=True)


def unpack_shard(dest: StoragePath, staging: Path, shard: int) -> None:
    """Move a shard's samples back into staging and remove its marker, so that its failures are encoded again.

    Raises DataError if a member differs from the marker.
    """
    marker = read_marker(dest, shard)
    if marker.samples:
        with copied(dest / marker.tar, staging) as tar:
            _unpack_tar(tar, dest / marker.tar, marker, staging)
    # Last: until now a kill leaves the shard as it was.
    remove(dest / marker_name(shard))


def _unpack_tar(tar: Path, name: StoragePath, marker: ShardMarker, staging: Path) -> None:
    sources: dict[str, list[StagedSample]] = {}  # the segments of one source share a record
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
        commit_bytes(staging / staged_name(key), encode_record(StagedSource(samples=tuple(samples), plan=marker.plan)))


def _member_bytes(tar: Path, name: StoragePath, extent: Extent) -> bytes:
    data = read_range(tar, extent.offset, extent.size)
    if hashlib.sha256(data).hexdigest() != extent.sha256:
        raise DataError(f"{name}: a member's checksum is wrong. Remove the shard's marker to build it again")
    return data


def read_marker(dest: StoragePath, shard: int) -> ShardMarker:
    """A shard's marker. Raises DataError if it is damaged."""
    path = dest / marker_name(shard)
    return decode_record(read_bytes(path), ShardMarker, str(path))


class _MarkerHead(msgspec.Struct, kw_only=True):
    """A marker whose samples are counted, not read: seven times faster."""

    plan: str
    tar: str
    bytes: int
    sha256: str
    samples: tuple[msgspec.Raw, ...]
    failures: tuple[Failure, ...] = ()


def read_heads(dest: StoragePath, shards: Iterable[int], plan: PlanFacts) -> dict[int, ShardHead]:
    """The finished ones of these shards: their marker has this plan, their tar is complete in size.

    The folder is listed once, and a store's markers are read concurrently.
    """
    sizes, digests = list_names(dest), [stage.digest() for stage in plan.stages()]
    marked = [shard for shard in shards if marker_name(shard) in sizes]
    heads = {}
    for shard, data in zip(marked, read_each([dest / marker_name(shard) for shard in marked]), strict=True):
        digest = digests[plan.stage_of(shard)]
        head = _head_of(data, shard, digest, sizes.get(tar_name(shard)), str(dest / marker_name(shard)))
        if head is not None:
            heads[shard] = head
    return heads


def _head_of(data: bytes, shard: int, plan: str, tar_bytes: int | None, name: str) -> ShardHead | None:
    try:
        marker = decode_record(data, _MarkerHead, name)
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
