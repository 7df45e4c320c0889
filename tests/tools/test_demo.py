"""`make demo`: its steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo.__main__ import demo_of
from tools.study.pieces import in_order


@pytest.mark.parametrize("seed", [0, 3])
def test_every_step_waits_for_what_it_reads(seed: int) -> None:
    demo = demo_of(seed)
    for piece in demo.pieces:
        made = {str(need.out) for need in in_order(piece.needs)}
        read = {word for word in piece.words if word.startswith(("videos/", "shards/", "runs/"))} - {str(piece.out)}
        assert read <= made, piece.name
    assert {demo.picture, demo.page, *demo.scored.values()} <= {piece.out for piece in demo.pieces}


def test_at_most_one_step_at_a_time_shows_progress() -> None:
    loud = [piece for piece in demo_of(0).pieces if "--quiet" not in piece.words]
    for number, piece in enumerate(loud[1:], 1):
        assert loud[number - 1] in in_order(piece.needs), piece.name


def test_another_seed_has_other_videos_names_and_seeds() -> None:
    first, second = demo_of(0), demo_of(1)
    assert not {piece.out for piece in first.pieces} & {piece.out for piece in second.pieces}
    seeds = [
        piece.words[piece.words.index("--seed") + 1]
        for demo in (first, second)
        for piece in demo.pieces
        if piece.words[1] == "demo"
    ]
    assert seeds == ["20", "21", "22", "23", "24", "25"]
    trainings = [piece for piece in second.pieces if piece.words[1] in ("pretrain", "finetune")]
    assert len(trainings) == 4
    assert all("seed=1" in piece.words for piece in trainings)


def test_the_videos_that_are_scored_have_no_labels_to_learn_from() -> None:
    for piece in demo_of(0).pieces:
        if piece.words[1] == "finetune":
            data, val = (Path(piece.words[piece.words.index(name) + 1]).name for name in ("--data", "--val"))
            assert (data, val) == ("demo-labels", "demo-val")
