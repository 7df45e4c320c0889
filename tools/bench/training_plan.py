"""Hours that `vmae-train plan` predicts, compared with real trainings on this CPU.

    python -m tools.bench.training_plan shards/example [--steps 400] [--rounds 3]

Each case measures rates as a user does: `vmae-train feed --json`, and the log of a short training. The plan is that of
a longer training, made before it begins. Its measured time is the sum of its log's intervals. One case reads from a
local S3 server (SeaweedFS) behind a proxy, which passes half the bytes a second that would keep the CPU busy.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.s3_server import s3_server
from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import Proxy, proxy_process

INTERVAL = 20
COMMON = ("checkpoint.every_steps=1000000", f"log.every_steps={INTERVAL}", "optim.warmup_steps=10")


class Case(NamedTuple):
    settings: tuple[str, ...] = ()
    link: float | None = None  # of the bytes per second that would keep the CPU busy; None: from the disk


CASES = {
    "tiny": Case(),
    "tiny, 2 clips of each video": Case(("train.repeats=2",)),
    "a smaller model, batch 16": Case(
        (
            *("model.embed_dim=48", "model.depth=1", "model.decoder_embed_dim=24", "model.num_heads=1"),
            *("model.decoder_num_heads=1", "train.batch=16"),
        )
    ),
    "tiny, a slow link": Case(link=0.5),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400, help="of the long training; the short one has half")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[str, float, float]]] = {name: [] for name in CASES}
    for _ in range(options.rounds):
        for name, case in CASES.items():
            with tempfile.TemporaryDirectory() as folder:
                found[name].append(compare(options, case, Path(folder)))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print("| training | limit | planned, s | measured, s | planned / measured, of each round |")
    print("| --- | --- | --- | --- | --- |")
    for name, rounds in found.items():
        limits, planned, measured = zip(*rounds, strict=True)
        ratios = ", ".join(f"{one / other:.2f}" for one, other in zip(planned, measured, strict=True))
        limit = "/".join(sorted(set(limits)))
        print(f"| {name} | {limit} | {median(planned):.1f} | {median(measured):.1f} | {ratios} |")


def compare(options: argparse.Namespace, case: Case, folder: Path) -> tuple[str, float, float]:
    """The limit, and the seconds planned and measured of the logged intervals of the long training."""
    if case.link is None:
        return _compare(options, case, folder, options.shards, None)
    with s3_server(folder / "server") as server:
        bucket = server.bucket("bench")
        url = bucket.upload(Path(options.shards))
        with proxy_process(server.endpoint) as proxy:
            os.environ |= {**bucket.through(proxy.url).environment, "VMAE_CACHE": str(folder / "node")}
            return _compare(options, case, folder, url, proxy)


def _compare(
    options: argparse.Namespace, case: Case, folder: Path, shards: str, proxy: Proxy | None
) -> tuple[str, float, float]:
    recipe = ["--recipe", "pretrain/demo"]
    changed = [word for setting in (*COMMON, *case.settings) for word in ("--set", setting)]
    data = ["--data", shards, "--device", "cpu"]

    def train(name: str, steps: int) -> Path:
        length = ["--set", f"train.steps={steps}"]
        vmae_train("pretrain", *recipe, *changed, *length, *data, "--out", str(folder / name), "-q")
        return folder / name / "log.jsonl"

    feed = folder / "feed.json"
    feed.write_text(vmae_train("feed", *recipe, *changed, *data, "--seconds", "10", "--json"))
    rates = ["--rates", str(feed), "--rates", str(train("short", options.steps // 2))]

    def plan(gbps: float) -> dict[str, Any]:
        # The first interval of a training has no speed.
        length = ["--set", f"train.steps={options.steps - INTERVAL}"]
        machine = ["--gpus", "1", "--gpu", "cpu", "--cores", str(options.cores), "--store-gbps", str(gbps)]
        result: dict[str, Any] = json.loads(vmae_train("plan", *recipe, *changed, *length, *machine, *rates, "--json"))
        return result

    planned = plan(10)
    if proxy is not None and case.link is not None:
        gbps = case.link * planned["store_gbps_needed"]
        planned = plan(gbps)
        proxy.change(Faults(bytes_per_second=1e9 / 8 * gbps))
    log = train("long", options.steps)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    speeds = [line["clips_per_second"] for line in lines if line["kind"] == "train" and line["clips_per_second"]]
    if len(speeds) != options.steps // INTERVAL - 1:
        raise SystemExit(f"{log}: {len(speeds)} intervals have a speed, expected {options.steps // INTERVAL - 1}")
    seconds = sum(INTERVAL * planned["job"]["batch"] / speed for speed in speeds)
    return planned["limit"], 3600 * planned["hours"], seconds


def vmae_train(*arguments: str) -> str:
    """What a command prints."""
    command = [sys.executable, "-m", "vmae_train.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main()
