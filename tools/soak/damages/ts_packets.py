"""The packets of an MPEG transport stream: add a descriptor to its table of streams."""

from __future__ import annotations

__all__ = ["with_stream_descriptor"]

_PACKET, _HEADER = 188, 5  # bytes; the header with the pointer to the section
_STREAMS_PID = 0x1000  # where ffmpeg writes the table
_CRC = 4


def with_stream_descriptor(data: bytes, tag: int, content: bytes) -> bytes:
    """The stream with one more descriptor of its last track. Its table must fit into a packet, as ffmpeg's does."""
    packets = [data[start : start + _PACKET] for start in range(0, len(data), _PACKET)]
    return b"".join(_described(packet, bytes((tag, len(content))) + content) for packet in packets)


def _described(packet: bytes, descriptor: bytes) -> bytes:
    if int.from_bytes(packet[1:3], "big") & 0x1FFF != _STREAMS_PID:
        return packet
    length = int.from_bytes(packet[_HEADER + 1 : _HEADER + 3], "big") & 0xFFF
    section = bytearray(packet[_HEADER : _HEADER + 3 + length - _CRC])
    start = 12 + (int.from_bytes(section[10:12], "big") & 0xFFF)  # of the tracks
    while start + 5 + (size := int.from_bytes(section[start + 3 : start + 5], "big") & 0xFFF) < len(section):
        start += 5 + size
    section[start + 3 : start + 5] = (0xF000 | size + len(descriptor)).to_bytes(2, "big")
    section += descriptor
    section[1:3] = (0xB000 | length + len(descriptor)).to_bytes(2, "big")
    whole = packet[:_HEADER] + section + _crc(section).to_bytes(_CRC, "big")
    return whole.ljust(_PACKET, b"\xff")


def _crc(data: bytes | bytearray) -> int:
    """CRC-32 of MPEG-2, which reflects nothing."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return crc
