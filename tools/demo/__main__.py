"""`make demo`: render videos, build shards, continue a pretraining, finetune with few labels, compare with scratch.

    python -m tools.demo --seed 0

Every step is a command that a person could type, and is printed. A step resumes where it was stopped and does nothing
when its work is done.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

from tools.study.pieces import Piece, run_pieces

VIDEOS, SHARDS, RUNS = Path("videos"), Path("shards"), Path("runs")
STEPS, MORE = 150, 3  # of a finetuning; times as many for the longer one from scratch
TRAIN_VIDEOS, LABELLED_VIDEOS, VAL_VIDEOS = 400, 200, 400
PRETRAINED = Path(__file__).parent / "pretrained"
FIRST_SEED = 20  # of the videos; the pretraining of PRETRAINED had seed 10
PRETRAIN_STEPS = 500  # after the 14,800 of PRETRAINED


class Demo(NamedTuple):
    """The steps in order, and what they make."""

    pieces: tuple[Piece, ...]
    picture: Path
    page: Path
    scored: dict[str, Path]  # finetuning in words → run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of all videos, pretraining and finetuning [default: 0]")
    demo = demo_of(parser.parse_args().seed)
    run_pieces(RUNS / "demo", demo.pieces, 2)
    print(f"\n{LABELLED_VIDEOS // 8} labels a class, top-1 of {VAL_VIDEOS} videos of 8 classes:")
    scores = {text: _top1(run) for text, run in demo.scored.items()}
    for text, score in scores.items():
        print(f"  {text:24} {score:5.1f} %")
    print(f"Best: {max(scores, key=scores.__getitem__)}.")
    print("One seed shows little; five are in docs/small-scale.md.")
    print(f"{demo.picture.resolve()}\n{demo.page.resolve()}")


def _top1(run: Path) -> float:
    return float(msgspec.json.decode((run / "evaluation.json").read_bytes())["top1"])


def demo_of(seed: int) -> Demo:
    """The longer training from scratch, the longest step, runs beside the others, which run one after the other."""
    end = f"-{seed}" if seed else ""
    train, labels, val = (SHARDS / f"demo-{name}{end}" for name in ("train", "labels", "val"))
    pieces: list[Piece] = []

    def step(*words: str | Path, after: Piece | None = None) -> Piece:
        """A command whose last word is the path that it writes. It runs after the step before, or after `after`."""
        before = after or (pieces[-1] if pieces else None)
        out = Path(words[-1])
        pieces.append(Piece("-".join(out.parts), tuple(map(str, words)), out, 1, (before,) if before else ()))
        return pieces[-1]

    for number, (shards, videos) in enumerate(((train, TRAIN_VIDEOS), (labels, LABELLED_VIDEOS), (val, VAL_VIDEOS))):
        classes = ("--classes", train) if shards != train else ()
        folder = VIDEOS / shards.name
        step("vmae-shard", "demo", "--videos", str(videos), "--seed", str(FIRST_SEED + 3 * seed + number), folder)
        data = step("vmae-shard", "build", folder, "--recipe", "demo", *classes, shards)

    def finetune(name: str, steps: int, *words: str | Path, after: Piece | None = None) -> Piece:
        settings = (f"train.steps={steps}", f"optim.warmup_steps={steps // 5}", f"seed={seed}")
        shown = [word for setting in settings for word in ("--set", setting)]
        command = ("vmae-train", "finetune", "--recipe", "finetune/demo-long", "--data", labels, "--val", val)
        return step(*command, *shown, *words, "--out", RUNS / f"{name}{end}", after=after)

    longer = finetune("demo-scratch-longer", MORE * STEPS, "--quiet", after=data)
    pretrained, picture = RUNS / f"demo-pretrain{end}", RUNS / f"demo-reconstruction{end}.png"
    init = os.path.relpath(PRETRAINED)
    pretraining = ("vmae-train", "pretrain", "--recipe", "pretrain/demo", "--data", train, "--init", init)
    shown = (f"train.steps={PRETRAIN_STEPS}", f"optim.warmup_steps={PRETRAIN_STEPS // 10}", f"seed={seed}")
    step(*pretraining, *(word for setting in shown for word in ("--set", setting)), "--out", pretrained, after=data)
    step("vmae-train", "reconstruct", pretrained, "--data", val, "--quiet", "--out", picture)
    tuned = finetune("demo-finetune", STEPS, "--set", "standardize=true", "--init", pretrained)
    scratch = finetune("demo-scratch", STEPS, "--quiet", after=tuned)
    page = RUNS / f"demo-report{end}.html"
    against = ("--against", scratch.out, "--against", longer.out)
    report = Piece(
        "-".join(page.parts),
        tuple(map(str, ("vmae-train", "report", tuned.out, *against, "--quiet", "--out", page))),
        page,
        1,
        (scratch, longer),
    )
    runs = {
        f"pretrained, {STEPS} steps": tuned.out,
        f"from scratch, {STEPS} steps": scratch.out,
        f"from scratch, {MORE * STEPS} steps": longer.out,
    }
    return Demo((*pieces, report), picture, page, runs)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
