"""Training's batches from a bucket through a failing network: what the model sees is what a quiet local run sees, or the end is one line."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import command_line
from tests.s3_server import S3Bucket
from tools.soak.batches import own_clips
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.errors import DataError
from vmae_data.recipes import load_recipe
from vmae_data.storage import commit_bytes, set_options, storage_path
from vmae_data.storage.options import VARIABLE
from vmae_train.distributed import Distributed
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.log import read_log

SETTINGS = ("train.batch=8", "train.steps=6", "loader.workers=1")


def _clips(data: str, *settings: str) -> list[Any]:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SETTINGS, *settings])
    return own_clips(spec, [data], 0, None, Distributed())


@pytest.fixture(scope="module")
def quiet(demo_shards: Path) -> list[Any]:
    """What a local run sees."""
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


def test_a_quiet_bucket_gives_the_same_batches(quiet: list[Any], url: str) -> None:
    assert _clips(url) == quiet


FAULTS = {
    "refused for now": (
        Fault(kind=Kind.STATUS, status=500, share=0.07),
        Fault(kind=Kind.STATUS, status=503, share=0.07),
        Fault(kind=Kind.STATUS, status=429, share=0.07),
    ),
    "cut and truncated": (Fault(kind=Kind.CUT, share=0.2), Fault(kind=Kind.TRUNCATE, share=0.2)),
    "shortened": (Fault(kind=Kind.SHORTEN, share=0.2),),
    "silent": (Fault(kind=Kind.STALL, share=0.1, seconds=2),),
    # Two in all: a sample whose bytes are wrong three times is given up, and any request may be for it again.
    "corrupted": (Fault(kind=Kind.CORRUPT, most=1), Fault(kind=Kind.CORRUPT, first=20, most=1)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_batches_through_a_failing_network_are_those_of_a_quiet_run(
    name: str, quiet: list[Any], url: str, network: Proxy
) -> None:
    # The index is asked for once; that a wrong one is refused is tested with hostile data.
    network.change(Faults(faults=FAULTS[name], seed=5, path_part=".tar"))
    assert _clips(url) == quiet
    assert sum(network.seen().faults.values()) > 1


def test_whole_shards_that_come_broken_are_not_cached(
    quiet: list[Any], url: str, network: Proxy, tmp_path: Path
) -> None:
    settings = (f"cache.dir={tmp_path / 'cache'}", "cache.bytes=1GB")
    network.change(Faults(faults=FAULTS["corrupted"], seed=6, path_part=".tar"))
    assert _clips(url, *settings) == quiet
    network.change(Faults())
    assert _clips(url, *settings) == quiet


def test_a_server_that_is_killed_and_comes_back_changes_nothing(quiet: list[Any], url: str, network: Proxy) -> None:
    threading.Timer(0.3, lambda: network.change(Faults(down_seconds=2))).start()
    assert _clips(url) == quiet


def _train(url: str, out: Path, *settings: str) -> list[str]:
    words = ["pretrain", "--recipe", "pretrain/demo", "--data", url, "--out", str(out), "--quiet"]
    wanted = (
        "train.batch=4",
        "train.steps=40",
        "log.every_steps=1",
        "checkpoint.every_steps=5",
        "loader.ahead=1",
        *settings,
    )
    return command_line("vmae_train", *words, *(word for text in wanted for word in ("--set", text)))


def _fails(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("vmae-train:")]
    assert "Traceback" not in done.stderr
    return line


def test_credentials_that_expire_end_a_training_with_one_line_and_it_goes_on(
    demo_shards: Path, url: str, network: Proxy, tmp_path: Path
) -> None:
    network.change(Faults(faults=(Fault(kind=Kind.EXPIRED, first=30),), path_part=".tar"))
    line = _fails(_train(url, tmp_path / "run"))
    assert "ExpiredToken" in line and "Check the credentials" in line
    network.change(Faults())
    for out, data in (("run", url), ("other", str(demo_shards))):
        subprocess.run(_train(data, tmp_path / out), check=True, timeout=250)
    losses = [[line["loss"] for line in read_log(tmp_path / out, "train")] for out in ("run", "other")]
    assert len(losses[0]) == 40 and losses[0] == losses[1]


def test_a_store_that_is_gone_for_good_ends_a_training_in_bounded_time(
    url: str, network: Proxy, tmp_path: Path
) -> None:
    set_options(["give_up=3"])
    network.change(Faults(down_from_seconds=6, down_seconds=1e6))
    line = _fails(_train(url, tmp_path / "run", "train.steps=100000"))
    assert "Check the store and the network, then run the same command again" in line


def test_a_shard_that_is_replaced_while_it_is_read_ends_a_training_with_one_line(
    url: str, network: Proxy, demo_shards: Path, tmp_path: Path
) -> None:
    process = subprocess.Popen(_train(url, tmp_path / "run", "train.steps=100000"), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("run/checkpoints/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    for path in demo_shards.glob("*.tar"):
        commit_bytes(storage_path(url) / path.name, b"x" + path.read_bytes()[:-1])
    said = process.communicate(timeout=100)[1]
    assert process.returncode == 1 and "Traceback" not in said
    assert "was replaced while it was read" in said.splitlines()[-1]


def test_the_batches_of_a_set_that_is_not_there_are_refused(url: str) -> None:
    with pytest.raises(DataError, match="no such folder"):
        _clips(f"{url}-not")
