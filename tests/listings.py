"""Files to list, annotations of them, and what is found."""

from __future__ import annotations

from pathlib import Path

from vmae_data.sources.find import Listing, find_sources
from vmae_data.sources.listing import Columns

__all__ = ["BOM", "KINETICS_HEADER", "find", "found", "labels_of", "listing_file", "touch", "write"]

BOM = b"\xef\xbb\xbf"


def touch(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(folder)


def write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def find(videos: Path, annotations: str | Path, split: str | None = None, **columns: object) -> Listing:
    return find_sources(str(videos), annotations=str(annotations), split=split, columns=Columns(**columns))  # type: ignore[arg-type]


def labels_of(listing: Listing) -> dict[str, object]:
    """Path → the name of the class, or the label."""
    return {s.path.decode(): listing.classes[s.label] if isinstance(s.label, int) else s.label for s in listing.sources}


KINETICS_HEADER = "label,youtube_id,time_start,time_end,split"


def listing_file(tmp_path: Path, text: str | bytes, name: str = "list.txt") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def found(url: str, classes: tuple[str, ...] = ()) -> list[tuple[str, object]]:
    return [
        (source.path.decode("utf-8", "backslashreplace"), source.label) for source in find_sources(url, classes).sources
    ]
