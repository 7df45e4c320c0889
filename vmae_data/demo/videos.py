"""The motion data set as files: ordinary H.264 mp4 videos in class folders, and damaged ones on demand.

What the videos show is in `scenes.py`. Every file is a function of (seed, number), so the number of
processes changes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from vmae_data.demo.scenes import CLASSES, STRIDE, Colour, Scene, frames_of, plan_scenes, scenes_of
from vmae_data.errors import MisuseError, VmaeError
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.storage import commit_bytes, commit_file, temporary_beside

__all__ = ["MARKER", "broken_count", "render_video", "write_demo"]

VERSION = 1  # of what is drawn: another version gives other videos for the same seed
MARKER = "demo.json"
AUDIO_RATE = 44100
# What a coder drops depends on the motion: at crf 18 the last frame alone gave the class to a linear probe
# on its spectrum 16 times in 100, at 8 it was chance (12.5; 1600 videos, 2026-11).
# Without cpu-independent, libx264 gave now and then other bytes for the same frames.
ENCODER = {"crf": "8", "preset": "veryfast", "x264-params": "cpu-independent=1"}

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
    with Pool(min(workers, max(1, len(jobs)))) as pool:
        for job, path in jobs:
            pool.submit(path, _commit, job, path)
        while (finished := next_finished((pool,))) is not None:
            if isinstance(finished.error, WorkerDied):
                raise VmaeError(f"{finished.tag}: {finished.error}; run the same command again")
            if finished.error is not None:
                raise finished.error
            yield finished.result


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
    for (name, damage), scene in zip(_DAMAGE.items(), scenes_of(numbers, seed, stride), strict=True):
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


def broken_count() -> int:
    """How many damaged files `--broken` adds."""
    return len(_DAMAGE)
