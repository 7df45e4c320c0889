"""Make the files of this folder again with the program of one commit. Only its public commands are used.

    python tests/compatibility/make.py COMMAND_FOLDER

COMMAND_FOLDER holds `vmae-shard` and `vmae-train`, such as `.venv/bin` of a checkout of that commit.
README.md explains each file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg

HERE = Path(__file__).resolve().parent
SHARDS = ["--set", "short_side=36", "--set", "crf=38", "--set", "gop=8", "--set", "samples_per_shard=4"]
THINNED = [*SHARDS, "--set", "stride=2"]
PHASES = [*SHARDS, "--set", "stride=4", "--set", "phases=2"]
# Sources: one moving test picture each. The folder is the class.
PICTURES = {
    "plane/a.mp4": "testsrc2=size=64x48:rate=25:duration=2.4",
    "plane/b.mp4": "testsrc2=size=48x64:rate=30:duration=2",
    "plane/c.mkv": "testsrc=size=64x36:rate=24:duration=2.5",
    "fractal/a.mp4": "mandelbrot=size=64x48:rate=25:start_scale=2:end_pts=40,trim=duration=2",
    "fractal/b.mp4": "mandelbrot=size=80x40:rate=25:start_scale=1:end_pts=30,trim=duration=2.2",
    "cells/a.mp4": "life=size=64x48:rate=25:random_seed=5:ratio=0.4:mold=20:life_color=white:death_color=blue,trim=duration=2.4",
    "cells/b.avi": "life=size=64x48:rate=15:random_seed=9:ratio=0.3:mold=10:life_color=red,trim=duration=2.4",
    "cells/c.mp4": "cellauto=size=64x48:rate=25:random_seed=3:rule=110,trim=duration=2.4",
}
LAYOUT = ["--set", "train.threads=1", "--set", "loader.workers=1"]


def main() -> None:
    folder = Path(sys.argv[1]).resolve()
    os.chdir(HERE)
    os.environ["OMP_NUM_THREADS"] = "1"
    shard, train = str(folder / "vmae-shard"), str(folder / "vmae-train")
    make_sources()
    for name, settings in (("shards", THINNED), ("phases", PHASES)):
        renew(name)
        run(shard, "build", "sources", name, *settings, "--workers", "1", "--quiet")
    renew("unfinished")
    stop(
        [shard, "build", "sources", "unfinished", *THINNED, "--workers", "1", "--quiet"],
        lambda: (
            len(list(Path("unfinished").glob("shard-*.json"))) == 1
            and any(Path("unfinished/.staging").glob("*.staged.json"))
        ),
    )
    make_run(train, "pretrain", ["--data", "shards:3", "--data", "phases:1"])
    make_run(train, "finetune", ["--data", "shards", "--val", "shards"])
    Path("official.pth").unlink(missing_ok=True)
    run(train, "convert", "finetune", "official.pth", "--to", "official", "--quiet")
    make_losses(train)
    make_answers(folder)


def run(*command: str) -> None:
    subprocess.run(command, check=True)


def renew(name: str) -> None:
    shutil.rmtree(name, ignore_errors=True)


def make_sources() -> None:
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    for name, picture in PICTURES.items():
        path = Path("sources", name)
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        codec = ["-c:v", "mpeg4", "-q:v", "16"] if path.suffix == ".avi" else ["-c:v", "libx264", "-crf", "34"]
        quiet = ["-loglevel", "error", "-bitexact", "-f", "lavfi"]
        run(ffmpeg, *quiet, "-i", picture, *codec, "-pix_fmt", "yuv420p", "-threads", "1", str(path))
    Path("sources/plane/broken.mp4").write_text("not a video\n")


def stop(command: list[str], when: Callable[[], bool]) -> None:
    """Kill a command with all its processes as soon as `when` is true."""
    process = subprocess.Popen(command, start_new_session=True)
    while not when():
        assert process.poll() is None, f"{command} ended before it could be stopped"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def make_run(train: str, kind: str, data: list[str]) -> None:
    """A run stopped in the middle, and the log of the same run without the stop."""
    command = [train, kind, "--recipe", f"run-{kind}.toml", *data, *LAYOUT, "--quiet", "--out"]
    renew(f"{kind}-whole")
    run(*command, f"{kind}-whole")
    renew(kind)
    log = Path(kind, "log.jsonl")
    stop([*command, kind], lambda: log.exists() and log.read_bytes().count(b'"train"') >= 8)
    last = max(Path(f"{kind}-whole/checkpoints").iterdir())
    logged = [json.loads(line) for line in Path(f"{kind}-whole/log.jsonl").read_text().splitlines()]
    expected = {
        "log": [line for line in logged if line["kind"] != "start"],
        "sha256": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(last.iterdir())},
        "machine": machine(),
    }
    Path(f"{kind}-expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    renew(f"{kind}-whole")


def make_losses(train: str) -> None:
    """The losses of 100 steps of both trainings on shards/example."""
    example = "../../shards/example"
    losses: dict[str, object] = {"machine": machine()}
    for kind, data in (
        ("pretrain", ["--data", example]),
        ("finetune", ["--data", example, "--val", example]),
    ):
        renew("scratch")
        run(train, kind, "--recipe", f"losses-{kind}.toml", *data, *LAYOUT, "--quiet", "--out", "scratch")
        lines = [json.loads(line) for line in Path("scratch/log.jsonl").read_text().splitlines()]
        losses[kind] = [line["loss"] for line in lines if line["kind"] == "train"]
        renew("scratch")
    Path("losses.json").write_text(json.dumps(losses, indent=1) + "\n")


def make_answers(folder: Path) -> None:
    """The outputs of official.pth for a fixed clip, and the clips of ten batches. These two use Python names."""
    model = (
        "import json, torch; from vmae_train import load_model; torch.set_num_threads(1); "
        "model = load_model('official.pth', num_heads=2, classes=('cells', 'fractal', 'plane')); "
        "clip = torch.linspace(-2, 2, 3 * 16 * 32 * 32).reshape(1, 3, 16, 32, 32); "
        "print(json.dumps({'logits': model(clip).tolist()[0], 'features': model.features(clip).tolist()[0]}))"
    )
    answer = subprocess.run([str(folder / "python"), "-c", model], check=True, capture_output=True, text=True)
    Path("official-expected.json").write_text(answer.stdout)
    checkout = folder.parent.parent
    module = "tools.soak.batches" if (checkout / "tools" / "soak").exists() else "tools.batches"
    batches = [str(folder / "python"), "-m", module, "--recipe", str(HERE / "run-pretrain.toml")]
    batches += ["--data", f"{HERE}/shards:3", "--data", f"{HERE}/phases:1", "--end", "10"]
    subprocess.run([*batches, "--out", str(HERE / "batches.jsonl")], check=True, cwd=checkout)


def machine() -> str:
    """What floating-point results depend on: processor and libraries. Bits are equal on one such machine."""
    import torch

    text = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in facts.items()}
    flags = hashlib.sha256(facts.get("flags", "").encode()).hexdigest()[:8]
    name = f"{facts.get('model name')} family {facts.get('cpu family')} model {facts.get('model')} flags {flags}"
    return f"{name}, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


if __name__ == "__main__":
    main()
