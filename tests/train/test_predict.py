"""Predictions of video files: equal to an evaluation's, by windows, in files that a command continues, in Python."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import pytest
import torch

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.open_source import open_source
from vmae_data.errors import DataError, MisuseError, StoreError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.recipes import load_recipe
from vmae_data.storage import storage_path
from vmae_train import Predictor, load_model, read_clips
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluate import evaluate_checkpoint
from vmae_train.inference import read_video
from vmae_train.inference.find_videos import VideoFile, find_videos
from vmae_train.inference.predict import Prediction
from vmae_train.inference.read_video import read_clip
from vmae_train.inference.windows import WindowSpec, plan_windows, window_spans
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def _video(demo_videos: Path) -> Path:
    return next(path for path in sorted(demo_videos.glob("*/*.mp4")) if "broken" not in path.name)


@pytest.mark.parametrize(
    "settings",
    [
        ["evaluate.views='2x3'", "clip.stride=2"],
        ["evaluate.views='1x1'", "clip.stride=1", "evaluate.merge=logit"],
        ["evaluate.views='2x1'", "clip.sampler=uniform"],
        ["evaluate.views='1x1'", "clip.sampler=dense", "clip.stride=2", "augment.antialias=false"],
    ],
    ids=["views", "logit", "uniform", "dense"],
)
def test_a_video_is_predicted_as_an_evaluation_predicts_its_sample(
    tiny_finetuning: Path, whole_shards: Path, members: list[Path], settings: list[str]
) -> None:
    found = evaluate_checkpoint(
        str(tiny_finetuning), str(whole_shards), settings=settings, workers=0, device="cpu", style=QUIET
    ).predictions
    expected = dict(zip(found.key, found.output_NK, strict=True))
    predictor = Predictor(tiny_finetuning, "cpu", settings=settings, batch=2)
    results = predictor.run_videos([VideoFile(path.stem, path) for path in members])
    for path, result in zip(members, results, strict=True):
        (prediction,) = result.rows
        assert prediction.video == path.stem
        np.testing.assert_allclose(prediction.outputs, expected[path.stem], atol=1e-5)
    by_shards = {
        result.video.rpartition("/")[2]: result.rows for result in predictor.run_shards(Shards.open(str(whole_shards)))
    }
    assert by_shards.keys() == expected.keys()
    for key, (prediction,) in by_shards.items():
        np.testing.assert_allclose(prediction.outputs, expected[key], atol=1e-6)


def test_a_source_is_predicted_as_its_sample_but_for_the_loss_of_the_codec(
    tiny_finetuning: Path, demo_videos: Path, demo_shards: Path
) -> None:
    """`demo_shards` keep every second frame, which is the stride of the run's clips."""
    found = evaluate_checkpoint(
        str(tiny_finetuning), str(demo_shards), workers=0, device="cpu", style=QUIET
    ).predictions
    path = Shards.open(str(demo_shards)).source_paths([int(found.sample_N[0])])[0]
    assert path is not None
    (prediction,) = Predictor(tiny_finetuning, "cpu").predict(demo_videos / path)
    np.testing.assert_allclose(prediction.outputs, found.output_NK[0], atol=0.05)


def test_the_last_window_reaches_the_end_and_none_lies_in_another() -> None:
    spans = window_spans
    assert spans(10, WindowSpec()) == spans(10, WindowSpec(12, 1)) == [(0, 10)]
    assert spans(10, WindowSpec(5)) == [(0, 5), (5, 10)]
    assert spans(10, WindowSpec(4, 3)) == [(0, 4), (3, 7), (6, 10)]
    assert spans(11, WindowSpec(4, 3)) == [(0, 4), (3, 7), (6, 10), (9, 11)]
    assert spans(10, WindowSpec(1, 4)) == [(0, 1), (4, 5), (8, 9)]
    assert spans(0.3, WindowSpec(0.1)) == [(0, 0.1), (0.1, 0.2), (0.2, pytest.approx(0.3))]


def test_a_window_has_the_frames_that_are_displayed_in_it(demo_videos: Path) -> None:
    video = open_source(_video(demo_videos))
    times = video.seconds()
    windows = plan_windows(video, ClipSpec(stride=1), WindowSpec(0.5, 0.25), num_frames=4, num_clips=2)
    assert windows[0].start == 0 and windows[-1].end == times[-1]
    for window in windows:
        shown = [frame for frame, time in enumerate(times[:-1]) if window.start <= time < window.end]
        assert set(window.frames) <= set(shown)
        assert window.frames[0] == shown[0] and window.frames[-1] == shown[-1]
        assert window.index_VT.shape == (2, 4)


def test_windows_do_not_depend_on_how_many_are_decoded_or_predicted_at_once(
    tiny_finetuning: Path, members: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def outputs(batch: int) -> np.ndarray:
        predictor = Predictor(tiny_finetuning, "cpu", batch=batch)
        return np.asarray([one.outputs for one in predictor.predict(members[0], window=0.5, stride=0.25)])

    together = outputs(8)
    assert len(together) > 3
    monkeypatch.setattr(read_video, "BYTES_ON_DISK", 1)
    np.testing.assert_allclose(outputs(1), together, atol=1e-5)


def test_clips_leave_out_the_frames_that_a_build_leaves_out(demo_videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames without their references, at the start of a cut video."""
    path = _video(demo_videos)
    video = open_source(path)
    whole = read_clip(path, len(video.times), ClipSpec(stride=1))
    monkeypatch.setattr(read_video, "open_source", lambda _: video._replace(first=5))
    assert video._replace(first=5).kept_frames() == tuple(range(5, len(video.times)))
    assert video._replace(first=5).seconds()[5] == 0
    cut = read_clip(path, len(video.times) - 5, ClipSpec(stride=1))
    assert (cut[0] == whole[5]).all()


@pytest.mark.parametrize("most", [read_video.BYTES_ON_DISK, 1], ids=["short", "long"])
def test_workers_give_the_same_results_in_the_same_order(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """A worker hands over a video by a file, and leaves a long one to the main process. No file stays."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(read_video, "BYTES_ON_DISK", most)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [members[0], tmp_path / "broken.mp4", *members[1:], tmp_path / "missing.mp4"]
    videos = [VideoFile(path.name, path) for path in paths]
    predictor = Predictor(tiny_finetuning, "cpu")
    alone, shared = (list(predictor.run_videos(videos, WindowSpec(0.5), workers=workers)) for workers in (0, 2))
    assert shared == alone
    assert [result.error is not None for result in shared] == [False, True, False, False, True]
    assert not list((tmp_path / "temporary").iterdir())


def test_the_command_prints_bars_and_names_broken_videos_at_the_end(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(members[0], tmp_path / "a.mp4")
    done = call_command(
        "vmae_train", "predict", tiny_finetuning, tmp_path, "--top", "2", "--views", "1x1", "--workers", "0"
    )
    lines = done.stdout.splitlines()
    assert lines[0] == str(tmp_path / "a.mp4") and len(lines) == 3
    match = re.fullmatch(r"  0\.00 to \d\.\d\d s  (\S+) +(\d+\.\d)%  (█+)", lines[1])
    assert match is not None and len(match[3]) == round(24 * float(match[2]) / 100)
    (skipped,) = [line for line in done.stderr.splitlines() if line.startswith("skipped")]
    assert skipped.startswith(f"skipped, unreadable: {tmp_path / 'broken.mp4'}: unreadable: ")
    quiet = call_command(
        "vmae_train", "predict", tiny_finetuning, tmp_path, "--top", "2", "--views", "1x1", "--workers", "0", "--quiet"
    )
    assert (quiet.stdout, quiet.stderr.splitlines()) == (done.stdout, [skipped])
    alone = call_command("vmae_train", "predict", tiny_finetuning, tmp_path / "broken.mp4", "--quiet", status=1)
    assert alone.stderr.startswith("vmae-train: no video can be read, of 1 (")


def test_a_prediction_does_not_need_the_shards_of_the_run(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    words = ("--views", "1x1", "--workers", "0")
    here = call_command("vmae_train", "predict", tiny_finetuning, members[0], *words)
    moved = shutil.copytree(tiny_finetuning, tmp_path / "moved")
    facts = json.loads((moved / "run.json").read_bytes())
    assert facts["video_format"] == {"short_side": 36, "stride": 2, "rate": None}
    facts |= {"data": ["gone/train"], "validation": "gone/val"}
    (moved / "run.json").write_text(json.dumps(facts))
    elsewhere = call_command("vmae_train", "predict", moved, members[0], *words)
    assert elsewhere.stdout == here.stdout
    assert "not found" not in elsewhere.stderr

    del facts["video_format"]  # as runs were before
    (moved / "run.json").write_text(json.dumps(facts))
    done = call_command("vmae_train", "predict", moved, members[0], *words)
    assert "warning: the run's shards (gone/val, gone/train) are not found from this folder" in done.stderr


class _Silent(NamedTuple):
    """A video on a server that does not answer."""

    name: str

    def local(self, _folder: Path) -> NoReturn:
        raise StoreError(f"{self.name}: can't be read")


def test_a_server_that_does_not_answer_loses_its_video_only_and_two_in_a_row_end_the_job(
    tiny_finetuning: Path, members: list[Path]
) -> None:
    predictor = Predictor(tiny_finetuning, "cpu", settings=["evaluate.views='1x1'"])
    good = [VideoFile(str(path), path) for path in members[:2]]
    dead: list[Any] = [_Silent("a"), _Silent("b")]
    results = list(predictor.run_videos([dead[0], good[0], dead[1], good[1]]))
    assert [result.error for result in results] == ["a: can't be read", None, "b: can't be read", None]
    with pytest.raises(StoreError, match="^b: can't be read"):
        list(predictor.run_videos([*dead, good[0]]))


def test_a_video_whose_server_does_not_answer_has_no_known_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_path: object) -> NoReturn:
        raise StoreError("silent")

    monkeypatch.setattr("vmae_train.inference.find_videos.file_size", refuse)
    assert VideoFile("x", storage_path("https://example.org/x.mp4")).version() == "missing"


@pytest.mark.parametrize("mode", [(), ("--quiet",), ("--quiet", "--json")])
def test_a_folder_without_permission_is_always_named(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path, closed: list[OSError], mode: tuple[str, ...]
) -> None:
    (tmp_path / "closed").mkdir()
    shutil.copy(members[0], tmp_path / "a.mp4")
    closed.append(PermissionError(13, "Permission denied"))
    words = ("predict", tiny_finetuning, tmp_path, "--views", "1x1", "--workers", "0", *mode)
    done = call_command("vmae_train", *words)
    assert f"warning: {tmp_path}: 1 folder without permission left out (closed)" in done.stderr


def test_json_has_one_object_for_each_window_and_for_each_broken_video(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text(f"path,label\n{members[0]},a\nmissing.mp4,b\n")
    done = call_command("vmae_train", "predict", tiny_finetuning, listing, "--window", "1", "--json", "--workers", "0")
    *rows, error = map(json.loads, done.stdout.splitlines())
    assert [row["start"] for row in rows] == [0, 1][: len(rows)]
    for row in rows:
        assert list(row["probabilities"].values()) == sorted(row["probabilities"].values(), reverse=True)
        assert sum(row["probabilities"].values()) == pytest.approx(1)
    assert error["video"] == str(tmp_path / "missing.mp4") and "error" in error


def test_shards_without_labels_are_predicted(tiny_finetuning: Path, members: list[Path], tmp_path: Path) -> None:
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1"])
    build_shards(str(members[0].parent), tmp_path / "shards", spec, workers=1, style=QUIET)
    results = list(Predictor(tiny_finetuning, "cpu").run_shards(Shards.open(str(tmp_path / "shards"))))
    assert len(results) == len(members) and not any(result.error for result in results)


def test_videos_are_found_as_a_build_finds_them(members: list[Path], whole_shards: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{members[1]} 3\n")
    arguments = [str(members[0]), str(members[0].parent), str(whole_shards), str(listing)]
    found = find_videos([*arguments, str(members[0])])
    assert sorted(Path(video.path) for video in found.videos) == sorted(members)
    (far,) = find_videos([str(listing)]).videos
    assert (far.name, far.path) == (str(members[1]), members[1])
    assert found.shards == (str(whole_shards),)
    with pytest.raises(MisuseError, match="nothing at this path"):
        find_videos([str(tmp_path / "no.mp4")])


def test_a_folder_without_permission_is_refused_by_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    with pytest.raises(MisuseError, match=f"^{tmp_path}: this user may not read the folder"):
        find_videos([str(tmp_path)])


def test_a_checkpoint_that_does_not_say_how_is_told_so(members: list[Path], tmp_path: Path) -> None:
    save_model(tmp_path, Classifier(ModelSpec(size="tiny").geometry(), ("a", "b"), seed=0))
    said = call_command("vmae_train", "predict", tmp_path, members[0], "--views", "1x1").stderr
    assert "warning: " in said and "does not state how its clips were sampled" in said
    said = call_command("vmae_train", "predict", tmp_path, members[0], "--set", "clip.stride=2").stderr
    assert "does not state" not in said


def test_options_that_do_not_fit_are_refused(
    tiny_finetuning: Path, tiny_pretraining: Path, members: list[Path]
) -> None:
    command: list[Any] = ["vmae_train", "predict", tiny_finetuning, members[0]]
    assert "Set --window SECONDS too" in call_command(*command, "--stride", "2", status=2).stderr
    assert "expected 0.01 to" in call_command(*command, "--window", "0", status=2).stderr
    assert "ends in .csv, .parquet, .jsonl" in call_command(*command, "--out", "a.txt", status=2).stderr
    assert "finetune it first" in call_command("vmae_train", "predict", tiny_pretraining, members[0], status=2).stderr


def test_clips_of_shards_spacing_are_those_of_the_runs_shards(
    tiny_finetuning: Path, demo_shards: Path, members: list[Path]
) -> None:
    """`clip.stride = kept` means the spacing of the run's shards, every second frame; without them it is refused."""
    predictor = Predictor(tiny_finetuning, "cpu", settings=["clip.stride=kept"])
    assert predictor.clip.stride == 2
    predictor.clip = ClipSpec(stride="kept")
    with pytest.raises(MisuseError, match=r"Set --set clip\.stride=N"):
        predictor.predict(members[0])


def test_python_predicts_videos_and_clips(tiny_finetuning: Path, members: list[Path]) -> None:
    predictor = Predictor(tiny_finetuning, "cpu", settings=["evaluate.views='1x1'"])
    assert re.fullmatch(
        r"Predictor\(\S+: 8 class outputs, 16 frames of 32 px, stride 2, views 1x1, cpu\)", repr(predictor)
    )
    (prediction,) = predictor.predict(members[0])
    assert len(repr(prediction)) < 300 and prediction.top(1)[0][0] in repr(prediction)
    clips = read_clips(members[0], stride=2)
    assert clips.dtype == torch.uint8 and clips.shape[:2] == (1, 16) and clips.shape[-1] == 3
    np.testing.assert_allclose(predictor.predict_clips(clips)[0], prediction.outputs, atol=0.02)  # rounded pixels
    model = load_model(tiny_finetuning)
    assert torch.equal(model(model.preprocess(clips)).softmax(-1), predictor.predict_clips(clips))


def test_python_refuses_what_is_no_clip_and_no_video(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor(tiny_finetuning, "cpu")
    clips = read_clips(members[0], 16)
    array = clips.numpy().copy()
    array.flags.writeable = False
    assert torch.equal(predictor.predict_clips(array), predictor.predict_clips(clips))
    with pytest.raises(ValueError, match="expected uint8, 0 to 255"):
        predictor.predict_clips(clips / 255)
    with pytest.raises(ValueError, match="axes B T H W 3"):
        predictor.predict_clips(clips.permute(0, 4, 1, 2, 3))
    with pytest.raises(ValueError, match="15 frames given"):
        predictor.predict_clips(clips[:, :15])
    (tmp_path / "v.mp4").write_bytes(b"no video")
    for read in (predictor.predict, read_clips):
        with pytest.raises(DataError, match=r"v\.mp4.*unreadable"):
            read(tmp_path / "v.mp4")
    with pytest.raises(MisuseError, match="stride = 0"):
        read_clips(members[0], stride=0)


def test_values_stay_in_the_models_order() -> None:
    values = Prediction("v", 0.0, 1.0, ("speed", "angle"), (0.5, 9.0), LabelKind.VALUES)
    assert values.top() == [("speed", 0.5), ("angle", 9.0)]
    assert Prediction("v", 0.0, 1.0, ("a", "b"), (0.2, 0.8), LabelKind.CLASS).top(1) == [("b", 0.8)]
