"""Lines of a path and its label, as VideoMAE, VideoMAEv2 and Moments in Time have them → rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from vmae_data.errors import MisuseError
from vmae_data.names import path_to_text
from vmae_data.sources.listing import ListingText, Row, raw_label
from vmae_data.sources.text import SEPARATORS, Record, quote_line, records, spaced_fields, unquote, wrong_fields
from vmae_data.sources.video_files import is_video
from vmae_data.storage import StoragePath

__all__ = ["line_rows", "moments_rows"]

V2_LINE = re.compile(rb"(.+) (-?\d+) (-?\d+) (-?\d+)")  # path, start, total, label
FRAMES_LINE = re.compile(rb"(.+) (\d+) (-?\d+)")  # path, number of frames, label
NUMBERS_LINE = re.compile(rb"(.+?)((?: +\d+)+)")  # path, class numbers
QUOTED_PATH = re.compile(rb'\s*"[^"]+" [^,;\t]')  # and a space before the label
SHELL_QUOTED = re.compile(rb"'([^']+)'")


def line_rows(text: ListingText, file: StoragePath, is_path: Callable[[bytes], bool]) -> list[Row]:
    """`path label` lines, VideoMAEv2's `path start total label`, paths alone, or paths with several class numbers.

    `is_path`: whether a name without a video's suffix names a video. Raises MisuseError for lines of another form, and
    for lists of folders of frames.
    """
    if not text.lines:
        return []
    several = _several_numbers(_numbered_lines(text.lines))
    first = text.lines[0].strip()
    if several or b"\t" in first or is_video(_path(first)) or is_video(_path(first.rpartition(b" ")[0])):
        return several or _label_rows(text, file, is_path)
    if V2_LINE.fullmatch(first):
        return _v2_rows(text, file)
    if (fields := FRAMES_LINE.fullmatch(first)) is not None:
        raise _number_of_frames(file, fields[1], fields[2])
    return _label_rows(text, file, is_path)


def _numbered_lines(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Path and numbers of each line; nothing unless every line has numbers, and some more than others."""
    counts = set()
    for line in lines:
        match = NUMBERS_LINE.fullmatch(line.strip())
        if match is None:
            return []
        counts.add(len(match[2].split()))
    matches = map(NUMBERS_LINE.fullmatch, map(bytes.strip, lines if len(counts) > 1 else ()))
    return [[_path(match[1]), *match[2].split()] for match in matches if match]


def moments_rows(text: ListingText, file: StoragePath) -> list[Row]:
    """Moments in Time: `class/video.mp4,class,VOTES,VOTES`; no rows if the file has another form."""
    if not text.lines or not _is_moment(text.lines[0].split(b",")):
        return []
    table = [row.fields for row in records(text.data, b",", file)]
    return [Row(row[0], path_to_text(row[1])) for row in table] if all(map(_is_moment, table)) else []


def _is_moment(fields: Sequence[bytes]) -> bool:
    """Whether the class is the folder and two counts follow."""
    fields = [unquote(field.strip()) for field in fields]
    if len(fields) != 4:
        return False
    path, label, *votes = fields
    return path.partition(b"/")[0] == label and all(vote.isdigit() for vote in votes)


def _several_numbers(rows: Sequence[Sequence[bytes]]) -> list[Row]:
    """Rows of a path and one or more class numbers; no rows unless some rows have more numbers than others.

    If all rows have equally many, one of the numbers may count the frames.
    """
    if len({len(row) for row in rows}) < 2 or not all(row and is_video(row[0]) for row in rows):
        return []
    if not all(label.isdigit() for row in rows for label in row[1:]):
        return []
    return [Row(row[0], tuple(map(path_to_text, row[1:])) or None) for row in rows]


def _v2_rows(text: ListingText, file: StoragePath) -> list[Row]:
    rows = []
    for number, line in enumerate(text.lines, 1):
        fields = V2_LINE.fullmatch(line.strip())
        if fields is None:
            raise MisuseError(
                f"{file}: entry {number} is {line[:60]!r}. Expected `path start total label`, as in the first line"
            )
        if int(fields[3]) >= 0:
            raise _number_of_frames(file, fields[1], fields[3])
        rows.append(Row(_path(fields[1]), path_to_text(fields[4])))
    return rows


def _number_of_frames(file: StoragePath, path: bytes, frames: bytes) -> MisuseError:
    video = re.sub(rb"( \d+)+$", b"", path)
    if is_video(_path(video)):
        return MisuseError(
            f"{file}: {path_to_text(video)} is followed by several numbers. Write several labels as a list in a CSV, "
            '`a.mp4,"[3, 5]"`. Remove numbers of frames (VideoMAE: `path label`; VideoMAEv2: `path 0 -1 label`)'
        )
    return MisuseError(
        f"{file}: {path_to_text(path)} with {int(frames)} frames is a folder of pictures, not a video. "
        "List the video files (VideoMAE: `path label`; VideoMAEv2: `path 0 -1 label`)"
    )


def _label_rows(text: ListingText, file: StoragePath, is_path: Callable[[bytes], bool]) -> list[Row]:
    """Paths with at most one label. The separator is the first of tab, comma and semicolon in every row, else a space."""
    table = _separated_records(text, file)
    if table is not None and (several := _several_numbers([row.fields for row in table])):
        return several
    rows = table or [Record(spaced_fields(line), line) for line in text.lines]
    if all(len(row.fields) == 1 for row in rows):
        names = [row.fields[0] for row in rows if not is_video(row.fields[0])]
        if not any(mark in name for name in names for mark in SEPARATORS) and any(map(is_path, names)):
            return [Row(_path(row.fields[0]), None) for row in rows]
    _refuse_label_first(rows[0], file, is_path)
    labelled = [_label_row(row, file, number, is_path) for number, row in enumerate(rows, 1)]
    for number, row in enumerate(labelled if table is None else (), 1):
        _refuse_spaces_in_label(row, file, number)
    if len(labelled) > 1 and not is_video(labelled[0].path) and all(is_video(row.path) for row in labelled[1:]):
        raise MisuseError(
            f"{file}: its first line, {quote_line(text.lines[0])}, names no video, but every other line does. "
            "If it is a header, name the column of paths with --set columns.path=NAME"
        )
    return labelled


def _separated_records(text: ListingText, file: StoragePath) -> list[Record] | None:
    """The records by the first separator that every one has. A semicolon counts only after a video's path."""
    for separator in SEPARATORS:
        if not any(separator in line for line in text.lines):
            continue
        try:
            table = records(text.data, separator, file)
        except MisuseError:
            if all(separator in line for line in text.lines) and not any(map(QUOTED_PATH.match, text.lines)):
                raise
            continue  # a separator within a path
        if all(len(row.fields) > 1 and (separator != b";" or is_video(row.fields[0])) for row in table):
            return table
    return None


def _refuse_label_first(row: Record, file: StoragePath, is_path: Callable[[bytes], bool]) -> None:
    """`3 a.mp4`: without a label this would be the path of a file that is missing."""
    path = row.text.strip()
    for mark in (*SEPARATORS, b" "):
        label, _, video = (part.strip() for part in path.partition(mark))
        if video and is_video(video) and not is_video(label) and not is_path(path) and is_path(_path(video)):
            raise MisuseError(
                f"{file}: entry 1 has {quote_line(label)} before the path {quote_line(video)}. Write the label after the path"
            )


def _label_row(row: Record, file: StoragePath, number: int, is_path: Callable[[bytes], bool]) -> Row:
    fields = row.fields
    if is_video(_path(fields[-1])):  # no label: the last field is the end of the path
        return Row(_path(fields[0] if len(fields) == 1 else row.text.strip()), None)
    if len(fields) == 2 and (is_video(fields[0]) or not is_path(row.text.strip())):
        return Row(_path(fields[0]), raw_label(fields[1], file, number))
    if is_path(row.text.strip()):
        return Row(row.text.strip(), None)
    raise wrong_fields(file, number, row, 2)


def _path(field: bytes) -> bytes:
    """A path without quotes around it."""
    field = unquote(field.strip())
    quoted = SHELL_QUOTED.fullmatch(field) if field.startswith(b"'") else None
    return quoted[1] if quoted and is_video(quoted[1]) else field


def _refuse_spaces_in_label(row: Row, file: StoragePath, number: int) -> None:
    """`a.mp4 run fast`, `a.mp4, 3`: the text before the last space is a path and more."""
    if is_video(row.path):
        return
    mark = next((mark for mark in SEPARATORS if is_video(row.path.partition(mark)[0])), None)
    if mark is not None:
        raise MisuseError(
            f"{file}: entry {number} has {mark.decode()!r} after {quote_line(row.path.partition(mark)[0])}, but other "
            "lines have none. Separate path and label in the same way in every line"
        )
    path, *rest = re.split(rb"(?<=[^ ]) +", row.path)
    while rest and not is_video(path):
        path += b" " + rest.pop(0)
    if rest and b"/" not in b"".join(rest):
        raise MisuseError(
            f"{file}: entry {number} has {len(rest) + 2} fields, {quote_line(path)} and the label "
            f"{path_to_text(b' '.join(rest))} {row.label}. If a class name has spaces, separate path and label by a tab "
            "or a comma in every line"
        )
