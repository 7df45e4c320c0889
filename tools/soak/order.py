"""The batches of a pretraining must be the same for any number of processes and workers, and when resumed at any step.

    python -m tools.soak.order [--processes 1 2 4] [--workers 0 1 3] [--verbose]

Prints a line for each case that differs (with --verbose for every case), a summary, and exits with status 1 on any
difference.
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

from tools.data_sets import demo_shards

STEPS = 8
LIMIT_SECONDS = 300
SETTINGS = (f"train.steps={STEPS}", "train.micro_batch=2", "augment.crop=multiscale", "augment.flip=true")


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
    options = parser.parse_args()
    total = differing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = [
            demo_shards(folder / "first", videos=24, seed=24, settings=["samples_per_shard=5"]),
            demo_shards(folder / "second", videos=16, seed=16, settings=["samples_per_shard=5", "short_side=48"]),
        ]
        expected = {mixed: batches(folder, data, Case(1, 0, mixed)) for mixed in (False, True)}
        for case in cases(options.processes, options.workers):
            total += 1
            same = batches(folder, data, case) == expected[case.mixed][case.first :]
            differing += not same
            if options.verbose or not same:
                print(f"{'ok    ' if same else 'DIFFER'} {case}", flush=True)
    print(f"order: {total - differing} of {total} cases equal one process without workers")
    sys.exit(1 if differing else 0)


def cases(processes: list[int], workers: list[int]) -> Iterator[Case]:
    """Every layout from the start, then every step to resume at, each on the next layout in turn."""
    layouts = list(itertools.product(processes, workers))
    for mixed in (False, True):
        for number, workers_each in layouts:
            yield Case(number, workers_each, mixed)
        turns = itertools.cycle(layouts)
        for first in range(1, STEPS):
            yield Case(*next(turns), mixed, first)


def batches(folder: Path, data: list[Path], case: Case) -> list[str]:
    """The fingerprints of the case's batches, one line a step. Empty if it hangs or fails."""
    out = folder / "batches.jsonl"
    out.unlink(missing_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.processes)]
    words = ["-m", "tools.soak.batches", "--recipe", "pretrain/demo", "--out", str(out), "--first", str(case.first)]
    for setting in (*SETTINGS, f"loader.workers={case.workers}"):
        words += ["--set", setting]
    for url in [f"{data[0]}:2", f"{data[1]}:1"] if case.mixed else [str(data[0])]:
        words += ["--data", url]
    try:
        command = [sys.executable, *launcher, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"hangs: {case}", flush=True)
        return []
    if done.returncode:
        print(f"status {done.returncode}: {case}\n{done.stderr[-2000:]}", flush=True)
    return out.read_text().splitlines() if out.exists() else []


if __name__ == "__main__":
    main()
