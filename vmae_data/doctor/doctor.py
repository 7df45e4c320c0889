"""This machine → a check for everything that a build needs. Each is tried, not only looked up.

This module imports nothing that may be missing: its job is to report that.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from vmae_data.amounts import format_bytes
from vmae_data.console import CheckResult, CheckState
from vmae_data.doctor.machine import core_quota, cores, existing_part, memory_bytes, shared_memory_bytes, try_folder
from vmae_data.doctor.storage_access import failed_check, storage_checks, url_checks
from vmae_data.doctor.training import training_checks
from vmae_data.encode.ffmpeg import Ffmpeg, encoders_of, ffmpeg_python, find_ffmpeg, owners_of
from vmae_data.errors import VmaeError
from vmae_data.storage import RemotePath, StoragePath

__all__ = ["examine"]

OLDEST_PYTHON = (3, 11)
# An encode of 1080p takes 80 MB in ffmpeg and as much in its worker (2026-11); larger sources take more.
MEMORY_PER_CORE = 300e6
# A shard has 100 to 300 MB, and its videos are in staging too while it is packed.
MIN_FREE_BYTES = 2e9
MIN_FREE_NAMES = 10_000
ENCODERS = {"libx264": "profile h264", "mpeg4": "profile mpeg4", "mjpeg": "profile mjpeg"}
TRIAL_FRAMES, TRIAL_RATE = 25, 25


def examine(dest: StoragePath | None = None, ffmpeg: str | None = None) -> Iterator[CheckResult]:
    """Every check, in the order in which a build would need it. `dest` is tried too [default: the working directory]."""
    yield _python()
    yield from _packages()
    yield _module_named_ffmpeg()
    yield from _ffmpeg_checks(ffmpeg)
    yield _cores()
    yield _memory()
    yield _shared_memory()
    if not isinstance(dest, RemotePath):
        yield _destination(dest)
    yield _temporary_folder()
    yield from storage_checks()
    if isinstance(dest, RemotePath):
        yield from url_checks(dest)
    yield from training_checks()


def _python() -> CheckResult:
    found = f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {platform.machine()}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return CheckResult("python", "missing", found, "Use Python 3.11 or later")
    if sys.platform != "linux":
        return CheckResult(
            "python", "missing", found, "Use Linux: its kernel ends ffmpeg and workers with their parent"
        )
    if platform.machine() != "x86_64":
        advice = "Shards from x86-64 may have other bytes. Build a data set on one kind of machine"
        return CheckResult("python", "warning", found, advice)
    return CheckResult("python", "ok", found)


def _packages() -> Iterator[CheckResult]:
    for name, module in (("pyarrow", "pyarrow"), ("msgspec", "msgspec"), ("numpy", "numpy"), ("Pillow", "PIL.Image")):
        yield _package(name, module)
    # Only looked up: its import would load torch, if that is installed.
    yield _package("webdataset", None)
    yield _pyav()


def _package(name: str, module: str | None) -> CheckResult:
    try:
        version = metadata.version(name)
        if module is not None:
            importlib.import_module(module)
    except metadata.PackageNotFoundError:
        return CheckResult(name, "missing", "not installed", f"python -m pip install {name}")
    except Exception as error:  # a broken package may raise anything at import
        advice = f"python -m pip install --force-reinstall {name}"
        return CheckResult(name, "missing", f"can't be imported ({type(error).__name__}: {error})", advice)
    return CheckResult(name, "ok", version)


def _pyav() -> CheckResult:
    package = _package("av", "av")
    if package.state != "ok":
        return package._replace(name="PyAV")
    import av

    versions = ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in sorted(av.library_versions.items()))
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trial.mp4"
            write_trial_video(path)
            with av.open(str(path)) as file:
                decoded = sum(1 for _ in file.decode(video=0))
    except (av.FFmpegError, OSError, ValueError) as error:
        found = f"{package.found}: can't write and read a video ({error})"
        return CheckResult("PyAV", "missing", found, "python -m pip install --force-reinstall av")
    if decoded != TRIAL_FRAMES:
        found = f"{package.found}: {decoded} of {TRIAL_FRAMES} frames decode"
        return CheckResult("PyAV", "missing", found, "python -m pip install --force-reinstall av")
    return CheckResult("PyAV", "ok", f"{package.found} ({versions})")


def write_trial_video(path: Path) -> None:
    """One second of a moving edge, 128 × 96, made without the ffmpeg that is tried later."""
    import av
    import numpy as np

    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=TRIAL_RATE)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        stream.codec_context.thread_count = 1
        for number in range(TRIAL_FRAMES):
            picture = np.zeros((96, 128, 3), np.uint8)
            picture[:, 4 * number :] = 255
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))


def _module_named_ffmpeg() -> CheckResult:
    """ffmpeg-python, or another package with a module of the same name."""
    owners = owners_of("ffmpeg")
    try:
        ffmpeg_python()
    except VmaeError as error:
        return failed_check("ffmpeg-python", error)
    others = [owner for owner in owners if owner != "ffmpeg-python"]
    if others:
        found = f"works, but {' and '.join(others)} installs a module ffmpeg too"
        advice = f"Run `python -m pip uninstall {' '.join(others)}`. The package that was installed last is used"
        return CheckResult("ffmpeg-python", "warning", found, advice)
    version = metadata.version("ffmpeg-python") if owners else "of unknown version"
    return CheckResult("ffmpeg-python", "ok", f"{version}, the only package with a module ffmpeg")


def _ffmpeg_checks(named: str | None) -> Iterator[CheckResult]:
    try:
        binary = find_ffmpeg(named)
        encoders = encoders_of(binary.path)
    except VmaeError as error:
        yield failed_check("ffmpeg", error)
        return
    origin = "--ffmpeg" if named else "VMAE_FFMPEG" if os.environ.get("VMAE_FFMPEG") else "imageio-ffmpeg"
    yield CheckResult("ffmpeg", "ok", f"{binary.version} from {origin}: {binary.path}, sha256 {binary.sha256}")
    missing = [name for name in ENCODERS if name not in encoders]
    if missing:
        names = ", ".join(f"{name} ({ENCODERS[name]})" for name in missing)
        advice = "To use these profiles, set VMAE_FFMPEG to an ffmpeg with these encoders"
        yield CheckResult("encoders", "warning", f"missing: {names}", advice)
    else:
        yield CheckResult("encoders", "ok", ", ".join(ENCODERS))
    yield _trial_encode(binary)


def _trial_encode(binary: Ffmpeg) -> CheckResult:
    """One second of video through the build's own steps: probe, encode, decode with the trainer's decoder."""
    name = "encode and decode"
    try:
        from vmae_data.encode.build_spec import BuildSpec
        from vmae_data.encode.encode_source import encode_source
        from vmae_data.encode.staged import EncodeJob

        with tempfile.TemporaryDirectory() as folder:
            write_trial_video(Path(folder) / "trial.mp4")
            job = EncodeJob(
                key="trial",
                path=b"trial.mp4",
                folder=os.fsencode(folder),
                label=None,
                class_name=None,
                split=None,
                spec=BuildSpec(),
                ffmpeg=binary.path,
                staging=Path(folder),
            )
            staged = encode_source(job)
    except ImportError as error:
        return CheckResult(name, "missing", f"not tried: {error}", "Fix what is missing above")
    except VmaeError as error:
        return failed_check(name, error)
    except OSError as error:
        return CheckResult(name, "missing", f"{error.filename}: {error.strerror}", "Free space in the temporary folder")
    if staged.failure is not None:
        found = f"{staged.failure.reason}: {staged.failure.detail}"
        return CheckResult(name, "missing", found, "Use another ffmpeg (VMAE_FFMPEG), or reinstall av")
    facts = staged.samples[0].facts
    found = f"1 s of video: {facts.phases[0].frames} of {facts.source.frames} frames kept, {facts.profile}, all decode"
    return CheckResult(name, "ok", found)


def _cores() -> CheckResult:
    usable, quota = cores(), core_quota()
    found = f"{usable} of {os.cpu_count()} cores"
    if quota is not None:
        found += f", limited to the time of {quota:.4g} by a control group"
        if quota < usable:
            advice = f"Use --workers {max(1, int(quota))}. More workers only wait for each other"
            return CheckResult("cores", "warning", found, advice)
    return CheckResult("cores", "ok", found)


def _memory() -> CheckResult:
    granted, usable = memory_bytes(), cores()
    found = f"{format_bytes(granted)}, {format_bytes(granted / usable)} per core"
    if granted < MEMORY_PER_CORE * usable:
        workers = max(1, int(granted / MEMORY_PER_CORE))
        return CheckResult("memory", "warning", found, f"Use --workers {workers}. An encode takes 200 MB or more")
    return CheckResult("memory", "ok", found)


def _shared_memory() -> CheckResult:
    """Reported because people suspect it first: containers have 64 MB, which breaks other loaders."""
    found = f"{format_bytes(shared_memory_bytes())}; not used: batches are in anonymous memory"
    return CheckResult("shared memory", "ok", found)


def _destination(dest: Path | None) -> CheckResult:
    folder = dest or Path()
    existing = existing_part(folder)
    name = "destination" if dest else "working directory"
    prefix = "" if existing == folder.absolute() else f"{folder}, to be created in "
    return _folder(name, existing, "missing", prefix)


def _temporary_folder() -> CheckResult:
    # A warning only: a build keeps all its files in its destination.
    try:
        return _folder("temporary folder", Path(tempfile.gettempdir()), "warning", "")
    except FileNotFoundError as error:
        advice = "Set TMPDIR to a folder that can be written"
        return CheckResult("temporary folder", "warning", str(error.strerror), advice)


def _folder(name: str, folder: Path, worst: CheckState, prefix: str) -> CheckResult:
    facts = try_folder(folder)
    found = f"{prefix}{folder}: {facts.file_system}, {format_bytes(facts.free_bytes)} free"
    if facts.problem:
        advice = "Use another folder, or fix its permissions or its mount"
        return CheckResult(name, worst, f"{found}; {facts.problem}", advice)
    found += "; write, sync, rename and flock work"
    if facts.free_bytes < MIN_FREE_BYTES:
        advice = "Free space: a shard takes 100 to 300 MB, and as much again while it is built"
        return CheckResult(name, "warning", found, advice)
    if facts.free_names is not None and facts.free_names < MIN_FREE_NAMES:
        return CheckResult(name, "warning", f"{found}. Only {facts.free_names} more files fit", "Remove some files")
    if facts.is_network:
        advice = "flock was tried on this machine only. Build a data set on one machine at a time"
        return CheckResult(name, "ok", found, advice)
    return CheckResult(name, "ok", found)
