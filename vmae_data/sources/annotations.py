"""Row 1, third part. The data sets' own annotation files, as they are distributed → rows of path and label.

Shapes: mmaction2 tools/data/parse_file_list.py (Kinetics, SSv2, UCF101, HMDB51); VideoMAE DATASET.md and kinetics.py;
VideoMAEv2 dataset/pretrain_datasets.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import path_to_text
from vmae_data.sources.classes import class_index, label_numbers
from vmae_data.sources.listing import (
    KNOWN_FORMATS,
    Columns,
    Lines,
    Records,
    Row,
    named_rows,
    plain_rows,
    read_listing,
    shown,
)
from vmae_data.sources.video_files import VideoFiles, is_video, path_below
from vmae_data.storage import StoragePath, exists, is_folder, list_names, listable, read_bytes

__all__ = ["Annotated", "read_annotations"]

KINETICS = ("youtube_id", "time_start", "time_end")
UCF_LIST = re.compile(r"(train|test)list0*([1-9])\.txt")
HMDB_LIST = re.compile(r"(.+)_test_split([1-9])\.txt")
HMDB_SPLITS = {b"1": "train", b"2": "test"}  # any other number: the video belongs to neither
SPLIT_NAMES = {"training": "train", "validate": "val", "validation": "val", "valid": "val", "testing": "test"}
V2_LINE = re.compile(rb"(.+) (-?\d+) (-?\d+) (-?\d+)")  # path, start, total, label
FRAMES_LINE = re.compile(rb"(.+) (\d+) (-?\d+)")  # path, number of frames, label


class Annotated(NamedTuple):
    """What annotations say: their rows, the classes in the order of their numbers where a file beside gives it.

    `others` are the files that are listed, but of another split.
    """

    rows: list[Row]
    classes: tuple[str, ...] = ()
    others: frozenset[bytes] = frozenset()


def read_annotations(
    where: StoragePath, tree: VideoFiles, split: str | None, columns: Columns, *, by_stem: bool
) -> Annotated:
    """Read a listing, a data set's annotation file, or a folder of them; what it is, is seen from its content.

    `split` (train, val, test, with a number for UCF101 and HMDB51) chooses the file of a folder and the rows of a file.
    With `by_stem` a name without a video's suffix is looked for below the tree.
    Raises MisuseError for a format that is not known, and for a split that is not there.
    """
    if not exists(where) and is_folder(where):
        return _read_folder(where, tree, split, columns, by_stem=by_stem)
    if HMDB_LIST.fullmatch(where.name):
        raise MisuseError(f"{where}: is HMDB51's list of one class; name its folder, and --split train1 (or test1 …)")
    content = read_listing(where, columns)
    if isinstance(content, Lines):
        if ucf := UCF_LIST.fullmatch(where.name):
            return _ucf(where, content.lines, tree, ucf[1] + ucf[2], split)
        rows = [_listed(row, tree, by_stem=by_stem) for row in _list_rows(content.lines, where)]
        if rows and not any(is_video(row.path) for row in rows) and not tree.holds(rows[0].path):
            raise MisuseError(f"{where}: its first line, {shown(content.lines[0])}, names no video; {KNOWN_FORMATS}")
        return Annotated(rows)
    if content.text and all(content.name(name) for name in KINETICS):
        return _of_split(_placed(_kinetics(content, where), tree, b".mp4"), split, where)
    if columns.path is None and (content.name("template") or set(content.columns) == {"id"}):
        return Annotated(_placed(_ssv2(content, where), tree, b".webm"), _labels_beside(where))
    rows = [_listed(row, tree, by_stem=by_stem) for row in named_rows(content, columns, where)]
    return _of_split(rows, split, where)


def _read_folder(
    where: StoragePath, tree: VideoFiles, split: str | None, columns: Columns, *, by_stem: bool
) -> Annotated:
    """The file, or HMDB51's files, of one split."""
    files = [where / name for name in sorted(list_names(where)) if not name.startswith(".")]
    numbered = sorted({m[1] + m[2] for path in files if (m := UCF_LIST.fullmatch(path.name))})
    if any(HMDB_LIST.fullmatch(path.name) for path in files):
        return _hmdb(where, files, tree, split)
    fitting = [path for path in files if _split_of(path) is not None]
    if not numbered and not fitting:
        raise MisuseError(f"{where}: holds no annotations that are known; {KNOWN_FORMATS}")
    if split is None:
        if numbered:
            # Three divisions of the same videos: their union is no training set.
            raise MisuseError(
                f"{where}: UCF101's splits overlap; choose with --split; splits here: {', '.join(numbered)}"
            )
        return _every_row([(path, read_annotations(path, tree, None, columns, by_stem=by_stem)) for path in fitting])
    chosen = [path for path in files if _split_of(path) == split or _is_ucf(path, split)]
    if len(chosen) != 1:
        known = ", ".join(numbered or sorted({str(_split_of(path)) for path in fitting}))
        found = " and ".join(path.name for path in chosen[:2]) or "no file"
        raise MisuseError(f"{where}: {found} for --split {split}; splits here: {known}; or name the file")
    own = read_annotations(chosen[0], tree, split, columns, by_stem=by_stem)
    rest = (path for path in fitting if path not in chosen)
    return own._replace(others=own.others.union(*(_paths_of(path, tree, columns, by_stem=by_stem) for path in rest)))


def _paths_of(path: StoragePath, tree: VideoFiles, columns: Columns, *, by_stem: bool) -> frozenset[bytes]:
    """What the file of another split names; nothing where it is broken, for this split is built without it."""
    try:
        found = read_annotations(path, tree, None, columns, by_stem=by_stem)
    except (MisuseError, DataError):
        return frozenset()
    return frozenset(row.path for row in found.rows) | found.others


def _every_row(files: Sequence[tuple[StoragePath, Annotated]]) -> Annotated:
    """The rows of several files, one a split. Raises MisuseError where two of them give a video different labels."""
    said: dict[bytes, tuple[StoragePath, Row]] = {}
    for path, found in files:
        for row in found.rows:
            before, first = said.setdefault(row.path, (path, row))
            if before != path and first.label != row.label:
                raise MisuseError(
                    f"{before}: gives {path_to_text(row.path)} the label {first.label!r}, {path.name} {row.label!r}; "
                    "choose one of them with --split"
                )
    rows = [row for _, found in files for row in found.rows]
    return Annotated(rows, next((found.classes for _, found in files if found.classes), ()))


def _split_of(path: StoragePath) -> str | None:
    """`something-something-v2-validation.json` → val."""
    if path.suffix.lower() not in (".csv", ".tsv", ".json", ".jsonl", ".parquet"):
        return None
    word = re.split(r"[-_. ]", path.stem.lower())[-1]
    word = SPLIT_NAMES.get(word, word)
    return word if word in ("train", "val", "test") else None


def _is_ucf(path: StoragePath, split: str) -> bool:
    found = UCF_LIST.fullmatch(path.name)
    return found is not None and found[1] + found[2] == split


def _of_split(rows: list[Row], split: str | None, where: StoragePath) -> Annotated:
    """The rows of one split, where the file says of which each is."""
    told = {name: SPLIT_NAMES.get(name.lower(), name.lower()) for row in rows if (name := row.split)}
    if split is None or not told:
        return Annotated(rows)
    chosen = [row for row in rows if row.split and told[row.split] == split]
    if not chosen:
        known = ", ".join(sorted(set(told.values())))
        raise MisuseError(f"{where}: has no rows of --split {split}; its splits: {known}")
    return Annotated(chosen, others=frozenset(row.path for row in rows if not row.split or told[row.split] != split))


def _listed(row: Row, tree: VideoFiles, *, by_stem: bool) -> Row:
    """A listed path, relative to the tree; a name without a video's suffix may be a stem."""
    path = path_below(row.path, tree.folder)
    if by_stem and not is_video(path):
        path = tree.find(path) or path
    return row._replace(path=path)


class _Entry(NamedTuple):
    """A video that is named by a stem: the stems that it may have, the likeliest first."""

    stems: tuple[bytes, ...]
    label: str | None
    split: str | None = None


def _placed(entries: Iterable[_Entry], tree: VideoFiles, suffix: bytes) -> list[Row]:
    """Each entry where its file lies; a missing one where it would lie: in the one folder of its label, or of all."""
    placed = [
        (entry, next((path for stem in entry.stems if (path := tree.find(stem)) is not None), None))
        for entry in entries
    ]
    homes: dict[str | None, set[bytes]] = {}
    for entry, path in placed:
        if path is not None:
            homes.setdefault(entry.label, set()).add(os.path.dirname(path))
    everywhere = set().union(*homes.values())
    suffixes = {os.path.splitext(path)[1] for _, path in placed if path is not None}
    name_end = suffixes.pop() if len(suffixes) == 1 else suffix
    rows = []
    for entry, path in placed:
        if path is None:
            home = homes.get(entry.label, everywhere)
            path = os.path.join(*(home if len(home) == 1 else (b"",)), entry.stems[0] + name_end)
        rows.append(Row(path, entry.label, entry.split))
    return rows


def _kinetics(records: Records, where: StoragePath) -> Iterable[_Entry]:
    """label,youtube_id,time_start,time_end,split[,is_cc]; test lists may have no label."""

    def column(name: str) -> Sequence[Any]:
        known = records.name(name)
        return records.columns[known] if known else [b""] * records.length

    cells = zip(*(column(name) for name in ("label", *KINETICS, "split")), strict=True)
    for number, (label, video, start, end, split) in enumerate(cells, records.first):
        try:
            stem = b"%b_%06d_%06d" % (video, int(float(start)), int(float(end)))
        except (TypeError, ValueError, OverflowError) as error:
            raise MisuseError(
                f"{where}: entry {number} has {video!r}, {start!r}, {end!r} for youtube_id, time_start and time_end; "
                "expected an id and two numbers"
            ) from error
        yield _Entry((stem, bytes(video)), path_to_text(label) or None, path_to_text(split) or None)


def _ssv2(records: Records, where: StoragePath) -> Iterable[_Entry]:
    """{"id", "label", "template", "placeholders"}: the class is the template without its brackets; test lists have none."""
    unknown = [None] * records.length
    ids, templates = (records.columns.get(name) or unknown for name in ("id", "template"))
    for number, (video, template) in enumerate(zip(ids, templates, strict=True), records.first):
        name = str(video).encode() if isinstance(video, str | int) else b""
        if not name or not isinstance(template, str | None):
            raise MisuseError(f"{where}: entry {number} has id {video!r}, template {template!r}; expected SSv2's JSON")
        yield _Entry((name,), re.sub(r"[\[\]]", "", template) if template else None)


def _labels_beside(where: StoragePath) -> tuple[str, ...]:
    """SSv2's numbers stand in a file of their own: something-something-v2-labels.json, or labels.json."""
    if not listable(where):
        return ()
    names = sorted(name for name in list_names(where.parent) if name.endswith("labels.json") and name[0] != ".")
    if len(names) > 1:
        raise MisuseError(f"{where}: {names[0]} and {names[1]} lie beside it; say which with --classes FILE")
    return label_numbers(where.parent / names[0]) if names else ()


def _ucf(where: StoragePath, lines: Sequence[bytes], tree: VideoFiles, found: str, split: str | None) -> Annotated:
    """trainlist01.txt: `Class/v_….avi 1`; testlist01.txt: without the number, for the class is the folder."""
    if split not in (None, found):
        raise MisuseError(f"{where}: is the list of {found}, not of --split {split}")
    beside = where.with_name("classInd.txt")
    classes = class_index(read_bytes(beside).decode("utf-8", "replace").splitlines()) if exists(beside) else ()
    if classes is None:
        raise MisuseError(f"{beside}: expected `1 ApplyEyeMakeup` and so on, one class a line")
    rows = []
    for number, line in enumerate(lines, 1):
        parts = re.fullmatch(rb"(([^/]+)/.+?)(?: +(\d+))?", line.strip())
        if parts is None:
            raise MisuseError(f"{where}: entry {number} is {line[:60]!r}; expected `Class/video.avi`, or with a number")
        label = path_to_text(parts[2])
        if classes and (label not in classes or (parts[3] and classes[int(parts[3]) - 1 : int(parts[3])] != (label,))):
            raise MisuseError(
                f"{where}: entry {number}: {line[:60]!r} is not what {beside.name} says; take both from one place"
            )
        rows.append(Row(parts[1], label))
    folders = frozenset(os.fsencode(name) for name in classes)
    other = where.with_name(
        where.name.replace("train", "test") if "train" in where.name else where.name.replace("test", "train")
    )
    rest = read_bytes(other).split() if exists(other) else []
    return Annotated(
        [_in_class(row, tree, folders) for row in rows],
        classes,
        frozenset(_in_class(Row(path, None), tree, folders).path for path in rest if b"/" in path),
    )


def _in_class(row: Row, tree: VideoFiles, folders: frozenset[bytes]) -> Row:
    """CLASS/video.avi where it lies: there, or flat, or with another suffix, but not in another class's folder."""
    own = os.path.dirname(row.path)
    return row._replace(path=tree.find(row.path, not_in=folders - {own}) or row.path)


def _hmdb(where: StoragePath, files: Sequence[StoragePath], tree: VideoFiles, split: str | None) -> Annotated:
    """CLASS_test_split1.txt for every class: `name.avi 1`, 1 for training, 2 for test."""
    named = {path: m for path in files if (m := HMDB_LIST.fullmatch(path.name))}
    known = sorted({name + found[2] for found in named.values() for name in HMDB_SPLITS.values()})
    if split not in known:
        found_split = f", not {split}" if split else ""
        raise MisuseError(f"{where}: HMDB51's splits overlap; --split must be one of {', '.join(known)}{found_split}")
    folders = frozenset(os.fsencode(found[1]) for found in named.values())
    rows: list[Row] = []
    others = set()
    for path, found in named.items():  # the files are sorted
        if found[2] != split[-1]:
            continue
        for number, line in enumerate(read_bytes(path).splitlines(), 1):
            name, _, flag = line.strip().rpartition(b" ")
            if not line.strip():
                continue
            if not name or not flag.isdigit():
                raise MisuseError(f"{path}: entry {number} is {line[:60]!r}; expected `video.avi 1`")
            row = _in_class(Row(os.path.join(os.fsencode(found[1]), name.strip()), found[1]), tree, folders)
            if HMDB_SPLITS.get(flag) == split[:-1]:
                rows.append(row)
            else:
                others.add(row.path)
    # Of all lists, so that a class without a video in this split keeps the numbers where they are.
    return Annotated(rows, tuple(sorted({found[1] for found in named.values()})), frozenset(others))


def _list_rows(lines: Sequence[bytes], where: StoragePath) -> list[Row]:
    """`path label`, or VideoMAEv2's `path start total label`; lists of folders of frames are refused."""
    plain = not lines or b"\t" in lines[0] or is_video(lines[0].strip()) or is_video(_before_last(lines[0]))
    if plain or (found := V2_LINE.fullmatch(lines[0].strip())) is None:
        if not plain and (found := FRAMES_LINE.fullmatch(lines[0].strip())) is not None:
            raise _frames(where, found[1], found[2])
        return plain_rows(lines, where)
    rows = []
    for number, line in enumerate(lines, 1):
        found = V2_LINE.fullmatch(line.strip())
        if found is None:
            raise MisuseError(
                f"{where}: entry {number} is {line[:60]!r}; expected `path start total label`, as the first"
            )
        if int(found[3]) >= 0:
            raise _frames(where, found[1], found[3])
        rows.append(Row(found[1], path_to_text(found[4])))
    return rows


def _before_last(line: bytes) -> bytes:
    return line.strip().rpartition(b" ")[0].strip()


def _frames(where: StoragePath, path: bytes, frames: bytes) -> MisuseError:
    return MisuseError(
        f"{where}: {path_to_text(path)} with {int(frames)} frames is a folder of pictures, which can't be built from; "
        "list the video files (VideoMAE: `path label`; VideoMAEv2: `path 0 -1 label`)"
    )
