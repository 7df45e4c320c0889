from __future__ import annotations

import math

import pytest

from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.training.optimizer import OptimSpec, Schedule, build_optimizer, layer_scale

TINY = ModelSpec(size="tiny", decoder_depth=1).geometry()


def test_the_learning_rate_is_linear_with_both_ends_then_a_cosine() -> None:
    spec = OptimSpec(base_lr=1.5e-4, min_lr=1e-5, warmup_epochs=2)
    schedule = Schedule.of(spec, batch=1024, steps=100, steps_per_epoch=10)
    peak, lowest = 1.5e-4 * 4, 1e-5 * 4
    assert schedule.warmup == 20
    assert schedule.lr(0) == 0
    assert schedule.lr(19) == pytest.approx(peak)
    assert [schedule.lr(n) for n in range(20)] == pytest.approx([peak * n / 19 for n in range(20)])
    for i in range(80):
        expected = lowest + 0.5 * (peak - lowest) * (1 + math.cos(math.pi * i / 80))
        assert schedule.lr(20 + i) == pytest.approx(expected)


@pytest.mark.parametrize(
    "values",
    [
        {"base_lr": 1e-4},
        {"base_lr": 1e-4, "warmup_steps": 1, "warmup_epochs": 1.0},
        {"base_lr": 0.0, "warmup_steps": 1},
        {"base_lr": 1e-4, "min_lr": 1e-3, "warmup_steps": 1},
        {"base_lr": 1e-4, "warmup_steps": 1, "layer_decay": 0.0},
        {"base_lr": 1e-4, "warmup_steps": 1, "clip_grad": 0.0},
    ],
)
def test_learning_rates_that_contradict_each_other_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        OptimSpec(**values)


def test_layer_decay_counts_from_the_head_down() -> None:
    assert layer_scale("head.weight", 12, 0.75) == 1
    assert layer_scale("fc_norm.bias", 12, 0.75) == 1
    assert layer_scale("blocks.11.attn.q_bias", 12, 0.75) == 0.75
    assert layer_scale("blocks.0.mlp.fc1.weight", 12, 0.75) == 0.75**12
    assert layer_scale("patch_embed.proj.weight", 12, 0.75) == 0.75**13


def test_every_parameter_is_in_one_group_and_only_matrices_decay() -> None:
    model = PretrainModel(TINY)
    optimizer = build_optimizer(model, OptimSpec(base_lr=1e-3, warmup_steps=1), depth=4)
    names = {id(p): name for name, p in model.named_parameters()}
    grouped = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    plain = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    assert {
        "mask_token",
        "encoder.blocks.0.attn.q_bias",
        "encoder.norm.weight",
        "encoder.patch_embed.proj.bias",
    } <= plain
    assert not {"encoder.patch_embed.proj.weight", "decoder.head.weight", "encoder.blocks.0.attn.qkv.weight"} & plain


def test_a_classifiers_groups_have_a_scale_for_each_layer() -> None:
    optimizer = build_optimizer(
        Classifier(TINY, ("a", "b")), OptimSpec(base_lr=1e-3, warmup_steps=1, layer_decay=0.5), depth=4
    )
    assert sorted({group["scale"] for group in optimizer.param_groups}) == [0.5**n for n in range(5, -1, -1)]
