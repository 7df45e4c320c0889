"""`vmae-train embed`: a pretrained or finetuned model and videos → a file of features."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vmae_data.amounts import plural
from vmae_data.console import Debug, Json, Quiet, StorageOptions, flag, local_argument, option, progress_style
from vmae_data.errors import MisuseError
from vmae_train.console import (
    Best,
    Checkpoint,
    ClipRecipe,
    Device,
    Ema,
    Settings,
    VideoBatch,
    Videos,
    VideoWorkers,
    need_torch,
    print_result,
    print_unreadable,
    with_views,
)

if TYPE_CHECKING:
    from vmae_train.embed import Embedded

Layout = Enum("Layout", {"ACTIONFORMER": "actionformer", "OPENTAD": "opentad"})
Pool = Enum("Pool", {"MEAN": "mean", "SLICE": "slice", "NONE": "none"})


def embed(
    checkpoint: Checkpoint,
    videos: Videos,
    out: Annotated[
        Path,
        option(
            "FILE|DIR",
            "Write a .parquet or .npz file, or the folder of --layout. Keep the features that it has.",
            parser=local_argument,
        ),
    ],
    pool: Annotated[
        Pool, option("mean|slice|none", "Average over all tokens, or over each tubelet slice, or keep every token.")
    ] = Pool.MEAN,
    layer: Annotated[int | None, option("N", "Take the output of block N, counted from 1.", "the last", min=1)] = None,
    float16: Annotated[bool, flag("--float16", "Write half precision.", "float32")] = False,
    window: Annotated[
        float | None,
        option(
            "SECONDS", "Embed each window of this length. With a layout: in source frames.", "the whole video as one"
        ),
    ] = None,
    stride: Annotated[
        float | None,
        option("SECONDS", "Start a window each SECONDS. With a layout: in source frames.", "the length of a window"),
    ] = None,
    layout: Annotated[
        Layout | None,
        option(
            "actionformer|opentad",
            "Write a folder for temporal localisation: a .npy for each video, and JSON. Windows of 16, stride 4.",
            "a file",
        ),
    ] = None,
    recipe: ClipRecipe = None,
    views: Annotated[
        str | None,
        option(
            "CLIPSxCROPS",
            "Average over this many clips and crops.",
            "the recipe's, else 5x3; 1x1 with a layout and without mean",
        ),
    ] = None,
    best: Best = False,
    ema: Ema = False,
    settings: Settings = None,
    batch: VideoBatch = 8,
    workers: VideoWorkers = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the features of videos: the encoder's output of a pretrained or finetuned model.

    Clips are sampled and resized as the checkpoint's own evaluation does. A video that can't be read is named at the
    end, and the others are embedded. The same command continues a file.

    Examples:
        vmae-train embed runs/k400 videos --out features.parquet
        vmae-train embed runs/k400 long.mkv --window 10 --out windows.npz
        vmae-train embed runs/k400 videos --layout opentad --stride 4 --out features
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.console import print_json
    from vmae_train.embed import embed_all
    from vmae_train.inference.embed import Embedder, Features
    from vmae_train.inference.video_runner import VideoResult
    from vmae_train.inference.windows import WindowSpec, frame_spec

    kind: Any = pool.value
    form: Any = layout.value if layout is not None else None
    if form is not None:
        views = views or "1x1"
        if not views.startswith("1x"):
            raise MisuseError(f"--views {views}: a window of --layout is one clip. Use 1x1, or 1x3 for three crops")
    embedder = Embedder(
        checkpoint,
        device,
        pool=kind,
        layer=layer,
        float16=float16,
        recipe=recipe,
        settings=with_views(settings, views),
        best=best,
        ema=ema,
        batch=batch,
    )

    def print_result(result: VideoResult[Features]) -> None:
        if result.error is not None:
            print_json({"video": result.video, "error": result.error})
        else:
            print_json({"video": result.video, "rows": len(result.rows)})

    embedded = embed_all(
        embedder,
        videos,
        spec=WindowSpec(window, stride) if form is None else frame_spec(window, stride),
        out=out,
        layout=form,
        workers=workers,
        finished=print_result if as_json else lambda result: None,
        style=progress_style(quiet, as_json),
    )
    _print_embedded(embedded, out, quiet, as_json)
    print_unreadable(embedded.counts.unreadable)


def _print_embedded(embedded: Embedded, out: Path, quiet: bool, as_json: bool) -> None:
    """Print how much was written, and how fast."""
    from vmae_data.pages.html import printable

    counts = embedded.counts
    values = {
        "out": str(out),
        "rows": embedded.rows,
        "videos": counts.done,
        "kept": counts.kept,
        "unreadable": len(counts.unreadable),
        "clips": embedded.clips,
        "clips_per_second": embedded.clips_per_second,
        "uneven": embedded.uneven,
    }
    text = f"{out}: {plural(embedded.rows, 'row')}. {plural(counts.done, 'video')} embedded, {counts.kept} kept from before"
    if embedded.clips:
        text += f". {embedded.clips_per_second:.3g} clips/s ({embedded.clips} clips in {embedded.seconds:.1f} s)"
    print_result(quiet, as_json, values, text)
    for video, seconds in embedded.uneven.items():
        print(
            f"warning: {printable(video)}: its frames are not evenly spaced, "
            f"so times of features are wrong by up to {seconds:.2f} s",
            file=sys.stderr,
        )
