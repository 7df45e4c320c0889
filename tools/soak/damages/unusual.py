"""Intact videos with unusual sizes, pixels, codecs, containers and times."""

from __future__ import annotations

from pathlib import Path

from tools.soak.damages.clips import FRAMES, Bench
from tools.soak.damages.records import Damage, Outcome, built, failed

__all__ = ["CONTAINERS", "PICTURES", "TIMES"]


def encoded(
    group: str,
    name: str,
    options: str,
    *expected: Outcome,
    suffix: str = ".mp4",
    size: str = "96x64",
    frames: int = FRAMES,
    source: str = "",
    fast: bool = False,
) -> Damage:
    """A clip that ffmpeg encodes with these options."""

    def make(bench: Bench, path: Path) -> None:
        stem = "".join(c if c.isalnum() else "-" for c in f"{group} {name}")
        clip = bench.clip(f"{stem}{suffix}", options, size=size, frames=frames, source=source)
        path.write_bytes(clip.read_bytes())

    return Damage(group, name, make, expected, suffix, fast=fast)


def rotated(name: str, degrees: int, filters: str, size: str, *expected: Outcome, fast: bool = False) -> Damage:
    """Frames on their side, and a display matrix that turns them upright."""

    def make(bench: Bench, path: Path) -> None:
        turned = bench.clip(f"turned-{degrees}-{size}.mp4", f"-vf {filters}" if filters else "", size=size)
        rotation = ["-display_rotation", str(degrees), "-i", str(turned), "-c", "copy"]
        bench.run(*rotation, "-f", "mov" if path.suffix == ".mov" else "mp4", str(path))

    return Damage("Sizes and pixels", name, make, expected, ".mov", fast=fast)


_P = "Sizes and pixels"
_TEN_BIT = "-c:v libx265 -x265-params log-level=error:pools=1 -pix_fmt yuv420p10le"
PICTURES: tuple[Damage, ...] = (
    encoded(_P, "an ordinary clip", "", built(size=(48, 32)), fast=True),
    encoded(_P, "3 pixels wide", "-pix_fmt yuv444p", failed("too-small", "3 × 64"), size="3x64", fast=True),
    encoded(_P, "1 pixel", "-c:v ffv1", failed("too-small", "1 × 1"), suffix=".mkv", size="1x1"),
    encoded(_P, "16 × 16, the smallest", "", built(size=(16, 16)), size="16x16"),
    encoded(_P, "14 × 64, just below", "", failed("too-small", "14 × 64"), size="14x64"),
    encoded(_P, "odd, 97 × 65", "-c:v libx264 -pix_fmt yuv444p", built(size=(48, 32)), size="97x65", fast=True),
    encoded(_P, "odd and never enlarged, 33 × 31", "-c:v ffv1", built(size=(32, 30)), suffix=".mkv", size="33x31"),
    encoded(_P, "8K, 7680 × 4320", "-preset ultrafast", built(frames=3, size=(56, 32)), size="7680x4320", frames=3),
    encoded(_P, "a strip of 4096 × 16", "", built(size=(4096, 16)), size="4096x16"),
    encoded(_P, "sample aspect 4:3", "-vf setsar=4/3", built(size=(64, 32)), fast=True),
    encoded(_P, "sample aspect 1:2", "-vf setsar=1/2", built(size=(32, 42))),
    encoded(_P, "10 bits, H.264", "-pix_fmt yuv420p10le", built(size=(48, 32)), fast=True),
    encoded(_P, "10 bits, HEVC", _TEN_BIT, built()),
    encoded(_P, "12 bits, HEVC 4:4:4", _TEN_BIT.replace("yuv420p10le", "yuv444p12le"), built()),
    encoded(
        _P,
        "HDR, BT.2020 with PQ",
        _TEN_BIT + " -vf setparams=color_primaries=bt2020:color_trc=smpte2084:colorspace=bt2020nc",
        built("HDR"),
        fast=True,
    ),
    encoded(
        _P,
        "HDR, HLG",
        _TEN_BIT + " -vf setparams=color_primaries=bt2020:color_trc=arib-std-b67:colorspace=bt2020nc",
        built("HDR"),
    ),
    encoded(_P, "4:2:2", "-pix_fmt yuv422p", built()),
    encoded(_P, "4:4:4", "-pix_fmt yuv444p", built()),
    encoded(_P, "grey", "-pix_fmt gray", built()),
    encoded(_P, "full range", "-vf scale=out_range=pc -color_range pc", built()),
    encoded(_P, "RGB, H.264", "-c:v libx264rgb -pix_fmt rgb24 -crf 10", built()),
    encoded(_P, "RGB, 16 bits", "-c:v ffv1 -pix_fmt gbrp16le", built(), suffix=".mkv"),
    encoded(
        _P,
        "alpha, ProRes 4444",
        "-c:v prores_ks -pix_fmt yuva444p10le",
        built("has transparency"),
        suffix=".mov",
        fast=True,
    ),
    encoded(_P, "alpha, QuickTime animation", "-c:v qtrle -pix_fmt argb", built("has transparency"), suffix=".mov"),
    encoded(_P, "alpha, VP9", "-c:v libvpx-vp9 -pix_fmt yuva420p", built(), suffix=".webm"),
    encoded(_P, "palette", "-c:v qtrle -pix_fmt pal8 -vf format=gray,format=rgb24,format=pal8", built(), suffix=".mov"),
    encoded(_P, "interlaced, H.264", "-flags +ildct+ilme -x264opts tff=1", built("interlaced"), fast=True),
    encoded(_P, "interlaced, MPEG-2", "-c:v mpeg2video -q:v 2 -flags +ildct+ilme", built("interlaced"), suffix=".mpg"),
    encoded(
        _P,
        "interlaced, DV",
        "-c:v dvvideo -s 720x576 -pix_fmt yuv420p -aspect 4:3",
        built("interlaced", size=(42, 32)),
        suffix=".avi",
    ),
    rotated("rotated by 90°", 90, "transpose=clock", "96x64", built(size=(48, 32)), fast=True),
    rotated("rotated by 180°", 180, "hflip,vflip", "96x64", built(size=(48, 32))),
    rotated("rotated by 270°", 270, "transpose=cclock", "96x64", built(size=(48, 32))),
    rotated("rotated by 90°, upright video", 90, "transpose=clock", "64x96", built(size=(32, 48))),
    rotated("rotated by 30°", 30, "", "96x64", built("rotated by", size=(48, 32), right=False)),
)

_C = "Codecs and containers"
_COPY_OF = (
    ("MPEG-1", "-c:v mpeg1video -q:v 2", ".mpg"),
    ("MPEG-2 in TS", "-c:v mpeg2video -q:v 2", ".ts"),
    ("MPEG-4 part 2 in AVI", "-c:v mpeg4 -q:v 2", ".avi"),
    ("Xvid in AVI, B frames", "-c:v libxvid -q:v 2 -bf 2", ".avi"),
    ("MS-MPEG-4", "-c:v msmpeg4 -q:v 2", ".avi"),
    ("WMV 1", "-c:v wmv1 -q:v 2", ".wmv"),
    ("WMV 2", "-c:v wmv2 -q:v 2", ".wmv"),
    ("Sorenson H.263 in FLV", "-c:v flv -q:v 2", ".flv"),
    ("H.264 in FLV", "", ".flv"),
    ("H.264 in 3GP", "", ".3gp"),
    ("H.264 in Matroska", "", ".mkv"),
    ("H.264 in AVI", "-bf 0", ".avi"),
    ("H.264 in TS", "", ".ts"),
    ("H.264 in M2TS", "-mpegts_m2ts_mode 1", ".m2ts"),
    ("H.264 in MXF", "-bf 0 -pix_fmt yuv422p10le", ".mxf"),
    ("HEVC", "-c:v libx265 -x265-params log-level=error:pools=1", ".mp4"),
    ("AV1", "-c:v libaom-av1 -cpu-used 8 -crf 20", ".webm"),
    ("VP8", "-c:v libvpx -b:v 1M", ".webm"),
    ("VP9", "-c:v libvpx-vp9 -b:v 1M", ".webm"),
    ("Theora", "-c:v libtheora -q:v 9", ".ogv"),
    ("MJPEG in AVI", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", ".avi"),
    ("MJPEG in MOV", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", ".mov"),
    ("ProRes", "-c:v prores -pix_fmt yuv422p10le", ".mov"),
    ("DNxHR", "-c:v dnxhd -profile:v dnxhr_sq -pix_fmt yuv422p -s 256x128", ".mov"),
    ("Cinepak", "-c:v cinepak", ".avi"),
    ("HuffYUV", "-c:v huffyuv -pix_fmt yuv422p", ".avi"),
    ("FFV1", "-c:v ffv1", ".mkv"),
    ("uncompressed", "-c:v rawvideo", ".avi"),
    ("GIF", "-c:v gif -pix_fmt gray", ".gif"),
    ("MPEG-2 in VOB", "-c:v mpeg2video -q:v 2", ".vob"),
    ("RealVideo 2", "-c:v rv20 -q:v 2 -s 352x288", ".rm"),
    ("MPEG-2 in WTV", "-c:v mpeg2video -q:v 2", ".wtv"),
    ("H.264 in NUT", "", ".nut"),
    ("H.264 without a container", "", ".h264"),
    ("HEVC without a container", "-c:v libx265 -x265-params log-level=error:pools=1", ".hevc"),
    ("VP8 in IVF", "-c:v libvpx -b:v 1M", ".ivf"),
    ("uncompressed in YUV4MPEG", "-c:v wrapped_avframe", ".y4m"),
    ("MJPEG without a container", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p", ".mjpeg"),
    ("MJPEG without a container, JFIF", "-c:v mjpeg -q:v 2 -pix_fmt yuvj420p -vf setsar=1,scale=192:128", ".mjpg"),
    ("APNG", "-c:v apng -pix_fmt rgb24", ".apng"),
    ("AV1 without a container", "-c:v libaom-av1 -cpu-used 8 -crf 20", ".obu"),
    ("VC-2 without a container", "-c:v vc2 -pix_fmt yuv422p", ".drc"),
    ("VVC without a container", "-c:v libvvenc -pix_fmt yuv420p10le -qp 10 -f vvc", ".266"),
    ("fragmented mp4", "-movflags frag_keyframe+empty_moov", ".mp4"),
)
_NO_DURATION = (
    *(".ts", ".m2ts", ".mpg", ".ogv", ".vob", ".gif", ".nut", ".y4m"),
    *(".h264", ".hevc", ".mjpeg", ".mjpg", ".obu", ".drc", ".266"),
)
CONTAINERS: tuple[Damage, ...] = (
    *(
        encoded(
            _C,
            name,
            options,
            built("no declared duration" if suffix in _NO_DURATION else ""),
            suffix=suffix,
            fast=name in ("VP9", "H.264 in TS", "MPEG-4 part 2 in AVI"),
        )
        for name, options, suffix in _COPY_OF
    ),
    encoded(_C, "raw H.264 named .mp4", "-f h264", built("no declared duration"), fast=True),
    encoded(
        _C,
        "raw HEVC named .mkv",
        "-c:v libx265 -x265-params log-level=error -f hevc",
        built("no declared duration"),
        suffix=".mkv",
    ),
    encoded(_C, "WebM named .mp4 (wrong extension)", "-c:v libvpx -b:v 1M -f webm", built(), fast=True),
    encoded(_C, "AVI named .mov (wrong extension)", "-c:v mpeg4 -q:v 2 -f avi", built(), suffix=".mov"),
    encoded(_C, "TS named .avi (wrong extension)", "-f mpegts", built("no declared duration"), suffix=".avi"),
    encoded(
        _C,
        "animated GIF named .mp4",
        "-c:v gif -pix_fmt pal8 -f gif -vf format=rgb24,format=pal8",
        built("has transparency"),
    ),
)

_T = "Time"
TIMES: tuple[Damage, ...] = (
    encoded(_T, "one frame", "", built(frames=1), frames=1, fast=True),
    encoded(_T, "two frames", "", built(frames=2), frames=2),
    encoded(_T, "one frame in AVI", "-c:v mpeg4 -q:v 2", built(frames=1), suffix=".avi", frames=1),
    encoded(_T, "variable frame rate", "-vf setpts=N*N -fps_mode vfr", built(), suffix=".mkv", fast=True),
    encoded(_T, "variable frame rate, mp4", "-vf settb=1/1000,setpts=N*(40+N) -fps_mode vfr", built()),
    encoded(_T, "a gap of 10 s", "-vf setpts=N+gte(N\\,12)*250 -fps_mode passthrough", built(), suffix=".mkv"),
    encoded(_T, "a gap of an hour", "-vf setpts=N+gte(N\\,12)*90000 -fps_mode passthrough", built()),
    encoded(
        _T,
        "all frames before time 0 (mp4: its edit list shows none)",
        "-output_ts_offset -5 -avoid_negative_ts disabled",
        failed("undecodable"),
        fast=True,
    ),
    encoded(
        _T,
        "negative time stamps, Matroska",
        "-output_ts_offset -0.5 -avoid_negative_ts disabled",
        built("start again 1 times"),
        suffix=".mkv",
    ),
    encoded(_T, "starts at 10 h", "-output_ts_offset 36000", built("no declared duration"), suffix=".ts"),
    encoded(_T, "starts at 10 h, Matroska", "-output_ts_offset 36000", built(), suffix=".mkv"),
    encoded(
        _T,
        "time stamps that wrap (33 bits)",
        "-output_ts_offset 95443.2 -muxdelay 0",
        built("no declared duration"),
        suffix=".ts",
    ),
    encoded(_T, "1000 frames per second", "-r 1000", built(), source="-r 1000", suffix=".mkv"),
    encoded(_T, "one frame in 10 s", "-r 1/10", built(), source="-r 1/10"),
    encoded(_T, "30000/1001 frames per second", "", built(), source="-r 30000/1001"),
)
