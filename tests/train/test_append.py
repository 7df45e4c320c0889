"""A run whose data set gained shards (`vmae-shard build --append`): refused, or continued from the next epoch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from tests.tiny_runs import finetune_tiny, pretrain_tiny
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout, DataStage, TrainingOrder
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import read_facts

pytestmark = pytest.mark.processes

SEED, BATCH, STEPS = 3, 4, 10
RUN = ("train.batch=4", f"train.steps={STEPS}", "checkpoint.every_steps=1", "checkpoint.keep=99")


class Sets(NamedTuple):
    """A data set of two classes before an append of two more classes, and after it."""

    before: Path
    after: Path


@pytest.fixture(scope="module")
def sets(demo_videos: Path, demo_spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory) -> Sets:
    folder = tmp_path_factory.mktemp("append")
    found = Sets(folder / "before", folder / "after")
    spec = msgspec.structs.replace(demo_spec, samples_per_shard=4)
    for number, dest in enumerate(found):
        if number:
            shutil.copytree(found.before, found.after)
        for name in (("pan-right", "rotate-clockwise", "zoom-in"), ("pan-left", "pan-up"))[number]:
            shutil.copytree(demo_videos / name, folder / "videos" / name, ignore=shutil.ignore_patterns("broken*"))
        build_shards(str(folder / "videos"), dest, spec, workers=2, append=True, style=ProgressStyle.QUIET)
    return found


def _mixtures(sets: Sets, others: Sequence[Path]) -> tuple[Mixture, Mixture]:
    """The data before and after; the set that grows is the first of them."""
    opened = [Shards.open(str(path)) for path in others]
    return Mixture([Shards.open(str(sets.before)), *opened]), Mixture([Shards.open(str(sets.after)), *opened])


@pytest.mark.parametrize("mixed", [False, True])
def test_old_epochs_keep_their_batches_and_later_ones_are_those_of_a_run_over_all(
    sets: Sets, demo_shards: Path, mixed: bool
) -> None:
    before, after = _mixtures(sets, [demo_shards] if mixed else [])
    old, fresh = (TrainingOrder(data, seed=SEED, batch=BATCH) for data in (before, after))
    stages = (DataStage.of(before), DataStage.of(after, epoch=2))
    order = TrainingOrder(after, seed=SEED, batch=BATCH, stages=stages)
    first = 2 * old.steps_per_epoch
    for step in range(first):
        assert order.keys(step) == old.keys(step)
        assert np.array_equal(order.global_batch(step).epoch_B, old.global_batch(step).epoch_B)
        assert order.epoch_of(step) == step // old.steps_per_epoch
    for step in range(2 * fresh.steps_per_epoch):
        same = 2 * fresh.steps_per_epoch + step
        assert order.keys(first + step) == fresh.keys(same)
        assert np.array_equal(order.global_batch(first + step).epoch_B, fresh.global_batch(same).epoch_B)
        assert order.epoch_of(first + step) == same // fresh.steps_per_epoch
    layout = BatchLayout.of(BATCH, None, 1)
    assert [request.epoch for request in order.requests(first - 1, first + 1, layout)] == [1, 2]
    assert [after.key(n) for n in order.samples_at_start()] == [before.key(n) for n in range(len(before))]
    assert order.steps_per_epoch == old.steps_per_epoch


def test_appended_shards_wait_for_the_first_epoch_that_has_not_begun(sets: Sets) -> None:
    before, after = _mixtures(sets, [])
    first = DataStage.of(before)
    order = TrainingOrder(after, seed=SEED, batch=BATCH, stages=[first])
    per_epoch = order.steps_per_epoch
    for done, epoch in ((0, 1), (1, 1), (per_epoch, 1), (per_epoch + 1, 2), (3 * per_epoch, 3)):
        assert order.next_stages(done) == (first, DataStage.of(after, epoch=epoch))
    waiting = TrainingOrder(after, seed=SEED, batch=BATCH, stages=[first, DataStage.of(before, epoch=4)])
    assert [stage.epoch for stage in waiting.next_stages(per_epoch)] == [0, 1]
    whole = TrainingOrder(after, seed=SEED, batch=BATCH)
    assert whole.next_stages(5) == whole.stages


def test_a_stage_is_known_by_the_bytes_of_its_shards(sets: Sets, demo_shards: Path) -> None:
    before, after = _mixtures(sets, [])
    assert DataStage.of(before).begins(after)
    assert not DataStage.of(after).begins(before)
    assert not DataStage.of(before).begins(Mixture([Shards.open(str(demo_shards))]))


def _train(data: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    pretrain_tiny(data, out, *RUN, **options)
    names = ("step", "epoch", "loss", "grad_norm", "lr")
    return [{name: line[name] for name in names} for line in read_log(out, "train")]


def _go_back(run: Path, step: int) -> None:
    """Leave what a kill after the checkpoint of a step leaves."""
    for folder in (run / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def _weights(run: Path) -> bytes:
    return (run / "checkpoints" / f"step-{STEPS:09d}" / "model.safetensors").read_bytes()


def test_a_run_continues_on_appended_shards_only_when_told_and_from_the_next_epoch(sets: Sets, tmp_path: Path) -> None:
    data, run = Path(shutil.copytree(sets.before, tmp_path / "data")), tmp_path / "run"
    undisturbed = _train(data, run)
    per_epoch = len(Shards.open(str(data))) // BATCH
    assert [line["epoch"] for line in undisturbed] == [step // per_epoch for step in range(STEPS)]
    _go_back(run, per_epoch + 1)
    shutil.rmtree(data)
    shutil.copytree(sets.after, data)
    with pytest.raises(MisuseError, match=r"gained \d+ samples since this run began\. Add --accept-appended"):
        _train(data, run)
    log = _train(data, run, accept_appended=True)
    assert [stage.epoch for stage in read_facts(run).data_stages] == [0, 2]
    losses, old = ([line["loss"] for line in lines] for lines in (log, undisturbed))
    assert losses[: 2 * per_epoch] == old[: 2 * per_epoch]
    assert losses[2 * per_epoch] != old[2 * per_epoch]
    grown = len(Shards.open(str(data))) // BATCH
    assert [line["epoch"] for line in log[2 * per_epoch :]] == [2 + n // grown for n in range(STEPS - 2 * per_epoch)]
    assert [line["lr"] for line in log] == [line["lr"] for line in undisturbed]
    weights = _weights(run)
    for step in (per_epoch + 1, 2 * per_epoch, STEPS - 1):  # resumes need no option
        _go_back(run, step)
        assert _train(data, run) == log
        assert _weights(run) == weights


def test_a_run_that_was_accepted_is_refused_on_the_data_as_it_was(sets: Sets, tmp_path: Path) -> None:
    data, run = Path(shutil.copytree(sets.before, tmp_path / "data")), tmp_path / "run"
    _train(data, run)
    shutil.rmtree(data)
    shutil.copytree(sets.after, data)
    _train(data, run, accept_appended=True)
    with pytest.raises(MisuseError, match="data_digest"):
        _train(sets.before, run, accept_appended=True)


def test_a_run_of_an_older_version_learns_its_shards_when_it_resumes(sets: Sets, tmp_path: Path) -> None:
    data, run = Path(shutil.copytree(sets.before, tmp_path / "data")), tmp_path / "run"
    _train(data, run)
    facts = json.loads((run / "run.json").read_text())
    stages = facts.pop("data_stages")
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(MisuseError, match="data_digest"):
        _train(sets.after, run, accept_appended=True)
    _train(data, run)
    assert json.loads((run / "run.json").read_text())["data_stages"] == stages


def test_a_finetuning_does_not_continue_when_classes_were_added(sets: Sets, tmp_path: Path) -> None:
    finetune_tiny(sets.before, tmp_path / "run", "train.batch=4", "train.steps=2")
    with pytest.raises(MisuseError, match=r"its data gained 2 classes, which its head lacks\. Start a new run"):
        finetune_tiny(
            sets.after, tmp_path / "run", "train.batch=4", "train.steps=2", validation=sets.before, accept_appended=True
        )
