"""One page on a run: its data, curves, reconstructions and scores, and other finetunings beside it.

What a page says of two runs is computed from their numbers; it claims no gain that they don't show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.html import Charts, Fact, Facts, Figure, Note, Part, Section, Table, write_page
from vmae_data.pictures import choose_samples
from vmae_data.read.contact_sheet import contact_sheet
from vmae_data.recipes import build_spec
from vmae_data.storage import writable_path
from vmae_train.inference.drawing import page_figures
from vmae_train.inference.reconstruct import load_pretrained, mask_ratio, reconstruct_shards
from vmae_train.models.geometry import ModelSpec
from vmae_train.reports.charts import curves, log_curve
from vmae_train.reports.compare_runs import comparison, validation_curve, validation_title
from vmae_train.reports.run_reader import RunReader, pretraining_of, read_run
from vmae_train.reports.scores_page import accuracy, headline_fact
from vmae_train.runs.metadata import clip_of, data_words

__all__ = ["write_report"]

PICTURED, RECONSTRUCTED = 12, 4


def write_report(run: str | Path, out: str | Path, *, against: Sequence[str | Path] = ()) -> None:
    """Write the page on a run, finished or not.

    Raises DataError where a folder is no run, MisuseError where runs of different kinds are to be compared.
    """
    page = writable_path(out, "--out")
    reader = read_run(run)
    others = [read_run(other) for other in against]
    for one in (reader, *others) if others else ():
        if not one.is_finetuning:
            raise MisuseError(f"{one.folder}: is a pretraining; --against compares finetunings, which have scores")
    pretraining = pretraining_of(reader)
    sections = [
        Section("At a glance", tuple(_glance(reader))),
        Section("Beside other runs", tuple(comparison(reader, others))),
        Section("Accuracy", tuple(_accuracy(reader))),
        Section("Videos", tuple(_videos(reader))),
        Section("Training", tuple(_training(reader))),
        Section("Reconstructions", tuple(_reconstructions(reader)) if not reader.is_finetuning else ()),
        *(_pretraining_sections(reader, pretraining) if reader.is_finetuning else ()),
        Section("Unreadable samples", tuple(_unreadable(reader))),
        Section("Recipe", tuple(_recipe(reader))),
    ]
    kind = "Finetuning" if reader.is_finetuning else "Pretraining"
    write_page(page, f"{kind} {reader.name}", sections, _subtitle(reader))


def _subtitle(reader: RunReader) -> str:
    recipe = reader.facts.recipe
    steps = f"step {reader.step} of {reader.steps}" if reader.steps is not None else f"step {reader.step}"
    return f"{recipe['model']['size']} model, {'finished' if reader.finished else 'not finished'}, {steps}"


def _glance(reader: RunReader) -> Iterator[Part]:
    facts = [
        Fact("steps", f"{reader.step}", f"of {reader.steps}" if reader.steps is not None else "of an unknown number")
    ]
    losses = log_curve("", reader.log, "loss").value
    if losses:
        facts.append(Fact("last loss", f"{losses[-1]:.4g}", f"first logged {losses[0]:.4g}"))
    if reader.scores is not None:
        scores = reader.scores
        facts.append(headline_fact(scores))
        facts.append(Fact("validation videos", str(scores.videos), f"{scores.views} views each"))
    speeds = log_curve("", reader.log, "clips_per_second").value
    if speeds:
        facts.append(Fact("clips a second", f"{np.median(speeds):.4g}", "median"))
    waits = log_curve("", reader.log, "data_wait", scale=100).value
    if waits:
        facts.append(Fact("waiting for data", f"{np.median(waits):.1f} %", "of the time, median"))
    yield Facts(tuple(facts))
    if not reader.finished:
        saved = (
            f"the last checkpoint is of step {reader.state.step}"
            if reader.checkpoint
            else "no checkpoint was saved yet"
        )
        yield Note(f"This run is not finished; {saved}. The page shows what is there.", warning=True)
    if reader.is_finetuning:
        yield Note(f"It began {reader.origin}.")


def _accuracy(reader: RunReader) -> Iterator[Part]:
    if reader.scores is not None:
        yield from accuracy(reader.scores)
    elif reader.is_finetuning:
        yield Note("There is no score yet: the validation set is scored when the last step is done.")


def _videos(reader: RunReader) -> Iterator[Part]:
    if reader.shards is None:
        yield Note(reader.why_no_shards, warning=True)
        return
    shards = reader.shards
    classes = f" of {len(shards.classes)} classes" if shards.classes else ""
    yield Note(f"{len(shards)} samples{classes} to train on. First, middle and last kept frame of some of them:")
    try:
        gallery, unreadable = contact_sheet(shards, choose_samples(shards.label_N, PICTURED))
    except DataError as error:
        yield Note(f"The run's data can't be shown: {error}", warning=True)
        return
    yield gallery
    for key, why in unreadable.items():
        yield Note(f"{key} can't be shown: {why}", warning=True)


def _training(reader: RunReader) -> Iterator[Part]:
    level, caption = None, ""
    if not reader.is_finetuning:
        level = _level_of_means(reader)
        caption = f"Dotted, {level:.4g}: what filling every hidden cube with its mean gives, where none is even."
    drawn = [
        curves("Loss", [log_curve("loss", reader.log, "loss")], caption, level=level),
        curves("Learning rate", [log_curve("rate", reader.log, "lr")]),
        curves("Norm of the gradient", [log_curve("norm", reader.log, "grad_norm")]),
        curves("Waiting for data, % of the time", [log_curve("wait", reader.log, "data_wait", scale=100)]),
        curves("Clips a second", [log_curve("clips", reader.log, "clips_per_second")]),
        curves(validation_title(reader), [validation_curve("", reader)]) if reader.is_finetuning else None,
    ]
    figures: tuple[Figure, ...] = tuple(figure for figure in drawn if figure is not None)
    if figures:
        yield Charts(figures)
    else:
        yield Note("Too little was logged for a curve yet.")


def _level_of_means(reader: RunReader) -> float:
    """The loss of predicting 0: targets have an unbiased variance of 1, so the mean of n squares is (n - 1) / n."""
    geometry = build_spec(reader.facts.recipe["model"], ModelSpec, "the run's recipe").geometry()
    return 1 - 1 / (geometry.tubelet_size * geometry.patch_size**2)


def _reconstructions(reader: RunReader) -> Iterator[Part]:
    if reader.checkpoint is None:
        yield Note("There is no checkpoint yet to draw reconstructions with.")
        return
    if reader.shards is None:
        yield Note(reader.why_no_shards, warning=True)
        return
    place = str(reader.checkpoint)
    try:
        model = load_pretrained(place, None)
        ratio = mask_ratio(place, model.geometry, None)
        drawn = reconstruct_shards(
            model,
            reader.shards,
            clip=clip_of(reader.facts),
            videos=RECONSTRUCTED,
            ratio=ratio,
            seed=0,
        )
    except VmaeError as error:
        yield Note(f"Reconstructions can't be drawn: {error}", warning=True)
        return
    if not drawn.clips:
        yield Note("None of the chosen samples could be read.", warning=True)
        return
    yield Note(
        f"The checkpoint of step {reader.state.step}, with {100 * ratio:.4g} % of the places hidden. Each hidden cube is shown "
        "with the mean and spread of the original, as the published pictures are: its brightness and contrast are "
        "given, only its pattern is the model's. A model that has learned nothing gives even blocks."
    )
    yield from (page_figures(clip) for clip in drawn.clips)
    for key, why in drawn.unreadable.items():
        yield Note(f"{key} can't be shown: {why}", warning=True)


def _pretraining_sections(reader: RunReader, pretraining: RunReader | None) -> Iterator[Section]:
    if reader.facts.init is None:
        return
    title = "The pretraining that it began from"
    if pretraining is None:
        yield Section(title, (Note(f"{reader.facts.init} is not there any more, or is no pretraining run."),))
        return
    yield Section(f"{title}: {pretraining.name}", (*_glance(pretraining), *_training(pretraining)))
    yield Section("Reconstructions of the pretraining", tuple(_reconstructions(pretraining)))
    yield Section("Recipe of the pretraining", tuple(_recipe(pretraining)))


def _unreadable(reader: RunReader) -> Iterator[Part]:
    found = {**reader.state.unreadable, **(reader.scores.unreadable if reader.scores else {})}
    if found:
        yield Table(("sample", "why"), tuple(sorted(found.items())))
    else:
        yield Note("Every sample that was asked for could be read.")


def _recipe(reader: RunReader) -> Iterator[Part]:
    facts = reader.facts
    rows = [("data", data_words(facts)), ("validation", facts.validation or "–"), ("start", reader.origin)]
    rows += [(key, "–" if value is None else str(value)) for key, value in _flat(facts.recipe)]
    yield Table(("key", "value"), tuple(rows), folded="every value")


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
