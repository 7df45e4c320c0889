"""Runs made to do harm: refused in one line, and never waited for."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.command import call_command
from tests.refusals import edit_json, refusal
from tests.tiny_runs import TINY_RUN, finetune_tiny
from vmae_train import load_model
from vmae_train.evaluation.metrics import read_scores
from vmae_train.reports.run_page import write_report
from vmae_train.reports.run_reader import read_run
from vmae_train.runs.best import read_best
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import read_facts
from vmae_train.training.checkpoint import last_checkpoint, load_checkpoint, read_state
from vmae_train.training.optimizer import OptimSpec, build_optimizer

pytestmark = pytest.mark.processes

HUGE = 10**18


@pytest.mark.parametrize("name", ["run.json", "best.json", "log.jsonl", "evaluation.json", "state.json"])
def test_a_pipe_in_a_run_is_refused_and_never_waited_for(run: Path, name: str) -> None:
    last = last_checkpoint(run)
    assert last is not None
    path = (last if name == "state.json" else run) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    read = {
        "run.json": lambda: read_facts(run),
        "best.json": lambda: read_best(run),
        "log.jsonl": lambda: read_log(run),
        "evaluation.json": lambda: read_scores(path),
        "state.json": lambda: read_state(last),
    }[name]
    assert "is a pipe" in refusal(read)


def test_the_optimizer_of_a_checkpoint_that_is_a_pipe_is_refused(run: Path) -> None:
    last = last_checkpoint(run)
    assert last is not None
    (last / "optimizer.safetensors").unlink()
    os.mkfifo(last / "optimizer.safetensors")
    model = load_model(run)
    optimizer = build_optimizer(model, OptimSpec(base_lr=0.1, weight_decay=0.0, warmup_steps=0), depth=2)
    assert "is a pipe" in refusal(lambda: load_checkpoint(last, model, optimizer))


@pytest.mark.parametrize("step", [-1, 0, HUGE, "4", None, 3])
def test_a_state_with_another_step_than_its_folder_is_refused(run: Path, step: object) -> None:
    last = last_checkpoint(run)
    assert last is not None
    edit_json(last / "state.json", step=step)
    refusal(lambda: read_state(last))


@pytest.mark.parametrize("name", ["step-000000004/..", "step-../../../x", "step-000000004\n", "step-x"])
def test_only_step_names_are_names_of_published_checkpoints(name: str) -> None:
    from vmae_train.runs.run_files import COMPLETE

    assert COMPLETE.fullmatch("step-000000004/state.json")
    assert not COMPLETE.fullmatch(f"{name}/state.json")


def test_optimizer_moments_of_other_shapes_are_refused_before_the_first_step(
    run: Path, tiny_pretraining: Path, demo_shards: Path
) -> None:
    last = last_checkpoint(run)
    assert last is not None
    path = last / "optimizer.safetensors"
    tensors = load_file(path)
    save_file({name: torch.zeros(3, 3) for name in tensors}, path)
    edit_json(last / "state.json", format=1, sha256={})
    resume = partial(finetune_tiny, demo_shards, run, "evaluate.every_steps=2", init=tiny_pretraining)
    assert "do not have its shape" in refusal(resume)


RECIPES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no table": lambda recipe: recipe.update(train="all"),
    "no batch": lambda recipe: recipe["train"].pop("batch"),
    "a ratio of text": lambda recipe: recipe.update(mask={"ratio": "most"}),
    "a mask of text": lambda recipe: recipe.update(mask="most"),
    "no size": lambda recipe: recipe["model"].update(size=None),
    "deep": lambda recipe: recipe.update(clip={"a": {"b": {"c": {"d": 1}}}}),
}


@pytest.mark.parametrize("change", RECIPES.values(), ids=RECIPES.keys())
def test_a_run_with_an_impossible_recipe_is_refused(run: Path, change: Any) -> None:
    facts = json.loads((run / "run.json").read_text())
    change(facts["recipe"])
    (run / "run.json").write_text(json.dumps(facts))
    assert str(run) in refusal(lambda: read_run(run))


@pytest.mark.parametrize(
    "changes", [{"data": []}, {"data_digest": ["a", "b"]}, {"data_weight": [1.0, 2.0]}, {"data": "one"}, {"kind": 7}]
)
def test_a_run_with_impossible_data_is_refused(run: Path, changes: dict[str, Any]) -> None:
    edit_json(run / "run.json", **changes)
    refusal(lambda: read_run(run))


def test_a_run_that_names_other_files_is_reported_and_nothing_else_is_written(run: Path, tmp_path: Path) -> None:
    """It may name a device, a system file, a web page or a bucket with a password."""
    targets = [
        "/dev/zero",
        "/etc/passwd",
        "../../../etc",
        "ftp://host/x",
        "s3://a:b@bucket/x",
        "http://h/?token=x",
        "\x00",
    ]
    before = set(tmp_path.rglob("*"))
    for target in targets:
        edit_json(run / "run.json", data=[target], init=target)
        write_report(run, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text()
        assert "The run&#39;s data can&#39;t be shown" in page
        assert "\x00" not in page
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "page.html"}


@pytest.mark.parametrize(
    "changes",
    [
        {"confusion": [[1]]},
        {"confusion": [[1, 2], [3]]},
        {"confusion": []},
        {"per_class": {}},
        {"classes": []},
        {"top1": "all"},
    ],
)
def test_inconsistent_scores_are_refused(run: Path, changes: dict[str, Any]) -> None:
    edit_json(run / "evaluation.json", **changes)
    refusal(lambda: read_run(run))


def test_text_of_a_run_controls_neither_a_terminal_nor_a_page(run: Path, tmp_path: Path, demo_shards: Path) -> None:
    evil = "\x1b]0;owned\x07<script>alert(1)</script>\u202e$\\frac{1}$"
    last = last_checkpoint(run)
    assert last is not None
    edit_json(last / "state.json", unreadable={evil: evil})
    scores = json.loads((run / "evaluation.json").read_text())
    classes = [evil, *scores["classes"][1:]]
    per_class = {evil if name == scores["classes"][0] else name: value for name, value in scores["per_class"].items()}
    edit_json(
        run / "evaluation.json", classes=classes, per_class=per_class, control=evil, views=evil, unreadable={evil: evil}
    )
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 4, "kind": "validation", "top1": 5.0, "views": evil}) + "\n")
        file.write(json.dumps({"step": 4, "kind": "train", "loss": evil, "lr": {}}) + "\n")
    edit_json(run / "run.json", init=evil)
    page = tmp_path / "page.html"
    done = call_command("vmae_train", "report", run, "--out", page)
    html = page.read_text()
    edit_json(run / "run.json", init=None)
    settings = [
        word for key in (*TINY_RUN, "evaluate.views='1x1'", "evaluate.every_steps=2") for word in ("--set", key)
    ]
    arguments = ["--recipe", "finetune/demo", "--data", demo_shards, "--val", demo_shards, "--out", run, *settings]
    again = call_command("vmae_train", "finetune", *arguments)
    for text in (html, done.stdout, done.stderr, again.stdout, again.stderr):
        assert [character for character in ("\x1b", "\x07", "\u202e") if character in text] == [], text[:2000]
    assert "<script>alert" not in html
