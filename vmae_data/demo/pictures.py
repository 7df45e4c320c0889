"""Photographs of scikit-image → textures: periodic tiles of zero mean and unit variance, each as a mip pyramid.

The pictures are files of its package: nothing is downloaded, and its code is not imported. All are CC0.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmae_data.errors import MisuseError

__all__ = ["PICTURES", "TILE", "Picture", "Pyramid", "load_pictures", "sample_picture"]


class Picture(NamedTuple):
    """The checksum of a file and the square of it that is used, in pixels: the side is SIDE × 2^n."""

    checksum: str
    left: int
    top: int
    side: int


# PNG only, because decoders of JPEG differ. A scene depends on the order of the pictures and on their bytes.
# Half of `camera` is sky: a frame that showed only sky would have no motion to see.
PICTURES = {
    "brick": Picture("7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf", 0, 0, 512),
    "camera": Picture("b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a", 128, 256, 256),
    "chelsea": Picture("596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb", 97, 22, 256),
    "coffee": Picture("cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7", 172, 72, 256),
    "grass": Picture("b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89", 0, 0, 512),
    "gravel": Picture("c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12", 0, 0, 512),
}
ADVICE = "Run `python -m pip install 'vmae[demo]'`, or use --kind motion"
SIDE = 256  # of the part of a picture that is used, in texels
TILE = 2 * SIDE  # the part and its mirror images, so that the tile has no seam
LEVELS = 6

Pixels = NDArray[np.float32]
Pyramid = tuple[Pixels, ...]  # texels of each level (row × column × channel), each level half as wide as the one before


@cache
def load_pictures() -> tuple[Pyramid, ...]:
    """The pyramids in the order of PICTURES. Raises MisuseError if a picture is missing or another one."""
    found = importlib.util.find_spec("skimage")
    if found is None or not found.submodule_search_locations:
        raise MisuseError(f"the pictures of --kind rich are in scikit-image, which is not installed. {ADVICE}")
    folder = Path(found.submodule_search_locations[0]) / "data"
    return tuple(_pyramid(_read(folder / f"{name}.png", picture)) for name, picture in PICTURES.items())


def _read(path: Path, used: Picture) -> NDArray[np.uint8]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MisuseError(f"{path}: can't be read ({error.strerror}). {ADVICE}") from error
    if hashlib.sha256(data).hexdigest() != used.checksum:
        raise MisuseError(f"{path}: is not the picture that --kind rich uses (its checksum differs). {ADVICE}")
    with Image.open(io.BytesIO(data)) as picture:
        box = (used.left, used.top, used.left + used.side, used.top + used.side)
        return np.asarray(picture.crop(box).convert("RGB"))


def _pyramid(rgb: NDArray[np.uint8]) -> Pyramid:
    """Halve a square to SIDE, then mirror it. The channels are padded to four, as in the tiles of the motion scenes."""
    part = np.zeros((*rgb.shape[:2], 4), np.float32)
    part[..., :3] = rgb
    while len(part) > SIDE:
        part = _halved(part)
    part[..., :3] -= part[..., :3].mean()
    part /= part[..., :3].std()
    part = np.concatenate([part, part[:, ::-1]], axis=1)
    levels = [np.concatenate([part, part[::-1]])]
    while len(levels) < LEVELS:
        levels.append(_halved(levels[-1]))
    return tuple(levels)


def _halved(texels: Pixels) -> Pixels:
    return np.float32(0.25) * (texels[::2, ::2] + texels[1::2, ::2] + texels[::2, 1::2] + texels[1::2, 1::2])


def sample_picture(picture: Pyramid, texels: NDArray[Any], width: float) -> Pixels:
    """The picture at positions in texels of its finest level (column + row j), for pixels `width` texels wide."""
    level = min(max(math.log2(width), 0.0), LEVELS - 1.0)
    coarser = math.ceil(level)
    share = coarser - level  # of the finer level
    result = _bilinear(picture[coarser], texels / 2**coarser)
    if share:
        result += np.float32(share) * (_bilinear(picture[coarser - 1], texels / 2 ** (coarser - 1)) - result)
    return result


def _bilinear(tile: Pixels, texels: NDArray[Any]) -> Pixels:
    last = len(tile) - 1  # a mask too: the side is a power of two
    column, row = texels.real - np.float32(0.5), texels.imag - np.float32(0.5)
    left, top = np.floor(column), np.floor(row)
    right_share, lower_share = (column - left)[..., None], (row - top)[..., None]
    left_, upper = left.astype(np.intp) & last, (top.astype(np.intp) & last) * len(tile)
    right, lower = (left_ + 1) & last, (upper + len(tile)) & (last * len(tile))
    flat = tile.reshape(-1, 4)
    high = flat.take(upper + left_, axis=0)
    high += right_share * (flat.take(upper + right, axis=0) - high)
    low = flat.take(lower + left_, axis=0)
    low += right_share * (flat.take(lower + right, axis=0) - low)
    high += lower_share * (low - high)
    return np.asarray(high)
