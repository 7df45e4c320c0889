"""`vmae-train embed`: a pretrained or finetuned model and videos or shards → a file of features."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from vmae_data.progress import ProgressStyle
from vmae_data.storage import local_path
from vmae_train.inference.embed import Embedder, Features
from vmae_train.inference.features_file import FeaturesFile
from vmae_train.inference.find_videos import find_videos
from vmae_train.inference.run_all import RunCounts, describe_run, run_all
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

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds


def embed_all(
    embedder: Embedder,
    arguments: Sequence[str],
    *,
    spec: WindowSpec,
    out: str,
    workers: int = 0,
    finished: Callable[[VideoResult[Features]], None] = lambda result: None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> Embedded:
    """Write the features of all videos that the arguments name. Videos that the file has are not computed again.

    `finished` gets each result as soon as it is recorded.
    Raises MisuseError if arguments, settings and file don't fit together, DataError if no video can be read.
    """
    spec.check(embedder.model.geometry.num_frames)
    found = find_videos(arguments)
    with FeaturesFile(local_path(out), embedder, spec) as file:
        about = describe_run(embedder, found, spec)
        print_summary(f"embed {embedder.checkpoint}", about, quiet=style is ProgressStyle.QUIET)
        started_at = time.perf_counter()
        counts = run_all(embedder, found, spec, file, finished=finished, workers=workers, style=style)
        seconds = time.perf_counter() - started_at
        return Embedded(counts, file.write(), embedder.clips, seconds)
