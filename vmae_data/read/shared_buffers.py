"""Batch buffers in memory that decode workers and the trainer share, so that no pixel is pickled.

The memory has no name (memfd), so a killed process leaves nothing behind.
"""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["BufferLayout", "BufferPlanes", "SharedBuffers"]


class BufferLayout(NamedTuple):
    """The shape of one buffer: B clips of F frames, padded to one height and width (both even)."""

    clips: int
    frames: int
    height: int
    width: int

    @property
    def luma_bytes(self) -> int:
        return self.clips * self.frames * self.height * self.width

    @property
    def chroma_bytes(self) -> int:
        return self.luma_bytes // 4

    @property
    def bytes(self) -> int:
        return self.luma_bytes + 2 * self.chroma_bytes

    def split(self, flat: Any) -> BufferPlanes:
        """Views of a flat buffer (NumPy or torch) as y, u, v planes."""
        half = (self.clips, self.frames, self.height // 2, self.width // 2)
        y, c = self.luma_bytes, self.chroma_bytes
        return BufferPlanes(
            flat[:y].reshape(self.clips, self.frames, self.height, self.width),
            flat[y : y + c].reshape(half),
            flat[y + c : y + 2 * c].reshape(half),
        )


class BufferPlanes(NamedTuple):
    """y (B, F, H, W), u and v (B, F, H/2, W/2); uint8, of NumPy or torch."""

    y_BFHW: Any
    u_BFHW: Any
    v_BFHW: Any


class SharedBuffers:
    """Equal buffers in anonymous shared memory. Can be passed to a spawned process as an argument."""

    def __init__(self, count: int, layout: BufferLayout, descriptor: int | None = None) -> None:
        self.count, self.layout = count, layout
        if descriptor is None:
            descriptor = os.memfd_create("vmae-buffers", os.MFD_CLOEXEC)
            os.ftruncate(descriptor, max(1, count * layout.bytes))
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, max(1, count * layout.bytes))

    def whole(self) -> NDArray[np.uint8]:
        """The bytes of all buffers."""
        return np.frombuffer(self._map, np.uint8)

    def flat(self, buffer: int) -> NDArray[np.uint8]:
        """The bytes of a buffer."""
        return np.frombuffer(self._map, np.uint8, self.layout.bytes, buffer * self.layout.bytes)

    def planes(self, buffer: int) -> BufferPlanes:
        return self.layout.split(self.flat(buffer))

    def __reduce__(self) -> tuple[Any, ...]:
        # Passes the descriptor on while a process is spawned.
        return _attach, (self.count, self.layout, reduction.DupFd(self._descriptor))

    def close(self) -> None:
        os.close(self._descriptor)


def _attach(count: int, layout: BufferLayout, descriptor: Any) -> SharedBuffers:
    return SharedBuffers(count, layout, descriptor.detach())
