"""How many planted copies `vmae-shard audit` finds, and how many distinct videos it calls copies.

    python -m tools.bench.audit [VIDEOS...] [--demo 100] [--folder DIR] [--workers N]

Distinct videos are clips of 3 s or 24 frames, whichever is longer. They are cut without overlap from the files of the
folders VIDEOS; videos of the motion data set are added. Five copies of each are planted: at crf 35, at half the size,
without the first 10 %, without the last 10 %, and mirrored. Originals and copies are built with different strides and
audited as two data sets. Prints the tables of docs/audit.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import av

from tools.bench.sources import run_ffmpeg
from vmae_data.audit.audit import AuditSpec, audit_shards
from vmae_data.audit.duplicates import DuplicateSpec
from vmae_data.audit.flags import AuditReport
from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe

SECONDS = 3.0
FEWEST_FRAMES = 24
FIXED_CAMERA = ("vtest", "tree")  # the same background in every clip: the hard case
STRIDES = {"distinct": 4, "planted": 2}
ROTATIONS = ("rotated_0", "rotated_90", "rotated_180", "rotated_270")  # one video, rotated; only the first is used


class Plant(NamedTuple):
    """How a copy is made: ffmpeg's filters, the quality, and the part [start, stop) of the original."""

    filters: str = "null"
    crf: int = 23
    start: float = 0.0
    stop: float = 1.0


PLANTS = {
    "crf 35": Plant(crf=35),
    "half the size": Plant("scale=trunc(iw/4)*2:trunc(ih/4)*2"),
    "first 10 % cut": Plant(start=0.1),
    "last 10 % cut": Plant(stop=0.9),
    "mirrored": Plant("hflip"),
}


class Clip(NamedTuple):
    source: Path
    name: str
    start: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", nargs="*", type=Path)
    parser.add_argument("--demo", type=int, default=100)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = options.folder or Path(name)
        if not (folder / "planted").exists():
            write_videos(folder, options.videos, options.demo, options.workers)
        for kind, stride in STRIDES.items():
            settings = [f"stride={stride}", "short_side=128", "samples_per_shard=100", "keep_truncated=true"]
            spec = load_recipe("vmae_data", None, BuildSpec, settings)
            build_shards(str(folder / kind), folder / f"{kind}-shards", spec, workers=options.workers)
        report(folder, options.workers)


def write_videos(folder: Path, videos: list[Path], demo: int, workers: int) -> None:
    """Write the distinct videos and their copies. The folder `planted` gets its name when all are complete."""
    if demo:
        write_demo(folder / "demo", num_videos=demo, seed=7, workers=workers)
    clips = [clip for path in videos for video in sorted(path.iterdir()) for clip in cut(video)]
    clips += [Clip(p, f"demo/{p.stem}", 0, times(p)[-1]) for p in sorted((folder / "demo").glob("*/*.mp4"))]
    making = folder / "planted.part"
    jobs = []
    for clip in clips:
        jobs.append((clip, folder / "distinct" / f"{clip.name}.mp4", Plant(crf=18)))
        for kind, plant in PLANTS.items():
            jobs.append((clip, making / kind.replace(" ", "-").replace("%", "percent") / f"{clip.name}.mp4", plant))
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda job: encode(*job), jobs))
    making.rename(folder / "planted")


def times(path: Path) -> list[float]:
    """The time of each frame, by decoding, since headers may be wrong. Empty if the file is no video."""
    try:
        with av.open(str(path)) as file:
            return [frame.time for frame in file.decode(video=0) if frame.time is not None]
    except (av.FFmpegError, IndexError):
        return []


def cut(video: Path) -> list[Clip]:
    if video.stem in ROTATIONS[1:]:
        return []
    shown = times(video)
    if len(shown) < 2:
        return []
    seconds = shown[-1] - shown[0]
    length = max(SECONDS, FEWEST_FRAMES * seconds / len(shown))
    family = "fixed camera" if video.stem in FIXED_CAMERA else "other"
    return [Clip(video, f"{family}/{video.stem}-{n:03d}", n * length, length) for n in range(int(seconds / length))]


def encode(clip: Clip, path: Path, plant: Plant) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    length = clip.seconds * (plant.stop - plant.start)
    start = clip.start + plant.start * clip.seconds
    part = ("-ss", f"{start:.3f}", "-t", f"{length:.3f}", "-an", "-vf", plant.filters)
    codec = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", plant.crf, "-preset", "veryfast")
    run_ffmpeg("-i", clip.source, *part, *codec, path)


def report(folder: Path, workers: int) -> None:
    names = [str(folder / f"{kind}-shards") for kind in STRIDES]
    spec = AuditSpec(duplicates=DuplicateSpec(mirrored=True))
    print(tables(audit_shards(names, spec, workers=workers, style=ProgressStyle.QUIET)))


def tables(report: AuditReport) -> str:
    """How many copies of each kind were found, and every false alarm by name."""
    samples = report.samples
    seen: Counter[tuple[str, str]] = Counter()
    found: Counter[tuple[str, str]] = Counter()
    wrong, missed = [], []
    for number, one in enumerate(samples):
        kind, _, name = one.path.partition("/") if one.data_set else ("distinct", "", one.path)
        family = name.partition("/")[0]
        original = report.duplicates.original.get(number)
        seen[kind, family] += 1
        right = original is not None and samples[original].path == name
        found[kind, family] += right
        if original is not None and not right:
            wrong.append(f"{one.path} as {samples[original].path} ({report.duplicates.match[number]})")
        if one.data_set and original is None:
            missed.append(one.path)
    kinds = sorted({kind for kind, _ in seen})
    families = sorted({family for _, family in seen})
    lines = ["| videos | " + " | ".join(families) + " |", "| --- |" + " --- |" * len(families)]
    for kind in kinds:
        cells = [f"{found[kind, f]} of {seen[kind, f]}" for f in families]
        lines.append(f"| {kind}, called a copy of its original | " + " | ".join(cells) + " |")
    pairs = sum(one.data_set == 0 for one in samples)
    lines += ["", f"False alarms among {pairs} distinct videos and their copies: {len(wrong)}.", *wrong]
    lines += [f"Missed: {len(missed)}.", *missed]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
