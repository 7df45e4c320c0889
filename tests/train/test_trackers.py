"""TensorBoard as its own reader sees it, and Weights & Biases by the calls it gets."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import msgspec
import pytest

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.runs import trackers
from vmae_train.runs.log import LogSpec, read_log
from vmae_train.runs.trackers import Tracker, open_trackers


def _open(
    run: Path, spec: LogSpec, step: int = 0, past: list[dict[str, Any]] | None = None, kind: str = "pretrain"
) -> Tracker:
    (tracker,) = open_trackers(spec, run, kind=kind, step=step, past=past or [], recipe={"seed": 0})
    return tracker


def _line(step: int, **more: Any) -> dict[str, Any]:
    return {"kind": "train", "step": step, "loss": 1 / step, "limits": "compute", "cache_hits": None, **more}


def _curve(run: Path, tag: str) -> list[tuple[int, float]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = reader.EventAccumulator(str(run / "tensorboard"))
    result.Reload()
    return [(event.step, round(event.value, 5)) for event in result.Scalars(tag)]


def test_tensorboard_shows_each_step_once_after_a_kill(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    spec = LogSpec(tensorboard=True)
    first = _open(tmp_path, spec)
    for step in (1, 2, 3, 4):
        first.write(_line(step))
    first.close()  # the last checkpoint was that of step 2
    again = _open(tmp_path, spec, step=2, past=[_line(1), _line(2)])
    for step in (3, 4, 5):
        again.write(_line(step))
    again.close()
    assert _curve(tmp_path, "train/masked_loss") == [(step, round(1 / step, 5)) for step in range(1, 6)]


def test_tensorboard_configured_later_gets_the_earlier_lines(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = _open(tmp_path, LogSpec(tensorboard=True), step=2, past=[_line(1), _line(2)], kind="finetune")
    tracker.write({"kind": "validation", "step": 2, "top1": 50.0})
    tracker.close()
    assert _curve(tmp_path, "train/loss") == [(1, 1.0), (2, 0.5)]
    assert _curve(tmp_path, "validation/top1") == [(2, 50.0)]


def test_a_run_writes_its_log_to_tensorboard_and_its_warnings_once(demo_shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    settings = ["train.steps=4", "log.every_steps=1", "log.tensorboard=true", "train.batch=4", "loader.workers=0"]
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings)
    out = tmp_path / "run"
    pretrain(spec, data=[str(demo_shards)], out=out, style=ProgressStyle.QUIET, device="cpu")
    lines = read_log(out, "train")
    assert _curve(out, "train/masked_loss") == [(line["step"], round(line["loss"], 5)) for line in lines]
    warned = [line["name"] for line in read_log(out, "warning")]
    assert warned == ["endless warm-up"]
    pretrain(spec, data=[str(demo_shards)], out=out, style=ProgressStyle.QUIET, device="cpu")
    assert [line["name"] for line in read_log(out, "warning")] == warned


class _WandbError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The used part of the package's interface. A run keeps what was sent, by its id."""
    server: dict[str, dict[int, dict[str, float]]] = {}
    asked: list[dict[str, Any]] = []

    def init(**given: Any) -> SimpleNamespace:
        if given["project"] == "closed":
            raise _WandbError("no API key\nmore arguments")
        asked.append(given)
        rows = server.setdefault(given["id"], {})
        # The server tells a resumed run the step after the last one. Offline there is no server.
        run = SimpleNamespace(step=max(rows) + 1 if rows and given["mode"] == "online" else 0, finish=lambda: None)

        def log(values: dict[str, float], step: int) -> None:
            assert step >= run.step, "the package drops a step that is behind"
            rows.setdefault(step, {}).update(values)
            run.step = step

        run.log = log
        return run

    module = ModuleType("wandb")
    module.__dict__.update(init=init, Error=_WandbError, __spec__=SimpleNamespace(name="wandb"))
    monkeypatch.setitem(sys.modules, "wandb", module)
    return SimpleNamespace(server=server, asked=asked)


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandb_resumes_the_same_run_with_each_step_once(wandb: SimpleNamespace, tmp_path: Path, mode: str) -> None:
    spec = msgspec.convert({"wandb": mode, "wandb_name": "mine"}, LogSpec)
    first = _open(tmp_path, spec)
    for step in (1, 2, 3):
        first.write(_line(step))
    first.close()
    again = _open(tmp_path, spec, step=2, past=[_line(1), _line(2)])
    for step in (3, 4):
        again.write(_line(step, limits="decode"))
    again.close()
    (rows,) = wandb.server.values()
    assert rows == {step: {"train/masked_loss": 1 / step} for step in range(1, 5)}
    assert all(one["mode"] == mode and one["dir"] == str(tmp_path) and one["name"] == "mine" for one in wandb.asked)
    assert all(one["resume"] == "allow" and one["config"] == {"seed": 0} for one in wandb.asked)


def test_wandb_that_can_not_start_is_one_line(wandb: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(VmaeError, match=r"no API key\). Run `wandb login`, or set log.wandb=offline") as result:
        _open(tmp_path, LogSpec(wandb="online", wandb_project="closed"))
    assert "\n" not in str(result.value)


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_a_missing_package_is_reported_before_any_work(
    package: str, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda _name: None)
    value = "true" if package == "tensorboard" else "offline"
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [f"log.{package}={value}"])
    with pytest.raises(MisuseError, match=rf"pip install 'vmae\[{package}\]'"):
        pretrain(spec, data=[str(demo_shards)], out=tmp_path / "run", style=ProgressStyle.QUIET, device="cpu")
    assert not (tmp_path / "run" / "run.json").exists()
