"""`make demo`: its steps."""

from __future__ import annotations

from pathlib import Path

from tools.demo.__main__ import PAGE, PICTURE, demo_pieces


def test_every_step_reads_only_what_an_earlier_one_wrote() -> None:
    made: set[str] = set()
    for piece in demo_pieces():
        read = {word for word in piece.words if word.startswith(("videos/", "shards/", "runs/"))} - {str(piece.out)}
        assert read <= made, piece.name
        made.add(str(piece.out))
    assert {str(PICTURE), str(PAGE)} <= made


def test_the_steps_have_names_of_their_own() -> None:
    names = [piece.name for piece in demo_pieces()]
    assert len(set(names)) == len(names)


def test_the_videos_that_are_scored_are_other_ones() -> None:
    seeds = {Path(piece.out).name: piece.words for piece in demo_pieces() if piece.words[1] == "demo"}
    assert [words[words.index("--seed") + 1] for words in seeds.values()] == ["0", "1"]
