"""A proxy that adds faults in front of an HTTP store: in a thread for tests, in a process for benchmarks, or by hand.

    python -m tools.soak.faults.proxy --to http://127.0.0.1:8333 --faults '{"faults": [{"kind": "cut", "share": 0.1}]}'

It prints its address as one line; set it as the client's endpoint. Host header, signature and body are forwarded
unchanged. When interrupted, it prints what it counted as JSON.
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
_SECONDS = 60  # limit of a start, an answer and an end, also on an overloaded machine


class Proxy(Protocol):
    """A running proxy. `url` replaces the store's endpoint."""

    url: str

    def seen(self) -> Seen:
        """What has happened so far."""

    def change(self, faults: Faults) -> None:
        """Set other faults from now on."""


class _ThreadProxy:
    def __init__(self, relay: Relay, loop: asyncio.AbstractEventLoop) -> None:
        self.url = f"http://127.0.0.1:{relay.port}"
        self._relay, self._loop = relay, loop

    def seen(self) -> Seen:
        async def seen() -> Seen:
            return self._relay.seen()

        return asyncio.run_coroutine_threadsafe(seen(), self._loop).result(_SECONDS)

    def change(self, faults: Faults) -> None:
        asyncio.run_coroutine_threadsafe(self._relay.change(faults), self._loop).result(_SECONDS)


@contextlib.contextmanager
def proxy_thread(store: str, faults: Faults | None = None) -> Iterator[Proxy]:
    """A proxy in front of `store` (http://host:port) in a thread of this process."""
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
    """The same in a child process. It ends with this one, however this one ends, because its stdin closes."""
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
        raise ValueError(f"{store}: expected http://HOST:PORT")
    return parts.hostname, parts.port or 80


async def _obey(relay: Relay) -> None:
    """Follow the lines of stdin: `seen`, or new faults as JSON. Ends with stdin."""
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
    parser.add_argument("--to", required=True, metavar="URL", help="the store, http://HOST:PORT")
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1 [default: a free one]")
    parser.add_argument(
        "--faults",
        default="{}",
        metavar="JSON|FILE",
        help="faults, with the fields of tools/soak/faults/network.py [default: none]",
    )
    parser.add_argument(
        "--obey-stdin", action="store_true", help="read commands from stdin (`seen` or new faults) and end with it"
    )
    options = parser.parse_args()
    text = options.faults if options.faults.lstrip().startswith("{") else Path(options.faults).read_text()
    try:
        faults = msgspec.json.decode(text, type=Faults)
        _address(options.to)
    except (msgspec.DecodeError, ValueError) as error:
        parser.error(str(error))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.to, options.port, faults, options.obey_stdin))


if __name__ == "__main__":
    main()
