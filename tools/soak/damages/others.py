"""Files that are no video, special files, misleading streams, and names that break shells or patterns."""

from __future__ import annotations

import contextlib
import io
import os
import random
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from tools.soak.damages.clips import Bench
from tools.soak.damages.records import Damage, Outcome, built, failed

__all__ = ["LINKS", "NAMES", "OTHERS", "STREAMS"]

_N = "No video"


def written(name: str, data: bytes, *expected: Outcome, suffix: str = ".mp4", fast: bool = False) -> Damage:
    """A file of exactly these bytes."""

    def make(_bench: Bench, path: Path) -> None:
        path.write_bytes(data)

    return Damage(_N, name, make, expected, suffix, fast=fast)


def by_ffmpeg(
    group: str,
    name: str,
    words: str,
    *expected: Outcome,
    clip: str = "intact.mp4",
    suffix: str = ".mp4",
    fast: bool = False,
) -> Damage:
    """ffmpeg's output for these options; CLIP stands for the path of an intact clip."""

    def make(bench: Bench, path: Path) -> None:
        source = str(bench.clip(clip))
        bench.run(*[word.replace("CLIP", source) for word in words.split()], str(path))

    return Damage(group, name, make, expected, suffix, fast=fast)


def special(name: str, make: Callable[[Bench, Path], None], *expected: Outcome, fast: bool = False) -> Damage:
    return Damage("Links and special files", name, make, expected, fast=fast)


def _zip() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("a.txt", "a")
    return data.getvalue()


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return data.getvalue()


_NONE = failed("unreadable")
_PICTURE = failed("no-video", "a single picture")
_SINE = "-f lavfi -i sine=duration=1"
_UNKNOWN = (failed("unreadable"), failed("undecodable"), failed("no-video"))
OTHERS: tuple[Damage, ...] = (
    written("zero length", b"", failed("empty", "0 bytes"), fast=True),
    written("one byte", b"\0", _NONE),
    written("a text file", b"This is no video.\n" * 50, _NONE, fast=True),
    written(
        "an error page of a web server", b"<!DOCTYPE html><html><title>404 Not Found</title></html>", _NONE, fast=True
    ),
    written("JSON", b'{"error": "rate limit exceeded"}', _NONE),
    written("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", _NONE),
    written("a playlist", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n", _NONE, fast=True),
    written("a concatenation script", b"ffconcat version 1.0\nfile '/etc/passwd'\n", _NONE),
    written("a million zeros", bytes(10**6), _NONE, fast=True),
    written("a million random bytes", random.Random(0).randbytes(10**6), *_UNKNOWN),
    written("a million random bytes named .ts", random.Random(1).randbytes(10**6), *_UNKNOWN, suffix=".ts"),
    written("a million random bytes named .mpg", random.Random(2).randbytes(10**6), *_UNKNOWN, suffix=".mpg"),
    written("a ZIP", _zip(), _NONE),
    written("a tar", _tar(), _NONE),
    written("a program", b"\x7fELF" + bytes(1000), _NONE),
    by_ffmpeg(_N, "a JPEG named .mp4", "-i CLIP -frames:v 1 -f image2 -c:v mjpeg -update 1", _PICTURE, fast=True),
    by_ffmpeg(_N, "a PNG named .mp4", "-i CLIP -frames:v 1 -f image2 -c:v png -update 1", _NONE),
    by_ffmpeg(_N, "audio only, AAC", f"{_SINE} -c:a aac", failed("no-video"), fast=True),
    by_ffmpeg(_N, "audio only, Vorbis in WebM", f"{_SINE} -c:a libvorbis", failed("no-video"), suffix=".webm"),
    by_ffmpeg(_N, "an MP3 named .mp4", f"{_SINE} -c:a libmp3lame -f mp3", _NONE),
    by_ffmpeg(_N, "a WAV named .mp4", f"{_SINE} -f wav", _NONE),
    by_ffmpeg(
        _N,
        "a song with a cover picture",
        f"-i CLIP {_SINE} -map 1:a -map 0:v -c:a aac -frames:v 1 -c:v mjpeg -pix_fmt yuvj420p -disposition:v attached_pic",
        failed("no-video", "cover picture"),
        fast=True,
    ),
)

_S = "Streams"
STREAMS: tuple[Damage, ...] = (
    by_ffmpeg(
        _S, "audio longer than the video", "-i CLIP -f lavfi -i sine=duration=5 -c:v copy -c:a aac", built(), fast=True
    ),
    by_ffmpeg(_S, "audio shorter than the video", "-i CLIP -f lavfi -i sine=duration=0.2 -c:v copy -c:a aac", built()),
    by_ffmpeg(
        _S,
        "audio before the video",
        "-i CLIP -f lavfi -i sine=duration=1 -map 1:a -map 0:v -c:v copy -c:a aac",
        built(),
    ),
    by_ffmpeg(
        _S,
        "a cover picture in addition to the video",
        "-i CLIP -t 0.04 -i CLIP -map 1:v -map 0:v -c:v:0 mjpeg -pix_fmt:v:0 yuvj420p -disposition:v:0 attached_pic -c:v:1 copy",
        built(),
        fast=True,
    ),
    by_ffmpeg(
        _S,
        "two videos: the first one",
        "-i CLIP -map 0:v -map 0:v -c:v:0 copy -c:v:1 mpeg4 -s:v:1 32x32",
        built(size=(48, 32)),
    ),
    by_ffmpeg(
        _S,
        "encrypted (CENC)",
        f"-i CLIP -c copy -encryption_scheme cenc-aes-ctr -encryption_key {'0' * 32} -encryption_kid {'1' * 32}",
        failed("undecodable", "encrypted"),
        fast=True,
    ),
    by_ffmpeg(_S, "starts 1 s late", "-itsoffset 1 -i CLIP -c copy", built(), suffix=".mkv"),
    by_ffmpeg(
        _S, "an edit list that begins in the middle", "-ss 0.5 -i CLIP -c copy", built(frames=range(10, 15)), fast=True
    ),
    by_ffmpeg(_S, "cut to 0.4 s without decoding", "-i CLIP -t 0.4 -c copy", built(frames=range(9, 14))),
    by_ffmpeg(
        _S,
        "no key frame at its start",
        "-i CLIP -c copy -bsf:v noise=drop=lt(n\\,3) -copyinkf",
        built("ffmpeg complained", frames=range(22, 26), right=False),
        built("", frames=range(17, 26), right=False),
        failed("truncated"),
        failed("damaged"),
        suffix=".mkv",
    ),
)


def _intact(bench: Bench) -> bytes:
    return bench.clip("intact.mp4").read_bytes()


def _link_to(target: str) -> Callable[[Bench, Path], None]:
    return lambda _bench, path: path.symlink_to(target)


def _link_to_intact(bench: Bench, path: Path) -> None:
    _intact(bench)
    path.symlink_to((bench.folder / "intact.mp4").resolve())


def _socket(_bench: Bench, path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(path.parent):  # a socket's path must be short
        server.bind(path.name)


LINKS: tuple[Damage, ...] = (
    special("a FIFO", lambda _bench, path: os.mkfifo(path), failed("not-a-file"), fast=True),
    special("a socket", _socket, failed("not-a-file")),
    special("a link to a video", _link_to_intact, built(), fast=True),
    special("a link to nothing", _link_to("nowhere.mp4"), failed("missing"), fast=True),
    special(
        "a link to itself",
        lambda _bench, path: path.symlink_to(path.name),
        failed("unreadable", "symbolic links"),
        fast=True,
    ),
    special("a link to /dev/zero", _link_to("/dev/zero"), failed("not-a-file"), fast=True),
    special("a link to /dev/stdin", _link_to("/dev/stdin"), failed("not-a-file")),
)


def named(what: str, file: bytes, *, fast: bool = True) -> Damage:
    """An intact video with an awkward name."""

    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(_intact(bench))

    return Damage("Names", what, make, (built(),), file=file, fast=fast)


NAMES: tuple[Damage, ...] = (
    named("a new line", b"new\nline.mp4"),
    named("a carriage return and a tab", b"a\r\tb.mp4", fast=False),
    named("quotes", b"it's \"quoted\" `so`.mp4"),
    named("not UTF-8", b"caf\xe9 \xff.mp4"),
    named("a leading dash", b"-rf.mp4"),
    named("an option of ffmpeg", b"-i.mp4", fast=False),
    named("a number pattern", b"%05d %s %%.mp4"),
    named("shell syntax", b"$(reboot); rm -rf ~ & | > x.mp4", fast=False),
    named("a protocol", b"http:..x.mp4", fast=False),
    named("a protocol of ffmpeg", b"concat:a|b.mp4", fast=False),
    named("spaces at both ends", b" a .mp4", fast=False),
    named("a backslash", b"a\\x41\\b.mp4", fast=False),
    named("a colon, comma and brackets", b"a:b,c[0]=d;{e}*?.mp4", fast=False),
    named("other scripts and a joined emoji", "日本語 é👩‍👩‍👧 \u202egnp.mp4".encode(), fast=False),
    named("255 bytes", b"n" * 251 + b".mp4", fast=False),
    named("two suffixes", b"a.tar.mp4", fast=False),
    named("an upper-case suffix", b"A.MP4", fast=False),
    named("a tar's own member name", b"index.json.mp4", fast=False),
)  # fmt: skip
