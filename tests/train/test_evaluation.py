"""Scores by hand, merges of views and segments, answers as a table, other labels than one class, the best and the mean."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.command import run_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.load import load_model
from vmae_train.cli import app
from vmae_train.evaluate import Told
from vmae_train.evaluation.answers import Gathered, activate, merge_by_source
from vmae_train.evaluation.metrics import average_precision, label_score, value_score
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.models.heads import MultiLabelClassifier, Regressor
from vmae_train.runs.best import Best, best_checkpoint
from vmae_train.runs.log import read_log

QUIET = ProgressStyle.QUIET
SETTINGS = ("train.steps=2", "train.batch=4", "log.every_steps=1", "optim.warmup_steps=1", "evaluate.views=1x1")


def test_mean_average_precision_by_hand() -> None:
    # Ranked 0.9 yes, 0.8 no, 0.7 yes, 0.1 no: (1/1 + 2/3) / 2.
    assert average_precision(np.array([0.1, 0.7, 0.9, 0.8]), np.array([0, 1, 1, 0])) == pytest.approx(5 / 6)
    # Equal scores come in together: both yes are found among the first three, or all at once.
    for present in ([1, 0, 1, 0], [0, 1, 1, 0]):
        assert average_precision(np.array([0.5, 0.5, 0.5, 0.1]), np.array(present)) == pytest.approx(2 / 3)
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    probability = np.array([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.2, 0.5], [0.1, 0.3, 0.5]])
    scores = label_score(probability, present, classes=("a", "b", "c"), views="1x1", unreadable={})
    assert scores.per_class == {"a": pytest.approx(100 * 5 / 6), "b": pytest.approx(100)}
    assert scores.positives == {"a": 2, "b": 1, "c": 0}
    assert scores.mean_ap == pytest.approx(100 * (5 / 6 + 1) / 2)


def test_errors_of_values_by_hand() -> None:
    predicted, value = np.array([[1.0, 0.0], [2.0, 10.0]]), np.array([[2.0, 0.0], [5.0, 4.0]])
    scores = value_score(predicted, value, names=("speed", "angle"), views="1x1", unreadable={})
    assert (scores.per_value["speed"].mae, scores.per_value["angle"].mae) == (2.0, 3.0)
    assert scores.per_value["speed"].rmse == pytest.approx(np.sqrt(5))
    assert scores.per_value["angle"].spread == pytest.approx(2.0)
    assert scores.mae == pytest.approx(2.5)
    assert scores.rmse == pytest.approx((np.sqrt(5) + np.sqrt(18)) / 2)


class _TwoSegments:
    """Sample 0 and 2 are of one source, 1 of another."""

    source_N = np.array([0, 1, 0])
    label_kind = LabelKind.CLASS


def test_segments_are_merged_by_probabilities_or_by_logits() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-4.0, 0.0]])
    shards: Any = _TwoSegments()
    samples = np.arange(3)
    soft = merge_by_source(shards, Gathered(samples, activate(logits, LabelKind.CLASS).numpy()), "softmax")
    hard = merge_by_source(shards, Gathered(samples, logits.numpy()), "logit")
    first, third = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4))
    assert soft.output_NK[0, 0] == pytest.approx((first + third) / 2)
    assert hard.output_NK[0, 0] == pytest.approx(1 / (1 + np.exp(1)))  # the mean of 2 and -4 is -1
    assert soft.output_NK[1] == pytest.approx(hard.output_NK[1])
    assert soft.samples_N.tolist() == [2, 1]


def _labelled(videos: Path, dest: Path, spec: BuildSpec, labels: list[Any]) -> Shards:
    found = sorted(str(path.relative_to(videos)) for path in videos.glob("*/*.mp4") if "broken" not in path.name)
    listing = dest.with_suffix(".jsonl")
    lines = [json.dumps({"path": p, "label": v}) for p, v in zip(found[:: len(found) // 8], labels, strict=False)]
    listing.write_text("\n".join(lines) + "\n")
    build_shards(str(videos), dest, spec, workers=2, annotations=str(listing), style=QUIET)
    return Shards.open(str(dest))


def _finetune(shards: Path, out: Path, *more: str) -> Any:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*SETTINGS, *more])
    return finetune(spec, data=[str(shards)], validation=str(shards), out=out, device="cpu", style=QUIET).scores


def test_several_classes_are_learnt_scored_and_written(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [["run", "jump"], ["sit"], [], ["run"], ["jump"], ["sit", "run"], ["sit"], ["run"]]
    shards = _labelled(demo_videos, tmp_path / "data", demo_spec, labels)
    with pytest.raises(MisuseError, match=r"label_smoothing = 0\.1: is for one class a video"):
        _finetune(tmp_path / "data", tmp_path / "refused", "mix.label_smoothing=0.1")
    scores = _finetune(tmp_path / "data", tmp_path / "run", "mix.mixup=0.8", "mix.mix_group=4")
    assert isinstance(load_model(tmp_path / "run"), MultiLabelClassifier)
    assert 0 < scores.mean_ap <= 100
    assert scores.positives == {"jump": 2, "run": 4, "sit": 3}
    table, page = tmp_path / "answers.parquet", tmp_path / "page.html"
    words = ["--predictions", table, "--html", page, "--merge", "logit", "--views", "2x3", "--quiet", "--json"]
    done = run_command("vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", *words)
    found = pq.read_table(table)
    assert json.loads(done.stdout)["kind"] == "classes"
    listed = [json.loads(line)["path"] for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert sorted(found.column("path").to_pylist()) == sorted(listed)
    assert found.column("views").to_pylist() == [6] * len(shards)
    names = json.loads(found.schema.metadata[b"names"])
    told = dict(zip(found.column("key").to_pylist(), found.column("label").to_pylist(), strict=True))
    assert told == {shards.key(n): [names[k] for k in shards.label(n) or ()] for n in range(len(shards))}
    probability = np.array(found.column("probabilities").to_pylist())
    present = np.array([[name in label for name in names] for label in told.values()])
    again = label_score(probability, present, classes=tuple(names), views="2x3", unreadable={})
    assert again.per_class == pytest.approx(json.loads(done.stdout)["per_class"])
    assert "mAP" in page.read_text()
    # What can't be written is found before the work where it can be, and takes no score with it where not.
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--views", "1x1", "--workers", "0"]
    found = CliRunner().invoke(app, [*evaluate, "--out", str(tmp_path / "none" / "a.json")])
    assert "there is no folder" in str(found.exception)

    def full(place: Path, data: bytes) -> None:
        raise VmaeError(f"{place}: no room")

    monkeypatch.setattr("vmae_train.evaluate.commit_bytes", full)
    found = CliRunner().invoke(app, [*evaluate, "--out", str(tmp_path / "a.json")])
    assert found.stdout.startswith("mAP")
    assert "no room" in str(found.exception)


def test_values_are_learnt_from_any_unit_and_scored(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    values = [[1000.0 + n, -0.01 * n] for n in range(8)]
    shards = _labelled(demo_videos, tmp_path / "data", demo_spec, values)
    with pytest.raises(MisuseError, match="a mixed clip has no value"):
        _finetune(tmp_path / "data", tmp_path / "refused", "mix.mixup=0.8", "mix.mix_group=4")
    scores = _finetune(tmp_path / "data", tmp_path / "run", "value_loss=l1")
    model = load_model(tmp_path / "run")
    assert isinstance(model, Regressor)
    assert model.values[0].mean == pytest.approx(1003.5)
    assert scores.per_value["value 1"].mae < 10  # an untrained head answers about the mean
    assert scores.per_value["value 1"].spread == pytest.approx(np.std(range(8)))
    table = tmp_path / "answers.parquet"
    words = ["--predictions", table, "--views", "1x1", "--quiet", "--json"]
    run_command("vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", *words)
    found = pq.read_table(table)
    error = np.array(found.column("values").to_pylist()) - np.array(found.column("label").to_pylist())
    assert np.abs(error).mean() == pytest.approx(scores.mae, rel=1e-5)
    assert len(found) == len(shards)
    done = run_command(
        "vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", "--merge", "logit", status=2
    )
    assert "values have no logits" in done.stderr


def test_the_mean_of_the_weights_is_the_same_after_a_stop(demo_shards: Path, tmp_path: Path) -> None:
    more = ("ema.decay=0.5", "checkpoint.every_steps=1", "checkpoint.keep=5", "evaluate.every_steps=1")
    _finetune(demo_shards, tmp_path / "whole", *more)
    stopped = Path(shutil.copytree(tmp_path / "whole", tmp_path / "stopped"))
    shutil.rmtree(stopped / "checkpoints" / "step-000000002")
    for name in ("evaluation.json", "best.json"):
        (stopped / name).unlink()
    _finetune(demo_shards, stopped, *more)
    files = [run / "checkpoints" / "step-000000002" for run in (tmp_path / "whole", stopped)]
    means = [load_file(folder / "ema.safetensors") for folder in files]
    first, last = (
        load_file(files[0].parent / name / "model.safetensors") for name in ("step-000000001", files[0].name)
    )
    for name, value in means[0].items():
        assert torch.equal(value, means[1][name]), name
    start = load_file(files[0].parent / "step-000000001" / "ema.safetensors")["head.weight"]
    assert torch.allclose(means[0]["head.weight"], 0.5 * start + 0.5 * last["head.weight"])
    assert not torch.equal(first["head.weight"], last["head.weight"])
    assert torch.equal(load_model(stopped, ema=True).state_dict()["head.weight"], means[0]["head.weight"])
    assert [line["step"] for line in read_log(stopped) if line["kind"] == "validation"] == [1, 2]
    with pytest.raises(DataError, match=r"kept by trainings with ema\.decay"):
        (files[0] / "ema.safetensors").unlink()
        load_model(files[0], ema=True)


def test_the_best_checkpoint_is_named_and_stays(demo_shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    more = ("train.steps=4", "checkpoint.every_steps=1", "checkpoint.keep=1", "evaluate.every_steps=1")
    _finetune(demo_shards, out, *more)
    line = {line["step"]: line["top1"] for line in read_log(out) if line["kind"] == "validation"}
    assert list(line) == [1, 2, 3, 4]
    wanted = max(line, key=lambda step: line[step])  # the first of equal ones
    best = json.loads((out / "best.json").read_text())
    assert best == {"step": wanted, "metric": "top1", "value": line[wanted], "higher_is_better": True}
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == sorted({f"step-{wanted:09d}", "step-000000004"})
    assert best_checkpoint(out).name == f"step-{wanted:09d}"
    words = ["evaluate", out, "--best", "--data", demo_shards, "--views", "1x1", "--quiet", "--json"]
    assert json.loads(run_command("vmae_train", *words).stdout)["top1"] == pytest.approx(line[wanted])


def test_a_lower_error_is_better_and_an_equal_score_is_not() -> None:
    low, high = (Best(step=s, metric="mae", value=v, higher_is_better=False) for s, v in ((2, 0.5), (1, 0.75)))
    assert low.beats(high)
    assert not high.beats(low)
    assert not low.beats(low)
    assert high.beats(None)


def test_two_files_of_an_evaluation_have_two_places(tmp_path: Path) -> None:
    told = Told(str(tmp_path / "scores.json"), html=str(tmp_path / "page.html"))
    assert told.places() == {"out": tmp_path / "scores.json", "html": tmp_path / "page.html"}
    with pytest.raises(MisuseError, match="--html .*: is the file of --out too"):
        told._replace(html=told.out).places()
