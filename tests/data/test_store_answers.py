"""What a store may answer: redirects, trickles, other regions, numbers without sense. Each against a scripted server."""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.listed_bucket import OPTIONS as KEYS
from tests.listed_bucket import listed_bucket
from tests.scripted_server import FACTS, Answer, Request, ScriptedServer, redirect_to, scripted_server
from vmae_data.errors import DataError, MisuseError, StoreError, VmaeError
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.shards.workspace import workspace_of
from vmae_data.storage import (
    RemotePath,
    commit_bytes,
    copied,
    copy_here,
    file_size,
    hash_file,
    is_folder,
    list_names,
    node_folder,
    path_digest,
    read_bytes,
    read_each,
    read_range,
    remote,
    remove,
    set_options,
    storage_path,
)
from vmae_data.storage.clients import client_of
from vmae_data.storage.problems import requested_wait
from vmae_data.storage.store_options import VARIABLE, access_of

SAS = ("account_name=a", "sas_key=sv=1&sig=hunter2")


@pytest.fixture(autouse=True)
def _short_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.upper().endswith(("_PROXY", "CA_BUNDLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("vmae_data.storage.retry.FIRST_WAIT", 0.02)
    monkeypatch.setattr("vmae_data.storage.retry._reported", {})
    set_options(["give_up=3", "read_timeout=0.5", "connect_timeout=0.5"])


def _path(url: str) -> RemotePath:
    path = storage_path(url)
    assert isinstance(path, RemotePath)
    return path


def _store(kind: str, server: str) -> RemotePath:
    """An object of a server that is opened as a bucket or as a web server, with secrets."""
    if kind == "http":
        set_options(["header.Authorization=hunter1", "header.X-Api-Key=hunter2"])
        return _path(f"{server}/x")
    set_options([*(KEYS if kind == "s3" else SAS), f"endpoint={server}"])
    return _path(f"{kind}://bucket/x")


CALLS: dict[str, Callable[[RemotePath], object]] = {
    "get": read_bytes,
    "range": lambda path: read_range(path, 0, 3),
    "head": file_size,
    "put": lambda path: commit_bytes(path, b"data"),
    "delete": remove,
    "list": lambda path: list_names(path.parent),
    "list all": lambda path: remote.list_tree(path.parent),
    "any": lambda path: is_folder(path.parent / "y"),
}
HOSTS = [("s3", call) for call in CALLS] + [("az", call) for call in CALLS]
HOSTS += [("http", call) for call in ("get", "range", "head")]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("kind", "call"), HOSTS)
def test_no_credential_and_no_header_follows_a_redirect_to_another_host(kind: str, call: str, status: int) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost") if kind != "http" else other.url
        with scripted_server(lambda request: redirect_to(elsewhere + request.path)._replace(status=status)) as server:
            path = _store(kind, server.url)
            with contextlib.suppress(VmaeError):
                CALLS[call](path)
        assert "hunter" in server.seen()
        assert "hunter" not in other.seen() and server.url not in other.seen().replace("location", "")


@pytest.mark.xfail(strict=True, reason="obstore follows redirects, and its proxy_excludes takes no port")
@pytest.mark.parametrize("kind", ["s3", "az"])
def test_no_token_follows_a_redirect_to_another_port_of_the_host(kind: str) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as other:
        with scripted_server(lambda request: redirect_to(other.url + request.path.partition("?")[0])) as server:
            path = _store(kind, server.url)
            with contextlib.suppress(VmaeError):
                read_bytes(path)
        assert server.requests
        assert "hunter" not in other.seen()


@pytest.mark.parametrize(
    ("url", "keys"),
    [
        ("s3://bucket/x", ("access_key_id=AK", "secret_access_key=hunter1", "region=us-east-1")),
        ("az://bucket/x", ("account_name=a", "account_key=aHVudGVy")),
    ],
)
def test_no_signature_follows_a_redirect_to_another_port_of_the_host(url: str, keys: tuple[str, ...]) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as other:
        with scripted_server(lambda request: redirect_to(other.url + request.path)) as server:
            set_options([f"endpoint={server.url}", *keys])
            assert read_bytes(_path(url)) == b"abc"
        assert "authorization" in server.requests[0].headers
        assert "authorization" not in other.requests[0].headers


def test_a_redirect_of_a_bucket_to_another_host_is_an_error_at_once() -> None:
    with scripted_server(lambda request: redirect_to(f"http://localhost:9{request.path}")) as server:
        with pytest.raises(DataError, match="x: can't be read .its server redirects to another host"):
            read_bytes(_store("s3", server.url))
        assert len(server.requests) == 1


def test_the_question_how_long_to_wait_takes_no_secret_to_another_host() -> None:
    with scripted_server(lambda _: Answer(503)) as other:

        def answer(request: Request) -> Answer:
            count = len(server.requests)
            return Answer(503) if count % 2 else redirect_to(other.url + request.path)

        with scripted_server(answer) as server, pytest.raises(VmaeError):
            read_bytes(_store("http", server.url))
        assert len(server.requests) > 3 and "hunter" not in other.seen()


def test_a_web_servers_header_does_not_go_to_a_bucket() -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as server:
        set_options(["header.Authorization=hunter3"])
        assert read_bytes(_store("s3", server.url)) == b"abc"
        assert "hunter3" not in server.seen()


def test_a_web_server_with_headers_answers_as_one_without(tmp_path: Path) -> None:
    data = random.Random(0).randbytes(9_000_000)

    def answer(request: Request) -> Answer:
        if request.path == "/old%20name/x":
            return redirect_to("/new/x")
        if request.path != "/new/x" or request.headers.get("x-api-key", "hunter2") != "hunter2":
            return Answer(404 if request.path != "/new/x" else 403)
        if "range" not in request.headers:
            return Answer(body=data)
        first, last = map(int, request.headers["range"].removeprefix("bytes=").split("-"))
        if first >= len(data):
            return Answer(416)
        part = data[first : last + 1]
        where = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(data)}"}
        return Answer(206, part, {**FACTS, **where})

    with scripted_server(answer) as server:
        for header in ((), ("header.X-Api-Key=hunter2",)):
            set_options(header)
            path = _path(f"{server.url}/old name/x")
            assert read_bytes(path) == data and file_size(path) == len(data) and file_size(path.parent / "y") is None
            for offset, size in ((5, 10), (len(data) - 3, 10), (len(data) + 5, 1)):
                assert read_range(path, offset, size) == data[offset : offset + size]
            copy_here(path, tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == data
        set_options(["header.X-Api-Key=wrong"])
        with pytest.raises(
            DataError, match="refused: status 403.*Check the URL, and whether the server needs a header"
        ):
            read_bytes(path)


def _trickle(request: Request) -> Answer:
    size = 100_000
    headers = dict(FACTS)
    if "range" in request.headers:
        headers["Content-Range"] = f"bytes 0-{size - 1}/{size}"
    return Answer(206 if "range" in request.headers else 200, bytes(size), headers, seconds_a_byte=0.1)


def _slow_reads(path: RemotePath, folder: Path) -> dict[str, Callable[[], object]]:
    def copy() -> None:
        with copied(path, folder):
            pass

    return {
        "index": lambda: read_bytes(path),
        "markers": lambda: list(read_each([path, path])),
        "member": lambda: read_range(path, 0, 100_000),
        "cache fill": lambda: hash_file(path),
        "table": lambda: copy_here(path, folder / "table"),
        "source copy": copy,
    }


READS = ("index", "markers", "member", "cache fill", "table", "source copy")


@pytest.mark.parametrize("kind", ["s3", "http", "plain"])
@pytest.mark.parametrize("read", ["index", "member", "source copy"])
def test_an_answer_that_trickles_is_given_up(kind: str, read: str, tmp_path: Path) -> None:
    with scripted_server(_trickle) as server:
        path = _path(f"{server.url}/x") if kind == "plain" else _store(kind, server.url)
        with pytest.raises(StoreError, match="no answer, or less than 32768 bytes, in 1 s, [2-9] tries in [1-9] s"):
            _slow_reads(path, tmp_path)[read]()


def test_a_listing_that_trickles_is_given_up() -> None:
    with scripted_server(lambda _: Answer(body=bytes(1000), seconds_a_byte=0.1)) as server:
        folder = _store("s3", server.url).parent
        for call in (list_names, remote.list_tree):
            with pytest.raises(StoreError, match="no answer"):
                call(folder)


class _Stop(BaseException):
    pass


@pytest.mark.parametrize("read", READS)
def test_a_signal_ends_a_slow_read(read: str, tmp_path: Path) -> None:
    set_options(["give_up=300", "read_timeout=100"])

    def stop(*_: object) -> None:
        raise _Stop

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with scripted_server(_trickle) as server:
            call = _slow_reads(_store("s3", server.url), tmp_path)[read]
            threading.Thread(target=_terminate_after, args=(server,), daemon=True).start()
            with pytest.raises(_Stop):
                call()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]
    assert not list(tmp_path.glob("*copy*"))


def _terminate_after(server: ScriptedServer) -> None:
    """Once a body is on its way."""
    while not any(request.method == "GET" for request in server.requests):
        time.sleep(0.01)
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_while_a_file_of_many_is_used_ends_the_reads_of_the_others() -> None:
    set_options(["give_up=300", "read_timeout=100"])
    with scripted_server(
        lambda request: Answer(body=b"1") if request.path == "/first" else _trickle(request)
    ) as server:
        paths = [_path(f"{server.url}/first"), *[_path(f"{server.url}/{number}") for number in range(20)]]
        with pytest.raises(_Stop), contextlib.closing(read_each(paths)) as files:  # type: ignore[type-var]
            for _ in files:
                raise _Stop


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
            CALLS[call](_store("s3", server.url))
        assert len(server.requests) <= 2


def test_another_bad_request_is_not_taken_for_a_wrong_region() -> None:
    bad = Answer(400, b"<Code>InvalidArgument</Code>")
    with scripted_server(lambda _: bad) as server, pytest.raises(DataError, match="status 400, InvalidArgument"):
        read_bytes(_store("s3", server.url))


@pytest.mark.parametrize("kind", ["s3", "az", "http"])
def test_the_first_retry_of_an_endpoint_that_refuses_is_told(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    with scripted_server(lambda _: Answer()) as server:
        url = server.url
    path = _store(kind, url)
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
        path = _path(f"{server.url}/x")
        reads = (read_bytes, lambda path: read_range(path, 0, 3), lambda path: copy_here(path, tmp_path / "x"))
        for read in reads[1:2] if "Content-Range" in headers else reads:
            with pytest.raises(VmaeError) as caught:
                read(path)
            assert "\n" not in str(caught.value)


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
        folder = _path("s3://bucket/set")
        assert list_names(folder) == {"a": 3, "empty": 0, "price_$folder$": 1}
        assert remote.list_tree(folder) == {"a": 3, "empty": 0, "price_$folder$": 1, "sub/b": 1, "sub/c/d": 0}


def test_what_is_kept_of_a_bucket_differs_between_servers_and_accounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path))
    url = "s3://bucket/set"
    assert path_digest(_path(url)) == hashlib.sha256(url.encode()).hexdigest()
    digests = {path_digest(_path(url))}
    with contextlib.ExitStack() as stack:
        for endpoint in ("http://host:9000", "http://host:9001", "https://host"):
            set_options([f"endpoint={endpoint}"])
            digests.add(path_digest(_path(url)))
            workspace = workspace_of(_path(url))
            stack.enter_context(workspace.locked("build"))  # at the same time as the builds on the other servers
            set_options([f"endpoint={endpoint}/"])
            assert workspace_of(_path(url)) == workspace
            with pytest.raises(VmaeError, match="another build"), workspace.locked("build"):
                pass
    monkeypatch.setenv(VARIABLE, "{}")
    for settings in (["endpoint=http://host:10000"], [], ["use_emulator=true"]):
        monkeypatch.setenv(VARIABLE, "{}")
        for account in ("one", "two"):
            set_options([f"account_name={account}", *settings])
            digests.add(path_digest(_path("az://bucket/set")))
    monkeypatch.setenv("AZURITE_BLOB_STORAGE_URL", "http://host:10001")
    digests.add(path_digest(_path("az://bucket/set")))
    assert len(digests) == 4 + 6 + 1


def test_a_size_in_a_listing_has_bounds() -> None:
    with _listing(("set/a", (1 << 64) - 1)):
        for call in (list_names, remote.list_tree):
            with pytest.raises(DataError, match="states a size of 18446744073709551615 bytes"):
                call(_path("s3://bucket/set"))


def test_a_client_is_opened_again_when_the_environment_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with scripted_server(lambda _: Answer(body=b"abc")) as server:
        set_options([f"endpoint={server.url}", "region=us-east-1"])
        for name in ("FIRST", "SECOND"):
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", name)
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
            read_bytes(_path("s3://bucket/x"))
            assert name in server.requests[-1].headers["authorization"]
        assert client_of(_path("s3://bucket/x")) is client_of(_path("s3://bucket/y"))


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
        assert read_bytes(_path("az://box/x")) == b"abc"
        assert server.requests[-1].path == "/acc/box/x"
        assert server.requests[-1].headers["authorization"].startswith("SharedKey acc:")
        signed = f"BlobEndpoint={server.url}/acc;AccountName=acc;SharedAccessSignature=?sv=1&sig=abc"
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", signed)
        assert read_bytes(_path("az://box/x")) == b"abc" and "sig=abc" in server.requests[-1].path
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
