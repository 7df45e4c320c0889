"""Names: of a source as text, of its samples, and of the files of a data set; lists of names in messages."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable
from pathlib import PurePosixPath

__all__ = [
    "first_names",
    "key_of",
    "marker_name",
    "member_suffix",
    "path_from_text",
    "path_to_line",
    "path_to_text",
    "source_key",
    "tar_name",
]

SLUG_LENGTH = 60
HASH_LENGTH = 16
NOT_OF_SLUG = re.compile(r"[^a-z0-9_-]+")


def path_to_text(path: bytes) -> str:
    r"""A path as text: bytes that are not UTF-8 become \xNN, a backslash is doubled."""
    escaped = path.replace(b"\\", b"\\\\")
    try:
        return escaped.decode("utf-8")
    except UnicodeDecodeError:
        text = escaped.decode("utf-8", "surrogateescape")
    return "".join(f"\\x{ord(c) - 0xDC00:02x}" if "\udc80" <= c <= "\udcff" else c for c in text)


def path_to_line(path: bytes) -> str:
    """`path_to_text` for a file with one path per line: a line break becomes \\x0a, which `path_from_text` reads too."""
    return path_to_text(path).replace("\n", "\\x0a").replace("\r", "\\x0d")


def path_from_text(text: str) -> bytes:
    """The inverse of `path_to_text`."""

    def unescape(match: re.Match[bytes]) -> bytes:
        escape = match.group(0)
        return b"\\" if escape == b"\\\\" else bytes([int(escape[2:], 16)])

    return re.sub(rb"\\\\|\\x[0-9a-f]{2}", unescape, text.encode("utf-8"))


def key_of(path: bytes, segment: int | None = None) -> str:
    """KEY of a source: slug of its stem, a dash, 16 hex digits of its path's sha256 (and -sNNNN)."""
    suffix = "" if segment is None else f"-s{segment:04d}"
    text = path.decode("utf-8", "replace")
    name = text.rpartition("/")[2]
    if name in ("", "."):
        name = PurePosixPath(text).name
    stem, _, ending = name.rpartition(".")
    slug = NOT_OF_SLUG.sub("-", (stem if stem and ending else name).lower())[:SLUG_LENGTH]
    return f"{slug}-{hashlib.sha256(path).hexdigest()[:HASH_LENGTH]}{suffix}"


def source_key(key: str) -> str:
    """The key of a sample's source: the common part of the keys of its segments."""
    return re.sub(r"(?<=-[0-9a-f]{16})-s\d{4,}$", "", key)


def tar_name(shard: int) -> str:
    return f"shard-{shard:06d}.tar"


def marker_name(shard: int) -> str:
    return f"shard-{shard:06d}.json"


def member_suffix(phase: int) -> str:
    """The file extension of a phase's member: mp4, p1.mp4, p2.mp4, …"""
    return "mp4" if phase == 0 else f"p{phase}.mp4"


def first_names(names: Iterable[str], most: int) -> str:
    """A list for a message: `a, b, …` if there are more than `most` names. Reads one name more than it shows."""
    first = list(itertools.islice(names, most + 1))
    return ", ".join(first if len(first) <= most else [*first[:most], "…"])
