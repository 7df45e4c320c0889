"""A run's folder → one page: its data, curves, reconstructions and scores, and a comparison with other finetunings.

The page computes every statement about two runs from their numbers. It claims no gain that the numbers don't show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vmae_data.errors import DataError, MisuseError, RecipeError, VmaeError
from vmae_data.pages.html import Charts, Fact, Facts, Figure, Note, Part, Section, Table, write_page
from vmae_data.pages.pictures import choose_samples
from vmae_data.progress import ProgressStyle
from vmae_data.read.contact_sheet import contact_sheet
from vmae_data.read.dataset import Shards
from vmae_data.recipes import build_spec
from vmae_data.storage import writable_path
from vmae_train.inference.drawing import EXPLANATION, page_figures
from vmae_train.inference.reconstruct import load_pretrained, mask_specs, reconstruct_shards
from vmae_train.models.geometry import ModelSpec
from vmae_train.reports.charts import curves, log_curve
from vmae_train.reports.compare_runs import (
    comparison_parts,
    unique_names,
    validation_curve,
    validation_labels,
    warning_notes,
)
from vmae_train.reports.group_runs import NamedRun
from vmae_train.reports.over_time import over_time_parts
from vmae_train.reports.resolved_recipe import resolved_recipe
from vmae_train.reports.run_reader import StoredRun, pretraining_of, read_run
from vmae_train.reports.scores_page import headline_fact, score_parts, unreadable_parts
from vmae_train.reports.wrong_videos import wrong_sections
from vmae_train.runs.metadata import clip_of, data_text

__all__ = ["write_report"]

NUM_VIDEOS, NUM_RECONSTRUCTIONS = 12, 4


def write_report(
    run: str | Path,
    out: str | Path,
    *,
    against: Sequence[str | Path] = (),
    pictures: bool = True,
    style: ProgressStyle = ProgressStyle.QUIET,
) -> list[StoredRun]:
    """Write the page of a run, finished or not. Returns the run and those it is compared with.

    Frames and reconstructions need the data and the checkpoints; without `pictures` the page has none.
    Raises DataError for a folder that is not a run, MisuseError for a comparison of runs of different kinds,
    and for a run that is named twice.
    """
    page = writable_path(out, "--out")
    shown = read_run(run)
    others = [read_run(other) for other in against]
    folders = [one.folder.resolve() for one in (shown, *others)]
    for other in others:
        if other.facts.kind != shown.facts.kind:
            raise MisuseError(
                f"{other.folder}: is a {other.facts.kind} run, {shown.folder} a {shown.facts.kind} run. "
                "Name runs of one kind"
            )
        if folders.count(other.folder.resolve()) > 1:
            raise MisuseError(f"{other.folder}: is named twice. Compare different runs")
    pretraining = pretraining_of(shown)
    runs = unique_names([shown, *others])
    training = Section("Training", tuple(_training(runs)))
    sections = [
        Section("Summary", tuple(_summary(shown))),
        *((Section("Comparison", tuple(comparison_parts(runs))), training) if others else ()),
        Section("Scores", tuple(_scores(shown))),
        *(wrong_sections(shown.scores, *_validation(shown)) if pictures else ()),
        Section("Videos", tuple(_videos(shown)) if pictures else ()),
        *(() if others else (training,)),
        *(_reconstruction_sections(shown, style) if pictures and not shown.is_finetuning else ()),
        *(_pretraining_sections(shown, pretraining, pictures=pictures) if shown.is_finetuning else ()),
        Section("Unreadable samples", tuple(_unreadable(shown))),
        Section("Starts", tuple(_starts(runs))),
        Section("Recipe", tuple(_recipe(shown))),
    ]
    title = f"{'Finetuning' if shown.is_finetuning else 'Pretraining'} {shown.name}"
    state = "finished" if shown.finished else "not finished"
    steps = f"step {shown.step} of {shown.num_steps}" if shown.num_steps is not None else f"step {shown.step}"
    write_page(page, title, sections, f"{shown.facts.recipe['model']['size']} model, {state}, {steps}")
    return [shown, *others]


def _summary(run: StoredRun) -> Iterator[Part]:
    facts = [Fact("steps", f"{run.step}", f"of {run.num_steps}" if run.num_steps is not None else "total unknown")]
    losses = log_curve("", run.log, "loss").value
    if losses:
        facts.append(Fact("last loss", f"{losses[-1]:.4g}", f"first logged {losses[0]:.4g}"))
    if run.scores is not None:
        facts.append(headline_fact(run.scores))
        facts.append(Fact("validation videos", str(run.scores.videos), f"{run.scores.views} views each"))
    speeds = log_curve("", run.log, "clips_per_second").value
    if speeds:
        facts.append(Fact("clips per second", f"{np.median(speeds):.4g}", "median"))
    waits = log_curve("", run.log, "data_wait", scale=100).value
    if waits:
        facts.append(Fact("waiting for data", f"{np.median(waits):.1f} %", "of the time, median"))
    yield Facts(tuple(facts))
    if not run.finished:
        saved = f"The last checkpoint is of step {run.state.step}." if run.checkpoint else "It has no checkpoint yet."
        yield Note(f"This run is not finished. {saved}", warning=True)
    if run.is_finetuning:
        yield Note(f"The training started {run.origin}.")
    yield from warning_notes(run)


def _scores(run: StoredRun) -> Iterator[Part]:
    if run.scores is not None:
        yield from score_parts(run.scores)
    elif run.is_finetuning:
        yield Note("There is no score yet. The validation set is evaluated after the last step.")


def _validation(run: StoredRun) -> tuple[Shards | None, str]:
    """The validation videos of a run, or the reason why they can't be read."""
    if run.scores is None or run.facts.validation is None:
        return None, "the run names no validation videos"
    try:
        shards = Shards.open(run.facts.validation)
    except VmaeError as error:
        return None, str(error)
    if shards.digest != run.facts.validation_digest:
        return None, f"{shards.url} has changed since the training."
    return shards, ""


def _videos(run: StoredRun) -> Iterator[Part]:
    shards = run.shards
    if shards is None:
        yield Note(run.data_problem, warning=True)
        return
    classes = f" of {len(shards.classes)} classes" if shards.classes else ""
    yield Note(f"{len(shards)} training samples{classes}. Some of them, with the first, middle and last kept frame:")
    try:
        gallery, unreadable = contact_sheet(shards, choose_samples(shards.label_N, NUM_VIDEOS))
    except DataError as error:
        yield Note(f"The run's data can't be shown: {error}", warning=True)
        return
    yield gallery
    yield from _not_shown(unreadable)


def _not_shown(unreadable: dict[str, str]) -> Iterator[Part]:
    for key, reason in unreadable.items():
        yield Note(f"{key} can't be shown: {reason}", warning=True)


def _training(runs: Sequence[NamedRun]) -> Iterator[Part]:
    """The curves of all runs, which are of one kind, in the same charts."""
    run = runs[0].run
    baseline, caption = _baseline(runs)

    def chart(title: str, field: str, label: str, scale: float = 1) -> Figure | None:
        return curves(title, [log_curve(name, one.log, field, scale=scale) for name, one, _ in runs], label)

    losses = [log_curve(name, one.log, "loss") for name, one, _ in runs]
    charts = [
        curves("Loss", losses, "loss" if run.is_finetuning else "masked loss", caption, level=baseline),
        chart("Label loss", "label_loss", "label loss"),
        chart("Reconstruction loss", "reconstruction_loss", "masked loss"),
        chart("Learning rate", "lr", "learning rate"),
        chart("Gradient norm", "grad_norm", "norm before clipping"),
        chart("Waiting for data", "data_wait", "% of the time", scale=100),
        chart("Throughput", "clips_per_second", "clips/s"),
    ]
    if run.is_finetuning:
        title, label = validation_labels(run)
        charts.append(curves(title, [validation_curve(name, one) for name, one, _ in runs], label))
    figures = tuple(figure for figure in charts if figure is not None)
    if figures:
        yield Charts(figures)
    else:
        yield Note("The log has too few lines for a curve.")


def _baseline(runs: Sequence[NamedRun]) -> tuple[float | None, str]:
    """The loss of predicting the mean of each cube, and a caption for it, if it is the same for all these runs."""
    baselines = set()
    for _, run, _ in runs:
        if run.is_finetuning:
            return None, ""
        try:
            geometry = build_spec(run.facts.recipe["model"], ModelSpec, "the run's recipe").geometry()
        except RecipeError:  # of another version
            return None, ""
        # Targets have an unbiased variance of 1: the mean of n squares is (n - 1) / n.
        baselines.add(1 - 1 / (geometry.tubelet_size * geometry.patch_size**2))
    if len(baselines) > 1:
        return None, ""
    (level,) = baselines
    return level, f"Dotted line, {level:.4g}: the loss of predicting the mean of every masked cube."


def _reconstruction_sections(run: StoredRun, style: ProgressStyle) -> Iterator[Section]:
    yield Section("Reconstructions", tuple(_reconstructions(run)))
    yield Section("Reconstructions over time", tuple(over_time_parts(run, style)))


def _reconstructions(run: StoredRun) -> Iterator[Part]:
    if run.checkpoint is None:
        yield Note("There are no reconstructions yet: the run has no checkpoint.")
        return
    if run.shards is None:
        yield Note(run.data_problem, warning=True)
        return
    checkpoint = str(run.checkpoint)
    try:
        model = load_pretrained(checkpoint, None)
        masks = mask_specs(checkpoint, model.geometry)
        clip = clip_of(run.facts)
        clips, unreadable = reconstruct_shards(
            model, run.shards, clip=clip, videos=NUM_RECONSTRUCTIONS, masks=masks, seed=0
        )
    except VmaeError as error:
        yield Note(f"The reconstructions failed: {error}", warning=True)
        return
    if not clips:
        yield Note("None of the chosen samples could be read.", warning=True)
        return
    yield Note(
        f"From the checkpoint of step {run.state.step}. {EXPLANATION} An untrained model predicts uniform cubes."
    )
    yield from (page_figures(clip) for clip in clips)
    yield from _not_shown(unreadable)


def _pretraining_sections(run: StoredRun, pretraining: StoredRun | None, *, pictures: bool) -> Iterator[Section]:
    if run.facts.init is None:
        return
    if pretraining is None:
        yield Section("Pretraining", (Note(f"{run.facts.init} no longer exists, or is not a pretraining run."),))
        return
    yield Section(f"Pretraining: {pretraining.name}", (*_summary(pretraining), *_training(unique_names([pretraining]))))
    if pictures:
        yield Section("Reconstructions of the pretraining", tuple(_reconstructions(pretraining)))
    yield Section("Recipe of the pretraining", tuple(_recipe(pretraining)))


def _unreadable(run: StoredRun) -> Iterator[Part]:
    yield from unreadable_parts({**run.state.unreadable, **(run.scores.unreadable if run.scores else {})})


def _starts(runs: Sequence[NamedRun]) -> Iterator[Part]:
    """When, where and how each run was started or resumed. Logs of older versions don't have it."""
    rows = []
    commands: dict[str, list[str]] = {}  # command → where it was used
    for name, run, _ in runs:
        for start in run.starts:
            versions = f"vmae {start.vmae}, Python {start.python}, torch {start.torch}"
            machine = ", ".join(part for part in (start.gpu, start.cpu) if part)
            at = start.time.replace("T", " ").removesuffix("Z")
            rows.append((name, str(start.step), at, versions, machine, str(start.processes)))
            where = f"{name}, from step {start.step}" if len(runs) > 1 else f"From step {start.step}"
            commands.setdefault(start.command or "started by a Python program", []).append(where)
    first = 0 if len(runs) > 1 else 1
    head = ("run", "from step", "UTC", "versions", "machine", "processes")[first:]
    if rows:
        yield Table(head, tuple(row[first:] for row in rows), (1 - first, 5 - first))
    for command, places in commands.items():
        yield Note(f"{'; '.join(places)}:\n{command}")


def _recipe(run: StoredRun) -> Iterator[Part]:
    rows = [("data", data_text(run.facts)), ("validation", run.facts.validation or "–"), ("init", run.origin)]
    rows += [(key, "–" if value is None else str(value)) for key, value in _flatten(resolved_recipe(run))]
    yield Table(("key", "value"), tuple(rows), folded="every value")


def _flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
