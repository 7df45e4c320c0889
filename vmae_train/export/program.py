"""A model → the program that is exported: uint8 frames in, probabilities, values or features out.

B clips, T frames, H rows, W columns, C colours, S the model's image size, K outputs.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from vmae_data.read.dataset import LabelKind
from vmae_data.storage import commit_bytes
from vmae_train.clips.colour import per_colour
from vmae_train.clips.resample import resample_weights
from vmae_train.evaluation.predict_videos import output_kind
from vmae_train.evaluation.predictions import activate
from vmae_train.models.base import VideoModel
from vmae_train.models.heads import HeadModel

__all__ = [
    "INPUT",
    "FramesToOutput",
    "export_program",
    "output_of",
    "output_of_clips",
    "write_onnx",
    "write_torch_export",
]

INPUT = "frames"
_OUTPUTS = {LabelKind.CLASS: "probabilities", LabelKind.CLASSES: "probabilities", LabelKind.VALUES: "values"}
_AXES = {0: "batch", 2: "height", 3: "width"}
_ONE_FILE = 1 << 30  # bytes of weights inside model.onnx; a protobuf holds less than 2 GiB
_OPSET = 20
# What torch records of the source of each node: paths of this machine, and no part of the program.
_SOURCES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node")


def output_of(model: VideoModel) -> str:
    """The name of the output: a model without a head gives features."""
    return _OUTPUTS[output_kind(model)] if isinstance(model, HeadModel) else "features"


def output_of_clips(model: VideoModel, clips_BCTHW: Tensor) -> Tensor:
    """The output (B, K) of preprocessed clips."""
    if isinstance(model, HeadModel):
        return activate(model(clips_BCTHW), output_kind(model))
    features_BE: Tensor = model.features(clips_BCTHW)  # type: ignore[operator]
    return features_BE


class FramesToOutput(nn.Module):
    """RGB frames, uint8 (B, T, H, W, 3) → (B, K). `resize`: any H and W; else both are the model's image size.

    Resize and crop are those of `VideoModel.preprocess`, as products with matrices: every runtime has these.
    """

    def __init__(self, model: VideoModel, *, resize: bool, antialias: bool) -> None:
        super().__init__()
        self.model, self.resize, self.antialias = model, resize, antialias

    def forward(self, frames: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B K"]:
        clips = rearrange(frames, "b t h w c -> b c t h w").float()
        if self.resize:
            clips = self.centre_square(clips)
        clips = (clips / 255 - per_colour(self.model.mean_C)) / per_colour(self.model.std_C)
        return output_of_clips(self.model, clips)

    def centre_square(self, clips_BCTHW: Tensor) -> Tensor:
        height, width = clips_BCTHW.shape[-2:]
        short = torch.minimum(_number(height), _number(width))
        rows_SH, columns_SW = (self._weights(side, short) for side in (height, width))
        return rows_SH @ (clips_BCTHW @ columns_SW.mT)

    def _weights(self, length: int | torch.SymInt, short: Tensor) -> Tensor:
        """The weights of `length` pixels in each of the S pixels of the centre."""
        size = self.model.geometry.image_size
        resized = size * _number(length) // short
        spare = resized - size
        first = spare // 2 + spare % 2 * (spare // 2 % 2)  # half a pixel to even
        step = _number(length).float() / resized
        zero = torch.zeros(1, device=step.device)
        weights_1SN = resample_weights(
            (first * step)[None],
            (size * step)[None],
            zero,
            _number(length).float()[None],
            length=length,
            size=size,
            antialias=self.antialias,
        )
        return weights_1SN[0]


def _number(value: int | torch.SymInt) -> Tensor:
    """A size as a tensor: arithmetic of sizes then is part of the program, and no condition on them."""
    return torch.full((), value, dtype=torch.int64)  # type: ignore[arg-type]


def export_program(model: VideoModel, *, resize: bool, antialias: bool) -> ExportedProgram:
    """The program, for any number of clips and, with `resize`, frames of any height and width."""
    geometry = model.geometry
    height, width = (geometry.image_size + 6, geometry.image_size + 10) if resize else (geometry.image_size,) * 2
    example = torch.zeros(2, geometry.num_frames, height, width, 3, dtype=torch.uint8)
    axes = {axis: Dim(name, min=2 if axis else 1) for axis, name in _AXES.items() if resize or not axis}
    module = FramesToOutput(model, resize=resize, antialias=antialias).eval()
    with torch.no_grad(), _quietly():
        program = torch.export.export(module, (example,), dynamic_shapes={INPUT: axes})
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            for key in _SOURCES:
                node.meta.pop(key, None)
    program._example_inputs = None  # zeros, which torch.export.save would write
    return program


def write_torch_export(path: Path, program: ExportedProgram) -> None:
    """Write a .pt2 file. Raises VmaeError if it can't be written."""
    data = io.BytesIO()  # on a full disk, PyTorch's writer ends the process
    with _quietly():
        torch.export.save(program, data)
    commit_bytes(path, data.getvalue())


def write_onnx(path: Path, program: ExportedProgram, output: str) -> None:
    """Write an .onnx file; a large model's weights are in `<path>.data`. Needs onnx and onnxscript.

    Raises VmaeError if it can't be written.
    """
    axes = {axis: name for axis, name in _AXES.items() if not isinstance(_input_shape(program)[axis], int)}
    with _quietly():
        written = torch.onnx.export(
            program,
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[output],
            dynamic_shapes={INPUT: axes},
        )
        assert written is not None
        model = written.model
        values = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
        for node in model.graph:
            node.metadata_props.clear()
            node.doc_string = None
            values += node.outputs
        for value in values:
            value.metadata_props.clear()
        size = sum(weight.numel() * weight.element_size() for weight in program.state_dict.values())
        written.save(path, external_data=size > _ONE_FILE)


def _input_shape(program: ExportedProgram) -> torch.Size:
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    shape: torch.Size = node.meta["val"].shape
    return shape


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters print and warn of: packages that they miss, their own coming changes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
