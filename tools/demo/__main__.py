"""`make demo`: render videos, build shards, pretrain, finetune with and without pretraining, write one report.

    python -m tools.demo.short

Every step is a command that a person could type, and is printed. A step resumes where it was stopped and does nothing
when its work is done.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SCRIPTS = Path(sys.executable).parent
VIDEOS, SHARDS, RUNS = Path("videos"), Path("shards"), Path("runs")


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    train = make_shards("demo-train", videos=800, seed=0)
    val = make_shards("demo-val", videos=160, seed=1, classes_of="demo-train")
    pretrained, finetuned, scratch = RUNS / "demo-pretrain", RUNS / "demo-finetune", RUNS / "demo-scratch"
    run("vmae-train", "pretrain", "--recipe", "pretrain/demo", "--data", train, "--out", pretrained)
    common = ("--recipe", "finetune/demo", "--data", train, "--val", val)
    # One thread each, so both run at once. Only the first shows its progress.
    finish(
        [
            start("vmae-train", "finetune", *common, "--out", scratch, "--quiet"),
            start("vmae-train", "finetune", *common, "--init", pretrained, "--out", finetuned),
        ]
    )
    report = RUNS / "demo-report.html"
    run("vmae-train", "report", finetuned, "--against", scratch, "--out", report, "--quiet")
    print(report.resolve())


def make_shards(name: str, *, videos: int, seed: int, classes_of: str | None = None) -> Path:
    """Render a motion data set and build its shards."""
    run("vmae-shard", "demo", VIDEOS / name, "--videos", str(videos), "--seed", str(seed))
    classes = ("--classes", SHARDS / classes_of) if classes_of else ()
    run("vmae-shard", "build", VIDEOS / name, SHARDS / name, "--recipe", "demo", *classes)
    return SHARDS / name


def run(program: str, *words: str | Path) -> None:
    finish([start(program, *words)])


def start(program: str, *words: str | Path) -> subprocess.Popen[bytes]:
    """Print a command as a person would type it, and start it."""
    line = [program, *map(str, words)]
    print(f"\n$ {shlex.join(line)}", file=sys.stderr, flush=True)
    return subprocess.Popen([str(SCRIPTS / program), *line[1:]])


def finish(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for all. Exits with the status of one that failed."""
    try:
        statuses = [process.wait() for process in processes]
    except KeyboardInterrupt:
        for process in processes:
            process.wait()
        raise
    if any(statuses):
        sys.exit(next(status for status in statuses if status))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
