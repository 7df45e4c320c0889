"""Files to list, annotations of them, and what is found."""

from __future__ import annotations

from pathlib import Path

from vmae_data.sources.find import Listing, find_sources
from vmae_data.sources.listing import Columns

__all__ = ["BOM", "KINETICS_HEADER", "find", "labels_of", "touch", "write"]

BOM = b"\xef\xbb\xbf"


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


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
