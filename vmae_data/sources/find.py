"""A folder of class folders, a listing, or a data set's annotations → all sources, with key, path and label."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.format import RULES, Label
from vmae_data.labels import label_text
from vmae_data.names import first_names, key_of, path_to_text
from vmae_data.recipes import did_you_mean
from vmae_data.sources.annotations import Annotations, read_annotations
from vmae_data.sources.find_files import VideoFiles
from vmae_data.sources.listing import PATH_COLUMNS, Columns, ListingText, Row, read_listing, table_rows
from vmae_data.sources.near_names import missing_notes, near_names, near_pairs
from vmae_data.sources.video_files import USUAL_SUFFIXES, Folder, is_video
from vmae_data.storage import StoragePath, exists, is_folder, storage_path

__all__ = ["Listing", "SourceVideo", "class_number", "find_sources", "listed_urls", "listing_digest"]

MAX_CLASSES = 1_000_000
CLASS_NUMBER = re.compile(r"\+?0*([0-9]+)(\.0*)?")  # tables write 3 as 3.0 in a column with gaps
MAX_NOTES, MAX_SHOWN = 3, 5
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
    class_folders: tuple[str, ...] = ()  # the folder of each class, if the names of folders are the classes
    unlisted: tuple[bytes, ...] = ()  # videos of the folder that its annotations don't name, sorted
    num_excluded: int = 0
    unmatched: tuple[bytes, ...] = ()  # paths in the file of exclusions that match no source
    notes: tuple[str, ...] = ()  # on what was left out or looks wrong, for people to see
    warnings: tuple[str, ...] = ()  # on folders without permission: their videos are missing


def find_sources(
    source: str,
    classes: tuple[str, ...] = (),
    *,
    annotations: str | None = None,
    split: str | None = None,
    columns: Columns | None = None,
    rules: int = RULES,
) -> Listing:
    """Read a folder, a folder and its annotations, or a listing.

    `classes` fixes the class numbers. Without it they come from the annotations, if these number their classes.
    Else integer labels are the numbers, and names are sorted. `split` chooses rows of the annotations.
    `rules` are those of the plan: they say which suffixes are those of videos.
    Raises MisuseError for a wrong path, an unknown format, contradictory labels, or if no video is found.
    """
    path = storage_path(source)
    columns = columns or Columns()
    is_file = exists(path)
    if is_file and annotations is not None:
        raise MisuseError(f"{source}: is a file. With --annotations, SOURCE is the folder of the videos")
    if is_file and is_video(os.fsencode(path.name)):
        raise MisuseError(f"{source}: is a single video. Give its folder, or a listing of videos")
    if not is_file and not is_folder(path):
        raise MisuseError(f"{source}: is neither a folder of videos nor a listing. Check the path")
    folder = _resolved(path.resolve().parent if is_file else path)
    videos = VideoFiles(folder, rules)
    file = source if is_file else annotations
    if file is None:
        parsed = Annotations(_class_folders(videos.found.videos))
    else:
        parsed = read_annotations(storage_path(file), videos, split, columns, by_stem=not is_file)
    if not parsed.rows:
        raise _no_videos(source, file, split, videos)
    rows = _unique_rows(parsed.rows, file or source)
    labels, names = _number_labels(rows, classes or parsed.classes, file or source, by_folder=file is None)
    sources = tuple(SourceVideo(key_of(row.path), row.path, label) for row, label in zip(rows, labels, strict=True))
    listing = Listing(folder, sources, names)
    if file is None and not classes:
        folder_of = {label: str(row.label) for row, label in zip(rows, labels, strict=True)}
        listing = listing._replace(class_folders=tuple(folder_of[number] for number in range(len(names))))
    if not is_file:
        unlisted = videos.paths - {row.path for row in parsed.rows} - parsed.other_splits
        listing = listing._replace(
            unlisted=tuple(sorted(unlisted)),
            notes=tuple(f"{source}: {note}" for note in videos.found.notes()),
            warnings=tuple(f"{source}: {warning}" for warning in videos.found.warnings()),
        )
    notes = () if classes or parsed.classes else _class_notes(listing, file or source)
    missing = missing_notes([row.path for row in rows], videos, file, walked=not is_file) if file is not None else ()
    return listing._replace(notes=(*listing.notes, *notes, *missing))


def listed_urls(listing: Path) -> list[str]:
    """The URLs of a local listing whose paths are all URLs; else none. Raises MisuseError for a mix, and for a wrong one."""
    content = read_listing(listing, Columns())
    if isinstance(content, ListingText):
        listed = [line.split(None, 1)[0] for line in content.lines]
    elif any(content.find_column(name) for name in PATH_COLUMNS):
        listed = [row.path for row in table_rows(content, Columns(), listing)]
    else:  # annotations of a data set
        return []
    are_urls = [b"://" in path for path in listed]
    if not all(are_urls):
        if any(are_urls):
            local = path_to_text(listed[are_urls.index(False)])
            raise MisuseError(f"{listing}: mixes URLs and paths, such as {local!r}. Make a listing of each")
        return []
    urls = [path_to_text(path) for path in listed]
    for url in urls:
        storage_path(url)
    return urls


def _no_videos(source: str, file: str | None, split: str | None, videos: VideoFiles) -> MisuseError:
    if file is not None:
        return MisuseError(f"{file}: has no rows{f' of --split {split}' if split else ''}. List the videos in it")
    suffixes = " ".join(sorted(suffix.decode() for suffix in USUAL_SUFFIXES))
    notes = "".join(f". {note}" for note in (*videos.found.warnings(), *videos.found.notes()))
    return MisuseError(f"{source}: has no videos (searched for {suffixes} …). Check the path{notes}")


def _resolved(path: StoragePath) -> Folder:
    return os.fsencode(path.resolve()) if isinstance(path, Path) else path


def _class_folders(videos: Sequence[bytes]) -> list[Row]:
    """Every video below a folder. Its class is the first folder of its path."""
    parts = [path.partition(b"/") for path in videos]
    return [Row(b"".join(part), path_to_text(part[0]) if part[1] else None) for part in parts]


def _unique_rows(rows: Sequence[Row], source: str) -> list[Row]:
    """A path listed twice is one sample. Raises MisuseError if it has two labels, and for a path that no file has."""
    unique: dict[bytes, Row] = {}
    for row in rows:
        if b"\0" in row.path:  # JSON and Parquet can hold one
            raise MisuseError(
                f"{source}: path {row.path[:80]!r} has a NUL character, which no file's name has. Correct it"
            )
        first = unique.setdefault(row.path, row)
        if first.label != row.label:
            raise MisuseError(
                f"{source}: {path_to_text(row.path)} is listed with two labels, {first.label!r} and {row.label!r}. "
                'Keep one, or give both in one row as a list, ["a", "b"]'
            )
    return list(unique.values())


def _number_labels(
    rows: Sequence[Row], classes: tuple[str, ...], source: str, *, by_folder: bool
) -> tuple[list[Label | None], tuple[str, ...]]:
    """The label of each row as a number, and the class names.

    Decimal integers are class numbers; those of folders only if they are 0 to N-1. Other numbers of a listing are values.
    All other labels are names.
    If any row has several classes, every label is a tuple of classes, ascending, each once.
    """
    names = sorted({name for row in rows for name in _each(row)}, key=lambda n: n.encode("utf-8", "surrogateescape"))
    if not by_folder:
        _refuse_not_finite(rows, names, classes, source)
        if _are_values(names, source):
            return _read_values(rows, classes, source), ()
    digits = {name: match[1] for name in names if (match := CLASS_NUMBER.fullmatch(name))}
    if len(digits) == len(names) and not _are_names(digits, classes, by_folder=by_folder):
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
    unknown = min((name for name in names if name not in numbers), key=lambda name: name in known, default=None)
    if unknown is not None:
        hint = "".join(f", but {near!r} differs only in case or accents" for _, near in near_names([unknown], known))
        question = "" if hint else did_you_mean(difflib.get_close_matches(unknown, known, n=2))
        raise MisuseError(
            f"{source}: class {unknown!r} is not among the {len(known)} given classes ({first_names(known, MAX_SHOWN)}){hint}."
            f"{question} Correct the labels or --classes"
        )
    several = any(isinstance(row.label, tuple) for row in rows)
    return [_class_label(row, numbers, several=several) for row in rows], known if names else classes


def _are_names(digits: dict[str, str], classes: tuple[str, ...], *, by_folder: bool) -> bool:
    """Whether labels of digits are names: angles and years as folders, or numbers that only fit the names of `classes`."""
    if classes and set(digits) <= set(classes):
        return by_folder or any(
            len(number) > len(str(MAX_CLASSES)) or int(number) >= len(classes) for number in digits.values()
        )
    return by_folder and not classes and sorted(map(int, digits.values())) != list(range(len(digits)))


def class_number(name: str) -> str:
    """A class number as the classes write it (`01` and `1.0`: 1); any other name as it is."""
    match = CLASS_NUMBER.fullmatch(name)
    return match[1] if match else name


def _class_notes(listing: Listing, source: str) -> list[str]:
    """Notes on class numbers without a video, and on names that nearly match."""
    used = {number for one in listing.sources if (label := one.label) is not None for number in _class_numbers(label)}
    notes = [
        f"{source}: the classes {a!r} and {b!r} differ only in case or accents. Correct the labels if they are one class"
        for a, b in near_pairs(listing.classes)[:MAX_NOTES]
    ]
    digits = [name for name in listing.classes if CLASS_NUMBER.fullmatch(name)]
    if digits and len(digits) < len(listing.classes):
        name = next(name for name in listing.classes if name not in digits)
        notes.append(
            f"{source}: {len(digits)} of {len(listing.classes)} labels are numbers, but others, such as {name!r}, are not. "
            "All are taken as names, and numbered in sorted order"
        )
    unused = [name for number, name in enumerate(listing.classes) if number not in used]
    if unused:
        notes.append(
            f"{source}: {len(unused)} of {len(listing.classes)} class numbers have no video "
            f"({first_names(unused, MAX_SHOWN)}). "
            "Check that the classes count from 0"
        )
    return notes


def _class_numbers(label: Label) -> tuple[float, ...]:
    return label if isinstance(label, tuple) else (label,)


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
