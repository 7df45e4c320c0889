"""What a checkpoint's run states, as parts of a README in Markdown: how clips are sampled, training, scores.

Paths and URLs are cut to their last part: a README is made to be published.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vmae_data.amounts import plural
from vmae_data.errors import VmaeError
from vmae_data.format import Index
from vmae_data.pages.html import printable
from vmae_data.read.dataset import Shards
from vmae_data.recipes import recipe_text
from vmae_data.storage import RemotePath, storage_path
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluation.metrics import read_scores
from vmae_train.evaluation.protocol import EvaluationProtocol
from vmae_train.evaluation.settings import evaluation_settings
from vmae_train.runs.best import best_checkpoint, read_best
from vmae_train.runs.layout import EVALUATION, newest_checkpoint
from vmae_train.runs.metadata import RunFacts, read_facts, run_of
from vmae_train.runs.run_files import local_copy

__all__ = ["LICENCE", "Origin", "code_block", "frames_python", "origin_of", "sampling_text", "training_parts"]

LICENCE = """## Licence

Not known. It depends on the data and on the first weights. Enter it before you publish this folder."""
_NOT_TRAINING = ("loader", "cache", "checkpoint", "log")  # tables of a recipe that change no weight


class Origin(NamedTuple):
    """What is known of a checkpoint. `run` None: it belongs to no run, and `protocol` is that of published models."""

    run: Path | None
    facts: RunFacts | None
    checkpoint: str  # the name of the checkpoint in its run
    protocol: EvaluationProtocol
    is_stated: bool


def origin_of(source: str, *, best: bool = False, ema: bool = False) -> Origin:
    """What is known of a path or URL that `load_model` takes with the same flags. Raises DataError for a damaged run."""
    path, run = local_copy(source).resolve(), run_of(source)
    if run is not None and path == run:
        path = best_checkpoint(run) if best else newest_checkpoint(run) or run
    checkpoint = f"{path.name}, the moving average of the weights" if ema else path.name
    facts = read_facts(run) if run is not None else None
    spec, _, is_stated = evaluation_settings(source, ClipSpec(), None, ())
    protocol = spec.protocol()
    for url in (facts.validation, *facts.data) if facts is not None and protocol.clip.stride == "kept" else ():
        index = _index(url) if url is not None else None
        if index is not None:
            protocol = protocol._replace(clip=protocol.clip.resolve(index))
            break
    return Origin(run, facts, checkpoint, protocol, is_stated)


def _index(url: str, digest: str | None = None) -> Index | None:
    """The index of shards on this machine; None if they are not here, or are not those of the digest."""
    try:
        shards = Shards.open(url) if not isinstance(storage_path(url), RemotePath) else None
    except VmaeError:
        return None
    return shards.index if shards is not None and digest in (None, shards.digest) else None


def sampling_text(origin: Origin, num_frames: int) -> str:
    """How the frames of a clip are chosen, in words."""
    clip = origin.protocol.clip
    spacing = f"every {_ordinal(clip.stride)} frame" if clip.rate is None else f"{clip.rate:g} frames per second"
    if clip.stride == "kept":
        text = f"{num_frames} consecutive frames of the training's shards. Their spacing is not known here"
    elif clip.sampler == "uniform":
        text = f"one frame of each of {num_frames} equal parts of the video"
    elif clip.sampler == "dense":
        span = f"{num_frames} × {clip.stride}" if clip.rate is None else f"{num_frames} / {clip.rate:g} seconds of"
        text = f"{num_frames} frames, evenly spread over {span} frames of the video"
    else:
        text = f"{num_frames} frames, {spacing} of the video"
    if origin.is_stated:
        return text
    return f"not stated by the checkpoint. Published models of Kinetics take {text}"


def _ordinal(number: int | str | None) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"} if isinstance(number, int) and number % 100 not in (11, 12, 13) else {}
    return f"{number}{ending.get(int(number) % 10 if isinstance(number, int) else 0, 'th')}"


def frames_python(clip: ClipSpec, num_frames: int) -> str:
    """Python that reads `frames` (T H W C, uint8) of the clip in the middle of video.mp4, by PyAV and NumPy.

    Straight to RGB, swscale would repeat colour samples: up to 100 grey levels off, where full colour is 2 off.
    """
    step = clip.stride if isinstance(clip.stride, int) else 1
    if clip.sampler == "uniform":
        chosen = [f"chosen = (2 * np.arange({num_frames}) + 1) * len(pictures) // {2 * num_frames}"]
    elif clip.sampler == "dense":
        span = num_frames * step if clip.rate is None else f"round({num_frames} * rate / {clip.rate:g})"
        chosen = [
            f"span = min({span}, len(pictures))",
            "first = (len(pictures) - span) // 2",
            f"chosen = np.linspace(first, first + span, {num_frames}).astype(int).clip(max=first + span - 1)",
        ]
    else:
        kept = f"np.arange(0, len(pictures), {step})"
        if clip.rate is not None:
            kept = f"np.arange(0, len(pictures), rate / {clip.rate:g}).astype(int)"
        chosen = [
            f"kept = {kept}",
            f"first = max(0, len(kept) - {num_frames}) // 2",
            f"chosen = kept[np.minimum(first + np.arange({num_frames}), len(kept) - 1)]",
        ]
    return "\n".join(
        (
            'with av.open("video.mp4") as video:',
            *(["    rate = float(video.streams.video[0].average_rate)"] if clip.rate is not None else []),
            '    full = [frame.reformat(format="yuv444p", interpolation="BILINEAR") for frame in video.decode(video=0)]',
            '    pictures = [frame.to_ndarray(format="rgb24") for frame in full]',
            *chosen,
            "frames = np.stack([pictures[number] for number in chosen])  # T H W C, uint8",
        )
    )


def training_parts(origin: Origin) -> list[str]:
    """The sections on training data, recipe, scores and licence."""
    if origin.run is None or origin.facts is None:
        return ["## Training\n\nNot known: the file does not state it.", "## Scores\n\nNot known.", LICENCE]
    facts = origin.facts
    rows = [
        ("command", f"`vmae-train {facts.kind}`"),
        ("checkpoint", origin.checkpoint),
        *(("data", _data_text(*data)) for data in zip(facts.data, facts.data_digest, strict=True)),
    ]
    if facts.validation is not None and facts.validation_digest is not None:
        rows.append(("validation data", _data_text(facts.validation, facts.validation_digest)))
    rows.append(("first weights", "random" if facts.init is None else _last_part(facts.init)))
    recipe = {name: table for name, table in facts.recipe.items() if name not in _NOT_TRAINING}
    training = "\n".join(("| | |", "| --- | --- |", *(f"| {name} | {text} |" for name, text in rows)))
    return [
        f"## Training\n\n{training}\n\nThe recipe. What it leaves out of `model` follows from `size`, or is a default:\n\n{code_block(recipe_text(recipe))}",
        f"## Scores\n\n{_scores(origin.run, facts, origin.checkpoint)}",
        LICENCE,
    ]


def _data_text(url: str, digest: str) -> str:
    """The name of a data set, what its index states, and its digest."""
    index = _index(url, digest)
    parts = [_last_part(url)]
    if index is not None:
        classes = [f"classes: {len(index.classes)}"] if index.classes else []
        parts += [plural(index.samples, "video sample"), *classes, f"short side {index.short_side}, {index.spacing}"]
    return f"{', '.join(parts)} (index {digest[:16]})"


def _last_part(url: str) -> str:
    """The last part of a path or URL, safe inside a table."""
    return printable(re.split(r"[/\\]", url.rstrip("/\\"))[-1]).replace("|", "\\|") or "data"


def _scores(run: Path, facts: RunFacts, checkpoint: str) -> str:
    """The run's scores are of its last checkpoint. The best one has a score of its own."""
    if facts.kind == "pretrain":
        return "None: a pretraining computes no scores."
    newest, best = newest_checkpoint(run), read_best(run)
    scores = read_scores(run / EVALUATION)
    if scores is not None and newest is not None and newest.name == checkpoint:
        on = f" of {_last_part(facts.validation)}" if facts.validation is not None else ""
        control = f", control: {scores.control}" if scores.control else ""
        return (
            f"{scores.headline}, on {plural(scores.videos, 'validation video')}{on}, {scores.views} views "
            f"(clips × crops){control}. Computed by the training at its end."
        )
    if best is not None and best.name == checkpoint:
        return f"{best.metric} {best.value:.4g}, in the validation during training."
    return "Not known for this checkpoint."


def code_block(text: str) -> str:
    """Indented: no text can end such a block."""
    return "\n".join(f"    {line}".rstrip() for line in text.rstrip("\n").split("\n"))
