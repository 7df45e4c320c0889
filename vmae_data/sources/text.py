"""A text file in a usual encoding → UTF-8 → records of fields."""

from __future__ import annotations

import codecs
import csv
import io
import re
from typing import NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.names import path_to_text
from vmae_data.storage import StoragePath, read_bytes

__all__ = [
    "KNOWN_FORMATS",
    "SEPARATORS",
    "Record",
    "decode_text",
    "quote_line",
    "read_text",
    "records",
    "spaced_fields",
    "unquote",
    "wrong_fields",
]

SEPARATORS = (b"\t", b",", b";")

KNOWN_FORMATS = (
    "Known formats: Kinetics CSV and JSON, SSv2 JSON, UCF101 and HMDB51 lists, Moments in Time CSV, VideoMAE and "
    "VideoMAEv2 lists, `path label` "
    "lines, and CSV, TSV, JSON lines or Parquet with a column of paths (--set columns.path=NAME)"
)
# Excel ("Unicode text") and PowerShell (`>`) write UTF-16. The mark of UTF-32 begins as that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')
_QUOTED_LABEL = re.compile(rb'(.+) ("(?:[^"]|"")*")')
_QUOTED_CHARACTERS = 60  # of a line in an error


class Record(NamedTuple):
    """The fields of a row without spaces around them, and the lines that it was read from."""

    fields: list[bytes]
    text: bytes


def read_text(path: StoragePath, expected: str) -> bytes:
    """A text file in UTF-8, without a byte order mark. Raises MisuseError, which ends with `expected`."""
    return decode_text(read_bytes(path), str(path), expected)


def decode_text(data: bytes, name: str, expected: str) -> bytes:
    """UTF-16 and UTF-32 with a byte order mark become UTF-8. Bytes without a mark stay, also if they are not UTF-8.

    Raises MisuseError for binary data.
    """
    encoding = next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)
    if encoding is not None:
        try:
            data = data.decode(encoding).encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise MisuseError(f"{name}: is not text ({error}). {expected}") from error
    if b"\0" in data:
        raise MisuseError(f"{name}: is not text (in UTF-8, or UTF-16 with a byte order mark). {expected}")
    return data.removeprefix(codecs.BOM_UTF8)


def quote_line(line: bytes) -> str:
    """The beginning of a line, for an error."""
    return repr(path_to_text(line[:_QUOTED_CHARACTERS]))


def records(data: bytes, separator: bytes, file: StoragePath) -> list[Record]:
    """The rows of a table, except for empty ones.

    A quoted field may hold separators and line breaks. In a TSV quotes are characters, if every line has the same
    number of fields: programs that write TSV seldom quote.
    Raises MisuseError for a quote that is not closed and for a field that is too long.
    """
    if separator == b"\t":
        lines = [line for line in data.splitlines() if line.strip()]
        by_line = [Record([unquote(field.strip()) for field in line.split(separator)], line) for line in lines]
        if len({len(record.fields) for record in by_line}) <= 1:
            return by_line
    return _quoted_records(data, separator, file)


def _quoted_records(data: bytes, separator: bytes, file: StoragePath) -> list[Record]:
    lines = list(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""))
    reader = csv.reader(lines, delimiter=separator.decode(), strict=True, skipinitialspace=True)
    found: list[Record] = []
    start = 0
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            line = _encoded(lines[start].strip())
            raise MisuseError(
                f"{file}: entry {len(found) + 1} can't be read ({error}). It begins {quote_line(line)}. "
                "Close every quote, and double a quote inside of quotes"
            ) from error
        if fields is None:
            return found
        fields = [field.strip() for field in fields]
        if any(fields):
            text = "".join(lines[start : reader.line_num]).strip()
            found.append(Record([_encoded(field) for field in fields], _encoded(text)))
        start = reader.line_num


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def spaced_fields(line: bytes) -> list[bytes]:
    """Path and label of a line. Paths may have spaces, so only the last space separates, or the one before a quote."""
    text = line.strip()
    if b'"' not in text:
        return [field.strip() for field in text.rsplit(b" ", 1)]
    if _QUOTED.fullmatch(text):
        return [unquote(text)]
    label = _QUOTED_LABEL.fullmatch(text)
    return [unquote(part.strip()) for part in (label.groups() if label else text.rsplit(b" ", 1))]


def unquote(field: bytes) -> bytes:
    """The content of a field in double quotes. Any other field stays as it is."""
    quoted = _QUOTED.fullmatch(field) if field.startswith(b'"') else None
    return quoted[1].replace(b'""', b'"') if quoted else field


def wrong_fields(file: StoragePath, number: int, row: Record, expected: int) -> MisuseError:
    """The error about a row with another number of fields."""
    return MisuseError(
        f"{file}: entry {number} has {len(row.fields)} fields, expected {expected}. It begins {quote_line(row.text)}. "
        + ("Correct the listing" if number > 1 else f"Correct the listing. {KNOWN_FORMATS}")
    )
