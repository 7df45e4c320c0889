"""A data set's annotation files, as it is distributed → rows of path, label and split.

Formats: mmaction2 tools/data/parse_file_list.py (Kinetics, SSv2, UCF101, HMDB51); VideoMAE DATASET.md and kinetics.py;
VideoMAEv2 dataset/pretrain_datasets.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vmae_data.errors import DataError, MisuseError
from vmae_data.names import path_to_text
from vmae_data.sources.classes import numbered_classes, read_numbered_lines
from vmae_data.sources.find_files import VideoFiles
from vmae_data.sources.line_listing import line_rows, moments_rows
from vmae_data.sources.listing import PATH_COLUMNS, Columns, ListingTable, ListingText, Row, read_listing, table_rows
from vmae_data.sources.text import KNOWN_FORMATS, quote_line, read_text
from vmae_data.sources.video_files import is_video, relative_path
from vmae_data.storage import RemotePath, StoragePath, exists, is_folder, list_names, listable

__all__ = ["Annotations", "read_annotations"]

EXPECTED_LIST = "Expected a list of videos, one per line"
KINETICS_COLUMNS = ("youtube_id", "time_start", "time_end")
FOREIGN_PATH = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://|[A-Za-z]:[\\/]|\\\\")
TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")
UCF_LIST = re.compile(r"(train|test)list0*([1-9])\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split([1-9])\.txt")
HMDB_SPLITS = {b"1": "train", b"2": "test"}  # any other number: the video is in neither split
SPLIT_NAMES = {
    "training": "train",
    "validate": "val",
    "validation": "val",
    "valid": "val",
    "testing": "test",
    "trainingset": "train",  # Moments in Time
    "validationset": "val",
    "testingset": "test",
}


class Annotations(NamedTuple):
    """The rows of the chosen split, and the classes in the order of their numbers if a file states the order.

    `other_splits` are the paths that the files list for other splits.
    """

    rows: list[Row]
    classes: tuple[str, ...] = ()
    other_splits: frozenset[bytes] = frozenset()


def read_annotations(
    path: StoragePath, videos: VideoFiles, split: str | None, columns: Columns, *, by_stem: bool
) -> Annotations:
    """Read a listing, a data set's annotation file, or a folder of such files. The content decides the format.

    `split` (train, val, test, with a number for UCF101 and HMDB51) chooses the file of a folder and the rows of a file.
    With `by_stem` a name without a video's suffix may be the stem of any video.
    Raises MisuseError for an unknown format and for a missing split.
    """
    if not exists(path) and is_folder(path):
        return _read_folder(path, videos, split, columns, by_stem=by_stem)
    if HMDB_LIST.fullmatch(path.name):
        raise MisuseError(f"{path}: is HMDB51's list of one class. Give its folder, and --split train1 (or test1 …)")
    content = read_listing(path, columns)
    if isinstance(content, ListingText):
        return _read_text(path, content, videos, split, by_stem=by_stem)
    if _is_kinetics(content, columns):
        return _choose_split(_locate_stems(_kinetics_rows(content, videos, path), b".mp4"), split, path)
    if columns.path is None and (content.find_column("template") or set(content.columns) == {"id"}):
        return Annotations(_locate_stems(_ssv2_rows(content, videos, path), b".webm"), _ssv2_classes(path))
    rows = [_locate_listed(row, videos, path, by_stem=by_stem) for row in table_rows(content, columns, path)]
    return _choose_split(rows, split, path)


def _read_text(
    file: StoragePath, content: ListingText, videos: VideoFiles, split: str | None, *, by_stem: bool
) -> Annotations:
    """Read a file without named columns."""
    if UCF_LIST.fullmatch(file.name):
        return _read_ucf(file, content.lines, videos, split)
    moments = moments_rows(content, file)
    rows = moments or line_rows(content, file, lambda name: videos.contains(_locate(name, videos, by_stem=by_stem)))
    located = [_locate_listed(row, videos, file, by_stem=by_stem) for row in rows]
    if located and not any(is_video(row.path) for row in located) and not videos.contains(located[0].path):
        raise MisuseError(f"{file}: its first line, {quote_line(content.lines[0])}, names no video. {KNOWN_FORMATS}")
    return Annotations(located, _moments_classes(file) if moments else ())


def _read_folder(
    folder: StoragePath, videos: VideoFiles, split: str | None, columns: Columns, *, by_stem: bool
) -> Annotations:
    """Read the file of one split, or HMDB51's files."""
    files = [folder / name for name in sorted(list_names(folder)) if not name.startswith(".")]
    if any(HMDB_LIST.fullmatch(file.name) for file in files):
        return _read_hmdb(folder, files, videos, split)
    splits = {file: name for file in files if (name := _split_of_name(file))}
    ucf_splits = sorted({name for file, name in splits.items() if UCF_LIST.fullmatch(file.name)})
    tables = [file for file in splits if file.suffix.lower() in TABLE_SUFFIXES]
    if ucf_splits or tables:  # other text files are notes
        splits = {file: name for file, name in splits.items() if file in tables or UCF_LIST.fullmatch(file.name)}
    else:
        tables = list(splits)
    if not splits:
        raise MisuseError(f"{folder}: has no annotations of a known format. {KNOWN_FORMATS}")
    if split is None:
        if ucf_splits:
            # Three divisions of the same videos: their union is no training set.
            raise MisuseError(
                f"{folder}: UCF101's splits overlap. Choose one with --split. Splits here: {', '.join(ucf_splits)}"
            )
        return _merge_files([(file, read_annotations(file, videos, None, columns, by_stem=by_stem)) for file in tables])
    chosen = {
        file: read_annotations(file, videos, split, columns, by_stem=by_stem)
        for file, name in splits.items()
        if name == split
    }
    contents = {frozenset((row.path, row.label) for row in parsed.rows) for parsed in chosen.values()}
    if len(contents) != 1:  # Kinetics comes as CSV and as JSON: equal files are one
        known = ", ".join(ucf_splits or sorted(set(splits.values())))
        matches = " and ".join(file.name for file in list(chosen)[:2]) or "no file"
        raise MisuseError(f"{folder}: {matches} for --split {split}. Splits here: {known}; or give the file itself")
    parsed = next(iter(chosen.values()))
    rest = [_listed_paths(file, videos, columns, by_stem=by_stem) for file in tables if file not in chosen]
    return parsed._replace(other_splits=parsed.other_splits.union(*rest))


def _split_of_name(file: StoragePath) -> str | None:
    """`trainlist01.txt` → train1, `something-something-v2-validation.json` → val."""
    if ucf := UCF_LIST.fullmatch(file.name):
        return ucf[1] + ucf[2]
    if file.suffix.lower() not in (*TABLE_SUFFIXES, ".txt"):
        return None
    words = re.split(r"[-_. ]", file.stem.lower())
    while file.suffix.lower() == ".txt" and len(words) > 1 and words[-1] in ("list", "videos"):
        words.pop()  # kinetics400_train_list_videos.txt
    name = SPLIT_NAMES.get(words[-1], words[-1])
    return name if name in ("train", "val", "test") else None


def _merge_files(files: Sequence[tuple[StoragePath, Annotations]]) -> Annotations:
    """The rows of several files, one per split. Raises MisuseError if two files give a video different labels."""
    first_by_path: dict[bytes, tuple[StoragePath, Row]] = {}
    for file, parsed in files:
        for row in parsed.rows:
            first_file, first = first_by_path.setdefault(row.path, (file, row))
            if first_file != file and first.label != row.label:
                raise MisuseError(
                    f"{first_file}: gives {path_to_text(row.path)} the label {first.label!r}, but {file.name} gives "
                    f"{row.label!r}. Choose one file with --split"
                )
    rows = [row for _, parsed in files for row in parsed.rows]
    return Annotations(rows, next((parsed.classes for _, parsed in files if parsed.classes), ()))


def _listed_paths(file: StoragePath, videos: VideoFiles, columns: Columns, *, by_stem: bool) -> frozenset[bytes]:
    """The paths in the file of another split. Empty for a broken file: this split does not need it."""
    try:
        parsed = read_annotations(file, videos, None, columns, by_stem=by_stem)
    except (MisuseError, DataError):
        return frozenset()
    return frozenset(row.path for row in parsed.rows) | parsed.other_splits


def _choose_split(rows: list[Row], split: str | None, file: StoragePath) -> Annotations:
    """The rows of one split, if the file states the split of each row."""
    split_names = {name: SPLIT_NAMES.get(name.lower(), name.lower()) for row in rows if (name := row.split)}
    if split is None or not split_names:
        return Annotations(rows)
    chosen = [row for row in rows if row.split and split_names[row.split] == split]
    if not chosen:
        known = ", ".join(sorted(set(split_names.values())))
        raise MisuseError(f"{file}: has no rows of --split {split}. Its splits: {known}")
    others = frozenset(row.path for row in rows if not row.split or split_names[row.split] != split)
    return Annotations(chosen, other_splits=others)


def _locate_listed(row: Row, videos: VideoFiles, file: StoragePath, *, by_stem: bool) -> Row:
    """The row with its path relative to the videos' folder. Raises MisuseError for a URL and for a path with a drive."""
    foreign = FOREIGN_PATH.match(row.path)
    is_url = foreign is not None and foreign[0].endswith(b"//")
    may_be_key = is_url and isinstance(videos.folder, RemotePath)  # of the bucket
    if foreign is not None and not may_be_key and not videos.contains(row.path):
        kind = "a URL, but the videos are in a folder" if is_url else "a path with a drive or server of Windows"
        raise MisuseError(
            f"{file}: {path_to_text(row.path[:200])} is {kind}. Write paths relative to the folder of the videos"
        )
    return Row(_locate(row.path, videos, by_stem=by_stem), row.label, row.split)


def _locate(listed: bytes, videos: VideoFiles, *, by_stem: bool) -> bytes:
    """A listed path relative to the videos' folder.

    Backslashes may separate folders, as in Windows. A name without a video's suffix may be a stem, or Kinetics' id.
    """
    path = relative_path(listed, videos.folder)
    if b"\\" in path and not videos.contains(path):
        unix_path = relative_path(listed.replace(b"\\", b"/"), videos.folder)
        path = unix_path if videos.contains(unix_path) or not is_video(unix_path) else path
    if by_stem and videos.is_stem(path):
        return videos.find(path) or videos.find_clip(path) or path
    return path


def _locate_stems(rows: Iterable[tuple[Row, bytes | None]], suffix: bytes) -> list[Row]:
    """Rows with stems and the video found for each → rows with paths.

    A missing video gets the path that it should have: in the folder that holds all found videos of its label, or else
    all found videos.
    """
    located = list(rows)
    folders: dict[object, set[bytes]] = {}
    for row, path in located:
        if path is not None:
            folders.setdefault(row.label, set()).add(os.path.dirname(path))
    all_folders = set().union(*folders.values())
    suffixes = {os.path.splitext(path)[1] for _, path in located if path is not None}
    usual_suffix = suffixes.pop() if len(suffixes) == 1 else suffix
    result = []
    for row, path in located:
        if path is None:
            parents = folders.get(row.label, all_folders)
            path = os.path.join(*(parents if len(parents) == 1 else (b"",)), row.path + usual_suffix)
        result.append(row._replace(path=path))
    return result


def _is_kinetics(table: ListingTable, columns: Columns) -> bool:
    """Whether the table has Kinetics' columns. Columns of Parquet that were not read are empty."""
    if not table.is_text and (columns.path is not None or any(map(table.find_column, PATH_COLUMNS))):
        return False
    names = [table.find_column(name) for name in KINETICS_COLUMNS]
    return all(name is not None and len(table.columns[name]) == table.num_rows for name in names)


def _kinetics_rows(table: ListingTable, videos: VideoFiles, file: StoragePath) -> Iterator[tuple[Row, bytes | None]]:
    """label,youtube_id,time_start,time_end,split[,is_cc]; test lists may have no label."""

    def column(name: str) -> Sequence[bytes]:
        own_name = table.find_column(name)
        cells = table.columns[own_name] if own_name else [b""] * table.num_rows
        return [cell if isinstance(cell, bytes) else b"" if cell is None else str(cell).encode() for cell in cells]

    cells = zip(*(column(name) for name in ("label", *KINETICS_COLUMNS, "split")), strict=True)
    for number, (label, video, start, end, split) in enumerate(cells, table.first_entry):
        try:
            stem = b"%b_%06d_%06d" % (video, int(float(start)), int(float(end)))
        except (TypeError, ValueError, OverflowError) as error:
            raise MisuseError(
                f"{file}: entry {number} has {video!r}, {start!r}, {end!r} for youtube_id, time_start and time_end. "
                "Expected an id and two numbers"
            ) from error
        row = Row(stem, path_to_text(label) or None, path_to_text(split) or None)
        yield row, videos.find(stem) or videos.find(video)


def _ssv2_rows(table: ListingTable, videos: VideoFiles, file: StoragePath) -> Iterator[tuple[Row, bytes | None]]:
    """{"id", "label", "template", "placeholders"}: the class is the template without brackets; test lists have none."""
    missing = [None] * table.num_rows
    ids, templates = (table.columns.get(name) or missing for name in ("id", "template"))
    for number, (video, template) in enumerate(zip(ids, templates, strict=True), table.first_entry):
        stem = str(video).encode() if isinstance(video, str | int) else b""
        if not stem or not isinstance(template, str | None):
            raise MisuseError(f"{file}: entry {number} has id {video!r}, template {template!r}. Expected SSv2's JSON")
        yield Row(stem, re.sub(r"[\[\]]", "", template) if template else None), videos.find(stem)


def _moments_classes(file: StoragePath) -> tuple[str, ...]:
    """Moments in Time numbers its classes in a file in the same folder."""
    path = file.with_name("moments_categories.txt")
    return read_numbered_lines(path) if exists(path) else ()


def _ssv2_classes(file: StoragePath) -> tuple[str, ...]:
    """SSv2 numbers its classes in a file in the same folder: something-something-v2-labels.json, or labels.json."""
    if not listable(file):
        return ()
    names = sorted(name for name in list_names(file.parent) if name.endswith("labels.json") and name[0] != ".")
    if len(names) > 1:
        raise MisuseError(f"{file}: its folder has both {names[0]} and {names[1]}. Choose one with --classes FILE")
    return numbered_classes(file.parent / names[0]) if names else ()


def _read_ucf(file: StoragePath, lines: Sequence[bytes], videos: VideoFiles, split: str | None) -> Annotations:
    """trainlist01.txt: `Class/v_….avi 1`; testlist01.txt: without the number. The folder is the class."""
    own_split = _split_of_name(file)
    if split not in (None, own_split):
        raise MisuseError(f"{file}: is the list of {own_split}, not of --split {split}")
    class_file = file.with_name("classInd.txt")
    classes = read_numbered_lines(class_file) if exists(class_file) else ()
    rows = []
    for number, line in enumerate(lines, 1):
        fields = re.fullmatch(rb"(([^/]+)/.+?)(?: +(\d+))?", line.strip())
        if fields is None:
            raise MisuseError(
                f"{file}: entry {number} is {line[:60]!r}. Expected `Class/video.avi` or `Class/video.avi 1`"
            )
        label = path_to_text(fields[2])
        if classes and (
            label not in classes or (fields[3] and classes[int(fields[3]) - 1 : int(fields[3])] != (label,))
        ):
            raise MisuseError(
                f"{file}: entry {number}, {line[:60]!r}, contradicts {class_file.name}. Take both from one distribution"
            )
        rows.append(Row(fields[1], label))
    class_folders = frozenset(os.fsencode(name) for name in classes)
    old, new = ("train", "test") if "train" in file.name else ("test", "train")
    other_file = file.with_name(file.name.replace(old, new))
    others = (
        [Row(path, None) for path in read_text(other_file, EXPECTED_LIST).split() if b"/" in path]
        if exists(other_file)
        else []
    )
    return Annotations(
        [_locate_in_class(row, videos, class_folders) for row in rows],
        classes,
        frozenset(_locate_in_class(row, videos, class_folders).path for row in others),
    )


def _locate_in_class(row: Row, videos: VideoFiles, class_folders: frozenset[bytes]) -> Row:
    """Find CLASS/video.avi at its path, in another folder or with another suffix, but not in another class's folder."""
    return row._replace(path=videos.find(row.path, not_in=class_folders - {os.path.dirname(row.path)}) or row.path)


def _read_hmdb(folder: StoragePath, files: Sequence[StoragePath], videos: VideoFiles, split: str | None) -> Annotations:
    """CLASS_test_split1.txt for each class: lines `name.avi 1`, where 1 is training and 2 is test."""
    lists = {file: match for file in files if (match := HMDB_LIST.fullmatch(file.name))}
    known = sorted({name + match[2] for match in lists.values() for name in HMDB_SPLITS.values()})
    if split not in known:
        got = f", not {split}" if split else ""
        raise MisuseError(f"{folder}: HMDB51's splits overlap. --split must be one of {', '.join(known)}{got}")
    # All lists name classes, so that a class without a video in this split keeps its number.
    classes = tuple(sorted({match[1] for match in lists.values()}))
    class_folders = frozenset(os.fsencode(name) for name in classes)
    rows: list[Row] = []
    others = set()
    for file, match in lists.items():  # sorted, as `files` are
        if match[2] != split[-1]:
            continue
        for number, line in enumerate(read_text(file, EXPECTED_LIST).splitlines(), 1):
            name, _, flag = line.strip().rpartition(b" ")
            if not line.strip():
                continue
            if not name or not flag.isdigit():
                raise MisuseError(f"{file}: entry {number} is {line[:60]!r}. Expected `video.avi 1`")
            row = Row(os.path.join(os.fsencode(match[1]), name.strip()), match[1])
            row = _locate_in_class(row, videos, class_folders)
            if HMDB_SPLITS.get(flag) == split[:-1]:
                rows.append(row)
            else:
                others.add(row.path)
    return Annotations(rows, classes, frozenset(others))
