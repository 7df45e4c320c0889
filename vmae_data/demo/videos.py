"""Scenes → a demo data set: ordinary H.264 mp4 videos in class folders, and damaged ones on request.

Every file is a function of (seed, number), so it does not depend on the number of processes.
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

from vmae_data.amounts import plural
from vmae_data.demo.pictures import load_pictures
from vmae_data.demo.rich import rich_frames, rich_of
from vmae_data.demo.scenes import CLASSES, STRIDE, Colour, Kind, Scene, frames_of, plan_scenes, scenes_of
from vmae_data.errors import MisuseError, VmaeError, resumable
from vmae_data.processes import Pool, WorkerDied, next_finished
from vmae_data.storage import commit_bytes, commit_file, temporary_path

__all__ = ["MARKER", "broken_count", "render_video", "write_demo"]

VERSION = 1  # of the scenes: another version gives other videos for the same seed
MARKER = "demo.json"
AUDIO_RATE = 44100
# What the encoder drops depends on the motion. At crf 18 a linear probe on the spectrum of the last frame found the class in
# 16 % of the videos; at crf 8 it was chance (12.5 %; 1600 videos, 2026-11).
# Without cpu-independent, libx264 sometimes gave other bytes for the same frames.
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
        context.thread_count = 1  # the pool has one process per core
        context.colorspace, context.color_primaries, context.color_trc = matrix, primaries, transfer
        context.color_range = ColorRange.MPEG
        sound = None if scene.tone is None else file.add_stream("aac", rate=AUDIO_RATE, layout="mono")
        reformatter = VideoReformatter()  # one for all frames: the setup costs more than the work
        for frame in rich_frames(scene, rich_of(scene)) if scene.kind is Kind.RICH else frames_of(scene):
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
    kind: Kind = Kind.MOTION,
) -> None:
    """Write the data set into `dest`, with a folder for each class. Existing files stay.

    `on_done` is called with the number of existing files after each new one. Raises MisuseError if a number is out of range,
    `dest` has another demo, or the pictures of kind `rich` are not installed.
    """
    if num_videos < 1 or workers < 1 or stride < 1 or not 0 <= seed < 1 << 64:
        expected = "videos, workers and stride of 1 or more, a seed of 0 to 2^64 - 1"
        raise MisuseError(f"demo: {num_videos=}, {workers=}, {stride=}, {seed=}: expected {expected}")
    facts: dict[str, Any] = {"version": VERSION, "seed": seed, "videos": num_videos, "stride": stride, "broken": broken}
    if kind is Kind.RICH:
        load_pictures()  # an error comes before the first file
        facts["kind"] = kind
    jobs: dict[Path, _Job] = {
        dest / scene.path: partial(render_video, scene)
        for scene in plan_scenes(num_videos, seed, stride=stride, kind=kind)
    }
    if broken:
        jobs |= {dest / name: job for name, job in _broken_videos(num_videos, seed, stride, kind)}
    try:
        dest.mkdir(parents=True, exist_ok=True)
        _refuse_another(dest, facts, jobs)
        for folder in sorted({path.parent for path in jobs}):
            folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MisuseError(f"{dest}: can't be written ({error.strerror}). Use another one") from error
    # A file gets its name by a rename when it is complete, so the name is the proof.
    missing = [(job, path) for path, job in jobs.items() if not path.exists()]
    with resumable(lambda: f"{sum(path.exists() for path in jobs)} of {plural(len(jobs), 'video')} are in {dest}"):
        for count, _ in enumerate(_in_processes(missing, workers), start=len(jobs) - len(missing) + 1):
            if on_done is not None:
                on_done(count)
    if not (dest / MARKER).exists():
        commit_bytes(dest / MARKER, (json.dumps(facts) + "\n").encode())


_Job = Callable[[Path], None]


def _refuse_another(dest: Path, facts: dict[str, Any], planned: Iterable[Path]) -> None:
    """Refuse a folder with another demo: its marker differs, or it has a file that is not planned."""
    advice = "Use another folder, or delete this one"
    try:
        stored = json.loads((dest / MARKER).read_bytes())
    except FileNotFoundError:
        rendered = {path for name in ("scene", "rich", "broken") for path in dest.glob(f"*/{name}-*.mp4")}
        for path in sorted(rendered - {*planned}):
            kind = facts.get("kind", Kind.MOTION)
            requested = f"kind {kind}, seed {facts['seed']}, videos {facts['videos']}, broken {facts['broken']}"
            raise MisuseError(
                f"{dest}: has another unfinished demo: {path.relative_to(dest)} is not part of {requested}. {advice}"
            ) from None
        return
    except (ValueError, OSError) as error:
        raise MisuseError(f"{dest / MARKER}: can't be read ({error}). {advice}") from error
    if stored != facts:
        # The marker of kind `motion` names no kind: it is older than the kinds.
        old, new = ({"kind": Kind.MOTION.value} | one for one in (stored if isinstance(stored, dict) else {}, facts))
        changes = (f"{key} {old.get(key)}, requested {value}" for key, value in new.items() if old.get(key) != value)
        raise MisuseError(f"{dest}: has another demo ({'; '.join(changes)}). {advice}")


def _in_processes(jobs: list[tuple[_Job, Path]], workers: int) -> Iterator[Path]:
    """Run the jobs in `workers` processes; yields each path when its file is complete."""
    with Pool(min(workers, max(1, len(jobs)))) as pool:
        for job, path in jobs:
            pool.submit(path, _commit, job, path)
        while (finished := next_finished((pool,))) is not None:
            if isinstance(finished.error, WorkerDied):
                raise VmaeError(f"{finished.tag}: {finished.error}. Run the same command again")
            if finished.error is not None:
                raise finished.error
            yield finished.result


def _commit(job: _Job, path: Path) -> Path:
    temporary = temporary_path(path)
    try:
        job(temporary)
        commit_file(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return path


def _broken_videos(num_videos: int, seed: int, stride: int, kind: Kind) -> Iterator[tuple[str, _Job]]:
    """Six kinds of damage, each to a scene beyond the data set, in the folder of its class."""
    first = -(-num_videos // len(CLASSES)) * len(CLASSES)
    classes = min(num_videos, len(CLASSES))  # no folder gets only broken videos
    numbers = [first + len(CLASSES) * i + i % classes for i in range(len(_DAMAGE))]
    prefix = "broken-rich" if kind is Kind.RICH else "broken"
    for (name, damage), scene in zip(_DAMAGE.items(), scenes_of(numbers, seed, stride, kind), strict=True):
        yield f"{scene.class_name}/{prefix}-{name}-{seed}.mp4", partial(damage, scene._replace(tone=None))


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
    for position in range(first + (end - first) // 3, first + (end - first) * 2 // 3):
        data[position] ^= 0x55
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
