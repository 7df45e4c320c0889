"""Comparisons over seeds: which runs are of one group, and what is said of one run each and of several."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae_train.evaluation.metrics import Scores, class_scores
from vmae_train.reports.group_runs import (
    NamedRun,
    RunGroup,
    compare_groups,
    describe_group,
    group_runs,
    rank_groups,
)
from vmae_train.reports.run_reader import StoredRun
from vmae_train.runs.metadata import RunFacts
from vmae_train.training.checkpoint import RunState

NUMBERS = r"[+-]?\d+\.\d+"


def _scores(right: int, videos: int = 64) -> Scores:
    predicted = np.asarray([0] * right + [1] * (videos - right))
    return class_scores(
        np.eye(2)[predicted], np.zeros(videos, np.int64), classes=("a", "b"), views="1x1", unreadable={}, control=None
    )


def _stored(kind: str, seed: int, scores: Scores | None, init: str | None, data: str, **optim: Any) -> StoredRun:
    recipe = {"seed": seed, "model": {"size": "tiny"}, "optim": optim, "loader": {"workers": seed}, "train": {}}
    recipe |= {"augment": {}}
    facts = RunFacts(kind=kind, recipe=recipe, data=(data,), data_digest=(data,), init=init)
    return StoredRun("run", Path("run"), facts, [], None, RunState(step=8, samples=0), scores, None, "")


def _run(name: str, seed: int = 0, right: int | None = 32, *, first: int | None = None, **optim: Any) -> NamedRun:
    """A finetuning; `first` is the seed of its pretraining."""
    init = None if first is None else f"runs/pretraining-{first}"
    scores = None if right is None else _scores(right)
    pretraining = None if first is None else _stored("pretrain", first, None, None, "unlabelled")
    return NamedRun(name, _stored("finetune", seed, scores, init, "labelled", **optim), pretraining)


def _names(groups: list[RunGroup]) -> list[list[str]]:
    return [[one.name for one in group.members] for group in groups]


def test_runs_that_differ_by_seeds_and_by_what_changes_no_step_are_of_one_group() -> None:
    scratch = [_run("s0", 0), _run("s1", 1)]
    pretrained = [_run("p0", 0, first=5), _run("p1", 1, first=6)]
    faster = _run("f", 0, lr=0.1)
    assert _names(group_runs([pretrained[0], scratch[0], faster, scratch[1], pretrained[1]])) == [
        ["p0", "p1"],
        ["s0", "s1"],
        ["f"],
    ]
    assert pretrained[0].seed_text == "0 (pretraining 5)"
    assert scratch[1].seed_text == "1"


def test_a_start_whose_pretraining_is_gone_is_of_its_own_group() -> None:
    gone = [run._replace(pretraining=None) for run in (_run("a", 0, first=5), _run("b", 1, first=6))]
    assert _names(group_runs(gone)) == [["a"], ["b"]]


def test_one_run_each_claims_nothing_however_large_the_difference() -> None:
    for right in (32, 8):
        text = compare_groups(*group_runs([_run("a", right=62), _run("b", right=right, lr=0.1)]))
        assert text.endswith("This is one seed each: it shows nothing about the settings. Add runs with other seeds.")
        assert "on the same 64 validation videos" in text
    assert "a: top-1 96.88 %; b: top-1 12.50 %" in text
    assert "a difference of +84.38" in text


def test_a_run_that_repeats_another_is_no_second_seed() -> None:
    a, b = group_runs([_run("a", 0, 40), _run("a again", 0, 40), _run("b", 0, 30, lr=0.1)])
    assert len(a.members) == 2
    assert "one seed each" in compare_groups(a, b)


def test_several_seeds_are_told_with_every_range() -> None:
    runs = [_run(f"a{seed}", seed, right) for seed, right in enumerate((40, 44, 48))]
    runs += [_run(f"b{seed}", seed, right, lr=0.1) for seed, right in enumerate((30, 44, 34))]
    a, b = group_runs(runs)
    assert compare_groups(a, b) == (
        "top-1 on 64 validation videos over 3 and 3 seeds. "
        "a0 (of 3 runs): mean 68.75, standard deviation 6.25, 62.50 to 75.00. "
        "b0 (of 3 runs): mean 56.25, standard deviation 11.27, 46.88 to 68.75. The means differ by +12.50. "
        "With the same seed a0 (of 3 runs) is higher in 2 and lower in 0 of 3. The ranges overlap."
    )
    assert describe_group(a) == (
        "a0 (of 3 runs): top-1 on 64 validation videos over 3 seeds: "
        "mean 68.75, standard deviation 6.25, 62.50 to 75.00."
    )


def test_groups_are_ranked_by_the_mean_with_their_steps() -> None:
    runs = [_run("a", 0, 32), _run("b0", 0, 48, lr=0.1), _run("b1", 1, 60, lr=0.1), _run("c", 0, 16, lr=0.2)]
    assert rank_groups(group_runs(runs)) == (
        "Best first, top-1, %: b0 (of 2 runs) 84.38 after 8 steps; a 50 after 8 steps; c 25 after 8 steps."
    )


def test_several_seeds_against_one_show_nothing() -> None:
    a, b = group_runs([_run("a0", 0, 60), _run("a1", 1, 60), _run("b", 0, 8, lr=0.1)])
    assert compare_groups(a, b).endswith("One of both has a single seed, so this shows nothing about the settings.")


@pytest.mark.parametrize(("low", "words"), [(20, "do not overlap"), (41, "overlap")])
def test_the_words_are_the_same_whichever_group_is_higher(low: int, words: str) -> None:
    runs = [_run("a0", 0, 40), _run("a1", 1, 44), _run("b0", 2, low, lr=0.1), _run("b1", 3, low + 2, lr=0.1)]
    a, b = group_runs(runs)
    up, down = compare_groups(a, b), compare_groups(b, a)
    assert up.endswith(f"The ranges {words}.")
    assert re.sub(NUMBERS, "n", up).replace("a0", "x").replace("b0", "y") == re.sub(NUMBERS, "n", down).replace(
        "b0", "x"
    ).replace("a0", "y")


def test_runs_without_scores_do_not_count() -> None:
    (group,) = group_runs([_run("a", 0, 40), _run("b", 1, None)])
    assert len(group.scores) == 1
