"""`vmae-train embed`: a pretrained or finetuned model and videos or shards → a file of features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.storage import local_path
from vmae_train.inference.embed import Embedder, Features
from vmae_train.inference.features_file import SUFFIXES, FeaturesFile
from vmae_train.inference.find_videos import VideoFile, find_videos
from vmae_train.inference.run_all import RunCounts, describe_run, run_all
from vmae_train.inference.temporal_folder import Layout, TemporalFolder, shard_members
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec
from vmae_train.training.summary import print_summary

__all__ = ["Embedded", "embed_all"]


class Embedded(NamedTuple):
    """What the command did. `rows`: of the written file. `clips`: that the model computed, in `seconds`."""

    counts: RunCounts
    rows: int
    clips: int
    seconds: float
    uneven: dict[str, float]  # of a layout: seconds by which times of a video may be wrong

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds


def embed_all(
    embedder: Embedder,
    arguments: Sequence[str],
    *,
    spec: WindowSpec,
    out: str | Path,
    layout: Layout | None = None,
    workers: int = 0,
    finished: Callable[[VideoResult[Features]], None] = lambda result: None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> Embedded:
    """Write the features of all videos that the arguments name. Videos that the output has are not computed again.

    `layout`: write a folder for temporal localisation, by windows of source frames [default: a file].
    `finished` gets each result as soon as it is recorded.
    Raises MisuseError if arguments, settings and output don't fit together, DataError if no video can be read.
    """
    path = local_path(out)
    if layout is None and path.suffix not in SUFFIXES:
        raise MisuseError(
            f"--out {path}: expected a name that ends in {', '.join(SUFFIXES)}. To write a folder, set --layout"
        )
    found = find_videos(arguments)
    if layout is not None:
        members = [video for url in found.shards for video in shard_members(url)]
        found = found._replace(videos=(*found.videos, *members), shards=())
    about = {**describe_run(embedder, found, spec), "features": embedder.describe_features()}
    with _output(path, embedder, spec, layout, found.videos) as output:
        print_summary(f"embed {embedder.checkpoint}", about, quiet=style is ProgressStyle.QUIET)
        started_at = time.perf_counter()
        counts = run_all(embedder, found, spec, output, finished=finished, workers=workers, style=style)
        seconds = time.perf_counter() - started_at
        rows = output.write()
        uneven = output.uneven if isinstance(output, TemporalFolder) else {}
        return Embedded(counts, rows, embedder.clips, seconds, uneven)


def _output(
    path: Path, embedder: Embedder, spec: WindowSpec, layout: Layout | None, videos: Sequence[VideoFile]
) -> FeaturesFile | TemporalFolder:
    if layout is None:
        return FeaturesFile(path, embedder, spec)
    return TemporalFolder(path, embedder, spec, layout, videos)
