"""Row 1, second part. A file that names videos → named columns, or plain lines; and from both, rows of path and label.

What the file is, is seen from its content: Parquet, JSON (an array, or an object a line), CSV or TSV with a header, or
`path label` lines.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import NOT_JSON, path_to_text
from vmae_data.sources.video_files import is_video
from vmae_data.storage import StoragePath, read_bytes

__all__ = [
    "KNOWN_FORMATS",
    "Columns",
    "Lines",
    "RawLabel",
    "Records",
    "Row",
    "named_rows",
    "plain_rows",
    "read_listing",
]

PATH_COLUMNS = ("path", "file", "video", "filename")
LABEL_COLUMNS = ("label", "class", "labels")
SPLIT_COLUMN = "split"
KINETICS_COLUMN = "youtube_id"
KNOWN_FORMATS = (
    "known are Kinetics CSV, SSv2 JSON, UCF101 and HMDB51 lists, VideoMAE and VideoMAEv2 lists, `path label` lines, and "
    "CSV, TSV, JSON lines or Parquet with a column of paths (--set columns.path=NAME)"
)
SHOWN = 60  # characters of a line in an error


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which named columns of a listing are read; None: the names that are known. Several label columns make one label."""

    path: str | None = None
    label: str | tuple[str, ...] | None = None


RawLabel = str | tuple[str, ...] | None
"""A label as it is written: a name or number, several of them, or none."""


class Row(NamedTuple):
    """One entry: where the video lies, what it shows, and of which split it is, where that is said."""

    path: bytes
    label: RawLabel
    split: str | None = None


class Records(NamedTuple):
    """A file with named columns; cells are bytes where it is text (with a header), else the file's own types."""

    columns: dict[str, list[Any]]
    length: int
    text: bool

    @property
    def first(self) -> int:
        """The number of the first entry: a header is number 1."""
        return 2 if self.text else 1

    def name(self, wanted: str) -> str | None:
        """A column's name as the file writes it: capital letters don't matter."""
        return next((name for name in self.columns if name.casefold() == wanted.casefold()), None)


class Lines(NamedTuple):
    """A file without a header: lines that are not empty."""

    lines: list[bytes]


def read_listing(where: StoragePath, columns: Columns) -> Records | Lines:
    """Raises MisuseError for what is neither text nor Parquet, and for JSON that can't be read."""
    data = read_bytes(where)
    if data.startswith(b"PAR1"):
        return _parquet(data, where, columns)
    if b"\0" in data:
        raise MisuseError(f"{where}: is not text; expected a listing with one `path label` a line")
    data = data.removeprefix(b"\xef\xbb\xbf")
    start = data.lstrip()[:1]
    if start == b"[":
        return _json_records(_decode_array(data, where), where)
    lines = [line for line in data.splitlines() if line.strip()]
    if start == b"{":
        return _json_records([_decode_object(line, where, number) for number, line in enumerate(lines, 1)], where)
    return _text_records(lines, where, columns) or Lines(lines)


def _decode_object(line: bytes, where: StoragePath, number: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except NOT_JSON as error:
        known = f" ({KNOWN_FORMATS})" if number == 1 else ""
        raise MisuseError(
            f'{where}: entry {number} is not {{"path": …, "label": …}} ({error}); mend the listing{known}'
        ) from error


def _decode_array(data: bytes, where: StoragePath) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(data, type=list[dict[str, Any]])
    except NOT_JSON as error:
        raise MisuseError(f"{where}: is not a JSON array of objects ({error}); {KNOWN_FORMATS}") from error


def _json_records(entries: list[dict[str, Any]], where: StoragePath) -> Records:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    return Records({name: [entry.get(name) for entry in entries] for name in names}, len(entries), text=False)


def _parquet(data: bytes, where: StoragePath, columns: Columns) -> Records:
    """Only the columns that are asked for: others may hold whole videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = (columns.label,) if isinstance(columns.label, str) else columns.label or LABEL_COLUMNS
    wanted = {name.casefold() for name in (columns.path, *PATH_COLUMNS, *labels, SPLIT_COLUMN) if name}
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as file:
            names = [name for name in file.schema_arrow.names if name.casefold() in wanted]
            table = file.read(columns=names)
            unread: dict[str, list[Any]] = {name: [] for name in file.schema_arrow.names if name not in names}
    except (pa.ArrowException, OSError) as error:
        raise MisuseError(f"{where}: can't be read as Parquet ({error}); write it anew") from error
    return Records({**table.to_pydict(), **unread}, table.num_rows, text=False)


def _text_records(lines: Sequence[bytes], where: StoragePath, columns: Columns) -> Records | None:
    """A table where the first line has a column of paths, else None."""
    wanted = {name.casefold() for name in ((columns.path,) if columns.path else (*PATH_COLUMNS, KINETICS_COLUMN))}
    for separator in (b"\t", b",", b" ") if lines else ():
        names = [path_to_text(name).strip() for name in _split_header(lines[0], separator)]
        if not wanted & {name.casefold() for name in names}:
            continue
        if len(set(names)) < len(names):
            raise MisuseError(f"{where}: its header names a column twice ({', '.join(names)}); rename one")
        cells: list[list[bytes]] = [[] for _ in names]
        for number, line in enumerate(lines[1:], 2):
            fields = _split(line, separator)
            if len(fields) != len(names):
                raise _wrong_fields(where, number, len(fields), len(names), line)
            for column, field in zip(cells, fields, strict=True):
                column.append(field)
        return Records(dict(zip(names, cells, strict=True)), len(lines) - 1, text=True)
    if columns.path and lines:
        raise MisuseError(f"{where}: has no column {columns.path!r}; its first line is {shown(lines[0])}")
    return None


def named_rows(records: Records, columns: Columns, where: StoragePath) -> Iterator[Row]:
    """Rows of a file with named columns. Raises MisuseError for a column that is not there and a cell that can't be read."""
    if not records.columns and not records.length:  # an empty JSON array
        return
    path_column = _column(records, columns.path, PATH_COLUMNS, "columns.path", where)
    if path_column is None:
        raise MisuseError(
            f"{where}: has no column of paths (its columns: {', '.join(records.columns)}); "
            "say which it is with --set columns.path=NAME"
        )
    if isinstance(columns.label, tuple):
        several = [_column(records, name, (), "columns.label", where) for name in columns.label]
        labels: Iterator[Any] = zip(*(records.columns[name] for name in several if name), strict=True)
    else:
        label_column = _column(records, columns.label, LABEL_COLUMNS, "columns.label", where)
        labels = iter(records.columns[label_column] if label_column else [None] * records.length)
    split_column = records.name(SPLIT_COLUMN)
    splits = records.columns[split_column] if split_column else [None] * records.length
    paths = records.columns[path_column]
    for number, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True), records.first):
        if not isinstance(path, str | bytes) or not path:
            raise MisuseError(
                f"{where}: entry {number} has {path!r} for a path in column {path_column}; mend the listing"
            )
        yield Row(
            path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape"),
            _raw_label(label, where, number),
            path_to_text(split) if isinstance(split, bytes) else None if split is None else str(split),
        )


def _column(records: Records, given: str | None, known: Sequence[str], key: str, where: StoragePath) -> str | None:
    """The name of a column: the given one, which must be there, else the first known one."""
    if given is None:
        return next((found for name in known if (found := records.name(name))), None)
    found = records.name(given)
    if found is None:
        raise MisuseError(f"{where}: {key} = {given}: no such column; its columns: {', '.join(records.columns)}")
    return found


def _raw_label(value: Any, where: StoragePath, number: int) -> RawLabel:
    """A cell as a label; a JSON array, a list, or cells of several columns are several labels."""
    if isinstance(value, str | bytes):
        several = _json_array(value)
        if several is None:
            return _text(value) or None
        value = several
    if value is None:
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # as a text file has it: refused where the others are numbers
    if not isinstance(value, list | tuple):
        return _one(value, where, number)
    if isinstance(value, tuple) and all(cell in (None, b"", "") for cell in value):
        return None  # several columns, none of them filled in
    return tuple(_one(cell, where, number) for cell in value)


def _json_array(text: str | bytes) -> list[Any] | None:
    mark = "[" if isinstance(text, str) else b"["
    if text[:1] != mark:
        return None
    try:
        return msgspec.json.decode(text, type=list)
    except NOT_JSON:
        return None  # a name that begins with a bracket


def _one(value: Any, where: StoragePath, number: int) -> str:
    if isinstance(value, str | bytes) and value:
        return _text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise MisuseError(f"{where}: entry {number} has {value!r} for a label; expected a name or a number")


def _text(value: str | bytes) -> str:
    return path_to_text(value) if isinstance(value, bytes) else value


def plain_rows(lines: Sequence[bytes], where: StoragePath) -> list[Row]:
    """`path label` lines. The separator is chosen once: tab, else comma, where every line has one; else the last space."""
    separator = next((s for s in (b"\t", b",") if all(s in line for line in lines)), b" ")
    rows = [_row(line, _split(line, separator), where, number) for number, line in enumerate(lines, 1)]
    if separator == b" ":
        for number, row in enumerate(rows, 1):
            _refuse_spaces_in_label(row, where, number)
    if len(rows) > 1 and not is_video(rows[0].path) and all(is_video(row.path) for row in rows[1:]):
        raise MisuseError(
            f"{where}: its first line, {shown(lines[0])}, names no video, and every other does: a header? "
            "Say which column holds the paths with --set columns.path=NAME"
        )
    return rows


def _row(line: bytes, fields: list[bytes], where: StoragePath, number: int) -> Row:
    if is_video(fields[-1]):
        return Row(line.strip(), None)  # no label: the last field is the path's end
    if len(fields) != 2:
        raise _wrong_fields(where, number, len(fields), 2, line)
    return Row(fields[0], _raw_label(fields[1], where, number))


def _refuse_spaces_in_label(row: Row, where: StoragePath, number: int) -> None:
    """`a.mp4 run fast`: what stands before the last space is no path, but a path and half a label."""
    path, *rest = re.split(rb"(?<=[^ ]) +", row.path)
    while rest and not is_video(path):
        path += b" " + rest.pop(0)
    if rest and not is_video(row.path) and b"/" not in b"".join(rest):
        raise MisuseError(
            f"{where}: entry {number} has {len(rest) + 2} fields, {shown(path)} and the label "
            f"{path_to_text(b' '.join(rest))} {row.label}; where a class name has spaces, put a tab or a comma before it, in every line"
        )


def _wrong_fields(where: StoragePath, number: int, found: int, wanted: int, line: bytes) -> MisuseError:
    known = f" ({KNOWN_FORMATS})" if number == 1 else ""
    return MisuseError(
        f"{where}: entry {number} has {found} fields, expected {wanted}; it begins {shown(line)}; mend the listing{known}"
    )


def shown(line: bytes) -> str:
    """The beginning of a line, in an error."""
    return repr(path_to_text(line[:SHOWN]))


def _split_header(line: bytes, separator: bytes) -> list[bytes]:
    return line.split() if separator == b" " else _split(line, separator)


def _split(line: bytes, separator: bytes) -> list[bytes]:
    if separator == b" ":
        return [part.strip() for part in line.strip().rsplit(b" ", 1)]
    text = line.decode("utf-8", "surrogateescape")
    try:
        row = next(csv.reader(io.StringIO(text), delimiter=separator.decode()))
    except csv.Error as error:
        raise MisuseError(f"an entry of the listing can't be read ({error}); it begins {text[:SHOWN]!r}") from error
    return [field.strip().encode("utf-8", "surrogateescape") for field in row]
