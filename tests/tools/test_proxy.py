"""The fault proxy against a plain server with ranges: what a client meets is what was asked for, and is counted."""

from __future__ import annotations

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
    """Gives BODY, whole, by range or in chunks; takes uploads and says how long they were."""

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
        given = self.headers.get("Range")
        first, last = map(int, given.removeprefix("bytes=").split("-")) if given else (0, len(BODY) - 1)
        self.send_response(206 if given else 200)
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
        except ConnectionError:  # a fault of ours
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:
        """A test's output is not the place."""


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


class Client:
    """One connection, kept."""

    def __init__(self, proxy: Proxy) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(proxy.url).netloc, timeout=20)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str = "GET", path: str = "/a", body: bytes | None = None, **fields: str) -> tuple[int, bytes]:
        self.connection.request(method, path, body, fields)
        response = self.connection.getresponse()
        return response.status, response.read()


def one(kind: Kind, most: int | None = 1, after_bytes: int | None = None, seconds: float = 0.0) -> Faults:
    return Faults(faults=(Fault(kind=kind, most=most, after_bytes=after_bytes, seconds=seconds),))


def test_without_faults_all_passes_through_on_one_connection_and_is_counted(store: str) -> None:
    with proxy_thread(store) as proxy, Client(proxy) as client:
        assert client.ask() == (200, BODY)
        assert client.ask(Range="bytes=5-1004") == (206, BODY[5:1005])
        assert client.ask("HEAD") == (200, b"")
        assert client.ask(path="/chunked") == (200, BODY)
        assert client.ask("PUT", body=b"x" * 700_000) == (200, b"700000")
        client.connection.request("GET", "/a", headers={"Host": "bucket.example"})
        response = client.connection.getresponse()
        assert response.read() == BODY and response.headers["X-Host"] == "bucket.example"
        seen = proxy.seen()
    assert [(each.method, each.range, each.status) for each in seen.exchanges[:3]] == [
        ("GET", None, 200),
        ("GET", "bytes=5-1004", 206),
        ("HEAD", None, 200),
    ]
    assert seen.connections == 1 and not seen.faults
    assert seen.bytes_up == 700_000
    assert 3 * len(BODY) + 1000 <= seen.bytes_down < 3 * len(BODY) + 2000  # a chunked body's framing counts


def test_a_share_of_requests_is_refused_the_same_for_the_same_seed(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.STATUS, share=0.3, status=429, retry_after_seconds=7),), seed=3)
    answers = []
    for _ in range(2):
        with proxy_thread(store, faults) as proxy, Client(proxy) as client:
            answers.append([client.ask("HEAD")[0] for _ in range(60)])
            assert proxy.seen().faults == {Kind.STATUS: answers[-1].count(429)}
            assert proxy.seen().count("HEAD", 429) == answers[-1].count(429)
    assert answers[0] == answers[1]
    assert 8 <= answers[0].count(429) <= 30


def test_an_answer_says_when_to_come_again(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.STATUS, retry_after_seconds=7),))
    with proxy_thread(store, faults) as proxy, Client(proxy) as client:
        client.connection.request("GET", "/a")
        response = client.connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "7")
        assert b"SlowDown" in response.read()


def test_a_cut_resets_the_connection_in_the_middle_of_the_body(store: str) -> None:
    with proxy_thread(store, one(Kind.CUT, after_bytes=400_000)) as proxy:
        with Client(proxy) as client, pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            client.ask()
        with Client(proxy) as client:
            assert client.ask() == (200, BODY)
        assert proxy.seen().faults == {Kind.CUT: 1}


def test_a_truncated_body_promises_more_than_it_gives(store: str) -> None:
    with (
        proxy_thread(store, one(Kind.TRUNCATE, after_bytes=400_000)) as proxy,
        Client(proxy) as client,
        pytest.raises(http.client.IncompleteRead) as caught,
    ):
        client.ask()
    assert caught.value.partial == BODY[:400_000]


def test_a_shortened_body_looks_whole(store: str) -> None:
    with proxy_thread(store, one(Kind.SHORTEN, after_bytes=400_000)) as proxy, Client(proxy) as client:
        assert client.ask() == (200, BODY[:400_000])
        assert client.ask() == (200, BODY)


@pytest.mark.parametrize("after_bytes", [None, 300_000])
def test_one_byte_of_a_corrupted_body_is_another(store: str, after_bytes: int | None) -> None:
    with proxy_thread(store, one(Kind.CORRUPT, after_bytes=after_bytes)) as proxy, Client(proxy) as client:
        _, body = client.ask()
    wrong = [place for place, (found, right) in enumerate(zip(body, BODY, strict=True)) if found != right]
    assert len(wrong) == 1 and wrong[0] == (after_bytes or wrong[0])


@pytest.mark.parametrize("after_bytes", [None, 300_000])
def test_a_stall_is_silence_and_then_the_whole_body(store: str, after_bytes: int | None) -> None:
    with proxy_thread(store, one(Kind.STALL, after_bytes=after_bytes, seconds=0.4)) as proxy, Client(proxy) as client:
        began = time.monotonic()
        assert client.ask() == (200, BODY)
        assert time.monotonic() - began >= 0.4


def test_a_token_expires_at_a_request_and_stays_so(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.EXPIRED, first=3),))
    with proxy_thread(store, faults) as proxy, Client(proxy) as client:
        assert [client.ask()[0] for _ in range(5)] == [200, 200, 403, 403, 403]
        assert b"ExpiredToken" in client.ask()[1]


def test_a_lost_answer_is_no_answer(store: str) -> None:
    faults = Faults(faults=(Fault(kind=Kind.LOSE, most=1),), methods=("PUT",))
    with proxy_thread(store, faults) as proxy:
        with Client(proxy) as client, pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.ask("PUT", body=b"x")
        assert [(each.status, each.fault) for each in proxy.seen().exchanges] == [(0, Kind.LOSE)]


def test_uploads_meet_faults_only_where_that_is_said(store: str) -> None:
    fault = Fault(kind=Kind.CUT, after_bytes=100_000)
    with proxy_thread(store, Faults(faults=(fault,))) as proxy, Client(proxy) as client:
        assert client.ask("PUT", body=b"x" * 900_000)[0] == 200
        proxy.change(Faults(faults=(fault,), methods=("PUT",)))
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            client.ask("PUT", body=b"x" * 900_000)


def test_a_store_that_is_down_refuses_and_comes_back(store: str) -> None:
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
            assert client.ask() == (200, BODY)


def test_the_limit_of_bytes_a_second_holds_for_all_connections_together(store: str) -> None:
    with proxy_thread(store, Faults(bytes_per_second=4 * len(BODY))) as proxy:
        began = time.monotonic()
        threads = [threading.Thread(target=_fetch, args=(proxy,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 0.95 <= time.monotonic() - began < 5
        assert proxy.seen().bytes_down == 4 * len(BODY)


def _fetch(proxy: Proxy) -> None:
    with Client(proxy) as client:
        client.ask()


def test_the_same_in_a_process_of_its_own_with_latency(store: str) -> None:
    with proxy_process(store, Faults(latency_seconds=0.2)) as proxy, Client(proxy) as client:
        began = time.monotonic()
        assert client.ask() == (200, BODY)
        assert time.monotonic() - began >= 0.2
        proxy.change(one(Kind.CORRUPT))
        assert client.ask()[1] != BODY
        assert proxy.seen().faults == {Kind.CORRUPT: 1}


def test_which_requests_meet_a_fault_is_a_pure_choice() -> None:
    faults = Faults(faults=(Fault(kind=Kind.CUT, first=2, most=1), Fault(kind=Kind.STATUS)), path_part="shard")
    assert choose(faults, 1, "GET", "/shard-0", (0, 0)) == 1
    assert choose(faults, 2, "GET", "/shard-0", (0, 0)) == 0
    assert choose(faults, 2, "HEAD", "/shard-0", (0, 0)) == 1  # a HEAD has no body to cut
    assert choose(faults, 3, "GET", "/shard-0", (1, 0)) == 1
    assert choose(faults, 3, "GET", "/index", (1, 0)) is None
    assert choose(faults, 3, "PUT", "/shard-0", (1, 0)) is None


def test_faults_that_make_no_sense_are_refused() -> None:
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
