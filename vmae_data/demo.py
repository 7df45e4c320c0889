"""The motion data set: textured scenes, rendered as ordinary mp4 files, whose class only motion tells.

A velocity field, constant in time and on the screen, moves a random texture: pan, turn and growth, one
of them at full speed and the others at up to 30 % of it. The texture is made of octaves that fade in at
one end of the scale and out at the other as it grows or shrinks (as in Shepard's endless tone), and the
place of the octaves at the start is drawn. So every frame of every class comes from the same
distribution, in sharpness and scale too, which a texture that simply grows can't give.

Speeds count at the model: pixels where the short side is 36 (the demo recipe's), for each kept frame.
Every video is a function of (seed, number), so the number of processes changes nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from enum import IntEnum, auto
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from vmae_data.draws import Purpose, bits, uniform
from vmae_data.errors import MisuseError
from vmae_data.store import commit_bytes, commit_file, temporary_beside

__all__ = ["CLASSES", "MARKER", "Motion", "Scene", "frames_of", "plan_scenes", "render_video", "write_demo"]

VERSION = 1  # of what is drawn: another version gives other videos for the same seed
MARKER = "demo.json"
STRIDE = 2  # of the demo recipe
MODEL_SHORT_SIDE = 36
ARM = 11.0  # px from the centre at which the speed of turning and growing counts
SLOWEST, FASTEST = 0.5, 2.0
MIXED_IN = 0.3
FEWEST_KEPT, MOST_KEPT = 17, 24
SHORT_SIDES = range(48, 97, 2)
WIDEST = 1.5
RATES = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30))
AUDIO_RATE = 44100
# What a coder drops depends on the motion: at crf 18 the last frame alone gave the class to a linear probe
# on its spectrum 16 times in 100, at 8 it was chance (12.5; 1600 videos, 2026-11).
# Without cpu-independent, libx264 gave now and then other bytes for the same frames.
ENCODER = {"crf": "8", "preset": "veryfast", "x264-params": "cpu-independent=1"}

# Frequencies count in cycles per 64 px. A frame shows 36 to 54 px, so the lowest are slopes.
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
    return _scenes(range(num_videos), seed, stride)


def _scenes(numbers: Iterable[int], seed: int, stride: int) -> list[Scene]:
    listed = list(numbers)
    columns = np.arange(_Column.DISCS + 16 + OCTAVES)
    draws = uniform(bits(seed, 0, np.array(listed)[:, None], 0, 0, Purpose.DEMO, columns))
    return [_scene(number, seed, stride, row) for number, row in zip(listed, draws.tolist(), strict=True)]


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


_MATRIX = {
    Colour.UNTAGGED: (Colorspace.ITU601, 2, 2, 2),
    Colour.BT601: (Colorspace.ITU601, 6, 6, 6),
    Colour.BT709: (Colorspace.ITU709, 1, 1, 1),
}


def render_video(scene: Scene, path: Path, *, faststart: bool = False) -> None:
    """Render a scene into an H.264 mp4 at `path`, which must end in .mp4."""
    space, matrix, primaries, transfer = _MATRIX[scene.colour]
    with av.open(str(path), "w", options={"movflags": "+faststart"} if faststart else {}) as file:
        video = file.add_stream("libx264", rate=scene.rate, options=ENCODER)
        video.width, video.height, video.pix_fmt = scene.width, scene.height, "yuv420p"
        context = video.codec_context
        context.thread_count = 1  # the pool has a process for each core
        context.colorspace, context.color_primaries, context.color_trc = matrix, primaries, transfer
        context.color_range = ColorRange.MPEG
        sound = None if scene.tone is None else file.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        reformatter = VideoReformatter()  # one for all frames: setting it up costs more than its work
        for frame in frames_of(scene):
            rgb = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = reformatter.reformat(rgb, format="yuv420p", dst_colorspace=space, dst_color_range=ColorRange.MPEG)
            file.mux(video.encode(picture))
        file.mux(video.encode(None))
        if sound is not None and scene.tone is not None:
            _add_tone(file, sound, scene.tone, float(scene.num_frames / scene.rate))


def _add_tone(file: Any, stream: Any, hertz: float, seconds: float) -> None:
    times = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    wave = (0.05 * np.sin(2 * np.pi * hertz * times)).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(wave[None, :], format="fltp", layout="mono")
    frame.sample_rate = AUDIO_RATE
    file.mux(stream.encode(frame))
    file.mux(stream.encode(None))


def write_demo(
    dest: Path,
    *,
    num_videos: int,
    seed: int,
    broken: bool = False,
    on_done: Callable[[int], None] | None = None,
    workers: int = 1,
    stride: int = STRIDE,
) -> None:
    """Write the data set into `dest`, a folder for each class; what is there already stays.

    `on_done` is told how many of the files are there, each time one comes in.

    Raises:
        MisuseError: a number that makes no sense, or a `dest` that holds another demo.
    """
    if num_videos < 1 or workers < 1 or stride < 1 or not 0 <= seed < 1 << 64:
        wanted = "videos, workers and stride from 1, a seed from 0 to 2^64 - 1"
        raise MisuseError(f"demo: {num_videos=}, {workers=}, {stride=}, {seed=}: wanted are {wanted}")
    facts = {"version": VERSION, "seed": seed, "videos": num_videos, "stride": stride, "broken": broken}
    jobs: dict[Path, _Job] = {
        dest / scene.path: partial(render_video, scene) for scene in plan_scenes(num_videos, seed, stride=stride)
    }
    if broken:
        jobs |= {dest / name: job for name, job in _broken_ones(num_videos, seed, stride)}
    try:
        dest.mkdir(parents=True, exist_ok=True)
        _refuse_another(dest, facts, jobs)
        for folder in sorted({path.parent for path in jobs}):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MisuseError(f"{dest}: no folder to write into ({error.strerror}); give another one") from error
    # A rename gives a file its name when it is whole, so the name is proof.
    missing = [(job, path) for path, job in jobs.items() if not path.exists()]
    for count, _ in enumerate(_in_processes(missing, workers), start=len(jobs) - len(missing) + 1):
        if on_done is not None:
            on_done(count)
    if not (dest / MARKER).exists():
        commit_bytes(dest / MARKER, (json.dumps(facts) + "\n").encode())


_Job = Callable[[Path], None]


def _refuse_another(dest: Path, facts: dict[str, Any], planned: Iterable[Path]) -> None:
    """Refuse a folder that holds another demo: its marker says so, or a file that isn't in our plan."""
    advice = "give another folder, or delete it"
    try:
        found = json.loads((dest / MARKER).read_bytes())
    except FileNotFoundError:
        for path in sorted({*dest.glob("*/scene-*.mp4"), *dest.glob("*/broken-*.mp4")} - {*planned}):
            asked = f"seed {facts['seed']}, videos {facts['videos']}, broken {facts['broken']}"
            message = (
                f"{dest} holds another unfinished demo: {path.relative_to(dest)} isn't in that of {asked}; {advice}"
            )
            raise MisuseError(message) from None
        return
    except (ValueError, OSError) as error:
        raise MisuseError(f"{dest / MARKER}: can't be read ({error}); {advice}") from error
    if found != facts:
        held = found if isinstance(found, dict) else {}
        words = (f"{key} {held.get(key)}, asked for {value}" for key, value in facts.items() if held.get(key) != value)
        raise MisuseError(f"{dest} holds another demo ({'; '.join(words)}): {advice}")


def _in_processes(jobs: list[tuple[_Job, Path]], workers: int) -> Iterator[Path]:
    """Do the jobs, each in one of `workers` processes; gives each path when it is there."""
    if not jobs:
        return
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        waiting = [pool.submit(_commit, job, path) for job, path in jobs]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _commit(job: _Job, path: Path) -> Path:
    temporary = temporary_beside(path)
    try:
        job(temporary)
        commit_file(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return path


def _broken_ones(num_videos: int, seed: int, stride: int) -> Iterator[tuple[str, _Job]]:
    """Damage of six kinds, done to scenes beyond the data set, each in the folder of its scene's class."""
    first = -(-num_videos // len(CLASSES)) * len(CLASSES)
    classes = min(num_videos, len(CLASSES))  # no folder with broken videos only
    numbers = [first + len(CLASSES) * i + i % classes for i in range(len(_DAMAGE))]
    for (name, damage), scene in zip(_DAMAGE.items(), _scenes(numbers, seed, stride), strict=True):
        yield f"{scene.class_name}/broken-{name}-{seed}.mp4", partial(damage, scene._replace(tone=None))


def _without_moov(scene: Scene, path: Path) -> None:
    render_video(scene, path)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(b"moov") - 4])


def _cut_in_half(scene: Scene, path: Path) -> None:
    render_video(scene, path, faststart=True)
    data = path.read_bytes()
    path.write_bytes(data[: (data.index(b"mdat") + len(data)) // 2])


def _flipped_bytes(scene: Scene, path: Path) -> None:
    render_video(scene, path)
    data = bytearray(path.read_bytes())
    first, end = data.index(b"mdat"), data.rindex(b"moov")
    for at in range(first + (end - first) // 3, first + (end - first) * 2 // 3):
        data[at] ^= 0x55
    path.write_bytes(data)


def _empty(scene: Scene, path: Path) -> None:
    path.write_bytes(b"")


def _text(scene: Scene, path: Path) -> None:
    path.write_text(f"This is no video. Scene {scene.number} was to be here.\n" * 20)


def _audio_only(scene: Scene, path: Path) -> None:
    with av.open(str(path), "w") as file:
        _add_tone(file, file.add_stream("aac", rate=AUDIO_RATE, layout="mono"), 440.0, 1.5)


_DAMAGE: dict[str, Callable[[Scene, Path], None]] = {
    "without-moov": _without_moov,
    "cut-in-half": _cut_in_half,
    "flipped-bytes": _flipped_bytes,
    "empty": _empty,
    "text": _text,
    "audio-only": _audio_only,
}
