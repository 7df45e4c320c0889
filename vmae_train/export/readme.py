"""README.md and export.json of an exported folder: what goes in, what comes out, and how to run it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from vmae_data.pages.html import printable
from vmae_data.storage import commit_bytes
from vmae_train.checkpoints.card_parts import Origin, code_block, frames_python, sampling_text, training_parts
from vmae_train.evaluation.predict_videos import output_names
from vmae_train.export.program import INPUT, output_of
from vmae_train.models.base import VideoModel
from vmae_train.models.heads import HeadModel

__all__ = ["write_readme"]

_MEANINGS = {
    "probabilities": "the probability of each class",
    "values": "the predicted values, in their own units",
    "features": "the mean of the encoder's tokens. The model has no head: finetune it to predict classes",
}


def write_readme(
    folder: Path, model: VideoModel, origin: Origin, files: Sequence[str], *, resize: bool
) -> tuple[str, ...]:
    """Write README.md and export.json. Returns the names of the outputs; features have none."""
    names, geometry = _names(model), model.geometry
    facts = {
        "input": INPUT,
        "shape": ["batch", geometry.num_frames, *(("height", "width") if resize else (geometry.image_size,) * 2), 3],
        "output": output_of(model),
        "names": names,
        "num_frames": geometry.num_frames,
        "image_size": geometry.image_size,
        "mean": geometry.mean,
        "std": geometry.std,
        "antialias": origin.protocol.antialias,
        "clip": origin.protocol.clip,
        "clip_is_stated": origin.is_stated,
    }
    commit_bytes(folder / "export.json", msgspec.json.format(msgspec.json.encode(facts), indent=2) + b"\n")
    weights = [f"`model.onnx` needs `{path.name}` beside it." for path in sorted(folder.glob("*.data"))]
    parts = [
        *_first_parts(model, origin, files, resize=resize),
        *weights,
        *_run_part(model, origin, files, resize=resize),
    ]
    if names:
        lines = "\n".join(f"{number} {printable(name)}" for number, name in enumerate(names))
        title = "Values" if output_of(model) == "values" else "Classes"
        parts.append(f"## {title}\n\nIn the order of the output; `export.json` has them too.\n\n{code_block(lines)}")
    commit_bytes(folder / "README.md", ("\n\n".join((*parts, *training_parts(origin))) + "\n").encode())
    return names


def _first_parts(model: VideoModel, origin: Origin, files: Sequence[str], *, resize: bool) -> list[str]:
    geometry, protocol, output = model.geometry, origin.protocol, output_of(model)
    count, size = len(_names(model)) or geometry.embed_dim, geometry.image_size
    sides = "height × width" if resize else f"{size} × {size}"
    filtered = "bilinear with antialias" if protocol.antialias else "bilinear without antialias"
    caller = f"Resize the short side of your frames to {size} pixels ({filtered}) and crop the centre"
    inside = f"resize of the short side to {size} pixels ({filtered}), crop of the centre, and normalisation"
    facts = [
        f"* Input `{INPUT}`: uint8, batch × {geometry.num_frames} × {sides} × 3, RGB, 0 to 255. Any batch"
        + (", height and width." if resize else "."),
        "* Pictures: upright, with square pixels. The Python below does not turn or scale pictures that are not.",
        f"* Inside the model: {inside}." if resize else f"* Inside the model: normalisation. {caller} yourself.",
        f"* Normalisation: (value / 255 - mean) / std, mean {list(geometry.mean)}, std {list(geometry.std)}.",
        f"* Frames of a clip: {sampling_text(origin, geometry.num_frames)}.",
        f"* Output `{output}`: float32, batch × {count}: {_MEANINGS[output]}.",
    ]
    if isinstance(model, HeadModel):
        over = "logits, then softmax or sigmoid" if protocol.merge == "logit" else output
        facts.append(
            f"* One clip is one view. The evaluation of the training takes {protocol.views} views of a video "
            f"(clips × crops) and the mean of their {over}."
        )
    return [
        f"# VideoMAE as {' and '.join(f'`{file}`' for file in files)}",
        "## Input and output\n\n" + "\n".join(facts),
    ]


def _run_part(model: VideoModel, origin: Origin, files: Sequence[str], *, resize: bool) -> list[str]:
    """A block of Python for each file. Each reads video.mp4 and prints the result."""
    return ["## Run it", *(f"```python\n{_python(file, model, origin, resize=resize)}\n```" for file in files)]


def _python(file: str, model: VideoModel, origin: Origin, *, resize: bool) -> str:
    output, size = output_of(model), model.geometry.image_size
    is_onnx = file.endswith(".onnx")
    lines = [
        *(["import json", ""] if output != "features" else []),
        "import av",
        "import numpy as np",
        "import onnxruntime" if is_onnx else "import torch",
        *([] if resize else ["from PIL import Image, ImageOps"]),
        "",
        frames_python(origin.protocol.clip, model.geometry.num_frames),
    ]
    if not resize:
        lines += [
            "images = [Image.fromarray(frame) for frame in frames]",
            f"frames = np.stack([ImageOps.fit(image, ({size}, {size}), Image.Resampling.BILINEAR) for image in images])",
        ]
    if is_onnx:
        lines += [
            f'session = onnxruntime.InferenceSession("{file}")',
            f'({output},) = session.run(None, {{"{INPUT}": frames[None]}})',
        ]
    else:
        lines += [
            f'program = torch.export.load("{file}").module()',
            "with torch.inference_mode():",
            f"    {output} = program(torch.from_numpy(frames[None])).numpy()",
        ]
    if output == "features":
        return "\n".join((*lines, "print(features.shape)"))
    lines += ['with open("export.json", encoding="utf-8") as file:', '    names = json.load(file)["names"]']
    order = "np.argsort(-probabilities[0])[:5]" if output == "probabilities" else f"range({len(_names(model))})"
    return "\n".join((*lines, f"for number in {order}:", f"    print(names[number], {output}[0, number])"))


def _names(model: VideoModel) -> tuple[str, ...]:
    return output_names(model) if isinstance(model, HeadModel) else ()
