"""Runs and steps with the demo recipes, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_train.clips.loader import UnreadableSamples
from vmae_train.distributed import Distributed
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.training.checkpoint import RunState
from vmae_train.training.engine import Engine
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.setup import TrainingSetup, set_up_training
from vmae_train.training.step_sync import StepSync

__all__ = ["TINY_RUN", "finetune_tiny", "pretrain_tiny", "set_up_engine", "training_steps"]

# Every checkpoint format supports this model.
TINY_RUN = (
    *("train.steps=4", "optim.warmup_steps=1", "log.every_steps=1", "loader.workers=0"),
    *("model.depth=2", "model.position=sinusoid-1d"),
)


def pretrain_tiny(
    shards: Path | str, out: Path, *settings: str, init: Path | None = None, accept_appended: bool = False
) -> RunState:
    """Pretrain with `TINY_RUN`; later settings replace earlier ones."""
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*TINY_RUN, *settings])
    return pretrain(spec, data=[str(shards)], out=out, style=ProgressStyle.QUIET, **_options(init, accept_appended))


def finetune_tiny(
    shards: Path,
    out: Path,
    *settings: str,
    init: Path | None = None,
    validation: Path | None = None,
    accept_appended: bool = False,
    style: ProgressStyle = ProgressStyle.QUIET,
) -> AnyScores:
    """Finetune with `TINY_RUN` and one view, and evaluate on `validation` [default: `shards`]."""
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*TINY_RUN, "evaluate.views=1x1", *settings])
    data, val = [str(shards)], str(validation or shards)
    options = _options(init, accept_appended)
    return finetune(spec, data=data, validation=val, out=out, style=style, **options).scores


def _options(init: Path | None, accept_appended: bool) -> dict[str, Any]:
    return {"init": str(init) if init else None, "device": "cpu", "accept_appended": accept_appended}


def set_up_engine(
    spec: RunSpec, objective: Objective, shards: Path, device: torch.device
) -> tuple[TrainingSetup, Engine]:
    """A training at its start, without the folder of a run."""
    distributed = Distributed()
    setup = set_up_training(spec, [str(shards)], distributed)
    objective.prepare(setup)
    return setup, Engine(setup, objective.build_model(None, device), objective.loss, device, distributed)


@contextmanager
def training_steps(
    spec: RunSpec, objective: Objective, shards: Path, device: torch.device
) -> Iterator[Callable[[int], Tensor]]:
    """A function that makes the step of a number and returns its loss. Call it with 0, 1 and so on."""
    setup, engine = set_up_engine(spec, objective, shards, device)
    engine.wrap()
    with (
        setup.loader(0, device, targets=objective.targets) as loader,
        StepSync(Distributed(), UnreadableSamples(8)) as sync,
    ):
        batches = iter(loader)
        yield lambda step: engine.step(step, batches, sync).loss
