"""A training's memory must not grow over many clips, and its CPU time a step must not grow with the data set.

    python -m tools.soak.flat [--clips 200000] [--samples 1000 10000 100000 1000000]

A small data set is built. Its shard is repeated under other keys, by hard links, to data sets of each of `--samples`.
`vmae-train pretrain` trains a model of one narrow block on them, with two decode workers. Memory: the proportional
set size (PSS) of all processes without pages of files, every tenth of the clips. CPU: of all processes, from step 20
to step 120. Exit status 1 if the second half of the clips peaks more than 16 MiB above the first, if the first step on
the largest data set ends after 10 s, or if its CPU time a step is over 1.25 times that of the smallest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from tools.data_sets import demo_shards, repeated_rows, write_enlarged
from vmae_data.format import ShardListing
from vmae_data.names import tar_name
from vmae_data.read.dataset import Shards

VIDEOS = 250
GROWTH_MB = 16 * 1.048576
FIRST_STEP_SECONDS = 10
CPU_RATIO = 1.25
STEPS = (20, 120)
_COUNTED = ("Pss_Anon:", "Pss_Shmem:")
MODEL = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 1,
    "decoder_embed_dim": 16,
    "decoder_num_heads": 1,
    "patch_size": 16,
}


class Moment(NamedTuple):
    """The processes of a training when its log got the line of a step."""

    step: int
    seconds: float  # since its start
    cpu_seconds: float
    memory_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200_000, help="clips of the long training [default: %(default)s]")
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = [f"samples_per_shard={VIDEOS}"]
        built = Shards.open(str(demo_shards(folder, videos=VIDEOS, seed=1, settings=settings)))
        faults = flat_in_samples(built, options.samples, folder, options.batch)
        faults += flat_in_clips(built, options.clips, folder, options.batch)
    for fault in faults:
        print(f"NOT FLAT: {fault}")
    sys.exit(1 if faults else 0)


def flat_in_samples(built: Shards, sizes: list[int], folder: Path, batch: int) -> list[str]:
    """Train some steps on data sets of several sizes. Returns what depends on the size and must not."""
    costs, first_step = list[float](), 0.0
    for samples in sorted(sizes):
        data = folder / f"samples-{samples}"
        enlarge(built, samples, data)
        moments = list(train(data, folder / f"run-{samples}", steps=STEPS[1], batch=batch, every=1))
        by_step = {moment.step: moment for moment in moments}
        start, end = by_step[STEPS[0]], by_step[STEPS[1]]
        costs.append((end.cpu_seconds - start.cpu_seconds) / (end.step - start.step))
        first_step = by_step[1].seconds
        print(
            f"{samples:,} samples: first step after {first_step:.1f} s, {1000 * costs[-1]:.1f} ms CPU a step of {batch} "
            f"clips, {end.memory_mb:.0f} MB",
            flush=True,
        )
    faults = []
    if first_step > FIRST_STEP_SECONDS:
        faults.append(f"the first step on {max(sizes):,} samples ended after {first_step:.1f} s")
    if costs[-1] > CPU_RATIO * costs[0]:
        faults.append(
            f"a step on {max(sizes):,} samples takes {costs[-1] / costs[0]:.2f} × the CPU time of the smallest"
        )
    return faults


def flat_in_clips(built: Shards, clips: int, folder: Path, batch: int) -> list[str]:
    """Train on many clips. Returns what grew."""
    steps = clips // batch
    memory = list[float]()
    for moment in train(Path(built.url), folder / "run-long", steps=steps, batch=batch, every=max(1, steps // 40)):
        memory.append(moment.memory_mb)
        if len(memory) % 4 == 0:
            rate = moment.step * batch / moment.seconds
            print(
                f"{moment.step * batch:,} clips, {rate:.0f}/s, {moment.memory_mb:.1f} MB in all processes", flush=True
            )
    half = len(memory) // 2
    first, second = max(memory[half // 5 : half]), max(memory[half:])
    print(f"first half {first:.1f} MB, second half {second:.1f} MB")
    return [f"memory grew by {second - first:.1f} MB"] if second - first > GROWTH_MB else []


def enlarge(built: Shards, samples: int, dest: Path) -> None:
    """Write a data set of `samples` rows: the only shard of `built`, linked under many names, with other keys."""
    dest.mkdir()
    (shard,) = built.index.shardlist
    shards = samples // shard.nsamples
    listing = list[ShardListing]()
    for number in range(shards):
        os.link(Path(built.url) / shard.url, dest / tar_name(number))
        listing.append(msgspec.structs.replace(shard, url=tar_name(number)))
    write_enlarged(built, dest, repeated_rows(shards * shard.nsamples, shard.nsamples), listing)


def train(data: Path, out: Path, *, steps: int, batch: int, every: int) -> Iterator[Moment]:
    """Run `vmae-train pretrain`. Yields the state of its processes at each of its log lines."""
    settings = {f"model.{name}": value for name, value in MODEL.items()} | {
        "train.steps": steps,
        "train.batch": batch,
        "loader.workers": 2,
        "log.every_steps": every,
        "optim.warmup_steps": 1,
        "checkpoint.every_steps": max(1, steps // 4),
    }
    words = [sys.executable, "-m", "vmae_train.cli", "pretrain", "--recipe", "pretrain/demo"]
    words += ["--data", str(data), "--out", str(out), "--quiet"]
    for name, value in settings.items():
        words += ["--set", f"{name}={value}"]
    started_at, log, read = time.monotonic(), out / "log.jsonl", 0
    with subprocess.Popen(words) as process:
        while process.poll() is None:
            time.sleep(0.02)
            if not log.exists() or log.stat().st_size == read:
                continue
            with log.open("rb") as file:
                file.seek(read)
                complete, newline, _ = file.read().rpartition(b"\n")
            read += len(complete + newline)
            lines = [msgspec.json.decode(line) for line in complete.splitlines()]
            done = [line["step"] for line in lines if line["kind"] == "train"]
            if done:
                yield Moment(done[-1], time.monotonic() - started_at, *_usage(process.pid))
    if process.returncode:
        sys.exit(f"the training ended with status {process.returncode}")


def _usage(root: int) -> tuple[float, float]:
    """CPU seconds and megabytes of a process and all below it. Children that ended count with their parent.

    Pages of files do not count: their share depends on which other programs use the same libraries.
    """
    cpu = memory = 0.0
    waiting = [root]
    while waiting:
        folder = Path(f"/proc/{waiting.pop()}")
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            rollup = (folder / "smaps_rollup").read_text()
            waiting += map(int, " ".join(file.read_text() for file in folder.glob("task/*/children")).split())
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        cpu += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
        memory += sum(int(line.split()[1]) for line in rollup.splitlines() if line.startswith(_COUNTED)) * 1024 / 1e6
    return cpu, memory


if __name__ == "__main__":
    main()
