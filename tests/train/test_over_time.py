"""Reconstructions of one clip by the checkpoints of a pretraining."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from unittest.mock import patch

import pytest

from tests.command import call_command
from tests.tiny_runs import pretrain_tiny
from vmae_data.pages.html import Charts, Note
from vmae_data.progress import ProgressStyle
from vmae_train.reports import over_time
from vmae_train.reports.run_reader import read_run
from vmae_train.runs.layout import complete_checkpoints

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def steps_run(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that kept its checkpoints of steps 1 to 4. Read only."""
    out = tmp_path_factory.mktemp("steps") / "run"
    pretrain_tiny(demo_shards, out, "checkpoint.every_steps=1", "checkpoint.keep=9")
    return out


def _drawn(run: Path) -> tuple[list[str], list[str]]:
    """The titles of the rows, and the notes."""
    parts = list(over_time.over_time_parts(read_run(run), ProgressStyle.QUIET))
    rows = [figure.title for part in parts if isinstance(part, Charts) for figure in part.figures]
    return rows, [part.text for part in parts if isinstance(part, Note)]


def test_a_clip_is_drawn_from_every_checkpoint_at_most_six_spread_evenly(steps_run: Path) -> None:
    rows, (note,) = _drawn(steps_run)
    assert rows == ["Original", "Masked", "Step 1", "Step 2", "Step 3", "Step 4"]
    assert "from 4 of the 4 checkpoints" in note
    assert "every 1 steps and keeps the last 9. To see more of the training, lower checkpoint.every_steps." in note
    with patch.object(over_time, "MAX_CHECKPOINTS", 3):
        rows, (note,) = _drawn(steps_run)
    assert rows[2:] == ["Step 1", "Step 3", "Step 4"]
    assert "To see more" not in note


def test_a_run_that_kept_few_of_its_checkpoints_says_how_to_keep_more(tiny_pretraining: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_pretraining, tmp_path / "run"))
    (last,) = complete_checkpoints(run)
    facts = json.loads((run / "run.json").read_text())
    facts["recipe"]["checkpoint"] = {"every_steps": 2, "keep": 2}
    (run / "run.json").write_text(json.dumps(facts))
    shutil.copytree(last, last.with_name("step-000000002"))
    rows, (note,) = _drawn(run)
    assert rows[2:] == ["Step 2", "Step 4"]
    assert "every 2 steps and keeps the last 2. To see more of the training, raise checkpoint.keep." in note


def test_the_losses_of_the_rows_are_those_of_different_weights(steps_run: Path) -> None:
    parts = list(over_time.over_time_parts(read_run(steps_run), ProgressStyle.QUIET))
    (charts,) = [part for part in parts if isinstance(part, Charts)]
    assert len({figure.caption for figure in charts.figures[2:]}) == 4
    assert len({figure.image for figure in charts.figures}) == 6


def test_a_checkpoint_that_vanishes_is_omitted_and_a_damaged_one_is_one_line(steps_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(steps_run, tmp_path / "run"))
    listed = complete_checkpoints(run)
    shutil.rmtree(listed[0])
    weights = listed[1] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with patch.object(over_time, "complete_checkpoints", return_value=listed):
        rows, notes = _drawn(run)
    assert rows[2:] == ["Step 3", "Step 4"]
    assert [note.split(":")[0] for note in notes[1:]] == ["step 2 can't be shown"]


def test_data_that_is_gone_is_one_line_and_a_single_checkpoint_is_not_enough(steps_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(steps_run, tmp_path / "run"))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "data": [str(tmp_path / "gone")]}))
    rows, (note,) = _drawn(run)
    assert (rows, "can't be shown" in note) == ([], True)
    for checkpoint in complete_checkpoints(run)[:-1]:
        shutil.rmtree(checkpoint)
    rows, (note,) = _drawn(run)
    assert rows == []
    assert note.startswith("The run has one checkpoint, and this section needs two.") and "To see more" in note
    shutil.rmtree(run / "checkpoints")
    assert _drawn(run) == ([], [])


def test_the_page_has_them_and_without_pictures_it_has_no_picture(steps_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    command = ["vmae_train", "report", steps_run, "--out", page, "--quiet"]
    with patch("vmae_train.reports.run_page.NUM_RECONSTRUCTIONS", 1):
        call_command(*command)
    assert re.search("Reconstructions over time.*Step 4", page.read_text(), re.DOTALL)
    call_command(*command, "--no-pictures")
    assert "data:image" not in page.read_text()
    assert page.read_text().count('class="curves"') == 5
