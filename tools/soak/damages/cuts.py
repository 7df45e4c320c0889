"""Files cut short, and files with bytes bent."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.soak.damages.boxes import bent, boundaries
from tools.soak.damages.clips import FRAMES, Bench
from tools.soak.damages.records import Damage, Outcome, failed, made

__all__ = ["CUTS", "FLIPS", "SIZES"]

_LAST = ("moov-last.mp4", "")
_FIRST = ("moov-first.mp4", "-movflags +faststart")
_FRAGMENTS = ("fragments.mp4", "-movflags frag_keyframe+empty_moov")
_OTHERS = (
    ("cut.mkv", ""),
    ("cut.webm", "-c:v libvpx -b:v 1M -g 8"),
    ("cut.avi", "-c:v mpeg4 -q:v 2 -g 8"),
    ("cut.flv", ""),
    ("cut.ts", ""),
    ("cut.mpg", "-c:v mpeg2video -q:v 2 -g 8"),
    ("cut.wmv", "-c:v wmv2 -q:v 2 -g 8"),
    ("cut.ogv", "-c:v libtheora -q:v 9"),
)
_ANY = range(1, FRAMES + 1)
_DECLARE_NOTHING = ("cut.ts", "cut.mpg", "cut.ogv")


def changed(
    group: str,
    name: str,
    clip: tuple[str, str],
    change: Callable[[bytes], bytes],
    *expected: Outcome,
    fast: bool = False,
) -> Damage:
    """A clip's bytes, changed."""

    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(change(bench.clip(*clip).read_bytes()))

    return Damage(group, name, make, expected, Path(clip[0]).suffix, fast=fast)


def _cut_after(place: str) -> Callable[[bytes], bytes]:
    return lambda data: data[: boundaries(data)[place]]


def _share(percent: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * percent / 100)]


# The boxes of the files above in their order, by where they lie. `*` ends a header that holds the boxes after it.
_TRACK = "moov/trak*, moov/trak/tkhd, moov/trak/edts*, moov/trak/edts/elst, moov/trak/mdia*, moov/trak/mdia/mdhd, moov/trak/mdia/hdlr"
_TABLES = [
    "*",
    "/vmhd",
    "/dinf*",
    "/dinf/dref",
    "/stbl*",
    "/stbl/stsd",
    "/stbl/stts",
    "/stbl/stss",
    "/stbl/ctts",
    "/stbl/stsc",
    "/stbl/stsz",
]
_INSIDE_MOOV = ("moov*", "moov/mvhd", *_TRACK.split(", "), *(f"moov/trak/mdia/minf{box}" for box in _TABLES))
_AFTER_TABLES = ("moov/trak/mdia/minf/stbl/stco", "moov/udta*")
_FRAGMENT = "moof*, moof/mfhd, moof/traf*, moof/traf/tfhd, moof/traf/tfdt, moof/traf/trun"


def _place(short: str) -> str:
    """As `boundaries` calls it: moov* → the header of moov."""
    return re.sub(r"(.*)\*(.*)", r"the header of \1\2", short)


def _at_boundaries() -> Iterator[Damage]:
    """A file that ends right after each of its boxes."""
    inside = failed("truncated", "ends inside its box moov")

    def cut(clip: tuple[str, str], shorts: tuple[str, ...], *expected: Outcome, fast: str = "") -> Iterator[Damage]:
        group = f"Cut at a box's end, {clip[0].removesuffix('.mp4').replace('-', ' ')}"
        for short in shorts:
            place = _place(short)
            yield changed(group, f"after {place}", clip, _cut_after(place), *expected, fast=short == fast)

    yield from cut(_LAST, ("ftyp", "free", "mdat"), failed("unreadable", "moov atom not found"), fast="mdat")
    yield from cut(_LAST, _INSIDE_MOOV, inside, fast="moov/trak/mdia/minf/stbl/stsd")
    yield from cut(_LAST, _AFTER_TABLES, made("ends inside its box moov"), fast="moov/udta*")
    yield from cut(_LAST, ("moov/udta/meta",), made())
    yield from cut(_FIRST, ("ftyp",), failed("unreadable", "moov atom not found"))
    yield from cut(_FIRST, (*_INSIDE_MOOV, *_AFTER_TABLES), inside)
    yield from cut(_FIRST, ("moov/udta/meta", "free"), failed("undecodable", "partial file"), fast="free")
    yield from cut(_FIRST, ("mdat",), made())
    yield from cut(_FRAGMENTS, ("ftyp",), failed("unreadable", "moov atom not found"))
    fragmented = [box for box in _INSIDE_MOOV if not re.search("edts|stss|ctts", box)]
    yield from cut(_FRAGMENTS, (*fragmented, *_AFTER_TABLES, "moov/mvex*", "moov/mvex/trex"), inside)
    yield from cut(_FRAGMENTS, ("moov/udta/meta",), failed("undecodable"))
    # ffmpeg puts the frames up to the second key frame that it sees into the first fragment.
    for number, frames in ((1, 0), (2, 2), (3, 10), (4, 18)):
        nth = "" if number == 1 else f" no. {number}"
        boxes = tuple(f"{box}{nth}" for box in _FRAGMENT.split(", ") if not box.endswith("trun"))
        in_moof = made("ends inside its box moof", frames=frames) if frames else failed("truncated", "box moof")
        yield from cut(_FRAGMENTS, boxes, in_moof)
        without = failed("truncated" if frames else "undecodable")
        yield from cut(_FRAGMENTS, (f"moof/traf/trun{nth}",), without)
        yield from cut(_FRAGMENTS, (f"mdat{nth}",), made(frames=(2, 10, 18, 25)[number - 1]))
    yield from cut(_FRAGMENTS, ("mfra",), made())


def _at_shares() -> Iterator[Damage]:
    """A file cut at a part of its bytes. From 90 % of its time on it is made, with a remark."""
    for clip in (_FIRST, *_OTHERS):
        suffix = clip[0].rpartition(".")[2]
        for percent in (1, 10, 50, 80, 88, 95, 99.5):
            name = f"{suffix}, the first {percent:g} %"
            yield changed(
                "Cut anywhere", name, clip, _share(percent), *_share_outcome(suffix, percent),
                fast=(suffix, percent) in (("mp4", 50), ("mkv", 50), ("avi", 80), ("mkv", 95)),
            )  # fmt: skip


def _share_outcome(suffix: str, percent: float) -> tuple[Outcome, ...]:
    begun = (failed("unreadable"), failed("undecodable"), failed("truncated"))
    if suffix in ("ts", "mpg", "ogv"):
        # These declare no length: nobody can tell a cut one from a short one, so a remark says that.
        return (made("no declared duration", frames=_ANY, right=False), *(begun if percent <= 10 else ()))
    if suffix == "wmv":
        # Its length is not believed by ffmpeg where the file's size isn't that of its header.
        some = made("truncation was not tested", frames=_ANY, right=False)
        return (some, failed("unreadable")) if percent < 99 else (made(frames=_ANY, right=False),)
    if percent <= 10:
        return begun
    if percent < 90:
        return (failed("truncated"),)
    few = range(22, FRAMES + 1)
    return (made("ffmpeg complained", frames=few, right=False), made(frames=few))


def _flip(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rng = random.Random(seed)
        place = rng.randrange(len(data))
        return data[:place] + bytes([data[place] ^ rng.randrange(1, 256)]) + data[place + 1 :]

    return change


def _flips() -> Iterator[Damage]:
    """One byte, anywhere. Codecs hide some, and containers have no sums: what is asked is that no process
    hangs, every frame that is counted decodes, and nine tenths are there or the file is a failure."""
    nearly = range(22, FRAMES + 1)
    whole = made(frames=nearly, right=False)
    noted = tuple(
        made(word, frames=nearly, right=False) for word in ("ffmpeg complained", "no declared", "ends inside")
    )
    bad = tuple(
        map(
            failed,
            ("unreadable", "undecodable", "truncated", "damaged", "no-video", "encode-mismatch", "ffmpeg-failed"),
        )
    )
    for clip in (_LAST, _FRAGMENTS, *_OTHERS):
        # Ogg drops the whole page, a third of this clip, and says so.
        pages = (made("CRC mismatch", frames=_ANY, right=False),) if clip[0] == "cut.ogv" else ()
        for seed in range(10):
            yield changed(
                "A flipped byte", f"{Path(clip[0]).suffix[1:]} {clip[0].split('.')[0]} no. {seed}".replace(" cut ", " "), clip,
                _flip(seed), whole, *noted, *pages, *bad, fast=seed == 0 and clip in (_LAST, _OTHERS[0]),
            )  # fmt: skip


def _zeroed(first: int, last: int) -> Callable[[bytes], bytes]:
    """Zeros from one per cent of the bytes to another: a download that left a hole."""

    def change(data: bytes) -> bytes:
        start, stop = len(data) * first // 100, len(data) * last // 100
        return data[:start] + bytes(stop - start) + data[stop:]

    return change


def _holes() -> Iterator[Damage]:
    lost = (failed("damaged"), failed("truncated"))
    for clip in (_LAST, *_OTHERS):
        suffix = clip[0].rpartition(".")[2]
        yield changed(
            "Bytes lost in the middle",
            f"{suffix}, 5 %",
            clip,
            _zeroed(48, 53),
            made("", frames=_ANY, right=False),
            made("ffmpeg complained", frames=_ANY, right=False),
            made("no declared", frames=_ANY, right=False),
            *lost,
        )
        yield changed(
            "Bytes lost in the middle",
            f"{suffix}, 60 %",
            clip,
            _zeroed(20, 80),
            *lost,
            failed("undecodable"),
            fast=suffix == "mp4",
        )


_RESIZED = [
    "ftyp",
    "free",
    "mdat",
    "moov",
    "mvhd",
    "trak",
    "tkhd",
    "mdia",
    "mdhd",
    "hdlr",
    "minf",
    "stbl",
    "stsd",
    "stts",
    "stsc",
    "stsz",
    "stco",
]


def _sizes() -> Iterator[Damage]:
    """A box that says another size than it has."""
    ends = tuple(made(words) for words in ("", "ends inside", "ffmpeg complained"))
    bad = tuple(map(failed, ("unreadable", "undecodable", "no-video", "truncated", "damaged")))
    for size, told in ((0, "0"), (7, "7, less than its header"), (2**31, "2 GiB"), (2**32 - 1, "2^32 - 1")):
        for box in _RESIZED:
            yield changed(
                "A box of another size", f"{box} of {told} bytes", _LAST,
                lambda data, box=box, size=size: bent(data, box, -8, ">I", size), *ends, *bad,
            )  # fmt: skip


CUTS = (*_at_boundaries(), *_at_shares(), *_holes())
FLIPS = tuple(_flips())
SIZES = tuple(_sizes())
