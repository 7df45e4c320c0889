"""The fault proxy in front of a plain server with ranges: clients get the requested faults, and they are counted."""

from __future__ import annotations

import gc
import http.client
import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from tools.soak.faults.network import Fault, Faults, Kind, choose
from tools.soak.faults.proxy import Proxy, proxy_process, proxy_thread

BODY = bytes(range(256)) * 4000


class _Store(http.server.BaseHTTPRequestHandler):
    """Serves BODY, completely, by range or in chunks. Answers an upload with its length."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/chunked":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for start in range(0, len(BODY), 100_000):
                piece = BODY[start : start + 100_000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        span = self.headers.get("Range")
        first, last = map(int, span.removeprefix("bytes=").split("-")) if span else (0, len(BODY) - 1)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("X-Host", self.headers["Host"])
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(BODY[first : last + 1])

    do_HEAD = do_GET

    def do_PUT(self) -> None:
        answer = str(len(self.rfile.read(int(self.headers["Content-Length"])))).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the fault that a test requested
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """Print nothing in tests."""


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Client:
    """One connection that is kept open."""

    def __init__(self, proxy: Proxy) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def request(
        self, method: str = "GET", path: str = "/a", body: bytes | None = None, **fields: str
    ) -> tuple[int, bytes]:
        self.connection.request(method, path, body, fields)
        response = self.connection.getresponse()
        return response.status, response.read()


def fault_of(kind: Kind, most: int | None = 1, after_bytes: int | None = None, seconds: float = 0.0) -> Faults:
    return Faults(faults=(Fault(kind=kind, most=most, after_bytes=after_bytes, seconds=seconds),))


def test_without_faults_requests_pass_on_one_connection_and_are_counted(store: str) -> None:
    with proxy_thread(store) as proxy, Client(proxy) as client:
        assert client.request() == (200, BODY)
        assert client.request(Range="bytes=5-1004") == (206, BODY[5:1005])
        assert client.request("HEAD") == (200, b"")
        assert client.request(path="/chunked") == (200, BODY)
        assert client.request("PUT", body=b"x" * 700_000) == (200, b"700000")
        client.connection.request("GET", "/a", headers={"Host": "bucket.example"})
        response = client.connection.getresponse()
        assert response.read() == BODY and response.headers["X-Host"] == "bucket.example"
        seen = proxy.seen()
    assert [(exchange.method, exchange.range, exchange.status) for exchange in seen.exchanges[:3]] == [
        ("GET", None, 200),
        ("GET", "bytes=5-1004", 206),
        ("HEAD", None, 200),
    ]
    assert seen.connections == 1 and not seen.faults
    assert seen.bytes_up == 700_000
    assert 3 * len(BODY) + 1000 <= seen.bytes_down < 3 * len(BODY) + 2000  # a chunked body's framing counts


def test_the_same_seed_refuses_the_same_share_of_requests(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.STATUS, share=0.3, status=429, retry_after_seconds=7),), seed=3)
    answers = []
    for _ in range(2):
        with proxy_thread(store, faults) as proxy, Client(proxy) as client:
            answers.append([client.request("HEAD")[0] for _ in range(60)])
            assert proxy.seen().faults == {Kind.STATUS: answers[-1].count(429)}
            assert proxy.seen().count("HEAD", 429) == answers[-1].count(429)
    assert answers[0] == answers[1]
    assert 8 <= answers[0].count(429) <= 30


def test_a_refusal_has_the_retry_after_header(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.STATUS, retry_after_seconds=7),))
    with proxy_thread(store, faults) as proxy, Client(proxy) as client:
        client.connection.request("GET", "/a")
        response = client.connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
        assert b"SlowDown" in response.read()


def test_a_cut_resets_the_connection_in_the_middle_of_the_body(store: str) -> None:
    with proxy_thread(store, fault_of(Kind.CUT, after_bytes=400_000)) as proxy:
        with Client(proxy) as client, pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            client.request()
        with Client(proxy) as client:
            assert client.request() == (200, BODY)
        assert proxy.seen().faults == {Kind.CUT: 1}


def test_a_truncated_body_is_shorter_than_its_content_length(store: str) -> None:
    with (
        proxy_thread(store, fault_of(Kind.TRUNCATE, after_bytes=400_000)) as proxy,
        Client(proxy) as client,
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        client.request()
    assert caught.value.partial == BODY[:400_000]


def test_a_shortened_body_looks_complete(store: str) -> None:
    with proxy_thread(store, fault_of(Kind.SHORTEN, after_bytes=400_000)) as proxy, Client(proxy) as client:
        assert client.request() == (200, BODY[:400_000])
        assert client.request() == (200, BODY)


@pytest.mark.parametrize("after_bytes", [None, 300_000])
def test_one_byte_of_a_corrupted_body_is_changed(store: str, after_bytes: int | None) -> None:
    with proxy_thread(store, fault_of(Kind.CORRUPT, after_bytes=after_bytes)) as proxy, Client(proxy) as client:
        _, body = client.request()
    wrong = [index for index, (found, right) in enumerate(zip(body, BODY, strict=True)) if found != right]
    assert len(wrong) == 1 and wrong[0] == (after_bytes or wrong[0])


@pytest.mark.parametrize("after_bytes", [None, 300_000])
def test_a_stall_delays_the_body_and_changes_nothing(store: str, after_bytes: int | None) -> None:
    with (
        proxy_thread(store, fault_of(Kind.STALL, after_bytes=after_bytes, seconds=0.4)) as proxy,
        Client(proxy) as client,
    ):
        started_at = time.monotonic()
        assert client.request() == (200, BODY)
        assert time.monotonic() - started_at >= 0.4


def test_an_expired_token_stays_expired(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.EXPIRED, first=3),))
    with proxy_thread(store, faults) as proxy, Client(proxy) as client:
        assert [client.request()[0] for _ in range(5)] == [200, 200, 403, 403, 403]
        assert b"ExpiredToken" in client.request()[1]


def test_a_lost_answer_never_reaches_the_client(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.LOSE, most=1),), methods=("PUT",))
    with proxy_thread(store, faults) as proxy:
        with Client(proxy) as client, pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.request("PUT", body=b"x")
        assert [(exchange.status, exchange.fault) for exchange in proxy.seen().exchanges] == [(0, Kind.LOSE)]


def test_uploads_get_faults_only_if_their_method_is_listed(store: str) -> None:
    fault = Fault(kind=Kind.CUT, after_bytes=100_000)
    with proxy_thread(store, Faults(faults=(fault,))) as proxy, Client(proxy) as client:
        assert client.request("PUT", body=b"x" * 900_000)[0] == 200
        proxy.change(Faults(faults=(fault,), methods=("PUT",)))
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.request("PUT", body=b"x" * 900_000)


def test_a_store_that_is_down_refuses_connections_until_it_is_up(store: str) -> None:
    with proxy_thread(store) as proxy:
        address = urlsplit(proxy.url)
        proxy.change(Faults(down_seconds=60))
        until = time.monotonic() + 10
        with pytest.raises(ConnectionRefusedError):
            while time.monotonic() < until:
                socket.create_connection((address.hostname, address.port)).close()
                time.sleep(0.01)
        proxy.change(Faults())
        with Client(proxy) as client:
            assert client.request() == (200, BODY)


def test_a_proxy_that_ends_while_clients_connect_leaves_no_socket_open(store: str) -> None:
    # An open socket is a ResourceWarning when it is collected, and warnings are errors here.
    for _ in range(20):
        clients = []
        with proxy_thread(store) as proxy:
            for number in range(12):
                clients.append(socket.create_connection(("127.0.0.1", urlsplit(proxy.url).port or 0)))
                if number % 2:
                    clients[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        for client in clients:
            client.close()
        gc.collect()


def test_all_connections_share_the_limit_of_bytes_per_second(store: str) -> None:
    with proxy_thread(store, Faults(bytes_per_second=4 * len(BODY))) as proxy:
        started_at = time.monotonic()
        threads = [threading.Thread(target=_fetch, args=(proxy,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started_at >= 0.95
        assert proxy.seen().bytes_down == 4 * len(BODY)


def _fetch(proxy: Proxy) -> None:
    with Client(proxy) as client:
        client.request()


def test_a_proxy_in_a_child_process_adds_latency_and_faults(store: str) -> None:
    with proxy_process(store, Faults(latency_seconds=0.2)) as proxy, Client(proxy) as client:
        started_at = time.monotonic()
        assert client.request() == (200, BODY)
        assert time.monotonic() - started_at >= 0.2
        proxy.change(fault_of(Kind.CORRUPT))
        assert client.request()[1] != BODY
        assert proxy.seen().faults == {Kind.CORRUPT: 1}


def test_the_choice_of_a_fault_is_a_pure_function() -> None:
    faults = Faults(faults=(Fault(kind=Kind.CUT, first=2, most=1), Fault(kind=Kind.STATUS)), path_part="shard")
    assert choose(faults, 1, "GET", "/shard-0", (0, 0)) == 1
    assert choose(faults, 2, "GET", "/shard-0", (0, 0)) == 0
    assert choose(faults, 2, "HEAD", "/shard-0", (0, 0)) == 1  # a HEAD has no body to cut
    assert choose(faults, 3, "GET", "/shard-0", (1, 0)) == 1
    assert choose(faults, 3, "GET", "/index", (1, 0)) is None
    assert choose(faults, 3, "PUT", "/shard-0", (1, 0)) is None


def test_impossible_faults_are_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="between 0 and 1"):
        msgspec.json.decode(b'{"faults": [{"kind": "cut", "share": 2}]}', type=Faults)
    with pytest.raises(ValueError, match="seconds"):
        Fault(kind=Kind.STALL)
    command = [
        sys.executable,
        "-m",
        "tools.soak.faults.proxy",
        "--to",
        "http://127.0.0.1:1",
        "--faults",
        '{"fault": []}',
    ]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2 and "unknown field `fault`" in done.stderr
