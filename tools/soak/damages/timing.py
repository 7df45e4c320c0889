"""Damaged first packets, cuts before a key frame, durations, time stamps and tracks, in several containers and codecs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av

from tools.soak.damages.clips import Bench
from tools.soak.damages.mp4_boxes import patched
from tools.soak.damages.records import Damage, Outcome, built, failed

__all__ = ["ENCRYPTED", "FIRST_FRAMES", "JUMPS", "TRACKS", "WRONG_TIMES"]


def made(
    group: str,
    name: str,
    clip: str,
    options: str,
    change: Callable[[bytes], bytes],
    *expected: Outcome,
    source: str = "",
    size: str = "96x64",
    suffix: str = "",
) -> Damage:
    """A clip whose bytes `change` alters."""

    def make(bench: Bench, path: Path) -> None:
        path.write_bytes(change(bench.clip(clip, options, source=source, size=size).read_bytes()))

    return Damage(group, name, make, expected, suffix or Path(clip).suffix)


def remuxed(group: str, name: str, words: str, *expected: Outcome, clip: str, options: str, suffix: str) -> Damage:
    """ffmpeg's output for these options; CLIP stands for the path of a clip with these encoder options."""

    def make(bench: Bench, path: Path) -> None:
        source = str(bench.clip(clip, options))
        bench.run(*[word.replace("CLIP", source) for word in words.split()], str(path))

    return Damage(group, name, make, expected, suffix)


def _without_first_packet(codec: str, suffix: str, outcome: Outcome, what: str = "first packet") -> Damage:
    """A clip, its first packet all zeros."""

    def make(bench: Bench, path: Path) -> None:
        clip = bench.clip(f"{what}-{codec.split()[0]}{suffix}", f"-c:v {codec}")
        with av.open(str(clip)) as container:
            packet = bytes(next(container.demux(video=0)))
        path.write_bytes(clip.read_bytes().replace(packet, bytes(len(packet)), 1))

    return Damage(_F, f"{what} of {codec.split()[0]} in {suffix[1:]} damaged", make, (outcome,), suffix)


def _cut_before_key_frame(codec: str, suffix: str) -> Damage:
    return remuxed(
        _F,
        f"{codec} in {suffix[1:]}, cut 4 frames before a key frame",
        "-i CLIP -ss 0.08 -c copy -copyinkf",
        built("begins with 4 frames that lack their references", frames=23),
        clip=f"groups-{codec}{suffix}",
        options=f"-c:v {codec} -q:v 2 -g 6 -sc_threshold 1000000000",
        suffix=suffix,
    )


_F = "First frames"
FIRST_FRAMES: tuple[Damage, ...] = (
    *(
        _without_first_packet(codec, suffix, built("ffmpeg complained", frames=24))
        for codec, suffix in (
            ("libx264 -g 1", ".mp4"),
            ("libx264 -g 1", ".mkv"),
            ("libx265 -g 1 -x265-params log-level=error:pools=1", ".mp4"),
            ("mpeg4 -q:v 2 -g 1", ".avi"),
            ("prores -pix_fmt yuv422p10le", ".mov"),
            ("ffv1 -g 1", ".mkv"),
            ("libvpx-vp9 -b:v 1M -g 1 -cpu-used 8 -deadline realtime", ".webm"),
        )
    ),
    *(
        _without_first_packet(codec, suffix, failed("damaged", "of 25 frames"), "first of several key frames")
        for codec, suffix in (
            ("libx264 -g 10 -bf 0", ".mp4"),
            ("libvpx-vp9 -b:v 1M -g 10 -cpu-used 8 -deadline realtime", ".webm"),
        )
    ),
    *(
        _cut_before_key_frame(codec, suffix)
        for codec, suffix in (
            ("mpeg4", ".avi"),
            ("mpeg4", ".mp4"),
            ("wmv2", ".mkv"),
            ("flv", ".flv"),
            ("msmpeg4", ".avi"),
        )
    ),
    remuxed(
        _F,
        "MPEG-4 in AVI without any key frame",
        "-i CLIP -ss 0.08 -c copy -copyinkf",
        built(frames=23, right=False),
        clip="one-group.avi",
        options="-c:v mpeg4 -q:v 2 -g 100",
        suffix=".avi",
    ),
)

_E = "Encrypted"
_KEYS = f"-encryption_scheme cenc-aes-ctr -encryption_key {'0' * 32} -encryption_kid {'1' * 32}"
ENCRYPTED: tuple[Damage, ...] = tuple(
    remuxed(
        _E,
        f"{codec} in {suffix[1:]} (CENC)",
        f"-i CLIP -c copy {_KEYS} -f mp4",
        failed("undecodable", "encrypted"),
        clip=f"keyed-{codec}.mp4",
        options=f"-c:v {codec} {options}",
        suffix=suffix,
    )
    for codec, options, suffix in (
        ("mpeg4", "-q:v 2", ".mp4"),
        ("libx265", "-x265-params log-level=error:pools=1", ".mp4"),
        ("mjpeg", "-q:v 2 -pix_fmt yuvj420p", ".mov"),
    )
)

_D = "Durations and time stamps"
_LONG_AUDIO = "-f lavfi -i sine=d=1.6"
_HOUR_AHEAD = "-c copy -bsf:v setts={0}=if(eq({2}\\,0)\\,{1}+3600/TB\\,{1})"
_PLAIN = {"clip": "plain.mp4", "options": "-bf 0"}


def _hour_ahead(
    field: str, suffix: str, frames: int, which: str = "one frame", number: str = "N-10", words: str = "far"
) -> Damage:
    return remuxed(
        _D,
        f"the {field} of {which} an hour ahead, {suffix[1:]}",
        f"-i CLIP {_HOUR_AHEAD.format(field, field.upper(), number)}",
        built(f"the time stamps of {frames} frames are {words}"),
        **_PLAIN,
        suffix=suffix,
    )


def _days_ahead(suffix: str, which: str, condition: str, words: str) -> Damage:
    return remuxed(
        _D,
        f"the pts of {which} 31 hours ahead, {suffix[1:]}",
        f"-i CLIP -c copy -bsf:v setts=pts=if({condition}\\,PTS+111600/TB\\,PTS)",
        built(words),
        **_PLAIN,
        suffix=suffix,
    )


def _longer_audio(name: str, words: str, suffix: str) -> Damage:
    return remuxed(
        _D, f"audio longer than the video, {name}", f"-i CLIP {_LONG_AUDIO} {words}", built(), **_PLAIN, suffix=suffix
    )


def _without_track_tags(bench: Bench, path: Path) -> None:
    bench.run("-i", str(bench.clip("plain.mp4", "-bf 0")), *_LONG_AUDIO.split(), "-c:v", "copy", str(path))
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))


def _twice(data: bytes) -> bytes:
    return data + data


def _apart(suffix: str, seconds: int, words: str) -> Damage:
    """Two recordings of one clip, joined; the second is stamped `seconds` later."""

    def make(bench: Bench, path: Path) -> None:
        source, joined = str(bench.clip("plain.mp4", "-bf 0")), b""
        for offset in (0, seconds):
            part = bench.folder / f"part-{offset}{suffix}"
            bench.run("-i", source, "-c", "copy", "-output_ts_offset", str(offset), str(part))
            joined += part.read_bytes()
        path.write_bytes(joined)

    outcome = built(words, frames=50, right=False)
    return Damage(_D, f"two recordings {seconds} s apart, joined, {suffix[1:]}", make, (outcome,), suffix)


def _no_rotation(data: bytes) -> bytes:
    return patched(data, "moov/trak/tkhd", 40, ">9i", *[0] * 9)


def _joined(name: str, clip: str, options: str, words: str) -> Damage:
    return made(_D, f"two live files joined, {name}", clip, options, _twice, built(words, frames=50, right=False))


def _second_file(name: str, clip: str, options: str) -> Damage:
    return made(_D, f"two files joined, {name}", clip, options, _twice, built("a second file begins"))


JUMPS: tuple[Damage, ...] = (
    _joined("VP8 in WebM", "live.webm", "-c:v libvpx -b:v 1M -f webm -live 1", "start again 1 times"),
    _joined("VP9 in WebM", "live9.webm", "-c:v libvpx-vp9 -b:v 1M -f webm -live 1", "start again 1 times"),
    _joined("H.264 in Matroska", "live.mkv", "-bf 0 -f matroska -live 1", "start again 1 times"),
    _joined("H.264 in TS", "live.ts", "-bf 0", "no declared duration"),
    _apart(".ts", 100, "ffmpeg leaves the jumps out"),
    _apart(".ts", 36000, "ffmpeg leaves the jumps out"),
    _apart(".m2ts", 100, "ffmpeg leaves the jumps out"),
    _hour_ahead("pts", ".mkv", 1),
    _hour_ahead("ts", ".mkv", 15),
    _hour_ahead("ts", ".flv", 15),
    _hour_ahead("ts", ".mp4", 15),
    *(
        _hour_ahead("ts", suffix, frames, which, number)
        for suffix in (".mp4", ".mkv")
        for frames, which, number in (
            (24, "the first frame", "N"),
            (1, "the last frame", "N-24"),
            (22, "every 10th frame", "mod(N\\,10)"),
        )
    ),
    _hour_ahead("pts", ".mkv", 1, "the first frame", "N"),
    _hour_ahead("pts", ".mkv", 3, "every 10th frame", "mod(N\\,10)"),
    _hour_ahead("pts", ".flv", 1, words="wrong"),
    _hour_ahead("pts", ".flv", 1, "the last frame", "N-24", "wrong"),
    *(
        _days_ahead(".mp4", which, condition, f"of {frames} frames are more than 30 hours off")
        for which, condition, frames in (
            ("the last frame", "eq(N\\,24)", 1),
            ("the last three frames", "gte(N\\,22)", 3),
            ("the last half", "gte(N\\,13)", 12),
        )
    ),
    _days_ahead(".mkv", "the first frame", "eq(N\\,0)", "jump by more than 30 hours 1 times"),
)
WRONG_TIMES: tuple[Damage, ...] = (
    _longer_audio("H.264 in FLV", "-c:v copy -c:a aac", ".flv"),
    _longer_audio("Sorenson H.263 in FLV", "-c:v flv -q:v 2 -c:a libmp3lame -ar 44100", ".flv"),
    _longer_audio("WMV", "-c:v wmv2 -q:v 2 -c:a wmav2", ".wmv"),
    _longer_audio("MPEG-2 in WTV, named .wmv", "-c:v mpeg2video -q:v 2 -c:a mp2 -f wtv", ".wmv"),
    Damage(_D, "audio longer than the video, Matroska without tags of tracks", _without_track_tags, (built(),), ".mkv"),
    *JUMPS,
    # FLV loses the time of the first frame, and a pause of an hour leaves no rate: no frames at a rate are expected.
    _hour_ahead("pts", ".flv", 3, "every 10th frame", "mod(N\\,10)", "wrong"),
    *(
        remuxed(
            _D,
            f"the last three frames an hour later, {suffix[1:]}",
            "-i CLIP -c copy -bsf:v setts=ts=TS+gte(N\\,22)*3600/TB",
            built(),
            **_PLAIN,
            suffix=suffix,
        )
        for suffix in (".mp4", ".mkv", ".flv")
    ),
    _second_file("mp4", "plain.mp4", "-bf 0"),
    _second_file("MJPEG in mov", "joined.mov", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p"),
    _second_file("FLV", "joined.flv", "-bf 0"),
    _second_file("FLV without its size", "joined0.flv", "-bf 0 -flvflags no_duration_filesize"),
    _second_file("WMV", "joined.wmv", "-c:v wmv2 -q:v 2"),
    _second_file("WTV", "joined.wtv", "-c:v mpeg2video -q:v 2"),
    _second_file("IVF", "joined.ivf", "-c:v libvpx -b:v 1M"),
    _second_file("APNG", "joined.apng", "-c:v apng -pix_fmt rgb24"),
    made(
        _D,
        "two files joined, RealMedia",
        "joined.rm",
        "-c:v rv20 -q:v 2 -s 352x288",
        _twice,
        built("a second file begins", frames=range(25, 51), right=False),
    ),
    _second_file("VC-2", "joined.drc", "-c:v vc2 -pix_fmt yuv422p"),
    made(_D, "a frame a minute, MPEG-4 in AVI", "minute.avi", "-c:v mpeg4 -q:v 2", bytes, built(), source="-r 1/60"),
    made(_D, "a frame an hour, MJPEG in AVI", "hour.avi", "-c:v mjpeg -q:v 2", bytes, built(), source="-r 1/3600"),
    *(
        made(_D, f"a frame {often}, {name}", file, options, bytes, built(rate=rate), source=f"-r {rate}")
        for often, name, file, options, rate in (
            ("a minute", "H.264 in Matroska", "minute.mkv", "", "1/60"),
            ("a minute", "MS-MPEG-4 in AVI", "minute-ms.avi", "-c:v msmpeg4 -q:v 2", "1/60"),
            ("in 45 s", "H.264 in FLV", "slow.flv", "-bf 0", "1/45"),
            ("in 10 minutes", "VP9 in WebM", "slow.webm", "-c:v libvpx-vp9 -b:v 1M -cpu-used 8", "1/600"),
            ("an hour", "ProRes in mov", "slow.mov", "-c:v prores -pix_fmt yuv422p10le", "1/3600"),
            ("in 10 minutes", "HEVC in mp4", "slow.mp4", "-c:v libx265 -x265-params log-level=error:pools=1", "1/600"),
        )
    ),
    *(
        made(_D, f"a display matrix of zeros, {suffix[1:]}", f"zeros{suffix}", "", _no_rotation, built())
        for suffix in (".mp4", ".mov", ".3gp")
    ),
    *(
        made(
            _D,
            f"raw DV, {size}, named {suffix}",
            f"{size}.dv",
            f"-c:v dvvideo -pix_fmt {pixels}",
            bytes,
            built("interlaced", rate=rate),
            source=f"-r {rate}",
            size=size,
            suffix=suffix,
        )
        for size, pixels, rate, suffix in (
            ("720x576", "yuv420p", "25", ".mov"),
            ("720x480", "yuv411p", "30000/1001", ".mov"),
            ("720x480", "yuv411p", "30000/1001", ".avi"),
        )
    ),
)

_T = "Tracks"
_TWO = "-i CLIP -i CLIP -map 0:v -map 1:v -c copy -bsf:v:0"


def _unusable_first(name: str, noise: str, suffix: str) -> Damage:
    return remuxed(
        _T,
        f"{name}, {suffix[1:]}",
        f"{_TWO} noise={noise}",
        built("video track 2 of 2 is used", track=1),
        **_PLAIN,
        suffix=suffix,
    )


def _single_picture_first(codec: str, suffix: str) -> Damage:
    """The picture is the track that the container prefers."""

    def make(bench: Bench, path: Path) -> None:
        still = str(bench.clip(f"still-{codec.split()[0]}.nut", f"-c:v {codec}", frames=1))
        words = ["-i", still, "-i", str(bench.clip(_PLAIN["clip"], _PLAIN["options"])), "-map", "0:v", "-map", "1:v"]
        bench.run(*words, "-c", "copy", "-disposition:v:0", "default", "-disposition:v:1", "0", str(path))

    name = f"the first track is a single picture, {codec.split()[0]} in {suffix[1:]}"
    return Damage(_T, name, make, (built("track 1 is a single picture", track=1),), suffix)


def _short_track_first(name: str, suffix: str) -> Damage:
    def make(bench: Bench, path: Path) -> None:
        short = str(bench.clip("short.mp4", "-bf 0", frames=5))
        words = ["-i", short, "-i", str(bench.clip(_PLAIN["clip"], _PLAIN["options"])), "-map", "0:v", "-map", "1:v"]
        bench.run(*words, "-c", "copy", "-disposition:v:0", "0", "-disposition:v:1", "default", str(path))

    return Damage(_T, f"{name}, {suffix[1:]}", make, (built("it is the container's default", track=1),), suffix)


TRACKS: tuple[Damage, ...] = (
    *(
        _single_picture_first(codec, suffix)
        for codec, suffix in (
            ("mjpeg -pix_fmt yuvj420p", ".mp4"),
            ("mjpeg -pix_fmt yuvj420p", ".mov"),
            ("mjpeg -pix_fmt yuvj420p", ".mkv"),
            ("mjpeg -pix_fmt yuvj420p", ".avi"),
            ("png -pix_fmt rgb24", ".mov"),
            ("png -pix_fmt rgb24", ".mkv"),
            ("gif -pix_fmt pal8", ".mov"),
            ("gif -pix_fmt pal8", ".nut"),
        )
    ),
    _short_track_first("the first track is disabled", ".mp4"),
    _short_track_first("the first track is not the default one", ".mkv"),
    _unusable_first("the first track is empty", "drop=1", ".mkv"),
    _unusable_first("the first track is noise", "amount=1", ".mp4"),
    _unusable_first("the first track is noise", "amount=1", ".mkv"),
    _unusable_first("the first track is noise, NUT named", "amount=1 -f nut", ".mkv"),
    remuxed(
        _T,
        "both tracks are noise",
        f"{_TWO} noise=amount=1 -bsf:v:1 noise=amount=1",
        failed("undecodable"),
        **_PLAIN,
        suffix=".mkv",
    ),
)
