"""`vmae-train export`: a checkpoint → a folder with model.onnx, model.pt2 and how to use them.

B clips, T frames, H rows, W columns, K outputs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.read.dataset import Shards
from vmae_data.storage import RemotePath, storage_path
from vmae_train.checkpoints.card_parts import Origin, origin_of
from vmae_train.checkpoints.convert import check_new, new_folder
from vmae_train.checkpoints.load import load_model
from vmae_train.clips.colour import per_colour
from vmae_train.export.program import (
    INPUT,
    export_program,
    output_of,
    output_of_clips,
    write_onnx,
    write_torch_export,
)
from vmae_train.export.readme import write_readme
from vmae_train.inference.read_video import local_video, read_clips
from vmae_train.models.base import VideoModel

__all__ = ["TOLERANCE", "Check", "ExportFormat", "Exported", "export_model", "facts_of"]

ExportFormat = Literal["onnx", "torch-export"]
FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "torch-export": "model.pt2"}
TOLERANCE = 1e-4  # of a probability; of values and features, relative to the largest
_NUM_CLIPS = 3

_Run = Callable[[Tensor], NDArray[np.float32]]


class Check(NamedTuple):
    """How far a file's output is from the checkpoint's; None: it was not run."""

    file: str
    runtime: str
    difference: float | None

    def __str__(self) -> str:
        if self.difference is None:
            return f"{self.file}: not checked: {self.runtime} is not installed"
        return f"{self.file}: {self.runtime} differs from the checkpoint by {self.difference:.1e}"


class Exported(NamedTuple):
    """What was written, the checks, and the frames that they were made on, in words."""

    output: str
    names: tuple[str, ...]
    checks: tuple[Check, ...]
    frames: str


def export_model(
    checkpoint: str,
    dest: Path,
    *,
    to: Sequence[ExportFormat] = get_args(ExportFormat),
    resize: bool = True,
    best: bool = False,
    ema: bool = False,
    class_names: tuple[str, ...] | None = None,
    data: str | None = None,
) -> Exported:
    """Write a new folder, completely or not at all. `resize`: frames may have any size, else the model's.

    `data`: shards or a video, whose frames the written files are checked on [default: the run's shards, if they are on
    this machine, else drawn frames].
    Raises MisuseError for an existing `dest`, DataError for what can't be read, VmaeError for missing packages, a
    folder that can't be written, and a file whose output differs by more than `TOLERANCE`.
    """
    check_new(dest)
    formats = [name for name in get_args(ExportFormat) if name in to]
    if "onnx" in formats:
        _need_onnx()
    model = load_model(checkpoint, best=best, ema=ema, classes=class_names)
    origin = origin_of(checkpoint, best=best, ema=ema)
    antialias = origin.protocol.antialias
    frames_BTHWC, described = _real_frames(model, origin, data)
    if not resize:
        frames_BTHWC = _as_model_sees(model, frames_BTHWC, antialias=antialias)
    with torch.inference_mode():
        expected_BK = output_of_clips(model, model.preprocess(frames_BTHWC, antialias=antialias)).numpy()
    program = export_program(model, resize=resize, antialias=antialias)
    with new_folder(dest) as folder:
        checks = []
        for name in formats:
            path = folder / FILES[name]
            if name == "onnx":
                write_onnx(path, program, output_of(model))
            else:
                write_torch_export(path, program)
            checks.append(_check(path, frames_BTHWC, expected_BK))
        names = write_readme(folder, model, origin, [FILES[name] for name in formats], resize=resize)
    return Exported(output_of(model), names, tuple(checks), described)


def _need_onnx() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise VmaeError(
            f"{' and '.join(missing)} not installed. Run `python -m pip install 'vmae[export]'`, or add "
            "--to torch-export, which needs neither"
        )


def _check(path: Path, frames_BTHWC: Tensor, expected_BK: NDArray[np.float32]) -> Check:
    """Run all clips together, then one alone: the program takes any number. Raises VmaeError if an output differs."""
    runtime, run = _onnxruntime(path) if path.suffix == ".onnx" else _torch(path)
    if run is None:
        return Check(path.name, runtime, None)
    scale = max(1.0, float(np.abs(expected_BK).max()))
    difference = 0.0
    for part in (slice(None), slice(0, 1)):
        found = run(frames_BTHWC[part])
        difference = max(difference, float(np.abs(found - expected_BK[part]).max()) / scale)
    if not difference <= TOLERANCE:
        raise VmaeError(
            f"{path.name}: its output in {runtime} differs from the checkpoint by {difference:.1e}, more than "
            f"{TOLERANCE:g}. Nothing was written. Try other versions of torch and {runtime.split()[0]}"
        )
    return Check(path.name, runtime, difference)


def _onnxruntime(path: Path) -> tuple[str, _Run | None]:
    if find_spec("onnxruntime") is None:
        return "onnxruntime", None
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return f"onnxruntime {onnxruntime.__version__}", lambda frames: session.run(None, {INPUT: frames.numpy()})[0]


def _torch(path: Path) -> tuple[str, _Run]:
    module = torch.export.load(path).module()

    def run(frames: Tensor) -> NDArray[np.float32]:
        with torch.inference_mode():
            output: NDArray[np.float32] = module(frames).numpy()
        return output

    return f"torch {torch.__version__}", run


def _real_frames(model: VideoModel, origin: Origin, data: str | None) -> tuple[Tensor, str]:
    """Clips of a video, or of the first sample of shards, (B, T, H, W, 3), and where they are from."""
    facts = origin.facts
    urls = (data,) if data is not None else (facts.validation, *facts.data) if facts is not None else ()
    for url in urls:
        if url is None:
            continue
        try:
            if data is None and isinstance(storage_path(url), RemotePath):
                continue
            return _frames_of(url, model.geometry.num_frames), url
        except VmaeError:
            if data is not None:
                raise
    return _drawn_frames(model), "drawn frames"


def _frames_of(url: str, num_frames: int) -> Tensor:
    if local_video(url) is not None:
        return read_clips(url, num_frames, stride=1, views=_NUM_CLIPS)
    shards = Shards.open(url)
    if not len(shards):
        raise MisuseError(f"{url}: holds no samples. Name other shards, or a video")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.mp4"
        path.write_bytes(shards.sample(0).data)
        return read_clips(path, num_frames, stride=1, views=_NUM_CLIPS)


def _drawn_frames(model: VideoModel) -> Tensor:
    """A coarse pattern that moves by 2 pixels a frame, wider than high."""
    geometry = model.geometry
    height, width = geometry.image_size * 5 // 4, geometry.image_size * 5 // 3
    pattern = np.random.default_rng(0).integers(0, 256, (_NUM_CLIPS, height // 4 + 1, width // 4 + 1, 3), np.uint8)
    pattern = pattern.repeat(4, axis=1).repeat(4, axis=2)[:, :height, :width]
    clips = [np.roll(pattern, 2 * number, axis=2) for number in range(geometry.num_frames)]
    return torch.from_numpy(np.stack(clips, axis=1))


def _as_model_sees(model: VideoModel, frames_BTHWC: Tensor, *, antialias: bool) -> Tensor:
    """The frames resized and cropped to the model's size, rounded to uint8."""
    clips = model.preprocess(frames_BTHWC, antialias=antialias)
    rgb01 = clips * per_colour(model.std_C) + per_colour(model.mean_C)
    return rearrange((rgb01 * 255).round().clamp(0, 255).byte(), "b c t h w -> b t h w c").contiguous()


def facts_of(exported: Exported, dest: Path) -> dict[str, Any]:
    """The result as JSON."""
    checks = [check._asdict() for check in exported.checks]
    return {
        "out": str(dest),
        "output": exported.output,
        "names": exported.names,
        "frames": exported.frames,
        "checks": checks,
    }
