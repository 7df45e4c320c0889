from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import run_command
from tests.s3_server import S3Bucket
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_data.storage import commit_bytes, storage_path
from vmae_train.feed import feed
from vmae_train.pretrain import PretrainSpec


def _spec(*settings: str) -> PretrainSpec:
    return load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.batch=4", *settings])


@pytest.mark.parametrize("workers", [0, 1])
def test_the_data_side_is_measured_alone(workers: int, demo_shards: Path) -> None:
    found = feed(_spec(f"loader.workers={workers}"), data=[str(demo_shards)], seconds=1, style=ProgressStyle.QUIET)
    assert [stage.name for stage in found.stages] == ["network", "decode", "transfer", "augment"]
    assert found.clips >= 4 and found.clips_per_second == pytest.approx(found.clips / found.seconds)
    assert all(stage.seconds_a_clip > 0 for stage in found.stages)
    busiest = max(found.stages, key=lambda stage: stage.busy)
    assert found.limits == busiest.name
    assert found.cores_for(500) == pytest.approx(500 * found.cpu_seconds_a_clip)
    assert found.read_mb > 0 and found.cache_hits is None


def test_a_recipe_with_too_few_steps_to_measure_is_refused(demo_shards: Path) -> None:
    with pytest.raises(MisuseError, match=r"train\.steps"):
        feed(_spec("train.steps=1"), data=[str(demo_shards)], seconds=1, style=ProgressStyle.QUIET)


def test_the_command_tells_what_a_gpu_needs(demo_shards: Path) -> None:
    words = [
        "feed",
        "--recipe",
        "pretrain/demo",
        "--data",
        str(demo_shards),
        "--seconds",
        "1",
        "--set",
        "train.batch=4",
    ]
    done = run_command("vmae_train", *words, "--appetite", "200", "--json")
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["cores_needed"] == pytest.approx(200 * told["cpu_seconds_a_clip"])
    table = run_command("vmae_train", *words, "--quiet")
    for word in ("clips/s", "network", "decode", "transfer", "augment", "limits", "cores"):
        assert word in table.stdout


def test_what_comes_from_a_bucket_and_from_the_cache_is_told(
    demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    for path in demo_shards.iterdir():
        commit_bytes(storage_path(f"{s3_bucket.url}/set") / path.name, path.read_bytes())
    url = f"{s3_bucket.url}/set"
    found = feed(_spec(), data=[url], seconds=1, style=ProgressStyle.QUIET)
    assert found.read_mb > 0 and found.cache_hits is None
    cached = _spec(f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB")
    feed(cached, data=[url], seconds=1, style=ProgressStyle.QUIET)
    found = feed(cached, data=[url], seconds=1, style=ProgressStyle.QUIET)
    assert found.cache_hits == 1 and found.read_mb == 0
