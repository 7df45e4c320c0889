"""A proxy with faults before any HTTP store: in a thread for tests, as a process for benchmarks, or by hand.

    python -m tools.soak.faults.proxy --to http://127.0.0.1:8333 --faults '{"faults": [{"kind": "cut", "share": 0.1}]}'

It prints its address as one line; the client is given that as its endpoint. Host header, signature and body pass
through untouched. What it saw is printed as JSON when it is interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from tools.soak.faults.network import Faults, Seen
from tools.soak.faults.relay import Relay

__all__ = ["Proxy", "proxy_process", "proxy_thread"]

_ROOT = Path(__file__).parents[3]
_SECONDS = 60  # a start, an answer, an end takes no longer, on a machine with no time either


class Proxy(Protocol):
    """A running proxy: `url` takes the place of the store's endpoint."""

    url: str

    def seen(self) -> Seen:
        """All that has happened by now."""

    def change(self, faults: Faults) -> None:
        """Other faults from now on."""


class _ThreadProxy:
    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self.url = f"http://127.0.0.1:{relay.port}"
        self._relay, self._loop = relay, loop

    def seen(self) -> Seen:
        async def look() -> Seen:
            return self._relay.seen()

        return asyncio.run_coroutine_threadsafe(look(), self._loop).result(_SECONDS)

    def change(self, faults: Faults) -> None:
        asyncio.run_coroutine_threadsafe(self._relay.change(faults), self._loop).result(_SECONDS)


@contextlib.contextmanager
def proxy_thread(store: str, faults: Faults | None = None) -> Iterator[Proxy]:
    """A proxy before `store` (http://host:port) in a thread of this process."""
    loop = asyncio.new_event_loop()
    relay = Relay(*_address(store), faults or Faults())
    thread = threading.Thread(target=loop.run_forever, name="fault proxy", daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(relay.start(), loop).result(_SECONDS)
        yield _ThreadProxy(relay, loop)
    finally:
        asyncio.run_coroutine_threadsafe(relay.stop(), loop).result(_SECONDS)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_SECONDS)
        loop.close()


class _ProcessProxy:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.url = self._line().decode()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the fault proxy ended with status {self._process.wait()}; see its stderr above")
        return line.strip()

    def _ask(self, line: bytes) -> bytes:
        assert self._process.stdin is not None
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()
        return self._line()

    def seen(self) -> Seen:
        return msgspec.json.decode(self._ask(b"seen"), type=Seen)

    def change(self, faults: Faults) -> None:
        self._ask(msgspec.json.encode(faults))


@contextlib.contextmanager
def proxy_process(store: str, faults: Faults | None = None) -> Iterator[Proxy]:
    """The same in a process of its own, which ends when this one does, whatever ends it (its stdin closes)."""
    command = [sys.executable, "-m", "tools.soak.faults.proxy", "--to", store, "--obey-stdin"]
    command += ["--faults", msgspec.json.encode(faults or Faults()).decode()]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=_ROOT)
    try:
        yield _ProcessProxy(process)
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        try:
            process.wait(_SECONDS)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _address(store: str) -> tuple[str, int]:
    parts = urlsplit(store)
    if parts.scheme != "http" or not parts.hostname or parts.path.strip("/"):
        raise ValueError(f"{store}: the proxy stands before http://HOST:PORT")
    return parts.hostname, parts.port or 80


async def _obey(relay: Relay) -> None:
    """Lines of stdin: `seen`, or other faults as JSON. Ends with stdin."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).strip():
        if line == b"seen":
            answer = msgspec.json.encode(relay.seen()).decode()
        else:
            await relay.change(msgspec.json.decode(line, type=Faults))
            answer = "changed"
        print(answer, flush=True)


async def _serve(store: str, port: int, faults: Faults, obeys: bool) -> None:
    relay = Relay(*_address(store), faults)
    await relay.start(port)
    print(f"http://127.0.0.1:{relay.port}", flush=True)
    try:
        if obeys:
            await _obey(relay)
        else:
            await asyncio.Event().wait()
    finally:
        if not obeys:
            print(msgspec.json.encode(relay.seen()).decode(), flush=True)
        await relay.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", required=True, metavar="URL", help="the store: http://HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="own port on 127.0.0.1 (default: a free one)")
    parser.add_argument(
        "--faults", default="{}", metavar="JSON|FILE", help="faults, fields as in tools/soak/faults/network.py"
    )
    parser.add_argument(
        "--obey-stdin", action="store_true", help="end with stdin; its lines are `seen` or other faults"
    )
    given = parser.parse_args()
    text = given.faults if given.faults.lstrip().startswith("{") else Path(given.faults).read_text()
    try:
        faults = msgspec.json.decode(text, type=Faults)
        _address(given.to)
    except (msgspec.DecodeError, ValueError) as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(given.to, given.port, faults, given.obey_stdin))


if __name__ == "__main__":
    main()
