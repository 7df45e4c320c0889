"""Scores computed by hand, means over views and segments, predictions as a table, labels of every kind, best and EMA."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from tests.command import call_command
from tests.tiny_runs import finetune_tiny
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.commands.app import app
from vmae_train.evaluation.metrics import Merge, average_precision, label_scores, value_scores
from vmae_train.evaluation.predictions import Predictions, activate, merge_by_source
from vmae_train.evaluation.protocol import EvaluationProtocol, Views
from vmae_train.models.heads import MultiLabelClassifier, Regressor
from vmae_train.runs.best import Best, best_checkpoint
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET
SETTINGS = ("train.steps=2", "train.batch=4")


def test_mean_average_precision_by_hand() -> None:
    # Ranked 0.9 yes, 0.8 no, 0.7 yes, 0.1 no: (1/1 + 2/3) / 2.
    assert average_precision(np.array([0.1, 0.7, 0.9, 0.8]), np.array([0, 1, 1, 0])) == pytest.approx(5 / 6)
    # Equal scores count together: both positives are among the first three.
    for present in ([1, 0, 1, 0], [0, 1, 1, 0]):
        assert average_precision(np.array([0.5, 0.5, 0.5, 0.1]), np.array(present)) == pytest.approx(2 / 3)
    present = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]])
    probability = np.array([[0.9, 0.1, 0.5], [0.8, 0.9, 0.5], [0.7, 0.2, 0.5], [0.1, 0.3, 0.5]])
    scores = label_scores(probability, present, classes=("a", "b", "c"), views="1x1", unreadable={})
    assert scores.per_class == {"a": pytest.approx(100 * 5 / 6), "b": pytest.approx(100)}
    assert scores.positives == {"a": 2, "b": 1, "c": 0}
    assert scores.mean_ap == pytest.approx(100 * (5 / 6 + 1) / 2)


def test_errors_of_values_by_hand() -> None:
    predicted, value = np.array([[1.0, 0.0], [2.0, 10.0]]), np.array([[2.0, 0.0], [5.0, 4.0]])
    scores = value_scores(predicted, value, names=("speed", "angle"), views="1x1", unreadable={})
    assert (scores.per_value["speed"].mae, scores.per_value["angle"].mae) == (2.0, 3.0)
    assert scores.per_value["speed"].rmse == pytest.approx(np.sqrt(5))
    assert scores.per_value["angle"].spread == pytest.approx(2.0)
    assert scores.mae == pytest.approx(2.5)
    assert scores.rmse == pytest.approx((np.sqrt(5) + np.sqrt(18)) / 2)


class _TwoSegments:
    """Samples 0 and 2 are of one source, 1 of another."""

    url, label_kind = "shards", LabelKind.CLASS
    source_N, label_N = np.array([0, 1, 0]), np.array([1, 0, 1])

    def key(self, number: int) -> str:
        return f"key-{number}"

    def label(self, number: int) -> int:
        return int(self.label_N[number])


def test_segments_are_merged_by_probabilities_or_by_logits() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-4.0, 0.0]])
    shards: Any = _TwoSegments()
    samples = np.arange(3)

    def merged(outputs: torch.Tensor, merge: Merge) -> Predictions:
        protocol = EvaluationProtocol(Views(1, 1), ClipSpec(), merge)
        return merge_by_source(
            shards, samples, outputs.numpy(), names=("a", "b"), kind=LabelKind.CLASS, protocol=protocol, unreadable={}
        )

    soft = merged(activate(logits, LabelKind.CLASS), "softmax")
    hard = merged(logits, "logit")
    first, third = 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4))
    assert soft.output_NK[0, 0] == pytest.approx((first + third) / 2)
    assert hard.output_NK[0, 0] == pytest.approx(1 / (1 + np.exp(1)))  # the mean of 2 and -4 is -1
    assert soft.output_NK[1] == pytest.approx(hard.output_NK[1])
    assert soft.views_N.tolist() == [2, 1]


def _labelled(videos: Path, dest: Path, spec: BuildSpec, labels: list[Any]) -> Shards:
    paths = sorted(str(path.relative_to(videos)) for path in videos.glob("*/*.mp4") if "broken" not in path.name)
    listing = dest.with_suffix(".jsonl")
    lines = [json.dumps({"path": p, "label": v}) for p, v in zip(paths[:: len(paths) // 8], labels, strict=False)]
    listing.write_text("\n".join(lines) + "\n")
    build_shards(str(videos), dest, spec, workers=2, annotations=str(listing), style=QUIET)
    return Shards.open(str(dest))


def _finetune(shards: Path, out: Path, *more: str, style: ProgressStyle = ProgressStyle.QUIET) -> Any:
    return finetune_tiny(shards, out, *SETTINGS, *more, style=style)


def test_several_classes_are_trained_evaluated_and_written(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = [["run", "jump"], ["sit"], [], ["run"], ["jump"], ["sit", "run"], ["sit"], ["run"]]
    shards = _labelled(demo_videos, tmp_path / "data", demo_spec, labels)
    with pytest.raises(MisuseError, match=r"label_smoothing = 0\.1: is for one class per video"):
        _finetune(tmp_path / "data", tmp_path / "refused", "mix.label_smoothing=0.1")
    scores = _finetune(tmp_path / "data", tmp_path / "run", "mix.mixup=0.8", "mix.mix_group=4")
    assert isinstance(load_model(tmp_path / "run"), MultiLabelClassifier)
    assert 0 < scores.mean_ap <= 100
    assert scores.positives == {"jump": 2, "run": 4, "sit": 3}
    table, page = tmp_path / "predictions.parquet", tmp_path / "page.html"
    arguments = [
        "--predictions",
        table,
        "--html",
        page,
        "--merge",
        "logit",
        "--views",
        "2x3",
        "--quiet",
        "--json",
        "--workers",
        "0",
    ]
    done = call_command("vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", *arguments)
    table_read = pq.read_table(table)
    assert json.loads(done.stdout)["kind"] == "classes"
    listed = [json.loads(line)["path"] for line in (tmp_path / "data.jsonl").read_text().splitlines()]
    assert sorted(table_read.column("path").to_pylist()) == sorted(listed)
    assert table_read.column("views").to_pylist() == [6] * len(shards)
    names = json.loads(table_read.schema.metadata[b"names"])
    labels_by_key = dict(zip(table_read.column("key").to_pylist(), table_read.column("label").to_pylist(), strict=True))
    assert labels_by_key == {shards.key(n): [names[k] for k in shards.label(n) or ()] for n in range(len(shards))}
    probability = np.array(table_read.column("probabilities").to_pylist())
    present = np.array([[name in label for name in names] for label in labels_by_key.values()])
    again = label_scores(probability, present, classes=tuple(names), views="2x3", unreadable={})
    assert again.per_class == pytest.approx(json.loads(done.stdout)["per_class"])
    assert "mAP" in page.read_text()
    # A missing folder is an error before the work. An error of writing comes after the scores are printed.
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", str(tmp_path / "data"), "--views", "1x1", "--workers", "0"]
    result = CliRunner().invoke(app, [*evaluate, "--out", str(tmp_path / "none" / "a.json")])
    assert "there is no folder" in str(result.exception)

    def full(path: Path, data: bytes) -> None:
        raise VmaeError(f"{path}: no room")

    monkeypatch.setattr("vmae_train.evaluate.commit_bytes", full)
    result = CliRunner().invoke(app, [*evaluate, "--out", str(tmp_path / "a.json")])
    assert result.stdout.startswith("mAP")
    assert "no room" in str(result.exception)


def test_values_in_any_unit_are_trained_and_evaluated(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    values = [[1000.0 + n, -0.01 * n] for n in range(8)]
    shards = _labelled(demo_videos, tmp_path / "data", demo_spec, values)
    with pytest.raises(MisuseError, match="a mixed clip has no value"):
        _finetune(tmp_path / "data", tmp_path / "refused", "mix.mixup=0.8", "mix.mix_group=4")
    scores = _finetune(tmp_path / "data", tmp_path / "run", "value_loss=l1")
    model = load_model(tmp_path / "run")
    assert isinstance(model, Regressor)
    assert model.values[0].mean == pytest.approx(1003.5)
    assert scores.per_value["value 1"].mae < 10  # an untrained head predicts about the mean
    assert scores.per_value["value 1"].spread == pytest.approx(np.std(range(8)))
    table = tmp_path / "predictions.parquet"
    arguments = ["--predictions", table, "--views", "1x1", "--quiet", "--json", "--workers", "0"]
    call_command("vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", *arguments)
    table_read = pq.read_table(table)
    error = np.array(table_read.column("values").to_pylist()) - np.array(table_read.column("label").to_pylist())
    assert np.abs(error).mean() == pytest.approx(scores.mae, rel=1e-5)
    assert len(table_read) == len(shards)
    done = call_command(
        "vmae_train", "evaluate", tmp_path / "run", "--data", tmp_path / "data", "--merge", "logit", status=2
    )
    assert "values have no logits" in done.stderr


def test_the_ema_is_the_same_after_a_stop(demo_shards: Path, tmp_path: Path) -> None:
    more = ("ema.decay=0.5", "checkpoint.every_steps=1", "checkpoint.keep=5", "evaluate.every_steps=1")
    _finetune(demo_shards, tmp_path / "unbroken", *more)
    stopped = Path(shutil.copytree(tmp_path / "unbroken", tmp_path / "stopped"))
    shutil.rmtree(stopped / "checkpoints" / "step-000000002")
    for name in ("evaluation.json", "best.json"):
        (stopped / name).unlink()
    _finetune(demo_shards, stopped, *more)
    files = [run / "checkpoints" / "step-000000002" for run in (tmp_path / "unbroken", stopped)]
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
    with pytest.raises(DataError, match=r"Only training runs with ema\.decay"):
        (files[0] / "ema.safetensors").unlink()
        load_model(files[0], ema=True)


def test_the_best_checkpoint_is_printed_recorded_and_kept(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    more = ("train.steps=4", "checkpoint.every_steps=1", "checkpoint.keep=1", "evaluate.every_steps=1")
    _finetune(demo_shards, out, *more, style=ProgressStyle.AUTO)
    notes = [one for one in capsys.readouterr().err.splitlines() if one.startswith("note: step ")]
    line = {line["step"]: line["top1"] for line in read_log(out) if line["kind"] == "validation"}
    assert list(line) == [1, 2, 3, 4]
    assert notes[::2] == [f"note: step {step}: evaluating on the validation set" for step in line]
    best_so_far = [value > max([line[one] for one in line if one < step], default=-1) for step, value in line.items()]
    assert notes[1::2] == [
        f"note: step {step}: top-1 {value:.2f} %{', the best so far' if is_best else ''}"
        for (step, value), is_best in zip(line.items(), best_so_far, strict=True)
    ]
    expected = max(line, key=lambda step: line[step])  # the first of equal ones
    best = json.loads((out / "best.json").read_text())
    assert best == {"step": expected, "metric": "top1", "value": line[expected], "higher_is_better": True}
    kept = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert kept == sorted({f"step-{expected:09d}", "step-000000004"})
    assert best_checkpoint(out).name == f"step-{expected:09d}"
    arguments = [
        "evaluate",
        out,
        "--best",
        "--data",
        demo_shards,
        "--views",
        "1x1",
        "--quiet",
        "--json",
        "--workers",
        "0",
    ]
    assert json.loads(call_command("vmae_train", *arguments).stdout)["top1"] == pytest.approx(line[expected])


def test_a_lower_error_is_better_and_an_equal_error_is_not() -> None:
    low, high = (Best(step=s, metric="mae", value=v, higher_is_better=False) for s, v in ((2, 0.5), (1, 0.75)))
    assert low.beats(high)
    assert not high.beats(low)
    assert not low.beats(low)
    assert high.beats(None)


def test_two_outputs_of_an_evaluation_need_two_paths(tmp_path: Path) -> None:
    arguments = ["evaluate", tmp_path / "no-run", "--data", tmp_path / "no-data"]
    for second in ("--predictions", "--html"):
        done = call_command("vmae_train", *arguments, "--out", tmp_path / "a", second, tmp_path / "a", status=2)
        assert re.search(f"{second} .*: is the file of --out too", done.stderr)
