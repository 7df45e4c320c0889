"""Real runs of a few steps: exact resume after a real kill, signals, refusals, scores."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tests.command import call_command, command_line
from vmae_data.errors import MisuseError
from vmae_data.names import tar_name
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.loader import LoaderSpec
from vmae_train.evaluation.metrics import class_scores
from vmae_train.evaluation.predict_videos import check_classes, predict_videos
from vmae_train.evaluation.predictions import compute_scores
from vmae_train.evaluation.protocol import EvaluationProtocol, parse_views
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.models.heads import Classifier
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import read_facts

pytestmark = pytest.mark.processes

STEPS = 24
SETTINGS = ["--set", f"train.steps={STEPS}", "--set", "checkpoint.every_steps=5", "--set", "log.every_steps=1"]
SETTINGS += ["--set", "model.depth=2"]
# Timings and memory differ from run to run; nothing else may.
MEASURED = {"clips_per_second", "data_wait", "limits", "cache_hits", "read_mb", "memory_mb"}


def _pretrain_arguments(shards: Path, out: Path, *more: str) -> list[str | Path]:
    arguments: list[str | Path] = [
        "vmae_train",
        "pretrain",
        "--recipe",
        "pretrain/demo",
        "--data",
        shards,
        "--out",
        out,
    ]
    return [*arguments, *SETTINGS, "--quiet", *more]


def _finetune_arguments(shards: Path, out: Path, *more: str | Path) -> list[str | Path]:
    arguments: list[str | Path] = [
        "vmae_train",
        "finetune",
        "--recipe",
        "finetune/demo",
        "--data",
        shards,
        "--val",
        shards,
        "--out",
        out,
    ]
    return [*arguments, *SETTINGS, "--quiet", *more]


def _numbers(run: Path) -> list[dict[str, Any]]:
    # The time of this warning is measured, and a start has its own time.
    lines = [line for line in read_log(run) if line.get("name") != "waiting for data" and line["kind"] != "start"]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def _weights(run: Path) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{STEPS:09d}"
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "optimizer.safetensors", "state.json")}


@pytest.fixture(scope="session")
def undisturbed(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    call_command(*_pretrain_arguments(demo_shards, out))
    return out


def _kill_when(process: subprocess.Popen[bytes], run: Path, lines: int, number: signal.Signals) -> None:
    until = time.monotonic() + 120
    while len(read_log(run, "train")) < lines and process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(number)


def test_a_run_killed_again_and_again_ends_with_the_same_losses_and_weights(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    for lines in (3, 8, 17):  # before the first checkpoint, and between later ones
        process = subprocess.Popen(command_line(*_pretrain_arguments(demo_shards, out)))
        _kill_when(process, out, lines, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    call_command(*_pretrain_arguments(demo_shards, out))
    assert _numbers(out) == _numbers(undisturbed)
    assert [line["step"] for line in read_log(out, "train")] == list(range(1, STEPS + 1))
    assert _weights(out) == _weights(undisturbed)
    assert not list((out / "checkpoints").glob(".tmp-*"))


def test_a_killed_finetuning_resumes_and_ends_with_the_same_weights_and_scores(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call_command(*_finetune_arguments(demo_shards, whole, "--init", undisturbed))
    process = subprocess.Popen(command_line(*_finetune_arguments(demo_shards, killed, "--init", undisturbed)))
    _kill_when(process, killed, 12, signal.SIGKILL)
    process.wait()
    call_command(*_finetune_arguments(demo_shards, killed, "--init", undisturbed))
    assert _numbers(killed) == _numbers(whole)
    assert _weights(killed) == _weights(whole)
    assert (killed / "evaluation.json").read_bytes() == (whole / "evaluation.json").read_bytes()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_stopped_run_saves_first_and_resumes(
    demo_shards: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    out = tmp_path / "stopped"
    words = command_line(*_pretrain_arguments(demo_shards, out, "--set", "checkpoint.every_steps=1000"))
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(["env", "--default-signal=HUP", *words], stderr=errors)
    _kill_when(process, out, 4, number)
    assert process.wait() == status
    (saved,) = (out / "checkpoints").glob("step-*/state.json")
    step = json.loads(saved.read_text())["step"]
    assert step >= 4
    line = f"vmae-train: stopped. Step {step} is saved in {saved.parent}. Run the same command again to resume\n"
    assert (tmp_path / "errors").read_text().endswith(line)
    call_command(*_pretrain_arguments(demo_shards, out))
    assert _weights(out) == _weights(undisturbed)


def test_a_run_under_nohup_and_without_streams_outlives_its_terminal(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "nohup"
    words = ["sh", "-c", 'exec env --ignore-signal=HUP "$@" <&- >&- 2>&-', "sh"]
    process = subprocess.Popen([*words, *command_line(*_pretrain_arguments(demo_shards, out))])
    _kill_when(process, out, 4, signal.SIGHUP)
    assert process.wait() == 0
    assert _weights(out) == _weights(undisturbed)


def test_sigusr1_saves_and_training_continues(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "asked"
    arguments = _pretrain_arguments(
        demo_shards, out, "--set", "checkpoint.every_steps=1000", "--set", "checkpoint.keep=9"
    )
    process = subprocess.Popen(command_line(*arguments))
    _kill_when(process, out, 2, signal.SIGUSR1)
    assert process.wait() == 0
    steps = sorted(json.loads(path.read_text())["step"] for path in (out / "checkpoints").glob("step-*/state.json"))
    assert len(steps) == 2
    assert steps[-1] == STEPS


def test_only_the_last_checkpoints_are_kept(undisturbed: Path) -> None:
    steps = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    assert steps == ["step-000000020", "step-000000024"]  # keep = 2 in the recipe


def test_a_finished_run_does_nothing_the_second_time(demo_shards: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")}
    call_command(*_pretrain_arguments(demo_shards, undisturbed))
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*.safetensors")} == before


def test_a_changed_recipe_is_refused_with_the_difference_but_a_changed_layout_is_not(
    demo_shards: Path, undisturbed: Path
) -> None:
    done = call_command(*_pretrain_arguments(demo_shards, undisturbed, "--set", "mask.ratio=0.5"), status=2)
    assert "recipe.mask.ratio: 0.75 → 0.5" in done.stderr
    assert done.stderr.count("\n") == 1
    call_command(
        *_pretrain_arguments(demo_shards, undisturbed, "--set", "loader.workers=2", "--set", "log.every_steps=3")
    )


def test_more_epochs_of_a_finished_run_are_refused_with_the_way_to_train_on(
    demo_shards: Path, undisturbed: Path
) -> None:
    done = call_command(*_pretrain_arguments(demo_shards, undisturbed, "--set", f"train.steps={2 * STEPS}"), status=2)
    assert f"To train longer: --init {undisturbed} and another --out" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_that_ended_before_it_trained_starts_with_other_settings(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_bytes((undisturbed / "run.json").read_bytes())
    call_command(*_pretrain_arguments(demo_shards, tmp_path, "--set", "mask.ratio=0.5", "--set", "train.steps=1"))
    assert read_facts(tmp_path).recipe["mask"]["ratio"] == 0.5


def test_the_data_may_move_but_not_change(
    demo_shards: Path, undisturbed: Path, demo_videos: Path, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(demo_shards, tmp_path / "moved"))
    call_command(*_pretrain_arguments(moved, undisturbed))
    call_command(
        "vmae_data", "build", demo_videos, tmp_path / "other", "--recipe", "demo", "--set", "crf=30", "--quiet"
    )
    done = call_command(*_pretrain_arguments(tmp_path / "other", undisturbed), status=2)
    assert "data_digest" in done.stderr


def test_accumulated_micro_batches_give_the_whole_batchs_losses(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    call_command(*_pretrain_arguments(demo_shards, tmp_path / "micro", "--set", "train.micro_batch=2"))
    whole, micro = _numbers(undisturbed), _numbers(tmp_path / "micro")
    whole, micro = ([line for line in lines if line["kind"] == "train"] for lines in (whole, micro))
    np.testing.assert_allclose([line["loss"] for line in micro], [line["loss"] for line in whole], rtol=2e-5)
    np.testing.assert_allclose([line["grad_norm"] for line in micro], [line["grad_norm"] for line in whole], rtol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_learn_the_same_within_their_digits(
    demo_shards: Path, undisturbed: Path, tmp_path: Path, precision: str
) -> None:
    call_command(*_pretrain_arguments(demo_shards, tmp_path / precision, "--set", f"train.precision={precision}"))
    exact, rough = (
        [line for line in _numbers(run) if line["kind"] == "train"] for run in (undisturbed, tmp_path / precision)
    )
    np.testing.assert_allclose([line["loss"] for line in rough], [line["loss"] for line in exact], rtol=0.02)


def test_a_loss_that_is_not_finite_stops_with_step_keys_and_last_good_checkpoint(
    demo_shards: Path, tmp_path: Path
) -> None:
    arguments = _pretrain_arguments(
        demo_shards,
        tmp_path / "wild",
        "--set",
        "optim.base_lr=1000",
        "--set",
        "optim.weight_decay=1000",
        "--set",
        "optim.warmup_steps=2",
    )
    done = call_command(*arguments, "--set", "checkpoint.every_steps=1", status=1)
    assert "is not finite" in done.stderr
    assert "Start a new run" in done.stderr
    assert "scene-" in done.stderr
    assert done.stderr.count("\n") == 1
    for path in (tmp_path / "wild").glob("checkpoints/step-*/model.safetensors"):
        assert all(torch.isfinite(value).all() for value in load_model(path.parent).state_dict().values())


@pytest.mark.slow
def test_one_batch_can_be_overfitted(demo_shards: Path, tmp_path: Path) -> None:
    """A classifier learns to tell eight videos apart, with new crops in each step."""
    few = tmp_path / "few"
    videos = demo_shards.parent / "demo-videos"
    names = sorted(path.relative_to(videos).as_posix() for path in videos.glob("*/scene-*.mp4"))
    one_a_class = {name.split("/")[0]: name for name in names}
    (tmp_path / "list.csv").write_text("".join(f"{videos / name},{label}\n" for label, name in one_a_class.items()))
    call_command("vmae_data", "build", tmp_path / "list.csv", few, "--recipe", "demo", "--quiet")
    done = call_command(
        *[
            "vmae_train",
            "finetune",
            "--recipe",
            "finetune/demo",
            "--data",
            few,
            "--val",
            few,
            "--out",
            tmp_path / "run",
        ],
        *["--set", "train.steps=50", "--set", "optim.warmup_steps=10", "--set", "evaluate.views='1x1'", "--json"],
    )
    scores = json.loads(done.stdout.splitlines()[-1])
    assert scores["top1"] == 100
    assert read_log(tmp_path / "run", "train")[-1]["loss"] < 0.1


def test_an_unreadable_video_is_excluded_from_the_score_and_named(
    demo_shards: Path, undisturbed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(demo_shards, tmp_path / "damaged"))
    shards = Shards.open(str(folder))
    place = shards.member_range(4)
    with (folder / tar_name(0)).open("r+b") as file:
        file.seek(place.offset)
        file.write(b"0" * 64)
    call_command(*_finetune_arguments(demo_shards, tmp_path / "ft"))
    done = call_command(
        "vmae_train", "evaluate", tmp_path / "ft", "--data", folder, "--views", "1x1", "--json", "--quiet"
    )
    scores = json.loads(done.stdout)
    assert scores["videos"] == len(shards) - 1
    assert list(scores["unreadable"]) == [shards.key(4)]
    assert shards.key(4) in done.stderr


def test_scores_are_the_same_in_batches_of_any_size(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    geometry = load_recipe("vmae_train", "pretrain/demo", PretrainSpec).model.geometry()
    model = Classifier(geometry, shards.classes, seed=1)
    with torch.no_grad():
        model.head.weight.mul_(1000)
    result = [
        compute_scores(
            predict_videos(
                model, shards, protocol=EvaluationProtocol(parse_views("2x3"), ClipSpec(stride="kept")), loader=LoaderSpec(workers=workers), device=torch.device("cpu"),
                batch=batch, style=ProgressStyle.QUIET,
            )
        )
        for batch, workers in ((1, 0), (5, 1), (32, 2))
    ]  # fmt: skip
    # The probabilities of wrong videos may differ in their last digits.
    first, second, third = (msgspec.structs.replace(scores, wrong=()) for scores in result)
    assert first == second == third
    assert first.videos == len(shards)


def test_scores_by_hand() -> None:
    probability = np.array([[0.6, 0.4, 0], [0.1, 0.2, 0.7], [0.5, 0.5, 0], [0, 1, 0]])
    scores = class_scores(probability, np.array([0, 1, 1, 1]), classes=("a", "b", "c"), views="1x1", unreadable={})
    assert scores.top1 == 50  # a tie goes to the lower number
    assert scores.top5 is None
    assert scores.per_class == {"a": 100.0, "b": pytest.approx(100 / 3)}
    assert scores.mean_class == pytest.approx((100 + 100 / 3) / 2)
    assert scores.confusion == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_other_classes_than_the_models_are_refused_by_name(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    geometry = load_recipe("vmae_train", "pretrain/demo", PretrainSpec).model.geometry()
    with pytest.raises(MisuseError, match="class 0 is 'pan-down' here, 'x' in the model"):
        check_classes(Classifier(geometry, ("x", *shards.classes[1:])), shards)
    with pytest.raises(MisuseError, match="8 classes here, 7 in the model"):
        check_classes(Classifier(geometry, shards.classes[:7]), shards)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["train.batch=4096"], "fewer than one batch of 4096"),
        (["clip.stride=3"], "stride is 3 source frames, the shards keep one frame in 2"),
        (["model.image_size=64"], "crop = random cuts 64 px"),
    ],
)
def test_data_that_does_not_fit_the_recipe_is_refused_at_the_start(
    demo_shards: Path, tmp_path: Path, settings: list[str], says: str
) -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings)
    with pytest.raises(MisuseError, match=says):
        pretrain(spec, data=[str(demo_shards)], out=tmp_path / "run", style=ProgressStyle.QUIET)


def test_wrong_checkpoints_and_views_are_one_line(demo_shards: Path, undisturbed: Path, tmp_path: Path) -> None:
    evaluate_arguments = ["vmae_train", "evaluate", undisturbed, "--data", demo_shards]
    assert "finetune it first" in call_command(*evaluate_arguments, status=2).stderr
    assert "expected CLIPSxCROPS" in call_command(*evaluate_arguments, "--views", "5", status=2).stderr
    done = call_command(*_finetune_arguments(demo_shards, tmp_path / "a", "--init", tmp_path / "nowhere"), status=2)
    assert "nowhere" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "a" / "run.json").exists()  # a mistyped path does not claim the folder
    done = call_command(
        *_finetune_arguments(demo_shards, tmp_path / "b", "--init", undisturbed, "--set", "model.depth=1"), status=2
    )
    assert "depth 2 (recipe 1)" in done.stderr
    done = call_command(*_pretrain_arguments(tmp_path / "nowhere", tmp_path / "c"), status=2)
    assert "nowhere: does not exist" in done.stderr


def test_a_finetuning_samples_as_its_recipe_says_and_evaluation_follows(demo_shards: Path, tmp_path: Path) -> None:
    settings = ["train.steps=2", "train.batch=4", "clip.sampler=dense", "clip.stride=2", "evaluate.views=2x1"]
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings)
    done = finetune(
        spec, data=[str(demo_shards)], validation=str(demo_shards), out=tmp_path / "run", style=ProgressStyle.QUIET
    )
    assert done.scores.videos == len(Shards.open(str(demo_shards)))
    with pytest.raises(MisuseError, match="source frames apart"):  # four clips want frames that were not kept
        spec = load_recipe(
            "vmae_train", "finetune/demo", FinetuneSpec, [*settings, "clip.sampler=uniform", "evaluate.views=8x1"]
        )
        finetune(
            spec,
            data=[str(demo_shards)],
            validation=str(demo_shards),
            out=tmp_path / "other",
            style=ProgressStyle.QUIET,
        )


@pytest.mark.parametrize("arguments", [["mask.kind=random"], ["mask.kind=frame"], ["mask.decoder=running-cell"]])
def test_pretraining_learns_with_any_mask(arguments: list[str], demo_shards: Path, tmp_path: Path) -> None:
    spec = load_recipe(
        "vmae_train", "pretrain/demo", PretrainSpec, [*arguments, "train.steps=2", "train.batch=4", "log.every_steps=1"]
    )
    pretrain(spec, data=[str(demo_shards)], out=tmp_path / "run", style=ProgressStyle.QUIET)
    losses = [line["loss"] for line in read_log(tmp_path / "run", "train")]
    assert len(losses) == 2 and all(0.5 < loss < 3 for loss in losses)
