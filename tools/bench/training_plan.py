"""Hours that `vmae-train plan` predicts, compared with real trainings on this CPU.

    python -m tools.bench.training_plan shards/example [--steps 400] [--rounds 3]

Each case measures rates as a user does: `vmae-train feed --json`, and the logs of two short trainings, one before and
one after a longer one. The plan is that of the longer one. Its measured time is the sum of its log's intervals.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

INTERVAL = 20
COMMON = ("checkpoint.every_steps=1000000", f"log.every_steps={INTERVAL}", "optim.warmup_steps=10")
CASES = {
    "tiny": (),
    "tiny, 2 clips of each video": ("train.repeats=2",),
    "a smaller model, batch 16": (
        *("model.embed_dim=48", "model.depth=1", "model.decoder_embed_dim=24", "model.num_heads=1"),
        *("model.decoder_num_heads=1", "train.batch=16"),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of the long training; a short one has half")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, settings in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(compare(options, settings, Path(folder)))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print("| training | limit | planned, s | measured, s | planned / measured, of each round |")
    print("| --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        limits, planned, measured = zip(*rounds, strict=True)
        ratios = ", ".join(f"{one / other:.2f}" for one, other in zip(planned, measured, strict=True))
        limit = "/".join(sorted(set(limits)))
        print(f"| {name} | {limit} | {median(planned):.1f} | {median(measured):.1f} | {ratios} |")


def compare(options: argparse.Namespace, settings: tuple[str, ...], folder: Path) -> tuple[str, float, float]:
    """The limit, and the seconds planned and measured of the logged intervals of the long training."""
    recipe = ["--recipe", "pretrain/demo"]
    changed = [word for setting in (*COMMON, *settings) for word in ("--set", setting)]
    data = ["--data", options.shards]
    feed, short = folder / "feed.json", folder / "short.jsonl"
    feed.write_text(vmae_train("feed", *recipe, *changed, *data, "--seconds", "10", "--device", "cpu", "--json"))
    logs = []
    for name, steps in (("before", options.steps // 2), ("long", options.steps), ("after", options.steps // 2)):
        length = ["--set", f"train.steps={steps}"]
        vmae_train("pretrain", *recipe, *changed, *length, *data, "--out", str(folder / name), "--device", "cpu", "-q")
        logs.append((folder / name / "log.jsonl").read_text())
    before, long, after = logs
    short.write_text(before + after)
    lines = [
        line for line in map(json.loads, long.splitlines()) if line["kind"] == "train" and line["clips_per_second"]
    ]
    machine = ["--gpus", "1", "--gpu", "cpu", "--cores", str(options.cores), "--store-gbps", "10"]
    length = ["--set", f"train.steps={INTERVAL * len(lines)}"]
    rates = ["--rates", str(feed), "--rates", str(short)]
    plan = json.loads(vmae_train("plan", *recipe, *changed, *length, *machine, *rates, "--json"))
    measured = sum(INTERVAL * plan["job"]["batch"] / line["clips_per_second"] for line in lines)
    return plan["limit"], 3600 * plan["hours"], measured


def vmae_train(*arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "vmae_train.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
