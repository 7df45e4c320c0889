"""Listings in JSON → one object per entry: an array, one object per line, or one object with a key per video."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.sources.text import KNOWN_FORMATS
from vmae_data.sources.video_files import is_video
from vmae_data.storage import StoragePath

__all__ = ["json_entries"]


def json_entries(data: bytes, file: StoragePath, path_columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The entries of a listing in JSON. Those of one object for all videos get their key as `path`, or `youtube_id`.

    Raises MisuseError for invalid JSON, and for an array of anything but objects.
    """
    if data.lstrip().startswith(b"["):
        try:
            return msgspec.json.decode(data, type=list[dict[str, Any]])
        except NOT_JSON as error:
            raise MisuseError(f"{file}: is not a JSON array of objects ({error}). {KNOWN_FORMATS}") from error
    try:
        whole = msgspec.json.decode(data, type=dict[str, Any])
    except NOT_JSON:  # several objects
        lines = [line for line in data.splitlines() if line.strip()]
        return [_decode_line(line, file, number) for number, line in enumerate(lines, 1)]
    _refuse_repeated_keys(data, file)
    known = {name.casefold() for name in path_columns}
    return [whole] if known & {name.casefold() for name in whole} else _entries_by_key(whole) or [whole]


def _refuse_repeated_keys(data: bytes, file: StoragePath) -> None:
    """JSON keeps the last of equal keys; here each would be a video's label."""

    def unique(pairs: list[tuple[str, Any]]) -> None:
        repeated = next((key for key, count in Counter(key for key, _ in pairs).items() if count > 1), None)
        if repeated is not None:
            raise MisuseError(f"{file}: names {repeated[:80]!r} twice in one object. Keep one")

    json.loads(data, object_pairs_hook=unique)


def _decode_line(line: bytes, file: StoragePath, number: int) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except NOT_JSON as error:
        raise MisuseError(
            f'{file}: entry {number} is not {{"path": …, "label": …}} ({error}). Correct the listing'
            + ("" if number > 1 else f". {KNOWN_FORMATS}")
        ) from error


def _entries_by_key(whole: dict[str, Any]) -> list[dict[str, Any]]:
    """{"a.mp4": {"label": 3}}, {"a.mp4": 3} and Kinetics' {ID: {"annotations": {…}, "subset": …}}; else nothing."""
    if all(isinstance(value, dict) and isinstance(value.get("annotations"), dict) for value in whole.values()):
        return [_kinetics_entry(key, value) for key, value in whole.items()]
    if not all(is_video(key.encode("utf-8", "surrogatepass")) for key in whole):
        return []
    return [{"path": key, **(value if isinstance(value, dict) else {"label": value})} for key, value in whole.items()]


def _kinetics_entry(video: str, value: dict[str, Any]) -> dict[str, Any]:
    """The columns of Kinetics' CSV."""
    annotation = value["annotations"]
    segment = annotation.get("segment")
    start, end = segment if isinstance(segment, list) and len(segment) == 2 else (None, None)
    columns = {"youtube_id": video, "time_start": start, "time_end": end, "split": value.get("subset")}
    return {"label": annotation.get("label"), **columns}
