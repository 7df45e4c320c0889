"""`make soak`: a training killed at many random moments must end with the weights of one that was never killed.

python -m tools.soak.kills [--kills 40] [--steps 60] [--seed 0]
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

from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    moments = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_demo(folder / "videos", num_videos=32, seed=1, workers=2)
        spec = load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=8"])
        build_shards(str(folder / "videos"), folder / "shards", spec, workers=2, style=ProgressStyle.QUIET)
        subprocess.run(command(folder, "whole", given.steps), check=True)
        for kill in range(given.kills):
            process = subprocess.Popen(command(folder, "killed", given.steps))
            # Python, torch and the first batch take some seconds: most of the moments should lie in the steps.
            time.sleep(moments.uniform(3.0, 9.0))
            process.kill()
            print(
                f"kill {kill + 1} of {given.kills}: {len(list((folder / 'killed').rglob('state.json')))} checkpoints",
                flush=True,
            )
            process.wait()
        subprocess.run(command(folder, "killed", given.steps), check=True)
        same = digest(folder / "whole", given.steps) == digest(folder / "killed", given.steps)
        print("same weights" if same else "OTHER WEIGHTS")
        sys.exit(0 if same else 1)


def command(folder: Path, run: str, steps: int) -> list[str]:
    words = ["pretrain", "--recipe", "pretrain/demo", "--data", str(folder / "shards"), "--out", str(folder / run)]
    settings = [f"train.steps={steps}", "checkpoint.every_steps=3", "log.every_steps=1"]
    return [sys.executable, "-m", "vmae_train.cli", *words, "--quiet", *(w for s in settings for w in ("--set", s))]


def digest(run: Path, steps: int) -> str:
    path = run / "checkpoints" / f"step-{steps:09d}" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
