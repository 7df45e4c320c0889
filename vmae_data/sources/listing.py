"""A file that lists videos → a table with named columns, or text → the rows of the table: path, label and split.

The content decides the format, not the file name: Parquet, JSON, CSV or TSV with a header, or `path label` lines.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.names import first_names, path_to_text
from vmae_data.sources.json_listing import json_entries
from vmae_data.sources.text import (
    SEPARATORS,
    Record,
    decode_text,
    quote_line,
    records,
    spaced_fields,
    unquote,
    wrong_fields,
)
from vmae_data.storage import StoragePath, read_bytes

__all__ = [
    "PATH_COLUMNS",
    "Columns",
    "ListingTable",
    "ListingText",
    "RawLabel",
    "Row",
    "raw_label",
    "read_listing",
    "table_rows",
]

PATH_COLUMNS = ("path", "file", "video", "filename", "url")
LABEL_COLUMNS = ("label", "class", "labels")
SPLIT_COLUMN = "split"
KINETICS_COLUMN = "youtube_id"
MAX_NAMES, NAME_CHARACTERS = 12, 40  # of columns in an error


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The columns of a listing to read; None: the known names. Several label columns make one label."""

    path: str | None = None  # name of the column with the paths
    label: str | tuple[str, ...] | None = None  # name of the column with the labels, or several names


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

    def column_names(self) -> str:
        """The first names, for an error."""
        return first_names((name[:NAME_CHARACTERS] for name in self.columns), MAX_NAMES)


class ListingText(NamedTuple):
    """A file without named columns, and its lines that are not empty."""

    data: bytes
    lines: list[bytes]


def read_listing(file: StoragePath, columns: Columns) -> ListingTable | ListingText:
    """A table if the file has named columns, else its text.

    Raises MisuseError for a file that is neither text nor Parquet, for invalid JSON and for quotes that don't match.
    """
    data = read_bytes(file)
    if data.startswith(b"PAR1"):
        return _read_parquet(data, file, columns)
    if data.lstrip()[:1] == b"<":
        raise MisuseError(f"{file}: is a web page or XML, not a listing. Name videos, or a listing of them")
    data = decode_text(data, str(file), "Expected a listing with one `path label` per line")
    if data.lstrip()[:1] in (b"[", b"{"):
        return _json_table(json_entries(data, file, (columns.path,) if columns.path else PATH_COLUMNS))
    text = ListingText(data, [line for line in data.splitlines() if line.strip()])
    return _read_table(text, file, columns) or text


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


def _json_table(entries: list[dict[str, Any]]) -> ListingTable:
    names = list(dict.fromkeys(name for entry in entries for name in entry))
    return ListingTable({name: [entry.get(name) for entry in entries] for name in names}, len(entries), is_text=False)


def _read_table(text: ListingText, file: StoragePath, columns: Columns) -> ListingTable | None:
    """A table if the first line names a column of paths, else None."""
    known = {name.casefold() for name in ((columns.path,) if columns.path else (*PATH_COLUMNS, KINETICS_COLUMN))}
    for separator in (*SEPARATORS, b" ") if text.lines else ():
        first = text.lines[0].split(separator if separator != b" " else None)
        if not known & {path_to_text(unquote(name.strip())).casefold() for name in first}:
            continue
        if separator == b" ":
            rows = [Record([unquote(name) for name in first], text.lines[0])]
            rows += [Record(spaced_fields(line), line) for line in text.lines[1:]]
        else:
            rows = records(text.data, separator, file)
        names = [path_to_text(name) for name in rows[0].fields]
        if len(set(names)) < len(names):
            raise MisuseError(f"{file}: its header names a column twice ({', '.join(names)}). Rename one")
        for number, row in enumerate(rows[1:], 2):
            if len(row.fields) != len(names):
                raise wrong_fields(file, number, row, len(names))
        cells = zip(*(row.fields for row in rows[1:]), strict=True) if len(rows) > 1 else [()] * len(names)
        return ListingTable(dict(zip(names, map(list, cells), strict=True)), len(rows) - 1, is_text=True)
    if columns.path and text.lines:
        raise MisuseError(f"{file}: has no column {columns.path!r}. Its first line is {quote_line(text.lines[0])}")
    return None


def table_rows(table: ListingTable, columns: Columns, file: StoragePath) -> Iterator[Row]:
    """The rows of a table. Raises MisuseError for a missing column and for an invalid cell."""
    if not table.columns and not table.num_rows:  # an empty JSON array
        return
    path_column = _find_column(table, columns.path, PATH_COLUMNS, "columns.path", file)
    if path_column is None:
        raise MisuseError(
            f"{file}: has no column of paths (its columns: {table.column_names()}). "
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
            raw_label(label, file, number),
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
        raise MisuseError(f"{file}: {key} = {name}: no such column. Its columns: {table.column_names()}")
    return column


def raw_label(cell: Any, file: StoragePath, number: int) -> RawLabel:
    """A cell as a label. An array of JSON or of Python, or the cells of several columns, are several labels."""
    if isinstance(cell, str | bytes):
        several = _array(cell)
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


def _array(text: str | bytes) -> list[Any] | None:
    """The items of `["a", "b"]`, or of `['a', 'b']` as pandas writes a list; None for any other text."""
    if text[:1] not in ("[", b"["):
        return None
    with suppress(*NOT_JSON):
        return msgspec.json.decode(text, type=list)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        several = ast.literal_eval(_text(text))
        return several if isinstance(several, list) else None
    return None  # a name that begins with a bracket


def _single_label(value: Any, file: StoragePath, number: int) -> str:
    if isinstance(value, str | bytes) and value:
        return _text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    raise MisuseError(f"{file}: entry {number} has {value!r} for a label. Expected a name or a number")


def _text(value: str | bytes) -> str:
    return path_to_text(value) if isinstance(value, bytes) else value
