"""Seed and number → the plan of a scene, and its frames as kind `motion`. Only its motion shows its class.

A velocity field, constant in time and over the frame, moves a random texture. It pans, turns or grows: one of these at full
speed, the others at up to 15 % of it. The texture is a sum of octaves. As it grows or shrinks, they fade in at one end of the
scale and out at the other (as in Shepard's endless tone), and their phase at the start is random. So every frame of every
class has the same distribution, also in sharpness and scale; a texture that only grows could not have that.

Speeds are pixels of the model's input (short side 36, as in the demo recipe) per kept frame. Every video is a function of
(seed, number), so it does not depend on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import IntEnum, StrEnum, auto
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.rng import Purpose, bits, uniform

__all__ = [
    "CLASSES",
    "STRIDE",
    "Colour",
    "Disc",
    "Kind",
    "Motion",
    "Scene",
    "flow_back",
    "frames_of",
    "pixel_positions",
    "plan_scenes",
    "scenes_of",
]

STRIDE = 2  # of recipe demo
MODEL_SHORT_SIDE = 36
ARM = 11.0  # px from the centre, where the speeds of turning and growing are stated
SLOWEST, FASTEST = 1.0, 2.5
OTHER_MOTIONS = 0.15  # most of the speed that the other motions have
FEWEST_KEPT, MOST_KEPT = 17, 24
SHORT_SIDES = range(48, 97, 2)
WIDEST = 1.5
RATES = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))

# Frequencies are in cycles per 64 px. A frame shows 36 to 54 px, so the lowest ones are slopes. The lowest frequency decides
# what pretraining learns. With 0.35 the masked loss falls sooner (.889 against .909 after 2,000 steps), but the model learns to
# continue slopes, not motion. Finetuned for 600 steps on 800 labels it classified 22 of 100 validation clips correctly; with
# 0.6 it was 94 (one run each on clips as rendered, 2026-11).
PERIOD = 64
OCTAVES = 5
LOWEST = 0.6
CYCLES = 4  # of a layer's middle frequency across its tile
TILE = 256  # texels, 64 per cycle: the nearest texel differs by at most 3 % of the contrast
CONTRAST = 48.0  # standard deviation of a channel around mid grey

Pixels = NDArray[np.float32]


class Kind(StrEnum):
    """What a scene looks like. The kinds share classes, speeds, sizes and lengths."""

    MOTION = "motion"
    RICH = "rich"


class Motion(NamedTuple):
    """The speed per kept frame: pan in px (y down), clockwise turn and growth in px at ARM."""

    x: float
    y: float
    turn: float
    grow: float


# The motion of each class and its direction on the screen.
CLASSES: dict[str, Motion] = {
    "pan-left": Motion(-1, 0, 0, 0),
    "pan-right": Motion(1, 0, 0, 0),
    "pan-up": Motion(0, -1, 0, 0),
    "pan-down": Motion(0, 1, 0, 0),
    "rotate-clockwise": Motion(0, 0, 1, 0),
    "rotate-counterclockwise": Motion(0, 0, -1, 0),
    "zoom-in": Motion(0, 0, 0, 1),
    "zoom-out": Motion(0, 0, 0, -1),
}


class Colour(IntEnum):
    """The colour matrix tag of the file. Small videos are usually untagged, which means BT.601."""

    UNTAGGED = 0
    BT601 = 1
    BT709 = 2


class Disc(NamedTuple):
    """A moving disc, as a distraction. Position as a share of the area that it wraps around in; radius and speed in px."""

    x: float
    y: float
    speed_x: float
    speed_y: float
    radius: float
    rgb: tuple[float, float, float]


class Scene(NamedTuple):
    """All that defines one video; its texture is a hash of (seed, number)."""

    seed: int
    number: int
    class_name: str
    motion: Motion
    octave: float
    tile_angles: tuple[float, ...]
    discs: tuple[Disc, ...]
    stride: int
    num_frames: int
    width: int
    height: int
    rate: Fraction
    colour: Colour
    tone: float | None
    kind: Kind = Kind.MOTION

    @property
    def path(self) -> str:
        """The path in the data set. Kind and seed are in the name so that two data sets share no key."""
        prefix = "rich" if self.kind is Kind.RICH else "scene"
        return f"{self.class_name}/{prefix}-{self.seed}-{self.number:05d}.mp4"


class _Column(IntEnum):
    """The purpose of each random number of a scene. Part of VERSION."""

    SPEED = 0
    MIX_X = auto()
    MIX_Y = auto()
    MIX_TURN = auto()
    MIX_GROW = auto()
    OCTAVE = auto()
    FRAMES = auto()
    SIZE = auto()
    ASPECT = auto()
    PORTRAIT = auto()
    RATE = auto()
    COLOUR = auto()
    AUDIO = auto()
    TONE = auto()
    DISCS = auto()  # eight for each disc, then one for each octave


def plan_scenes(num_videos: int, seed: int, *, stride: int = STRIDE, kind: Kind = Kind.MOTION) -> list[Scene]:
    """The scenes of a data set. The classes take turns; all else is random and independent of the class."""
    return scenes_of(range(num_videos), seed, stride, kind)


def scenes_of(numbers: Iterable[int], seed: int, stride: int, kind: Kind = Kind.MOTION) -> list[Scene]:
    listed = list(numbers)
    columns = np.arange(_Column.DISCS + 16 + OCTAVES)
    rng = uniform(bits(seed, 0, np.array(listed)[:, None], 0, 0, Purpose.DEMO, columns))
    return [
        _scene(number, seed, stride, row)._replace(kind=kind) for number, row in zip(listed, rng.tolist(), strict=True)
    ]


def _scene(number: int, seed: int, stride: int, row: list[float]) -> Scene:
    name, main = list(CLASSES.items())[number % len(CLASSES)]
    speed = SLOWEST + (FASTEST - SLOWEST) * row[_Column.SPEED]
    mixed = row[_Column.MIX_X : _Column.MIX_GROW + 1]
    motion = Motion(*(speed * (m or OTHER_MOTIONS * (2 * u - 1)) for m, u in zip(main, mixed, strict=True)))
    short = _pick(SHORT_SIDES, row[_Column.SIZE])
    long = 2 * round(short * (1 + (WIDEST - 1) * row[_Column.ASPECT]) / 2)
    portrait = row[_Column.PORTRAIT] < 0.2
    rest = row[_Column.DISCS :]
    return Scene(
        seed=seed,
        number=number,
        class_name=name,
        motion=motion,
        octave=row[_Column.OCTAVE],
        tile_angles=tuple(rest[16:]),
        discs=(_disc(rest[:8]), _disc(rest[8:16])),
        stride=stride,
        num_frames=_pick(range((FEWEST_KEPT - 1) * stride + 1, MOST_KEPT * stride + 1), row[_Column.FRAMES]),
        width=short if portrait else long,
        height=long if portrait else short,
        rate=_pick(RATES, row[_Column.RATE]),
        colour=_pick(tuple(Colour), row[_Column.COLOUR]),
        tone=220 * 2 ** (2 * row[_Column.TONE]) if row[_Column.AUDIO] < 0.2 else None,
    )


def _pick(choices: Any, random: float) -> Any:
    return choices[int(random * len(choices))]


def _disc(row: list[float]) -> Disc:
    x, y, speed_x, speed_y, radius, *rgb = row
    fastest = FASTEST * 0.75
    red, green, blue = (255 * value for value in rgb)
    speeds = (fastest * (2 * speed_x - 1), fastest * (2 * speed_y - 1))
    return Disc(x, y, *speeds, radius=1.5 + 1.5 * radius, rgb=(red, green, blue))


def frames_of(scene: Scene) -> Iterator[NDArray[np.uint8]]:
    """The frames as RGB: height × width × 3."""
    tiles = _tiles(scene)
    px = MODEL_SHORT_SIDE / min(scene.width, scene.height)
    x, y = pixel_positions(scene)
    for frame in range(scene.num_frames):
        kept = frame / scene.stride
        rgb = _texture(scene, tiles, kept, x, y)
        for disc in scene.discs:
            _draw_disc(rgb, disc, kept, x, y, px)
        yield np.rint(rgb[..., :3]).clip(0, 255).astype(np.uint8)


def pixel_positions(scene: Scene) -> tuple[Pixels, Pixels]:
    """Where the columns and rows of a frame are: px of the model's input from the centre."""
    px = MODEL_SHORT_SIDE / min(scene.width, scene.height)
    x = ((np.arange(scene.width) + 0.5) * px - scene.width * px / 2).astype(np.float32)
    y = ((np.arange(scene.height) + 0.5) * px - scene.height * px / 2).astype(np.float32)
    return x, y


def _tiles(scene: Scene) -> Pixels:
    """A tile of noise for each octave (octave × texel × channel), one octave wide, of unit variance.

    The channels are padded to four: numpy gathers 16 bytes three times as fast as 12.
    """
    reach = 2 * CYCLES
    across, down = np.arange(reach + 1), np.arange(-reach, reach + 1)
    octaves_off = np.log2(np.maximum(np.hypot(down[:, None], across), 0.1) / CYCLES)
    amplitude = np.cos(np.pi / 2 * np.clip(octaves_off, -1, 1))
    shape = (OCTAVES, 3, *amplitude.shape)
    # Another repeat than in `scenes_of`, so that no phase equals a random number of the plan.
    hashes = bits(scene.seed, 0, scene.number, 1, 0, Purpose.DEMO, np.arange(math.prod(shape)))
    waves = amplitude * np.exp(2j * np.pi * uniform(hashes).reshape(shape))
    spectrum = np.zeros((OCTAVES, 3, TILE, reach + 1), np.complex64)
    spectrum[:, :, down] = waves
    tiles = np.fft.irfft(np.fft.ifft(spectrum, axis=2), TILE)  # as irfft2, but skips the columns of zeros
    tiles /= tiles.std(axis=(2, 3), keepdims=True)
    padded = np.zeros((OCTAVES, TILE * TILE, 4), np.float32)
    padded[..., :3] = tiles.reshape(OCTAVES, 3, -1).transpose(0, 2, 1)
    return padded


def _texture(scene: Scene, tiles: Pixels, kept: float, x: Pixels, y: Pixels) -> Pixels:
    """The texture at time `kept` (in kept frames), at the positions x, y (px from the centre)."""
    turned, moved = flow_back(scene.motion, kept)
    start = scene.octave + np.arange(OCTAVES)
    now = start - scene.motion.grow / ARM * kept / math.log(2)
    # A layer that left the scale at one end returns at the other, still invisible: OCTAVES finer or coarser.
    wrapped = now // OCTAVES * OCTAVES
    gains = _gains(LOWEST * 2 ** (now - wrapped))
    # Each tile is rotated by a random angle: its waves form a grid, and only in the turning classes would that grid turn.
    steps = (
        LOWEST * 2 ** (start - wrapped) * (TILE / CYCLES / PERIOD) * np.exp(2j * np.pi * np.array(scene.tile_angles))
    )
    image = np.full((len(y), len(x), 4), 127.5, np.float32)
    for tile, step, gain in zip(tiles, steps.tolist(), gains.tolist(), strict=True):
        if gain < 0.5:  # in grey levels: no encoder keeps such fine octaves
            continue
        a, b = step * turned, step * moved
        across = (a.real * x + _inside(b.real))[None, :] - (a.imag * y)[:, None]
        down = (a.imag * x + _inside(b.imag))[None, :] + (a.real * y)[:, None]
        texel = (down.astype(np.intp) & (TILE - 1)) * TILE + (across.astype(np.intp) & (TILE - 1))
        image += np.float32(gain) * tile.take(texel, axis=0)
    return image


def flow_back(motion: Motion, kept: float) -> tuple[complex, complex]:
    """Where the points of a frame were at the start: `turned` q + `moved`, for q = x + y j.

    Positions move by dq/dt = v + z q. So the point at q was at exp(-z t) q - v (1 - exp(-z t)) / z.
    """
    velocity = complex(motion.x, motion.y)
    rate = complex(motion.grow, motion.turn) / ARM
    turned = complex(np.exp(-rate * kept))
    return turned, -velocity * ((1 - turned) / rate if rate else kept)


def _gains(frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard deviation of each layer: an amplitude of r^-1.5 exp(-(r/8)^2), summed over an octave of waves.

    The lowest octave fades in. The total is always CONTRAST, so that no frame is paler than another.
    """
    fade = np.clip(np.log2(frequencies / LOWEST), 0, 1)
    gains = frequencies**-0.5 * np.exp(-((frequencies / 8) ** 2)) * fade * fade * (3 - 2 * fade)
    return np.asarray(CONTRAST * gains / np.linalg.norm(gains))


def _inside(texels: float) -> float:
    """The same position in the periodic tile, so far above 0 that truncation rounds down."""
    return texels % TILE + 16 * TILE


def _draw_disc(rgb: Pixels, disc: Disc, kept: float, x: Pixels, y: Pixels, px: float) -> None:
    """Paint a disc; it leaves the frame on one side and returns on the other."""
    offsets, pixels = [], []
    for axis, position, speed in ((y, disc.y, disc.speed_y), (x, disc.x, disc.speed_x)):
        length = len(axis) * px + 2 * (disc.radius + 1)
        offset = axis - ((position * length + speed * kept) % length - length / 2)
        near = np.flatnonzero(np.abs(offset) < disc.radius + px)
        offsets.append(offset[near])
        pixels.append(near)
    distance = np.hypot(offsets[0][:, None], offsets[1])
    cover = np.clip((disc.radius - distance) / px + 0.5, 0, 1)[..., None]
    under = np.ix_(*pixels)
    rgb[under] += cover * (np.array((*disc.rgb, 0), np.float32) - rgb[under])
