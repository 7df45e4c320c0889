"""`make demo`: render videos, build shards, pretrain, reconstruct, finetune, write a report.

    python -m tools.demo

Every step is a command that a person could type, and is printed. A step resumes where it was stopped and does nothing
when its work is done.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.study.pieces import Piece, run_pieces

VIDEOS, SHARDS, RUNS = Path("videos"), Path("shards"), Path("runs")
PICTURE, PAGE = RUNS / "demo-reconstruction.png", RUNS / "demo-report.html"


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    run_pieces(RUNS / "demo", demo_pieces(), 1)
    print(f"{PICTURE.resolve()}\n{PAGE.resolve()}")
    print("Does pretraining pay? One run does not tell. make demo-long compares over seeds: docs/small-scale.md")


def demo_pieces() -> list[Piece]:
    """The steps in order."""
    train, val = SHARDS / "demo-train", SHARDS / "demo-val"
    pretrained, finetuned = RUNS / "demo-pretrain", RUNS / "demo-finetune"
    return [
        *_data(train, videos=800, seed=0),
        *_data(val, "--classes", train, videos=160, seed=1),
        _piece("vmae-train", "pretrain", "--recipe", "pretrain/demo", "--data", train, "--out", pretrained),
        _piece("vmae-train", "reconstruct", pretrained, "--data", val, "--quiet", "--out", PICTURE),
        _piece(
            *("vmae-train", "finetune", "--recipe", "finetune/demo", "--data", train, "--val", val),
            *("--init", pretrained, "--out", finetuned),
        ),
        _piece("vmae-train", "report", finetuned, "--quiet", "--out", PAGE),
    ]


def _data(shards: Path, *words: str | Path, videos: int, seed: int) -> tuple[Piece, Piece]:
    """Render a motion data set, and build its shards."""
    folder = VIDEOS / shards.name
    return (
        _piece("vmae-shard", "demo", "--videos", str(videos), "--seed", str(seed), folder),
        _piece("vmae-shard", "build", folder, "--recipe", "demo", *words, shards),
    )


def _piece(*words: str | Path) -> Piece:
    """The piece of a command whose last word is the path that it writes."""
    out = Path(words[-1])
    return Piece("-".join(out.parts), tuple(map(str, words)), out, 1)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
