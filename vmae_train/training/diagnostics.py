"""Early warnings: settings and log lines that are known to spoil a training.

Pure functions. The rules come from the published recipes, and from what goes wrong most often.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from vmae_train.training.optimizer import Schedule

__all__ = ["Diagnostic", "TrainingFacts", "check_log", "check_setup"]

# Base learning rates (for a batch of 256) and the smallest batch, over all published recipes of VideoMAE and
# VideoMAE V2. ViT-g is finetuned a second time at 1e-5.
PUBLISHED_LR = {"pretrain": (1.5e-4, 1e-3), "finetune": (1e-5, 2e-3)}
PUBLISHED_BATCH = {"pretrain": 192, "finetune": 24}
# A learning rate may leave the published range by this factor, and a batch may be smaller by this factor.
LR_SLACK, BATCH_SLACK = 2.0, 4
# No progress: over a third of the steps after the warm-up, but 20 to 100 logging steps, the later half is not a
# hundredth better than the earlier. Small models begin with a plateau of up to a tenth of the steps, then learn.
PLATEAU_OF_STEPS, PLATEAU_LINES, PLATEAU_SHARE = 1 / 3, (20, 100), 0.01
# Pixel targets are normalised cube by cube, so the mean of each cube predicts them with a loss of 1.
MEAN_LOSS, MEAN_TOLERANCE = 1.0, 0.05
WAITING_LINES, WAITING_SHARE = 5, 0.8


class Diagnostic(NamedTuple):
    """A warning: its name, by which it is given once per run, and one line with advice."""

    name: str
    text: str


class TrainingFacts(NamedTuple):
    """What is known about a training before its first step."""

    kind: Literal["pretrain", "finetune"]
    published_size: bool  # the rules for learning rates, batches and other data come from the published sizes only
    frozen: bool  # a probe: no published rule for its learning rate
    base_lr: float
    batch: int
    world_size: int
    positions: int  # of a step, over all processes and micro-batches, padding included
    schedule: Schedule
    other_data: str | None = None  # a text: the weights were trained on other videos


_WAITS = {
    "network": "for bytes (network or disk). Set cache.dir, or move the shards nearer",
    "decode": "for decoding. Raise loader.workers if cores are idle, or build thinned, fast-decode shards",
    "transfer": "for copies to the device. Lower train.micro_batch or the number of processes per machine",
}


def check_setup(facts: TrainingFacts) -> list[Diagnostic]:
    """Warnings before the first step."""
    schedule = facts.schedule
    warnings = []
    if facts.published_size and not facts.frozen:
        warnings += _check_published_ranges(facts)
    if facts.positions != facts.batch:
        warnings.append(
            Diagnostic(
                "uneven batch",
                f"train.batch = {facts.batch} does not divide among {facts.world_size} processes and their micro-batches. "
                f"{facts.positions - facts.batch} of {facts.positions} slots stay empty in each step. "
                "Make it a multiple of processes × train.micro_batch",
            )
        )
    if schedule.warmup >= schedule.steps:
        warnings.append(
            Diagnostic(
                "endless warm-up",
                f"the warm-up takes all {schedule.steps} steps, so the learning rate never falls. "
                "Train longer, or lower optim.warmup_epochs (or warmup_steps)",
            )
        )
    if facts.other_data is not None and facts.published_size:
        warnings.append(Diagnostic("other data", facts.other_data))
    return warnings


def _check_published_ranges(facts: TrainingFacts) -> list[Diagnostic]:
    warnings = []
    low, high = PUBLISHED_LR[facts.kind]
    if not low / LR_SLACK <= facts.base_lr <= high * LR_SLACK:
        scale = facts.batch / 256
        warnings.append(
            Diagnostic(
                "learning rate",
                f"the peak learning rate of {facts.schedule.peak:.3g} is outside the published range for a batch of "
                f"{facts.batch}: {low * scale:.3g} to {high * scale:.3g} (base × batch / 256). optim.base_lr is for a "
                f"batch of 256: published values are {low:g} to {high:g}, this recipe has {facts.base_lr:g}",
            )
        )
    smallest = PUBLISHED_BATCH[facts.kind]
    if facts.batch * BATCH_SLACK < smallest:
        warnings.append(
            Diagnostic(
                "small batch",
                f"train.batch = {facts.batch} is far below the published recipes (smallest: {smallest}). Expect lower "
                "scores. Keep the published train.batch and lower train.micro_batch: gradients are accumulated",
            )
        )
    return warnings


def check_log(
    lines: Sequence[dict[str, Any]], kind: Literal["pretrain", "finetune"], schedule: Schedule
) -> list[Diagnostic]:
    """Warnings from the lines of a log."""
    train = [line for line in lines if line["kind"] == "train"]
    warnings = [_check_plateau(train, kind, schedule), _check_waiting(train)]
    return [warning for warning in warnings if warning is not None]


def _check_plateau(
    train: Sequence[dict[str, Any]], kind: Literal["pretrain", "finetune"], schedule: Schedule
) -> Diagnostic | None:
    warm = [line for line in train if line["step"] > schedule.warmup]
    if len(warm) < PLATEAU_LINES[0]:
        return None
    every = warm[-1]["step"] - warm[-2]["step"]
    fewest, most = PLATEAU_LINES
    window = min(max(fewest, round((schedule.steps - schedule.warmup) * PLATEAU_OF_STEPS / every)), most)
    if len(warm) < window:
        return None
    losses = [float(line["loss"]) for line in warm[-window:]]
    middle = window // 2
    before, after = statistics.median(losses[:middle]), statistics.median(losses[middle:])
    # A loss that has fallen since the start is learnt, not stuck: the end of a long training is flat too.
    first = statistics.median(float(line["loss"]) for line in warm[:middle])
    if after < before - PLATEAU_SHARE * abs(before) or after < first - 5 * PLATEAU_SHARE * abs(first):
        return None
    text = f"no progress over the last {window} logging steps: the loss stays near {after:.4g}"
    if kind == "pretrain" and abs(after - MEAN_LOSS) <= MEAN_TOLERANCE:
        text += ". A loss near 1.0 means that each cube's mean is predicted"
    text += ". Try another optim.base_lr, a longer warm-up or a larger batch. Check the clips (vmae-train reconstruct)"
    if kind == "finetune":
        text += ". Check that --init is set and that the labels are right"
    return Diagnostic("constant loss", text)


def _check_waiting(train: Sequence[dict[str, Any]]) -> Diagnostic | None:
    last = train[-WAITING_LINES:]
    if len(last) < WAITING_LINES or any(line["data_wait"] < WAITING_SHARE for line in last):
        return None
    stage = statistics.mode(line["limits"] for line in last)
    share = statistics.median(line["data_wait"] for line in last)
    return Diagnostic("waiting for data", f"{share:.0%} of the time is spent waiting {_WAITS.get(stage, 'for data')}")
