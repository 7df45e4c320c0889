"""What a GPU does with this project, in at most 8 minutes: tests, crops, steps, memory, a training from shards.

    python -m tools.gpu_check [--data SHARDS] [--out gpu-check] [--minutes 8]
    python -m tools.gpu_check --small        # on a CPU too: the same checks with a tiny model

Each check runs in a process of its own, so that a failure or too little memory in one leaves the others. Writes
OUT.json and OUT.md, and prints the second. Exit status 1 if a check failed.

tests: those of `pytest -m device` on the GPU. crops: planes to normalised clips, from full frames and from boxes.
B, L: a pretraining step of the recipe in bfloat16, from planes to the update and of the model alone, eager and compiled;
transformers' model with SDPA; a step in which every wait for the device is an error; the peak of memory beside the
table's. pipeline: a training of ViT-B from shards, and its share of waiting.

MFU is the operations of a step's forward and backward pass (docs/planning.md) / its time / the GPU's peak.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from tools.bench.device import FRAMES, measure, ours
from tools.bench.step import Stepper, is_masked, transformers_model
from vmae_data.recipes import load_recipe
from vmae_train.clips.augment import Augment
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import sample_mask
from vmae_train.footprint import Footprint, find_footprint, noise_batch
from vmae_train.models.geometry import Geometry
from vmae_train.models.videomae import PretrainModel
from vmae_train.plan_inputs import GPUS
from vmae_train.pretrain import PretrainSpec, grid_of, masked_loss
from vmae_train.training.optimizer import build_optimizer

MIB = 1 << 20
SMALL = ("model.position=sinusoid-1d", "train.batch=2")
RECIPES = {"B": "pretrain/k400", "L": "pretrain/k400-l-1600"}
CHECKS = ("tests", "crops", "B", "L", "pipeline")


class Figure(msgspec.Struct, frozen=True):
    """One number of a check, or a word about it."""

    name: str
    value: float | str
    unit: str = ""


class Check(msgspec.Struct, frozen=True):
    """`failed` is empty, or why the check has no figures or not all."""

    name: str
    seconds: float
    figures: tuple[Figure, ...]
    failed: str = ""


class Setting(NamedTuple):
    device: torch.device
    small: bool
    data: str
    steps: int

    def recipe(self, name: str) -> PretrainSpec:
        if self.small:
            return load_recipe("vmae_train", "pretrain/demo", PretrainSpec, SMALL)
        return load_recipe("vmae_train", RECIPES[name], PretrainSpec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shards/example", help="shards of the training [default: %(default)s]")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), metavar="OUT")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--small", action="store_true", help="a tiny model and few steps")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, help="[default: all; with --small all but L]")
    parser.add_argument("--one", choices=CHECKS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.small and not torch.cuda.is_available():
        parser.error("no GPU was found. --small runs the checks on the CPU")
    if options.one:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        setting = Setting(device, options.small, options.data, 2 if options.small else 10)
        for figure in _RUN[options.one](options.one, setting):  # one by one: a check may fail or take too long
            print(msgspec.json.encode(figure).decode(), flush=True)
        return
    ends_at = time.monotonic() + 60 * options.minutes
    checks = [Check("machine", 0, tuple(machine()))]
    for name in options.checks or [name for name in CHECKS if not (options.small and name == "L")]:
        words = ["--one", name, "--data", options.data, *(["--small"] if options.small else [])]
        checks.append(run(name, words, ends_at - time.monotonic()))
        print(f"{name}: {checks[-1].failed or 'done'}, {checks[-1].seconds:.0f} s", file=sys.stderr, flush=True)
        options.out.with_suffix(".json").write_bytes(msgspec.json.format(msgspec.json.encode(checks)))
    page = markdown(checks)
    options.out.with_suffix(".md").write_text(page)
    print(page)
    sys.exit(1 if any(check.failed for check in checks) else 0)


def run(name: str, words: list[str], seconds: float) -> Check:
    """Run a check in a process of its own. It ends with the time, and so do the processes that it started."""
    started_at, failed = time.monotonic(), ""
    command = [sys.executable, "-m", "tools.gpu_check", *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as check:
        try:
            out, err = check.communicate(timeout=max(1, seconds))
        except subprocess.TimeoutExpired:
            failed = "the time is over"
            os.killpg(check.pid, signal.SIGKILL)
            out, err = check.communicate()
    if check.returncode and not failed:
        failed = (err.strip() or f"status {check.returncode}").splitlines()[-1]
    complete = out[: out.rfind("\n") + 1].splitlines()
    figures = tuple(msgspec.json.decode(line, type=Figure) for line in complete)
    wrong = [f"{figure.name}: {figure.value}" for figure in figures if figure.unit == "failed"]
    return Check(name, time.monotonic() - started_at, figures, "; ".join([*filter(None, [failed]), *wrong]))


def machine() -> Iterator[Figure]:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    yield Figure("GPU", name)
    yield Figure("versions", versions)
    yield Figure("CPU cores", str(len(os.sched_getaffinity(0))))
    yield Figure("date", time.strftime("%Y-%m-%d"))


def check_tests(_: str, setting: Setting) -> Iterator[Figure]:
    if setting.device.type == "cpu":
        yield Figure("tests", "not run: there is no GPU")
        return
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "device",
        "-k",
        "cuda",
        "-p",
        "no:cacheprovider",
        "tests/train",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    summary = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr.strip()
    yield Figure("tests", summary, "failed" if done.returncode else "")
    for line in re.findall(r"^FAILED (.*)$", done.stdout, flags=re.MULTILINE):
        yield Figure("test", line)


def check_crops(_: str, setting: Setting) -> Iterator[Figure]:
    clips, size = (2, 32) if setting.small else (32, 224)
    batch = noise_batch(clips, FRAMES, size, setting.device)
    for name, keys in (("full frames", {"convert": "frame"}), ("boxes", {"convert": "box"})):
        for crop in ("resized", "multiscale"):
            make = ours(batch, size, crop=crop, **keys)
            rounds = [measure(make, setting.device) for _ in range(setting.steps + 1)][1:]
            yield Figure(f"{name}, {crop}", 1000 * median(one for one, _ in rounds) / clips, "ms a clip")
            yield Figure(f"{name}, {crop}", median(one for _, one in rounds) / clips, "MiB a clip")


def check_step(name: str, setting: Setting) -> Iterator[Figure]:
    spec, device = setting.recipe(name), setting.device
    footprint = find_footprint(spec)
    batch = noise_batch(footprint.micro_batch, spec.geometry().num_frames, spec.geometry().image_size, device)
    yield from our_figures(spec, batch, footprint, setting.steps, compiled=False)
    yield Figure("peak of memory by the table", footprint.peak_mib, "MiB")
    yield from transformers_figures(spec, batch, setting.steps)
    if device.type == "cpu":
        yield Figure("compiled", "not run on a CPU")
    else:
        yield from our_figures(spec, batch, footprint, setting.steps, compiled=True)


def our_figures(
    spec: PretrainSpec, batch: Batch, footprint: Footprint, steps: int, *, compiled: bool
) -> Iterator[Figure]:
    """At its end nothing is left on the device that a later peak of memory would count."""
    device, way = batch.weight_B.device, "compiled" if compiled else "eager"
    peak_flops = next((gpu.tflops * 1e12 for key, gpu in GPUS.items() if key in _device_name(device)), None)
    model = PretrainModel(spec.geometry(), seed=0).to(device).train()
    model.set_options(msgspec.structs.replace(spec.model, compile=compiled))
    optimizer = build_optimizer(model, spec.optim, depth=model.geometry.depth)
    augment = Augment(msgspec.structs.replace(spec.augment, size=model.geometry.image_size)).to(device)
    if compiled:
        augment.compile_boxes()
    whole = Stepper(partial(masked_loss, model, batch, augment, spec.mask), optimizer)
    if device.type == "cuda" and not compiled:
        yield waits(whole, device)
    seconds, mib = time_steps(whole, device, steps)
    yield from speed(f"planes to update, {way}", seconds, footprint, peak_flops)
    yield from peak(way, mib)
    mask = sample_mask(spec.mask, batch.rng, grid_of(model.geometry))
    alone = Stepper(partial(model.loss, made_clips(model.geometry, batch), mask), optimizer)
    seconds, _ = time_steps(alone, device, steps)
    yield from speed(f"model alone, {way}", seconds, footprint, peak_flops)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device).replace(" ", "") if device.type == "cuda" else ""


def speed(name: str, seconds: float, footprint: Footprint, peak_flops: float | None) -> Iterator[Figure]:
    clips = footprint.micro_batch
    yield Figure(name, 1000 * seconds, "ms")
    yield Figure(name, clips / seconds, "clips/s")
    if peak_flops is not None:
        yield Figure(name, 100 * clips * footprint.gflop_a_clip * 1e9 / seconds / peak_flops, "% MFU")


def peak(name: str, mib: float | None) -> Iterator[Figure]:
    if mib is not None:
        yield Figure(f"peak of memory, {name}", mib, "MiB")


def step(stepper: Stepper, device: torch.device) -> None:
    loss = stepper.forward("bfloat16", device.type)
    torch.autograd.backward(loss)
    stepper.update()


def time_steps(stepper: Stepper, device: torch.device, steps: int) -> tuple[float, float | None]:
    """Median seconds of a step after some others, and the peak of a GPU's memory in MiB."""
    on_gpu, taken = device.type == "cuda", []
    for _ in range(3 if on_gpu else 1):
        step(stepper, device)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        _synchronize(device)
        started_at = time.perf_counter()
        step(stepper, device)
        _synchronize(device)
        taken.append(time.perf_counter() - started_at)
    return median(taken), torch.cuda.max_memory_allocated() / MIB if on_gpu else None


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def waits(stepper: Stepper, device: torch.device) -> Figure:
    """Whether a step waits for the device somewhere."""
    step(stepper, device)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(stepper, device)
    except RuntimeError as error:
        return Figure("a step waits for the device", str(error).splitlines()[0], "failed")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Figure("a step waits for the device", "no")


def made_clips(geometry: Geometry, batch: Batch) -> Tensor:
    shape = (batch.valid, 3, geometry.num_frames, geometry.image_size, geometry.image_size)
    return torch.randn(shape, device=batch.weight_B.device)


def transformers_figures(spec: PretrainSpec, batch: Batch, steps: int) -> Iterator[Figure]:
    if find_spec("transformers") is None:
        yield Figure("transformers", "not installed")
        return
    device, geometry = batch.weight_B.device, spec.geometry()
    theirs = transformers_model(PretrainModel(geometry, seed=0), "sdpa").to(device)
    clips = made_clips(geometry, batch).transpose(1, 2).contiguous()
    masked = is_masked(sample_mask(spec.mask, batch.rng, grid_of(geometry)), geometry)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, fused=True)
    stepper = Stepper(lambda: theirs(pixel_values=clips, bool_masked_pos=masked).loss, optimizer)
    seconds, mib = time_steps(stepper, device, steps)
    yield Figure("transformers with SDPA, model alone", 1000 * seconds, "ms")
    yield Figure("transformers with SDPA, model alone", batch.valid / seconds, "clips/s")
    yield from peak("transformers", mib)


def check_pipeline(_: str, setting: Setting) -> Iterator[Figure]:
    """A training from shards by the command line."""
    steps = 8 if setting.small else 40
    settings = {"train.steps": steps, "log.every_steps": steps // 4, "optim.warmup_steps": 1}
    if setting.small:
        recipe = "pretrain/demo"
    else:
        recipe = RECIPES["B"]
        settings |= {"train.batch": 64, "loader.workers": max(1, len(os.sched_getaffinity(0)) - 2)}
    with tempfile.TemporaryDirectory() as folder:
        words = ["pretrain", "--recipe", recipe, "--data", setting.data, "--out", f"{folder}/run", "--quiet"]
        for key, value in settings.items():
            words += ["--set", f"{key}={value}"]
        done = subprocess.run(
            [sys.executable, "-m", "vmae_train.cli", *words], capture_output=True, text=True, check=False
        )
        if done.returncode:
            yield Figure("training", done.stderr.strip().splitlines()[-1], "failed")
            return
        lines = [msgspec.json.decode(line) for line in Path(folder, "run", "log.jsonl").read_bytes().splitlines()]
    # The first line includes the start.
    later = [line for line in lines if line["kind"] == "train" and line["clips_per_second"]][1:]
    yield Figure("training from shards", fmean(line["clips_per_second"] for line in later), "clips/s")
    yield Figure("waiting for data", 100 * fmean(line["data_wait"] for line in later), "% of the time")
    yield Figure("limited by", later[-1]["limits"])
    yield Figure("peak of memory", later[-1]["memory_mb"] * 1e6 / MIB, "MiB")


_RUN: dict[str, Callable[[str, Setting], Iterator[Figure]]] = {
    "tests": check_tests,
    "crops": check_crops,
    "B": check_step,
    "L": check_step,
    "pipeline": check_pipeline,
}


def markdown(checks: list[Check]) -> str:
    lines = ["| check | what | value |", "| --- | --- | --- |"]
    for check in checks:
        for figure in check.figures:
            value = (
                f"{figure.value:,.1f}" if isinstance(figure.value, float) else figure.value or "not counted on a CPU"
            )
            lines.append(f"| {check.name} | {figure.name} | {value} {figure.unit} |".replace("  |", " |"))
        if check.failed:
            lines.append(f"| {check.name} | failed | {check.failed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
