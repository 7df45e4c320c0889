"""Wrong videos and most confused pairs: in scores, and with their frames on pages."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from tests.command import call_command
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluation import predictions as module
from vmae_train.evaluation.metrics import Scores, WrongVideo
from vmae_train.evaluation.predictions import Predictions, compute_scores
from vmae_train.evaluation.protocol import EvaluationProtocol, parse_views
from vmae_train.reports.run_page import write_report
from vmae_train.reports.scores_page import write_scores_page

pytestmark = pytest.mark.processes


def _predictions(output_NK: Any, label_N: Any) -> Predictions:
    output_NK, label_N = np.asarray(output_NK, np.float64), np.asarray(label_N)
    videos = len(label_N)
    return Predictions(
        url="shards",
        kind=LabelKind.CLASS,
        names=("a", "b", "c"),
        key=tuple(f"v{n}" for n in range(videos)),
        sample_N=10 * np.arange(videos),
        source_N=np.arange(videos),
        output_NK=output_NK,
        label_N=label_N,
        target_NK=None,
        labelled_N=label_N >= 0,
        views_N=np.ones(videos, np.int64),
        protocol=EvaluationProtocol(parse_views("1x1"), ClipSpec(), "softmax", True),
        unreadable={},
    )


def _text(page: Path) -> str:
    text = re.sub(r"<(style|svg).*?</\1>", " ", page.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).split())


def _write_scores(run: Path, wrong: list[dict[str, Any]]) -> None:
    """The scores of a run with other wrong videos."""
    scores = json.loads((run / "evaluation.json").read_text())
    (run / "evaluation.json").write_text(json.dumps({**scores, "wrong": wrong}))


@pytest.fixture(scope="module")
def wrong_one(tiny_finetuning: Path, demo_shards: Path) -> dict[str, Any]:
    """A wrong video of the first sample, whose classes are confused in `tiny_finetuning`."""
    scores = msgspec.json.decode((tiny_finetuning / "evaluation.json").read_bytes(), type=Scores)
    assert scores.wrong
    return msgspec.to_builtins(scores.wrong[0]) | {"sample": 0, "key": Shards.open(str(demo_shards)).key(0)}


def test_scores_name_the_most_confident_errors_and_one_of_each_frequent_pair() -> None:
    outputs = [[0.1, 0.9, 0.0], [0.4, 0.6, 0.0], [0.2, 0.1, 0.7], [0.3, 0.3, 0.4], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    found = _predictions(outputs, [0, 0, 0, 1, -1, 0])
    with patch.object(module, "MAX_WRONG", 1):
        scores = compute_scores(found)
    assert isinstance(scores, Scores)
    assert [(one.key, one.sample, one.label, one.predicted) for one in scores.wrong] == [
        ("v0", 0, "a", "b"),
        ("v2", 20, "a", "c"),
        ("v3", 30, "b", "c"),
    ]
    assert (scores.wrong[0].label_probability, scores.wrong[0].probability) == (0.1, 0.9)
    every = compute_scores(found)
    assert isinstance(every, Scores)
    assert [one.key for one in every.wrong] == ["v0", "v2", "v1", "v3"]
    assert msgspec.json.decode(msgspec.json.encode(every), type=Scores) == every


def test_outputs_that_are_not_finite_are_no_error_of_the_list() -> None:
    scores = compute_scores(_predictions([[np.nan] * 3, [0.2, 0.8, 0]], [1, 0]))
    assert isinstance(scores, Scores)
    assert [one.probability for one in scores.wrong] == [0.8, 0.0]


def test_evaluate_writes_a_page_with_the_frames_and_probabilities_of_wrong_videos(
    tiny_finetuning: Path, demo_shards: Path, tmp_path: Path
) -> None:
    page, out = tmp_path / "page.html", tmp_path / "scores.json"
    call_command(
        "vmae_train", "evaluate", tiny_finetuning, "--data", demo_shards, "--html", page, "--out", out, "--quiet"
    )
    scores = msgspec.json.decode(out.read_bytes(), type=Scores)
    first, text = scores.wrong[0], _text(page)
    assert scores.wrong == tuple(sorted(scores.wrong, key=lambda one: -one.probability))
    assert f"predicted {first.predicted}: {100 * first.probability:.1f} %" in text
    assert f"true {first.label}: {100 * first.label_probability:.1f} %" in text
    assert "Most confused pairs" in text
    assert page.read_text().count('class="strip"') > min(24, len(scores.wrong))


def test_the_page_of_a_run_shows_them_and_one_line_for_what_is_missing(
    tiny_finetuning: Path, wrong_one: dict[str, Any], tmp_path: Path
) -> None:
    run, page = Path(shutil.copytree(tiny_finetuning, tmp_path / "run")), tmp_path / "page.html"
    _write_scores(run, [wrong_one, {**wrong_one, "key": "gone", "sample": 10**9}])
    facts = json.loads((run / "run.json").read_text())
    with patch("vmae_train.reports.run_page.NUM_RECONSTRUCTIONS", 1):
        write_report(run, page)
        text = _text(page)
        assert text.count(f"predicted {wrong_one['predicted']}:") == 2  # as an example of its pair, and on its own
        assert "gone can&#39;t be shown: the data set has no such sample." in text
        for change, line in (
            ({"validation": str(tmp_path / "none")}, "none"),
            ({"validation_digest": "0" * 64}, "has changed since the training"),
        ):
            (run / "run.json").write_text(json.dumps({**facts, **change}))
            write_report(run, page)
            assert re.search(f"Their frames can&#39;t be shown: .*{line}", _text(page))
            assert 'class="confusion"' in page.read_text()


def test_a_broken_sample_is_one_line_and_older_scores_show_no_videos(
    demo_shards: Path, tiny_finetuning: Path, wrong_one: dict[str, Any], tmp_path: Path
) -> None:
    data, page = Path(shutil.copytree(demo_shards, tmp_path / "data")), tmp_path / "page.html"
    for tar in data.glob("*.tar"):
        tar.write_bytes(b"\0" * tar.stat().st_size)
    scores = msgspec.json.decode((tiny_finetuning / "evaluation.json").read_bytes(), type=Scores)
    shown = msgspec.structs.replace(scores, wrong=(msgspec.convert(wrong_one, WrongVideo),))
    write_scores_page(shown, page, model="model", shards=Shards.open(str(data)))
    assert f"{wrong_one['key']} can&#39;t be shown: " in _text(page)
    write_scores_page(msgspec.structs.replace(scores, wrong=()), page, model="m", shards=Shards.open(str(demo_shards)))
    assert "Wrong videos" not in _text(page)
