"""What a build costs: CPU seconds against a bare ffmpeg that does the same, and against the usual way.

    python -m tools.bench.build VIDEOS            # ratios on 720p sources made of the folder's videos
    python -m tools.bench.build VIDEOS --hours 2  # peak memory on one long 1080p file
    python -m tools.bench.build VIDEOS --skip     # what ffmpeg's skip_frame saves, and which frames it loses
    python -m tools.bench.build --listing 1000000 # planning and resuming a long listing

The usual way scales every frame with x264's defaults, then thins by encoding again. All with one thread,
one after another in one run; CPU seconds are user and system of the whole tree of processes.
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
from typing import NamedTuple

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
    marker_name,
    tar_name,
)
from vmae_data.shards.plan import make_plan, read_plan, write_plan
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.find import find_sources

SPEC = BuildSpec()
COPIES = 20  # of each source, so that starting Python counts nearly as little as in a real build
SOURCES = 4
SECONDS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("videos", type=Path, nargs="?", help="a folder of videos")
    parser.add_argument("--hours", type=float, help="peak memory on a 1080p file that long")
    parser.add_argument("--skip", action="store_true", help="decoding with ffmpeg's skip_frame")
    parser.add_argument("--listing", type=int, help="plan and resume a listing of so many files")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.listing:
            print(bench_listing(given.listing, Path(folder)))
        elif given.skip:
            print(bench_skip(given.videos, Path(folder)))
        elif given.hours:
            print(bench_memory(given.videos, given.hours, Path(folder)))
        else:
            print(bench_cpu(given.videos, Path(folder)))


def _ffmpeg(*words: str | Path) -> None:
    subprocess.run([find_ffmpeg().path, "-v", "error", "-nostdin", "-y", *map(str, words)], check=True)


def _source(video: Path, target: Path, lines: int) -> bool:
    """Ten seconds of a video at this size, as a camera would write it; False where it can't be read."""
    looped = ("-stream_loop", "-1", "-i", video, "-t", str(SECONDS), "-an", "-r", "25")
    try:
        _ffmpeg(*looped, "-vf", f"scale=-2:{lines},setsar=1", "-preset", "veryfast", "-crf", "20", target)
    except subprocess.CalledProcessError:
        return False
    return True


def _sources(videos: Path, folder: Path, lines: int) -> list[Path]:
    folder.mkdir()
    made = [folder / f"{path.stem}.mp4" for path in sorted(videos.iterdir()) if path.stat().st_size > 200_000]
    kept = [target for target in made if _source(next(videos.glob(f"{target.stem}.*")), target, lines)]
    if not kept:
        sys.exit(f"{videos}: no video of more than 200 kB can be read")
    return kept[:SOURCES]


def _cpu(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def bench_cpu(videos: Path, folder: Path) -> str:
    sources = _sources(videos, folder / "sources", 720)
    for path in sources:
        for number in range(COPIES - 1):
            os.link(path, path.with_name(f"{path.stem}-{number}.mp4"))
    build = [sys.executable, "-m", "vmae_data.cli", "build", str(folder / "sources"), str(folder / "shards")]
    ours = _cpu([*build, "--workers", "1", "--quiet"])
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


def _bare(path: Path, target: Path) -> list[str]:
    """The build's own command without what it tells of frames."""
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


def bench_memory(videos: Path, hours: float, folder: Path) -> str:
    (source,) = _sources(videos, folder / "short", 1080)[:1]
    (folder / "long").mkdir()
    _ffmpeg("-stream_loop", int(hours * 3600 / SECONDS) - 1, "-i", source, "-c", "copy", folder / "long" / "long.mp4")
    build = [sys.executable, "-m", "vmae_data.cli", "build", str(folder / "long"), str(folder / "shards")]
    began = time.monotonic()
    _cpu([*build, "--workers", "1", "--quiet", "--set", "longest_seconds=60"])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    took = time.monotonic() - began
    return f"{hours:g} h of 1080p: the largest process of the build took {peak:.0f} MiB; {took:.0f} s with one worker"


def bench_skip(videos: Path, folder: Path) -> str:
    """Decoding alone, of all frames and of those that skip_frame leaves, and how many of the wanted ones are among these."""
    lines = ["| skip_frame | CPU s a video | frames decoded | of every 4th frame |", "| --- | --- | --- | --- |"]
    sources = _sources(videos, folder / "sources", 720)
    for mode in ("default", "noref", "bidir", "nokey"):
        seconds, decoded, wanted, total = 0.0, 0, 0, 0
        for path in sources:
            words = [
                find_ffmpeg().path,
                "-nostdin",
                "-v",
                "error",
                "-threads",
                "1",
                "-skip_frame",
                mode,
                "-i",
                str(path),
            ]
            seconds += _cpu([*words, "-an", "-f", "null", "-"])
            shown = subprocess.run(
                [*words, "-an", "-fps_mode", "passthrough", "-f", "framecrc", "-"], check=True, capture_output=True
            )
            stamps = [line.split(b",")[2] for line in shown.stdout.splitlines() if not line.startswith(b"#")]
            numbers = {int(stamp) for stamp in stamps}  # sources have 25 frames a second, which is the muxer's tick
            decoded, total = decoded + len(numbers), total + SECONDS * 25
            wanted += len([n for n in numbers if n % 4 == 0])
        lines.append(
            f"| {mode} | {seconds / len(sources):.3f} | {decoded} of {total} | {wanted} of {-(-SECONDS * 25 // 4) * len(sources)} |"
        )
    return "\n".join(lines)


def bench_listing(count: int, folder: Path) -> str:
    """What a build does before its first encode, and again when half of the shards are done: each in a fresh process."""
    listing, dest = folder / "listing.csv", folder / "shards"
    with listing.open("w") as file:
        file.writelines(f"class {n % 400}/video-{n:07d}.mp4,class {n % 400}\n" for n in range(count))
    dest.mkdir()
    planned = _in_a_process(listing, dest)
    _finish_half(dest)
    resumed = _in_a_process(listing, dest)
    words = "planned in {:.1f} s with at most {:.0f} MiB; half done, taken up again in {:.1f} s with at most {:.0f} MiB"
    return f"{count} listed files: " + words.format(*planned, *resumed)


class _Begun(NamedTuple):
    seconds: float
    mebibytes: float


def _in_a_process(listing: Path, dest: Path) -> _Begun:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_begin, listing, dest).result()


def _begin(listing: Path, dest: Path) -> _Begun:
    began = time.monotonic()
    plan = make_plan(find_sources(str(listing)), SPEC, split=None, ffmpeg="n", ffmpeg_sha256="0")
    write_plan(dest, plan)
    next(BuildJobs(workspace_of(dest), plan, "ffmpeg").to_do())
    return _Begun(time.monotonic() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _finish_half(dest: Path) -> None:
    """Markers of the size that 500 videos of 10 s have, for every second shard; their tars as holes of that length."""
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
