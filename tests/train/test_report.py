from __future__ import annotations

import json
import math
import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgspec
import numpy as np
import pytest

from tests.command import call_command
from tests.tiny_runs import finetune_tiny, pretrain_tiny
from vmae_data.errors import DataError, MisuseError
from vmae_data.read.dataset import Shards
from vmae_train.evaluation.metrics import Scores, class_scores, standard_error
from vmae_train.reports.charts import Curve, confusion_picture, curves, log_curve
from vmae_train.reports.run_page import NUM_RECONSTRUCTIONS, write_report
from vmae_train.runs.metadata import read_facts

pytestmark = pytest.mark.processes

HOSTILE = "<script>alert(1)</script>$x_1$"


@pytest.fixture(scope="session")
def tiny_scratch(tiny_pretraining: Path, demo_shards: Path) -> Path:
    """The finetuning of `tiny_finetuning` from scratch. Read only."""
    out = tiny_pretraining.parent / "tiny-scratch"
    finetune_tiny(demo_shards, out, "evaluate.every_steps=2")
    return out


def _page(run: Path, out: Path, *against: Path, reconstructions: int = 1) -> str:
    with warnings.catch_warnings(), patch("vmae_train.reports.run_page.NUM_RECONSTRUCTIONS", reconstructions):
        warnings.simplefilter("error")
        write_report(run, out, against=against)
    return out.read_text()


def _text(page: str) -> str:
    """The visible text, without the drawings."""
    return " ".join(re.sub(r"<[^>]*>", " ", re.sub(r"<(style|svg).*?</\1>", " ", page, flags=re.DOTALL)).split())


def _change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_pretraining_shows_its_videos_curves_and_reconstructions(tiny_pretraining: Path, tmp_path: Path) -> None:
    page = _page(tiny_pretraining, tmp_path / "page.html", reconstructions=NUM_RECONSTRUCTIONS)
    text = _text(page)
    assert "finished, step 4 of 4" in text
    assert "not finished" not in text
    assert page.count("data:image/gif") == 4
    assert page.count('class="curves"') == 5
    assert "Tube mask, 75 %. Loss of the masked cubes" in text
    assert "mask.ratio" in text
    assert "var(--c1)" in page
    assert "#0a000" not in page


def test_a_finetuning_shows_its_scores_and_its_pretraining(tiny_finetuning: Path, tmp_path: Path) -> None:
    page = _page(tiny_finetuning, tmp_path / "page.html", reconstructions=NUM_RECONSTRUCTIONS)
    text = _text(page)
    scores = msgspec.json.decode((tiny_finetuning / "evaluation.json").read_bytes(), type=Scores)
    assert f"{scores.top1:.2f} %" in text
    assert 'class="confusion"' in page
    assert "Pretraining: tiny-pretraining" in text
    assert page.count("data:image/gif") == 4
    assert all(name in text for name in scores.classes)


def test_pretrainings_are_compared_also_while_they_run(
    tiny_pretraining: Path, demo_shards: Path, tmp_path: Path
) -> None:
    other = tmp_path / "frames"
    pretrain_tiny(demo_shards, other, "mask.kind=frame", "log.every_steps=1")
    log = (other / "log.jsonl").read_bytes().splitlines(keepends=True)
    warning = {"kind": "warning", "step": 2, "name": "slow data", "text": f"use more cores {HOSTILE}"}
    (other / "log.jsonl").write_bytes(b"".join(log[:2]) + json.dumps(warning).encode())
    shutil.rmtree(other / "checkpoints")
    page = _page(tiny_pretraining, tmp_path / "page.html", other)
    text = _text(page)
    assert "frames from scratch 2, not finished" in text
    assert "The losses of tiny-pretraining and frames are those of different tasks or data." in text
    assert "mask.kind: &#39;tube&#39; → &#39;frame&#39;" in text
    assert page.count('class="curves"') == 5
    assert page.count('<ul class="legend">') == 5
    assert "frames, step 2, slow data: use more cores" in text
    assert HOSTILE not in page
    own = _page(other, tmp_path / "own.html")
    assert "Step 2, slow data: use more cores" in _text(own)
    assert HOSTILE not in own


def _with_recipe(run: Path, out: Path, *removed: str, **tables: dict[str, Any]) -> Path:
    """A copy of a run with these values in the tables of its recipe, and without the `removed` tables."""
    shutil.copytree(run, out)
    recipe = json.loads((run / "run.json").read_text())["recipe"]
    for name, values in tables.items():
        recipe[name] |= values
    _change(out / "run.json", recipe={name: table for name, table in recipe.items() if name not in removed})
    return out


def test_a_recipe_shows_what_the_training_resolved(tiny_pretraining: Path, tmp_path: Path) -> None:
    text = _text(_page(tiny_pretraining, tmp_path / "page.html"))
    values = ("model.depth 2", "model.embed_dim 192", "model.decoder_depth 1", "model.decoder_embed_dim 96")
    for value in (*values, "model.image_size 32", "augment.size 32", "train.precision float32"):
        assert f" {value} " in text


def test_a_value_that_the_size_has_anyway_is_no_difference(tiny_pretraining: Path, tmp_path: Path) -> None:
    plain = _with_recipe(tiny_pretraining, tmp_path / "plain", model={"depth": None})
    same = _with_recipe(tiny_pretraining, tmp_path / "same", "ema", model={"depth": 4, "patch_size": 8})
    text = _text(_page(plain, tmp_path / "page.html", same))
    assert "Differences between plain and same: no difference in run.json" in text
    assert "different tasks" not in text
    assert "model.depth: 4 → 2" in _text(_page(plain, tmp_path / "page.html", tiny_pretraining))


def test_precision_is_that_of_each_start_and_auto_where_no_log_has_it(tiny_pretraining: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_pretraining, tmp_path / "run"))
    log = run / "log.jsonl"
    start = json.loads(log.read_text().splitlines()[0])
    older = {name: value for name, value in start.items() if name != "precision"}
    starts = {
        "float32": [start],
        "float32, then bfloat16": [older, {**start, "gpu": "H1", "precision": "bfloat16"}],
        "auto": [{**older, "gpu": "H1"}],
    }
    for shown, lines in starts.items():
        log.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert f" train.precision {shown} train.threads " in _text(_page(run, tmp_path / "page.html"))
    log.write_text("")
    assert " train.precision auto train.threads " in _text(_page(run, tmp_path / "page.html"))


def test_a_recipe_of_another_version_is_shown_as_it_is(tiny_pretraining: Path, tmp_path: Path) -> None:
    run = _with_recipe(tiny_pretraining, tmp_path / "run", model={"size": "XXL"})
    own = _text(_page(run, tmp_path / "own.html"))
    assert "model.size XXL " in own and "Dotted line" not in own
    assert "model.size: &#39;tiny&#39; → &#39;XXL&#39;" in _text(_page(tiny_pretraining, tmp_path / "page.html", run))


def test_two_finetunings_are_compared_in_neutral_words(
    tiny_finetuning: Path, tiny_scratch: Path, tmp_path: Path
) -> None:
    text = _text(_page(tiny_finetuning, tmp_path / "page.html", tiny_scratch))
    assert "from scratch" in text
    assert "a difference of" in text
    assert "This is one seed each: it shows nothing about the settings." in text
    assert "clips per second waiting for data, %" in text
    labelled = len(Shards.open(read_facts(tiny_scratch).data[0]))
    assert f"tiny-scratch from scratch {labelled} 0 " in text
    ranking = re.search(r"Best first, top-1, %: (\S+) (\S+) after \d+ steps; (\S+) (\S+) after \d+ steps\.", text)
    assert ranking is not None
    assert {ranking[1], ranking[3]} == {"tiny-finetuning", "tiny-scratch"}
    assert float(ranking[2]) >= float(ranking[4])
    assert f"init: &#39;{tiny_finetuning.parent / 'tiny-pretraining'}&#39; → not set" in text


def test_the_command_writes_the_page(tiny_finetuning: Path, tiny_scratch: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    arguments = ["vmae_train", "report", tiny_finetuning, "--out", out, "--against", tiny_scratch]
    assert call_command(*arguments).stdout.strip() == str(out)
    printed = json.loads(call_command(*arguments, "--json").stdout)
    assert printed["out"] == str(out)
    assert [(start["run"], start["step"]) for start in printed["starts"]] == [
        ("tiny-finetuning", 0),
        ("tiny-scratch", 0),
    ]
    assert out.exists()


def test_the_page_shows_each_start_and_nothing_for_an_older_run(tiny_pretraining: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_pretraining, tmp_path / "run"))
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines].count("start") == 1
    start = {**lines[0], "step": 3, "command": f"vmae-train pretrain --out {HOSTILE}", "gpu": "H1", "processes": 8}
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (*lines, start)))
    page = _page(run, tmp_path / "page.html")
    assert f"torch {lines[0]['torch']} {lines[0]['cpu']} 1 3" in _text(page)
    assert "From step 0: started by a Python program From step 3: vmae-train pretrain --out" in _text(page)
    assert "vmae-train pretrain --out" in _text(page)
    assert "H1, " in _text(page)
    assert HOSTILE not in page
    older = [line for line in lines if line["kind"] != "start"]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in older))
    assert "from step" not in _text(_page(run, tmp_path / "page.html"))


def test_the_standard_error_is_that_of_a_share_and_never_zero() -> None:
    assert standard_error(50, 64) == pytest.approx(6.25)
    assert standard_error(12.5, 160) == pytest.approx(100 * math.sqrt(0.125 * 0.875 / 160))
    assert 0 < standard_error(0, 64) < 3
    assert standard_error(0, 64) == pytest.approx(standard_error(100, 64))


def test_runs_that_were_evaluated_differently_are_not_compared(
    tiny_finetuning: Path, tiny_scratch: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_scratch, tmp_path / "other"))
    _change(other / "run.json", validation_digest="0" * 64)
    text = _text(_page(tiny_finetuning, tmp_path / "page.html", other))
    assert "were evaluated differently" in text
    assert "Best first" not in text
    assert "a difference of" not in text


def test_different_training_budgets_are_noted(tiny_finetuning: Path, tiny_scratch: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_scratch, tmp_path / "other"))
    recipe = json.loads((other / "run.json").read_text())["recipe"]
    recipe["train"]["batch"] = 16
    _change(other / "run.json", recipe=recipe)
    text = _text(_page(tiny_finetuning, tmp_path / "page.html", other))
    assert "The training budgets differ: 4 steps of 8 clips and 4 steps of 16 clips" in text


def test_a_pretraining_has_no_score_to_compare(tiny_pretraining: Path, tiny_finetuning: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="is a pretrain run, .* a finetune run. Name runs of one kind"):
        write_report(tiny_finetuning, tmp_path / "page.html", against=(tiny_pretraining,))
    with pytest.raises(MisuseError, match="is named twice"):
        write_report(tiny_finetuning, tmp_path / "page.html", against=(tiny_finetuning / ".." / tiny_finetuning.name,))
    assert not (tmp_path / "page.html").exists()


def test_the_page_of_a_run_without_a_checkpoint_notes_that(
    tiny_pretraining: Path, tiny_finetuning: Path, tmp_path: Path
) -> None:
    for run in (tiny_pretraining, tiny_finetuning):
        started = tmp_path / run.name
        started.mkdir()
        shutil.copy(run / "run.json", started)
        text = _text(_page(started, tmp_path / "page.html"))
        assert "not finished" in text
        assert "It has no checkpoint yet." in text
        assert "The log has too few lines for a curve." in text


def test_the_page_of_a_stopped_run_shows_its_last_step(tiny_pretraining: Path, tmp_path: Path) -> None:
    stopped = Path(shutil.copytree(tiny_pretraining, tmp_path / "stopped"))
    recipe = json.loads((stopped / "run.json").read_text())["recipe"]
    recipe["train"] |= {"steps": None, "epochs": 10}
    _change(stopped / "run.json", recipe=recipe)
    with (stopped / "log.jsonl").open("ab") as log:
        log.write(b'{"kind":"train","step":5,"lo')
    text = _text(_page(stopped, tmp_path / "page.html"))
    assert re.search(r"not finished, step 4 of \d+", text)
    assert "The last checkpoint is of step 4." in text


def test_missing_or_changed_data_is_noted_and_the_rest_is_shown(tiny_pretraining: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(tiny_pretraining, tmp_path / "moved"))
    for change in ({"data": [str(tmp_path / "gone")]}, {"data_digest": ["0" * 64]}):
        shutil.copy(tiny_pretraining / "run.json", moved)
        _change(moved / "run.json", **change)
        page = _page(moved, tmp_path / "page.html")
        assert "can&#39;t be shown" in page
        assert 'class="curves"' in page


def test_unreadable_samples_of_training_and_validation_are_listed(tiny_finetuning: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_finetuning, tmp_path / "run"))
    _change(next(run.glob("checkpoints/*/state.json")), unreadable={"key-of-training": "its checksum differs"})
    _change(run / "evaluation.json", unreadable={"key-of-validation": "does not decode"})
    text = _text(_page(run, tmp_path / "page.html"))
    assert "key-of-training its checksum differs" in text
    assert "key-of-validation does not decode" in text


def test_hostile_names_of_classes_runs_and_keys_are_only_text(
    tiny_finetuning: Path, tiny_scratch: Path, tmp_path: Path
) -> None:
    runs = [
        Path(shutil.copytree(run, tmp_path / f"{run.name}-{HOSTILE.replace('/', ' ')}"))
        for run in (tiny_finetuning, tiny_scratch)
    ]
    scores = json.loads((runs[0] / "evaluation.json").read_text())
    old = scores["classes"][0]
    scores["classes"][0] = HOSTILE
    scores["per_class"][HOSTILE] = scores["per_class"].pop(old)
    _change(runs[0] / "evaluation.json", **scores)
    _change(next(runs[0].glob("checkpoints/*/state.json")), unreadable={HOSTILE: HOSTILE})
    page = _page(runs[0], tmp_path / "page.html", runs[1])
    assert "<script" not in page


def test_a_model_that_predicts_one_class_for_every_video_is_noted(tiny_finetuning: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_finetuning, tmp_path / "run"))
    classes = tuple(json.loads((run / "evaluation.json").read_text())["classes"])
    labels = np.arange(16) % len(classes)
    constant = class_scores(
        np.tile(np.eye(len(classes))[2], (16, 1)), labels, classes=classes, views="1x1", unreadable={}
    )
    (run / "evaluation.json").write_bytes(msgspec.json.encode(constant))
    assert f"The model predicts {classes[2]} for every video." in _text(_page(run, tmp_path / "page.html"))


def test_a_folder_that_is_not_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run"):
        write_report(tmp_path, tmp_path / "page.html")


def test_writing_a_page_changes_nothing_in_the_run(tiny_pretraining: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_pretraining, tmp_path / "run"))
    (run / "checkpoints" / ".tmp-step-000000009").mkdir()  # another process is saving
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    _page(run, tmp_path / "page.html")
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_a_confusion_matrix_shows_counts_for_few_classes_and_is_a_picture_for_many() -> None:
    few = str(confusion_picture(np.asarray([[3, 1], [0, 2]]), ("a", HOSTILE)).image)
    assert ">3</text>" in few
    assert "<script" not in few
    many = confusion_picture(np.eye(400, dtype=np.int64), [str(n) for n in range(400)]).image
    assert (many.mime, many.width) == ("image/png", 400)


def test_a_curve_skips_lines_without_a_value() -> None:
    lines = [
        {"kind": "train", "step": 1, "loss": 1.0},
        {"kind": "train", "step": 2, "loss": None},
        {"kind": "validation", "step": 2, "loss": 9.0},
        {"kind": "train", "step": 3},
        {"kind": "train", "step": 4, "loss": 0.5},
    ]
    assert log_curve("loss", lines, "loss") == Curve("loss", [1, 4], [1.0, 0.5])


def test_a_chart_needs_two_points_and_is_the_same_every_time() -> None:
    assert curves("loss", [Curve("a", [], []), Curve("b", [1], [1])], "loss") is None
    lines = [Curve("a", [1, 2], [1, 3]), Curve("b", [1, 2], [2, 2])]
    first, again = (curves("loss", lines, "error, %", level=1) for _ in range(2))
    assert first is not None
    assert first == again
    assert ">error, %</text>" in str(first.image) and ">step</text>" in str(first.image)
    assert (first.legend, first.points) == (("a", "b"), False)


def test_the_page_is_the_same_every_time(tiny_pretraining: Path, tmp_path: Path) -> None:
    pages = [_page(tiny_pretraining, tmp_path / f"{n}.html", reconstructions=NUM_RECONSTRUCTIONS) for n in "ab"]
    assert pages[0] == pages[1]
    assert os.stat(tmp_path / "a.html").st_size < 4_000_000
