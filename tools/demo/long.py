"""`make demo-long`: does pretraining help with few labels? One pretraining, 200 labels, 800 validation videos.

    python -m tools.demo.long [LABELS] [STEPS]

It takes under an hour on two cores once the shards are built, and ends with a table. Trainings from scratch run at the
same time as the pretraining, on the other core. A second call only prints the table. Other numbers of labels and steps
use the same pretraining.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from tools.demo.short import RUNS, finish, make_shards, run, start

LABELS, STEPS = 200, 600
MORE = 3  # times the steps, for one training from scratch
SEEDS = (0, 1, 2)


class Trial(NamedTuple):
    """One finetuning on few labels."""

    name: str
    labels: int
    steps: int
    seed: int
    pretrained: bool
    frozen: bool = False

    @property
    def folder(self) -> Path:
        return RUNS / f"demo-long-{self.labels}-{self.steps}-{self.name}-{self.seed}"


def main(labels: int, steps: int) -> None:
    train = make_shards("demo-long-train", videos=4000, seed=10)
    val = make_shards("demo-long-val", videos=800, seed=11, classes_of="demo-long-train")
    few = make_shards(f"demo-long-{labels}", videos=labels, seed=12, classes_of="demo-long-train")
    pretrained = RUNS / "demo-long-pretrain"
    scratch = [Trial("scratch", labels, steps, seed, False) for seed in SEEDS]
    more = [Trial("scratch-more", labels, MORE * steps, 0, False)]
    pretrained_trials = [Trial("pretrained", labels, steps, seed, True) for seed in SEEDS]
    one_frame = [Trial("pretrained-frozen", labels, steps, 0, True, frozen=True)]

    def begin(trial: Trial) -> subprocess.Popen[bytes]:
        words = ["finetune", "--recipe", "finetune/demo-long", "--data", str(few), "--val", str(val), "--quiet"]
        words += ["--out", str(trial.folder), "--set", f"seed={trial.seed}", "--set", f"train.steps={trial.steps}"]
        words += ["--init", str(pretrained)] if trial.pretrained else []
        words += ["--set", "clip.frozen=true"] if trial.frozen else []
        return start("vmae-train", *words)

    recipe = ("--recipe", "pretrain/demo-long", "--data", train, "--out", pretrained)
    pretraining = start("vmae-train", "pretrain", *recipe)
    for trial in scratch + more:
        finish([begin(trial)])
    finish([pretraining])
    for pair in (pretrained_trials[:2], pretrained_trials[2:] + one_frame):
        finish([begin(trial) for trial in pair])
    control = RUNS / f"demo-long-{labels}-{steps}-one-frame.json"
    if not control.exists():
        words = ("--data", val, "--views", "2x3", "--frozen", "--quiet", "--out", control)
        run("vmae-train", "evaluate", pretrained_trials[0].folder, *words)
    report = RUNS / f"demo-long-{labels}-{steps}-report.html"
    others = [word for trial in scratch + more for word in ("--against", trial.folder)]
    run("vmae-train", "report", pretrained_trials[0].folder, *others, "--out", report, "--quiet")
    loss = statistics.mean(_losses(pretrained)[-20:])
    print(f"Masked loss of the pretraining, mean of the last 1,000 steps: {loss:.3f}\n")
    groups = {
        "pretrained": pretrained_trials,
        "scratch (Xavier)": scratch,
        "scratch (Xavier), 3 × the steps": more,
        "pretrained, trained and tested on one frame repeated": one_frame,
    }
    print(table(labels, groups))
    print(f"| pretrained, tested on one frame repeated | {steps} | {_top1(control):.1f} | | |")
    print(report.resolve())


def table(labels: int, groups: dict[str, list[Trial]]) -> str:
    """A Markdown table of the scores."""
    lines = [
        f"| start, {labels} labels | steps | top-1 %, 800 videos, chance 12.5 | plateau left at step | train loss at the end |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, trials in groups.items():
        scores = [_top1(trial.folder / "evaluation.json") for trial in trials]
        loss = statistics.mean(statistics.mean(_losses(trial.folder)[-5:]) for trial in trials)
        left = ", ".join(_plateau_left(trial.folder) for trial in trials)
        lines.append(f"| {name} | {trials[0].steps} | {_spread(scores)} | {left} | {loss:.4f} |")
    return "\n".join(lines)


def _losses(folder: Path) -> list[float]:
    lines = [msgspec.json.decode(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _plateau_left(folder: Path) -> str:
    """The first step at which the mean training loss of 100 steps is below 1 (chance: 2.08)."""
    losses = _losses(folder)
    means = [statistics.mean(losses[n - 5 : n]) for n in range(5, len(losses) + 1)]
    return next((str(20 * (n + 5)) for n, mean in enumerate(means) if mean < 1), "never")


def _top1(path: Path) -> float:
    return float(msgspec.json.decode(path.read_bytes())["top1"])


def _spread(scores: list[float]) -> str:
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    listed = ", ".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f} ({listed})"


if __name__ == "__main__":
    try:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("labels", type=int, nargs="?", default=LABELS)
        parser.add_argument("steps", type=int, nargs="?", default=STEPS)
        main(**vars(parser.parse_args()))
    except KeyboardInterrupt:
        sys.exit(130)
