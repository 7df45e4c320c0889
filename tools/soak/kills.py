"""A training killed at many random moments must end with the weights of one that was never killed.

    python -m tools.soak.kills [--kills 40] [--steps 60] [--seed 0]

Then videos are appended to its data set, and the run continues on them, killed again.
Exit status 1 if the weights differ.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tools.data_sets import demo_shards
from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe

_SETTINGS = ["samples_per_shard=8"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards = demo_shards(folder, videos=32, seed=1, settings=_SETTINGS)
        undisturbed, killed = folder / "undisturbed", folder / "killed"
        subprocess.run(command(shards, undisturbed, options.steps), check=True)
        kill_often(command(shards, killed, options.steps), killed, options.kills, rng)
        same = digest(undisturbed, options.steps) == digest(killed, options.steps)
        print("same weights" if same else "DIFFERENT WEIGHTS", flush=True)
        same = same and continue_on_appended(folder, shards, undisturbed, options.steps, options.kills // 2, rng)
    sys.exit(0 if same else 1)


def continue_on_appended(
    folder: Path, shards: Path, undisturbed: Path, steps: int, kills: int, rng: random.Random
) -> bool:
    """Go back to the middle of an epoch, append videos, and continue: once without kills, once with."""
    killed = folder / "killed-appended"
    for checkpoint in (undisturbed / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > steps // 2 + 1:
            shutil.rmtree(checkpoint)
    shutil.copytree(undisturbed, killed)
    write_demo(folder / "more", num_videos=24, seed=2, workers=2)
    shutil.copytree(folder / "more", folder / "videos", dirs_exist_ok=True)
    spec = load_recipe("vmae_data", "demo", BuildSpec, _SETTINGS)
    build_shards(str(folder / "videos"), shards, spec, workers=2, append=True, style=ProgressStyle.QUIET)
    subprocess.run([*command(shards, undisturbed, steps), "--accept-appended"], check=True)
    kill_often([*command(shards, killed, steps), "--accept-appended"], killed, kills, rng)
    same = digest(undisturbed, steps) == digest(killed, steps)
    print("appended: same weights" if same else "appended: DIFFERENT WEIGHTS")
    return same


def kill_often(words: list[str], run: Path, kills: int, rng: random.Random) -> None:
    """Kill a training at random moments, then let it end."""
    for kill in range(kills):
        process = subprocess.Popen(words)
        # Python, torch and the first batch take some seconds. Most kills should fall into the training steps.
        time.sleep(rng.uniform(3.0, 9.0))
        process.kill()
        complete = len(list(run.rglob("state.json")))
        print(f"kill {kill + 1} of {kills}: {complete} checkpoints", flush=True)
        process.wait()
    subprocess.run(words, check=True)


def command(shards: Path, run: Path, steps: int) -> list[str]:
    words = ["pretrain", "--recipe", "pretrain/demo", "--data", str(shards), "--out", str(run), "--quiet"]
    for setting in (f"train.steps={steps}", "checkpoint.every_steps=3", "checkpoint.keep=99", "log.every_steps=1"):
        words += ["--set", setting]
    return [sys.executable, "-m", "vmae_train.cli", *words]


def digest(run: Path, steps: int) -> str:
    path = run / "checkpoints" / f"step-{steps:09d}" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
