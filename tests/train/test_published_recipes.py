"""The published recipes compared with a table that was copied from the papers' scripts, not from the recipes."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import pytest

from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head
from vmae_train.clips.mask import num_masked_tokens
from vmae_train.console import spec_of
from vmae_train.finetune import FinetuneSpec
from vmae_train.pretrain import PretrainSpec, grid_of
from vmae_train.training.optimizer import Schedule
from vmae_train.training.run_spec import RunSpec


class Encoder(NamedTuple):
    dim: int
    depth: int
    heads: int
    patch: int = 16
    hidden: int = 0  # of an MLP; 0: four times dim


ENCODERS = {
    "S": Encoder(384, 12, 6),
    "B": Encoder(768, 12, 12),
    "L": Encoder(1024, 24, 16),
    "H": Encoder(1280, 32, 16),
    "g": Encoder(1408, 40, 16, patch=14, hidden=6144),
}


class Pretraining(NamedTuple):
    size: str
    epochs: int
    batch: int
    base_lr: float
    peak: float
    stride: int | str
    flip: bool
    decoder: tuple[int, int, int]  # dim, depth, heads
    ratio: float = 0.9
    warmup: int = 40
    repeats: int = 1
    clip_grad: float | None = None
    running_cell: bool = False


S, B, L, H = (192, 4, 3), (384, 4, 6), (512, 12, 8), (640, 12, 8)
V2 = (512, 4, 8)
PRETRAINING = {
    "k400-s-1600": Pretraining("S", 1600, 1024, 1.5e-4, 6e-4, 4, True, S),
    "k400-s-1600-official": Pretraining("S", 1600, 1024, 1.5e-4, 6e-4, 4, False, S),
    "k400": Pretraining("B", 800, 1024, 1.5e-4, 6e-4, 4, True, B),
    "k400-official": Pretraining("B", 800, 2048, 1.5e-4, 1.2e-3, 4, False, B),
    "k400-b-1600": Pretraining("B", 1600, 1024, 1.5e-4, 6e-4, 4, True, B),
    "k400-b-1600-official": Pretraining("B", 1600, 2048, 1.5e-4, 1.2e-3, 4, False, B),
    "k400-l-1600": Pretraining("L", 1600, 1024, 1.5e-4, 6e-4, 4, True, L),
    "k400-l-1600-official": Pretraining("L", 1600, 512, 1.5e-4, 3e-4, 4, False, L),
    "k400-h-1600": Pretraining("H", 1600, 1024, 1.5e-4, 6e-4, 4, True, H),
    "k400-h-1600-official": Pretraining("H", 1600, 1024, 1.5e-4, 6e-4, 4, False, H),
    "ssv2-s-2400": Pretraining("S", 2400, 1024, 1.5e-4, 6e-4, 2, False, S),
    "ssv2-s-2400-official": Pretraining("S", 2400, 2048, 1.5e-4, 1.2e-3, 2, False, S),
    "ssv2": Pretraining("B", 800, 1024, 1.5e-4, 6e-4, 2, False, B),
    "ssv2-official": Pretraining("B", 800, 2048, 1.5e-4, 1.2e-3, 2, False, B),
    "ssv2-b-2400": Pretraining("B", 2400, 1024, 1.5e-4, 6e-4, 2, False, B),
    "ssv2-b-2400-official": Pretraining("B", 2400, 2048, 1.5e-4, 1.2e-3, 2, False, B),
    "ucf101-b-3200": Pretraining("B", 3200, 192, 3e-4, 2.25e-4, 4, True, B, ratio=0.75),
    "ucf101-b-3200-official": Pretraining("B", 3200, 192, 3e-4, 2.25e-4, 4, False, B, ratio=0.75),
    "hmdb51-b-4800": Pretraining("B", 4800, 192, 3e-4, 2.25e-4, 4, True, B, ratio=0.75),
    "v2-hybrid-b-200": Pretraining(
        "B", 200, 32 * 32, 1e-3, 4e-3, "kept", False, B, warmup=20, repeats=4, running_cell=True
    ),
    "v2-hybrid-l-300": Pretraining(
        "L", 300, 48 * 32, 1e-3, 6e-3, "kept", False, V2, warmup=30, repeats=4, running_cell=True
    ),
    "v2-hybrid-h-300": Pretraining(
        "H", 300, 64 * 32, 1e-3, 8e-3, "kept", False, V2, warmup=30, repeats=4, running_cell=True
    ),
    "v2-hybrid-g-300": Pretraining(
        "g", 300, 64 * 32, 6e-4, 4.8e-3, "kept", False, V2, warmup=30, repeats=4, clip_grad=0.02, running_cell=True
    ),
}

# (patch, ratio) → visible and masked tokens of a clip; the running-cell mask keeps half of the masked ones.
TOKENS = {(16, 0.9): (160, 1408), (16, 0.75): (392, 1176), (14, 0.9): (208, 1840)}


class Finetuning(NamedTuple):
    size: str
    gpus: int
    per_gpu: int
    repeats: int
    base_lr: float
    peak: float
    epochs: int
    layer_decay: float
    drop_path: float
    head_dropout: float = 0.0
    min_lr: float = 1e-6
    weight_decay: float = 0.05
    warmup: int = 5
    clip_grad: float | None = None
    stride: int = 4
    short_videos: str = "v2"


FINETUNING = {
    "k400-s-1600": Finetuning("S", 32, 12, 2, 5e-4, 7.5e-4, 150, 0.75, 0.1),
    "k400": Finetuning("B", 64, 8, 1, 1e-3, 2e-3, 100, 0.75, 0.1),
    "k400-b-1600": Finetuning("B", 64, 6, 2, 5e-4, 7.5e-4, 75, 0.75, 0.1),
    "k400-l-1600": Finetuning("L", 64, 2, 2, 2e-3, 1e-3, 35, 0.75, 0.1),
    "k400-h-1600": Finetuning("H", 64, 8, 2, 1e-3, 2e-3, 50, 0.75, 0.2, head_dropout=0.5, min_lr=1e-5),
    "ssv2-s-2400": Finetuning("S", 32, 12, 2, 1e-3, 1.5e-3, 40, 0.70, 0.1),
    "ssv2-s-2400-official": Finetuning("S", 32, 12, 2, 1e-3, 1.5e-3, 40, 0.70, 0.1, short_videos="v1"),
    "ssv2": Finetuning("B", 64, 8, 1, 5e-4, 1e-3, 50, 0.75, 0.1),
    "ssv2-official": Finetuning("B", 64, 8, 1, 5e-4, 1e-3, 50, 0.75, 0.1, short_videos="v1"),
    "ssv2-b-2400": Finetuning("B", 64, 6, 2, 5e-4, 7.5e-4, 30, 0.75, 0.1),
    "ssv2-b-2400-official": Finetuning("B", 64, 6, 2, 5e-4, 7.5e-4, 30, 0.75, 0.1, short_videos="v1"),
    "ucf101-b-3200": Finetuning("B", 8, 16, 2, 5e-4, 2.5e-4, 100, 0.70, 0.2, head_dropout=0.5, min_lr=1e-5),
    "hmdb51-b-4800": Finetuning("B", 8, 16, 2, 5e-4, 2.5e-4, 60, 0.70, 0.2, head_dropout=0.5, min_lr=1e-5),
    "v2-k400-b-200": Finetuning("B", 32, 16, 2, 7e-4, 1.4e-3, 90, 0.75, 0.1),
    "v2-k710-b-200": Finetuning("B", 32, 16, 2, 7e-4, 1.4e-3, 90, 0.75, 0.1),
    "v2-ssv2-b-200": Finetuning("B", 16, 16, 2, 2e-3, 2e-3, 25, 0.65, 0.1),
    "v2-k400-l-300": Finetuning("L", 32, 6, 2, 2e-3, 1.5e-3, 35, 0.75, 0.2),
    "v2-ssv2-l-300": Finetuning("L", 32, 6, 2, 5e-4, 3.75e-4, 20, 0.75, 0.2),
    "v2-k400-h-300": Finetuning("H", 32, 4, 2, 1e-3, 5e-4, 40, 0.8, 0.2, head_dropout=0.5),
    "v2-k600-h-300": Finetuning("H", 32, 4, 2, 1e-3, 5e-4, 40, 0.8, 0.2, head_dropout=0.5),
    "v2-k710-h-300": Finetuning("H", 32, 4, 2, 1e-3, 5e-4, 40, 0.8, 0.2, head_dropout=0.5),
    "v2-ssv2-h-300": Finetuning("H", 32, 4, 2, 5e-4, 2.5e-4, 20, 0.8, 0.2),
    "v2-k400-g-300": Finetuning("g", 64, 3, 2, 1e-3, 7.5e-4, 30, 0.9, 0.2, weight_decay=0.1),
    "v2-k710-g-300": Finetuning("g", 32, 3, 2, 1e-3, 3.75e-4, 35, 0.9, 0.3, weight_decay=0.1, clip_grad=5.0),
    "v2-k400-g-300-k710": Finetuning("g", 32, 3, 2, 1e-5, 3.75e-6, 3, 0.9, 0.25, weight_decay=0.1, warmup=1),
    "v2-k600-g-300-k710": Finetuning("g", 32, 3, 2, 1e-5, 3.75e-6, 3, 0.9, 0.25, weight_decay=0.1, warmup=1),
    "v2-ssv2-g-300": Finetuning("g", 32, 3, 2, 3e-4, 1.125e-4, 20, 0.9, 0.25),
    "v2-ucf101-g-300-k710": Finetuning("g", 8, 3, 2, 1e-3, 9.375e-5, 50, 0.9, 0.35, head_dropout=0.5),
    "v2-hmdb51-g-300-k710": Finetuning("g", 8, 3, 2, 5e-4, 4.6875e-5, 15, 0.9, 0.35, head_dropout=0.5, stride=2),
}

TABLES = {"pretrain": PRETRAINING, "finetune": FINETUNING}


def test_the_recipes_are_those_of_these_tables_and_three_of_our_own() -> None:
    own = {"demo", "demo-long", "own-small"}
    names = [f"{command}/{name}" for command, table in TABLES.items() for name in own | set(table)]
    assert sorted(names) == sorted(list_recipes("vmae_train"))


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_resolves_to_the_published_numbers(name: str) -> None:
    expected = PRETRAINING[name]
    spec = load_recipe("vmae_train", f"pretrain/{name}", PretrainSpec)
    geometry = spec.geometry()
    decoder = (geometry.decoder_embed_dim, geometry.decoder_depth, geometry.decoder_num_heads)
    optim, train = spec.optim, spec.train
    actual = Pretraining(
        size=spec.model.size, epochs=train.epochs or 0, batch=train.batch, base_lr=optim.base_lr,
        peak=_schedule(spec).peak, stride=spec.clip.stride or 0, flip=spec.augment.flip, decoder=decoder,
        ratio=spec.mask.ratio, warmup=round(optim.warmup_epochs or 0), repeats=train.repeats,
        clip_grad=optim.clip_grad, running_cell=spec.mask.decoder == "running-cell",
    )  # fmt: skip
    print(f"\npretrain/{name}: {actual}")
    assert actual._replace(peak=expected.peak) == expected
    assert math.isclose(actual.peak, expected.peak)
    assert (optim.betas, optim.eps, optim.weight_decay, optim.min_lr) == ((0.9, 0.95), 1e-8, 0.05, 1e-5)
    assert (optim.layer_decay, spec.model.drop_path, spec.mask.kind, spec.augment.crop) == (1, 0, "tube", "multiscale")
    assert (spec.augment.randaugment, spec.clip.sampler) == (None, "stride")
    _check_encoder(spec, expected.size)


@pytest.mark.parametrize("name", PRETRAINING)
def test_a_pretraining_recipe_hides_the_published_number_of_tokens(name: str) -> None:
    spec = load_recipe("vmae_train", f"pretrain/{name}", PretrainSpec)
    geometry = spec.geometry()
    masked = num_masked_tokens(spec.mask, grid_of(geometry))
    assert (geometry.num_tokens - masked, masked) == TOKENS[geometry.patch_size, spec.mask.ratio]
    if spec.mask.decoder == "running-cell":
        assert (spec.mask.decoder_ratio, spec.mask.skipped_per_cell) == (0.5, 2)


@pytest.mark.parametrize("name", FINETUNING)
def test_a_finetuning_recipe_resolves_to_the_published_numbers(name: str) -> None:
    expected = FINETUNING[name]
    spec = load_recipe("vmae_train", f"finetune/{name}", FinetuneSpec)
    optim, train, model = spec.optim, spec.train, spec.model
    actual = Finetuning(
        size=model.size, gpus=expected.gpus, per_gpu=train.batch // expected.gpus, repeats=train.repeats,
        base_lr=optim.base_lr, peak=_schedule(spec).peak, epochs=train.epochs or 0, layer_decay=optim.layer_decay,
        drop_path=model.drop_path, head_dropout=model.fc_drop_rate, min_lr=optim.min_lr,
        weight_decay=optim.weight_decay, warmup=round(optim.warmup_epochs or 0), clip_grad=optim.clip_grad,
        stride=spec.clip.stride or 0, short_videos=spec.clip.short_videos,
    )  # fmt: skip
    print(f"\nfinetune/{name}: {actual}")
    assert train.batch == expected.gpus * expected.per_gpu
    assert actual._replace(peak=expected.peak) == expected
    assert math.isclose(actual.peak, expected.peak)
    assert (optim.betas, optim.eps) == ((0.9, 0.999), 1e-8)
    _check_encoder(spec, expected.size)
    _check_augmentation(spec, expected, is_ssv2="ssv2" in name)


@pytest.mark.parametrize("name", [f"{command}/{name}" for command, table in TABLES.items() for name in table])
def test_a_head_states_command_hardware_score_learning_rate_and_source(name: str) -> None:
    head = recipe_head(read_recipe("vmae_train", name))
    spec = load_recipe("vmae_train", name, spec_of(name))
    lines = head.splitlines()
    assert lines[0].startswith(f"vmae-train {name.partition('/')[0]} --recipe {name} --data ")
    assert all(
        any(line.startswith(f"{label}: ") for line in lines)
        for label in ("Hardware", "Expected", "Learning rate", "Source")
    )
    rate = re.search(r"the peak is (\S+) × (\d+) / 256 = (\S+) \(base_lr", head)
    assert rate is not None
    assert (float(rate[1]), int(rate[2])) == (spec.optim.base_lr, spec.train.batch)
    assert math.isclose(float(rate[3]), _schedule(spec).peak)
    layout = re.search(r"1 GPU runs (\d+) micro-batches of (\d+) per step; 8 GPUs \(.*?\) run (\d+|1 of 24) each", head)
    assert layout is not None
    micro = spec.train.micro_batch or 0
    assert (int(layout[1]) * micro, int(layout[2])) == (spec.train.batch, micro)
    share = math.ceil(spec.train.batch / 8)
    assert share == 24 if layout[3] == "1 of 24" else int(layout[3]) == math.ceil(share / micro)


@pytest.mark.parametrize(
    "name", ["pretrain/k400", "pretrain/ucf101-b-3200", "pretrain/hmdb51-b-4800", "finetune/hmdb51-b-4800"]
)
def test_numbers_that_nobody_verified_are_marked(name: str) -> None:
    assert "recalled, unverified" in " ".join(recipe_head(read_recipe("vmae_train", name)).split())


def test_own_small_counts_in_steps_and_reads_shards_built_by_rate() -> None:
    for name in ("pretrain/own-small", "finetune/own-small"):
        spec = load_recipe("vmae_train", name, spec_of(name))
        assert (spec.clip.rate, spec.clip.stride, spec.train.epochs) == (6.25, None, None)
        assert spec.optim.warmup_steps == spec.train.steps * 0.05
        head = recipe_head(read_recipe("vmae_train", name))
        assert f"× {spec.train.batch} / 256 = {_plain(_schedule(spec).peak)}" in head
        assert f"epochs = {spec.train.steps} × {spec.train.batch} / videos" in head


def _plain(learning_rate: float) -> str:
    mantissa, exponent = f"{learning_rate:e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def _schedule(spec: RunSpec) -> Schedule:
    return Schedule.of(spec.optim, batch=spec.train.batch, steps=10_000, steps_per_epoch=100)


def _check_encoder(spec: RunSpec, size: str) -> None:
    geometry, expected = spec.geometry(), ENCODERS[size]
    assert Encoder(geometry.embed_dim, geometry.depth, geometry.num_heads, geometry.patch_size) == expected._replace(
        hidden=0
    )
    assert round(geometry.embed_dim * geometry.mlp_ratio) == (expected.hidden or 4 * expected.dim)
    assert (geometry.image_size, geometry.num_frames, geometry.tubelet_size) == (224, 16, 2)
    assert (geometry.position, geometry.encoder_eps, geometry.init) == ("sinusoid-1d", 1e-6, None)


def _check_augmentation(spec: FinetuneSpec, expected: Finetuning, *, is_ssv2: bool) -> None:
    augment, policy, mix = spec.augment, spec.augment.randaugment, spec.mix
    assert policy is not None
    assert augment.erasing is not None
    assert (policy.magnitude, policy.layers, policy.magnitude_std, policy.interpolation) == (7, 4, 0.5, "bicubic")
    assert (augment.crop, augment.scale, augment.ratio, augment.erasing.prob) == (
        "resized",
        (0.08, 1),
        (0.75, 1.3333),
        0.25,
    )
    assert (mix.mixup, mix.cutmix, mix.prob, mix.switch, mix.label_smoothing) == (0.8, 1, 1, 0.5, 0.1)
    assert (augment.flip, spec.clip.sampler, spec.evaluate.views) == (
        (False, "uniform", "2x3") if is_ssv2 else (True, "dense", "5x3")
    )
    # The originals mix samples within one GPU: a group fits into its batch, and has clips of several videos.
    assert expected.per_gpu % mix.mix_group == 0
    assert mix.mix_group > 1
