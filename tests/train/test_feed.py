from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import call_command
from tests.s3_server import S3Bucket
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_data.storage import commit_bytes, storage_path
from vmae_train.feed import feed
from vmae_train.pretrain import PretrainSpec

pytestmark = pytest.mark.processes


@pytest.fixture(autouse=True)
def _short_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests need no exact time of the augmentation."""
    monkeypatch.setattr("vmae_train.feed.AUGMENT_SECONDS", 0.1)


def _spec(*settings: str) -> PretrainSpec:
    return load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.batch=4", *settings])


@pytest.mark.parametrize("workers", [0, 1])
def test_feed_measures_every_stage_of_loading(workers: int, demo_shards: Path) -> None:
    report = feed(_spec(f"loader.workers={workers}"), data=[str(demo_shards)], seconds=1, style=ProgressStyle.QUIET)
    assert [stage.name for stage in report.stages] == ["network", "decode", "transfer", "augment"]
    assert report.clips >= 4 and report.clips_per_second == pytest.approx(report.clips / report.seconds)
    assert all(stage.seconds_a_clip > 0 for stage in report.stages)
    assert all(stage.busy <= 1.01 for stage in report.stages)
    augment = report.stages[-1].seconds_a_clip
    both = report.seconds / report.clips + augment if workers == 0 else max(report.seconds / report.clips, augment)
    assert report.training_clips_per_second == pytest.approx(1 / both)
    busiest = max(report.stages, key=lambda stage: stage.busy)
    assert report.limits == busiest.name
    assert report.cores_for(500) == pytest.approx(500 * report.cpu_seconds_a_clip)
    assert report.read_mb > 0 and report.cache_hits is None


def test_a_recipe_with_too_few_steps_to_measure_is_refused(demo_shards: Path) -> None:
    with pytest.raises(MisuseError, match=r"train\.steps"):
        feed(_spec("train.steps=1"), data=[str(demo_shards)], seconds=1, style=ProgressStyle.QUIET)


def test_the_command_prints_how_many_cores_a_gpu_needs(demo_shards: Path) -> None:
    arguments = ["feed", "--recipe", "pretrain/demo", "--data", str(demo_shards), "--seconds", "1"]
    arguments += ["--set", "train.batch=4", "--set", "loader.workers=0"]
    done = call_command("vmae_train", *arguments, "--appetite", "200", "--json")
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cores_needed"] == pytest.approx(200 * report["cpu_seconds_a_clip"])
    assert call_command("vmae_train", *arguments, "--quiet").stdout == ""
    table = call_command("vmae_train", *arguments)
    for word in ("at most", "loader", "network", "decode", "transfer", "augment", "limits", "cores"):
        assert word in table.stdout


def test_feed_counts_the_bytes_from_a_bucket_and_the_hits_of_the_cache(
    demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    for path in demo_shards.iterdir():
        commit_bytes(storage_path(f"{s3_bucket.url}/set") / path.name, path.read_bytes())
    url = f"{s3_bucket.url}/set"
    report = feed(_spec("loader.workers=0"), data=[url], seconds=1, style=ProgressStyle.QUIET)
    assert report.read_mb > 0 and report.cache_hits is None
    cached = _spec("loader.workers=0", f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB")
    feed(cached, data=[url], seconds=1, style=ProgressStyle.QUIET)
    report = feed(cached, data=[url], seconds=1, style=ProgressStyle.QUIET)
    assert report.cache_hits == 1 and report.read_mb == 0
