"""Members of shards → videos that a page plays, up to a size.

A build states the time of each kept frame in the member. So a thinned video plays at the speed of its source.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmae_data.amounts import format_bytes
from vmae_data.decode import decode_frames
from vmae_data.mp4 import packet_table
from vmae_data.pages.pictures import planes_to_rgb, video_mp4

__all__ = ["Previews"]

PAGE_BYTES = 24 << 20
MEMBER_BYTES = 512 << 10  # a larger member is encoded anew
SIDE = 160  # of the short side of a video that is encoded anew
MOST_RATE = 12.5  # its frames per second
MOST_FRAMES = 60
LEAST_RATE = Fraction(1, 1000)
CRF = 26  # about 1 kB a frame


class Previews:
    """The videos of a page. They play in any browser that plays H.264."""

    def __init__(self, page_bytes: int = PAGE_BYTES) -> None:
        self.page_bytes = page_bytes
        self.bytes = self.members = self.encoded = self.omitted = 0

    def add(self, data: bytes, key: str, *, frames: int, rate: float, is_bt709: bool, full_range: bool) -> str:
        """The video as a data URI; empty if the page is full.

        A small member in H.264 is embedded as it is. Of others the start is encoded. Raises SampleError if that does not
        decode. `frames` and `rate`: the number of kept frames, and how many there are in a second.
        """
        table = packet_table(data) if len(data) <= MEMBER_BYTES else None
        plays = table is not None and table.codec == "h264"
        full = self.bytes >= self.page_bytes
        if not plays and not full:
            data = _encode(data, key, frames, rate, is_bt709=is_bt709, full_range=full_range)
        if full or self.bytes + len(data) > self.page_bytes:
            self.omitted += 1
            return ""
        self.bytes += len(data)
        self.members += plays
        self.encoded += not plays
        return f"data:video/mp4;base64,{base64.b64encode(data).decode('ascii')}"

    def notes(self) -> Iterator[str]:
        """What the reader of the page has to know."""
        if self.members + self.encoded:
            yield (
                "Videos play the kept frames at the speed of the source, without sound. They need a browser that plays H.264."
            )
        if self.encoded:
            shown = f"the start of {self.encoded} of them" if self.members else "their start"
            yield (
                f"The shards have another codec than H.264, or large files. So {shown} was encoded for this page: "
                f"at most {MOST_FRAMES} frames, {MOST_RATE:g} per second, with a short side of {SIDE} px."
            )
        if self.omitted:
            yield (
                f"{self.omitted} of {self.members + self.encoded + self.omitted} videos show frames only: "
                f"a page has at most {format_bytes(self.page_bytes)} of videos."
            )


def _encode(data: bytes, key: str, frames: int, rate: float, *, is_bt709: bool, full_range: bool) -> bytes:
    step = max(1, math.ceil(rate / MOST_RATE))
    decoded = decode_frames(data, range(0, frames, step)[:MOST_FRAMES], key)
    shown = [_shrink(planes_to_rgb(one, is_bt709=is_bt709, full_range=full_range)) for one in decoded]
    exact = max(LEAST_RATE, Fraction(rate / step).limit_denominator(1001))
    return video_mp4(shown, rate=exact, crf=CRF)


def _shrink(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(rgb)
    if min(image.size) > SIDE:
        scale = SIDE / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
    return np.asarray(image)
