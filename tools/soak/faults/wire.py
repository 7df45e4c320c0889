"""HTTP/1.1 on a connection: heads, and bodies in pieces, as raw bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from typing import NamedTuple

__all__ = ["PIECE", "TO_END", "HangUpError", "Head", "Peer", "Piece", "pieces", "read_head"]

PIECE = 1 << 18  # bytes of one read; large, since each piece costs a benchmark time
_RESET = struct.pack("ii", 1, 0)
TO_END = -1
_CHUNKED = -2


class HangUpError(Exception):
    """The connection has ended."""


class Peer(NamedTuple):
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def reset(self) -> None:
        """Send RST, not FIN, as a lost route or a killed server does."""
        with contextlib.suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.writer.transport.abort()

    async def flush(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


class Head(NamedTuple):
    raw: bytes
    words: list[str]
    fields: dict[str, str]

    @property
    def length(self) -> int | None:
        """Bytes of the body, _CHUNKED, or None if the head does not state it."""
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            return _CHUNKED
        return int(self.fields["content-length"]) if "content-length" in self.fields else None


class Piece(NamedTuple):
    data: bytes
    is_payload: bool


async def read_head(reader: asyncio.StreamReader) -> Head:
    raw = await reader.readuntil(b"\r\n\r\n")
    first, *lines = raw[:-4].decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return Head(raw, first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs})


async def pieces(reader: asyncio.StreamReader, length: int) -> AsyncIterator[Piece]:
    """A body in pieces. The framing of a chunked body is not payload."""
    if length == _CHUNKED:
        size = 1
        while size:
            line = await reader.readuntil(b"\r\n")
            yield Piece(line, False)
            size = int(line.split(b";")[0], 16)
            async for piece in pieces(reader, size):
                yield piece
            yield Piece(await reader.readuntil(b"\r\n"), False)  # stores send no trailers after the last chunk
        return
    while length:
        data = await reader.read(PIECE if length == TO_END else min(length, PIECE))
        if not data:
            if length == TO_END:
                return
            raise HangUpError
        length -= 0 if length == TO_END else len(data)
        yield Piece(data, True)
