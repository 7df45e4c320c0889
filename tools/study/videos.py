"""Folders of videos for a study, made of other videos.

    python -m tools.study.videos only PREFIX VIDEOS DEST        the classes whose names begin so
    python -m tools.study.videos planted VIDEOS DEST            all, and as many still, black and repeated ones
    python -m tools.study.videos segments DEST VIDEO|FOLDER…    parts of real videos: DEST/train, DEST/later, DEST/unseen

The same videos give the same files. A folder gets its name when it is complete, and is then left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tools.bench.audit import times
from tools.bench.sources import run_ffmpeg

CODEC = ("-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "veryfast")
POOR_FRAMES = 40  # of a still or black video; demo videos have 33 to 48
STILL, BLACK = 0.4, 0.2  # shares of the planted videos; the others are repeats
REPEATS = 10  # copies of one video
SEGMENT = 40  # source frames: one clip of 16 frames at stride 2, and some choice of its start
MOST_SEGMENTS = 12  # of one video, so that a long one does not outweigh the others
SHORT_SIDE = 128
UNSEEN = 4  # every fourth real video is held out as a whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    only = kinds.add_parser("only")
    only.add_argument("prefix")
    planted = kinds.add_parser("planted")
    for one in (only, planted):
        one.add_argument("videos", type=Path)
        one.add_argument("dest", type=Path)
    segments = kinds.add_parser("segments")
    segments.add_argument("dest", type=Path)
    segments.add_argument("videos", type=Path, nargs="+")
    options = parser.parse_args()
    dest: Path = options.dest
    if dest.exists():
        return
    making = dest.with_name(f"{dest.name}.part")
    shutil.rmtree(making, ignore_errors=True)
    if options.kind == "only":
        link_classes(options.videos, making, options.prefix)
    elif options.kind == "planted":
        link_classes(options.videos, making, "")
        plant(making)
    else:
        cut_segments(options.videos, making)
    making.rename(dest)


def link_classes(videos: Path, dest: Path, prefix: str) -> None:
    """Link the videos of the classes whose names begin with `prefix`. Raises SystemExit if there are none."""
    paths = sorted(videos.glob(f"{prefix}*/*.mp4"))
    if not paths:
        raise SystemExit(f"{videos}: has no class {prefix}… with mp4 files")
    for path in paths:
        link = dest / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)


def plant(folder: Path) -> None:
    """Add as many poor videos as there are good ones: still and black ones, and repeats at lower quality."""
    good = sorted(folder.glob("*/*.mp4"), key=lambda path: path.name)
    still, black = int(STILL * len(good)), int(BLACK * len(good))
    for number, path in enumerate(good):
        frames: tuple[str | Path | int, ...] = ("-frames:v", POOR_FRAMES)
        if number < still:
            hold = f"trim=end_frame=1,loop={POOR_FRAMES}:1:0,setpts=N/FRAME_RATE/TB"
            run_ffmpeg("-i", path, "-vf", hold, *frames, *CODEC, "-crf", 18, path.with_name(f"still-{number:05d}.mp4"))
        elif number < still + black:
            cover = "drawbox=color=black:thickness=fill"
            target = path.with_name(f"black-{number:05d}.mp4")
            run_ffmpeg("-i", path, "-vf", cover, *frames, *CODEC, "-crf", 18, target)
        else:
            copy = number - still - black
            source = good[copy // REPEATS]
            target = source.with_name(f"repeat-{number:05d}.mp4")
            run_ffmpeg("-i", source, *CODEC, "-crf", 24 + copy % REPEATS, target)


def cut_segments(videos: Sequence[Path], dest: Path) -> None:
    """Cut videos into segments without overlap: train has the first half of each, later the second half.

    Every fourth video is in unseen only. Raises SystemExit for fewer than two usable videos.
    """
    files = [file for path in videos for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    count = {file: min(len(times(file)) // SEGMENT, MOST_SEGMENTS) for file in files if file.is_file()}
    usable = sorted((file for file, segments in count.items() if segments > 1), key=lambda file: file.name)
    if len(usable) < UNSEEN:
        raise SystemExit(f"{len(usable)} videos of {2 * SEGMENT} frames or more; {UNSEEN} are needed")
    for number, file in enumerate(usable):
        for segment in range(count[file]):
            seen = "train" if segment < count[file] // 2 else "later"
            kind = "unseen" if number % UNSEEN == UNSEEN - 1 else seen
            target = dest / kind / file.stem / f"{file.stem}-{segment:02d}.mp4"
            target.parent.mkdir(parents=True, exist_ok=True)
            start = segment * SEGMENT
            part = f"trim=start_frame={start}:end_frame={start + SEGMENT},setpts=PTS-STARTPTS"
            scale = f"scale=-2:'min({SHORT_SIDE},trunc(ih/2)*2)'"
            run_ffmpeg("-i", file, "-vf", f"{part},{scale}", *CODEC, "-crf", 18, target)


if __name__ == "__main__":
    main()
