"""Files cut short, and files with changed bytes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tools.soak.damages.clips import FRAMES, Bench
from tools.soak.damages.mp4_boxes import boundaries, patched
from tools.soak.damages.records import Damage, Outcome, built, failed

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


def changed(
    group: str,
    name: str,
    clip: tuple[str, str],
    change: Callable[[bytes], bytes],
    *expected: Outcome,
    fast: bool = False,
) -> Damage:
    """A clip whose bytes `change` alters."""

    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(change(bench.clip(*clip).read_bytes()))

    return Damage(group, name, make, expected, Path(clip[0]).suffix, fast=fast)


def _cut_after(name: str) -> Callable[[bytes], bytes]:
    return lambda data: data[: boundaries(data)[name]]


def _share(percent: float) -> Callable[[bytes], bytes]:
    return lambda data: data[: int(len(data) * percent / 100)]


# The boxes of the files above in file order. `*` marks the header of a container.
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


def _boundary(short: str) -> str:
    """The name in `boundaries`: moov* → the header of moov."""
    return re.sub(r"(.*)\*(.*)", r"the header of \1\2", short)


def _at_boundaries() -> Iterator[Damage]:
    """A file that ends right after each of its boxes."""
    inside = failed("truncated", "ends inside its box moov")

    def cut(clip: tuple[str, str], shorts: tuple[str, ...], *expected: Outcome, fast: str = "") -> Iterator[Damage]:
        group = f"Cut at the end of a box, {clip[0].removesuffix('.mp4').replace('-', ' ')}"
        for short in shorts:
            name = _boundary(short)
            yield changed(group, f"after {name}", clip, _cut_after(name), *expected, fast=short == fast)

    yield from cut(_LAST, ("ftyp", "free", "mdat"), failed("unreadable", "moov atom not found"), fast="mdat")
    yield from cut(_LAST, _INSIDE_MOOV, inside, fast="moov/trak/mdia/minf/stbl/stsd")
    yield from cut(_LAST, _AFTER_TABLES, built("ends inside its box moov"), fast="moov/udta*")
    yield from cut(_LAST, ("moov/udta/meta",), built())
    yield from cut(_FIRST, ("ftyp",), failed("unreadable", "moov atom not found"))
    yield from cut(_FIRST, (*_INSIDE_MOOV, *_AFTER_TABLES), inside)
    yield from cut(_FIRST, ("moov/udta/meta", "free"), failed("undecodable", "partial file"), fast="free")
    yield from cut(_FIRST, ("mdat",), built())
    yield from cut(_FRAGMENTS, ("ftyp",), failed("unreadable", "moov atom not found"))
    fragmented = [box for box in _INSIDE_MOOV if not re.search("edts|stss|ctts", box)]
    yield from cut(_FRAGMENTS, (*fragmented, *_AFTER_TABLES, "moov/mvex*", "moov/mvex/trex"), inside)
    yield from cut(_FRAGMENTS, ("moov/udta/meta",), failed("undecodable"))
    # ffmpeg puts all frames before the second key frame into the first fragment.
    for number, frames in ((1, 0), (2, 2), (3, 10), (4, 18)):
        nth = "" if number == 1 else f" no. {number}"
        boxes = tuple(f"{box}{nth}" for box in _FRAGMENT.split(", ") if not box.endswith("trun"))
        in_moof = built("ends inside its box moof", frames=frames) if frames else failed("truncated", "box moof")
        yield from cut(_FRAGMENTS, boxes, in_moof)
        without = failed("truncated" if frames else "undecodable")
        yield from cut(_FRAGMENTS, (f"moof/traf/trun{nth}",), without)
        yield from cut(_FRAGMENTS, (f"mdat{nth}",), built(frames=(2, 10, 18, 25)[number - 1]))
    yield from cut(_FRAGMENTS, ("mfra",), built())


def _at_shares() -> Iterator[Damage]:
    """A file cut at a share of its bytes. With 90 % of its duration it is built, with a note."""
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
        # These formats declare no duration, so a cut file looks like a short one. A note says so.
        return (built("no declared duration", frames=_ANY, right=False), *(begun if percent <= 10 else ()))
    if suffix == "wmv":
        # ffmpeg does not trust its duration if the file size differs from the header's.
        some = built("truncation was not tested", frames=_ANY, right=False)
        return (some, failed("unreadable")) if percent < 99 else (built(frames=_ANY, right=False),)
    if percent <= 10:
        return begun
    if percent < 90:
        return (failed("truncated"),)
    few = range(22, FRAMES + 1)
    return (built("ffmpeg complained", frames=few, right=False), built(frames=few))


def _flip(seed: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        rng = random.Random(seed)
        position = rng.randrange(len(data))
        return data[:position] + bytes([data[position] ^ rng.randrange(1, 256)]) + data[position + 1 :]

    return change


def _flips() -> Iterator[Damage]:
    """One changed byte, anywhere. Codecs hide some changes and containers have no checksums. So the claim is: no
    process hangs, every counted frame decodes, and the file has nine tenths of its frames or is a failure."""
    nearly = range(22, FRAMES + 1)
    intact = built(frames=nearly, right=False)
    noted = tuple(
        built(word, frames=nearly, right=False) for word in ("ffmpeg complained", "no declared", "ends inside")
    )
    bad = tuple(
        map(
            failed,
            ("unreadable", "undecodable", "truncated", "damaged", "no-video", "encode-mismatch", "ffmpeg-failed"),
        )
    )
    for clip in (_LAST, _FRAGMENTS, *_OTHERS):
        # Ogg drops the complete page, a third of this clip, and reports it.
        pages = (built("CRC mismatch", frames=_ANY, right=False),) if clip[0] == "cut.ogv" else ()
        for seed in range(10):
            yield changed(
                "A flipped byte", f"{Path(clip[0]).suffix[1:]} {clip[0].split('.')[0]} no. {seed}".replace(" cut ", " "), clip,
                _flip(seed), intact, *noted, *pages, *bad, fast=seed == 0 and clip in (_LAST, _OTHERS[0]),
            )  # fmt: skip


def _zeroed(first: int, last: int) -> Callable[[bytes], bytes]:
    """Zeros between two percentages of the bytes, as an interrupted download leaves them."""

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
            built("", frames=_ANY, right=False),
            built("ffmpeg complained", frames=_ANY, right=False),
            built("no declared", frames=_ANY, right=False),
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
    """A box with a false size."""
    ends = tuple(built(words) for words in ("", "ends inside", "ffmpeg complained"))
    bad = tuple(map(failed, ("unreadable", "undecodable", "no-video", "truncated", "damaged")))
    for size, text in ((0, "0"), (7, "7, less than its header"), (2**31, "2 GiB"), (2**32 - 1, "2^32 - 1")):
        for box in _RESIZED:
            yield changed(
                "A box with a false size", f"{box} of {text} bytes", _LAST,
                lambda data, box=box, size=size: patched(data, box, -8, ">I", size), *ends, *bad,
            )  # fmt: skip


CUTS = (*_at_boundaries(), *_at_shares(), *_holes())
FLIPS = tuple(_flips())
SIZES = tuple(_sizes())
