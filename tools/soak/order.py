"""`make soak`: the batches of a pretraining by every number of processes and workers, and gone on with at every step.

    python -m tools.soak.order [--processes 1 2 4] [--workers 0 1 3]

A line for each case that differs (each case with --verbose), a summary, and exit status 1 on any difference.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe

STEPS = 8
LIMIT_SECONDS = 300


class Case(NamedTuple):
    processes: int
    workers: int
    mixed: bool
    first: int = 0

    def __str__(self) -> str:
        data = "two data sets" if self.mixed else "one data set"
        return f"{data}, {self.processes} processes × {self.workers} workers, from step {self.first}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 3])
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        data = [
            make_shards(workspace, "first", videos=24, settings=()),
            make_shards(workspace, "second", 16, ("short_side=48",)),
        ]
        wanted = {mixed: batches(workspace, data, Case(1, 0, mixed)) for mixed in (False, True)}
        total = 0
        for case in cases(given.processes, given.workers):
            total += 1
            same = batches(workspace, data, case) == wanted[case.mixed][case.first :]
            differing += not same
            if given.verbose or not same:
                print(f"{'ok    ' if same else 'DIFFER'} {case}", flush=True)
    print(f"order: {total - differing} of {total} as one process without workers")
    sys.exit(1 if differing else 0)


def cases(processes: list[int], workers: list[int]) -> Iterator[Case]:
    """All layouts from the start; then every step to go on from, each on the next layout in turn."""
    layouts = list(itertools.product(processes, workers))
    for mixed in (False, True):
        for number, workers_each in layouts:
            yield Case(number, workers_each, mixed)
        turns = itertools.cycle(layouts)
        for first in range(1, STEPS):
            yield Case(*next(turns), mixed, first)


def make_shards(workspace: Path, name: str, videos: int, settings: tuple[str, ...]) -> Path:
    write_demo(workspace / f"{name}-videos", num_videos=videos, seed=videos, workers=2)
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=5", *settings])
    build_shards(str(workspace / f"{name}-videos"), workspace / name, spec, workers=2, style=ProgressStyle.QUIET)
    return workspace / name


def batches(workspace: Path, data: list[Path], case: Case) -> list[str]:
    """The fingerprints of the case's batches, a line a step; none where it hangs or fails."""
    out = workspace / "batches.jsonl"
    out.unlink(missing_ok=True)
    named = [f"{data[0]}:2", f"{data[1]}:1"] if case.mixed else [str(data[0])]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    words = ["-m", "tools.soak.batches", "--recipe", "pretrain/demo", "--out", str(out), "--first", str(case.first)]
    for setting in (f"train.steps={STEPS}", "train.micro_batch=2", f"loader.workers={case.workers}"):
        words += ["--set", setting]
    for url in named:
        words += ["--data", url]
    command = [sys.executable, *launcher, *words, "--set", "augment.crop=multiscale", "--set", "augment.flip=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"hangs: {case}", flush=True)
        return []
    if done.returncode:
        print(f"status {done.returncode}: {case}\n{done.stderr[-2000:]}", flush=True)
    return out.read_text().splitlines() if out.exists() else []


if __name__ == "__main__":
    main()
