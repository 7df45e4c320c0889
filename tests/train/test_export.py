"""`vmae-train export`: the written files give the checkpoint's output, and their README runs as printed."""

from __future__ import annotations

import json
import re
import resource
import shutil
from importlib import util
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from tests.command import call_command
from vmae_data.errors import VmaeError
from vmae_train import Predictor, load_model
from vmae_train.checkpoints.native import save_model
from vmae_train.export import export_model as export
from vmae_train.export import program as export_program
from vmae_train.export.export_model import export_model
from vmae_train.export.program import FramesToOutput
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier, MultiLabelClassifier, RegressedValue, Regressor
from vmae_train.models.videomae import PretrainModel

pytestmark = pytest.mark.processes
needs_onnx = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="onnx, onnxscript and onnxruntime are not all installed",
)
GEOMETRY = ModelSpec(size="tiny", depth=1, decoder_depth=1, embed_dim=96, decoder_embed_dim=48).geometry()
CLASSES = ("left", "right", "up → down")


def _model(kind: str) -> VideoModel:
    model: VideoModel
    match kind:
        case "features":
            model = PretrainModel(GEOMETRY, seed=1)
        case "values":
            model = Regressor(GEOMETRY, (RegressedValue(name="speed", mean=300.0, spread=20.0),), seed=1)
        case "attentive":
            model = Classifier(msgspec.structs.replace(GEOMETRY, pooling="attentive"), CLASSES, seed=1)
        case "slices":
            model = Classifier(msgspec.structs.replace(GEOMETRY, pooling="slices", standardize=True), CLASSES, seed=1)
        case "labels":
            model = MultiLabelClassifier(GEOMETRY, CLASSES, seed=1)
        case _:
            model = Classifier(GEOMETRY, CLASSES, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model.eval()


def _saved(kind: str, folder: Path) -> Path:
    folder.mkdir()
    save_model(folder, _model(kind))
    return folder


def _frames(batch: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (batch, 16, height, width, 3), dtype=torch.uint8, generator=generator)


def _outputs(path: Path, frames: Tensor) -> np.ndarray:
    if path.suffix == ".pt2":
        with torch.inference_mode():
            return torch.export.load(path).module()(frames).numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"frames": frames.numpy()})[0]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(36, 48), (24, 20), (32, 32), (33, 35), (100, 32), (270, 480)])
def test_the_resize_inside_equals_preprocess(size: tuple[int, int], antialias: bool) -> None:
    model = _model("classes")
    module, frames = FramesToOutput(model, resize=True, antialias=antialias), _frames(1, *size)
    with torch.inference_mode():
        clips = module.centre_square(frames.permute(0, 4, 1, 2, 3).float()) / 255
        expected = model.preprocess(frames, antialias=antialias)
    own = (clips - model.mean_C[:, None, None, None]) / model.std_C[:, None, None, None]
    assert (own - expected).abs().max() < 2e-4


@pytest.fixture(scope="module")
def exported(tiny_finetuning: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("export") / "exported"
    done = call_command("vmae_train", "export", tiny_finetuning, "--out", dest)
    first, *checks = done.stdout.splitlines()
    assert first == str(dest)
    assert [line.split(":")[0].strip() for line in checks] == ["model.onnx", "model.pt2"]
    assert all(re.search(r"differs from the checkpoint by \d\.\de-\d\d, on .*demo-shards$", line) for line in checks)
    return dest


@needs_onnx
@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_any_number_of_clips_of_any_size_have_the_predictors_probabilities(
    file: str, exported: Path, tiny_finetuning: Path
) -> None:
    predictor = Predictor(tiny_finetuning, "cpu")
    for frames in (_frames(1, 36, 48), _frames(3, 72, 40), _frames(2, 24, 20)):
        assert np.abs(_outputs(exported / file, frames) - predictor.predict_clips(frames).numpy()).max() < 1e-4


@needs_onnx
def test_the_onnx_file_names_its_axes_and_no_path_of_the_machine(exported: Path) -> None:
    import onnx

    model = onnx.load(exported / "model.onnx")
    onnx.checker.check_model(model)
    (frames,), (output,) = model.graph.input, model.graph.output
    axes = [axis.dim_param or axis.dim_value for axis in frames.type.tensor_type.shape.dim]
    assert (frames.name, axes) == ("frames", ["batch", 16, "height", "width", 3])
    assert (output.name, output.type.tensor_type.shape.dim[0].dim_param) == ("probabilities", "batch")
    for file in exported.iterdir():
        data = file.read_bytes()
        assert str(Path(__file__).parents[2]).encode() not in data, file.name
        assert b"stack_trace" not in data or file.suffix == ".pt2", file.name


@needs_onnx
def test_an_export_writes_the_same_bytes_each_time(exported: Path, tiny_finetuning: Path, tmp_path: Path) -> None:
    export_model(str(tiny_finetuning), tmp_path / "again")
    assert {path.name for path in exported.iterdir()} == {"README.md", "export.json", "model.onnx", "model.pt2"}
    for path in exported.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


@needs_onnx
def test_the_readme_says_what_goes_in_and_comes_out(exported: Path, tiny_finetuning: Path) -> None:
    text = (exported / "README.md").read_text()
    geometry, names = load_model(tiny_finetuning).geometry, load_model(tiny_finetuning).classes
    for stated in (
        "* Input `frames`: uint8, batch × 16 × height × width × 3, RGB",
        f"mean {list(geometry.mean)}, std {list(geometry.std)}",
        "16 frames, every 2nd frame of the video",
        "* Output `probabilities`: float32, batch × 8",
        "takes 1x1 views of a video",
        *(f"    {number} {name}\n" for number, name in enumerate(names)),
    ):
        assert stated in text
    assert json.loads((exported / "export.json").read_text())["names"] == list(names)


def _run_readme(folder: Path, video: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run all Python in a folder's README.md; returns the number of blocks."""
    shutil.copy(video, folder / "video.mp4")
    monkeypatch.chdir(folder)
    text = (folder / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    return len(blocks)


@needs_onnx
def test_the_python_of_the_readme_runs_as_printed(
    exported: Path,
    demo_videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "copy"))
    assert _run_readme(folder, next(demo_videos.rglob("scene*.mp4")), monkeypatch) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    onnx, torch_export = ([line.split() for line in part] for part in (lines[:5], lines[5:]))
    assert [name for name, _ in onnx] == [name for name, _ in torch_export]
    assert float(onnx[0][1]) == pytest.approx(float(torch_export[0][1]), abs=1e-4)


@pytest.mark.parametrize("resize", [True, False])
@pytest.mark.parametrize("kind", ["labels", "values", "features"])
def test_every_kind_of_model_is_exported_and_checked(
    kind: str, resize: bool, tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """These belong to no run: their frames are resized without antialias, as published models are evaluated."""
    checkpoint, dest = _saved(kind, tmp_path / "model"), tmp_path / "exported"
    video = next(demo_videos.rglob("scene*.mp4"))
    result = export_model(str(checkpoint), dest, to=["torch-export"], resize=resize, data=str(video))
    assert result.output == ("probabilities" if kind == "labels" else kind)
    assert result.checks[0].difference is not None and result.checks[0].difference < 1e-5
    model, frames = load_model(checkpoint), _frames(2, 32, 32) if not resize else _frames(2, 50, 40)
    with torch.inference_mode():
        clips = model.preprocess(frames, antialias=False)
        expected = model.features(clips) if kind == "features" else model(clips)  # type: ignore[operator]
    expected = expected.sigmoid() if kind == "labels" else expected
    assert np.abs(_outputs(dest / "model.pt2", frames) - expected.numpy()).max() < 1e-4 * float(expected.abs().max())
    assert _run_readme(dest, video, monkeypatch) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith({"features": "(1, 96)", "values": "speed "}.get(kind, CLASSES))
    assert ("height × width" if resize else "batch × 16 × 32 × 32 × 3") in (dest / "README.md").read_text()


@needs_onnx
@pytest.mark.parametrize("kind", ["attentive", "slices", "values", "features"])
def test_onnx_of_frames_of_the_models_size_is_checked(kind: str, tmp_path: Path) -> None:
    result = export_model(str(_saved(kind, tmp_path / "m")), tmp_path / "a", to=["onnx"], resize=False)
    (check,) = result.checks
    assert check.difference is not None and check.difference < 1e-5
    assert result.frames == "drawn frames"


@needs_onnx
def test_the_weights_of_a_large_model_are_in_a_file_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_program, "_ONE_FILE", 1000)
    export_model(str(_saved("classes", tmp_path / "m")), tmp_path / "a", to=["onnx"], resize=False)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "a").iterdir()}
    assert sizes.keys() == {"README.md", "export.json", "model.onnx", "model.onnx.data"}
    assert sizes["model.onnx"] < sizes["model.onnx.data"]
    assert "`model.onnx` needs `model.onnx.data` beside it" in (tmp_path / "a" / "README.md").read_text()


def test_a_pretrained_model_is_said_to_give_features(tiny_pretraining: Path, tmp_path: Path) -> None:
    done = call_command(
        "vmae_train", "export", tiny_pretraining, "--out", tmp_path / "a", "--to", "torch-export", "--json"
    )
    assert "has no head, so the output is features" in done.stderr
    said = json.loads(done.stdout)
    assert (said["output"], said["names"]) == ("features", [])
    assert said["checks"][0]["difference"] < 1e-5


# Errors.


def test_what_can_not_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    checkpoint = _saved("classes", tmp_path / "model")
    (tmp_path / "there").mkdir()
    for arguments, message in (
        ((checkpoint, "--out", tmp_path / "there"), "already exists. Choose a new path"),
        ((checkpoint, "--out", tmp_path / "none" / "a"), "its parent folder does not exist"),
        ((checkpoint, "--out", "s3://bucket/a"), "s3://bucket/a"),
        ((checkpoint, "--out", tmp_path / "a", "--to", "tflite"), "tflite"),
        ((tmp_path / "nothing", "--out", tmp_path / "a", "--to", "torch-export"), "nothing"),
        ((checkpoint, "--out", tmp_path / "a", "--ema", "--to", "torch-export"), "ema"),
    ):
        done = call_command("vmae_train", "export", *arguments, status=2 if "--ema" not in arguments else 1)
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "there"]


def test_missing_packages_are_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = str(_saved("classes", tmp_path / "model"))
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(
        VmaeError, match=r"^onnx and onnxscript not installed. Run `python -m pip install 'vmae\[export\]'`"
    ):
        export_model(checkpoint, tmp_path / "a")
    assert export._check(tmp_path / "model.onnx", _frames(1, 32, 32), np.zeros((1, 3), np.float32)).difference is None
    assert str(export.Check("model.onnx", "onnxruntime", None)).endswith("not checked: onnxruntime is not installed")


def test_an_output_that_differs_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = str(_saved("classes", tmp_path / "model"))
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(VmaeError, match="differs from the checkpoint by .* Nothing was written"):
        export_model(checkpoint, tmp_path / "a", to=["torch-export"])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_data_that_is_no_video_is_refused(tmp_path: Path) -> None:
    checkpoint = str(_saved("classes", tmp_path / "model"))
    (tmp_path / "a.mp4").write_bytes(b"no video")
    for data in ("a.mp4", "missing"):
        with pytest.raises(VmaeError, match=data):
            export_model(checkpoint, tmp_path / "out", to=["torch-export"], data=str(tmp_path / data))


@pytest.mark.parametrize("to", ["torch-export", pytest.param("onnx", marks=needs_onnx)])
def test_a_full_disk_leaves_nothing_and_the_error_names_the_destination(to: Any, tmp_path: Path) -> None:
    checkpoint, limits = str(_saved("classes", tmp_path / "model")), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(VmaeError, match=f"^{tmp_path / 'a'}.*(can't be written|no space left)"):
            export_model(checkpoint, tmp_path / "a", to=[to])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
