"""A training killed at many random moments must end with the weights of one that was never killed.

    python -m tools.soak.kills [--kills 40] [--steps 60] [--seed 0]

Exit status 1 if the weights differ.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.data_sets import demo_shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = demo_shards(folder, videos=32, seed=1, settings=["samples_per_shard=8"])
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        subprocess.run(command(shards, undisturbed, options.steps), check=True)
        for kill in range(options.kills):
            process = subprocess.Popen(command(shards, killed, options.steps))
            # Python, torch and the first batch take some seconds. Most kills should fall into the training steps.
            time.sleep(rng.uniform(3.0, 9.0))
            process.kill()
            complete = len(list(killed.rglob("state.json")))
            print(f"kill {kill + 1} of {options.kills}: {complete} checkpoints", flush=True)
            process.wait()
        subprocess.run(command(shards, killed, options.steps), check=True)
        same = digest(undisturbed, options.steps) == digest(killed, options.steps)
    print("same weights" if same else "DIFFERENT WEIGHTS")
    sys.exit(0 if same else 1)


def command(shards: Path, run: Path, steps: int) -> list[str]:
    words = ["pretrain", "--recipe", "pretrain/demo", "--data", str(shards), "--out", str(run), "--quiet"]
    for setting in (f"train.steps={steps}", "checkpoint.every_steps=3", "log.every_steps=1"):
        words += ["--set", setting]
    return [sys.executable, "-m", "vmae_train.cli", *words]


def digest(run: Path, steps: int) -> str:
    path = run / "checkpoints" / f"step-{steps:09d}" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
