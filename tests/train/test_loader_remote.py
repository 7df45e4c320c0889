"""Batches from a bucket: the same as from a folder, with a cache and without, with the network off too."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.command import run_command
from tests.s3_server import S3Bucket
from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import Proxy
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, ReplacedError, StoreError
from vmae_data.format import tar_name
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout, TrainingOrder
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.distributed import Distributed
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.runs.log import read_log
from vmae_train.runs.run_files import checkpoint_name
from vmae_train.training.setup import set_up_training
from vmae_train.training.throughput import Timings

BATCH, SEED = 8, 3


def _loader(
    url: str,
    *,
    workers: int = 1,
    cache: CacheSpec | None = None,
    rank: int = 0,
    world_size: int = 1,
    steps: int | None = None,
) -> ClipLoader:
    shards = Shards.open(url)
    order = TrainingOrder(shards, seed=SEED, batch=BATCH)
    layout = BatchLayout.of(BATCH, None, world_size)
    requests = order.requests(0, steps or order.steps_per_epoch, layout, rank)
    spec = LoaderSpec(workers=workers, ahead=2, read_ahead="4MB")
    return ClipLoader(
        shards, StrideSampler(16, 1), requests, batch=layout.micro_batch, frames=16, seed=SEED, spec=spec, cache=cache
    )


def _planes(batches: list[Batch]) -> list[torch.Tensor]:
    return [batch.planes.y_BTHW for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_bucket_are_those_of_the_folder(
    remote_shards: str, demo_shards: Path, network: Proxy, workers: int
) -> None:
    with _loader(str(demo_shards)) as loader:
        here = _planes(list(loader))
        assert loader.timings.range_bytes > 0
    network.change(Faults(latency_seconds=0.05))
    with _loader(remote_shards, workers=workers) as loader:
        there = list(loader)
        took = loader.timings
    assert all(torch.equal(one, other) for one, other in zip(here, _planes(there), strict=True))
    assert took.range_bytes > 0 and took.fetch_seconds > 0.05 and took.decode_seconds > 0
    assert took.cache_hits == took.cache_misses == took.cache_bytes == 0


def test_a_set_that_is_in_the_cache_is_read_with_the_network_off(
    remote_shards: str, demo_shards: Path, network: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmae_data.read.load_index.COPY_SECONDS", 0.3)
    cache = CacheSpec(dir=str(tmp_path / "cache"), bytes="1GB")
    with _loader(str(demo_shards)) as loader:
        here = _planes(list(loader))
    listed = Shards.open(remote_shards).index.shardlist
    _until_filled(tmp_path / "cache", len(listed), lambda: list(_run(remote_shards, cache)))
    network.change(Faults(down_seconds=3600))
    with _loader(remote_shards, cache=cache, workers=2) as loader:
        assert loader.mix.sets[0].note is not None
        there = _planes(list(loader))
        took = loader.timings
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    assert took.cache_misses == 0 and took.range_bytes == 0 and took.cache_hits == sum(len(one) for one in there)


def _run(url: str, cache: CacheSpec) -> list[Batch]:
    with _loader(url, cache=cache) as loader:
        return list(loader)


def _until_filled(folder: Path, count: int, run: Callable[[], object]) -> None:
    """Run epochs until all shards are there."""
    until = time.monotonic() + 60
    while len(list((folder / "shards").glob("*.tar"))) < count and time.monotonic() < until:
        run()


def test_without_a_cache_a_store_that_is_gone_ends_the_loader_in_one_line(remote_shards: str, network: Proxy) -> None:
    with _loader(remote_shards, workers=2) as loader:
        network.change(Faults(down_seconds=3600))
        with pytest.raises(StoreError, match=r"\d\.tar: can't be read") as caught:
            list(loader)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_replaced_ends_the_loader_in_one_line(remote_shards: str, s3_bucket: S3Bucket) -> None:
    with _loader(remote_shards, steps=100) as loader:
        batches = iter(loader)
        next(batches)
        for number in range(len(loader.mix.sets[0].shard_sizes)):
            s3_bucket.store().put(f"set/{tar_name(number)}", bytes(200_000))
        with pytest.raises(ReplacedError, match="was replaced while it was read"):
            list(batches)


@pytest.fixture(scope="module")
def many_shards(demo_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of two."""
    dest = tmp_path_factory.mktemp("many") / "shards"
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=2"])
    build_shards(str(demo_videos), dest, spec, workers=2, style=ProgressStyle.QUIET)
    return dest


def test_the_caches_of_two_nodes_hold_their_own_share_of_an_epoch(
    many_shards: Path, s3_bucket: S3Bucket, network: Proxy, tmp_path: Path
) -> None:
    url = s3_bucket.upload(many_shards)
    listed = Shards.open(url).index.shardlist
    found = []
    for rank in range(2):
        cache = CacheSpec(dir=str(tmp_path / f"node-{rank}"), bytes="1GB")
        for _ in range(10):
            with _loader(url, cache=cache, rank=rank, world_size=2) as loader:
                list(loader)
                time.sleep(0.3)
            if loader.timings.cache_misses == 0:
                break
        assert loader.timings.cache_misses == 0
        found.append({path.name for path in (tmp_path / f"node-{rank}" / "shards").glob("*.tar")})
    assert all(len(names) <= len(listed) // 2 + 1 for names in found)
    assert len(found[0] & found[1]) <= 1
    assert len(found[0] | found[1]) == len({one.sha256 for one in listed})


def test_a_cache_without_room_for_the_largest_shard_is_refused_with_the_numbers(
    remote_shards: str, demo_shards: Path, tmp_path: Path
) -> None:
    largest = max(listed.filesize for listed in Shards.open(str(demo_shards)).index.shardlist)

    def setup(data: str, room: int) -> None:
        cache = [f"cache.dir={tmp_path / 'cache'}", f"cache.bytes={room}"]
        set_up_training(load_recipe("vmae_train", "pretrain/demo", PretrainSpec, cache), [data], Distributed())

    setup(remote_shards, largest)
    with pytest.raises(
        MisuseError, match=f"cache.bytes = {largest - 1}: .* has {largest} bytes and would never be kept"
    ):
        setup(remote_shards, largest - 1)
    setup(str(demo_shards), 1)  # is not cached anyway


def test_what_the_cache_remarks_stands_in_the_log_once_however_often_the_run_goes_on(
    remote_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmae_data.read.cache_directory._allocate", full)
    settings = [f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB", "log.every_steps=1", "loader.workers=0"]
    settings += ["train.steps=8", "train.batch=4", "checkpoint.every_steps=4"]
    spec, run = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings), tmp_path / "run"
    for _ in range(2):
        pretrain(spec, data=[remote_shards], out=run, style=ProgressStyle.QUIET, device="cpu")
        (told,) = [line for line in read_log(run, "warning") if line["name"] == "cache"]
        assert f"{tmp_path / 'cache' / 'shards'}: no space left on the disk" in told["text"]
        shutil.rmtree(run / "checkpoints" / checkpoint_name(8))


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ({"waited": 0.5, "moved": 0.4, "fetching": 90, "decoding": 1}, "compute"),
        ({"waited": 5, "moved": 4, "fetching": 90, "decoding": 1}, "transfer"),
        ({"waited": 5, "moved": 1, "fetching": 9, "decoding": 8}, "network"),
        ({"waited": 5, "moved": 1, "fetching": 7, "decoding": 8}, "decode"),
    ],
)
def test_the_stage_that_limits_is_told_by_where_the_time_went(spent: dict[str, float], limit: str) -> None:
    assert Timings(**spent, read=0, hits=0, misses=0).limit(10) == limit


def test_a_training_from_a_bucket_goes_on_with_the_network_off_once_its_data_is_in_the_cache(
    remote_shards: str, demo_shards: Path, network: Proxy, tmp_path: Path
) -> None:
    cache = ["--set", f"cache.dir={tmp_path / 'cache'}", "--set", "cache.bytes=1GB", "--set", "log.every_steps=1"]
    words = ["vmae_train", "pretrain", "--recipe", "pretrain/demo", "--set", "train.steps=8", "--out"]
    run_command(*words, tmp_path / "here", "--data", demo_shards, "--set", "log.every_steps=1")
    run_command(*words, tmp_path / "there", "--data", remote_shards, *cache)
    lines = read_log(tmp_path / "there", "train")
    assert {key: lines[0][key] is not None for key in ("limits", "cache_hits", "read_mb")} == dict.fromkeys(
        ("limits", "cache_hits", "read_mb"), True
    )
    assert sum(line["read_mb"] for line in lines) > 0
    listed = Shards.open(remote_shards).index.shardlist
    spec = CacheSpec(dir=str(tmp_path / "cache"), bytes="1GB")
    _until_filled(tmp_path / "cache", len(listed), lambda: _run(remote_shards, spec))
    network.change(Faults(down_seconds=3600))
    again = run_command(*words, tmp_path / "off", "--data", remote_shards, *cache)
    assert "the store does not answer; using this machine's copy" in " ".join(again.stderr.split())
    lines = read_log(tmp_path / "off", "train")
    assert {(line["cache_hits"], line["read_mb"]) for line in lines} == {(1.0, 0.0)}
    losses = [[line["loss"] for line in read_log(tmp_path / name, "train")] for name in ("here", "there", "off")]
    assert losses[0] == losses[1] == losses[2]
