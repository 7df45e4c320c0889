"""A file that lists videos → a table with named columns, or plain lines → rows of path, label and split.

The content decides the format, not the file name: Parquet, JSON (an array, or one object per line), CSV or TSV with a
header, or `path label` lines.
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
    "ListingTable",
    "RawLabel",
    "Row",
    "line_rows",
    "quote_line",
    "read_listing",
    "table_rows",
]

PATH_COLUMNS = ("path", "file", "video", "filename")
LABEL_COLUMNS = ("label", "class", "labels")
SPLIT_COLUMN = "split"
KINETICS_COLUMN = "youtube_id"
KNOWN_FORMATS = (
    "Known formats: Kinetics CSV, SSv2 JSON, UCF101 and HMDB51 lists, VideoMAE and VideoMAEv2 lists, `path label` "
    "lines, and CSV, TSV, JSON lines or Parquet with a column of paths (--set columns.path=NAME)"
)
QUOTED_CHARACTERS = 60  # of a line in an error


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of a listing to read; None: the known names. Several label columns make one label."""

    path: str | None = None
    label: str | tuple[str, ...] | None = None


RawLabel = str | tuple[str, ...] | None
"""A label as the listing writes it: a name or number, several of them, or none."""


class Row(NamedTuple):
    """One entry of a listing. `split` is None unless the listing states it."""

    path: bytes
    label: RawLabel
    split: str | None = None


class ListingTable(NamedTuple):
    """A file with named columns. Cells are bytes if the file is text, else they have the file's own types."""

    columns: dict[str, list[Any]]
    num_rows: int
    is_text: bool  # with a header line

    @property
    def first_entry(self) -> int:
        """The number of the first entry in error messages: a header is entry 1."""
        return 2 if self.is_text else 1

    def find_column(self, name: str) -> str | None:
        """The column's name as the file spells it. Ignores case."""
        return next((column for column in self.columns if column.casefold() == name.casefold()), None)


def read_listing(file: StoragePath, columns: Columns) -> ListingTable | list[bytes]:
    """A table if the file has named columns, else its lines that are not empty.

    Raises MisuseError for a file that is neither text nor Parquet, and for invalid JSON.
    """
    data = read_bytes(file)
    if data.startswith(b"PAR1"):
        return _read_parquet(data, file, columns)
    if b"\0" in data:
        raise MisuseError(f"{file}: is not text. Expected a listing with one `path label` per line")
    data = data.removeprefix(b"\xef\xbb\xbf")
    start = data.lstrip()[:1]
    if start == b"[":
        return _json_table(_decode_array(data, file))
    lines = [line for line in data.splitlines() if line.strip()]
    if start == b"{":
        return _json_table([_decode_object(line, file, number) for number, line in enumerate(lines, 1)])
    return _read_table(lines, file, columns) or lines


def _read_parquet(data: bytes, file: StoragePath, columns: Columns) -> ListingTable:
    """Reads the needed columns only: other columns may hold complete videos."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    labels = (columns.label,) if isinstance(columns.label, str) else columns.label or LABEL_COLUMNS
    needed = {name.casefold() for name in (columns.path, *PATH_COLUMNS, *labels, SPLIT_COLUMN) if name}
    try:
        with pq.ParquetFile(pa.BufferReader(data)) as parquet:
            all_names = parquet.schema_arrow.names
            table = parquet.read(columns=[name for name in all_names if name.casefold() in needed])
    except (pa.ArrowException, OSError) as error:
        raise MisuseError(f"{file}: can't be read as Parquet ({error}). Write the file again") from error
    unread: dict[str, list[Any]] = {name: [] for name in all_names if name.casefold() not in needed}
    return ListingTable({**table.to_pydict(), **unread}, table.num_rows, is_text=False)


def _decode_array(data: bytes, file: StoragePath) -> list[dict[str, Any]]:
    try:
        return msgspec.json.decode(data, type=list[dict[str, Any]])
    except NOT_JSON as error:
        raise MisuseError(f"{file}: is not a JSON array of objects ({error}). {KNOWN_FORMATS}") from error


def _decode_object(line: bytes, file: StoragePath, number: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except NOT_JSON as error:
        raise MisuseError(
            f'{file}: entry {number} is not {{"path": …, "label": …}} ({error}). {_correct(number)}'
        ) from error


def _correct(number: int) -> str:
    """The next step in an error. A wrong first entry may mean a wrong format."""
    return f"Correct the listing. {KNOWN_FORMATS}" if number == 1 else "Correct the listing"


def _json_table(entries: list[dict[str, Any]]) -> ListingTable:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    return ListingTable({name: [entry.get(name) for entry in entries] for name in names}, len(entries), is_text=False)


def _read_table(lines: Sequence[bytes], file: StoragePath, columns: Columns) -> ListingTable | None:
    """A table if the first line names a column of paths, else None."""
    known = {name.casefold() for name in ((columns.path,) if columns.path else (*PATH_COLUMNS, KINETICS_COLUMN))}
    for separator in (b"\t", b",", b" ") if lines else ():
        header = lines[0].split() if separator == b" " else _split_line(lines[0], separator)
        names = [path_to_text(name).strip() for name in header]
        if not known & {name.casefold() for name in names}:
            continue
        if len(set(names)) < len(names):
            raise MisuseError(f"{file}: its header names a column twice ({', '.join(names)}). Rename one")
        cells: list[list[bytes]] = [[] for _ in names]
        for number, line in enumerate(lines[1:], 2):
            fields = _split_line(line, separator)
            if len(fields) != len(names):
                raise _wrong_fields(file, number, len(fields), len(names), line)
            for column, field in zip(cells, fields, strict=True):
                column.append(field)
        return ListingTable(dict(zip(names, cells, strict=True)), len(lines) - 1, is_text=True)
    if columns.path and lines:
        raise MisuseError(f"{file}: has no column {columns.path!r}. Its first line is {quote_line(lines[0])}")
    return None


def _split_line(line: bytes, separator: bytes) -> list[bytes]:
    if separator == b" ":  # paths may have spaces: only the last one separates
        return [part.strip() for part in line.strip().rsplit(b" ", 1)]
    text = line.decode("utf-8", "surrogateescape")
    try:
        row = next(csv.reader(io.StringIO(text), delimiter=separator.decode()))
    except csv.Error as error:
        start = text[:QUOTED_CHARACTERS]
        raise MisuseError(f"an entry of the listing can't be read ({error}). It begins {start!r}") from error
    return [field.strip().encode("utf-8", "surrogateescape") for field in row]


def _wrong_fields(file: StoragePath, number: int, found: int, expected: int, line: bytes) -> MisuseError:
    return MisuseError(
        f"{file}: entry {number} has {found} fields, expected {expected}. It begins {quote_line(line)}. {_correct(number)}"
    )


def quote_line(line: bytes) -> str:
    """The beginning of a line, for an error."""
    return repr(path_to_text(line[:QUOTED_CHARACTERS]))


def table_rows(table: ListingTable, columns: Columns, file: StoragePath) -> Iterator[Row]:
    """The rows of a table. Raises MisuseError for a missing column and for an invalid cell."""
    if not table.columns and not table.num_rows:  # an empty JSON array
        return
    path_column = _find_column(table, columns.path, PATH_COLUMNS, "columns.path", file)
    if path_column is None:
        raise MisuseError(
            f"{file}: has no column of paths (its columns: {', '.join(table.columns)}). "
            "Name the column with --set columns.path=NAME"
        )
    if isinstance(columns.label, tuple):
        several = [_find_column(table, name, (), "columns.label", file) for name in columns.label]
        labels: Iterator[Any] = zip(*(table.columns[name] for name in several if name), strict=True)
    else:
        label_column = _find_column(table, columns.label, LABEL_COLUMNS, "columns.label", file)
        labels = iter(table.columns[label_column] if label_column else [None] * table.num_rows)
    split_column = table.find_column(SPLIT_COLUMN)
    splits = table.columns[split_column] if split_column else [None] * table.num_rows
    paths = table.columns[path_column]
    for number, (path, label, split) in enumerate(zip(paths, labels, splits, strict=True), table.first_entry):
        if not isinstance(path, str | bytes) or not path:
            raise MisuseError(
                f"{file}: entry {number} has {path!r} for a path in column {path_column}. Correct the listing"
            )
        yield Row(
            path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape"),
            _raw_label(label, file, number),
            path_to_text(split) if isinstance(split, bytes) else None if split is None else str(split),
        )


def _find_column(
    table: ListingTable, name: str | None, known: Sequence[str], key: str, file: StoragePath
) -> str | None:
    """The column that the recipe key names, else the first known one. Raises MisuseError if the named one is missing."""
    if name is None:
        return next((column for one in known if (column := table.find_column(one))), None)
    column = table.find_column(name)
    if column is None:
        raise MisuseError(f"{file}: {key} = {name}: no such column. Its columns: {', '.join(table.columns)}")
    return column


def _raw_label(cell: Any, file: StoragePath, number: int) -> RawLabel:
    """A cell as a label. A JSON array, a list, or the cells of several columns are several labels."""
    if isinstance(cell, str | bytes):
        several = _json_array(cell)
        if several is None:
            return _text(cell) or None
        cell = several
    if cell is None:
        return None
    if isinstance(cell, float) and not math.isfinite(cell):
        return str(cell)  # as a text file writes it: an error later if the other labels are numbers
    if not isinstance(cell, list | tuple):
        return _single_label(cell, file, number)
    if isinstance(cell, tuple) and all(one in (None, b"", "") for one in cell):
        return None  # several label columns, all empty
    return tuple(_single_label(one, file, number) for one in cell)


def _json_array(text: str | bytes) -> list[Any] | None:
    if text[:1] not in ("[", b"["):
        return None
    try:
        return msgspec.json.decode(text, type=list)
    except NOT_JSON:
        return None  # a name that begins with a bracket


def _single_label(value: Any, file: StoragePath, number: int) -> str:
    if isinstance(value, str | bytes) and value:
        return _text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise MisuseError(f"{file}: entry {number} has {value!r} for a label. Expected a name or a number")


def _text(value: str | bytes) -> str:
    return path_to_text(value) if isinstance(value, bytes) else value


def line_rows(lines: Sequence[bytes], file: StoragePath) -> list[Row]:
    """The rows of `path label` lines. The separator is a tab or else a comma if every line has one, else the last space."""
    separator = next((mark for mark in (b"\t", b",") if all(mark in line for line in lines)), b" ")
    rows = [_line_row(line, separator, file, number) for number, line in enumerate(lines, 1)]
    if separator == b" ":
        for number, row in enumerate(rows, 1):
            _refuse_spaces_in_label(row, file, number)
    if len(rows) > 1 and not is_video(rows[0].path) and all(is_video(row.path) for row in rows[1:]):
        raise MisuseError(
            f"{file}: its first line, {quote_line(lines[0])}, names no video, but every other line does. "
            "If it is a header, name the column of paths with --set columns.path=NAME"
        )
    return rows


def _line_row(line: bytes, separator: bytes, file: StoragePath, number: int) -> Row:
    fields = _split_line(line, separator)
    if is_video(fields[-1]):
        return Row(line.strip(), None)  # no label: the last field is the end of the path
    if len(fields) != 2:
        raise _wrong_fields(file, number, len(fields), 2, line)
    return Row(fields[0], _raw_label(fields[1], file, number))


def _refuse_spaces_in_label(row: Row, file: StoragePath, number: int) -> None:
    """`a.mp4 run fast`: the text before the last space is a path and half a label."""
    path, *rest = re.split(rb"(?<=[^ ]) +", row.path)
    while rest and not is_video(path):
        path += b" " + rest.pop(0)
    if rest and not is_video(row.path) and b"/" not in b"".join(rest):
        raise MisuseError(
            f"{file}: entry {number} has {len(rest) + 2} fields, {quote_line(path)} and the label "
            f"{path_to_text(b' '.join(rest))} {row.label}. If a class name has spaces, separate path and label by a tab "
            "or a comma in every line"
        )
