"""One shard against its marker, the index and the sample table: every sum, name, fact and frame.

Nothing is unpacked to disk. What is wrong is listed, and the check goes on.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, NewerFormatError, NotThereError
from vmae_data.format import (
    INDEX,
    Index,
    ShardListing,
    ShardMarker,
    decode_record,
    encode_record,
    marker_name,
    tar_name,
)
from vmae_data.html import printable
from vmae_data.storage import StoragePath, copied, exists, hash_file, read_bytes
from vmae_data.verify.check_member import REWRITTEN, TableRow, extent_problems, wanted_members, without_name

__all__ = ["Problem", "ShardReport", "ShardTask", "check_shard"]


class Problem(NamedTuple):
    """One thing that is wrong: the file, relative to the data set, and what was found in it."""

    file: str
    found: str


class ShardTask(NamedTuple):
    """A shard to check. `listing` None: the index does not know it; `rows` None: the table can't be read.

    `about` None: the index can't be read.
    """

    folder: StoragePath
    shard: int
    about: Index | None  # without its list of shards
    listing: ShardListing | None
    rows: tuple[TableRow, ...] | None
    plan: str | None


class ShardReport(NamedTuple):
    """What a shard was found to be. `marker` None where it can't be read; `newer`: for it is of a newer version."""

    shard: int
    marker: ShardMarker | None
    problems: tuple[Problem, ...]
    newer: bool = False


def check_shard(task: ShardTask) -> ShardReport:
    """Everything that can be said of one shard. A tar that lies in a store is fetched once, and taken away afterwards.

    Raises StoreError where its store does not answer: that says nothing of the shard.
    """
    problems: list[Problem] = []
    try:
        marker = _check_marker(task, problems)
    except NewerFormatError as error:
        name = marker_name(task.shard)
        return ShardReport(task.shard, None, (Problem(name, without_name(error, name)),), newer=True)
    if task.listing is not None or (marker is not None and marker.samples):
        with ExitStack() as kept:
            tar = _tar_here(task, kept, problems)
            if tar is not None:
                problems += _check_tar_sum(task, marker, tar)
            if marker is not None and task.rows is not None:
                problems += _check_rows(marker, task.rows)
            if marker is not None and tar is not None:
                problems += _check_members(task, marker, tar)
    elif marker is not None and exists(task.folder / tar_name(task.shard)):
        problems.append(Problem(tar_name(task.shard), "a foreign file: its marker has no samples"))
    return ShardReport(task.shard, marker, tuple(problems))


def _tar_here(task: ShardTask, kept: ExitStack, problems: list[Problem]) -> Path | None:
    """The tar, or a copy of it for as long as `kept` lasts; None and the problem where it can't be had."""
    name = tar_name(task.shard)
    place = task.folder / name
    scratch = Path(kept.enter_context(tempfile.TemporaryDirectory(prefix="vmae-verify-")))
    try:
        if not isinstance(place, Path) or place.exists():
            return kept.enter_context(copied(place, scratch))
        problems.append(Problem(name, "missing"))
    except NotThereError:
        problems.append(Problem(name, "missing"))
    except DataError as error:
        problems.append(Problem(name, without_name(error, name)))
    return None


def _check_marker(task: ShardTask, problems: list[Problem]) -> ShardMarker | None:
    name = marker_name(task.shard)
    try:
        data = read_bytes(task.folder / name)
        marker = decode_record(data, ShardMarker, name)
    except NewerFormatError:
        raise
    except DataError as error:
        missing = isinstance(error, NotThereError)
        problems.append(Problem(name, "missing" if missing else without_name(error, name)))
        return None
    problems += [Problem(name, found) for found in _marker_problems(task, marker, data)]
    return marker


def _marker_problems(task: ShardTask, marker: ShardMarker, data: bytes) -> Iterator[str]:
    if task.listing is not None and hashlib.sha256(data).hexdigest() != task.listing.marker_sha256:
        yield "its sum is not the one in index.json"
    if encode_record(marker) != data:
        yield REWRITTEN
    if task.plan is not None and marker.plan != task.plan:
        yield "belongs to another plan"
    if marker.shard != task.shard:
        yield f"says it is shard {marker.shard}"
    if marker.tar != (tar_name(task.shard) if marker.samples else ""):
        yield f"names the tar {printable(marker.tar)!r}"
    for key, count in Counter(entry.key for entry in marker.samples).items():
        if count > 1:
            yield f"lists {printable(key)} {count} times"
    if task.listing is None:
        if marker.samples and task.about is not None:
            yield f"has {len(marker.samples)} samples, but index.json does not list the shard"
    elif task.listing.nsamples != len(marker.samples):
        yield f"has {len(marker.samples)} samples, index.json says {task.listing.nsamples}"


def _check_tar_sum(task: ShardTask, marker: ShardMarker | None, path: Path) -> Iterator[Problem]:
    """Size and sum as its marker and the index say; where the marker can't be read the index still knows them."""
    name = tar_name(task.shard)
    try:
        size, digest = path.stat().st_size, hash_file(path)
    except (OSError, DataError) as error:
        yield Problem(name, f"can't be read ({printable(str(error))})")
        return
    if marker is not None and task.listing is not None and (size, digest) == (marker.bytes, marker.sha256):
        # Two of three agree: it is the index that is wrong.
        if (task.listing.filesize, task.listing.sha256) != (size, digest):
            yield Problem(INDEX, f"says another size or sum of {name} than the file and its marker")
        return
    stated = [("its marker", marker.bytes, marker.sha256)] if marker is not None else []
    if task.listing is not None:
        stated.append((INDEX, task.listing.filesize, task.listing.sha256))
    for who, bytes_stated, sha256 in stated:
        if size != bytes_stated:
            yield Problem(name, f"has {size} bytes, {who} says {bytes_stated}")
        if digest != sha256:
            yield Problem(name, f"its sum is not the one in {who}")


def _check_rows(marker: ShardMarker, rows: tuple[TableRow, ...]) -> Iterator[Problem]:
    """The table's rows of a shard are its marker's samples, in the same order."""
    keys, known = [entry.key for entry in marker.samples], [row.key for row in rows]
    if keys != known:
        odd = sorted(set(keys) ^ set(known))[:3]
        what = f"such as {', '.join(map(printable, odd))}" if odd else "their order differs"
        yield Problem("samples.arrow", f"has {len(rows)} rows for {marker.tar} with {len(keys)} samples; {what}")
        return
    for entry, row in zip(marker.samples, rows, strict=True):
        said = (
            ("label", row.label, entry.label),
            ("frames", row.frames, tuple(member.phase.frames for member in entry.members)),
            ("offset", row.offset, tuple(member.extent.offset for member in entry.members)),
            ("size", row.size, tuple(member.extent.size for member in entry.members)),
            ("sum", row.sha256, tuple(bytes.fromhex(member.extent.sha256) for member in entry.members)),
        )
        for what, found, wanted in said:
            if found != wanted:
                yield Problem("samples.arrow", f"{entry.key}: {what} is not the one in {marker_name(marker.shard)}")


def _check_members(task: ShardTask, marker: ShardMarker, path: Path) -> Iterator[Problem]:
    """The tar's members are exactly the marker's, and each is what it should be."""
    name = tar_name(task.shard)
    wanted = wanted_members(marker)
    rows = {row.key: row for row in task.rows or ()}
    seen: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as tar:
            for found in tar:
                seen[found.name] += 1
                member = wanted.get(found.name)
                if member is None or not _is_plain(found):
                    yield Problem(name, f"{printable(found.name)}: {_oddity(found)}")
                elif seen[found.name] == 1:
                    data = _read(tar, found)
                    if member.extent is not None:
                        yield from _named(name, found, extent_problems(member.extent, found, data))
                    yield from _named(name, found, member.problems(data, rows.get(member.entry.key), task.about))
    except FileNotFoundError:
        return  # said already, where its sum was to be taken
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        yield Problem(name, f"is no whole tar ({printable(str(error))})")
    except (MemoryError, OverflowError):
        yield Problem(name, "is no whole tar (a header asks for more memory than there is)")
    for member_name in wanted:
        if (count := seen[member_name]) != 1:
            yield Problem(name, f"{member_name}: {f'there {count} times' if count else 'missing'}")


def _named(name: str, member: tarfile.TarInfo, found: Iterator[str]) -> Iterator[Problem]:
    return (Problem(name, f"{member.name}: {what}") for what in found)


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _is_plain(member: tarfile.TarInfo) -> bool:
    return member.isreg() and not member.issparse()


def _oddity(member: tarfile.TarInfo) -> str:
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "a name that leads out of the folder"
    return "not in the marker" if _is_plain(member) else "not a regular file"
