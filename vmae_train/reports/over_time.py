"""The checkpoints of a pretraining → one clip as each of them reconstructs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vmae_data.errors import VmaeError
from vmae_data.pages.html import Note, Part
from vmae_data.progress import ProgressBar, ProgressStyle, announce
from vmae_data.read.dataset import Shards
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.inference.drawing import Reconstruction, page_rows
from vmae_train.inference.reconstruct import load_pretrained, mask_specs, reconstruct_shards
from vmae_train.reports.resolved_recipe import resolved_recipe
from vmae_train.reports.run_reader import StoredRun
from vmae_train.runs.layout import MARKER, complete_checkpoints, step_of
from vmae_train.runs.metadata import clip_of

__all__ = ["over_time_parts"]

MAX_CHECKPOINTS = 6


def over_time_parts(run: StoredRun, style: ProgressStyle) -> Iterator[Part]:
    """A row of frames for each of at most `MAX_CHECKPOINTS` checkpoints, of which a run has two or more.

    With few checkpoints, a sentence says how to keep more; without any, there is nothing.
    A checkpoint that the running training removes meanwhile is omitted.
    """
    kept = complete_checkpoints(run.folder)
    if len(kept) < 2:
        if kept:
            yield Note(f"The run has one checkpoint, and this section needs two. {_how_to_keep_more(run, len(kept))}")
        return
    if run.shards is None:
        yield Note(run.data_problem, warning=True)
        return
    chosen = np.linspace(0, len(kept) - 1, min(MAX_CHECKPOINTS, len(kept))).round().astype(int)
    rows: list[tuple[str, Reconstruction]] = []
    notes: list[Part] = []
    with ProgressBar("checkpoints drawn", len(chosen), style) as progress:
        for checkpoint in (kept[n] for n in chosen):
            step = f"step {step_of(checkpoint.name)}"
            try:
                rows.append((step, _reconstruct_one(checkpoint, run.shards, clip_of(run.facts))))
            except (VmaeError, OSError) as error:
                if (checkpoint / MARKER).is_file():
                    notes.append(Note(f"{step} can't be shown: {error}", warning=True))
            progress.advance()
    announce("writing the page", style)
    if rows:
        yield Note(
            f"{rows[0][1].title}, reconstructed from {len(rows)} of the {len(kept)} checkpoints that the run has. "
            "Clip and mask are the same."
            + (f" {_how_to_keep_more(run, len(kept))}" if len(kept) < MAX_CHECKPOINTS else "")
        )
        yield page_rows(rows)
    yield from notes


def _how_to_keep_more(run: StoredRun, num_kept: int) -> str:
    settings = resolved_recipe(run)["checkpoint"]
    every, keep = settings.get("every_steps", "?"), settings.get("keep", "?")
    key = "lower checkpoint.every_steps" if isinstance(keep, int) and num_kept < keep else "raise checkpoint.keep"
    return (
        f"The run saves a checkpoint every {every} steps and keeps the last {keep}. "
        f"To see more of the training, {key}. The key may change when a run resumes."
    )


def _reconstruct_one(checkpoint: Path, shards: Shards, clip: ClipSpec) -> Reconstruction:
    """The same clip for each checkpoint. Raises VmaeError or OSError if checkpoint or clip can't be read."""
    model = load_pretrained(str(checkpoint), None)
    masks = mask_specs(str(checkpoint), model.geometry)
    clips, unreadable = reconstruct_shards(model, shards, clip=clip, videos=1, masks=masks, seed=0)
    if not clips:
        raise VmaeError("; ".join(f"{key}: {reason}" for key, reason in unreadable.items()))
    return clips[0]
