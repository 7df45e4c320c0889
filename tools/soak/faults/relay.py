"""HTTP/1.1 between a client and a store, forwarded byte for byte, with the faults of `network`."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

from tools.soak.faults.network import Exchange, Fault, Faults, Kind, Seen, choose, uniform
from tools.soak.faults.wire import PIECE, TO_END, HangUpError, Head, Peer, Piece, pieces, read_head

__all__ = ["Relay"]

_SLACK_SECONDS = 0.05  # compensates sleeps that were too long; without it 100 MB/s become 64
_CODES = {429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


class _Record:
    """A request and its answer so far."""

    def __init__(self, method: str, path: str, range_: str | None) -> None:
        self.method, self.path, self.range = method, path, range_
        self.status = 0
        self.fault: Kind | None = None


def _refusal(status: int, code: str, method: str, retry_after: int | None) -> bytes:
    body = b"" if method == "HEAD" else f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
    later = "" if retry_after is None else f"Retry-After: {retry_after}\r\n"
    head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n{later}\r\n"
    return head.encode() + body


class Relay:
    """A server on one loopback port, in one event loop."""

    def __init__(self, host: str, port: int, faults: Faults) -> None:
        self._host, self._to_port = host, port
        self.port = 0
        self._listener: socket.socket | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._outage: asyncio.Task[None] | None = None
        self._free_at = 0.0
        self._number = 0
        self._records: list[_Record] = []
        self._happened: dict[Kind, int] = {}
        self._connections = self._bytes_up = self._bytes_down = 0
        self._faults, self._met = faults, [0] * len(faults.faults)

    async def start(self, port: int = 0) -> None:
        self._listen(port)
        await self.change(self._faults)

    def _listen(self, port: int) -> None:
        # asyncio.start_server() leaves sockets open that it accepts as it is closed.
        self._listener = socket.create_server(("127.0.0.1", port), backlog=100)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    async def change(self, faults: Faults) -> None:
        """Set other faults from now on. Request numbers and counts continue."""
        self._faults, self._met = faults, [0] * len(faults.faults)
        if self._outage is not None:
            self._outage.cancel()
            self._outage = None
        if self._listener is None:
            self._listen(self.port)
        if faults.down_seconds:
            self._outage = asyncio.create_task(self._go_down(faults.down_from_seconds, faults.down_seconds))

    async def _go_down(self, begin: float, seconds: float) -> None:
        await asyncio.sleep(begin)
        self._close()
        await asyncio.sleep(seconds)
        self._listen(self.port)

    def _close(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        if self._outage is not None:
            self._outage.cancel()
        self._close()
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close their sockets in the loop's next turn

    def seen(self) -> Seen:
        exchanges = tuple(Exchange(one.method, one.path, one.range, one.status, one.fault) for one in self._records)
        return Seen(exchanges, dict(self._happened), self._connections, self._bytes_up, self._bytes_down)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            connection, _ = listener.accept()
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            # A task that is cancelled before it starts runs none of its own clean-up.
            task.add_done_callback(lambda _: connection.close())

    async def _serve(self, accepted: socket.socket) -> None:
        self._connections += 1
        client = Peer(*await asyncio.open_connection(sock=accepted, limit=2 * PIECE))
        connection = _Connection(self, client)
        # Forwarded bytes are sent before a reset drops the rest.
        client.writer.transport.set_write_buffer_limits(0)
        try:
            with contextlib.suppress(HangUpError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                while True:
                    await connection.exchange()
            client.writer.close()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()
        except asyncio.CancelledError:
            client.reset()
            raise
        finally:
            connection.hang_up()

    async def pace(self, size: int) -> None:
        """Wait until the limit allows `size` more bytes."""
        if self._faults.bytes_per_second is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now - _SLACK_SECONDS, self._free_at) + size / self._faults.bytes_per_second
        await asyncio.sleep(max(0, self._free_at - now))

    async def down(self, client: Peer, data: bytes) -> None:
        """Send bytes of a body to the client."""
        await self.pace(len(data))
        await client.flush(data)
        self._bytes_down += len(data)

    async def up(self, store: Peer | None, data: bytes) -> None:
        """Send bytes of a body to the store, or drop them."""
        await self.pace(len(data))
        if store is not None:
            await store.flush(data)
        self._bytes_up += len(data)

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_connection(self._host, self._to_port, limit=2 * PIECE))

    def meet(self, method: str, path: str) -> _Met:
        """Number the request and choose its fault."""
        self._number += 1
        index = choose(self._faults, self._number, method, path, self._met)
        if index is None:
            return _Met(self._number, self._faults.latency_seconds, self._faults.seed, None)
        self._met[index] += 1
        return _Met(self._number, self._faults.latency_seconds, self._faults.seed, self._faults.faults[index])

    def happened(self, fault: Fault) -> None:
        self._happened[fault.kind] = self._happened.get(fault.kind, 0) + 1

    def record(self, head: Head) -> _Record:
        record = _Record(head.words[0], head.words[1], head.fields.get("range"))
        self._records.append(record)
        return record


class _Met(NamedTuple):
    """A request's number and its fault."""

    number: int
    latency_seconds: float
    seed: int
    fault: Fault | None

    def position(self, length: int) -> int:
        """The fault's position in a body of `length` bytes (below 0: unknown)."""
        assert self.fault is not None
        position = self.fault.after_bytes
        if length < 0:
            return position or 0
        if position is not None and position < length:
            return position
        return int(uniform(self.seed, self.number, "byte") * length) if self.fault.kind is Kind.CORRUPT else length // 2


class _Connection:
    """A client's connection and its connection to the store."""

    def __init__(self, relay: Relay, client: Peer) -> None:
        self.relay, self.client = relay, client
        self.store: Peer | None = None

    def hang_up(self) -> None:
        if self.store is not None:
            self.store.writer.transport.abort()
            self.store = None

    async def exchange(self) -> None:
        head = await read_head(self.client.reader)
        record = self.relay.record(head)
        await self._answer(head, self.relay.meet(record.method, record.path), record)
        if head.fields.get("connection", "").lower() == "close":
            raise HangUpError

    async def _answer(self, head: Head, met: _Met, record: _Record) -> None:
        await asyncio.sleep(met.latency_seconds)
        fault = met.fault
        if fault is not None and fault.kind in (Kind.STATUS, Kind.EXPIRED):
            await self._refuse(head, fault, record)
            return
        if fault is not None and fault.kind is Kind.STALL and fault.after_bytes is None:
            self._happens(fault, record)
            await asyncio.sleep(fault.seconds)
        if self.store is None or self.store.reader.at_eof():
            self.hang_up()
            self.store = await self.relay.connect()
        # A store may answer before it has read the complete upload, or send status 100 first.
        upload = asyncio.create_task(self._pass_up(self.store, head, met, record))
        try:
            answer = await self._store_head(self.store, upload)
            await self._pass_down(self.store, head, answer, met, record)
            await upload
        finally:
            upload.cancel()

    def _happens(self, fault: Fault, record: _Record) -> None:
        record.fault = fault.kind
        self.relay.happened(fault)

    async def _refuse(self, head: Head, fault: Fault, record: _Record) -> None:
        async for piece in pieces(self.client.reader, head.length or 0):
            await self.relay.up(None, piece.data)
        expired = fault.kind is Kind.EXPIRED
        record.status = 403 if expired else fault.status
        code = "ExpiredToken" if expired else _CODES.get(fault.status, "Refused")
        self._happens(fault, record)
        await self.client.flush(_refusal(record.status, code, head.words[0], fault.retry_after_seconds))

    async def _pass_up(self, store: Peer, head: Head, met: _Met, record: _Record) -> None:
        store.writer.write(head.raw)
        length, passed = head.length or 0, 0
        cut = met.fault if met.fault is not None and met.fault.kind is Kind.CUT else None
        async for piece in pieces(self.client.reader, length):
            await self.relay.up(store, piece.data)
            passed += len(piece.data)
            if cut is not None and passed > met.position(length):
                self._happens(cut, record)
                self.client.reset()
                raise HangUpError

    async def _store_head(self, store: Peer, upload: asyncio.Task[None]) -> Head:
        reading = asyncio.create_task(read_head(store.reader))
        try:
            while True:
                await asyncio.wait({reading, upload}, return_when=asyncio.FIRST_COMPLETED)
                if upload.done() and upload.exception() is not None:
                    await upload
                answer = await reading
                if not answer.words[1].startswith("1"):
                    return answer
                await self.client.flush(answer.raw)
                reading = asyncio.create_task(read_head(store.reader))
        finally:
            reading.cancel()

    async def _pass_down(self, store: Peer, head: Head, answer: Head, met: _Met, record: _Record) -> None:
        status = int(answer.words[1])
        empty = head.words[0] == "HEAD" or status in (204, 304)
        length = 0 if empty else TO_END if answer.length is None else answer.length
        fault = met.fault
        body = pieces(store.reader, length)
        if fault is not None and fault.kind is Kind.LOSE:
            async for _ in body:
                pass
            self._happens(fault, record)
            self.client.reset()
            raise HangUpError
        raw = answer.raw
        if fault is not None and fault.kind is Kind.SHORTEN and length > 0:
            old, new = (f"content-length: {size}".encode() for size in (length, met.position(length)))
            raw = raw.replace(raw[(at := raw.lower().index(old)) : at + len(old)], new)
        record.status = status
        await self.client.flush(raw)
        await self._pass_body(body, length, met, record)
        if length == TO_END or "close" in answer.fields.get("connection", "").lower():
            raise HangUpError

    async def _pass_body(self, body: AsyncIterator[Piece], length: int, met: _Met, record: _Record) -> None:
        fault = met.fault
        waits = fault is not None and not (fault.kind is Kind.STALL and fault.after_bytes is None)
        at = met.position(length) if waits and length else 0
        passed = 0
        async for data, is_payload in body:
            if fault is not None and waits and is_payload and passed + len(data) > at:
                waits = False
                data = await self._apply(fault, data, at - passed, record)
            passed += len(data)
            if record.fault is Kind.SHORTEN:
                await self.relay.down(self.client, data[: max(0, at - passed + len(data))])
                continue
            await self.relay.down(self.client, data)

    async def _apply(self, fault: Fault, data: bytes, position: int, record: _Record) -> bytes:
        """Apply the fault at byte `position` of `data`. Returns the bytes still to send."""
        self._happens(fault, record)
        match fault.kind:
            case Kind.CORRUPT:
                return data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :]
            case Kind.STALL:
                await self.relay.down(self.client, data[:position])
                await asyncio.sleep(fault.seconds)
                return data[position:]
            case Kind.CUT | Kind.TRUNCATE:
                await self.relay.down(self.client, data[:position])
                if fault.kind is Kind.CUT:
                    self.client.reset()
                raise HangUpError
            case _:
                return data
