"""Row 1. A folder of class folders, or a listing → SourceVideo(key, path, label)."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import Index, decode_record, key_of, path_to_text
from vmae_data.store import local_path, read_bytes

__all__ = ["Listing", "SourceVideo", "find_sources", "read_classes"]

VIDEO_SUFFIXES = frozenset(
    b".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .wmv .asf .flv .f4v .3gp .3g2 .ts .m2ts .mts .ogv .mxf".split()
)
MOST_CLASSES = 1_000_000
PATH_COLUMNS = ("path", "file", "video", "filename")
LABEL_COLUMNS = ("label", "class")


class SourceVideo(NamedTuple):
    """One source: its key, its path relative to the listing, and its label's number if it has one."""

    key: str
    path: bytes
    label: int | None


class Listing(NamedTuple):
    """All sources of a data set, and the folder that their paths start from."""

    folder: bytes
    sources: tuple[SourceVideo, ...]
    classes: tuple[str, ...]


class _Row(NamedTuple):
    path: bytes
    label: str | None


def find_sources(source: str, classes: tuple[str, ...] = ()) -> Listing:
    """Read a folder or a listing.

    `classes` fixes the numbers of the classes; left out, integers are kept and names sorted.
    Raises MisuseError for a path that is neither, contradictory labels, or nothing found.
    """
    where = local_path(source)
    if where.is_dir():
        folder = os.fsencode(where.resolve())
        rows = _walk_folder(folder)
    elif where.is_file():
        if where.suffix.lower().encode() in VIDEO_SUFFIXES:
            raise MisuseError(f"{source}: is a single video; name its folder, or a listing of videos")
        folder = os.fsencode(where.resolve().parent)
        rows = _read_listing(where, folder)
    else:
        raise MisuseError(f"{source}: neither a folder of videos nor a listing; check the path")
    if not rows:
        raise MisuseError(f"{source}: no videos found (looked for {_suffixes()}); check the path")
    return _number(folder, _merge(rows, source), classes, source)


def read_classes(url: str) -> tuple[str, ...]:
    """The classes of another data set (its folder or index.json), or one name a line of a text file.

    Raises MisuseError when there are none.
    """
    path = local_path(url)
    if path.is_dir():
        path = path / "index.json"
    if path.suffix == ".json":
        names = decode_record(read_bytes(path), Index, str(path)).classes
    else:
        names = tuple(line.strip() for line in read_bytes(path).decode("utf-8").splitlines() if line.strip())
    if not names:
        raise MisuseError(f"{url}: has no classes; name an index with labels, or a file of one class a line")
    return names


def _suffixes() -> str:
    return " ".join(sorted(suffix.decode() for suffix in VIDEO_SUFFIXES))


def _walk_folder(folder: bytes) -> list[_Row]:
    """Every video below a folder; its class is the first folder of its path.

    Linked folders are followed, each real folder once: a loop of links ends.
    """
    rows: list[_Row] = []
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=_refuse_folder):
        status = Path(os.fsdecode(parent)).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        for name in sorted(names):
            if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES and not name.startswith(b"."):
                path = os.path.relpath(os.path.join(parent, name), folder)
                first, slash, _ = path.partition(b"/")
                rows.append(_Row(path, path_to_text(first) if slash else None))
    return rows


def _refuse_folder(error: OSError) -> None:
    """A folder that can't be read would change which classes there are: never passed over."""
    raise MisuseError(f"{os.fsdecode(error.filename)}: can't be read ({error.strerror}); give the right to, or move it")


def _read_listing(where: Path, folder: bytes) -> list[_Row]:
    data = read_bytes(where)
    if b"\0" in data:
        raise MisuseError(f"{where}: is not text; expected a listing with one `path label` a line")
    lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    json_lines = bool(lines) and lines[0].lstrip().startswith(b"{")
    rows = _json_rows(lines, where) if json_lines else _text_rows(lines, where)
    return [row._replace(path=_relative(row.path, folder)) for row in rows]


def _relative(path: bytes, folder: bytes) -> bytes:
    return os.path.relpath(path, folder) if os.path.isabs(path) else os.path.normpath(path)


class _JsonRow(msgspec.Struct):
    path: str
    label: str | int | None = None


def _json_rows(lines: Sequence[bytes], where: Path) -> list[_Row]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = msgspec.json.decode(line, type=_JsonRow)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise MisuseError(
                f'{where}: entry {number} is not {{"path": …, "label": …}} ({error}); mend the listing'
            ) from error
        rows.append(_Row(os.fsencode(row.path), None if row.label is None else str(row.label)))
    return rows


def _text_rows(lines: Sequence[bytes], where: Path) -> list[_Row]:
    """The separator is chosen once: tab, else comma, where every line has one; else the last space."""
    separator = next((s for s in (b"\t", b",") if all(s in line for line in lines)), b" ")
    fields = [_split(line, separator) for line in lines]
    header = [os.fsdecode(name).strip().lower() for name in _split_header(lines[0], separator)] if lines else []
    if any(name in PATH_COLUMNS for name in header):
        path_at = next(header.index(name) for name in PATH_COLUMNS if name in header)
        label_at = next((header.index(name) for name in LABEL_COLUMNS if name in header), None)
        rows = []
        for number, row in enumerate(fields[1:], 2):
            if len(row) != len(header):
                raise _wrong_fields(where, number, len(row), len(header))
            rows.append(_Row(row[path_at], None if label_at is None else _label(row[label_at])))
        return rows
    return [_row(line, row, where, number) for number, (line, row) in enumerate(zip(lines, fields, strict=True), 1)]


def _row(line: bytes, fields: list[bytes], where: Path, number: int) -> _Row:
    if os.path.splitext(fields[-1])[1].lower() in VIDEO_SUFFIXES:
        return _Row(line.strip(), None)  # no label: the last field is the path's end
    if len(fields) != 2:
        raise _wrong_fields(where, number, len(fields), 2)
    return _Row(fields[0], _label(fields[1]))


def _label(field: bytes) -> str | None:
    """An empty field is no label."""
    return path_to_text(field) or None


def _wrong_fields(where: Path, number: int, found: int, wanted: int) -> MisuseError:
    return MisuseError(f"{where}: entry {number} has {found} fields, expected {wanted}; mend the listing")


def _split_header(line: bytes, separator: bytes) -> list[bytes]:
    return line.split() if separator == b" " else _split(line, separator)


def _split(line: bytes, separator: bytes) -> list[bytes]:
    if separator == b" ":
        return [part.strip() for part in line.strip().rsplit(b" ", 1)]
    text = line.decode("utf-8", "surrogateescape")
    try:
        row = next(csv.reader(io.StringIO(text), delimiter=separator.decode()))
    except csv.Error as error:
        raise MisuseError(f"an entry of the listing can't be read ({error}); it begins {text[:60]!r}") from error
    return [field.strip().encode("utf-8", "surrogateescape") for field in row]


def _merge(rows: Iterable[_Row], source: str) -> list[_Row]:
    """A path listed twice is one sample; with two labels it is an error."""
    found: dict[bytes, str | None] = {}
    for path, label in rows:
        if found.setdefault(path, label) != label:
            raise MisuseError(
                f"{source}: {path_to_text(path)} is listed with two labels, {found[path]!r} and {label!r}; keep one"
            )
    return [_Row(path, label) for path, label in found.items()]


def _number(folder: bytes, rows: list[_Row], classes: tuple[str, ...], source: str) -> Listing:
    labels = sorted(
        {row.label for row in rows if row.label is not None},
        key=lambda name: name.encode("utf-8", "surrogateescape"),
    )
    if all(re.fullmatch(r"[0-9]{1,9}", label) for label in labels):
        numbers = {label: int(label) for label in labels}
        if max(numbers.values(), default=0) >= MOST_CLASSES:
            raise MisuseError(f"{source}: label {max(numbers.values())}: class numbers end at {MOST_CLASSES - 1}")
        known = classes or tuple(str(n) for n in range(max(numbers.values(), default=-1) + 1))
        beyond = [label for label, n in numbers.items() if n >= len(known)]
    else:
        known = classes or tuple(labels)
        places = {name: n for n, name in enumerate(known)}
        beyond = [label for label in labels if label not in places]
        numbers = {label: places[label] for label in labels if label in places}
    if beyond:
        raise MisuseError(
            f"{source}: class {beyond[0]!r} is not among the {len(known)} given classes "
            f"({', '.join(known[:5])}…); mend the labels or --classes"
        )
    sources = tuple(
        SourceVideo(key_of(row.path), row.path, None if row.label is None else numbers[row.label]) for row in rows
    )
    return Listing(folder, sources, known if labels else classes)
