"""A folder, on disk or in a bucket → paths of files in it.

Paths are bytes relative to the folder. Those of a bucket are its keys in UTF-8.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from vmae_data.errors import MisuseError
from vmae_data.format import RULES
from vmae_data.names import path_to_text
from vmae_data.storage import RemotePath, file_size, in_threads, list_tree

__all__ = [
    "UNOPENED_SUFFIXES",
    "USUAL_SUFFIXES",
    "VIDEO_SUFFIXES",
    "Folder",
    "file_sizes",
    "is_video",
    "relative_path",
    "remote_path",
    "suffix",
    "video_suffixes",
]

Folder = bytes | RemotePath
"""The folder that the paths of a listing are relative to: on this machine, in a bucket, or on a web server."""

USUAL_SUFFIXES = frozenset(
    b".mp4 .m4v .mov .qt .mkv .webm .avi .mpg .mpeg .m2v .wmv .asf .flv .f4v .3gp .3g2 .ts .m2ts .mts .ogv .mxf".split()
)
# Also containers that the probe opens (encode/probe.py). A folder may hold such a file beside its usual copy.
_SINCE_RULES_2 = frozenset(
    b".gif .vob .vro .evo .mpe .m1v .m2p .m2t .tp .trp .tod .rm .rmvb .rv .divx .xvid .mk3d .mp4v .3gpp .3gp2"
    b" .mj2 .ogm .dv .wtv .nut .ivf .h264 .264 .h265 .265 .hevc".split()
)
_SINCE_RULES_3 = frozenset(b".y4m .mjpeg .mjpg .apng .obu .drc .vc2 .266 .h266 .vvc".split())
VIDEO_SUFFIXES = USUAL_SUFFIXES | _SINCE_RULES_2 | _SINCE_RULES_3
# Videos that no build opens, also if a listing names them. Playlists and scripts could name any other file. SWF is a
# program. The libraries don't decode animated WebP and AVS2. They invent the frame rate of H.261, H.263 and some GXF.
UNOPENED_SUFFIXES = frozenset(
    b".m3u .m3u8 .mpd .ffconcat .avs .swf .webp .avs2 .avs3 .cavs .gxf .h261 .h263 .vc1 .dnxhd .r3d .braw"
    b" .bik .smk .nsv .nuv".split()
)


def video_suffixes(rules: int = RULES) -> frozenset[bytes]:
    """The suffixes that a folder's videos have by these rules: a plan with older ones finds the same videos again."""
    if rules >= 3:
        return VIDEO_SUFFIXES
    return USUAL_SUFFIXES if rules < 2 else USUAL_SUFFIXES | _SINCE_RULES_2


def is_video(name: bytes) -> bool:
    """Whether the file name has the suffix of a video."""
    return suffix(name) in VIDEO_SUFFIXES


def suffix(name: bytes) -> bytes:
    stem, dot, ending = name[name.rfind(b"/") + 1 :].rpartition(b".")
    return (dot + ending).lower() if stem.strip(b".") else b""  # as os.path.splitext, which takes longer


def remote_path(folder: RemotePath, path: bytes) -> RemotePath:
    """The object at a path. Raises MisuseError for a path that is not UTF-8: no store has such a key."""
    try:
        return folder / path.decode("utf-8")
    except UnicodeDecodeError:
        raise MisuseError(f"{folder}: {path_to_text(path)} is not UTF-8. Keys in a store must be UTF-8") from None


def file_sizes(folder: Folder, paths: Sequence[bytes]) -> list[int | None]:
    """The size of each file in bytes, None for a missing file. Lists a bucket once; asks a web server for each file."""
    if isinstance(folder, bytes):
        return [_local_size(os.path.join(folder, path)) for path in paths]
    if folder.is_web:
        return list(in_threads(file_size, (remote_path(folder, path) for path in paths)))
    sizes = list_tree(folder)
    return [sizes.get(path.decode("utf-8")) for path in paths]


def _local_size(path: bytes) -> int | None:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - bytes paths may not be UTF-8
    except OSError:
        return None


def relative_path(path: bytes, folder: Folder) -> bytes:
    """An absolute or relative path as a path relative to the folder, so that each file has one spelling.

    Removes `..` and `.` from the text and resolves no links. A local folder is absolute and resolved.
    Raises MisuseError for a path outside a store's folder.
    """
    if isinstance(folder, RemotePath):
        return _relative_key(path, folder)
    inside = os.path.normpath(path.removeprefix(folder + b"/"))
    if not os.path.isabs(inside) and inside != b".." and not inside.startswith(b"../"):
        return inside  # as below, but os.path.relpath takes much longer
    relative = os.path.relpath(os.path.join(folder, path), folder)
    if os.path.isabs(path) and relative.startswith(b".."):
        # `folder` is resolved, but `path` may go through a link.
        real = os.path.relpath(os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)), folder)
        return relative if real.startswith(b"..") else real
    return relative


def _relative_key(path: bytes, folder: RemotePath) -> bytes:
    inside = path.removeprefix(f"{folder}/".encode())
    key = os.path.normpath(inside)
    if b"://" in inside or os.path.isabs(key) or key.split(b"/")[0] == b"..":
        raise MisuseError(f"{folder}: {path_to_text(path)} is outside this folder. Use paths relative to the listing")
    remote_path(folder, key)
    return key
