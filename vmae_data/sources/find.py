"""Row 1. A folder of class folders, a listing, or a data set's annotations → SourceVideo(key, path, label)."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.format import Label, key_of, path_to_text
from vmae_data.labels import label_words
from vmae_data.sources.annotations import Annotated, read_annotations
from vmae_data.sources.listing import Columns, Row
from vmae_data.sources.video_files import Folder, VideoFiles, is_video, suffixes_text, walk_videos
from vmae_data.storage import StoragePath, exists, is_folder, storage_path

__all__ = ["Listing", "SourceVideo", "find_sources", "listing_digest"]

MOST_CLASSES = 1_000_000
CLASS_NUMBER = re.compile(r"\+?0*([0-9]+)(\.0*)?")  # 3.0 is what a table makes of 3 in a column with gaps
WHOLE_NUMBER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)


class SourceVideo(NamedTuple):
    """One source: its key, its path relative to the listing, and its label, if it has one."""

    key: str
    path: bytes
    label: Label | None


class Listing(NamedTuple):
    """All sources of a data set, and the folder that their paths start from.

    `unlisted` are the videos of the folder that its annotations don't name, sorted.
    """

    folder: Folder
    sources: tuple[SourceVideo, ...]
    classes: tuple[str, ...]
    unlisted: tuple[bytes, ...] = ()


def find_sources(
    source: str,
    classes: tuple[str, ...] = (),
    *,
    annotations: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
) -> Listing:
    """Read a folder, a folder and its annotations, or a listing.

    `classes` fixes the numbers of the classes; left out, they are those of a file beside the annotations, else
    integers are kept and names sorted. `split` chooses among the annotations' rows.
    Raises MisuseError for a path that is neither, a format that is not known, contradictory labels, or nothing found.
    """
    where = storage_path(source)
    columns = columns or Columns()
    unlisted: tuple[bytes, ...] = ()
    from_file = exists(where)
    folder: Folder
    if not from_file and is_folder(where):
        folder = _resolved(where)
        tree = VideoFiles(folder)
        if annotations is None:
            found = Annotated(_class_folders(folder))
        else:
            found = read_annotations(storage_path(annotations), tree, split, columns, by_stem=True)
            unlisted = tuple(sorted(tree.paths - {row.path for row in found.rows} - found.others))
    elif from_file:
        if annotations is not None:
            raise MisuseError(f"{source}: is a file; --annotations goes with the folder of the videos")
        if is_video(os.fsencode(where.name)):
            raise MisuseError(f"{source}: is a single video; name its folder, or a listing of videos")
        folder = _resolved(where.resolve().parent)
        found = read_annotations(where, VideoFiles(folder), split, columns, by_stem=False)
    else:
        raise MisuseError(f"{source}: neither a folder of videos nor a listing; check the path")
    if not found.rows and (from_file or annotations is not None):
        raise MisuseError(
            f"{annotations or source}: has no rows{f' of --split {split}' if split else ''}; list the videos"
        )
    if not found.rows:
        raise MisuseError(f"{source}: no videos found (looked for {suffixes_text()}); check the path")
    rows = _merge(found.rows, annotations or source)
    by_folder = not from_file and annotations is None
    numbered = _number(rows, classes or found.classes, annotations or source, values=not by_folder)
    sources = tuple(
        SourceVideo(key_of(row.path), row.path, label) for row, label in zip(rows, numbered.labels, strict=True)
    )
    return Listing(folder, sources, numbered.classes, unlisted)


def _resolved(where: StoragePath) -> Folder:
    return os.fsencode(where.resolve()) if isinstance(where, Path) else where


def _class_folders(folder: Folder) -> list[Row]:
    """Every video below a folder; its class is the first folder of its path."""
    rows = []
    for path in walk_videos(folder):
        first, slash, _ = path.partition(b"/")
        rows.append(Row(path, path_to_text(first) if slash else None))
    return rows


def _merge(rows: Sequence[Row], source: str) -> list[Row]:
    """A path listed twice is one sample; with two labels it is an error."""
    found: dict[bytes, Row] = {}
    for row in rows:
        before = found.setdefault(row.path, row)
        if before.label != row.label:
            raise MisuseError(
                f"{source}: {path_to_text(row.path)} is listed with two labels, {before.label!r} and {row.label!r}; "
                'keep one, or give both in one row as a list, ["a", "b"]'
            )
    return list(found.values())


class _Numbered(NamedTuple):
    """A label for every row, and the classes that they number."""

    labels: list[Label | None]
    classes: tuple[str, ...]


def _number(rows: Sequence[Row], classes: tuple[str, ...], source: str, *, values: bool) -> _Numbered:
    """Labels as numbers. All decimal integers: kept; all numbers, not all integers: `values`; else names.

    Where one row has several classes, each row has a tuple of them, ascending, each once.
    """
    names = sorted({name for row in rows for name in _each(row)}, key=lambda n: n.encode("utf-8", "surrogateescape"))
    if values:
        _refuse_not_finite(rows, names, classes, source)
    if values and _are_values(names, source):
        return _values(rows, classes, source)
    digits = {name: match[1] for name in names if (match := CLASS_NUMBER.fullmatch(name))}
    if len(digits) == len(names):
        # By its length first: a text of thousands of digits is not made a number.
        large = next((n for n in digits.values() if len(n) > len(str(MOST_CLASSES)) or int(n) >= MOST_CLASSES), None)
        if large is not None:
            raise MisuseError(
                f"{source}: label {large[:30]}: class numbers end at {MOST_CLASSES - 1}; number them from 0"
            )
        found = {name: int(number) for name, number in digits.items()}
        highest = max(found.values(), default=-1)
        known = classes or tuple(str(n) for n in range(highest + 1))
        numbers = {name: n for name, n in found.items() if n < len(known)}
    else:
        known = classes or tuple(names)
        numbers = {name: n for n, name in enumerate(known)}
    beyond = next((name for name in names if name not in numbers), None)
    if beyond is not None:
        raise MisuseError(
            f"{source}: class {beyond!r} is not among the {len(known)} given classes "
            f"({', '.join(known[:5])}…); mend the labels or --classes"
        )
    several = any(isinstance(row.label, tuple) for row in rows)
    return _Numbered([_class_label(row, numbers, several=several) for row in rows], known if names else classes)


def _class_label(row: Row, numbers: dict[str, int], *, several: bool) -> Label | None:
    if row.label is None:
        return None
    label = sorted({numbers[name] for name in _each(row)})
    return tuple(label) if several else label[0]


def _refuse_not_finite(rows: Sequence[Row], names: Sequence[str], classes: tuple[str, ...], source: str) -> None:
    """NaN among numbers is a missing value, not the name of a class."""
    odd = {name for name in names if NOT_FINITE.fullmatch(name)} - set(classes)
    if not odd or not all(name in odd or NUMBER.fullmatch(name) for name in names):
        return
    row = next(row for row in rows if odd & set(_each(row)))
    raise MisuseError(
        f"{source}: {path_to_text(row.path)} has the label {min(odd & set(_each(row)))}, where the others are numbers; "
        "leave the field empty where a video has none, or leave the row out"
    )


def _are_values(names: Sequence[str], source: str) -> bool:
    """Whether these labels are values for regression. Raises MisuseError for a negative class number."""
    if not names or not all(map(NUMBER.fullmatch, names)) or all(map(CLASS_NUMBER.fullmatch, names)):
        return False
    if not all(map(WHOLE_NUMBER.fullmatch, names)):
        return True
    negative = next((name for name in names if name.startswith("-")), None)
    if negative is not None:
        raise MisuseError(
            f"{source}: label {negative}: class numbers start at 0; leave the field empty where a video has no label"
        )
    return False


def _each(row: Row) -> tuple[str, ...]:
    """The labels of a row, one by one."""
    return row.label if isinstance(row.label, tuple) else () if row.label is None else (row.label,)


def _values(rows: Sequence[Row], classes: tuple[str, ...], source: str) -> _Numbered:
    """Values for regression: the same number of them for every video that has any."""
    if classes:
        raise MisuseError(f"{source}: its labels are values, not classes; leave --classes out, or mend the labels")
    labels: list[Label | None] = [
        None if row.label is None else tuple(float(value) for value in _each(row)) for row in rows
    ]
    lengths = {len(label): row for row, label in zip(rows, labels, strict=True) if isinstance(label, tuple)}
    if len(lengths) > 1:
        (a, first), (b, second) = list(lengths.items())[:2]
        raise MisuseError(
            f"{source}: {path_to_text(first.path)} has {a} values, {path_to_text(second.path)} has {b}; "
            "give every video the same number"
        )
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, tuple) and not all(map(math.isfinite, label)):
            raise MisuseError(
                f"{source}: {path_to_text(row.path)} has a value that is too large; expected finite numbers"
            )
    return _Numbered(labels, ())


def listing_digest(listing: Listing) -> str:
    """Of relative paths and labels only: a source that moved is the same data set."""
    digest = hashlib.sha256()
    for line in sorted(_listing_lines(listing)):
        digest.update(line)
    return digest.hexdigest()


def _listing_lines(listing: Listing) -> Iterator[bytes]:
    for source in listing.sources:
        label = label_words(source.label, listing.classes)
        yield f"{path_to_text(source.path)}\t{label}\n".encode("utf-8", "surrogateescape")
