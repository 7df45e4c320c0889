"""Batches from a bucket equal those from a folder: with and without a cache, and with the network off."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.command import call_command
from tests.s3_server import S3Bucket
from tests.scripted_server import Answer, Request, scripted_server
from tests.tiny_runs import pretrain_tiny
from tools.soak.faults.network import Faults
from tools.soak.faults.proxy import Proxy
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, ReplacedError, StopRequested, StoreError
from vmae_data.names import tar_name
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout, TrainingOrder
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import ReadTimings
from vmae_data.read.prefetch import RemoteShard
from vmae_data.recipes import load_recipe
from vmae_data.storage import RemotePath, set_options
from vmae_data.storage.store_options import VARIABLE
from vmae_train.clips.frame_sampling import StrideSampler
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.distributed import Distributed
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.runs.layout import newest_checkpoint
from vmae_train.runs.log import read_log
from vmae_train.runs.run_files import checkpoint_name
from vmae_train.training.checkpoint import read_state
from vmae_train.training.setup import set_up_training
from vmae_train.training.throughput import bottleneck

pytestmark = pytest.mark.processes

BATCH, SEED = 8, 3


def _loader(
    url: str,
    *,
    workers: int = 0,
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
        timings = loader.timings
    assert all(torch.equal(one, other) for one, other in zip(here, _planes(there), strict=True))
    assert timings.range_bytes > 0 and timings.fetch_seconds > 0.05 and timings.decode_seconds > 0
    assert timings.cache_hits == timings.cache_misses == timings.cache_bytes == 0


def test_a_data_set_in_the_cache_is_read_with_the_network_off(
    remote_shards: str, demo_shards: Path, network: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmae_data.read.load_index.COPY_SECONDS", 0.3)
    cache = CacheSpec(dir=str(tmp_path / "cache"), bytes="1GB")
    with _loader(str(demo_shards)) as loader:
        here = _planes(list(loader))
    _fill_cache(remote_shards, cache)
    network.change(Faults(down_seconds=3600))
    with _loader(remote_shards, cache=cache, workers=2) as loader:
        assert loader.mixture.sets[0].note is not None
        there = _planes(list(loader))
        timings = loader.timings
    assert all(torch.equal(one, other) for one, other in zip(here, there, strict=True))
    assert timings.cache_misses == 0 and timings.range_bytes == 0
    assert timings.cache_hits == sum(len(one) for one in there)


def _fill_cache(url: str, spec: CacheSpec) -> None:
    shards, cache, until = Shards.open(url), ShardCache(spec), time.monotonic() + 60
    for number, listing in enumerate(shards.index.shardlist):
        path = shards.shard_path(number)
        assert isinstance(path, RemotePath)
        shard = RemoteShard(path, listing.filesize, listing.sha256)
        cache.submit(shard)
        while not cache.contains(shard) and time.monotonic() < until:
            time.sleep(0.01)
        assert cache.contains(shard)
    cache.close()


def test_without_a_cache_a_store_that_is_gone_ends_the_loader_with_one_line(remote_shards: str, network: Proxy) -> None:
    set_options(["give_up=2"])
    with _loader(remote_shards, workers=2) as loader:
        network.change(Faults(down_seconds=3600))
        with pytest.raises(StoreError, match=r"\d\.tar: can't be read") as caught:
            list(loader)
    assert "\n" not in str(caught.value)


def test_a_shard_that_is_replaced_ends_the_loader_with_an_error(remote_shards: str, s3_bucket: S3Bucket) -> None:
    with _loader(remote_shards, steps=100) as loader:
        batches = iter(loader)
        next(batches)
        for number in range(len(loader.mixture.sets[0].shard_sizes)):
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


def test_the_caches_of_two_nodes_have_only_their_own_share_of_an_epoch(
    many_shards: Path, s3_bucket: S3Bucket, network: Proxy, tmp_path: Path
) -> None:
    url = s3_bucket.upload(many_shards)
    listed = Shards.open(url).index.shardlist
    cached = []
    for rank in range(2):
        cache = CacheSpec(dir=str(tmp_path / f"node-{rank}"), bytes="1GB")
        until = time.monotonic() + 60
        while time.monotonic() < until:
            with _loader(url, cache=cache, rank=rank, world_size=2) as loader:
                list(loader)
            if loader.timings.cache_misses == 0:
                break
        assert loader.timings.cache_misses == 0
        cached.append({path.name for path in (tmp_path / f"node-{rank}" / "shards").glob("*.tar")})
    assert all(len(names) <= len(listed) // 2 + 1 for names in cached)
    assert len(cached[0] & cached[1]) <= 1
    assert len(cached[0] | cached[1]) == len({one.sha256 for one in listed})


def test_a_cache_that_is_smaller_than_the_largest_shard_is_refused_with_both_numbers(
    remote_shards: str, demo_shards: Path, tmp_path: Path
) -> None:
    largest = max(listed.filesize for listed in Shards.open(str(demo_shards)).index.shardlist)

    def setup(data: str, limit: int) -> None:
        cache = [f"cache.dir={tmp_path / 'cache'}", f"cache.bytes={limit}"]
        set_up_training(load_recipe("vmae_train", "pretrain/demo", PretrainSpec, cache), [data], Distributed())

    setup(remote_shards, largest)
    with pytest.raises(
        MisuseError, match=f"cache.bytes = {largest - 1}: .* has {largest} bytes and would never be cached"
    ):
        setup(remote_shards, largest - 1)
    setup(str(demo_shards), 1)  # a local folder is not cached


def test_a_note_of_the_cache_is_logged_once_even_if_the_run_is_resumed(
    remote_shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmae_data.read.cache_directory.allocate", full)
    settings = [f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB", "log.every_steps=1", "loader.workers=0"]
    settings += ["train.steps=4", "train.batch=4", "checkpoint.every_steps=2"]
    spec, run = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, settings), tmp_path / "run"
    for _ in range(2):
        pretrain(spec, data=[remote_shards], out=run, style=ProgressStyle.QUIET, device="cpu")
        (warning,) = [line for line in read_log(run, "warning") if line["name"] == "cache"]
        assert f"{tmp_path / 'cache' / 'shards'}: no space left on the disk" in warning["text"]
        shutil.rmtree(run / "checkpoints" / checkpoint_name(4))


@pytest.mark.parametrize(
    ("spent", "limit"),
    [
        ({"batch_wait_seconds": 0.5, "transfer_seconds": 0.4, "fetch_seconds": 90, "decode_seconds": 1}, "compute"),
        ({"batch_wait_seconds": 5, "transfer_seconds": 4, "fetch_seconds": 90, "decode_seconds": 1}, "transfer"),
        ({"batch_wait_seconds": 5, "transfer_seconds": 1, "fetch_seconds": 9, "decode_seconds": 8}, "network"),
        ({"batch_wait_seconds": 5, "transfer_seconds": 1, "fetch_seconds": 7, "decode_seconds": 8}, "decode"),
    ],
)
def test_the_limiting_stage_is_the_one_that_took_the_time(spent: dict[str, float], limit: str) -> None:
    assert bottleneck(ReadTimings(**spent), 10) == limit


def test_a_training_from_a_bucket_has_the_losses_of_a_local_one_and_needs_no_network_once_its_data_is_cached(
    remote_shards: str, demo_shards: Path, network: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmae_data.read.load_index.COPY_SECONDS", 0.3)
    settings = ["train.steps=8", "log.every_steps=1"]
    cache = CacheSpec(dir=str(tmp_path / "cache"), bytes="1GB")
    cached = [*settings, f"cache.dir={cache.dir}", f"cache.bytes={cache.bytes}"]

    def train(name: str, data: str | Path, settings: list[str]) -> str:
        words = ["--recipe", "pretrain/demo", "--out", tmp_path / name, "--data", data]
        words += [word for setting in settings for word in ("--set", setting)]
        return " ".join(call_command("vmae_train", "pretrain", *words).stderr.split())

    train("here", demo_shards, [*settings, "loader.workers=0"])
    train("there", remote_shards, cached)
    lines = read_log(tmp_path / "there", "train")
    assert all(lines[0][key] is not None for key in ("limits", "cache_hits", "read_mb"))
    assert sum(line["read_mb"] for line in lines) > 0
    _fill_cache(remote_shards, cache)
    network.change(Faults(down_seconds=3600))
    assert "the store does not answer, so this machine's copy is used" in train("off", remote_shards, cached)
    lines = read_log(tmp_path / "off", "train")
    assert {(line["cache_hits"], line["read_mb"]) for line in lines} == {(1.0, 0.0)}
    losses = [[line["loss"] for line in read_log(tmp_path / name, "train")] for name in ("here", "there", "off")]
    assert losses[0] == losses[1] == losses[2]


def _serve(folder: Path, hangs: threading.Event) -> Callable[[Request], Answer]:
    """A web server of shards whose tars bring a byte an hour once `hangs` is set."""

    def answer(request: Request) -> Answer:
        path = folder / request.path.lstrip("/")
        if not path.is_file():
            return Answer(404)
        data, headers = path.read_bytes(), {"ETag": '"1"', "Accept-Ranges": "bytes"}
        if "range" not in request.headers:
            return Answer(body=data, headers=headers)
        first, last = (int(n) for n in request.headers["range"].removeprefix("bytes=").split("-"))
        headers["Content-Range"] = f"bytes {first}-{min(last, len(data) - 1)}/{len(data)}"
        seconds = 3600.0 if hangs.is_set() and path.suffix == ".tar" else 0.0
        return Answer(206, data[first : last + 1], headers, seconds)

    return answer


@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_ends_a_training_that_waits_for_a_slow_store_and_its_last_step_is_saved(
    demo_shards: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["give_up=3000", "read_timeout=1000", "connect_timeout=1000"])
    out, hangs = tmp_path / "run", threading.Event()
    settings = (
        "train.steps=1000",
        "train.batch=4",
        f"loader.workers={workers}",
        "loader.ahead=1",
        "loader.read_ahead=1",
    )
    with scripted_server(_serve(demo_shards, hangs)) as server:

        def stop_the_wait() -> None:
            while not read_log(out, "train"):
                time.sleep(0.01)
            hangs.set()
            while len(read_log(out, "train")) != _lines_after(1.0, out):
                pass
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop_the_wait, daemon=True).start()
        with pytest.raises(StopRequested) as stopped:
            pretrain_tiny(server.url, out, *settings)
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    last = newest_checkpoint(out)
    assert last is not None
    assert read_state(last).step == len(read_log(out, "train"))


def _lines_after(seconds: float, run: Path) -> int:
    time.sleep(seconds)
    return len(read_log(run, "train"))
