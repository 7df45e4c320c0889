"""A training's batches from a bucket through a failing network equal those of a local run, or it ends with one line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import call_command
from tests.s3_server import S3Bucket
from tools.soak.batches import own_clips
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.errors import DataError
from vmae_data.recipes import load_recipe
from vmae_data.storage import commit_bytes, set_options, storage_path
from vmae_data.storage.store_options import VARIABLE
from vmae_train.distributed import Distributed
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.log import read_log

pytestmark = pytest.mark.processes

SETTINGS = ("train.batch=8", "train.steps=6", "loader.workers=1")


def _clips(data: str, *settings: str) -> list[Any]:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SETTINGS, *settings])
    return own_clips(spec, [data], 0, None, Distributed())


@pytest.fixture(scope="module")
def quiet(demo_shards: Path) -> list[Any]:
    """The batches of a local run."""
    return _clips(str(demo_shards))


@pytest.fixture
def url(s3_bucket: S3Bucket, demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    monkeypatch.setenv(VARIABLE, "{}")
    for path in demo_shards.iterdir():
        commit_bytes(storage_path(f"{s3_bucket.url}/set") / path.name, path.read_bytes())
    return f"{s3_bucket.url}/set"


@pytest.fixture
def network(s3_bucket: S3Bucket, url: str) -> Iterator[Proxy]:
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        set_options([f"endpoint={proxy.url}", "give_up=30", "read_timeout=0.5", "connect_timeout=1"])
        yield proxy


def test_a_bucket_gives_the_batches_of_the_folder(quiet: list[Any], url: str) -> None:
    assert _clips(url) == quiet


FAULTS = {
    "temporarily refused": (
        Fault(kind=Kind.STATUS, status=500, share=0.07),
        Fault(kind=Kind.STATUS, status=503, share=0.07),
        Fault(kind=Kind.STATUS, status=429, share=0.07),
    ),
    "cut and truncated": (Fault(kind=Kind.CUT, share=0.2), Fault(kind=Kind.TRUNCATE, share=0.2)),
    "shorten_digests": (Fault(kind=Kind.SHORTEN, share=0.2),),
    "silent": (Fault(kind=Kind.STALL, share=0.1, seconds=2),),
    # Two in total: a sample fails if its bytes are wrong three times, and all requests may be for one sample.
    "corrupted": (Fault(kind=Kind.CORRUPT, most=1), Fault(kind=Kind.CORRUPT, first=20, most=1)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_batches_through_a_failing_network_are_those_of_the_folder(
    name: str, quiet: list[Any], url: str, network: Proxy
) -> None:
    # Not the index, which is requested once; test_hostile has wrong ones.
    network.change(Faults(faults=FAULTS[name], seed=5, path_part=".tar"))
    assert _clips(url) == quiet
    assert sum(network.seen().faults.values()) > 1


def test_shards_that_arrive_damaged_are_not_cached(quiet: list[Any], url: str, network: Proxy, tmp_path: Path) -> None:
    settings = (f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB")
    network.change(Faults(faults=FAULTS["corrupted"], seed=6, path_part=".tar"))
    assert _clips(url, *settings) == quiet
    network.change(Faults())
    assert _clips(url, *settings) == quiet


def test_batches_do_not_change_if_the_server_is_killed_and_comes_back(
    quiet: list[Any], url: str, network: Proxy
) -> None:
    before: list[int] = []

    def kill() -> None:
        while (requests := network.seen().count("GET")) < 3:
            time.sleep(0.005)
        network.change(Faults(down_seconds=2))
        before.append(requests)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    assert _clips(url) == quiet
    killer.join(60)
    assert before and network.seen().count("GET") > before[0], "nothing was left to read when the server was killed"


def _train(data: str | Path, out: Path, *settings: str, steps: int = 20, status: int = 0) -> str:
    """The last line that a training printed."""
    settings = (f"train.steps={steps}", "train.batch=4", "log.every_steps=1", "checkpoint.every_steps=5", *settings)
    words = ["--recipe", "pretrain/demo", "--data", data, "--out", out, "--quiet"]
    words += [word for setting in settings for word in ("--set", setting)]
    printed = call_command("vmae_train", "pretrain", *words, status=status).stderr
    assert "Traceback" not in printed
    return printed.splitlines()[-1] if printed else ""


def _after_the_first_checkpoint(run: Path, act: Callable[[], object]) -> threading.Thread:
    def wait() -> None:
        deadline = time.monotonic() + 100
        while not list(run.glob("checkpoints/step-*")) and time.monotonic() < deadline:
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_credentials_that_expire_end_a_training_with_one_line_and_it_can_be_resumed(
    demo_shards: Path, url: str, network: Proxy, tmp_path: Path
) -> None:
    network.change(Faults(faults=(Fault(kind=Kind.EXPIRED, first=30),), path_part=".tar"))
    line = _train(url, tmp_path / "run", "loader.ahead=1", status=1)
    assert line.startswith("vmae-train:") and "ExpiredToken" in line and "Check the credentials" in line
    assert list(tmp_path.glob("run/checkpoints/step-*"))
    network.change(Faults())
    _train(url, tmp_path / "run", "loader.workers=0")
    _train(demo_shards, tmp_path / "other", "loader.workers=0")
    losses = [[line["loss"] for line in read_log(tmp_path / out, "train")] for out in ("run", "other")]
    assert len(losses[0]) == 20 and losses[0] == losses[1]


def test_a_store_that_is_gone_for_good_ends_a_training_in_bounded_time(
    url: str, network: Proxy, tmp_path: Path
) -> None:
    set_options(["give_up=3"])
    run = tmp_path / "run"
    thread = _after_the_first_checkpoint(run, lambda: network.change(Faults(down_seconds=1e6)))
    line = _train(url, run, steps=100_000, status=1)
    thread.join()
    assert "Check the store and the network, then run the same command again" in line


def test_a_shard_that_is_replaced_while_it_is_read_ends_a_training_with_one_line(
    url: str, network: Proxy, demo_shards: Path, tmp_path: Path
) -> None:
    def replace() -> None:
        for path in demo_shards.glob("*.tar"):
            commit_bytes(storage_path(url) / path.name, b"x" + path.read_bytes()[:-1])

    thread = _after_the_first_checkpoint(tmp_path / "run", replace)
    line = _train(url, tmp_path / "run", steps=100_000, status=1)
    thread.join()
    assert "was replaced while it was read" in line


def test_a_data_set_that_does_not_exist_is_refused(url: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        _clips(f"{url}-not")
