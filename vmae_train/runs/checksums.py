"""The checksums of a checkpoint's files. Its marker holds them; the markers of older versions (format 1) hold none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from vmae_data.errors import DataError, NewerFormatError, NotFoundError
from vmae_data.format import NOT_JSON
from vmae_data.storage import StoragePath, hash_file, read_bytes
from vmae_train.runs.layout import DESCRIPTION, EMA_FILE, MARKER, OPTIMIZER, WEIGHTS

__all__ = ["MARKER_FORMAT", "NEEDED_FILES", "damaged_files", "hash_files", "verify_files"]

MARKER_FORMAT = 2
NEEDED_FILES = (WEIGHTS, DESCRIPTION, OPTIMIZER)  # every checkpoint has these
_FILES = (*NEEDED_FILES, EMA_FILE)


class _Marker(msgspec.Struct):
    """The part of state.json that this module reads. Until format 2 nothing stated a format."""

    format: int = 1
    sha256: dict[str, str] = {}


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of each file of a checkpoint, by name."""
    return {name: hash_file(folder / name) for name in _FILES if (folder / name).is_file()}


def damaged_files(folder: Path, names: Iterable[str] = _FILES, *, where: StoragePath | None = None) -> list[str]:
    """The files of a local folder that differ from its marker; a file that is absent is not compared.

    Without a marker, or with one of an older version, nothing is known: the answer is empty.
    `where` is the folder's name in errors. Raises DataError for an unreadable marker or file, and for a marker that
    lacks checksums.
    """
    sha256 = _checksums(folder, (where or folder) / MARKER)
    present = [name for name in names if name in sha256 and (folder / name).is_file()]
    return [name for name in present if hash_file(folder / name) != sha256[name]]


def _checksums(folder: Path, shown: StoragePath) -> dict[str, str]:
    try:
        marker = msgspec.json.decode(read_bytes(folder / MARKER), type=_Marker)
    except NotFoundError:
        return {}
    except NOT_JSON as error:
        raise DataError(f"{shown}: can't be read ({error}). Use another checkpoint") from error
    if marker.format > MARKER_FORMAT:
        raise NewerFormatError(
            f"{shown}: format {marker.format}, but this version reads up to {MARKER_FORMAT}. Update vmae"
        )
    missing = [name for name in NEEDED_FILES if name not in marker.sha256]
    if marker.format >= MARKER_FORMAT and missing:
        raise DataError(
            f"{shown}: lacks the sha256 of {', '.join(missing)}. The file is damaged. Use another checkpoint"
        )
    return marker.sha256


def verify_files(
    folder: Path, names: Iterable[str] = _FILES, *, where: StoragePath | None = None, advice: str = "Use another copy"
) -> None:
    """Raises DataError if a file differs from the marker of its folder; `where` is the folder's name in the error."""
    for name in damaged_files(folder, names, where=where):
        shown = (where or folder) / name
        raise DataError(f"{shown}: its checksum is not the one in {MARKER}. The file is damaged. {advice}")
