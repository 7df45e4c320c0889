"""What the motion data set shows: textured scenes, as RGB frames, whose class only motion tells.

A velocity field, constant in time and on the screen, moves a random texture: pan, turn and growth, one
of them at full speed and the others at up to 15 % of it. The texture is made of octaves that fade in at
one end of the scale and out at the other as it grows or shrinks (as in Shepard's endless tone), and the
place of the octaves at the start is drawn. So every frame of every class comes from the same
distribution, in sharpness and scale too, which a texture that simply grows can't give.

Speeds count at the model: pixels where the short side is 36 (the demo recipe's), for each kept frame.
Every video is a function of (seed, number), so the number of processes changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from enum import IntEnum, auto
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.rng import Purpose, bits, uniform

__all__ = ["CLASSES", "STRIDE", "Colour", "Motion", "Scene", "frames_of", "plan_scenes", "scenes_of"]

STRIDE = 2  # of the demo recipe
MODEL_SHORT_SIDE = 36
ARM = 11.0  # px from the centre at which the speed of turning and growing counts
SLOWEST, FASTEST = 1.0, 2.5
MIXED_IN = 0.15
FEWEST_KEPT, MOST_KEPT = 17, 24
SHORT_SIDES = range(48, 97, 2)
WIDEST = 1.5
RATES = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))

# Frequencies count in cycles per 64 px. A frame shows 36 to 54 px, so the lowest are slopes. How low they
# begin decides what pretraining learns: from 0.35 on the masked loss falls sooner (.889 against .909 after
# 2,000 steps), but by continuing slopes, not by motion: finetuned for 600 steps on 800 labels such a model
# named 22 of 100 validation clips, one from 0.6 on 94 (one run each on clips as rendered, 2026-11).
PERIOD = 64
OCTAVES = 5
LOWEST = 0.6
CYCLES = 4  # of a layer's middle frequency over its tile
TILE = 256  # texels: 64 a cycle, so that the nearest texel is off by 3 % of the contrast at most
CONTRAST = 48.0  # standard deviation of a channel, about mid grey

Pixels = NDArray[np.float32]


class Motion(NamedTuple):
    """What one kept frame adds: pan in px (y down), turn clockwise and growth in px at ARM."""

    x: float
    y: float
    turn: float
    grow: float


# Which of the four a class moves, and which way on the screen.
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
    """How the file says its colour matrix; untagged is usual for small videos, and means BT.601."""

    UNTAGGED = 0
    BT601 = 1
    BT709 = 2


class Disc(NamedTuple):
    """A distraction. Place in turns of the room it drifts round; size and speed in px at the model."""

    x: float
    y: float
    speed_x: float
    speed_y: float
    radius: float
    rgb: tuple[float, float, float]


class Scene(NamedTuple):
    """All that one video is made of; its texture is drawn from (seed, number)."""

    seed: int
    number: int
    class_name: str
    motion: Motion
    octave: float
    leans: tuple[float, ...]
    discs: tuple[Disc, ...]
    stride: int
    num_frames: int
    width: int
    height: int
    rate: Fraction
    colour: Colour
    tone: float | None

    @property
    def path(self) -> str:
        """Where it lies in the data set; the seed is in the name so that two sets share no key."""
        return f"{self.class_name}/scene-{self.seed}-{self.number:05d}.mp4"


class _Column(IntEnum):
    """Which draw of a scene decides what. Part of VERSION."""

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
    DISCS = auto()  # the rest: eight for each disc, then one for each octave


def plan_scenes(num_videos: int, seed: int, *, stride: int = STRIDE) -> list[Scene]:
    """The scenes of a data set. The classes take turns; all else is drawn, and knows nothing of the class."""
    return scenes_of(range(num_videos), seed, stride)


def scenes_of(numbers: Iterable[int], seed: int, stride: int) -> list[Scene]:
    listed = list(numbers)
    columns = np.arange(_Column.DISCS + 16 + OCTAVES)
    rng = uniform(bits(seed, 0, np.array(listed)[:, None], 0, 0, Purpose.DEMO, columns))
    return [_scene(number, seed, stride, row) for number, row in zip(listed, rng.tolist(), strict=True)]


def _scene(number: int, seed: int, stride: int, row: list[float]) -> Scene:
    name, main = list(CLASSES.items())[number % len(CLASSES)]
    speed = SLOWEST + (FASTEST - SLOWEST) * row[_Column.SPEED]
    mixed = row[_Column.MIX_X : _Column.MIX_GROW + 1]
    motion = Motion(*(speed * (m or MIXED_IN * (2 * u - 1)) for m, u in zip(main, mixed, strict=True)))
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
        leans=tuple(rest[16:]),
        discs=(_disc(rest[:8]), _disc(rest[8:16])),
        stride=stride,
        num_frames=_pick(range((FEWEST_KEPT - 1) * stride + 1, MOST_KEPT * stride + 1), row[_Column.FRAMES]),
        width=short if portrait else long,
        height=long if portrait else short,
        rate=_pick(RATES, row[_Column.RATE]),
        colour=_pick(tuple(Colour), row[_Column.COLOUR]),
        tone=220 * 2 ** (2 * row[_Column.TONE]) if row[_Column.AUDIO] < 0.2 else None,
    )


def _pick(choices: Any, draw: float) -> Any:
    return choices[int(draw * len(choices))]


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
    x = ((np.arange(scene.width) + 0.5) * px - scene.width * px / 2).astype(np.float32)
    y = ((np.arange(scene.height) + 0.5) * px - scene.height * px / 2).astype(np.float32)
    for frame in range(scene.num_frames):
        kept = frame / scene.stride
        rgb = _texture(scene, tiles, kept, x, y)
        for disc in scene.discs:
            _draw_disc(rgb, disc, kept, x, y, px)
        yield np.rint(rgb[..., :3]).clip(0, 255).astype(np.uint8)


def _tiles(scene: Scene) -> Pixels:
    """A tile of noise for each octave: octave × texel × channel, one octave wide, of unit variance.

    The channels are padded to four because numpy gathers 16 bytes three times as fast as 12.
    """
    reach = 2 * CYCLES
    across, down = np.arange(reach + 1), np.arange(-reach, reach + 1)
    octaves_off = np.log2(np.maximum(np.hypot(down[:, None], across), 0.1) / CYCLES)
    amplitude = np.cos(np.pi / 2 * np.clip(octaves_off, -1, 1))
    shape = (OCTAVES, 3, *amplitude.shape)
    # A visit of its own, so that no phase is a draw of the plan.
    hashes = bits(scene.seed, 0, scene.number, 1, 0, Purpose.DEMO, np.arange(math.prod(shape)))
    waves = amplitude * np.exp(2j * np.pi * uniform(hashes).reshape(shape))
    spectrum = np.zeros((OCTAVES, 3, TILE, reach + 1), np.complex64)
    spectrum[:, :, down] = waves
    tiles = np.fft.irfft(np.fft.ifft(spectrum, axis=2), TILE)  # irfft2, without transforming columns of zeros
    tiles /= tiles.std(axis=(2, 3), keepdims=True)
    padded = np.zeros((OCTAVES, TILE * TILE, 4), np.float32)
    padded[..., :3] = tiles.reshape(OCTAVES, 3, -1).transpose(0, 2, 1)
    return padded


def _texture(scene: Scene, tiles: Pixels, kept: float, x: Pixels, y: Pixels) -> Pixels:
    """The texture at time `kept` (in kept frames), at the places x, y (px from the centre).

    As complex numbers, places q move by dq/dt = v + z q, so what is seen at q was at
    exp(-z t) q - v (1 - exp(-z t)) / z at the start.
    """
    velocity = complex(scene.motion.x, scene.motion.y)
    rate = complex(scene.motion.grow, scene.motion.turn) / ARM
    turned = complex(np.exp(-rate * kept))
    moved = -velocity * ((1 - turned) / rate if rate else kept)
    start = scene.octave + np.arange(OCTAVES)
    now = start - scene.motion.grow / ARM * kept / math.log(2)
    # A layer that left at one end comes back at the other, unseen: its tile is OCTAVES finer or coarser then.
    wrapped = now // OCTAVES * OCTAVES
    gains = _gains(LOWEST * 2 ** (now - wrapped))
    # Each tile lies turned by a drawn angle: its waves stand on a grid, and only turning classes would turn that.
    steps = LOWEST * 2 ** (start - wrapped) * (TILE / CYCLES / PERIOD) * np.exp(2j * np.pi * np.array(scene.leans))
    image = np.full((len(y), len(x), 4), 127.5, np.float32)
    for tile, step, gain in zip(tiles, steps.tolist(), gains.tolist(), strict=True):
        if gain < 0.5:  # grey levels: fine octaves that no encoder keeps
            continue
        a, b = step * turned, step * moved
        across = (a.real * x + _inside(b.real))[None, :] - (a.imag * y)[:, None]
        down = (a.imag * x + _inside(b.imag))[None, :] + (a.real * y)[:, None]
        texel = (down.astype(np.intp) & (TILE - 1)) * TILE + (across.astype(np.intp) & (TILE - 1))
        image += np.float32(gain) * tile.take(texel, axis=0)
    return image


def _gains(frequencies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard deviation of each layer: an amplitude of r^-1.5 exp(-(r/8)^2), summed over an octave of waves.

    The lowest octave fades in; the sum is held at CONTRAST, so that no frame is paler than another.
    """
    fade = np.clip(np.log2(frequencies / LOWEST), 0, 1)
    gains = frequencies**-0.5 * np.exp(-((frequencies / 8) ** 2)) * fade * fade * (3 - 2 * fade)
    return np.asarray(CONTRAST * gains / np.linalg.norm(gains))


def _inside(texels: float) -> float:
    """The same place of the periodic tile, far enough from 0 that truncation is the floor."""
    return texels % TILE + 16 * TILE


def _draw_disc(rgb: Pixels, disc: Disc, kept: float, x: Pixels, y: Pixels, px: float) -> None:
    """Paint a disc; it leaves the frame on one side and comes back on the other."""
    offsets, places = [], []
    for axis, turns, speed in ((y, disc.y, disc.speed_y), (x, disc.x, disc.speed_x)):
        room = len(axis) * px + 2 * (disc.radius + 1)
        offset = axis - ((turns * room + speed * kept) % room - room / 2)
        near = np.flatnonzero(np.abs(offset) < disc.radius + px)
        offsets.append(offset[near])
        places.append(near)
    distance = np.hypot(offsets[0][:, None], offsets[1])
    cover = np.clip((disc.radius - distance) / px + 0.5, 0, 1)[..., None]
    under = np.ix_(*places)
    rgb[under] += cover * (np.array((*disc.rgb, 0), np.float32) - rgb[under])
