"""Decoded frames → pictures for people: RGB, picture files in memory, sheets with captions.

Training converts planes to RGB exactly, on the device; here each chroma pixel is only repeated.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vmae_data.decode import FramePlanes, decode_frames
from vmae_data.rng import Purpose, bits, permutation

__all__ = [
    "Picture",
    "SheetRow",
    "animated_gif",
    "choose_samples",
    "enlarge",
    "frame_pictures",
    "picture",
    "planes_to_rgb",
    "sheet",
    "text_tile",
    "video_mp4",
    "wrap_text",
]

U8 = NDArray[np.uint8]
TINY = 128  # pages enlarge a picture below this size without smoothing
MARGIN, GAP, CAPTION, FONT = 12, 3, 28, 13
SHEET_PAPER, SHEET_INK = (252, 252, 251), (29, 35, 43)


class Picture(NamedTuple):
    """An encoded picture file."""

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


class SheetRow(NamedTuple):
    """A row of a sheet: tiles of one size (H, W, 3), or none. `title` is above the row, `label` left of it."""

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


def frame_pictures(
    data: bytes, frames: Sequence[int], key: str, *, is_bt709: bool, full_range: bool, side: int = 160
) -> tuple[Picture, ...]:
    """Some frames of a shard's mp4 as small pictures. Raises SampleError if one does not decode.

    Each frame has its own seek, so that the last frame of a long video costs no more than the first.
    """
    decoded = (frame for number in frames for frame in decode_frames(data, (number,), key))
    return tuple(picture(planes_to_rgb(one, is_bt709=is_bt709, full_range=full_range), side=side) for one in decoded)


def picture(rgb: NDArray[Any], *, side: int | None = None, lossless: bool = False) -> Picture:
    """RGB or RGBA (H, W, 3 or 4) as a file: PNG if it is tiny, has alpha or must be lossless, else JPEG.

    `side`: a larger picture is scaled down to this short side.
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


def animated_gif(frames: Sequence[U8], *, milliseconds: int = 120) -> Picture:
    """RGB frames (H, W, 3) as an endless GIF with one palette, so that still areas do not flicker."""
    images = [Image.fromarray(frame) for frame in frames]
    # The palette comes from a few frames side by side: it covers all colours at a low cost.
    side_by_side = np.concatenate(frames[:: max(1, len(frames) // 4)], axis=1)[::2, ::2]
    palette = Image.fromarray(side_by_side).quantize(255, method=Image.Quantize.MEDIANCUT)
    plain = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    out = io.BytesIO()
    plain[0].save(out, "GIF", save_all=True, append_images=plain[1:], duration=milliseconds, loop=0, optimize=False)
    return Picture(out.getvalue(), "image/gif", *images[0].size)


def video_mp4(frames: Sequence[U8], *, rate: Fraction = Fraction(25, 3), crf: int = 16) -> bytes:
    """RGB frames (H, W, 3) as an H.264 mp4. An odd side loses its last row or column: 4:2:0 has even sides."""
    height, width = (side // 2 * 2 for side in frames[0].shape[:2])
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as file:
        # As in builds. Else the macroblock tree of x264 reads unwritten memory, and the bytes differ from call to call.
        options = {"crf": str(crf), "x264-params": "cpu-independent=1"}
        stream = file.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.thread_count = 1  # the same bytes on any machine
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = ColorRange.MPEG
        for frame in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:height, :width]), format="rgb24")
            planes = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG)
            file.mux(stream.encode(planes))
        file.mux(stream.encode(None))
    return out.getvalue()


def enlarge(rgb: U8, *, side: int = TINY) -> U8:
    """Repeat the pixels of a tiny picture (…, H, W, 3) by a whole factor, to about `side` pixels."""
    factor = max(1, side // min(rgb.shape[-3:-1]))
    return np.ascontiguousarray(rgb.repeat(factor, axis=-3).repeat(factor, axis=-2))


def sheet(rows: Sequence[SheetRow]) -> U8:
    """Rows of tiles with captions, as RGB (H, W, 3)."""
    font = ImageFont.load_default(FONT)
    left = MARGIN + max((round(font.getlength(row.label)) + MARGIN if row.label else 0 for row in rows), default=0)
    width = left + max((sum(tile.shape[1] + GAP for tile in row.tiles) - GAP for row in rows), default=0) + MARGIN
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


def text_tile(text: str, width: int) -> U8:
    """A tile of text, for the row of a sheet above its columns."""
    tile = Image.new("RGB", (width, CAPTION - 8), SHEET_PAPER)
    ImageDraw.Draw(tile).text((0, CAPTION - 14), text, font=ImageFont.load_default(FONT), fill=SHEET_INK, anchor="ls")
    return np.asarray(tile)


def wrap_text(text: str, width: int) -> list[str]:
    """Lines that fit into a sheet of this width."""
    font, lines = ImageFont.load_default(FONT), [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width - 2 * MARGIN:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _row_height(row: SheetRow) -> int:
    return (CAPTION if row.title else 0) + (int(row.tiles[0].shape[0]) + GAP if row.tiles else 0)


def _fit(text: str, font: Any, width: int) -> str:
    text = text.replace("\n", " ")
    while text and font.getlength(text) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def choose_samples(label_N: NDArray[np.int64], count: int, *, seed: int = 0) -> list[int]:
    """`count` sample numbers that show a data set: one of each class, then a second of each, and so on.

    Samples and the order of the classes are random, so that few pictures of many classes are not the first letters.
    """
    total = len(label_N)
    order = permutation(bits(seed, 0, np.arange(total), 0, 0, Purpose.PICTURES))
    labels = label_N[order]
    by_class = np.argsort(labels, kind="stable")
    rank_in_class = np.empty(total, dtype=np.int64)
    rank_in_class[by_class] = np.arange(total)
    rank_in_class -= np.searchsorted(labels[by_class], labels)
    chosen = order[np.argsort(rank_in_class, kind="stable")][:count]
    return [int(n) for n in sorted(chosen, key=lambda n: (label_N[n], n))]
