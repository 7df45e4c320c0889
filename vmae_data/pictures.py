"""Frames as pictures for people: planes to RGB, files in memory, sheets with captions. Pillow and NumPy.

Training has its own, exact way from planes to RGB (on the device); here chroma is only doubled.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vmae_data.decode import FramePlanes, decode_frames
from vmae_data.rng import Purpose, bits, permutation

__all__ = ["Picture", "Row", "enlarge", "film", "moving_picture", "picture", "planes_to_rgb", "sheet", "spread"]

U8 = NDArray[np.uint8]
TINY = 128  # below so many pixels a picture is enlarged without smoothing
MARGIN, GAP, CAPTION, FONT = 12, 3, 28, 13
SHEET_PAPER, SHEET_INK = (252, 252, 251), (29, 35, 43)


class Picture(NamedTuple):
    """A finished picture file."""

    data: bytes
    mime: str
    width: int
    height: int

    @property
    def uri(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"

    @property
    def tiny(self) -> bool:
        return min(self.width, self.height) < TINY


class Row(NamedTuple):
    """A row of a sheet: tiles of one size (H, W, 3), or none. `title` stands over the row, `label` beside it."""

    tiles: Sequence[U8] = ()
    label: str = ""
    title: str = ""


def planes_to_rgb(frame: FramePlanes, *, is_bt709: bool, full_range: bool) -> U8:
    """One decoded frame as RGB, (H, W, 3)."""
    height, width = frame.y.shape
    y, u, v = (plane.astype(np.float32) for plane in frame[1:])
    u, v = (plane.repeat(2, axis=0).repeat(2, axis=1)[:height, :width] - 128 for plane in (u, v))
    y_scale, c_scale = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    y = (y - (0 if full_range else 16)) * y_scale
    red, blue = (0.2126, 0.0722) if is_bt709 else (0.299, 0.114)
    v_red, u_blue = 2 * c_scale * (1 - red), 2 * c_scale * (1 - blue)
    green = y - (v_red * red * v + u_blue * blue * u) / (1 - red - blue)
    rgb = np.stack((y + v_red * v, green, y + u_blue * u), axis=-1)
    return np.asarray(np.rint(rgb.clip(0, 255)), dtype=np.uint8)


def film(
    data: bytes, frames: Sequence[int], key: str, *, is_bt709: bool, full_range: bool, side: int = 160
) -> tuple[Picture, ...]:
    """Some frames of a shard's mp4 as small pictures. Raises SampleError when one doesn't decode.

    Each frame is sought for itself, so that the last frame of a long video costs no more than the first.
    """
    shown = []
    for number in frames:
        for frame in decode_frames(data, (number,), key):
            shown.append(picture(planes_to_rgb(frame, is_bt709=is_bt709, full_range=full_range), side=side))
    return tuple(shown)


def picture(rgb: NDArray[Any], *, side: int | None = None, lossless: bool = False) -> Picture:
    """RGB or RGBA (H, W, 3 or 4) as a file: JPEG where it's a photograph, PNG where it is tiny or has to be exact.

    `side`: the short side is brought down to it.
    """
    image = Image.fromarray(rgb)
    if side is not None and min(image.size) > side:
        scale = side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if lossless or image.mode == "RGBA" or min(image.size) < TINY // 2:
        image.save(out, "PNG", optimize=True)
        return Picture(out.getvalue(), "image/png", *image.size)
    image.save(out, "JPEG", quality=82, optimize=True)
    return Picture(out.getvalue(), "image/jpeg", *image.size)


def moving_picture(frames: Sequence[U8], *, milliseconds: int = 120) -> Picture:
    """RGB frames (H, W, 3) as an endless GIF with one palette, so that still parts stay still."""
    images = [Image.fromarray(frame) for frame in frames]
    # The palette is made from some frames side by side: all colours count, and it costs little.
    some = np.concatenate(frames[:: max(1, len(frames) // 4)], axis=1)[::2, ::2]
    palette = Image.fromarray(some).quantize(255, method=Image.Quantize.MEDIANCUT)
    plain = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    out = io.BytesIO()
    plain[0].save(out, "GIF", save_all=True, append_images=plain[1:], duration=milliseconds, loop=0, optimize=False)
    return Picture(out.getvalue(), "image/gif", *images[0].size)


def enlarge(rgb: U8, *, side: int = TINY) -> U8:
    """A tiny picture (…, H, W, 3) by a whole number of times, without smoothing, to about `side` pixels."""
    times = max(1, side // min(rgb.shape[-3:-1]))
    return np.ascontiguousarray(rgb.repeat(times, axis=-3).repeat(times, axis=-2))


def sheet(rows: Sequence[Row]) -> U8:
    """Rows of tiles with captions, as RGB (H, W, 3)."""
    font = ImageFont.load_default(FONT)
    left = MARGIN + max((round(font.getlength(row.label)) + MARGIN if row.label else 0 for row in rows), default=0)
    width = left + max((_row_width(row.tiles) for row in rows), default=0) + MARGIN
    height = 2 * MARGIN + sum(_row_height(row) for row in rows)
    paper = Image.new("RGB", (width, height), SHEET_PAPER)
    draw = ImageDraw.Draw(paper)
    top = MARGIN
    for row in rows:
        bottom = top + _row_height(row)
        if row.title:
            title = _fit(row.title, font, width - 2 * MARGIN)
            draw.text((MARGIN, top + CAPTION - 5), title, font=font, fill=SHEET_INK, anchor="ls")
            top += CAPTION
        draw.text((MARGIN, (top + bottom) // 2), row.label, font=font, fill=SHEET_INK, anchor="lm")
        x = left
        for tile in row.tiles:
            paper.paste(Image.fromarray(tile), (x, top))
            x += tile.shape[1] + GAP
        top = bottom
    return np.asarray(paper)


def _row_height(row: Row) -> int:
    return (CAPTION if row.title else 0) + (int(row.tiles[0].shape[0]) + GAP if row.tiles else 0)


def _row_width(tiles: Iterable[U8]) -> int:
    return sum(int(tile.shape[1]) + GAP for tile in tiles) - GAP


def _fit(text: str, font: Any, width: int) -> str:
    text = text.replace("\n", " ")
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def spread(label_N: NDArray[np.int64], count: int, *, seed: int = 0) -> list[int]:
    """`count` sample numbers that show a data set: one of each class, then a second of each, in a drawn order.

    Classes take turns in a drawn order too, so that few pictures of many classes are not the first letters.
    """
    total = len(label_N)
    hashes = bits(seed, 0, np.arange(total), 0, 0, Purpose.PICTURES)
    order = permutation(hashes)
    labels = label_N[order]
    by_class = np.argsort(labels, kind="stable")
    turn = np.empty(total, dtype=np.int64)
    starts = np.searchsorted(labels[by_class], labels)
    turn[by_class] = np.arange(total)
    turn -= starts
    chosen = order[np.argsort(turn, kind="stable")][:count]
    return [int(n) for n in sorted(chosen, key=lambda n: (label_N[n], n))]
