"""One shard → its problems: marker, tar, rows of the sample table and every member.

Nothing is unpacked to disk. A problem never ends the check.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import DataError, NewerFormatError, NotFoundError
from vmae_data.format import INDEX, SAMPLES, Index, ShardListing, ShardMarker, decode_record, encode_record
from vmae_data.names import marker_name, tar_name
from vmae_data.pages.html import printable
from vmae_data.storage import StoragePath, copied, exists, hash_file, read_bytes
from vmae_data.verify.check_member import REWRITTEN, TableRow, expected_members, extent_problems, without_name

__all__ = ["Problem", "ShardReport", "ShardTask", "check_shard"]


class Problem(NamedTuple):
    """One thing that is wrong: the file, relative to the data set, and what is wrong with it."""

    file: str
    message: str


class ShardTask(NamedTuple):
    """A shard to check."""

    folder: StoragePath
    shard: int
    index_head: Index | None  # the index without its list of shards; None: it can't be read
    listing: ShardListing | None  # None: the index does not list the shard
    rows: tuple[TableRow, ...] | None  # None: the table can't be read
    plan: str | None


class ShardReport(NamedTuple):
    """The marker and all problems. `marker` None: it can't be read; `newer`: a newer version wrote it."""

    shard: int
    marker: ShardMarker | None
    problems: tuple[Problem, ...]
    newer: bool = False


def check_shard(task: ShardTask) -> ShardReport:
    """Check all that belongs to one shard. A remote tar is fetched once and removed afterwards.

    Raises StoreError if the store does not answer: that is no problem of the shard.
    """
    problems: list[Problem] = []
    try:
        marker = _read_marker(task, problems)
    except NewerFormatError as error:
        name = marker_name(task.shard)
        return ShardReport(task.shard, None, (Problem(name, without_name(error, name)),), newer=True)
    if task.listing is not None or (marker is not None and marker.samples):
        with ExitStack() as stack:
            tar = _local_tar(task, stack, problems)
            if tar is not None:
                problems += _tar_problems(task, marker, tar)
            if marker is not None and task.rows is not None:
                problems += _row_problems(marker, task.rows)
            if marker is not None and tar is not None:
                problems += _member_problems(task, marker, tar)
    elif marker is not None and exists(task.folder / tar_name(task.shard)):
        problems.append(Problem(tar_name(task.shard), "an unexpected file: its marker has no samples"))
    return ShardReport(task.shard, marker, tuple(problems))


def _read_marker(task: ShardTask, problems: list[Problem]) -> ShardMarker | None:
    name = marker_name(task.shard)
    try:
        data = read_bytes(task.folder / name)
        marker = decode_record(data, ShardMarker, name)
    except NewerFormatError:
        raise
    except DataError as error:
        problems.append(Problem(name, "missing" if isinstance(error, NotFoundError) else without_name(error, name)))
        return None
    problems += [Problem(name, message) for message in _marker_problems(task, marker, data)]
    return marker


def _marker_problems(task: ShardTask, marker: ShardMarker, data: bytes) -> Iterator[str]:
    if task.listing is not None and hashlib.sha256(data).hexdigest() != task.listing.marker_sha256:
        yield f"checksum differs from {INDEX}"
    if encode_record(marker) != data:
        yield REWRITTEN
    if task.plan is not None and marker.plan != task.plan:
        yield "belongs to another plan"
    if marker.shard != task.shard:
        yield f"states that it is shard {marker.shard}"
    if marker.tar != (tar_name(task.shard) if marker.samples else ""):
        yield f"names the tar {printable(marker.tar)!r}"
    for key, count in Counter(entry.key for entry in marker.samples).items():
        if count > 1:
            yield f"lists {printable(key)} {count} times"
    if task.listing is None:
        if marker.samples and task.index_head is not None:
            yield f"has {len(marker.samples)} samples, but {INDEX} does not list the shard"
    elif task.listing.nsamples != len(marker.samples):
        yield f"has {len(marker.samples)} samples; {INDEX} states {task.listing.nsamples}"


def _local_tar(task: ShardTask, stack: ExitStack, problems: list[Problem]) -> Path | None:
    """The tar, or a local copy of it that `stack` removes. None, and a problem, if it can't be read."""
    name = tar_name(task.shard)
    path = task.folder / name
    scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vmae-verify-")))
    try:
        if not isinstance(path, Path) or path.exists():
            return stack.enter_context(copied(path, scratch))
        problems.append(Problem(name, "missing"))
    except NotFoundError:
        problems.append(Problem(name, "missing"))
    except DataError as error:
        problems.append(Problem(name, without_name(error, name)))
    return None


def _tar_problems(task: ShardTask, marker: ShardMarker | None, path: Path) -> Iterator[Problem]:
    """Size and checksum against the marker and the index; the index has them even if the marker can't be read."""
    name = tar_name(task.shard)
    try:
        size, digest = path.stat().st_size, hash_file(path)
    except (OSError, DataError) as error:
        yield Problem(name, f"can't be read ({printable(str(error))})")
        return
    if marker is not None and task.listing is not None and (size, digest) == (marker.bytes, marker.sha256):
        # Two of three agree: the index is wrong.
        if (task.listing.filesize, task.listing.sha256) != (size, digest):
            yield Problem(INDEX, f"size or checksum of {name} differs from the file and its marker")
        return
    stated = [("its marker", marker.bytes, marker.sha256)] if marker is not None else []
    if task.listing is not None:
        stated.append((INDEX, task.listing.filesize, task.listing.sha256))
    for file, stated_size, sha256 in stated:
        if size != stated_size:
            yield Problem(name, f"has {size} bytes; {file} states {stated_size}")
        if digest != sha256:
            yield Problem(name, f"checksum differs from {file}")


def _row_problems(marker: ShardMarker, rows: tuple[TableRow, ...]) -> Iterator[Problem]:
    """The table's rows of a shard are its marker's samples, in the same order."""
    keys, row_keys = [entry.key for entry in marker.samples], [row.key for row in rows]
    if keys != row_keys:
        odd = sorted(set(keys) ^ set(row_keys))[:3]
        what = f"only one of them has {', '.join(map(printable, odd))}" if odd else "their order differs"
        yield Problem(SAMPLES, f"has {len(rows)} rows for {marker.tar} with {len(keys)} samples; {what}")
        return
    for entry, row in zip(marker.samples, rows, strict=True):
        compared = (
            ("label", row.label, entry.label),
            ("frames", row.frames, tuple(member.phase.frames for member in entry.members)),
            ("offset", row.offset, tuple(member.extent.offset for member in entry.members)),
            ("size", row.size, tuple(member.extent.size for member in entry.members)),
            ("checksum", row.sha256, tuple(bytes.fromhex(member.extent.sha256) for member in entry.members)),
        )
        for what, value, expected in compared:
            if value != expected:
                yield Problem(SAMPLES, f"{entry.key}: {what} differs from {marker_name(marker.shard)}")


def _member_problems(task: ShardTask, marker: ShardMarker, path: Path) -> Iterator[Problem]:
    """The tar has exactly the marker's members, each as it should be."""
    tar_file = tar_name(task.shard)
    members = expected_members(marker)
    rows = {row.key: row for row in task.rows or ()}
    seen: Counter[str] = Counter()
    try:
        with tarfile.open(path, "r:") as tar:
            for header in tar:
                seen[header.name] += 1
                member = members.get(header.name)
                is_plain = header.isreg() and not header.issparse()
                if member is None or not is_plain:
                    oddity = "not in the marker" if is_plain else "not a regular file"
                    if header.name.startswith("/") or ".." in header.name.split("/"):
                        oddity = "a name that points outside the folder"
                    yield Problem(tar_file, f"{printable(header.name)}: {oddity}")
                elif seen[header.name] == 1:
                    file = tar.extractfile(header)
                    assert file is not None
                    data = file.read()
                    of_extent = () if member.extent is None else extent_problems(member.extent, header, data)
                    for message in chain(of_extent, member.problems(data, rows.get(member.key), task.index_head)):
                        yield Problem(tar_file, f"{header.name}: {message}")
    except FileNotFoundError:
        return  # already reported, when its checksum was read
    except (OSError, tarfile.TarError, ValueError, EOFError) as error:
        yield Problem(tar_file, f"is not a complete tar ({printable(str(error))})")
    except (MemoryError, OverflowError):
        yield Problem(tar_file, "is not a complete tar (a header asks for more memory than this machine has)")
    for name in members:
        if (count := seen[name]) != 1:
            yield Problem(tar_file, f"{name}: {f'stored {count} times' if count else 'missing'}")
