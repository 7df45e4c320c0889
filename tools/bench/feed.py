"""How many clips one CPU core decodes a second: original videos, 256-pixel files and shards, by several readers.

    python -m tools.bench.feed                                     # ffmpeg's test sources
    python -m tools.bench.feed --videos FOLDER --markdown feed.md  # real videos, and the section for docs/benchmarks.md

A clip is 16 frames, every 4th frame of the source, from a random start. The same 10 s videos are read in these forms:
720 lines; 256 lines by x264's defaults at full frame rate; shards of the default build recipe, and of one with key
frames 8 apart. Each measurement is a process on one core. Measurements take turns, so that a slow minute of the machine
meets every reader. Rates are clips for each second of CPU time. "FFmpeg alone" is `ffmpeg -f null` on the members of
the shards: frames a second, divided by the frames that a reader with FFmpeg's demuxer decodes for a clip.
Packages: pip install decord torchcodec (of a version made for your torch).
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import numpy as np

from tools.bench.feed_shards import (
    AT_KEY_FRAMES,
    BARE,
    BY_DEMUXER,
    FRAMES,
    OURS,
    Measured,
    ShardReader,
    measure_ffmpeg,
    timed,
)
from tools.bench.sources import FRAME_RATE, make_originals, run_ffmpeg
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.progress import ProgressStyle

STRIDE = 4
ROWS = (
    ("originals", "decord"),
    ("originals", "PyAV"),
    ("originals", "torchcodec"),
    ("256-pixel files", "decord"),
    ("256-pixel files", "PyAV"),
    ("256-pixel files", "torchcodec"),
    ("shards", BARE),
    ("shards", BY_DEMUXER),
    ("shards", OURS),
    ("shards", AT_KEY_FRAMES),
    ("shards, key frames 8 apart", OURS),
)
NOTE = (
    "PyAV and this reader return YUV planes; decord and torchcodec convert to RGB. "
    "torchcodec seeks approximately. This reader reads a range, checks its checksum and decodes into the shared buffer."
)


class Row(msgspec.Struct):
    """One reader on one form of the videos: its measurement in each round, or why it was skipped."""

    files: str
    reader: str
    kilobytes: float  # of one video, on average
    rounds: list[Measured] = []
    skipped: str = ""

    @property
    def rate(self) -> float:
        return median(measured.rate for measured in self.rounds)


class Report(msgspec.Struct):
    date: str
    machine: str
    versions: dict[str, str]
    command: str
    lines: int  # height of the originals
    rows: list[Row]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, metavar="FOLDER", help="videos to read [default: ffmpeg's test sources]")
    parser.add_argument("--count", type=int, default=4, help="videos at most [default: %(default)s]")
    parser.add_argument("--lines", type=int, default=720, help="height of the originals [default: %(default)s]")
    parser.add_argument("--length", type=float, default=10, help="seconds of each video [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each reader [default: %(default)s]")
    parser.add_argument("--seconds", type=float, default=3, help="CPU seconds of each one [default: %(default)s]")
    parser.add_argument("--core", type=int, help="the core to run on [default: the last one]")
    parser.add_argument("--folder", type=Path, help="keep the videos and shards here [default: a temporary folder]")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the section for docs/benchmarks.md")
    parser.add_argument("--measure", nargs=2, metavar=("READER", "FILES"), help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        reader, files = options.measure
        print(msgspec.json.encode(measure(reader, json.loads(files), options.seed, options.seconds)).decode())
        return
    with tempfile.TemporaryDirectory() as name:
        report = compare(options, options.folder or Path(name))
    print(msgspec.json.format(msgspec.json.encode(report)).decode() if options.json else markdown(report))
    if options.markdown:
        options.markdown.write_text(markdown(report))


def compare(options: argparse.Namespace, folder: Path) -> Report:
    """Make the three forms of the videos, then measure every reader once a round."""
    files = make_files(options, folder)
    core = max(os.sched_getaffinity(0)) if options.core is None else options.core
    rows = []
    for form, reader in ROWS:
        paths = [Path(path) for path in files[form]]
        size = sum(path.stat().st_size for top in paths for path in (top.iterdir() if top.is_dir() else [top]))
        rows.append(Row(form, reader, size / 1000 / len(files["originals"])))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": library_path(folder)}
    for number in range(options.rounds):
        for row in rows:
            if row.skipped:
                continue
            words = [sys.executable, "-m", "tools.bench.feed", "--measure", row.reader, json.dumps(files[row.files])]
            words += ["--seed", str(number), "--seconds", str(options.seconds)]
            done = subprocess.run(
                words, env=environment, capture_output=True, text=True, check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip
            if done.returncode:
                row.skipped = (done.stderr.strip().splitlines() or ["no message"])[-1]
                print(f"{row.files}, {row.reader}: skipped ({row.skipped})", file=sys.stderr)
            else:
                row.rounds.append(msgspec.json.decode(done.stdout.splitlines()[-1], type=Measured))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    return Report(
        date=datetime.now(UTC).date().isoformat(),
        machine=f"one core of {os.cpu_count()}, {cpu_name()}",
        versions=versions(),
        command="python -m tools.bench.feed" + (" --videos VIDEOS" if options.videos else ""),
        lines=options.lines,
        rows=rows,
    )


def make_files(options: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    originals = make_originals(
        options.videos, folder / "originals", lines=options.lines, seconds=options.length, count=options.count
    )
    small = folder / "small"
    small.mkdir(exist_ok=True)
    for path in originals:
        run_ffmpeg("-i", path, "-vf", "scale=-2:256", small / path.name)
    forms = {"shards": BuildSpec(stride=STRIDE), "shards, key frames 8 apart": BuildSpec(stride=STRIDE, gop=8)}
    for number, spec in enumerate(forms.values()):
        build_shards(str(folder / "originals"), folder / f"shards-{number}", spec, style=ProgressStyle.QUIET)
    return {
        "originals": [str(path) for path in originals],
        "256-pixel files": [str(path) for path in sorted(small.iterdir())],
        **{form: [str(folder / f"shards-{number}")] for number, form in enumerate(forms)},
    }


def measure(reader: str, files: Sequence[str], seed: int, seconds: float) -> Measured:
    """Clips per CPU second of this process. The first read is not counted. Raises SystemExit with what is missing."""
    if reader == BARE:
        return measure_ffmpeg(files[0], seconds)
    if reader not in READERS:
        return ShardReader(files[0], reader, seed).measure(seconds)
    return Measured(1 / float(np.mean(timed(read_files(READERS[reader](), files, seed), seconds))))


Read = Callable[[str, list[int]], Any]


def read_files(read: Read, files: Sequence[str], seed: int) -> Iterator[int]:
    """One clip after the other, each from a file that is opened for it, as a data set of single files does."""
    rng = random.Random(seed)
    lengths = {path: frame_count(path) for path in files}
    while True:
        path = rng.choice(files)
        start = rng.randrange(lengths[path] - (FRAMES - 1) * STRIDE)
        frames = list(range(start, start + FRAMES * STRIDE, STRIDE))
        if len(read(path, frames)) != FRAMES:
            raise SystemExit(f"{path}: not all of frames {frames} were decoded")
        yield 1


def decord_reader() -> Read:
    decord = needed("decord")

    def read(path: str, frames: list[int]) -> Any:
        return decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1).get_batch(frames).asnumpy()

    return read


def pyav_reader() -> Read:
    av = needed("av")

    def read(path: str, frames: list[int]) -> Any:
        planes = []
        with av.open(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            step = 1 / (stream.average_rate * stream.time_base)
            begin = stream.start_time or 0
            container.seek(begin + int(frames[0] * step), stream=stream, backward=True)
            for frame in container.decode(stream):
                number = round((frame.pts - begin) / step)
                if number in frames:
                    planes.append(frame.to_ndarray())
                if number >= frames[-1]:
                    break
        return planes

    return read


def torchcodec_reader() -> Read:
    needed("av")  # its FFmpeg serves torchcodec where the system has none
    decoders = needed("torchcodec.decoders")

    def read(path: str, frames: list[int]) -> Any:
        decoder = decoders.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="approximate")
        return decoder.get_frames_at(frames).data

    return read


READERS: dict[str, Callable[[], Read]] = {
    "decord": decord_reader,
    "PyAV": pyav_reader,
    "torchcodec": torchcodec_reader,
}


def needed(name: str) -> Any:
    """A module. Raises SystemExit with one line if it cannot be imported."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise SystemExit(f"{name} cannot be imported: {str(error).strip().splitlines()[0]}") from error


def frame_count(path: str) -> int:
    import av

    with av.open(path) as container:
        stream = container.streams.video[0]
        return stream.frames or int((container.duration or 0) / 1_000_000 * FRAME_RATE)


def library_path(folder: Path) -> str:
    """LD_LIBRARY_PATH by which torchcodec finds PyAV's FFmpeg under the names that a system's FFmpeg has."""
    import av

    bundled = Path(av.__file__).parents[1] / "av.libs"
    links = folder / "libraries"
    links.mkdir(parents=True, exist_ok=True)
    for library in bundled.glob("lib*-*.so.*"):
        name = re.sub(r"-[0-9a-f]{8}\.so\.(\d+).*", r".so.\1", library.name)
        if re.match(r"lib(av|sw)", name) and not (links / name).exists():
            (links / name).symlink_to(library)
    return os.pathsep.join(filter(None, [os.environ.get("LD_LIBRARY_PATH"), str(links), str(bundled)]))


def versions() -> dict[str, str]:
    found = {"Python": platform.python_version(), "ffmpeg": find_ffmpeg().version}
    for package in ("decord", "av", "torchcodec", "torch", "vmae"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def cpu_name() -> str:
    with Path("/proc/cpuinfo").open() as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())


def markdown(report: Report) -> str:
    listed = ", ".join(f"{name} {number}" for name, number in report.versions.items())
    lines = [f"`{report.command}`, {report.date}, {report.machine}; {listed}.", ""]
    lines += ["| files | kB a video | reader | clips per CPU second | range of the rounds | × the first row |"]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    base = next((row.rate for row in report.rows if row.rounds), 0.0)
    for row in report.rows:
        label = f"{report.lines}p originals" if row.files == "originals" else row.files
        start = f"| {label} | {row.kilobytes:.0f} | {row.reader} |"
        if row.skipped:
            lines.append(f"{start} skipped: {row.skipped} | | |")
        else:
            rates = [measured.rate for measured in row.rounds]
            spread = f"{min(rates):.1f} to {max(rates):.1f}"
            lines.append(f"{start} {row.rate:.1f} | {spread} | {row.rate / base:.1f} |")
    return "\n".join([*lines, "", NOTE, "", *markdown_of_clips(report), ""])


def markdown_of_clips(report: Report) -> list[str]:
    """The second table: latency and CPU time of a clip, for each reader of shards."""
    lines = ["| files | reader | ms a clip: median, p95, p99 | frames decoded | CPU time by stage |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for row in report.rows:
        if not any(measured.milliseconds for measured in row.rounds):
            continue
        times = [f"{median(numbers):.1f}" for numbers in zip(*(one.milliseconds for one in row.rounds), strict=True)]
        decoded = median(measured.decoded for measured in row.rounds)
        shares = [f"{name} {median(one.shares[name] for one in row.rounds):.0%}" for name in row.rounds[0].shares]
        cells = [row.files, row.reader, ", ".join(times), f"{decoded:.1f}" if decoded else "", ", ".join(shares)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
