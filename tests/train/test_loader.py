from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae_data.errors import DataError
from vmae_data.names import tar_name
from vmae_data.read.batches import PADDING, BatchLayout, Request, TrainingOrder
from vmae_data.read.dataset import Shards
from vmae_data.rng import Rng
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.frame_sampling import StrideSampler, TemporalViews
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec, padded_size
from vmae_train.clips.mask import tube_mask

SEED, BATCH, RANKS = 3, 8, 4


def _content(batch: Batch, augment: Augment) -> dict[str, torch.Tensor]:
    """What a micro-batch holds, down to the crops."""
    boxes = augment.sample_boxes(batch.planes.size_B2, batch.rng, torch.ones(len(batch.label_B), dtype=torch.bool))
    mask = tube_mask(batch.rng, slices=8, patches=16, ratio=0.75)
    return {
        **{name: getattr(batch.planes, name) for name in ("y_BTHW", "u_BTHW", "v_BTHW", "size_B2")},
        "label": batch.label_B,
        "masked": mask.masked_BM,
        **{f"box {name}": value for name, value in boxes._asdict().items()},
        "crops": augment(batch.planes, boxes),
    }


def _frames(request: Request, shards: Shards) -> list[tuple[str, tuple[int, ...]]]:
    """Key and frames of each sample."""
    sampler = StrideSampler(16, 1)
    return [
        (shards.key(n), sampler(shards.view(n), Rng(SEED, request.epoch, shards.sample_number(n))).decode)
        for n in request.samples
    ]


def _load(shards: Shards, requests: list[Request], workers: int) -> list[Batch]:
    spec = LoaderSpec(workers=workers, ahead=2)
    with ClipLoader(
        shards, StrideSampler(16, 1), requests, batch=BATCH // RANKS, frames=16, seed=SEED, spec=spec
    ) as loader:
        return list(loader)


def test_one_process_and_four_ranks_load_the_same_global_batches_to_the_bit(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    augment = Augment(AugmentSpec(size=32, crop="multiscale", flip=True))
    order = TrainingOrder(shards, seed=SEED, batch=BATCH)
    steps = 2 * order.steps_per_epoch
    single = _load(shards, list(order.requests(0, steps, BatchLayout(1, RANKS, BATCH // RANKS))), 0)
    by_rank = [
        _load(shards, list(order.requests(0, steps, BatchLayout.of(BATCH, None, RANKS), rank)), workers)
        for rank, workers in enumerate((1, 0, 2, 0))
    ]
    together = [by_rank[rank][step] for step in range(steps) for rank in range(RANKS)]
    assert len(single) == len(together) == steps * RANKS
    for one, other in zip(single, together, strict=True):
        assert _frames(one.request, shards) == _frames(other.request, shards)
        expected, content = _content(one, augment), _content(other, augment)
        for name, value in expected.items():
            assert torch.equal(value, content[name]), name


def test_batches_follow_the_order_and_a_new_epoch_has_another(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    order = TrainingOrder(shards, seed=SEED, batch=BATCH)
    first = [order.samples(step) for step in range(order.steps_per_epoch)]
    second = [order.samples(step) for step in range(order.steps_per_epoch, 2 * order.steps_per_epoch)]
    assert first != second
    assert len({n for batch in first for n in batch}) == BATCH * order.steps_per_epoch
    assert order.samples(0) == first[0]  # steps can be computed in any order


def test_an_unreadable_sample_keeps_its_position_with_weight_0(demo_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    shards = Shards.open(str(folder))
    member = shards.member_range(1)
    with (folder / tar_name(0)).open("r+b") as file:
        file.seek(member.offset + 5000)
        file.write(b"damaged")
    with ClipLoader(
        shards, StrideSampler(16, 1), [Request(0, 0, (0, 1, 2))], batch=3, frames=16, seed=0, spec=LoaderSpec()
    ) as loader:
        (batch,) = loader
    assert batch.weight_B.tolist() == [1, 0, 1]
    assert batch.valid == 2
    assert not batch.planes.y_BTHW[1].any()
    assert list(loader.unreadable.by_key) == [shards.key(1)]


def test_too_many_unreadable_samples_stop_the_loader_and_are_listed(demo_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    shards = Shards.open(str(folder))
    for shard in (0, 1):
        (folder / tar_name(shard)).write_bytes(bytes((folder / tar_name(shard)).stat().st_size))
    with (
        ClipLoader(
            shards,
            StrideSampler(16, 1),
            [Request(0, 0, tuple(range(12)))],
            batch=12,
            frames=16,
            seed=0,
            spec=LoaderSpec(workers=2),
        ) as loader,
        pytest.raises(DataError, match="9 samples can't be read") as caught,
    ):
        list(loader)
    assert shards.key(0) in str(caught.value)


def test_padding_positions_and_several_views_have_their_index(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    with ClipLoader(
        shards,
        TemporalViews(16, 1, 2),
        [Request(0, 0, (3, PADDING))],
        batch=2,
        frames=24,
        seed=0,
        spec=LoaderSpec(workers=0),
    ) as loader:
        (batch,) = loader
    assert batch.weight_B.tolist() == [1, 0]
    assert batch.index_BVT is not None
    assert batch.index_BVT.shape == (2, 2, 16)
    frames = int(shards.frames_NP[3, 0])
    assert batch.index_BVT[0, 1, -1] == frames - 1


def test_padded_size_follows_the_index_and_a_very_wide_frame_is_cropped(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    height, width = padded_size(shards)
    assert (height, width) == tuple(int(n) for n in shards.size_N2.max(axis=0))
    shards.size_N2[0] = (36, 400)
    assert padded_size(shards)[1] == int(2.4 * 36) // 2 * 2
    assert np.all(shards.size_N2[1:] <= 86)
