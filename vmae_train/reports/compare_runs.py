"""Runs of one kind side by side: scores or losses, warnings, and the differences of their recipes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from vmae_data.pages.html import Note, Part, Table
from vmae_data.recipes import difference
from vmae_train.evaluation.metrics import Scores, standard_error
from vmae_train.reports.charts import Curve, log_curve
from vmae_train.reports.resolved_recipe import resolved_recipe
from vmae_train.reports.run_reader import StoredRun
from vmae_train.runs.metadata import data_text

__all__ = [
    "comparison_parts",
    "describe_difference",
    "unique_names",
    "validation_curve",
    "validation_labels",
    "warning_notes",
]

_TASK = ("model", "mask", "clip")  # the tables that say what is predicted
_SPEED = ("clips per second", "waiting for data, %")  # columns
_VALIDATION = {"top1": "top-1, %", "mean_ap": "mAP, %", "mae": "MAE"}  # label of each headline metric


def comparison_parts(runs: Sequence[tuple[str, StoredRun]]) -> Iterator[Part]:
    """The comparison of the first run with the others, which are of its kind, and the warnings of the others."""
    yield from _finetuning_parts(runs) if runs[0][1].is_finetuning else _pretraining_parts(runs)
    for name, other in runs[1:]:
        yield from warning_notes(other, f"{name}, ")


def warning_notes(run: StoredRun, prefix: str = "") -> Iterator[Note]:
    """The warnings in a run's log."""
    for line in run.log:
        if line["kind"] == "warning":
            text = f"{prefix}step {line['step']}, {line.get('name', 'warning')}: {line.get('text', '')}"
            yield Note(text if prefix else f"S{text[1:]}", warning=True)


def _pretraining_parts(runs: Sequence[tuple[str, StoredRun]]) -> Iterator[Part]:
    rows = []
    for name, one in runs:
        losses = log_curve("", one.log, "loss").value
        rows.append((name, one.origin, one.progress, f"{losses[-1]:.4g}" if losses else "–", *_speed(one)))
    head = ("run", "started", "steps", "last loss", *_SPEED)
    yield Table(head, tuple(rows), (2, 3, 4, 5))
    (first, run), *others = runs
    for name, other in others:
        task, other_task = ({key: resolved_recipe(one).get(key) for key in _TASK} for one in (run, other))
        unlike = difference(task, other_task)
        unlike += difference({"data": run.facts.data_digest}, {"data": other.facts.data_digest})
        if unlike:
            yield Note(f"The losses of {first} and {name} are those of different tasks or data.", warning=True)
        yield _changes(first, run, name, other)


def _speed(run: StoredRun) -> tuple[str, str]:
    """Medians of throughput and waiting, as the columns `_SPEED` show them."""
    speeds, waits = (log_curve("", run.log, key).value for key in ("clips_per_second", "data_wait"))
    return f"{np.median(speeds):.4g}" if speeds else "–", f"{100 * np.median(waits):.1f}" if waits else "–"


def _finetuning_parts(runs: Sequence[tuple[str, StoredRun]]) -> Iterator[Part]:
    (first, run), *others = runs
    rows = tuple((*_score_row(name, one), *_speed(one)) for name, one in runs)
    head = ("run", "started", "steps", "score", "± s.e.", "top-5 %", "mean of classes %", "videos", "views", *_SPEED)
    yield Table(head, rows, (2, 3, 4, 5, 6, 7, 9, 10))
    for name, other in others:
        yield from _difference_parts(first, run, name, other)


def unique_names(runs: Sequence[StoredRun]) -> list[tuple[str, StoredRun]]:
    """Runs by the names of their folders; by their paths if two have the same name."""
    names = [run.name for run in runs]
    return [(run.name if names.count(run.name) == 1 else str(run.folder), run) for run in runs]


def _score_row(name: str, run: StoredRun) -> tuple[str, ...]:
    scores = run.scores
    if scores is None:
        return (name, run.origin, run.progress, *["–"] * 6)
    shown = (name, run.origin, str(run.step), str(scores.headline))
    details = ("–", "–", "–")
    if isinstance(scores, Scores):
        top5 = f"{scores.top5:.2f}" if scores.top5 is not None else "–"
        details = (f"{standard_error(scores.top1, scores.videos):.2f}", top5, f"{scores.mean_class:.2f}")
    return (*shown, *details, str(scores.videos), scores.views)


def _difference_parts(first: str, run: StoredRun, second: str, other: StoredRun) -> Iterator[Part]:
    """The difference of two scores, its uncertainty, and the differences of the two runs."""
    a, b = run.scores, other.scores
    if a is None or b is None:
        yield Note(f"{first} and {second} can't be compared: one of them has no score yet.", warning=True)
        return
    unlike = _protocol_differences(run, other)
    if unlike:
        text = f"{first} and {second} can't be compared: they were evaluated differently ({'; '.join(unlike)})."
        yield Note(text, warning=True)
        return
    if isinstance(a, Scores) and isinstance(b, Scores):
        yield Note(describe_difference(first, a, second, b))
    else:
        yield Note(
            f"{first}: {a.headline}; {second}: {b.headline}; on the same {a.videos} videos. "
            "One run each does not show how much of the difference is chance."
        )
    budgets = [f"{one.step} steps of {one.facts.recipe['train']['batch']} clips" for one in (run, other)]
    if budgets[0] != budgets[1]:
        yield Note(f"The training budgets differ: {budgets[0]} and {budgets[1]}.", warning=True)
    yield _changes(first, run, second, other)


def _changes(first: str, run: StoredRun, second: str, other: StoredRun) -> Part:
    """The differences of the recipes, the first weights and the data of two runs."""
    changed = difference(resolved_recipe(run), resolved_recipe(other))
    changed += difference({"init": run.facts.init}, {"init": other.facts.init})
    if (run.facts.data_digest, run.facts.data_weight) != (other.facts.data_digest, other.facts.data_weight):
        changed.append(f"data: {data_text(run.facts)} → {data_text(other.facts)}")
    lines = "\n".join(changed) if changed else "no difference in run.json"
    return Note(f"Differences between {first} and {second}:\n{lines}")


def _protocol_differences(run: StoredRun, other: StoredRun) -> list[str]:
    assert run.scores is not None
    assert other.scores is not None
    unlike = []
    if run.facts.validation_digest != other.facts.validation_digest:
        unlike.append("different validation videos")
    if run.scores.headline.key != other.scores.headline.key:
        unlike.append(f"{run.scores.headline.name} and {other.scores.headline.name}")
    for name in ("videos", "views", "merge", "control"):
        a, b = getattr(run.scores, name), getattr(other.scores, name)
        if a != b:
            unlike.append(f"{name}: {a} and {b}")
    return unlike


def describe_difference(first: str, a: Scores, second: str, b: Scores) -> str:
    """The difference of two accuracies and its standard error, in the same neutral words whichever is higher."""
    gap = a.top1 - b.top1
    error_a, error_b = standard_error(a.top1, a.videos), standard_error(b.top1, b.videos)
    error = math.hypot(error_a, error_b)
    text = (
        f"Top-1 on {a.videos} validation videos: {first} {a.top1:.2f} %, {second} {b.top1:.2f} %, "
        f"a difference of {gap:+.2f} points. The standard error of one accuracy is about "
        f"{max(error_a, error_b):.1f} points, that of the difference about {error:.1f}. "
    )
    if abs(gap) < 2 * error:
        return text + "The difference is less than two standard errors: these videos don't show which run is better."
    return text + (
        f"The difference is {abs(gap) / error:.1f} standard errors: the choice of videos alone does not explain it. "
        "With one run each, the effect of another seed is unknown."
    )


def validation_labels(run: StoredRun) -> tuple[str, str]:
    """Title and label of the chart of the scores during training."""
    label = _VALIDATION[_validation_key(run)]
    return f"Validation {label.removesuffix(', %')} during training", label


def validation_curve(name: str, run: StoredRun) -> Curve:
    """The scores during training; with the final one if it has the same views."""
    curve = log_curve(name, run.log, _validation_key(run), kind="validation")
    views = {line["views"] for line in run.log if line.get("kind") == "validation"}
    if run.scores is None or views - {run.scores.views} or run.step in curve.step:
        return curve
    return Curve(name, [*curve.step, run.step], [*curve.value, run.scores.headline.value])


def _validation_key(run: StoredRun) -> str:
    """The log's key for the headline metric of this run."""
    if run.scores is not None:
        return run.scores.headline.key
    return next((key for key in _VALIDATION if any(key in line for line in run.log)), "top1")
