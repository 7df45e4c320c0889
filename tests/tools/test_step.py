from __future__ import annotations

from importlib.util import find_spec

import pytest

from tools.bench.step import CROSS, MODELS, OURS, Job, Measured, build, make_step, rows


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("task", ["pretrain", "finetune"])
def test_all_models_of_the_benchmark_have_the_same_loss(task: str, precision: str) -> None:
    models = MODELS if find_spec("transformers") else (OURS,)
    measured = [make_step(build(Job(model, task, "quick", batch=2)), precision) for model in models]
    tolerance = 1e-5 if precision == "float32" else 0.02
    assert [one.loss for one in measured] == pytest.approx([measured[0].loss] * len(models), rel=tolerance)
    assert all(len(one.cpu) == len(one.wall) == 3 for one in measured)


def test_the_decoder_with_cross_attention_makes_other_steps() -> None:
    own, cross = (make_step(build(Job(model, "pretrain", "quick", batch=2)), "float32") for model in (OURS, CROSS))
    assert 0 < cross.loss != own.loss


def test_ratios_are_those_of_the_rounds() -> None:
    ours = [
        Measured((1.0, 2.0, 1.0), (2.0, 2.0, 2.0), 0.5, 100.0),
        Measured((2.0, 4.0, 2.0), (4.0, 4.0, 4.0), 0.5, 101.0),
    ]
    theirs = [
        Measured((2.0, 4.0, 2.0), (3.0, 3.0, 3.0), 0.5, 90.0),
        Measured((2.0, 4.0, 2.0), (6.0, 6.0, 6.0), 0.5, 90.0),
    ]
    first, second = rows("S", [OURS, "other"], [ours, theirs])
    assert (
        first
        == "| S | vmae-train | 1500 | 3000 | 1500 | 6000 | 9000 | 101 | 1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |"
    )
    assert (
        second == "| S | other | 2000 | 4000 | 2000 | 8000 | 13500 | 90 | 1.50 (1.00 to 2.00) | 1.50 (1.50 to 1.50) |"
    )
