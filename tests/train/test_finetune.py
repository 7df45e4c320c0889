"""The loss of a batch: augmented, repeated and mixed clips, independent of micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from vmae_data.errors import MisuseError, RecipeError
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout, Request
from vmae_data.recipes import load_recipe
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import Planes
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import MaskSpec
from vmae_train.clips.mixup import MixupSpec
from vmae_train.clips.rng import ClipRng
from vmae_train.finetune import FinetuneSpec, augmentation_text, check_mix_groups, finetune, label_loss
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec, masked_loss
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

TINY = ModelSpec(size="tiny", depth=1, decoder_depth=1).geometry()
CLASSES = ("left", "right", "up")
SIZE = TINY.image_size
EVERYTHING: dict[str, Any] = {
    "size": SIZE,
    "crop": "resized",
    "antialias": False,
    "flip": True,
    "randaugment": {},
    "erasing": {"prob": 0.5},
}
PUBLISHED_MIX = MixupSpec(mixup=0.8, cutmix=1.0, label_smoothing=0.1, mix_group=4)


def noise_batch(samples: list[int], *, unreadable: tuple[int, ...] = ()) -> Batch:
    """Noise frames that depend on the sample."""
    height, width = SIZE + 8, SIZE + 16

    def plane(sample: int, channel: int, *shape: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(10 * sample + channel)
        return torch.randint(16, 235, (TINY.num_frames, *shape), generator=generator, dtype=torch.uint8)

    planes = Planes(
        torch.stack([plane(s, 0, height, width) for s in samples]),
        torch.stack([plane(s, 1, height // 2, width // 2) for s in samples]),
        torch.stack([plane(s, 2, height // 2, width // 2) for s in samples]),
        size_B2=torch.tensor([[height, width]] * len(samples)),
        matrix_B=torch.zeros(len(samples), dtype=torch.int64),
        full_range_B=torch.zeros(len(samples), dtype=torch.bool),
    )
    weight_B = torch.tensor([float(s not in unreadable) for s in samples])
    return Batch(
        planes=planes,
        index_BVT=None,
        label_B=torch.tensor([s % 3 for s in samples]),
        weight_B=weight_B,
        may_flip_B=torch.ones(len(samples), dtype=torch.bool),
        valid=int(weight_B.sum()),
        rng=ClipRng.on("cpu", seed=5, epoch=1, sample=np.asarray(samples, dtype=np.uint64)),
        request=Request(1, 0, tuple(samples)),
    )


class _Loss:
    """The loss of a fresh classifier, as finetuning takes it."""

    def __init__(self, mixup: MixupSpec, *, repeats: int = 1, **changes: Any) -> None:
        self.model = Classifier(TINY, CLASSES, seed=1)
        self.augment = Augment(msgspec.convert(EVERYTHING | changes, AugmentSpec))
        self.mixup, self.repeats = mixup, repeats

    def __call__(self, batch: Batch) -> torch.Tensor:
        return label_loss(self.model, batch, self.augment, self.mixup, repeats=self.repeats)


@pytest.mark.parametrize("repeats", [1, 2])
def test_micro_batches_of_whole_groups_add_up_to_the_batch(repeats: int) -> None:
    loss = _Loss(PUBLISHED_MIX, repeats=repeats)
    with torch.no_grad():
        whole = float(loss(noise_batch(list(range(8)), unreadable=(2,))))
        first, second = float(loss(noise_batch([0, 1, 2, 3], unreadable=(2,)))), float(loss(noise_batch([4, 5, 6, 7])))
    assert whole == pytest.approx((3 * first + 4 * second) / 7, abs=1e-5)


def test_a_clip_is_mixed_with_no_other_group() -> None:
    loss = _Loss(PUBLISHED_MIX)
    seen: list[torch.Tensor] = []
    loss.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    with torch.no_grad():
        loss(noise_batch([0, 1, 2, 3, 4, 5, 6, 7]))
        loss(noise_batch([0, 1, 2, 3, 8, 9, 10, 11]))
    one, other = seen
    assert (one[:4] - other[:4]).abs().max() < 1e-5
    assert (one[4:] - other[4:]).abs().max() > 0.1


def test_repeats_use_the_same_frames_with_their_own_random_numbers() -> None:
    seen: list[torch.Tensor] = []
    for repeats in (1, 2):
        loss = _Loss(MixupSpec(), repeats=repeats)
        loss.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
        with torch.no_grad():
            loss(noise_batch([3, 4, 5]))
    once, twice = seen
    assert len(twice) == 6
    assert (twice[::2] - once).abs().max() < 1e-5
    assert all((twice[2 * b + 1] - once[b]).abs().max() > 0.1 for b in range(3))


def test_everything_off_is_the_plain_crop_and_plain_cross_entropy() -> None:
    off = {"crop": "center", "antialias": True, "flip": False, "randaugment": None, "erasing": None}
    loss, batch = _Loss(MixupSpec(), **off), noise_batch([0, 1, 2], unreadable=(1,))
    with torch.no_grad():
        augment = loss.augment
        clips = augment.normalise(
            augment(batch.planes, augment.sample_boxes(batch.planes.size_B2, batch.rng, batch.may_flip_B))
        )
        each = torch.nn.functional.cross_entropy(loss.model(clips), batch.label_B, reduction="none")
        assert float(loss(batch)) == pytest.approx(float(each[[0, 2]].mean()), abs=1e-6)
        nothing = _Loss(MixupSpec(), **{**off, "randaugment": {"prob": 0.0}, "erasing": {"prob": 0.0}})
        assert float(nothing(batch)) == float(loss(batch))


def test_pretraining_repeats_crops_and_masks_of_one_decoded_clip() -> None:
    augment = Augment(AugmentSpec(size=SIZE))
    model = PretrainModel(TINY, seed=1)
    batch = noise_batch([0, 1], unreadable=(1,))
    with torch.no_grad():
        together = float(masked_loss(model, batch, augment, MaskSpec(ratio=0.75), repeats=3))
        alone = []
        for repeat in range(3):
            rng = ClipRng.on("cpu", seed=5, epoch=1, sample=[0, 1], repeat=repeat)
            alone.append(float(masked_loss(model, batch._replace(rng=rng), augment, MaskSpec(ratio=0.75))))
    assert len(set(alone)) == 3
    assert together == pytest.approx(sum(alone) / 3, abs=1e-5)


@pytest.mark.parametrize(
    "mask",
    [MaskSpec(kind="random"), MaskSpec(kind="frame", ratio=0.75), MaskSpec(ratio=0.75, decoder="running-cell")],
)
def test_pretraining_learns_from_masks_of_every_kind(mask: MaskSpec) -> None:
    model = PretrainModel(TINY, seed=1)
    loss = masked_loss(model, noise_batch([0, 1]), Augment(AugmentSpec(size=SIZE)), mask)
    loss.backward()
    assert 0.5 < float(loss.detach()) < 2  # targets have a variance of 1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_mixup_groups_that_would_be_split_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"mix_group = 4 does not divide train.micro_batch = 6"):
        load_recipe(
            "vmae_train", "finetune/demo", FinetuneSpec,
            ["mix.mixup=0.8", "mix.mix_group=4", "train.batch=12", "train.micro_batch=6"],
        )  # fmt: skip
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, ["mix.mixup=0.8", "mix.mix_group=4"])
    check_mix_groups(spec, BatchLayout.of(8, None, 2))
    with pytest.raises(MisuseError, match=r"mix_group = 4: 4 processes"):
        check_mix_groups(spec, BatchLayout.of(8, None, 4))


def test_pretraining_refuses_random_erasing() -> None:
    with pytest.raises(RecipeError, match=r"augment\.erasing is for finetuning"):
        load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["augment.erasing.prob=0.25"])


def test_the_summary_lists_the_augmentation() -> None:
    settings = ["mix.mixup=0.8", "mix.cutmix=1.0", "mix.label_smoothing=0.1", "augment.flip=true"]
    more = [
        "augment.randaugment.layers=4",
        "augment.erasing.prob=0.25",
        "augment.crop=resized",
        "augment.antialias=false",
    ]
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings + more)
    assert augmentation_text(spec, may_flip=True) == (
        "RandAugment 4 × 0.5, magnitude 7 ± 0.5; crop resized without antialias; flip on; erasing 0.25; "
        "mixup 0.8, cutmix 1 in groups of 8; label smoothing 0.1"
    )
    assert "flip off" in augmentation_text(spec, may_flip=False)


def test_a_run_with_every_augmentation_has_the_same_losses_in_micro_batches(demo_shards: Path, tmp_path: Path) -> None:
    settings = [
        *("train.steps=2", "train.repeats=2", "log.every_steps=1", "checkpoint.every_steps=2", "evaluate.views=1x1"),
        *("mix.mixup=0.8", "mix.cutmix=1.0", "mix.label_smoothing=0.1", "mix.mix_group=4", "augment.crop=resized"),
        *("augment.randaugment.layers=4", "augment.erasing.prob=0.25", "augment.antialias=false"),
    ]
    losses, urls = [], str(demo_shards)
    for name, more in (("whole", []), ("parts", ["train.micro_batch=4"])):
        spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings + more)
        out = tmp_path / name
        finetune(spec, data=[urls], validation=urls, out=out, device="cpu", style=ProgressStyle.QUIET)
        losses.append([line["loss"] for line in read_log(out) if line["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)

    # The finished run has nothing left to do. Another augmentation is refused.
    report = finetune(spec, data=[urls], validation=urls, out=out, device="cpu", style=ProgressStyle.QUIET)
    assert report.step == 2
    other = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*settings, "augment.randaugment.magnitude=5.0"])
    with pytest.raises(MisuseError, match=r"augment\.randaugment\.magnitude: 7\.0 → 5\.0"):
        finetune(other, data=[urls], validation=urls, out=out, device="cpu", style=ProgressStyle.QUIET)
