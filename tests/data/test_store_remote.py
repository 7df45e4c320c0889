"""Files in a bucket of a real S3 server, through a network that fails: results, number of requests, errors."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.errors import DataError, NotFoundError, ReplacedError, StoreError
from vmae_data.storage import (
    RemotePath,
    commit_bytes,
    commit_file,
    copy_here,
    create_bytes,
    exists,
    file_size,
    hash_file,
    is_folder,
    list_names,
    read_bytes,
    read_range,
    remote,
    remove,
    retry,
    set_options,
    storage_path,
)
from vmae_data.storage.attempt import Progress, attempt, pause
from vmae_data.storage.store_options import VARIABLE

pytestmark = pytest.mark.processes

BOTH = ("GET", "HEAD", "PUT", "POST", "DELETE")


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come soon, and limits are long: only a test of a limit sets a short one, so that a busy machine meets none."""
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["give_up=100", "read_timeout=30", "connect_timeout=30"])
    monkeypatch.setattr("vmae_data.storage.retry.FIRST_WAIT", 0.02)


@pytest.fixture
def folder(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, quick_retries: None) -> RemotePath:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    path = storage_path(f"{s3_bucket.url}/set")
    assert isinstance(path, RemotePath)
    return path


@pytest.fixture
def network(s3_bucket: S3Bucket, folder: RemotePath, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy before `folder`, without faults until a test sets them."""
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        set_options([f"endpoint={proxy.url}"])
        yield proxy


def _faults(*faults: Fault, seed: int = 1) -> Faults:
    return Faults(faults=faults, seed=seed, methods=BOTH)


def test_files_of_a_bucket_work_as_local_files_do(folder: RemotePath, tmp_path: Path) -> None:
    commit_bytes(folder / "a.txt", b"hello")
    assert read_bytes(folder / "a.txt") == b"hello"
    assert [read_range(folder / "a.txt", *where) for where in ((1, 3), (3, 100), (10, 5))] == [b"ell", b"lo", b""]
    assert file_size(folder / "a.txt") == 5 and not exists(folder / "b") and file_size(folder / "b") is None
    assert create_bytes(folder / "c", b"x") and not create_bytes(folder / "c", b"y")
    commit_bytes(folder / "deep" / "d", b"z")
    assert list_names(folder) == {"a.txt": 5, "c": 1}
    assert list(remote.list_tree(folder).items()) == [("a.txt", 5), ("c", 1), ("deep/d", 1)]
    assert is_folder(folder) and not is_folder(folder.with_name("se"))
    remove(folder / "c")
    remove(folder / "c")
    assert not exists(folder / "c")
    with pytest.raises(NotFoundError, match="NoSuchKey"):
        read_bytes(folder / "b")


def test_a_large_file_goes_there_and_back_in_parts(folder: RemotePath, network: Proxy, tmp_path: Path) -> None:
    data = random.Random(0).randbytes(20 * 10**6)
    (tmp_path / "x").write_bytes(data)
    commit_file(tmp_path / "x", folder / "x.tar")
    assert not (tmp_path / "x").exists()
    assert network.seen().count("PUT") == 3  # of 8 MiB at most
    copy_here(folder / "x.tar", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["y"]
    assert hash_file(folder / "x.tar") == hash_file(tmp_path / "y")


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.TRUNCATE, Kind.SHORTEN])
def test_a_broken_stream_continues_where_it_broke_and_each_byte_comes_once(
    folder: RemotePath, network: Proxy, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    monkeypatch.setattr(remote, "STREAM_BYTES", 800_000)
    data = random.Random(3).randbytes(10**6)
    commit_bytes(folder / "x", data)
    network.change(Faults(faults=(Fault(kind=kind, most=2),), methods=("GET",)))
    chunks: list[bytes] = []
    remote.stream(folder / "x", lambda chunk: chunks.append(bytes(chunk)))
    assert b"".join(chunks) == data
    ranges = [one.range or "" for one in network.seen().exchanges if one.method == "GET"]
    starts = [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges]
    assert starts[0] == 0 < starts[1] < starts[2] < starts[3] == 800_000
    assert [text.partition("-")[2] for text in ranges] == ["799999"] * 3 + ["999999"]


FAULTS = {
    "busy": Fault(kind=Kind.STATUS, status=503, share=0.3),
    "broken": Fault(kind=Kind.STATUS, status=500, share=0.3),
    "too many": Fault(kind=Kind.STATUS, status=429, share=0.3),
    "cut": Fault(kind=Kind.CUT, share=0.3),
    "truncated": Fault(kind=Kind.TRUNCATE, share=0.3),
    "shortened": Fault(kind=Kind.SHORTEN, share=0.3),
    "silent": Fault(kind=Kind.STALL, share=0.2, seconds=2),
}


@pytest.mark.parametrize("name", FAULTS)
def test_transient_faults_are_retried(name: str, folder: RemotePath, network: Proxy, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(300_000)
    commit_bytes(folder / "x", data)
    if name == "silent":
        set_options(["read_timeout=0.5", "connect_timeout=1"])
    network.change(_faults(FAULTS[name]))
    for start in range(0, 300_000, 30_000):
        assert read_range(folder / "x", start, 30_000) == data[start : start + 30_000]
    assert read_bytes(folder / "x") == data
    copy_here(folder / "x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == data
    assert sum(network.seen().faults.values()) > 1


def test_uploads_are_retried_too(folder: RemotePath, network: Proxy, tmp_path: Path) -> None:
    data = random.Random(2).randbytes(17 * 10**6)
    network.change(_faults(Fault(kind=Kind.STATUS, share=0.2), Fault(kind=Kind.CUT, share=0.2), seed=3))
    (tmp_path / "x").write_bytes(data)
    commit_file(tmp_path / "x", folder / "x")
    network.change(Faults())
    assert read_bytes(folder / "x") == data


@pytest.mark.parametrize("size", [1000, 17 * 10**6])
def test_an_upload_that_stalls_is_tried_again_then_given_up(
    folder: RemotePath, network: Proxy, tmp_path: Path, size: int
) -> None:
    set_options(["read_timeout=0.2"])  # an upload's request has 15 times that
    (tmp_path / "x").write_bytes(bytes(size))
    stalls = Fault(kind=Kind.STALL, seconds=600)
    network.change(_faults(msgspec.structs.replace(stalls, most=1)))
    remote.put(folder / "x", tmp_path / "x")
    assert network.seen().faults == {Kind.STALL: 1}
    assert file_size(folder / "x") == size
    set_options(["read_timeout=0.1", "give_up=0.1"])
    network.change(_faults(stalls))
    with pytest.raises(StoreError, match=r"x: can't be written \(no answer in time, .* Check the store"):
        remote.put(folder / "x", tmp_path / "x")


def test_few_parts_of_an_upload_share_a_link_so_that_each_ends_in_its_time(
    folder: RemotePath, network: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PART_BYTES", 5 << 20)  # the least that S3 takes
    (tmp_path / "x").write_bytes(bytes(30 << 20))
    set_options(["read_timeout=0.1", "give_up=0.1"])
    network.change(Faults(faults=(Fault(kind=Kind.STALL, seconds=600),), methods=("PUT",)))
    with pytest.raises(StoreError):
        remote.put(folder / "x", tmp_path / "x")
    assert network.seen().count("PUT") <= remote.CONCURRENT_PARTS == 4


def test_a_create_whose_answer_was_lost_is_recognised_as_ours(folder: RemotePath, network: Proxy) -> None:
    network.change(_faults(Fault(kind=Kind.LOSE, most=1)))
    assert create_bytes(folder / "plan", b"ours")
    assert not create_bytes(folder / "plan", b"theirs")
    assert read_bytes(folder / "plan") == b"ours"


def test_the_wait_that_a_busy_store_requests_is_kept(
    folder: RemotePath, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(retry, "pause", lambda seconds: waits.append(seconds) or pause(seconds))
    commit_bytes(folder / "x", b"hello")
    network.change(_faults(Fault(kind=Kind.STATUS, status=429, retry_after_seconds=1, most=2)))
    assert read_bytes(folder / "x") == b"hello"
    assert 1 <= sum(waits) < 2


@pytest.mark.parametrize("seconds", [1.0, 60.0])
def test_a_store_that_is_down_is_retried_for_a_bounded_time(seconds: float, folder: RemotePath, network: Proxy) -> None:
    commit_bytes(folder / "x", b"hello")
    network.change(Faults(down_seconds=seconds))
    if seconds == 1:
        assert read_bytes(folder / "x") == b"hello"
        return
    set_options(["give_up=2"])
    with pytest.raises(
        StoreError, match=r"x: can't be read \(connection re\w+, \d+ tries in \d+ s at http\S+\)\. Check the store"
    ):
        read_bytes(folder / "x")


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError("no 8 MiB")])
def test_a_fault_of_this_machine_is_not_said_to_be_the_stores(
    error: Exception, folder: RemotePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_call: object, _period: float | None) -> None:
        raise error

    monkeypatch.setattr(retry, "attempt", fail)
    with pytest.raises(type(error), match=str(error)):
        read_bytes(folder / "a")


def test_an_object_that_was_replaced_is_noticed(folder: RemotePath) -> None:
    commit_bytes(folder / "x", b"one")
    part = remote.read_part(folder / "x", 0, 2)
    assert remote.read_part(folder / "x", 1, 2, part.etag).data == b"ne"
    commit_bytes(folder / "x", b"two")
    with pytest.raises(ReplacedError, match="was replaced while it was read"):
        remote.read_part(folder / "x", 1, 2, part.etag)


def test_a_whole_file_that_is_replaced_while_it_is_read_is_read_again(
    folder: RemotePath, network: Proxy, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the log of a run that another process trains."""
    first, second = b"a" * 10**6, b"b" * 10**6
    commit_bytes(folder / "log", first)
    network.change(_faults(Fault(kind=Kind.TRUNCATE, most=1, after_bytes=500_000)))
    body, answers = remote._body, []

    def replacing(response: Any, most: int, progress: Progress) -> bytes:
        """The file is replaced when the first answer has begun, so its rest can't be requested."""
        answers.append(response)
        if len(answers) == 1:
            s3_bucket.store().put("set/log", second)
        return body(response, most, progress)

    monkeypatch.setattr(remote, "_body", replacing)
    assert read_bytes(folder / "log") == second
    assert len(answers) == 2


@pytest.mark.parametrize("times", [1, remote.DOWNLOADS])
def test_a_copy_of_a_file_that_is_replaced_meanwhile_is_of_one_version(
    folder: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """As the log of a run that another process trains. A file that never stays the same is an error."""
    versions = [random.Random(n).randbytes(9 * 10**6) for n in range(times + 1)]
    commit_bytes(folder / "x", versions[0])
    stats: list[remote.ObjectInfo] = []
    stat = remote._stat

    def replacing(path: RemotePath) -> remote.ObjectInfo:
        stats.append(stat(path))
        if len(stats) <= times:
            commit_bytes(folder / "x", versions[len(stats)])
        return stats[-1]

    monkeypatch.setattr(remote, "_stat", replacing)
    if times < remote.DOWNLOADS:
        copy_here(folder / "x", tmp_path / "x")
        assert (tmp_path / "x").read_bytes() == versions[times]
        return
    with pytest.raises(ReplacedError):
        copy_here(folder / "x", tmp_path / "x")
    assert len(stats) == times
    assert list(tmp_path.iterdir()) == []


def _refusals(folder: RemotePath, network: Proxy) -> Iterator[Callable[[], object]]:
    network.change(_faults(Fault(kind=Kind.EXPIRED)))
    yield lambda: read_bytes(folder / "x")
    network.change(Faults())
    set_options(["secret_access_key=hunter2hunter2"])
    yield lambda: read_bytes(folder / "x")
    yield lambda: commit_bytes(folder / "x", b"1")
    yield lambda: list_names(folder)


def test_refused_credentials_end_soon_and_stay_secret(folder: RemotePath, network: Proxy, s3_bucket: S3Bucket) -> None:
    commit_bytes(folder / "x", b"hello")
    for call in _refusals(folder, network):
        before = len(network.seen().exchanges)
        with pytest.raises(DataError, match="refused: status 403.*Check the credentials") as caught:
            call()
        assert len(network.seen().exchanges) - before <= 3
        message = f"{caught.value!r} {caught.value.__cause__!r}"
        for secret in (s3_bucket.server.secret, s3_bucket.server.access_key, "hunter2", "Signature"):
            assert secret not in message.replace("SignatureDoesNotMatch", "")


def test_credentials_that_were_renewed_meanwhile_are_used(
    folder: RemotePath, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_bytes(folder / "x", b"hello")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "old")
    set_options(["give_up=99"])  # other options open a new client
    uniform = random.uniform

    def renew(low: float, high: float) -> float:
        os.environ["AWS_SECRET_ACCESS_KEY"] = s3_bucket.server.secret
        return uniform(low, high)

    monkeypatch.setattr("vmae_data.storage.retry.random.uniform", renew)
    assert read_bytes(folder / "x") == b"hello"


def test_calls_one_after_the_other_use_one_thread_and_not_the_callers() -> None:
    threads = {attempt(lambda _: threading.get_ident(), None) for _ in range(5)}
    assert len(threads) == 1 and threads != {threading.get_ident()}
