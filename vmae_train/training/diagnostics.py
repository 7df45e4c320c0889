"""Early warnings: what is known to spoil a training, told from its facts and from the lines of its log.

Pure functions. The rules are those of the published recipes and of what goes wrong most often for those who use them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from vmae_train.training.optimizer import Schedule

__all__ = ["Diagnostic", "TrainingFacts", "check_log", "check_setup"]

# Base rates (for a batch of 256) and the smallest batch, over all published recipes of VideoMAE and VideoMAE V2;
# ViT-g finetunes after a first finetuning at 1e-5.
PUBLISHED_RATE = {"pretrain": (1.5e-4, 1e-3), "finetune": (1e-5, 2e-3)}
PUBLISHED_BATCH = {"pretrain": 192, "finetune": 24}
# A rate may leave the published range this far, and a batch be smaller by this much, before it is told.
RATE_SLACK, BATCH_SLACK = 2.0, 4
# No progress: of this many logging steps after the warm-up, the later half is no better than the earlier by a hundredth.
PLATEAU_LINES, PLATEAU_SHARE = 20, 0.01
# Pixel targets are normalised cube by cube, so the mean of each cube predicts them with a loss of 1.
MEAN_LOSS, MEAN_NEAR = 1.0, 0.05
WAITING_LINES, WAITING_SHARE = 5, 0.8


class Diagnostic(NamedTuple):
    """A known trouble: its name, by which it is told once a run, and one line with what to do."""

    name: str
    text: str


class TrainingFacts(NamedTuple):
    """What is known of a training before its first step."""

    kind: Literal["pretrain", "finetune"]
    published_size: bool  # the rules of rates and batches were found on those models only
    frozen: bool  # a probe: its rates have no published rule
    base_lr: float
    batch: int
    world_size: int
    places: int  # of a step, over all processes and micro-batches
    schedule: Schedule
    other_data: str | None = None  # the weights were trained on other videos


_WAITS = {
    "network": "for bytes (network, or the disk): give the cache a folder (cache.dir), or move the shards nearer",
    "decode": "for the decoding: raise loader.workers where there are cores, or build thinned, fast-decode shards",
    "transfer": "for the way to the device: lower train.micro_batch or the number of processes a machine",
}


def check_setup(facts: TrainingFacts) -> list[Diagnostic]:
    """What can be told before the first step."""
    schedule = facts.schedule
    found = []
    if facts.published_size and not facts.frozen:
        found += _of_published_rules(facts)
    if facts.places != facts.batch:
        found.append(
            Diagnostic(
                "uneven batch",
                f"train.batch = {facts.batch} does not divide among {facts.world_size} processes and their micro-batches: "
                f"{facts.places - facts.batch} of {facts.places} places stay empty in each step; "
                "make it a multiple of processes × train.micro_batch",
            )
        )
    if schedule.warmup >= schedule.steps:
        found.append(
            Diagnostic(
                "endless warm-up",
                f"the warm-up takes all {schedule.steps} steps, so the rate never falls; "
                "train longer, or lower optim.warmup_epochs (or warmup_steps)",
            )
        )
    if facts.other_data is not None:
        found.append(Diagnostic("other data", facts.other_data))
    return found


def _of_published_rules(facts: TrainingFacts) -> list[Diagnostic]:
    found = []
    low, high = PUBLISHED_RATE[facts.kind]
    if not low / RATE_SLACK <= facts.base_lr <= high * RATE_SLACK:
        scale = facts.batch / 256
        found.append(
            Diagnostic(
                "learning rate",
                f"the peak rate of {facts.schedule.peak:.3g} is out of the published rule for a batch of {facts.batch}: "
                f"{low * scale:.3g} to {high * scale:.3g} (base × batch / 256); optim.base_lr is for a batch of 256, "
                f"published are {low:g} to {high:g}, given is {facts.base_lr:g}",
            )
        )
    smallest = PUBLISHED_BATCH[facts.kind]
    if facts.batch * BATCH_SLACK < smallest:
        found.append(
            Diagnostic(
                "small batch",
                f"train.batch = {facts.batch} is far below the published recipes' (the smallest is {smallest}): their scores "
                "are not to be expected; keep train.batch and lower train.micro_batch, gradients are accumulated",
            )
        )
    return found


def check_log(lines: Sequence[dict[str, Any]], kind: Literal["pretrain", "finetune"], warmup: int) -> list[Diagnostic]:
    """What the lines of a log show; `warmup` in steps."""
    train = [line for line in lines if line["kind"] == "train"]
    found = [_plateau([line for line in train if line["step"] > warmup], kind), _waiting(train)]
    return [caution for caution in found if caution is not None]


def _plateau(train: Sequence[dict[str, Any]], kind: Literal["pretrain", "finetune"]) -> Diagnostic | None:
    """The first that can be told of it is after PLATEAU_LINES lines: a loss that fell before has left its start."""
    if len(train) < PLATEAU_LINES:
        return None
    losses = [float(line["loss"]) for line in train[-PLATEAU_LINES:]]
    middle = PLATEAU_LINES // 2
    before, after = statistics.median(losses[:middle]), statistics.median(losses[middle:])
    # A loss that has come down from where it was is learnt, not stuck: the end of a long training is flat too.
    first = statistics.median(float(line["loss"]) for line in train[:middle])
    if after < before - PLATEAU_SHARE * abs(before) or after < first - 5 * PLATEAU_SHARE * abs(first):
        return None
    words = f"no progress over the last {PLATEAU_LINES} logging steps, the loss stays near {after:.4g}"
    if kind == "pretrain" and abs(after - MEAN_LOSS) <= MEAN_NEAR:
        words += ": near 1.0, what predicting each cube's mean gives"
    return Diagnostic(
        "constant loss",
        f"{words}; try another optim.base_lr, a longer warm-up or a larger batch, and look at the clips "
        "(vmae-train reconstruct)"
        + ("" if kind == "pretrain" else "; finetuning: is --init there, are the labels right?"),
    )


def _waiting(train: Sequence[dict[str, Any]]) -> Diagnostic | None:
    last = train[-WAITING_LINES:]
    if len(last) < WAITING_LINES or any(line["data_wait"] < WAITING_SHARE for line in last):
        return None
    stage = statistics.mode(line["limits"] for line in last)
    share = statistics.median(line["data_wait"] for line in last)
    return Diagnostic("waiting for data", f"{share:.0%} of the time is waiting {_WAITS.get(stage, 'for data')}")
