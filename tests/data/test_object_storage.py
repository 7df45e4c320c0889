"""The storage client that we build on, against real servers, with and without network faults."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, PermissionDeniedError, PreconditionError

from tests.azure_server import AzureContainer
from tests.builds import processes_with, wait_until
from tests.gcs_server import GcsBucket
from tests.s3_server import S3Bucket
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import proxy_thread

MB = 10**6
FAST: dict[str, Any] = {
    "max_retries": 3,
    "backoff": {
        "init_backoff": dt.timedelta(milliseconds=10),
        "max_backoff": dt.timedelta(milliseconds=50),
    },
}


def once(kind: Kind, **how: Any) -> Faults:
    return Faults(faults=(Fault(kind=kind, most=1, **how),), methods=("GET", "PUT"))


def test_parts_of_an_upload_become_one_object_and_ranges_of_it_come_back(s3_bucket: S3Bucket) -> None:
    data = random.Random(0).randbytes(40 * MB)
    store = s3_bucket.store()
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        obstore.put(s3_bucket.through(proxy.url).store(), "folder/large", data)
        assert proxy.seen().count("PUT") == 8  # of 5 MiB each
    assert obstore.head(store, "folder/large")["size"] == len(data)
    for start, end in ((0, 1), (5 * 2**20 - 3, 5 * 2**20 + 3), (17 * MB, 19 * MB), (len(data) - 7, len(data))):
        assert obstore.get_range(store, "folder/large", start=start, end=end) == data[start:end]


def test_a_listing_has_more_keys_than_a_page_of_the_store(s3_bucket: S3Bucket) -> None:
    store = s3_bucket.store()
    names = {f"many/{number:05d}" for number in range(1050)}
    for name in names:
        store.put(name, b"x", use_multipart=False)
    assert {entry["path"] for page in obstore.list(store, "many") for entry in page} == names


def test_an_existing_key_is_not_created_again(s3_bucket: S3Bucket) -> None:
    store = s3_bucket.store()
    store.put("marker", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        store.put("marker", b"second", mode="create")
    assert store.get("marker").bytes() == b"first"


def test_an_object_replaced_between_two_reads_is_refused_by_its_etag(s3_bucket: S3Bucket) -> None:
    store = s3_bucket.store()
    etag = store.put("shard", b"old " * 100)["e_tag"]
    assert store.get("shard", options={"if_match": etag, "range": (4, 8)}).bytes() == b"old "
    store.put("shard", b"new " * 100)
    with pytest.raises(PreconditionError):
        store.get("shard", options={"if_match": etag, "range": (4, 8)})


def test_an_object_replaced_during_a_read_never_gives_bytes_of_both(s3_bucket: S3Bucket) -> None:
    s3_bucket.store().put("shard", b"A" * MB)
    with proxy_thread(s3_bucket.server.endpoint, once(Kind.STALL, seconds=30, after_bytes=MB // 2)) as proxy:
        options = {"allow_http": True, "read_timeout": "1s"}
        result = s3_bucket.through(proxy.url).store(client_options=options).get("shard")
        s3_bucket.store().put("shard", b"B" * MB)
        with pytest.raises(GenericError):
            result.bytes()
        # The client requested the rest, got that of the new object, and saw the other etag.
        assert [exchange.status for exchange in proxy.seen().exchanges if exchange.range] == [206]


def test_a_deleted_key_is_gone(s3_bucket: S3Bucket) -> None:
    store = s3_bucket.store()
    store.put("key", b"x")
    store.delete("key")
    with pytest.raises(FileNotFoundError):
        store.get("key")
    assert not store.list().collect()


@pytest.mark.parametrize("kind", [Kind.CUT, Kind.TRUNCATE])
def test_a_body_that_breaks_off_is_resumed_from_there(s3_bucket: S3Bucket, kind: Kind) -> None:
    data = random.Random(1).randbytes(MB)
    s3_bucket.store().put("shard", data)
    with proxy_thread(s3_bucket.server.endpoint, once(kind, after_bytes=300_000)) as proxy:
        store = s3_bucket.through(proxy.url).store(retry_config=FAST)
        assert obstore.get_range(store, "shard", start=1000, end=900_000) == data[1000:900_000]
        seen = proxy.seen()
    assert seen.faults == {kind: 1}
    first, second = [exchange.range for exchange in seen.exchanges]
    assert first == "bytes=1000-899999"
    begin = int(second.removeprefix("bytes=").removesuffix("-899999"))
    # A reset also drops bytes that had arrived and were not read yet.
    assert begin == 301_000 if kind is Kind.TRUNCATE else 1000 <= begin <= 301_000


@pytest.mark.parametrize(("kind", "size"), [(Kind.SHORTEN, 1234), (Kind.CORRUPT, 899_000)])
def test_the_client_does_not_detect_a_wrong_body_so_we_must(s3_bucket: S3Bucket, kind: Kind, size: int) -> None:
    data = random.Random(2).randbytes(MB)
    s3_bucket.store().put("shard", data)
    with proxy_thread(s3_bucket.server.endpoint, once(kind, after_bytes=1234)) as proxy:
        body = obstore.get_range(s3_bucket.through(proxy.url).store(), "shard", start=1000, end=900_000)
    assert len(body) == size
    assert body != data[1000:900_000]


def test_a_lost_answer_to_a_create_leaves_the_object_and_an_error(s3_bucket: S3Bucket) -> None:
    with proxy_thread(s3_bucket.server.endpoint, once(Kind.LOSE)) as proxy:
        store = s3_bucket.through(proxy.url).store(retry_config=FAST)
        with pytest.raises(GenericError):
            store.put("marker", b"mine", mode="create")
    assert s3_bucket.store().get("marker").bytes() == b"mine"


def test_an_expired_token_is_reported_at_once_and_without_secrets(s3_bucket: S3Bucket) -> None:
    s3_bucket.store().put("key", b"x")
    with proxy_thread(s3_bucket.server.endpoint, Faults(faults=(Fault(kind=Kind.EXPIRED),))) as proxy:
        with pytest.raises(PermissionDeniedError, match="ExpiredToken") as caught:
            s3_bucket.through(proxy.url).store().get("key")
        assert proxy.seen().count("GET") == 1
    assert s3_bucket.server.secret not in str(caught.value)
    assert s3_bucket.server.access_key not in str(caught.value)


def test_azure_takes_parts_gives_ranges_and_checks_etags(azure_container: AzureContainer) -> None:
    store, data = azure_container.store(), random.Random(3).randbytes(12 * MB)
    store.put("folder/large", data)
    assert obstore.get_range(store, "folder/large", start=7 * MB, end=8 * MB) == data[7 * MB : 8 * MB]
    assert [entry["path"] for entry in store.list("folder").collect()] == ["folder/large"]
    store.put("marker", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        store.put("marker", b"second", mode="create")
    with pytest.raises(PreconditionError):
        store.get("marker", options={"if_match": '"another"'})
    store.delete("marker")
    with pytest.raises(FileNotFoundError):
        store.head("marker")


def test_google_gives_ranges_and_lists_what_is_there(gcs_bucket: GcsBucket) -> None:
    store, data = gcs_bucket.store(), random.Random(4).randbytes(2 * MB)
    gcs_bucket.put("folder/large", data)
    assert obstore.get_range(store, "folder/large", start=MB, end=MB + 999) == data[MB : MB + 999]
    assert store.head("folder/large")["size"] == len(data)
    assert [entry["path"] for entry in store.list("folder").collect()] == ["folder/large"]
    store.delete("folder/large")
    with pytest.raises(FileNotFoundError):
        store.get("folder/large")


_KILLED = """\
import os, pathlib, signal, sys
from tests.azure_server import AzureContainer
from tests.gcs_server import GcsBucket
from tests.s3_server import s3_server
with s3_server(pathlib.Path(sys.argv[1])) as server:
    print(server.endpoint, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_server_ends_with_tests_that_are_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    script = [sys.executable, "-c", _KILLED, str(tmp_path)]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -9 and done.stdout.startswith("http://"), done.stderr
    wait_until(lambda: not processes_with(str(tmp_path)))
