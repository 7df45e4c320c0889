"""`make demo-long`: does pretraining help with few labels? One pretraining run, 80 labels, 800 videos to score.

About 30 minutes on two cores once the shards are there. Everything from scratch runs while the
pretraining does, on the other core. Ends with a table; a second call only prints it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec
from demo import RUNS, finish, make_shards, run, start

SEEDS = (0, 1, 2)
STEPS, MORE_STEPS = 600, 1800


class Trial(NamedTuple):
    """One finetuning on the few labels."""

    name: str
    seed: int
    pretrained: bool
    steps: int = STEPS
    frozen: bool = False

    @property
    def folder(self) -> Path:
        return RUNS / f"demo-long-{self.name}-{self.seed}"


SCRATCH = (*[Trial("scratch", seed, False) for seed in SEEDS], Trial("scratch-more", 0, False, MORE_STEPS))
PRETRAINED = (
    *[Trial("pretrained", seed, True) for seed in SEEDS],
    Trial("pretrained-frozen", 0, True, frozen=True),
)


def main() -> None:
    train = make_shards("demo-long-train", videos=4000, seed=10)
    val = make_shards("demo-long-val", videos=800, seed=11, classes_of="demo-long-train")
    few = make_shards("demo-long-few", videos=80, seed=12, classes_of="demo-long-train")
    pretrained = RUNS / "demo-long-pretrain"

    def begin(trial: Trial) -> subprocess.Popen[bytes]:
        words = ["finetune", "--recipe", "finetune/demo-long", "--data", str(few), "--val", str(val), "--quiet"]
        words += ["--out", str(trial.folder), "--set", f"seed={trial.seed}", "--set", f"train.steps={trial.steps}"]
        words += ["--init", str(pretrained)] if trial.pretrained else []
        words += ["--set", "clip.frozen=true"] if trial.frozen else []
        return start("vmae-train", *words)

    recipe = ("--recipe", "pretrain/demo-long", "--data", train, "--out", pretrained)
    pretraining = start("vmae-train", "pretrain", *recipe)
    for trial in SCRATCH:
        finish([begin(trial)])
    finish([pretraining])
    for pair in (PRETRAINED[:2], PRETRAINED[2:]):
        finish([begin(trial) for trial in pair])
    control = RUNS / "demo-long-one-frame.json"
    if not control.exists():
        words = ("--data", val, "--views", "2x3", "--frozen", "--quiet", "--out", control)
        run("vmae-train", "evaluate", PRETRAINED[0].folder, *words)
    report = RUNS / "demo-long-report.html"
    others = [word for trial in SCRATCH for word in ("--against", trial.folder)]
    run("vmae-train", "report", PRETRAINED[0].folder, *others, "--out", report, "--quiet")
    print(table(pretrained, control))
    print(report.resolve())


def table(pretrained: Path, control: Path) -> str:
    """What came out, as it came out."""
    losses = _losses(pretrained)
    lines = [
        f"Masked loss of the pretraining, mean of the last 1,000 steps: {statistics.mean(losses[-20:]):.3f}",
        "",
        "| start, 80 labels | steps | top-1 %, 800 videos, chance 12.5 | train loss at the end |",
        "| --- | --- | --- | --- |",
    ]
    groups = {
        "pretrained": PRETRAINED[:3],
        "scratch (Xavier)": SCRATCH[:3],
        "scratch (Xavier), 3 × the steps": SCRATCH[3:],
        "pretrained, trained and tested on one frame repeated": PRETRAINED[3:],
    }
    for name, trials in groups.items():
        scores = [_top1(trial.folder / "evaluation.json") for trial in trials]
        loss = statistics.mean(statistics.mean(_losses(trial.folder)[-5:]) for trial in trials)
        lines.append(f"| {name} | {trials[0].steps} | {_spread(scores)} | {loss:.4f} |")
    lines.append(f"| pretrained, tested on one frame repeated | {STEPS} | {_top1(control):.1f} | |")
    return "\n".join(lines)


def _losses(folder: Path) -> list[float]:
    lines = [msgspec.json.decode(line) for line in (folder / "log.jsonl").read_bytes().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _top1(path: Path) -> float:
    return float(msgspec.json.decode(path.read_bytes())["top1"])


def _spread(scores: list[float]) -> str:
    if len(scores) == 1:
        return f"{scores[0]:.1f}"
    listed = ", ".join(f"{score:.1f}" for score in scores)
    return f"{statistics.mean(scores):.1f} ± {statistics.stdev(scores):.1f} ({listed})"


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
