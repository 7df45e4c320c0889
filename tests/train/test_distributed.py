"""Real torchrun runs of a few steps: same batches, losses and scores on any number of processes, and no hang at the end."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command import call_command
from tests.torchrun import HANGS_SECONDS, needs_deepspeed, process_of_rank, run_torchrun, torchrun, wait_for_lines
from tools.soak.batches import own_clips
from vmae_data.errors import MisuseError
from vmae_data.names import tar_name
from vmae_data.read.batches import PADDING, BatchLayout, TrainingOrder
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_data.recipes import load_recipe
from vmae_train.clips.fingerprint import ClipFingerprint
from vmae_train.distributed import Distributed
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

STEPS = 8
BATCHES = 7


def _printed(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Our own lines: torchrun prints more."""
    return [line for line in done.stderr.splitlines() if line.startswith("vmae-train:")]


def _pretrain(shards: Path, out: Path, *settings: str, steps: int = STEPS) -> list[str | Path]:
    arguments: list[str | Path] = ["pretrain", "--recipe", "pretrain/demo", "--data", shards, "--out", out, "--quiet"]
    for setting in (f"train.steps={steps}", "log.every_steps=1", "optim.warmup_steps=2", "model.depth=1", *settings):
        arguments += ["--set", setting]
    return arguments


def _losses(run: Path) -> list[float]:
    lines = read_log(run, "train")
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["loss"] for line in lines]


def _batches(processes: int, workers: int, data: list[str], *settings: str, start: int = 0) -> list[list[Any]]:
    """The clips of each global batch as `processes` processes read them: here one after the other."""
    common = ("augment.crop=multiscale", "augment.flip=true", f"train.steps={BATCHES}", f"loader.workers={workers}")
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*common, *settings])
    ranks = [own_clips(spec, data, start, None, Distributed(rank, processes)) for rank in range(processes)]
    return [[clip for share in shares for clip in share] for shares in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def other_shards(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards with another frame size and length, and with flips, which the first recipe forbids."""
    folder = tmp_path_factory.mktemp("other")
    call_command("vmae_data", "demo", folder / "videos", "--videos", "16", "--seed", "9", "--quiet")
    settings = [word for text in ("samples_per_shard=4", "short_side=48", "may_flip=true") for word in ("--set", text)]
    arguments = ["build", folder / "videos", folder / "shards", "--recipe", "demo", "--classes", demo_shards, "--quiet"]
    call_command("vmae_data", *arguments, *settings)
    return folder / "shards"


@pytest.fixture(scope="module")
def one_process(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "one_process"
    call_command("vmae_train", *_pretrain(demo_shards, out))
    return out


def test_any_number_of_processes_and_workers_sees_the_same_batches_to_the_bit(demo_shards: Path) -> None:
    data, micro = [str(demo_shards)], "train.micro_batch=2"
    one = _batches(1, 0, data, micro)
    assert [len(clips) for clips in one] == [8] * BATCHES
    assert _batches(4, 1, data, micro) == one
    # Resumed at step 3, on another number of processes.
    assert _batches(2, 3, data, micro, start=3) == one[3:]


@pytest.mark.slow
def test_the_processes_of_torchrun_see_the_same_batches(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "batches.jsonl"
    settings = ("augment.crop=multiscale", "augment.flip=true", f"train.steps={BATCHES}", "train.micro_batch=2")
    arguments = [word for setting in settings for word in ("--set", setting)]
    run_torchrun(3, "tools.soak.batches", "--recipe", "pretrain/demo", "--data", demo_shards, "--out", out, *arguments)
    result = [msgspec.json.decode(line, type=list[ClipFingerprint]) for line in out.read_bytes().splitlines()]
    assert result == _batches(1, 0, [str(demo_shards)], "train.micro_batch=2")


def test_a_mixture_is_the_same_on_any_number_of_processes(demo_shards: Path, other_shards: Path) -> None:
    data, micro = [f"{demo_shards}:3", f"{other_shards}:1"], "train.micro_batch=4"
    one = _batches(1, 1, data, micro)
    assert _batches(2, 0, data, micro, start=5) == one[5:]
    clips = [clip for batch in one for clip in batch]
    seconds = [clip for clip in clips if clip.key.endswith("(data 2)")]
    assert 4 < len(seconds) < 28  # 14 of 56 on average
    # Each data set says whether its videos may be flipped.
    assert {clip.key.endswith("(data 2)") for clip in clips if clip.box[4]} == {True}
    seen = [(clip.key, clip.epoch) for clip in clips]
    assert len(set(seen)) == len(seen)


def test_two_processes_train_as_one_does(demo_shards: Path, one_process: Path, tmp_path: Path) -> None:
    run_torchrun(2, "vmae_train.cli", *_pretrain(demo_shards, tmp_path / "two", "train.micro_batch=2"))
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(one_process), rtol=1e-5)
    names = [
        {path.name for path in run.glob(f"checkpoints/step-{STEPS:09d}/*")} for run in (one_process, tmp_path / "two")
    ]
    assert names[0] == names[1]
    weights = (run / f"checkpoints/step-{STEPS:09d}/model.safetensors" for run in (one_process, tmp_path / "two"))
    heads = [path.read_bytes()[8:].split(b"}}")[0] for path in weights]
    assert heads[0] == heads[1]  # names, shapes and kinds


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2", pytest.param("deepspeed", marks=needs_deepspeed)])
def test_a_signal_to_one_process_stops_all_and_another_number_of_processes_resumes(
    demo_shards: Path, tmp_path: Path, engine: str
) -> None:
    out = tmp_path / "stopped"
    # Many steps, so that it still runs when the signal comes. The learning rates are those of the short run.
    long = ("checkpoint.every_steps=1000", "optim.min_lr=0.0256")
    arguments = _pretrain(demo_shards, out, *long, f"train.engine={engine}", "train.micro_batch=2", steps=100000)
    process = subprocess.Popen(torchrun(2, "vmae_train.cli", *arguments), stderr=subprocess.PIPE, text=True)
    wait_for_lines(process, out, 3)
    os.kill(process_of_rank(process.pid, 1), signal.SIGTERM)
    _, printed = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 1  # torchrun's own status; ours is in its table
    assert "exitcode  : 143" in printed
    (saved,) = (out / "checkpoints").glob("step-*/state.json")
    step = json.loads(saved.read_text())["step"]
    assert printed.count("vmae-train: stopped") == 1
    assert f"stopped. Step {step} is saved in {saved.parent}. Run the same command again to resume\n" in printed
    assert len(read_log(out, "train")) == step >= 3
    whole = tmp_path / "whole"
    more = _pretrain(demo_shards, whole, *long, steps=100000)
    _until(whole, step + 4, torchrun(1, "vmae_train.cli", *more))
    _until(out, step + 4, torchrun(3, "vmae_train.cli", *arguments))
    np.testing.assert_allclose(_losses(out)[: step + 4], _losses(whole)[: step + 4], rtol=1e-4)


def _until(run: Path, lines: int, command: list[str]) -> None:
    """Let a run continue until its log has `lines` lines, then stop its launcher."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    wait_for_lines(process, run, lines)
    process.terminate()
    process.wait(timeout=HANGS_SECONDS)
    assert len(read_log(run, "train")) >= lines


STOP_IN_VALIDATION = """
import os, signal, sys
import vmae_train.evaluation.predict_videos as predict_videos
from vmae_train.cli import main
whole, calls = predict_videos.view_clips, []
def view_clips(*arguments):
    calls.append(0)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), signal.SIGTERM)
    if len(calls) > 2:
        print("a batch after the signal")
    return whole(*arguments)
if __name__ == "__main__":  # decode workers import this file
    predict_videos.view_clips = view_clips
    main()
"""


@pytest.mark.slow
def test_a_signal_to_one_process_ends_a_validation_of_two(demo_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP_IN_VALIDATION)
    out, data = tmp_path / "run", ("--data", demo_shards, "--val", demo_shards)
    arguments = ["finetune", "--recipe", "finetune/demo", *data, "--out", out, "--quiet"]
    settings = ("train.steps=4", "model.depth=1", "optim.warmup_steps=2", "evaluate.every_steps=2", "evaluate.batch=2")
    arguments += [word for setting in settings for word in ("--set", setting)]
    launcher = torchrun(2, "none")[:-2]
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [*launcher, str(tmp_path / "stop.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_SECONDS, check=False, env=paths)
    assert "exitcode  : 143" in done.stderr, done.stderr
    saved = f"Step 2 is saved in {out / 'checkpoints' / 'step-000000002'}"
    assert done.stderr.count(f"vmae-train: stopped. {saved}. Run the same command again to resume\n") == 1
    assert "a batch after the signal" not in done.stdout
    assert [path.parent.name for path in out.glob("checkpoints/*/state.json")] == ["step-000000002"]
    run_torchrun(2, "vmae_train.cli", *arguments)
    assert [line["step"] for line in read_log(out) if line["kind"] == "validation"] == [2, 4]


@pytest.mark.slow
def test_batches_that_no_number_divides_finish(demo_shards: Path, tmp_path: Path) -> None:
    """Batches of 7 on 3 processes in micro-batches of at most 7, and 3 epochs of 24 samples."""
    settings = ("train.batch=7", "loader.workers=0")
    run_torchrun(3, "vmae_train.cli", *_pretrain(demo_shards, tmp_path / "three", *settings))
    call_command("vmae_train", *_pretrain(demo_shards, tmp_path / "one", *settings))
    np.testing.assert_allclose(_losses(tmp_path / "three"), _losses(tmp_path / "one"), rtol=1e-5)


@pytest.mark.parametrize(
    ("batch", "micro", "world_size"), [(8, None, 1), (8, 2, 4), (7, None, 3), (10, 2, 2), (9, 3, 8), (24, 8, 3)]
)
def test_every_sample_has_one_position_and_every_process_as_many_micro_batches(
    batch: int, micro: int | None, world_size: int
) -> None:
    layout = BatchLayout.of(batch, micro, world_size)
    shares = [list(layout.micro_batches(np.arange(batch), rank, PADDING)) for rank in range(world_size)]
    assert {len(share) for share in shares} == {layout.grad_accum_steps}
    assert {len(portion) for share in shares for portion in share} == {layout.micro_batch}
    assert [n for share in shares for portion in share for n in portion if n != PADDING] == list(range(batch))
    assert all(any(n != PADDING for portion in share for n in portion) for share in shares)


def _global_batches(
    data: Mixture, world_size: int, micro: int | None, start: int, stop: int
) -> list[list[tuple[int, int]]]:
    """The (epoch, sample) pairs of each step, put together from what each process requests."""
    order = TrainingOrder(data, seed=3, batch=960)
    order.global_batch = functools.cache(order.global_batch)  # all processes compute the same
    layout = BatchLayout.of(960, micro, world_size)
    steps: list[list[tuple[int, int]]] = [[] for _ in range(start, stop)]
    for rank in range(world_size):
        for request in order.requests(start, stop, layout, rank):
            pairs = zip(request.epochs, request.samples, strict=True)
            steps[request.step - start] += [pair for pair in pairs if pair[1] != PADDING]
    return steps


def test_a_run_of_15_processes_resumes_on_1_to_120_with_the_same_batches(demo_shards: Path) -> None:
    """The numbers of mosaicml-streaming's test of resumption. Steps 5 and 6 are in two epochs, of 3 steps each."""
    data = Mixture([Shards.open(str(demo_shards))] * 120)
    whole = _global_batches(data, 15, None, 0, 7)
    assert [len(clips) for clips in whole] == [960] * 7
    assert len({clip for clips in whole[3:6] for clip in clips}) == 960 * 3
    for world_size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 24, 30, 40, 60, 120):
        for micro in (None, 7):
            assert _global_batches(data, world_size, micro, 5, 7) == whole[5:], (world_size, micro)


def test_more_processes_than_samples_of_a_batch_are_refused_once_and_by_all(demo_shards: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="smaller than the 4 processes"):
        BatchLayout.of(3, None, 4)
    done = run_torchrun(2, "vmae_train.cli", *_pretrain(demo_shards, tmp_path / "run", "train.batch=1"), status=1)
    (line,) = _printed(done)
    assert "train.batch = 1 is smaller than the 2 processes" in line
    assert "vmae_train/" not in done.stderr  # torchrun prints its own traceback, none of ours
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.engine=fsdp2", "train.micro_batch=2"),
        pytest.param(("train.engine=deepspeed", "train.zero_stage=1", "train.micro_batch=2"), marks=needs_deepspeed),
        pytest.param(("train.engine=deepspeed", "train.zero_stage=3", "train.micro_batch=2"), marks=needs_deepspeed),
    ],
    ids=["ddp", "fsdp2", "zero1", "zero3"],
)
def test_unreadable_samples_of_all_processes_are_in_one_list(
    demo_shards: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(demo_shards, tmp_path / "damaged"))
    shards = Shards.open(str(folder))
    for number in (4, 5, 11):
        place = shards.member_range(number)
        with (folder / tar_name(place.shard)).open("r+b") as file:
            file.seek(place.offset)
            file.write(b"0" * 64)
    done = run_torchrun(
        2, "vmae_train.cli", *_pretrain(folder, tmp_path / "two", "checkpoint.every_steps=3", *settings)
    )
    call_command("vmae_train", *_pretrain(folder, tmp_path / "one"))
    np.testing.assert_allclose(_losses(tmp_path / "two"), _losses(tmp_path / "one"), rtol=1e-5)
    (state,) = (tmp_path / "two").glob(f"checkpoints/step-{STEPS:09d}/state.json")
    assert list(json.loads(state.read_text())["unreadable"]) == sorted(shards.key(n) for n in (4, 5, 11))
    assert done.stderr.count(f"skipped, unreadable: {shards.key(4)}") == 1
    for shard in range(len(shards.shard_sizes) - 1):  # enough is left for a step
        (folder / tar_name(shard)).write_bytes(bytes((folder / tar_name(shard)).stat().st_size))
    done = run_torchrun(2, "vmae_train.cli", *_pretrain(folder, tmp_path / "lost", *settings), status=1)
    (line,) = _printed(done)
    assert "samples can't be read, which exceeds the limit of 8" in line


@pytest.mark.slow
def test_a_finetuning_by_two_processes_scores_every_video_once_and_as_one_process_does(
    demo_shards: Path, demo_videos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments: list[str | Path] = [
        "--recipe",
        "finetune/demo",
        "--data",
        demo_shards,
        "--val",
        demo_shards,
        "--out",
        out,
    ]
    for setting in (
        "train.steps=6",
        "model.depth=1",
        "optim.warmup_steps=2",
        "evaluate.every_steps=3",
        "evaluate.batch=5",
        "ema.decay=0.9",
    ):
        arguments += ["--set", setting]
    run_torchrun(2, "vmae_train.cli", "finetune", *arguments, "--quiet")
    two = json.loads((out / "evaluation.json").read_text())
    assert two["videos"] == len(Shards.open(str(demo_shards)))
    assert [line["step"] for line in read_log(out) if line["kind"] == "validation"] == [3, 6]
    assert json.loads((out / "best.json").read_text())["step"] in (3, 6)
    again = ["evaluate", out, "--data", demo_shards, "--views", "2x3", "--batch", "5", "--quiet", "--json"]
    one = json.loads(call_command("vmae_train", *again).stdout)
    assert two == one
    again += ["--ema", "--merge", "logit", "--predictions"]
    one_process, together = tmp_path / "one_process.parquet", tmp_path / "together.parquet"
    mean = json.loads(call_command("vmae_train", *again, one_process).stdout)
    done = run_torchrun(2, "vmae_train.cli", *(word for word in again if word != "--quiet"), together)
    assert json.loads(done.stdout) == mean
    printed = [json.loads(line) for line in done.stderr.splitlines() if '"videos evaluated"' in line]
    assert (printed[-1]["done"], printed[-1]["total"]) == (two["videos"], two["videos"])
    rows = [pq.read_table(path).to_pydict() for path in (one_process, together)]
    assert np.allclose(*(np.array(result.pop("probabilities")) for result in rows), atol=1e-5)
    assert rows[0].pop("top5")
    assert rows[1].pop("top5")
    assert rows[0] == rows[1]
    assert len(set(rows[0]["key"])) == two["videos"]
    # Segments of one video, read by different processes.
    cut = tmp_path / "cut"
    settings = ["--set", "longest_seconds=0.7", "--set", "samples_per_shard=8", "--classes", demo_shards, "--quiet"]
    call_command("vmae_data", "build", demo_videos, cut, "--recipe", "demo", *settings)
    segments = ["evaluate", out, "--data", cut, "--views", "1x1", "--batch", "3", "--quiet", "--json"]
    scores = json.loads(call_command("vmae_train", *segments).stdout)
    assert scores["videos"] == 24 < len(Shards.open(str(cut)))
    assert json.loads(run_torchrun(2, "vmae_train.cli", *segments).stdout) == scores
