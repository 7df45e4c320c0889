"""What a store may answer: redirects, trickles, other regions, numbers without sense. Each against a scripted server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.listed_bucket import OPTIONS as KEYS
from tests.listed_bucket import listed_bucket
from tests.scripted_server import FACTS, Answer, Request, scripted_server
from tests.scripted_stores import CALLS, remote_path, scripted_store
from vmae_data.errors import DataError, MisuseError, NoRangesError, StoreError, VmaeError
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.shards.workspace import workspace_of
from vmae_data.storage import (
    copy_here,
    list_names,
    node_folder,
    path_digest,
    read_bytes,
    read_range,
    remote,
    set_options,
)
from vmae_data.storage.clients import client_of
from vmae_data.storage.problems import requested_wait
from vmae_data.storage.store_options import VARIABLE, access_of

pytestmark = pytest.mark.usefixtures("short_limits")


REGION = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
MOVED = b"<Error><Code>PermanentRedirect</Code><Endpoint>x.s3.amazonaws.com</Endpoint></Error>"
NAMED = {"x-amz-bucket-region": "eu-west-1"}
REGIONS = {
    "redirect without an address": (Answer(301, MOVED, NAMED), "region=eu-west-1"),
    "redirect that names none": (Answer(301, MOVED), "region=…"),
    "temporary redirect": (Answer(307, b"", NAMED), "region=eu-west-1"),
    "signature of another region": (Answer(400, REGION), "region=eu-west-1"),
    "signature, region in a header": (Answer(400, b"", NAMED), "region=eu-west-1"),
    "region that is none": (Answer(301, MOVED, {"x-amz-bucket-region": "a b"}), "region=…"),
}


@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("call", ["get", "head", "list", "put"])
def test_a_wrong_region_is_named_at_once(name: str, call: str) -> None:
    answer, advice = REGIONS[name]
    with scripted_server(lambda _: answer) as server:
        with pytest.raises(DataError, match=f"wrong region: .*Set --storage-option {advice}$"):
            CALLS[call](scripted_store("s3", server.url))
        assert len(server.requests) <= 2


def test_another_bad_request_is_not_taken_for_a_wrong_region() -> None:
    bad = Answer(400, b"<Code>InvalidArgument</Code>")
    with scripted_server(lambda _: bad) as server, pytest.raises(DataError, match="status 400, InvalidArgument"):
        read_bytes(scripted_store("s3", server.url))


@pytest.mark.parametrize("kind", ["s3", "az", "http"])
def test_the_first_retry_of_an_endpoint_that_refuses_is_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with scripted_server(lambda _: Answer()) as server:
        url = server.url
    path = scripted_store(kind, url)
    refused = pytest.raises(StoreError, match="connection refused, .* tries in")
    with caplog.at_level(logging.WARNING), refused, concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(read_bytes, [path] * 4))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and "connection refused" in lines[0] and "Trying again for 3 s" in lines[0], lines
    assert url in lines[0] and "hunter" not in lines[0]


@pytest.mark.parametrize(
    ("scheme", "server"),
    [("s3", "https://s3.eu-west-1.amazonaws.com"), ("gs", "https://storage.googleapis.com"), ("http", "")],
)
def test_messages_name_the_clouds_own_server(scheme: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    assert access_of(scheme).server == server


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7), ("²", None), ("٣", None), ("9" * 5000, None), ("-1", None), ("1e3", None), ("", None), ("nan", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
)  # fmt: skip
def test_a_requested_wait_is_a_number_with_bounds(text: str, seconds: float | None) -> None:
    assert requested_wait({"retry-after": text}) == seconds


def test_a_requested_wait_may_be_a_date() -> None:
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 50))
    assert 40 < (requested_wait({"retry-after": date}) or 0) <= 50


@pytest.mark.parametrize("header", [(), ("header.X-Api-Key=a",)])
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Length": "9" * 30},
        {"Content-Length": str(1 << 62)},
        {"Content-Length": "-5"},
        {"Content-Length": "²"},
        {"Content-Range": "bytes 0-9999999999999999999/99999999999999999999"},
        {"Content-Range": "bytes 5-1/3"},
        {"Content-Range": "bytes ²-³/4"},
        {"Retry-After": "²"},
    ],
)
def test_numbers_of_a_server_have_bounds(header: tuple[str, ...], headers: dict[str, str], tmp_path: Path) -> None:
    set_options([*header, "give_up=1"])
    status = 503 if "Retry-After" in headers else 206 if "Content-Range" in headers else 200

    with scripted_server(
        lambda _: Answer(status, b"abc", {**FACTS, **{k: v.encode().decode("latin-1") for k, v in headers.items()}})
    ) as server:
        path = remote_path(f"{server.url}/x")
        reads = (read_bytes, lambda path: read_range(path, 0, 3), lambda path: copy_here(path, tmp_path / "x"))
        for read in reads[1:2] if "Content-Range" in headers else reads:
            with pytest.raises(VmaeError) as caught:
                read(path)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["http", "plain"])
def test_a_file_of_a_server_without_ranges_is_copied_by_one_request(kind: str, tmp_path: Path) -> None:
    body = os.urandom((9 << 20) + 5)
    cut = iter([True])

    def answer(request: Request) -> Answer:  # the first complete answer ends early
        if request.method == "GET" and "range" not in request.headers and next(cut, False):
            return Answer(body=body[:1000], headers={**FACTS, "Content-Length": "1000"})
        return Answer(body=body)

    with scripted_server(answer) as server:
        path = remote_path(f"{server.url}/x") if kind == "plain" else scripted_store(kind, server.url)
        copy_here(path, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == body
        with pytest.raises(NoRangesError, match="x: its server does not support range requests"):
            read_range(path, 0, 10)


@contextlib.contextmanager
def _listing(*entries: tuple[str, int]) -> Iterator[None]:
    """A bucket that lists these objects, with their sizes."""
    with listed_bucket(dict(entries)) as server:
        set_options([*KEYS, f"endpoint={server.url}"])
        yield


def test_markers_of_folders_are_no_files() -> None:
    with _listing(
        ("set/", 0),
        ("set/a", 3),
        ("set/empty", 0),
        ("set/sub/", 0),
        ("set/sub/b", 1),
        ("set/sub/c/", 0),
        ("set/sub/c/d", 0),
        ("set/none/", 0),
        ("set/sub/none/", 0),
        ("set_$folder$", 0),
        ("set/sub_$folder$", 0),
        ("set/sub/gone_$folder$", 0),
        ("set/price_$folder$", 1),
    ):
        folder = remote_path("s3://bucket/set")
        assert list_names(folder) == {"a": 3, "empty": 0, "price_$folder$": 1}
        assert remote.list_tree(folder) == {"a": 3, "empty": 0, "price_$folder$": 1, "sub/b": 1, "sub/c/d": 0}


def test_what_is_kept_of_a_bucket_differs_between_servers_and_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path))
    url = "s3://bucket/set"
    assert path_digest(remote_path(url)) == hashlib.sha256(url.encode()).hexdigest()
    digests = {path_digest(remote_path(url))}
    with contextlib.ExitStack() as stack:
        for endpoint in ("http://host:9000", "http://host:9001", "https://host"):
            set_options([f"endpoint={endpoint}"])
            digests.add(path_digest(remote_path(url)))
            workspace = workspace_of(remote_path(url))
            stack.enter_context(workspace.locked("build"))  # at the same time as the builds on the other servers
            set_options([f"endpoint={endpoint}/"])
            assert workspace_of(remote_path(url)) == workspace
            with pytest.raises(VmaeError, match="another build"), workspace.locked("build"):
                pass
    monkeypatch.setenv(VARIABLE, "{}")
    for settings in (["endpoint=http://host:10000"], [], ["use_emulator=true"]):
        monkeypatch.setenv(VARIABLE, "{}")
        for account in ("one", "two"):
            set_options([f"account_name={account}", *settings])
            digests.add(path_digest(remote_path("az://bucket/set")))
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", "http://host:10001")
    digests.add(path_digest(remote_path("az://bucket/set")))
    assert len(digests) == 4 + 6 + 1


def test_a_size_in_a_listing_has_bounds() -> None:
    with _listing(("set/a", (1 << 64) - 1)):
        for call in (list_names, remote.list_tree):
            with pytest.raises(DataError, match="states a size of 18446744073709551615 bytes"):
                call(remote_path("s3://bucket/set"))


def test_a_client_is_opened_again_when_the_environment_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as server:
        set_options([f"endpoint={server.url}", "region=us-east-1"])
        for name in ("FIRST", "SECOND"):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
            read_bytes(remote_path("s3://bucket/x"))
            assert name in server.requests[-1].headers["authorization"]
        assert client_of(remote_path("s3://bucket/x")) is client_of(remote_path("s3://bucket/y"))


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    ("name", "scheme", "used"),
    [
        ("AWS_CA_BUNDLE", "s3", True), ("AWS_CA_BUNDLE", "gs", False), ("REQUESTS_CA_BUNDLE", "s3", True),
        ("REQUESTS_CA_BUNDLE", "https", True), ("option", "https", True), ("option", "s3", True), ("profile", "s3", True),
    ],
)  # fmt: skip
def test_certificates_to_trust_are_read_from_where_other_tools_read_them(
    name: str, scheme: str, used: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def give(path: Path) -> None:
        if name == "option":
            set_options([f"root_certificate={path}"])
        elif name == "profile":
            (tmp_path / ".aws").mkdir(exist_ok=True)
            (tmp_path / ".aws" / "config").write_text(f"[default]\nca_bundle = {path}\n")
        else:
            monkeypatch.setenv(name, str(path))

    pem = tmp_path / "own.pem"
    pem.write_text(CERTIFICATE)
    give(pem)
    assert access_of(scheme).client.get("root_certificate") == (CERTIFICATE.encode() if used else None)
    for path, problem in ((tmp_path / "none.pem", "No such file"), (Path("/etc/hostname"), "holds no certificate")):
        give(path)
        if used:
            with pytest.raises(MisuseError, match=f"{path}: .*{problem}"):
                access_of(scheme)


def test_azures_connection_string_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as server:
        text = f"DefaultEndpointsProtocol=http;AccountName=acc;AccountKey=aHVudGVyMg==;BlobEndpoint={server.url}/acc;"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        assert read_bytes(remote_path("az://box/x")) == b"abc"
        assert server.requests[-1].path == "/acc/box/x"
        assert server.requests[-1].headers["authorization"].startswith("SharedKey acc:")
        signed = f"BlobEndpoint={server.url}/acc;AccountName=acc;SharedAccessSignature=?sv=1&sig=abc"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", signed)
        assert read_bytes(remote_path("az://box/x")) == b"abc" and "sig=abc" in server.requests[-1].path
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING", "AccountName=acc;AccountKey=aHVudGVyMg==;EndpointSuffix=core.cn"
    )
    assert access_of("az").config["endpoint"] == "https://acc.blob.core.cn"
    set_options(["account_name=other", "account_key=hunter3"])
    assert access_of("az").config == {"account_name": "other", "account_key": "hunter3"}
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", "hunter2")
    with pytest.raises(MisuseError, match="AZURE_STORAGE_CONNECTION_STRING: names no account") as caught:
        access_of("az")
    assert "hunter2" not in str(caught.value)


def test_a_user_without_a_home_directory_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    for name in ("VMAE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert node_folder("tables") == tmp_path / f"vmae-{os.getuid()}" / "tables"
    assert (tmp_path / f"vmae-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert access_of("s3", "").config == {}
    with pytest.raises(VmaeError, match="cache.dir = ~/cache: this user has no home directory. Name a full path"):
        ShardCache(CacheSpec(dir="~/cache", bytes=1))
    (tmp_path / f"vmae-{os.getuid()}" / "tables").rmdir()
    (tmp_path / f"vmae-{os.getuid()}").rmdir()
    (tmp_path / f"vmae-{os.getuid()}").symlink_to("/")
    with pytest.raises(VmaeError, match="belongs to another user. Set VMAE_CACHE"):
        node_folder("tables")
