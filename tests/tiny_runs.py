"""Runs of a few steps with the demo recipes, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.training.checkpoint import RunState

__all__ = ["TINY_RUN", "finetune_tiny", "pretrain_tiny"]

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
) -> AnyScores:
    """Finetune with `TINY_RUN` and one view, and evaluate on `validation` [default: `shards`]."""
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*TINY_RUN, "evaluate.views=1x1", *settings])
    data, val = [str(shards)], str(validation or shards)
    options = _options(init, accept_appended)
    return finetune(spec, data=data, validation=val, out=out, style=ProgressStyle.QUIET, **options).scores


def _options(init: Path | None, accept_appended: bool) -> dict[str, Any]:
    return {"init": str(init) if init else None, "device": "cpu", "accept_appended": accept_appended}
