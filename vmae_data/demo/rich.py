"""Scene → its frames as kind `rich`: photographs that move as in the motion scenes, under what makes real videos harder.

* **Acceleration.** The speed changes evenly by up to 70 % of its mean. It never changes its direction.
* **Deformation.** Standing waves bend the photographs, and the outlines of the objects change their form.
* **Photographs.** Each layer is a picture. As the scene grows or shrinks, layers fade in at one end of the scale and out at
  the other, as the octaves of the motion scenes do. So every frame of every class has the same distribution here too.
* **Camera shake.** Sines displace and roll the whole frame.

All of it is independent of the class, and deformation and shake return to where they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmae_data.demo.pictures import PICTURES, TILE, Pyramid, load_pictures, sample_picture
from vmae_data.demo.scenes import ARM, FASTEST, MODEL_SHORT_SIDE, Disc, Scene, flow_back, pixel_positions
from vmae_data.rng import Purpose, bits, permutation, uniform

__all__ = ["Blob", "Layer", "Rich", "Ripple", "Swing", "rich_frames", "rich_of"]

# Lengths are pixels of the model's input, times are kept frames.
LAYERS = 4
SPACING = 2  # octaves from one layer to the next; a layer is visible over two spacings
FINEST = 14.0  # texels per pixel, where a layer is as small as it gets: a picture is 18 px wide
CONTRAST = 52.0
ACCELERATION = (0.3, 0.7)
SHAKE, ROLL = 0.5, 0.02  # px, radians
RIPPLE = 0.9
SWINGS, RIPPLES = 3, 3

Pixels = NDArray[np.float32]
Positions = NDArray[Any]  # complex64: x + y j


class Swing(NamedTuple):
    """A sine of the camera: displacement in px, roll in radians, cycles per kept frame, phase in cycles."""

    shift: complex
    roll: float
    frequency: float
    phase: float


class Ripple(NamedTuple):
    """A standing wave that bends the picture: displacement in px, its wave vector in cycles per px, phases in cycles."""

    shift: complex
    wave: complex
    phase: float
    frequency: float
    start: float


class Layer(NamedTuple):
    """A picture as a texture: its number, rotation in radians, displacement in texels, factors of its colours."""

    picture: int
    angle: float
    offset: complex
    tint: tuple[float, float, float]


class Blob(NamedTuple):
    """A moving object: the path of a disc, with an outline of some lobes that swells and shrinks, filled by a picture."""

    disc: Disc
    acceleration: float
    lobes: int
    depth: float
    frequency: float
    phase: float
    fill: Layer


class Rich(NamedTuple):
    """What a rich scene has besides the plan that all kinds share."""

    acceleration: float  # the speed is 1 - a of its mean at the start and 1 + a at the end
    swings: tuple[Swing, ...]
    ripples: tuple[Ripple, ...]
    layers: tuple[Layer, ...]
    blobs: tuple[Blob, ...]


def rich_of(scene: Scene) -> Rich:
    """A function of the seed and the number of the scene. The order of the random numbers is part of VERSION."""
    # Another repeat than those of the plan and of the tiles, so that no random number is used twice.
    row = uniform(bits(scene.seed, 0, scene.number, 2, 0, Purpose.DEMO, np.arange(200)))
    draw = iter(row.tolist()).__next__
    hashes = bits(scene.seed, 0, scene.number, 3, 0, Purpose.DEMO, np.arange(len(PICTURES)))
    numbers = permutation(hashes).tolist()
    layers = [_layer(number, draw) for number in numbers]
    return Rich(
        acceleration=_acceleration(draw),
        swings=tuple(
            Swing(_shift(SHAKE, draw), ROLL * draw(), frequency=0.06 + 0.14 * draw(), phase=draw())
            for _ in range(SWINGS)
        ),
        ripples=tuple(
            Ripple(
                _shift(RIPPLE, draw),
                _shift(1, draw) / (18 + 22 * draw()),
                phase=draw(),
                frequency=1 / (10 + 14 * draw()),
                start=draw(),
            )
            for _ in range(RIPPLES)
        ),
        layers=tuple(layers[:LAYERS]),
        blobs=tuple(
            Blob(
                disc._replace(radius=1.5 * disc.radius),
                _acceleration(draw),
                lobes=2 + int(3 * draw()),
                depth=0.15 + 0.2 * draw(),
                frequency=1 / (8 + 12 * draw()),
                phase=draw(),
                fill=fill,
            )
            for disc, fill in zip(scene.discs, layers[LAYERS:], strict=True)
        ),
    )


def _layer(picture: int, draw: Callable[[], float]) -> Layer:
    angle = 2 * math.pi * draw()
    return Layer(
        picture, angle, TILE * complex(draw(), draw()), (0.7 + 0.6 * draw(), 0.7 + 0.6 * draw(), 0.7 + 0.6 * draw())
    )


def _acceleration(draw: Callable[[], float]) -> float:
    low, high = ACCELERATION
    signed = 2 * draw() - 1
    return math.copysign(low + (high - low) * abs(signed), signed)


def _shift(length: float, draw: Callable[[], float]) -> complex:
    """A displacement of this length in a random direction."""
    angle = 2 * math.pi * draw()
    return length * complex(math.cos(angle), math.sin(angle))


def rich_frames(scene: Scene, rich: Rich) -> Iterator[NDArray[np.uint8]]:
    """The frames as RGB: height × width × 3."""
    pictures = load_pictures()
    px = MODEL_SHORT_SIDE / min(scene.width, scene.height)
    x, y = pixel_positions(scene)
    still = x + np.complex64(1j) * y[:, None]
    bends = [_bend(ripple, x, y) for ripple in rich.ripples]
    length = (scene.num_frames - 1) / scene.stride
    for frame in range(scene.num_frames):
        kept = frame / scene.stride
        shift, turned = _camera(rich.swings, kept)
        bent = still + sum(
            bend * _sine(ripple.frequency * kept + ripple.start)
            for bend, ripple in zip(bends, rich.ripples, strict=True)
        )
        rgb = _background(scene, rich, pictures, _warped(rich.acceleration, kept, length), bent * turned - shift, px)
        for blob in rich.blobs:
            passed = _warped(blob.acceleration, kept, length)
            _draw_blob(rgb, blob, pictures[blob.fill.picture], passed, still * turned - shift, px)
        yield np.rint(rgb[..., :3]).clip(0, 255).astype(np.uint8)


def _sine(cycles: float) -> float:
    return math.sin(2 * math.pi * cycles)


def _warped(acceleration: float, kept: float, length: float) -> float:
    """The time at which a steady motion is where the accelerated one is now. Both end at the same place."""
    return kept + acceleration * (kept * kept / length - kept)


def _bend(ripple: Ripple, x: Pixels, y: Pixels) -> Positions:
    cycles = ripple.wave.real * x.astype(np.float64) + ripple.wave.imag * y.astype(np.float64)[:, None] + ripple.phase
    return np.asarray(ripple.shift * np.cos(2 * np.pi * cycles), np.complex64)


def _camera(swings: tuple[Swing, ...], kept: float) -> tuple[complex, complex]:
    """How far the camera moved the scene, in px, and by which rotation."""
    sines = [_sine(swing.frequency * kept + swing.phase) for swing in swings]
    roll = sum(swing.roll * sine for swing, sine in zip(swings, sines, strict=True))
    shift = sum((swing.shift * sine for swing, sine in zip(swings, sines, strict=True)), 0j)
    return shift, complex(math.cos(roll), math.sin(roll))


def _background(
    scene: Scene, rich: Rich, pictures: tuple[Pyramid, ...], passed: float, positions: Positions, px: float
) -> Pixels:
    turned, moved = flow_back(scene.motion, passed)
    octaves = SPACING * len(rich.layers)
    image = np.full((*positions.shape, 4), 127.5, np.float32)
    for number, layer in enumerate(rich.layers):
        start = SPACING * (scene.octave + number)
        now = start - scene.motion.grow / ARM * passed / math.log(2)
        wrapped = now // octaves * octaves
        # The squares of the gains of two neighbours add up to 1.
        gain = math.sin(math.pi / (2 * SPACING) * (now - wrapped)) if now - wrapped < 2 * SPACING else 0.0
        if gain * CONTRAST < 0.5:  # in grey levels
            continue
        step = FINEST * 2 ** (start - wrapped - 2 * SPACING) * complex(math.cos(layer.angle), math.sin(layer.angle))
        texels = positions * (step * turned) + _inside(step * moved + layer.offset)
        sampled = sample_picture(pictures[layer.picture], texels, abs(step * turned) * px)
        image += sampled * np.array([CONTRAST * gain * value for value in (*layer.tint, 0)], np.float32)
    return image


def _inside(texel: complex) -> complex:
    """The same position in the periodic tile."""
    return complex(texel.real % TILE, texel.imag % TILE)


def _draw_blob(rgb: Pixels, blob: Blob, picture: Pyramid, passed: float, positions: Positions, px: float) -> None:
    """Paint an object. It leaves the frame on one side and returns on the other."""
    disc = blob.disc
    farthest = disc.radius * (1 + blob.depth)
    margin = 2 * (farthest + px + FASTEST)  # the shake shows more than the frame
    centre = []
    for pixels, position, speed in (
        (rgb.shape[1], disc.x, disc.speed_x),
        (rgb.shape[0], disc.y, disc.speed_y),
    ):
        length = pixels * px + margin
        centre.append((position * length + speed * passed) % length - length / 2)
    offsets = positions - complex(*centre)
    near = np.abs(offsets) < farthest + px
    if not near.any():
        return
    offsets = offsets[near]
    swell = blob.depth * _sine(blob.frequency * passed + blob.phase)
    # (offset / its length)^lobes: the cosine of the angle times the number of lobes, without an inverse tangent.
    unit = offsets / np.maximum(np.abs(offsets), np.float32(1e-3))
    radius = disc.radius * (1 + swell * (unit**blob.lobes * blob.fill.offset / abs(blob.fill.offset)).real)
    cover = np.clip((radius - np.abs(offsets)) / px + 0.5, 0, 1)[:, None].astype(np.float32)
    scale = FINEST / 2
    texels = offsets * (scale * disc.radius / radius) + blob.fill.offset
    fill = sample_picture(picture, texels, scale * px)
    colour = (fill * CONTRAST + np.array([*disc.rgb, 0], np.float32)).clip(0, 255)
    rgb[near] += cover * (colour - rgb[near])
