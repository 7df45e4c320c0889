"""What a build costs in CPU seconds, compared with bare ffmpeg and with the usual way.

    python -m tools.bench.build [VIDEOS]            # 720p sources, made from the folder's videos
    python -m tools.bench.build [VIDEOS] --one      # one 1080p file of 40 s: what starting costs
    python -m tools.bench.build [VIDEOS] --hours 2  # peak memory on one long 1080p file
    python -m tools.bench.build [VIDEOS] --skip     # what ffmpeg's skip_frame saves, and which frames it loses
    python -m tools.bench.build --listing 1000000   # planning and resuming a long listing

Bare ffmpeg runs the build's own filter graph. The usual way scales every frame with x264's defaults, then thins by
encoding again. All use one thread and run one after another. CPU seconds are user and system time of all processes.
Without VIDEOS the sources are ffmpeg's test sources.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median

from tools.bench.sources import FRAME_RATE, make_originals, run_ffmpeg
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.ffmpeg_arguments import Output, encode_arguments
from vmae_data.encode.probe import probe_video
from vmae_data.encode.thinning import select_by_stride
from vmae_data.executors.jobs import BuildJobs
from vmae_data.format import (
    FORMAT_VERSION,
    Extent,
    MemberEntry,
    Packets,
    PhaseFacts,
    Rational,
    Regular,
    SampleEntry,
    ShardMarker,
    encode_record,
)
from vmae_data.names import marker_name, tar_name
from vmae_data.shards.plan import make_plan, read_plan, write_plan
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.find import find_sources

SPEC = BuildSpec()
COPIES = 20  # of each source, so that starting Python counts nearly as little as in a real build
SOURCES = 4
SECONDS = 10
FRAMES = SECONDS * FRAME_RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="?", help="a folder of videos [default: ffmpeg's test sources]")
    parser.add_argument("--one", action="store_true", help="one 1080p file of 40 s, and one small file of 1 s")
    parser.add_argument("--hours", type=float, help="peak memory on a 1080p file of this length")
    parser.add_argument("--skip", action="store_true", help="decode with ffmpeg's skip_frame")
    parser.add_argument("--listing", type=int, help="plan and resume a listing of this many files")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of --one, in turns [default: %(default)s]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if options.listing:
            print(bench_listing(options.listing, Path(folder)))
        elif options.skip:
            print(bench_skip(options.videos, Path(folder)))
        elif options.one:
            print(bench_one(options.videos, Path(folder), options.rounds))
        elif options.hours:
            print(bench_memory(options.videos, options.hours, Path(folder)))
        else:
            print(bench_cpu(options.videos, Path(folder)))


def _cpu(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _keep_bytecode(folder: Path) -> None:
    """Let the builds find compiled modules, as an installed program does: each would compile its own otherwise."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder)


def bench_cpu(videos: Path | None, folder: Path) -> str:
    sources = make_originals(videos, folder / "sources", lines=720, seconds=SECONDS, count=SOURCES)
    for path in sources:
        for number in range(COPIES - 1):
            os.link(path, path.with_name(f"{path.stem}-{number}.mp4"))
    ours = _cpu(_build(folder / "sources", folder / "shards"))
    bare = usual = 0.0
    for path in sorted((folder / "sources").iterdir()):
        bare += _cpu(_bare(path, folder / "bare.mp4"))
        usual += _usual(path, folder)
    count = COPIES * len(sources)
    rows = [("vmae-shard build", ours), ("bare ffmpeg, the same graph", bare), ("the usual way", usual)]
    lines = [f"{count} videos of {SECONDS} s, 720 lines, 25 frames a second; stride 4, short side 256", ""]
    lines += ["| way | CPU s a video | build needs |", "| --- | --- | --- |"]
    lines += [f"| {name} | {seconds / count:.3f} | {ours / seconds:.2f} × |" for name, seconds in rows]
    return "\n".join(lines)


def bench_one(videos: Path | None, folder: Path, rounds: int) -> str:
    """A build of one file, in turns with bare ffmpeg; then of a small file of a second, which is mostly start-up."""
    (long,) = make_originals(videos, folder / "long", lines=1080, seconds=40, count=1)
    (short,) = make_originals(videos, folder / "short", lines=360, seconds=1, count=1)
    _keep_bytecode(folder / "bytecode")
    _cpu(_build(short.parent, folder / "first"))  # compiles
    lines = ["| source | vmae-shard build, CPU s | elapsed s | bare ffmpeg, CPU s | build needs |"]
    lines += ["| --- | --- | --- | --- | --- |"]
    for name, path in (("1080p, 40 s", long), ("360p, 1 s", short)):
        ours, bare, elapsed = [], [], []
        for number in range(rounds):
            started_at = time.monotonic()
            ours.append(_cpu(_build(path.parent, folder / f"shards-{path.parent.name}-{number}")))
            elapsed.append(time.monotonic() - started_at)
            bare.append(_cpu(_bare(path, folder / "bare.mp4")))
        ratio = median(one / other for one, other in zip(ours, bare, strict=True))
        numbers = f"{median(ours):.2f} | {median(elapsed):.2f} | {median(bare):.2f} | {ratio:.2f} ×"
        lines.append(f"| {name} | {numbers} |")
    return "\n".join(lines)


def _build(source: Path, dest: Path) -> list[str]:
    words = [sys.executable, "-m", "vmae_data.cli", "build", str(source), str(dest)]
    return [*words, "--workers", "1", "--quiet"]


def _bare(path: Path, target: Path) -> list[str]:
    """The build's own command without its report of frames."""
    output = Output(select_by_stride(SPEC.stride or 1), str(target))
    info = probe_video(os.fsencode(path))
    words = encode_arguments(find_ffmpeg().path, SPEC, info, os.fsencode(path), [output], target)
    return [word.replace("if(eq(n,0),print(1/TB,8));print(pts,16);", "") for word in words]


def _usual(path: Path, folder: Path) -> float:
    ffmpeg, scaled, thinned = find_ffmpeg().path, str(folder / "scaled.mp4"), str(folder / "thinned.mp4")
    common = ["-nostdin", "-y", "-threads", "1"]
    threads = ["-threads", "1", "-filter_threads", "1", "-an"]
    first = [ffmpeg, *common, "-i", str(path), *threads, "-vf", "scale=-2:256", scaled]
    thin = ["-vf", "select='not(mod(n,4))',setpts=N/FRAME_RATE/TB", thinned]
    return _cpu(first) + _cpu([ffmpeg, *common, "-i", scaled, *threads, *thin])


def bench_memory(videos: Path | None, hours: float, folder: Path) -> str:
    (source,) = make_originals(videos, folder / "short", lines=1080, seconds=SECONDS, count=1)
    (folder / "long").mkdir()
    repeats = int(hours * 3600 / SECONDS) - 1
    run_ffmpeg("-stream_loop", repeats, "-i", source, "-c", "copy", folder / "long" / "long.mp4")
    started_at = time.monotonic()
    _cpu([*_build(folder / "long", folder / "shards"), "--set", "longest_seconds=60"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    seconds = time.monotonic() - started_at
    return f"{hours:g} h of 1080p: largest process of the build {peak:.0f} MiB; {seconds:.0f} s with one worker"


def bench_skip(videos: Path | None, folder: Path) -> str:
    """CPU seconds of decoding with each skip_frame, and how many of every 4th frame it keeps."""
    lines = ["| skip_frame | CPU s a video | frames decoded | of every 4th frame |", "| --- | --- | --- | --- |"]
    sources = make_originals(videos, folder / "sources", lines=720, seconds=SECONDS, count=SOURCES)
    for mode in ("default", "noref", "bidir", "nokey"):
        seconds, decoded, kept = 0.0, 0, 0
        for path in sources:
            options = ["-nostdin", "-v", "error", "-threads", "1", "-skip_frame", mode]
            words = [find_ffmpeg().path, *options, "-i", str(path)]
            seconds += _cpu([*words, "-an", "-f", "null", "-"])
            shown = subprocess.run(
                [*words, "-an", "-fps_mode", "passthrough", "-f", "framecrc", "-"], check=True, capture_output=True
            )
            stamps = [line.split(b",")[2] for line in shown.stdout.splitlines() if not line.startswith(b"#")]
            numbers = {int(stamp) for stamp in stamps}  # the muxer's tick is one frame of the sources
            decoded += len(numbers)
            kept += sum(n % 4 == 0 for n in numbers)
        count = len(sources)
        fourth = f"{kept} of {-(-FRAMES // 4) * count}"
        lines.append(f"| {mode} | {seconds / count:.3f} | {decoded} of {FRAMES * count} | {fourth} |")
    return "\n".join(lines)


def bench_listing(count: int, folder: Path) -> str:
    """Time and memory before the first encode: of a new build, and of one with half of its shards done."""
    listing, dest = folder / "listing.csv", folder / "shards"
    with listing.open("w") as file:
        file.writelines(f"class {n % 400}/video-{n:07d}.mp4,class {n % 400}\n" for n in range(count))
    dest.mkdir()
    planned = _in_process(listing, dest)
    _finish_half(dest)
    resumed = _in_process(listing, dest)
    words = "planned in {:.1f} s with at most {:.0f} MiB; half done, resumed in {:.1f} s with at most {:.0f} MiB"
    return f"{count} listed files: " + words.format(*planned, *resumed)


def _in_process(listing: Path, dest: Path) -> tuple[float, float]:
    """Seconds and peak MiB, in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_begin, listing, dest).result()


def _begin(listing: Path, dest: Path) -> tuple[float, float]:
    started_at = time.monotonic()
    plan = make_plan(find_sources(str(listing)), SPEC, split=None, ffmpeg="n", ffmpeg_sha256="0")
    write_plan(dest, plan)
    next(BuildJobs(workspace_of(dest), plan, "ffmpeg").remaining())
    return time.monotonic() - started_at, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _finish_half(dest: Path) -> None:
    """Write markers of the size that 500 videos of 10 s have, for every second shard; their tars are sparse files."""
    plan = read_plan(dest)
    frames = 63
    packets = Packets(
        time_base=Rational(1, 12800),
        positions=tuple(range(48, 48 + 6000 * frames, 6000)),
        sizes=(6000,) * frames,
        pts=tuple(range(0, 2048 * frames, 2048)),
        dts=tuple(range(-4096, 2048 * frames - 4096, 2048)),
        keys=tuple(range(0, frames, 16)),
    )
    kept = Regular(first=0, step=4, count=frames)
    phase = PhaseFacts(frames=frames, source_frames=kept, source_times=kept, source_time_base=Rational(1, 12800))
    extent = Extent(offset=0, size=6000, sha256="0" * 64)
    member = MemberEntry(extent=extent, phase=phase, codec="h264", extradata=bytes(40), packets=packets)
    samples = tuple(
        SampleEntry(key=f"video-{n:07d}-0123456789abcdef", label=n % 400, facts=extent, members=(member,))
        for n in range(SPEC.samples_per_shard)
    )
    for shard in range(0, plan.shards, 2):
        tar = dest / tar_name(shard)
        with tar.open("wb") as file:
            file.truncate(1000)
        marker = ShardMarker(
            version=FORMAT_VERSION, plan=plan.digest(), shard=shard, tar=tar.name, bytes=1000, sha256="0" * 64,
            samples=samples,
        )  # fmt: skip
        (dest / marker_name(shard)).write_bytes(encode_record(marker))


if __name__ == "__main__":
    main()
