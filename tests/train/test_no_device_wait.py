"""No operation of a training step waits for the device, or mixes devices.

On the device `meta`, tensors have no values: to read one on the host, to select by a mask, and to combine it with a
tensor of another device raise errors. So they would on a GPU, or would make it wait.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tiny_runs import set_up_engine
from vmae_data.recipes import load_recipe
from vmae_train.clips.loader import Batch, UnreadableSamples
from vmae_train.clips.rng import ClipRng
from vmae_train.distributed import Distributed
from vmae_train.finetune import FinetuneObjective, FinetuneSpec
from vmae_train.pretrain import PretrainObjective, PretrainSpec
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.step_sync import StepSync

META = torch.device("meta")
TINY = ("train.batch=8", "train.micro_batch=4", "loader.workers=0", "model.depth=1", "ema.decay=0.99")
EVERY_AUGMENTATION = (
    *(
        "augment.randaugment.magnitude=7",
        "augment.erasing.prob=0.5",
        "mix.mixup=0.8",
        "mix.cutmix=1",
        "mix.mix_group=4",
    ),
    *("model.drop_path=0.1", "augment.flip=true"),
)

PRETRAININGS = {
    "tube": (),
    "two clips of each sample": ("train.repeats=2", "augment.flip=true"),
    "frame mask": ("mask.kind=frame",),
    "random mask": ("mask.kind=random",),
    "running cell": ("mask.decoder=running-cell",),
    "random part": ("mask.decoder=random", "mask.kind=random"),
    "cross-attention": ("model.decoder_attention=cross",),
    "random crop": ("augment.crop=random",),
    "without antialias": ("augment.antialias=false",),
    "boxes": ("augment.convert=box",),
    "random boxes": ("augment.convert=box", "augment.crop=random", "train.repeats=2"),
}
FINETUNINGS = {
    "plain": (),
    "every augmentation": EVERY_AUGMENTATION,
    "two clips of each sample": (*EVERY_AUGMENTATION, "train.repeats=2"),
    "reconstruction": (*EVERY_AUGMENTATION, "aux.reconstruction=0.5", "train.repeats=2"),
    "resized crop": ("augment.crop=resized",),
    "resized boxes": ("augment.convert=box", "augment.crop=resized", "augment.antialias=false"),
    "boxes with every augmentation": ("augment.convert=box", *EVERY_AUGMENTATION),
    "center crop": ("augment.crop=center",),
}


@pytest.fixture(autouse=True)
def _no_autocast_on_meta(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.autocast refuses the device `meta`."""
    autocast = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda device, **options: nullcontext() if device == "meta" else autocast(device, **options)
    )


def on_meta(value: Any) -> Any:
    """The same batch, with its tensors on the device `meta`."""
    if isinstance(value, Tensor):
        return value.to(META)
    if isinstance(value, ClipRng):
        return ClipRng.of(value.host, META)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(on_meta, value))
    return value


def step_on_meta(spec: RunSpec, objective: Objective, shards: Path) -> Tensor:
    """One optimizer step of two micro-batches. Returns its loss."""
    setup, engine = set_up_engine(spec, objective, shards, META)
    for group in engine.optimizer.param_groups:
        group["fused"] = False  # no fused kernel for this device
    engine.wrap()
    with setup.loader(0, torch.device("cpu"), targets=objective.targets) as loader:
        batches = [on_meta(batch) for batch, _ in zip(loader, range(2), strict=False)]
    assert all(isinstance(batch, Batch) for batch in batches)
    with StepSync(Distributed(), UnreadableSamples(8)) as sync:
        return engine.step(0, iter(batches), sync).loss


@pytest.mark.parametrize("settings", PRETRAININGS.values(), ids=PRETRAININGS)
def test_a_step_of_pretraining_never_waits_for_the_device(demo_shards: Path, settings: tuple[str, ...]) -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*TINY, *settings])
    assert step_on_meta(spec, PretrainObjective(spec), demo_shards).device == META


@pytest.mark.parametrize("settings", FINETUNINGS.values(), ids=FINETUNINGS)
def test_a_step_of_finetuning_never_waits_for_the_device(demo_shards: Path, settings: tuple[str, ...]) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*TINY, *settings])
    assert step_on_meta(spec, FinetuneObjective(spec, str(demo_shards)), demo_shards).device == META


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: loss if loss > 0 else -loss,
        lambda loss: loss.expand(2)[loss.expand(2) > 0].sum(),
        lambda loss: loss + torch.ones(2).sum().expand(1),
        lambda loss: loss.cpu(),
    ],
    ids=["item", "branch", "boolean index", "two devices", "copy"],
)
def test_the_device_meta_notices_what_would_wait(demo_shards: Path, wait: Callable[[Tensor], Tensor]) -> None:
    class Waits(PretrainObjective):
        def loss(self, batch: Batch) -> Tensor:
            return wait(super().loss(batch))

    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*TINY])
    with pytest.raises((RuntimeError, NotImplementedError)):
        step_on_meta(spec, Waits(spec), demo_shards)
