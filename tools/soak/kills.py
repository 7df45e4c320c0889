"""A training that is killed or stopped at many random moments must end with the losses and weights of one that never was.

    python -m tools.soak.kills [--kills 40] [--steps 60] [--seed 0]

Then videos are appended to its data set, and the run continues on them, killed again.
SIGHUP, SIGTERM and SIGINT must also save what was trained. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import signal
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
from vmae_train.runs.log import read_log

_SETTINGS = ["samples_per_shard=8"]
_SIGNALS = (signal.SIGKILL, signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
_MOST_SECONDS = 300  # until the next steps are logged
_SAME = "same losses and weights"


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
        wrong = kill_often(command(shards, killed, options.steps), killed, options.kills, rng)
        wrong += differences(undisturbed, killed, options.steps)
        print("; ".join(wrong) or _SAME, flush=True)
        wrong = wrong or continue_on_appended(folder, shards, undisturbed, options.steps, options.kills // 2, rng)
    sys.exit(1 if wrong else 0)


def continue_on_appended(
    folder: Path, shards: Path, undisturbed: Path, steps: int, kills: int, rng: random.Random
) -> list[str]:
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
    wrong = kill_often([*command(shards, killed, steps), "--accept-appended"], killed, kills, rng)
    wrong += differences(undisturbed, killed, steps)
    print(f"appended: {'; '.join(wrong) or _SAME}")
    return wrong


def kill_often(words: list[str], run: Path, kills: int, rng: random.Random) -> list[str]:
    """Kill and stop a training at random moments, then let it end. Returns what went wrong."""
    wrong = []
    for kill in range(kills):
        process = subprocess.Popen(["env", "--default-signal=HUP", *words])
        # Most kills should fall into the training steps, on a slow machine too.
        seen, more, until = steps_of(run), rng.choice((0, 1, 2, 4)), time.monotonic() + _MOST_SECONDS
        while len(steps_of(run)) < len(seen) + more and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3 if more else 9.0))
        number = _SIGNALS[kill % len(_SIGNALS)]
        process.send_signal(number)
        status = process.wait()
        logged, saved = max(steps_of(run), default=0), newest_checkpoint(run)
        print(
            f"{number.name} {kill + 1} of {kills}: status {status}, step {logged}, checkpoint of step {saved}",
            flush=True,
        )
        if status not in (0, -number, 128 + number):
            wrong.append(f"{number.name} {kill + 1}: status {status}")
        # A signal that is handled saves; before its handler is set a process has trained nothing.
        if number != signal.SIGKILL and saved < logged and (status > 0 or more):
            wrong.append(f"{number.name} {kill + 1}: step {logged} is not saved, step {saved} is")
        if status == 0:
            break
    subprocess.run(words, check=True)
    return wrong


def steps_of(run: Path) -> dict[int, float]:
    """The logged loss of each step."""
    return {line["step"]: line["loss"] for line in read_log(run, "train")}


def newest_checkpoint(run: Path) -> int:
    return max((int(path.parent.name.removeprefix("step-")) for path in run.rglob("step-*/state.json")), default=0)


def command(shards: Path, run: Path, steps: int) -> list[str]:
    words = ["pretrain", "--recipe", "pretrain/demo", "--data", str(shards), "--out", str(run), "--quiet"]
    for setting in (f"train.steps={steps}", "checkpoint.every_steps=3", "checkpoint.keep=99", "log.every_steps=1"):
        words += ["--set", setting]
    return [sys.executable, "-m", "vmae_train.cli", *words]


def differences(undisturbed: Path, killed: Path, steps: int) -> list[str]:
    """Whether another run has the same weights, and the same loss at each step."""
    digests = [
        hashlib.sha256((run / "checkpoints" / f"step-{steps:09d}" / "model.safetensors").read_bytes()).hexdigest()
        for run in (undisturbed, killed)
    ]
    wrong = [] if digests[0] == digests[1] else ["different weights"]
    return wrong if steps_of(undisturbed) == steps_of(killed) else [*wrong, "different losses"]


if __name__ == "__main__":
    main()
