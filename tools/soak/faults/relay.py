"""HTTP/1.1 from a client to a store and back, byte for byte, with the faults of `network` on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from tools.soak.faults.network import Exchange, Fault, Faults, Kind, Seen, choose, draw
from tools.soak.faults.wire import PIECE, TO_END, HangUpError, Head, Peer, Piece, pieces, read_head

__all__ = ["Relay"]

_SLACK_SECONDS = 0.05  # a sleep that was too long is made up for; without it 100 MB/s come to 64
_WORDS = {429: "TooManyRequests", 500: "InternalError", 503: "SlowDown"}


class _Record:
    """A request, and what its client has been told by now."""

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
    """A server on one loopback port. Lives in one event loop."""

    def __init__(self, host: str, port: int, faults: Faults) -> None:
        self._host, self._to_port = host, port
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._peers: set[Peer] = set()
        self._outage: asyncio.Task[None] | None = None
        self._free_at = 0.0
        self._number = 0
        self._records: list[_Record] = []
        self._happened: dict[Kind, int] = {}
        self._connections = self._bytes_up = self._bytes_down = 0
        self._faults, self._met = faults, [0] * len(faults.faults)

    async def start(self, port: int = 0) -> None:
        await self._listen(port)
        await self.change(self._faults)

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=2 * PIECE)
        self.port = self._server.sockets[0].getsockname()[1]

    async def change(self, faults: Faults) -> None:
        """Other faults from now on; numbers of requests and counts go on."""
        self._faults, self._met = faults, [0] * len(faults.faults)
        if self._outage is not None:
            self._outage.cancel()
            self._outage = None
        if self._server is None:
            await self._listen(self.port)
        if faults.down_seconds:
            self._outage = asyncio.create_task(self._go_down(faults.down_from_seconds, faults.down_seconds))

    async def _go_down(self, begin: float, seconds: float) -> None:
        await asyncio.sleep(begin)
        self._close()
        await asyncio.sleep(seconds)
        await self._listen(self.port)

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        if self._outage is not None:
            self._outage.cancel()
        self._close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)  # aborted transports close their sockets in the loop's next turn

    def seen(self) -> Seen:
        exchanges = tuple(Exchange(one.method, one.path, one.range, one.status, one.fault) for one in self._records)
        return Seen(exchanges, dict(self._happened), self._connections, self._bytes_up, self._bytes_down)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._serve(Peer(reader, writer)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, client: Peer) -> None:
        self._connections += 1
        connection = _Connection(self, client)
        client.writer.transport.set_write_buffer_limits(
            0
        )  # what was passed on has been sent, before a reset drops the rest
        try:
            while True:
                await connection.exchange()
        except (HangUpError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            client.writer.close()
        except asyncio.CancelledError:
            client.reset()
            raise
        finally:
            connection.hang_up()

    async def pace(self, size: int) -> None:
        """Wait until `size` bytes more fit under the limit."""
        if self._faults.bytes_per_second is None:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(now - _SLACK_SECONDS, self._free_at) + size / self._faults.bytes_per_second
        await asyncio.sleep(max(0, self._free_at - now))

    async def down(self, client: Peer, data: bytes) -> None:
        """Bytes of a body to the client."""
        await self.pace(len(data))
        await client.flush(data)
        self._bytes_down += len(data)

    async def up(self, store: Peer | None, data: bytes) -> None:
        """Bytes of a body to the store, or to nobody."""
        await self.pace(len(data))
        if store is not None:
            await store.flush(data)
        self._bytes_up += len(data)

    async def connect(self) -> Peer:
        return Peer(*await asyncio.open_connection(self._host, self._to_port, limit=2 * PIECE))

    def meet(self, method: str, path: str) -> _Met:
        """Number the request and choose its fault."""
        self._number += 1
        place = choose(self._faults, self._number, method, path, self._met)
        if place is None:
            return _Met(self._number, self._faults.latency_seconds, self._faults.seed, None)
        self._met[place] += 1
        return _Met(self._number, self._faults.latency_seconds, self._faults.seed, self._faults.faults[place])

    def happened(self, fault: Fault) -> None:
        self._happened[fault.kind] = self._happened.get(fault.kind, 0) + 1

    def record(self, head: Head) -> _Record:
        record = _Record(head.words[0], head.words[1], head.fields.get("range"))
        self._records.append(record)
        return record


class _Met(NamedTuple):
    """A request's number and what it meets."""

    number: int
    latency_seconds: float
    seed: int
    fault: Fault | None

    def position(self, length: int) -> int:
        """Where in a body of so many bytes (below 0: unknown) the fault is."""
        assert self.fault is not None
        given = self.fault.after_bytes
        if length < 0:
            return given or 0
        if given is not None and given < length:
            return given
        return int(draw(self.seed, self.number, "byte") * length) if self.fault.kind is Kind.CORRUPT else length // 2


class _Connection:
    """One client's connection, and the store's that belongs to it."""

    def __init__(self, relay: Relay, client: Peer) -> None:
        self.relay, self.client = relay, client
        self.store: Peer | None = None

    def hang_up(self) -> None:
        if self.store is not None:
            self.store.writer.transport.abort()
            self.store = None

    async def exchange(self) -> None:
        head = await read_head(self.client.reader)
        told = self.relay.record(head)
        await self._answer(head, self.relay.meet(told.method, told.path), told)
        if head.fields.get("connection", "").lower() == "close":
            raise HangUpError

    async def _answer(self, head: Head, met: _Met, told: _Record) -> None:
        await asyncio.sleep(met.latency_seconds)
        fault = met.fault
        if fault is not None and fault.kind in (Kind.STATUS, Kind.EXPIRED):
            await self._refuse(head, fault, told)
            return
        if fault is not None and fault.kind is Kind.STALL and fault.after_bytes is None:
            self._happens(fault, told)
            await asyncio.sleep(fault.seconds)
        if self.store is None or self.store.reader.at_eof():
            self.hang_up()
            self.store = await self.relay.connect()
        # A store may answer before it has read all of an upload, and says 100 in between.
        upload = asyncio.create_task(self._pass_up(self.store, head, met, told))
        try:
            answer = await self._store_head(self.store, upload)
            await self._pass_down(self.store, head, answer, met, told)
            await upload
        finally:
            upload.cancel()

    def _happens(self, fault: Fault, told: _Record) -> None:
        told.fault = fault.kind
        self.relay.happened(fault)

    async def _refuse(self, head: Head, fault: Fault, told: _Record) -> None:
        async for piece in pieces(self.client.reader, head.length or 0):
            await self.relay.up(None, piece.data)
        expired = fault.kind is Kind.EXPIRED
        told.status = 403 if expired else fault.status
        code = "ExpiredToken" if expired else _WORDS.get(fault.status, "Refused")
        self._happens(fault, told)
        await self.client.flush(_refusal(told.status, code, head.words[0], fault.retry_after_seconds))

    async def _pass_up(self, store: Peer, head: Head, met: _Met, told: _Record) -> None:
        store.writer.write(head.raw)
        length, passed = head.length or 0, 0
        cut = met.fault if met.fault is not None and met.fault.kind is Kind.CUT else None
        async for piece in pieces(self.client.reader, length):
            await self.relay.up(store, piece.data)
            passed += len(piece.data)
            if cut is not None and passed > met.position(length):
                self._happens(cut, told)
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

    async def _pass_down(self, store: Peer, head: Head, answer: Head, met: _Met, told: _Record) -> None:
        status = int(answer.words[1])
        empty = head.words[0] == "HEAD" or status in (204, 304)
        length = 0 if empty else TO_END if answer.length is None else answer.length
        fault = met.fault
        body = pieces(store.reader, length)
        if fault is not None and fault.kind is Kind.LOSE:
            async for _ in body:
                pass
            self._happens(fault, told)
            self.client.reset()
            raise HangUpError
        raw = answer.raw
        if fault is not None and fault.kind is Kind.SHORTEN and length > 0:
            old, new = (f"content-length: {size}".encode() for size in (length, met.position(length)))
            raw = raw.replace(raw[(at := raw.lower().index(old)) : at + len(old)], new)
        told.status = status
        await self.client.flush(raw)
        await self._pass_body(body, length, met, told)
        if length == TO_END or "close" in answer.fields.get("connection", "").lower():
            raise HangUpError

    async def _pass_body(self, body: AsyncIterator[Piece], length: int, met: _Met, told: _Record) -> None:
        fault = met.fault
        waits = fault is not None and not (fault.kind is Kind.STALL and fault.after_bytes is None)
        at = met.position(length) if waits and length else 0
        passed = 0
        async for data, is_payload in body:
            if fault is not None and waits and is_payload and passed + len(data) > at:
                waits = False
                data = await self._befall(fault, data, at - passed, told)
            passed += len(data)
            if told.fault is Kind.SHORTEN:
                await self.relay.down(self.client, data[: max(0, at - passed + len(data))])
                continue
            await self.relay.down(self.client, data)

    async def _befall(self, fault: Fault, data: bytes, place: int, told: _Record) -> bytes:
        """The fault at byte `place` of these; gives what is still to be sent."""
        self._happens(fault, told)
        match fault.kind:
            case Kind.CORRUPT:
                return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
            case Kind.STALL:
                await self.relay.down(self.client, data[:place])
                await asyncio.sleep(fault.seconds)
                return data[place:]
            case Kind.CUT | Kind.TRUNCATE:
                await self.relay.down(self.client, data[:place])
                if fault.kind is Kind.CUT:
                    self.client.reset()
                raise HangUpError
            case _:
                return data
