"""A folder of class folders, a listing, or a data set's annotations → all sources, with key, path and label."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.format import Label, key_of, path_to_text
from vmae_data.labels import label_text
from vmae_data.sources.annotations import Annotations, read_annotations
from vmae_data.sources.listing import Columns, Row
from vmae_data.sources.video_files import VIDEO_SUFFIXES, Folder, VideoFiles, is_video, walk_videos
from vmae_data.storage import StoragePath, exists, is_folder, storage_path

__all__ = ["Listing", "SourceVideo", "find_sources", "listing_digest"]

MAX_CLASSES = 1_000_000
CLASS_NUMBER = re.compile(r"\+?0*([0-9]+)(\.0*)?")  # tables write 3 as 3.0 in a column with gaps
WHOLE_NUMBER = re.compile(r"[-+]?[0-9]+")
NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?(nan|inf|infinity)", re.IGNORECASE)


class SourceVideo(NamedTuple):
    """One source. The path is relative to the listing's folder."""

    key: str
    path: bytes
    label: Label | None


class Listing(NamedTuple):
    """All sources of a data set, and the folder that their paths are relative to."""

    folder: Folder
    sources: tuple[SourceVideo, ...]
    classes: tuple[str, ...]
    unlisted: tuple[bytes, ...] = ()  # videos of the folder that its annotations don't name, sorted
    num_excluded: int = 0
    unmatched: tuple[bytes, ...] = ()  # paths in the file of exclusions that match no source


def find_sources(
    source: str,
    classes: tuple[str, ...] = (),
    *,
    annotations: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
) -> Listing:
    """Read a folder, a folder and its annotations, or a listing.

    `classes` fixes the class numbers. Without it they come from the annotations, if these number their classes.
    Else integer labels are the numbers, and names are sorted. `split` chooses rows of the annotations.
    Raises MisuseError for a wrong path, an unknown format, contradictory labels, or if no video is found.
    """
    path = storage_path(source)
    columns = columns or Columns()
    unlisted: tuple[bytes, ...] = ()
    is_file = exists(path)
    folder: Folder
    if not is_file and is_folder(path):
        folder = _resolved(path)
        videos = VideoFiles(folder)
        if annotations is None:
            parsed = Annotations(_class_folders(folder))
        else:
            parsed = read_annotations(storage_path(annotations), videos, split, columns, by_stem=True)
            unlisted = tuple(sorted(videos.paths - {row.path for row in parsed.rows} - parsed.other_splits))
    elif is_file:
        if annotations is not None:
            raise MisuseError(f"{source}: is a file. With --annotations, SOURCE is the folder of the videos")
        if is_video(os.fsencode(path.name)):
            raise MisuseError(f"{source}: is a single video. Give its folder, or a listing of videos")
        folder = _resolved(path.resolve().parent)
        parsed = read_annotations(path, VideoFiles(folder), split, columns, by_stem=False)
    else:
        raise MisuseError(f"{source}: is neither a folder of videos nor a listing. Check the path")
    if not parsed.rows and (is_file or annotations is not None):
        raise MisuseError(
            f"{annotations or source}: has no rows{f' of --split {split}' if split else ''}. List the videos in it"
        )
    if not parsed.rows:
        suffixes = " ".join(sorted(suffix.decode() for suffix in VIDEO_SUFFIXES))
        raise MisuseError(f"{source}: has no videos (searched for {suffixes}). Check the path")
    rows = _unique_rows(parsed.rows, annotations or source)
    by_folder = not is_file and annotations is None
    labels, names = _number_labels(rows, classes or parsed.classes, annotations or source, may_be_values=not by_folder)
    sources = tuple(SourceVideo(key_of(row.path), row.path, label) for row, label in zip(rows, labels, strict=True))
    return Listing(folder, sources, names, unlisted)


def _resolved(path: StoragePath) -> Folder:
    return os.fsencode(path.resolve()) if isinstance(path, Path) else path


def _class_folders(folder: Folder) -> list[Row]:
    """Every video below a folder. Its class is the first folder of its path."""
    parts = [path.partition(b"/") for path in walk_videos(folder)]
    return [Row(b"".join(part), path_to_text(part[0]) if part[1] else None) for part in parts]


def _unique_rows(rows: Sequence[Row], source: str) -> list[Row]:
    """A path listed twice is one sample. Raises MisuseError if it has two labels."""
    unique: dict[bytes, Row] = {}
    for row in rows:
        first = unique.setdefault(row.path, row)
        if first.label != row.label:
            raise MisuseError(
                f"{source}: {path_to_text(row.path)} is listed with two labels, {first.label!r} and {row.label!r}. "
                'Keep one, or give both in one row as a list, ["a", "b"]'
            )
    return list(unique.values())


def _number_labels(
    rows: Sequence[Row], classes: tuple[str, ...], source: str, *, may_be_values: bool
) -> tuple[list[Label | None], tuple[str, ...]]:
    """The label of each row as a number, and the class names.

    Decimal integers are class numbers. Other numbers are values, if `may_be_values`. All other labels are names.
    If any row has several classes, every label is a tuple of classes, ascending, each once.
    """
    names = sorted({name for row in rows for name in _each(row)}, key=lambda n: n.encode("utf-8", "surrogateescape"))
    if may_be_values:
        _refuse_not_finite(rows, names, classes, source)
        if _are_values(names, source):
            return _read_values(rows, classes, source), ()
    digits = {name: match[1] for name in names if (match := CLASS_NUMBER.fullmatch(name))}
    if len(digits) == len(names):
        # Check the length first: int() refuses thousands of digits.
        large = next((n for n in digits.values() if len(n) > len(str(MAX_CLASSES)) or int(n) >= MAX_CLASSES), None)
        if large is not None:
            raise MisuseError(
                f"{source}: label {large[:30]}: class numbers end at {MAX_CLASSES - 1}. Number the classes from 0"
            )
        parsed = {name: int(number) for name, number in digits.items()}
        known = classes or tuple(str(n) for n in range(max(parsed.values(), default=-1) + 1))
        numbers = {name: n for name, n in parsed.items() if n < len(known)}
    else:
        known = classes or tuple(names)
        numbers = {name: n for n, name in enumerate(known)}
    unknown = next((name for name in names if name not in numbers), None)
    if unknown is not None:
        raise MisuseError(
            f"{source}: class {unknown!r} is not among the {len(known)} given classes ({', '.join(known[:5])}…). "
            "Correct the labels or --classes"
        )
    several = any(isinstance(row.label, tuple) for row in rows)
    return [_class_label(row, numbers, several=several) for row in rows], known if names else classes


def _each(row: Row) -> tuple[str, ...]:
    """The labels of a row."""
    return row.label if isinstance(row.label, tuple) else () if row.label is None else (row.label,)


def _refuse_not_finite(rows: Sequence[Row], names: Sequence[str], classes: tuple[str, ...], source: str) -> None:
    """NaN among numbers is a missing value, not the name of a class."""
    not_finite = {name for name in names if NOT_FINITE.fullmatch(name)} - set(classes)
    if not not_finite or not all(name in not_finite or NUMBER.fullmatch(name) for name in names):
        return
    row = next(row for row in rows if not_finite & set(_each(row)))
    raise MisuseError(
        f"{source}: {path_to_text(row.path)} has the label {min(not_finite & set(_each(row)))}, but the other labels are "
        "numbers. Leave the field empty if a video has no label, or remove the row"
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
            f"{source}: label {negative}: class numbers start at 0. Leave the field empty if a video has no label"
        )
    return False


def _read_values(rows: Sequence[Row], classes: tuple[str, ...], source: str) -> list[Label | None]:
    """Values for regression. Raises MisuseError unless all labelled videos have the same number of finite values."""
    if classes:
        raise MisuseError(f"{source}: its labels are values, not classes. Remove --classes, or correct the labels")
    labels: list[Label | None] = [None if row.label is None else tuple(map(float, _each(row))) for row in rows]
    lengths = {len(label): row for row, label in zip(rows, labels, strict=True) if isinstance(label, tuple)}
    if len(lengths) > 1:
        (a, first), (b, second) = list(lengths.items())[:2]
        raise MisuseError(
            f"{source}: {path_to_text(first.path)} has {a} values, {path_to_text(second.path)} has {b}. "
            "Give every video the same number of values"
        )
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, tuple) and not all(map(math.isfinite, label)):
            raise MisuseError(
                f"{source}: {path_to_text(row.path)} has a value that is too large. Expected finite numbers"
            )
    return labels


def _class_label(row: Row, numbers: dict[str, int], *, several: bool) -> Label | None:
    if row.label is None:
        return None
    label = sorted({numbers[name] for name in _each(row)})
    return tuple(label) if several else label[0]


def listing_digest(sources: Sequence[SourceVideo], classes: Sequence[str]) -> str:
    """A digest of the relative paths and labels. It stays the same if the folder moves."""
    lines = (
        f"{path_to_text(source.path)}\t{label_text(source.label, classes)}\n".encode("utf-8", "surrogateescape")
        for source in sources
    )
    digest = hashlib.sha256()
    for line in sorted(lines):
        digest.update(line)
    return digest.hexdigest()
