"""A store that answers slowly: reads are given up, and signals end them. Each against a scripted server."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scripted_server import FACTS, Answer, Request, ScriptedServer, scripted_server
from tests.scripted_stores import remote_path, scripted_store
from vmae_data.errors import StoreError
from vmae_data.storage import (
    RemotePath,
    copied,
    copy_here,
    hash_file,
    list_names,
    read_bytes,
    read_each,
    read_range,
    remote,
    set_options,
)

pytestmark = pytest.mark.usefixtures("short_limits")


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
        path = remote_path(f"{server.url}/x") if kind == "plain" else scripted_store(kind, server.url)
        with pytest.raises(StoreError, match="no answer, or less than 32768 bytes, in 1 s, [2-9] tries in [1-9] s"):
            _slow_reads(path, tmp_path)[read]()


def test_a_listing_that_trickles_is_given_up() -> None:
    with scripted_server(lambda _: Answer(body=bytes(1000), seconds_a_byte=0.1)) as server:
        folder = scripted_store("s3", server.url).parent
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
            call = _slow_reads(scripted_store("s3", server.url), tmp_path)[read]
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
        paths = [remote_path(f"{server.url}/first"), *[remote_path(f"{server.url}/{number}") for number in range(20)]]
        with pytest.raises(_Stop), contextlib.closing(read_each(paths)) as files:  # type: ignore[type-var]
            for _ in files:
                raise _Stop
