"""Runs of one kind side by side: scores or losses, warnings, and the differences of their recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vmae_data.pages.html import Note, Part, Table
from vmae_data.recipes import difference
from vmae_train.evaluation.metrics import Scores, standard_error
from vmae_train.reports.charts import Curve, log_curve
from vmae_train.reports.group_runs import NamedRun, RunGroup, compare_groups, describe_group, group_runs, rank_groups
from vmae_train.reports.resolved_recipe import resolved_recipe
from vmae_train.reports.run_reader import StoredRun, pretraining_of
from vmae_train.runs.metadata import data_text

__all__ = [
    "comparison_parts",
    "unique_names",
    "validation_curve",
    "validation_labels",
    "warning_notes",
]

_TASK = ("model", "mask", "clip")  # the tables that say what is predicted
_SPEED = ("clips per second", "waiting for data, %")  # columns
_VALIDATION = {"top1": "top-1, %", "mean_ap": "mAP, %", "mae": "MAE"}  # label of each headline metric


def comparison_parts(runs: Sequence[NamedRun]) -> Iterator[Part]:
    """The comparison of the first run with the others, which are of its kind, and the warnings of the others."""
    yield from _finetuning_parts(runs) if runs[0].run.is_finetuning else _pretraining_parts(runs)
    for name, other, _ in runs[1:]:
        yield from warning_notes(other, f"{name}, ")


def warning_notes(run: StoredRun, prefix: str = "") -> Iterator[Note]:
    """The warnings in a run's log."""
    for line in run.log:
        if line["kind"] == "warning":
            text = f"{prefix}step {line['step']}, {line.get('name', 'warning')}: {line.get('text', '')}"
            yield Note(text if prefix else f"S{text[1:]}", warning=True)


def _pretraining_parts(runs: Sequence[NamedRun]) -> Iterator[Part]:
    rows = []
    for name, one, _ in runs:
        losses = log_curve("", one.log, "loss").value
        rows.append((name, one.origin, one.progress, f"{losses[-1]:.4g}" if losses else "–", *_speed(one)))
    head = ("run", "started", "steps", "last loss", *_SPEED)
    yield Table(head, tuple(rows), (2, 3, 4, 5))
    (first, run, _), *others = runs
    for name, other, _ in others:
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


def _finetuning_parts(runs: Sequence[NamedRun]) -> Iterator[Part]:
    group, *other_groups = group_runs(runs)
    if other_groups and _comparable(runs):
        yield Note(rank_groups([group, *other_groups]))
    rows = tuple((*_score_row(one), *_speed(one.run)) for one in runs)
    head = ("run", "started", "labelled videos", "seed", "steps", "score", "± s.e.", "top-5 %", "mean of classes %")
    yield Table((*head, "videos", "views", *_SPEED), rows, (2, 4, 5, 6, 7, 8, 9, 11, 12))
    if other_groups:
        yield Table(("settings", "seeds", "runs"), tuple(_group_row(one) for one in (group, *other_groups)))
    elif len(group.scores) > 1:
        yield Note(describe_group(group))
    for other_group in other_groups:
        yield from _difference_parts(group, other_group)


def unique_names(runs: Sequence[StoredRun]) -> list[NamedRun]:
    """Runs by the names of their folders; by their paths if two have the same name."""
    names = [run.name for run in runs]
    unique = [run.name if names.count(run.name) == 1 else str(run.folder) for run in runs]
    return [NamedRun(name, run, pretraining_of(run)) for name, run in zip(unique, runs, strict=True)]


def _score_row(one: NamedRun) -> tuple[str, ...]:
    name, run, _ = one
    scores, labelled = run.scores, "–" if run.mixture is None else str(sum(len(shards) for shards in run.mixture.sets))
    if scores is None:
        return (name, run.origin, labelled, one.seed_text, run.progress, *["–"] * 6)
    shown = (name, run.origin, labelled, one.seed_text, str(run.step), str(scores.headline))
    details = ("–", "–", "–")
    if isinstance(scores, Scores):
        top5 = f"{scores.top5:.2f}" if scores.top5 is not None else "–"
        details = (f"{standard_error(scores.top1, scores.videos):.2f}", top5, f"{scores.mean_class:.2f}")
    return (*shown, *details, str(scores.videos), scores.views)


def _group_row(group: RunGroup) -> tuple[str, ...]:
    seeds = ", ".join(one.seed_text for one in group.members)
    return group.name, seeds, ", ".join(one.name for one in group.members)


def _difference_parts(a: RunGroup, b: RunGroup) -> Iterator[Part]:
    """The scores of two groups over their seeds, and how their settings differ."""
    scored = [one for group in (a, b) for one in group.members if one.run.scores is not None]
    if not (a.scores and b.scores):
        yield Note(f"{a.name} and {b.name} can't be compared: one of them has no score yet.", warning=True)
        return
    for one in scored[1:]:
        if unlike := _protocol_differences(scored[0].run, one.run):
            text = f"{scored[0].name} and {one.name} can't be compared: they were evaluated differently"
            yield Note(f"{text} ({'; '.join(unlike)}).", warning=True)
            return
    yield Note(compare_groups(a, b))
    (first, run, _), (second, other, _) = a.members[0], b.members[0]
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


def _comparable(runs: Sequence[NamedRun]) -> bool:
    """Whether all runs have a score of the same protocol."""
    if any(one.run.scores is None for one in runs):
        return False
    return not any(_protocol_differences(runs[0].run, one.run) for one in runs[1:])


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
