"""What each codec profile costs and preserves: bytes, SSIM, PSNR, and the time to decode a clip.

    python -m tools.bench.codecs VIDEOS --picture docs/codecs.png

Every setting encodes the same frames (stride 4, short side 256) of the same videos with one thread. ffmpeg measures
quality against the frames that entered the encoder. A clip is 16 consecutive kept frames from a random start, decoded
by the training's decoder in this process. Times are CPU time, so other work on the machine matters little.
Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tools.bench.sources import run_ffmpeg
from vmae_data.decode import decode_all, decode_some, read_packets
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.ffmpeg_arguments import Output, encode_arguments, picture_filters
from vmae_data.encode.probe import VideoInfo, probe_video, scaled_size
from vmae_data.encode.thinning import select_by_stride

STRIDE = 4
CLIP = 16
ROUNDS = 30  # clips decoded from each video


class Setting(NamedTuple):
    """A row of the table."""

    name: str
    spec: BuildSpec
    tune: bool = True


class Measured(NamedTuple):
    """One setting, mean over all videos."""

    setting: Setting
    kilobytes: float  # a second of source
    ssim: float
    psnr: float  # dB, luma
    decode: float  # CPU ms a clip
    encode: float  # CPU seconds a minute of source


def settings() -> list[Setting]:
    def h264(crf: int, gop: int, *, tune: bool = True) -> Setting:
        name = f"h264 crf {crf} gop {gop}" + ("" if tune else ", no tune")
        return Setting(name, BuildSpec(stride=STRIDE, crf=crf, gop=gop), tune)

    rows = [h264(crf, 16) for crf in (18, 20, 23, 26, 29)]
    rows += [h264(23, gop) for gop in (4, 8, 32, 250)]
    rows += [h264(crf, 16, tune=False) for crf in (20, 23, 26)]
    for profile, scales in (("mpeg4", (2, 3, 5, 8)), ("mjpeg", (2, 4, 8))):
        for qscale in scales:
            spec = BuildSpec(stride=STRIDE, profile=profile, qscale=qscale)
            rows.append(Setting(f"{profile} qscale {qscale}", spec))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, help="a folder of videos")
    parser.add_argument("--picture", type=Path, help="write a chart of the results to this PNG")
    options = parser.parse_args()
    sources = _sources(options.videos)
    print(f"{len(sources)} videos: {', '.join(path.name for path in sources)}", file=sys.stderr)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for number, setting in enumerate(settings(), 1):
            results.append(measure(setting, sources, Path(folder)))
            print(f"{number} of {len(settings())}: {setting.name}", file=sys.stderr)
    print(table(results))
    if options.picture:
        plot(results, options.picture)


def _sources(folder: Path) -> list[Path]:
    """The videos of the folder that are long enough for a clip."""
    found = []
    for path in sorted(folder.iterdir()):
        try:
            probe_video(os.fsencode(path))
            table = subprocess.run(
                [find_ffmpeg().path, "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "framecrc", "-"],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
        except Exception as error:
            print(f"{path.name}: skipped ({error})", file=sys.stderr)
            continue
        if sum(not line.startswith("#") for line in table.stdout.splitlines()) >= 2 * CLIP * STRIDE:
            found.append(path)
    return found


def measure(setting: Setting, sources: list[Path], folder: Path) -> Measured:
    size = seconds = encode = 0.0
    quality, decode = [], []
    for path in sources:
        info, target = probe_video(os.fsencode(path)), folder / "encoded.mp4"
        encode += _encode(setting, info, path, target)
        size += target.stat().st_size
        frames = len(read_packets(target, path.name).packets.sizes)
        seconds += frames * STRIDE / float(info.frame_rate)
        quality.append(_quality(setting, info, path, target))
        decode.append(_decode(target, frames))
    return Measured(
        setting,
        size / seconds / 1000,
        statistics.mean(ssim for ssim, _ in quality),
        statistics.mean(psnr for _, psnr in quality),
        statistics.mean(decode),
        encode / seconds * 60,
    )


def _encode(setting: Setting, info: VideoInfo, path: Path, target: Path) -> float:
    output = Output(select_by_stride(STRIDE), str(target))
    words = encode_arguments(find_ffmpeg().path, setting.spec, info, os.fsencode(path), [output], target)
    if not setting.tune:
        start = words.index("-tune")
        del words[start : start + 2]
    before = _children()
    subprocess.run(words, check=True, stderr=subprocess.DEVNULL)
    return _children() - before


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _quality(setting: Setting, info: VideoInfo, path: Path, target: Path) -> tuple[float, float]:
    """SSIM of all planes and PSNR of luma, by ffmpeg, against the frames that were encoded."""
    width, height = scaled_size(info, setting.spec.short_side)
    original, program = target.with_suffix(".yuv"), find_ffmpeg().path
    filters = f"select='{select_by_stride(STRIDE)}',{picture_filters(setting.spec, info)}"
    run_ffmpeg("-i", path, "-map", "0:v:0", "-vf", filters, "-fps_mode", "passthrough", "-f", "rawvideo", original)
    decoded = target.with_suffix(".decoded.yuv")
    with decoded.open("wb") as file:
        # Decoded as in training. ffmpeg pairs frames of two mp4 files by time, and missed some of h264.
        frames = len(read_packets(target, path.name).packets.sizes)
        for planes in zip(*decode_all(target.read_bytes(), frames, path.name), strict=True):
            file.writelines(plane.tobytes() for plane in planes)
    assert decoded.stat().st_size == original.stat().st_size
    # The encoded pixel format, so that nothing is converted.
    pixels = "yuvj420p" if setting.spec.profile == "mjpeg" else "yuv420p"
    raw = ["-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{width}x{height}", "-i"]
    graph = "[0:v]split[a][b];[1:v]split[c][d];[c][a]ssim[s];[d][b]psnr[p]"
    log = subprocess.run(
        [program, "-hide_banner", *raw, str(original), *raw, str(decoded), "-lavfi", graph, "-map", "[s]", "-map", "[p]", "-f", "null", "-"],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    ssim, psnr = re.search(r"All:([\d.]+)", log), re.search(r"PSNR y:([\d.]+|inf)", log)
    assert ssim and psnr, log[-500:]
    return float(ssim[1]), min(99.0, float(psnr[1]))


def _decode(target: Path, frames: int) -> float:
    """Median CPU milliseconds a clip."""
    data, rng, times = target.read_bytes(), random.Random(0), []
    for _ in range(ROUNDS):
        start = rng.randrange(frames - CLIP + 1)
        started_at = time.process_time()
        decode_some(data, range(start, start + CLIP), "clip")
        times.append(1000 * (time.process_time() - started_at))
    return statistics.median(times)


def table(results: list[Measured]) -> str:
    lines = [
        "| profile | kB a second | SSIM | PSNR y, dB | decode, CPU ms a clip | clips a core second | encode, CPU s a minute |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results:
        lines.append(
            f"| {row.setting.name} | {row.kilobytes:.1f} | {row.ssim:.4f} | {row.psnr:.1f} | {row.decode:.1f} "
            f"| {1000 / row.decode:.0f} | {row.encode:.1f} |"
        )
    return "\n".join(lines)


def plot(results: list[Measured], path: Path) -> None:
    """Chart bytes against quality, and bytes against decoding time. Lower left is better."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    marks = {"h264": "o", "mpeg4": "s", "mjpeg": "^"}
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout="constrained")
    for axis, what, value in (
        (axes[0], "1 − SSIM against the scaled original (lower is better)", lambda row: 1 - row.ssim),
        (axes[1], "CPU ms to decode a clip of 16 frames (lower is better)", lambda row: row.decode),
    ):
        for row in results:
            profile = row.setting.spec.profile
            if axis is axes[0] and row.setting.spec.gop != BuildSpec().gop:
                continue  # the key frame interval hardly changes quality
            colour = {"h264": "C0" if row.setting.tune else "C3", "mpeg4": "C1", "mjpeg": "C2"}[profile]
            axis.scatter(row.kilobytes, value(row), marker=marks[profile], color=colour)
            short = row.setting.name.replace("h264 ", "").replace("qscale", "q")
            axis.annotate(short, (row.kilobytes, value(row)), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axis.set(xscale="log", xlabel="kB for a second of source, every 4th frame, short side 256", ylabel=what)
        axis.grid(alpha=0.3)
        axis.xaxis.set_major_locator(FixedLocator([8, 10, 15, 20, 30, 40, 60, 80]))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_locator(NullLocator())
    axes[0].set_yscale("log")
    axes[0].yaxis.set_major_locator(FixedLocator([0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05]))
    axes[0].yaxis.set_major_formatter(ScalarFormatter())
    axes[0].yaxis.set_minor_locator(NullLocator())
    figure.suptitle("Codec profiles: h264 (blue; red without tune fastdecode), mpeg4 (orange), mjpeg (green)")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
