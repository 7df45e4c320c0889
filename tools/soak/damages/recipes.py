"""Sources that only some recipes build wrong: at a rate, and without encoding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.soak.damages.clips import Bench
from tools.soak.damages.records import Damage, Outcome, built
from tools.soak.damages.timing import JUMPS

__all__ = ["AT_A_RATE", "COPIED", "JUMPS_AT_A_RATE"]


def _clip(
    group: str, name: str, file: str, options: str, outcome: Outcome, recipe: tuple[str, ...], source: str = ""
) -> Damage:
    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(bench.clip(file, options, source=source).read_bytes())

    return Damage(group, name, make, (outcome,), Path(file).suffix, recipe=recipe)


_R = "At a rate of 7.5 frames a second"
_RATE = ("rate=7.5", "crf=18", "short_side=32")
_FOURTH = built(kept=range(0, 25, 4))
_SLOW_RATE = ("rate=0.5", "crf=18", "short_side=32")


def _at_30(name: str, file: str, options: str) -> Damage:
    """A clock of milliseconds tells 33, 67, 100 ms: no frame is exactly at the tick where it belongs."""
    return _clip(_R, f"30 frames a second, {name}", file, options, _FOURTH, _RATE, "-r 30")


AT_A_RATE: tuple[Damage, ...] = (
    _at_30("H.264 in mp4", "thirty.mp4", "-bf 0"),
    _at_30("H.264 in Matroska", "thirty.mkv", "-bf 0"),
    _at_30("H.264 with B frames in Matroska", "thirty-b.mkv", ""),
    _at_30("VP9 in WebM", "thirty.webm", "-c:v libvpx-vp9 -b:v 1M -cpu-used 8 -deadline realtime"),
    _at_30("MPEG-4 in Matroska", "thirty-4.mkv", "-c:v mpeg4 -q:v 2"),
    _at_30("H.264 in FLV", "thirty.flv", "-bf 0"),
    _at_30("WMV in ASF", "thirty.wmv", "-c:v wmv2 -q:v 2"),
    _clip(_R, "60 frames a second, H.264 in Matroska", "sixty.mkv", "-bf 0", built(kept=range(0, 25, 8)), _RATE, "-r 60"),
    _clip(_R, "15 frames a second, H.264 in FLV", "fifteen.flv", "-bf 0", built(kept=range(0, 25, 2)), _RATE, "-r 15"),
    *(
        _clip(
            "At a rate of 0.5 frames a second", f"2 frames a second, {name}", file, options,
            built(kept=range(0, 25, 4)), _SLOW_RATE, "-r 2",
        )
        for name, file, options in (
            ("MPEG-4 in AVI", "two.avi", "-c:v mpeg4 -q:v 2"),
            ("H.264 in Matroska", "two.mkv", "-bf 0"),
            ("MJPEG in mov", "two.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
        )
    ),
)  # fmt: skip

_W = "Time stamps that jump, at a rate of 5 frames a second"


def _at_5(damage: Damage) -> Damage:
    """The same source, whose clips have 25 frames a second. Every 5th frame shows that its times are the right ones."""
    (outcome,) = damage.expected
    kept = range(0, outcome.frames.start, 5)
    return damage._replace(group=_W, recipe=("rate=5", *_RATE[1:]), expected=(outcome._replace(kept=kept),))


JUMPS_AT_A_RATE = tuple(map(_at_5, JUMPS))

_C = "Packets copied"
_COPY = ("profile=copy", "stride=1", "short_side=64")


def _copied(name: str, words: str, suffix: str, outcome: Outcome, options: str = "") -> Damage:
    make = _remux(words, options)
    return Damage(_C, name, make, (outcome,), suffix, recipe=_COPY)


def _remux(words: str, options: str) -> Callable[[Bench, Path], None]:
    def make(bench: Bench, path: Path) -> None:
        source = bench.clip(f"copied{options.replace(' ', '')}.mp4", options)
        bench.run(*[word.replace("CLIP", str(source)) for word in words.split()], str(path))

    return make


COPIED: tuple[Damage, ...] = (
    _copied("an intact mp4", "-i CLIP -c copy", ".mp4", built(profile="copy")),
    _copied("an intact Matroska", "-i CLIP -c copy", ".mkv", built(profile="copy")),
    _copied("shifted by half a second, Matroska", "-itsoffset 0.5 -i CLIP -c copy", ".mkv", built()),
    _copied("shifted by half a second back, Matroska", "-i CLIP -c copy -output_ts_offset -0.5", ".mkv", built()),
    _copied("shifted by half a second back, FLV", "-i CLIP -c copy -output_ts_offset -0.5", ".flv", built()),
    _copied("shifted by a day, TS", "-i CLIP -c copy -output_ts_offset 86400", ".ts", built("no declared duration")),
    _copied("without B frames, shifted back, Matroska", "-i CLIP -c copy -output_ts_offset -0.3", ".mkv", built(), "-bf 0"),
    _copied(
        "uneven times, Matroska", "-i CLIP -c copy -bsf:v setts=ts=TS+mod(N\\,3)*5", ".mkv", built(), "-bf 0",
    ),
    _copied(
        "gray", "-i CLIP -c:v libx264 -pix_fmt gray -crf 5", ".mp4", built(profile="copy", luma="format=gray"),
    ),
    *(
        _copied(f"gradual refresh, {suffix[1:]}", f"-i CLIP -c:v libx264 -x264-params intra-refresh=1:keyint={keyint}", suffix, built(profile="h264", right=False))
        for suffix, keyint in ((".mp4", 12), (".mkv", 12), (".flv", 8))
    ),
    _copied("10 bits", "-i CLIP -c:v libx264 -pix_fmt yuv420p10le -crf 5", ".mp4", built(profile="h264")),
    _copied("MPEG-4", "-i CLIP -c:v mpeg4 -q:v 2", ".mp4", built(profile="h264")),
    _copied("turned by 90 degrees", "-display_rotation 90 -i CLIP -c copy", ".mp4", built(profile="h264", right=False)),
)  # fmt: skip
