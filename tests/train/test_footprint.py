from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head
from vmae_train import footprint as module
from vmae_train.clips import erasing
from vmae_train.clips.rng import ClipRng
from vmae_train.console import spec_of
from vmae_train.finetune import FinetuneSpec
from vmae_train.footprint import (
    Footprint,
    find_footprint,
    footprint_key,
    frame_size,
    known_footprints,
    measure_footprint,
    memory_text,
    noise_batch,
)
from vmae_train.models.geometry import Geometry
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec
from vmae_train.training.optimizer import build_optimizer

TABLE = {name: row for row in known_footprints() for name in row.recipes}


@pytest.mark.parametrize("name", list_recipes("vmae_train"))
def test_the_head_of_every_recipe_has_the_memory_of_the_table(name: str) -> None:
    row = TABLE[name]
    assert row.key == footprint_key(load_recipe("vmae_train", name, spec_of(name))), "run python -m tools.bench.memory"
    assert memory_text(row.footprint.peak_mib) in recipe_head(read_recipe("vmae_train", name)).splitlines()


def test_the_table_has_no_other_recipes() -> None:
    assert set(TABLE) == set(list_recipes("vmae_train"))


@pytest.mark.parametrize("name", ["pretrain/demo", "finetune/demo", "pretrain/k400-s-1600", "finetune/k400-s-1600"])
def test_the_table_is_what_is_measured(name: str) -> None:
    measured = measure_footprint(load_recipe("vmae_train", name, spec_of(name)))
    known = TABLE[name].footprint
    assert measured.micro_batch == known.micro_batch
    for field in ("state_mib", "crops_mib", "peak_mib", "gflop_a_clip"):
        assert getattr(measured, field) == pytest.approx(getattr(known, field), rel=0.01), field


def _matmul_flops(geometry: Geometry, tokens: int, dim: int, depth: int) -> tuple[float, float]:
    """Of the forward pass of `depth` blocks: linear maps, and attention."""
    linear = 2 * tokens * dim * dim * (4 + 2 * geometry.mlp_ratio)
    return depth * linear, depth * 4 * tokens**2 * dim


@pytest.mark.parametrize("name", ["pretrain/k400-s-1600", "pretrain/k400", "pretrain/k400-l-1600"])
def test_the_operations_of_a_clip_are_those_of_its_matrix_products(name: str) -> None:
    """A backward pass has twice the products. That of attention computes its scores again: 2.5 times."""
    geometry = load_recipe("vmae_train", name, PretrainSpec).geometry()
    visible, masked = 160, 1408
    encoder = _matmul_flops(geometry, visible, geometry.embed_dim, geometry.depth)
    decoder = _matmul_flops(geometry, geometry.num_tokens, geometry.decoder_embed_dim, geometry.decoder_depth)
    patches = 2 * visible * geometry.cube_dim * geometry.embed_dim
    bridge = 2 * visible * geometry.embed_dim * geometry.decoder_embed_dim
    head = 2 * masked * geometry.decoder_embed_dim * geometry.cube_dim
    # The last block computes keys and values of all tokens, and the rest for the masked ones.
    not_computed = visible / geometry.num_tokens / geometry.decoder_depth
    share = (1 + 2 * geometry.mlp_ratio) / (4 + 2 * geometry.mlp_ratio)
    decoder = decoder[0] * (1 - share * not_computed), decoder[1] * (1 - not_computed)
    linear = 3 * (encoder[0] + decoder[0] + bridge + head) + 2 * patches  # no gradient of the pixels
    expected = (linear + 3.5 * (encoder[1] + decoder[1])) / 1e9
    assert TABLE[name].footprint.gflop_a_clip == pytest.approx(expected, rel=0.001)


def test_the_operations_of_cross_attention_are_those_of_its_matrix_products() -> None:
    """Queries of the predicted tokens, keys and values of the visible ones."""
    settings = ["model.decoder_attention=cross", "mask.decoder=running-cell", "train.micro_batch=2", "train.batch=2"]
    spec = load_recipe("vmae_train", "pretrain/k400-s-1600", PretrainSpec, settings)
    assert footprint_key(spec) != TABLE["pretrain/k400-s-1600"].key
    geometry, visible, predicted = spec.geometry(), 160, 704
    dim, depth, mlp = geometry.decoder_embed_dim, geometry.decoder_depth, geometry.mlp_ratio
    encoder = _matmul_flops(geometry, visible, geometry.embed_dim, geometry.depth)
    decoder = depth * 2 * dim**2 * (predicted * (2 + 2 * mlp) + 2 * visible)
    attention = depth * 4 * predicted * visible * dim
    patches = 2 * visible * geometry.cube_dim * geometry.embed_dim
    outside = 2 * visible * geometry.embed_dim * dim + 2 * predicted * dim * geometry.cube_dim
    expected = (3 * (encoder[0] + decoder + outside) + 2 * patches + 3.5 * (encoder[1] + attention)) / 1e9
    assert measure_footprint(spec).gflop_a_clip == pytest.approx(expected, rel=0.001)


def test_the_state_is_frames_weights_and_two_moments() -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec)
    model = PretrainModel(spec.geometry(), seed=None)
    weights = sum(4 * weight.numel() for weight in model.parameters())
    height, width = frame_size(32)
    frames = spec.train.batch * 16 * height * width * 3 / 2
    state = TABLE["pretrain/demo"].footprint.state_mib * 2**20
    assert state == pytest.approx(3 * weights + frames, rel=0.03)  # and buffers


def test_memory_is_counted_from_the_creation_of_a_tensor_to_its_end() -> None:
    memory = module._Memory()
    with memory:
        kept = torch.empty(1024)
        view = kept[:10] + 1
        del view
        assert memory.live == 4096
        for _ in range(3):
            torch.empty(2048)
    assert (memory.live, memory.peak) == (4096, 4096 + 8192)
    del kept
    assert memory.live == 0


def test_the_peak_is_that_of_the_allocator_in_a_real_step() -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, ["train.precision=float32"])
    counted = measure_footprint(spec)
    model = module._build_model(spec)
    augment, batch = module._build_augment(spec), noise_batch(spec.train.batch, 16, 32)
    for weight in model.parameters():
        nn.init.zeros_(weight)
    optimizer = build_optimizer(model, spec.optim, depth=model.geometry.depth)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        module._loss(spec, model, augment, batch).backward()
        optimizer.step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in events)) / 2**20
    assert counted.state_mib + peak == pytest.approx(counted.peak_mib, rel=0.02)


def test_a_known_footprint_is_not_measured_and_another_micro_batch_is(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Footprint(micro_batch=1, state_mib=1, crops_mib=1, peak_mib=1, gflop_a_clip=1)
    monkeypatch.setattr(module, "measure_footprint", lambda spec, processes: other)
    spec = load_recipe("vmae_train", "pretrain/k400", PretrainSpec)
    assert find_footprint(spec) == find_footprint(spec, processes=8) == TABLE["pretrain/k400"].footprint
    assert find_footprint(spec, processes=64) is other  # micro-batches of 16
    smaller = load_recipe("vmae_train", "pretrain/k400", PretrainSpec, ["train.micro_batch=32"])
    assert find_footprint(smaller) is other


def test_more_clips_of_a_video_take_more_memory() -> None:
    once = TABLE["pretrain/demo"].footprint
    twice = measure_footprint(load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.repeats=2"]))
    assert twice.peak_mib > once.peak_mib
    assert twice.gflop_a_clip == pytest.approx(once.gflop_a_clip, rel=0.01)


def test_a_step_on_fake_tensors_leaves_no_noise_without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "_noise_tables", {})
    settings = ["model.depth=1", "train.batch=8", "train.micro_batch=8", "augment.erasing.prob=1"]
    measure_footprint(load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings))
    clips = torch.zeros(1, 3, 2, 32, 32)
    boxes = erasing.ErasedBoxes(*(np.array([number]) for number in (0, 4, 4, 8, 8)))
    erasing.erase(clips, ClipRng.on("cpu", seed=0, epoch=0, sample=[0]), boxes)
    assert clips[:, :, :, 4:12, 4:12].std() > 0.5
