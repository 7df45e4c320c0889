"""Early warnings: each known problem gives one, and published recipes give none."""

from __future__ import annotations

from typing import Any

import pytest

from vmae_data.recipes import list_recipes, load_recipe
from vmae_train.console import spec_of
from vmae_train.training.diagnostics import TrainingFacts, check_log, check_setup
from vmae_train.training.optimizer import Schedule

SCHEDULE = Schedule(peak=6e-4, lowest=0, warmup=40, steps=800)
SOUND = TrainingFacts("pretrain", True, False, 1.5e-4, 1024, 8, 1024, SCHEDULE)


def _lines(losses: list[float], **more: Any) -> list[dict[str, Any]]:
    line = {"kind": "train", "data_wait": 0.0, "limits": "compute"}
    return [{**line, "step": step, "loss": loss, **more} for step, loss in enumerate(losses, 1)]


def _schedule(warmup: int, steps: int = 60) -> Schedule:
    return Schedule(peak=1e-3, lowest=0, warmup=warmup, steps=steps)


def _names(facts: TrainingFacts) -> list[str]:
    return [warning.name for warning in check_setup(facts)]


def test_a_normal_training_gets_no_warning() -> None:
    assert _names(SOUND) == []


@pytest.mark.parametrize(
    ("name", "changes", "word"),
    [
        ("learning rate", {"base_lr": 6e-3}, "0.0006 to 0.004"),
        ("learning rate", {"base_lr": 1e-5}, "this recipe has 1e-05"),
        ("small batch", {"batch": 32, "positions": 32}, "train.batch = 32"),
        ("uneven batch", {"positions": 1040}, "16 of 1040 slots"),
        ("endless warm-up", {"schedule": Schedule(peak=1e-4, lowest=0, warmup=80, steps=80)}, "all 80 steps"),
        ("other data", {"other_data": "trained elsewhere"}, "trained elsewhere"),
    ],
)
def test_each_problem_gives_one_warning_with_its_numbers(name: str, changes: dict[str, Any], word: str) -> None:
    (warning,) = check_setup(SOUND._replace(**changes))
    assert warning.name == name and word in warning.text and "\n" not in warning.text


def test_learning_rates_of_probes_and_own_small_models_have_no_published_range() -> None:
    odd = SOUND._replace(base_lr=1.0, batch=8, positions=8)
    assert set(_names(odd)) == {"learning rate", "small batch"}
    assert _names(odd._replace(frozen=True)) == _names(odd._replace(published_size=False)) == []


def test_the_demos_finetune_on_other_videos_of_the_same_kind_without_a_warning() -> None:
    assert _names(SOUND._replace(other_data="trained elsewhere", published_size=False)) == []


@pytest.mark.parametrize("name", list_recipes("vmae_train"))
def test_no_recipe_gets_a_warning_about_its_learning_rate_or_batch(name: str) -> None:
    spec = load_recipe("vmae_train", name, spec_of(name), ())
    kind = "pretrain" if name.startswith("pretrain/") else "finetune"
    batch = spec.train.batch
    facts = SOUND._replace(
        kind=kind, published_size=spec.model.size != "tiny", base_lr=spec.optim.base_lr, batch=batch, positions=batch
    )
    assert _names(facts) == []


def test_a_constant_loss_gives_a_warning_and_one_near_1_its_reason() -> None:
    (near,) = check_log(_lines([1.2] * 10 + [0.998, 1.001] * 10), "pretrain", _schedule(10))
    assert near.name == "constant loss" and "each cube's mean" in near.text
    (stuck,) = check_log(_lines([0.693] * 20), "finetune", _schedule(0))
    assert "each cube's mean" not in stuck.text and "0.693" in stuck.text


def test_a_loss_that_falls_or_has_fallen_or_warms_up_gives_no_warning() -> None:
    falling = [0.99**step for step in range(30)]
    assert check_log(_lines(falling), "pretrain", _schedule(0)) == []
    assert check_log(_lines([*falling, *[0.7] * 40]), "pretrain", _schedule(0)) == []  # flat at its end
    assert check_log(_lines([1.0] * 29), "pretrain", _schedule(10)) == []


def test_a_plateau_is_judged_over_a_third_of_the_steps() -> None:
    # `pretrain/demo` in small: a plateau near 1 at the start, then the loss falls.
    plateau = [1.2] * 10 + [0.995] * 40 + [0.995 - 0.01 * step for step in range(20)]
    for end in range(1, len(plateau) + 1):
        assert check_log(_lines(plateau[:end]), "pretrain", _schedule(10, steps=210)) == []
    stuck = _lines([1.2] * 10 + [0.995] * 67)
    assert [warning.name for warning in check_log(stuck, "pretrain", _schedule(10, steps=210))] == ["constant loss"]
    # In a long training the warning comes after 100 logging steps.
    (long,) = check_log(_lines([1.0] * 110), "pretrain", _schedule(10, steps=100_000))
    assert "the last 100 logging steps" in long.text


@pytest.mark.parametrize(
    ("stage", "word"), [("decode", "loader.workers"), ("network", "cache"), ("transfer", "copies")]
)
def test_waiting_that_lasts_gives_a_warning_with_its_stage(stage: str, word: str) -> None:
    waiting = _lines([1.0] * 5, data_wait=0.95, limits=stage)
    (warning,) = check_log(waiting, "pretrain", _schedule(0))
    assert warning.name == "waiting for data" and word in warning.text and "95%" in warning.text
    assert check_log([*waiting[:4], *_lines([1.0])], "pretrain", _schedule(0)) == []
