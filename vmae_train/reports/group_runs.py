"""Runs → groups that differ by their seeds only, and the words for the scores of two groups.

Another seed gives another score. Two groups are compared over their seeds; one run each shows nothing about settings.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from vmae_train.evaluation.metrics import AnyScores, Scores, standard_error
from vmae_train.reports.resolved_recipe import resolved_recipe
from vmae_train.reports.run_reader import StoredRun
from vmae_train.runs.metadata import fixed_facts

__all__ = ["NamedRun", "RunGroup", "compare_groups", "describe_group", "group_runs", "rank_groups"]

_Seeds = tuple[int, ...]  # of a run and of the pretraining it started from


class NamedRun(NamedTuple):
    """A run and its name on the page."""

    name: str
    run: StoredRun
    pretraining: StoredRun | None = None  # that it started from, if it still exists

    @property
    def seeds(self) -> _Seeds:
        """Its own seed, and that of its pretraining."""
        return tuple(one.facts.recipe.get("seed", 0) for one in (self.run, self.pretraining) if one is not None)

    @property
    def seed_text(self) -> str:
        """The seeds in words."""
        own, *first = self.seeds
        return f"{own} (pretraining {first[0]})" if first else str(own)


class RunGroup(NamedTuple):
    """Runs with equal settings, data and kind of start. Their seeds may differ."""

    members: tuple[NamedRun, ...]

    @property
    def name(self) -> str:
        """The name of the only run, or of the first and how many there are."""
        first = self.members[0].name
        return first if len(self.members) == 1 else f"{first} (of {len(self.members)} runs)"

    @property
    def scores(self) -> dict[_Seeds, AnyScores]:
        """The scores by seeds. A run that repeats another's seeds is not counted again."""
        scored = ((one.seeds, one.run.scores) for one in reversed(self.members))
        return {seeds: scores for seeds, scores in scored if scores is not None}


def group_runs(runs: Sequence[NamedRun]) -> list[RunGroup]:
    """Groups in the order of their first runs."""
    settings: list[Any] = []
    members: list[list[NamedRun]] = []
    for one in runs:
        own = _settings(one.run, one.pretraining)
        if own not in settings:
            settings.append(own)
            members.append([])
        members[settings.index(own)].append(one)
    return [RunGroup(tuple(some)) for some in members]


def _settings(run: StoredRun, pretraining: StoredRun | None) -> dict[str, Any]:
    """What is equal in the runs of a group: all but the seeds and the name of the pretraining."""
    facts = fixed_facts(msgspec.structs.replace(run.facts, recipe=resolved_recipe(run)))
    facts["recipe"].pop("seed", None)
    if pretraining is not None:
        facts["init"] = {**_settings(pretraining, None), "step": pretraining.step}
    return facts


def describe_group(group: RunGroup) -> str:
    """The spread of its scores over the seeds."""
    scores = list(group.scores.values())
    unit = scores[0].headline.name
    values = [one.headline.value for one in scores]
    return f"{group.name}: {unit} on {scores[0].videos} validation videos over {len(scores)} seeds: {_spread(values)}."


def rank_groups(groups: Sequence[RunGroup]) -> str:
    """The mean score and the steps of each group, best first. All have scores of the same protocol."""
    scores = [list(group.scores.values()) for group in groups]
    metric = scores[0][0].headline
    means = [statistics.mean(one.headline.value for one in some) for some in scores]
    order = sorted(range(len(groups)), key=means.__getitem__, reverse=metric.higher_is_better)
    words = (f"{groups[i].name} {means[i]:.4g} after {groups[i].members[0].run.step} steps" for i in order)
    return f"Best first, {metric.name}{', %' if metric.unit == '%' else ''}: {'; '.join(words)}."


def compare_groups(a: RunGroup, b: RunGroup) -> str:
    """Their scores over the seeds, in the same neutral words whichever is higher."""
    scores_a, scores_b = a.scores, b.scores
    some = next(iter(scores_a.values()))
    unit = some.headline
    if len(scores_a) == len(scores_b) == 1:
        return _compare_two(a.name, some, b.name, next(iter(scores_b.values())))
    values_a, values_b = ([one.headline.value for one in scores.values()] for scores in (scores_a, scores_b))
    gap = statistics.mean(values_a) - statistics.mean(values_b)
    text = f"{unit.name} on {some.videos} validation videos over {len(scores_a)} and {len(scores_b)} seeds. "
    text += f"{a.name}: {_spread(values_a)}. {b.name}: {_spread(values_b)}. "
    text += f"The means differ by {gap:+.2f}. "
    if min(len(values_a), len(values_b)) == 1:
        return text + "One of both has a single seed, so this shows nothing about the settings."
    common = sorted(scores_a.keys() & scores_b.keys())
    if len(common) > 1:
        signs = [scores_a[seeds].headline.value - scores_b[seeds].headline.value for seeds in common]
        higher, lower = sum(sign > 0 for sign in signs), sum(sign < 0 for sign in signs)
        text += f"With the same seed {a.name} is higher in {higher} and lower in {lower} of {len(common)}. "
    if min(values_a) > max(values_b) or max(values_a) < min(values_b):
        return text + "The ranges do not overlap."
    return text + "The ranges overlap."


def _compare_two(first: str, a: AnyScores, second: str, b: AnyScores) -> str:
    text = f"{first}: {a.headline}; {second}: {b.headline}; on the same {a.videos} validation videos, "
    text += f"a difference of {a.headline.value - b.headline.value:+.2f}. "
    if isinstance(a, Scores) and isinstance(b, Scores):
        error = max(standard_error(one.top1, one.videos) for one in (a, b))
        text += f"The standard error of one accuracy, for the choice of videos alone, is about {error:.1f} points. "
    return text + "This is one seed each: it shows nothing about the settings. Add runs with other seeds."


def _spread(values: Sequence[float]) -> str:
    mean = f"mean {statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    return f"{mean}, standard deviation {statistics.stdev(values):.2f}, {min(values):.2f} to {max(values):.2f}"
