"""The README.md that `convert --to hf` writes: what a run states, and no path, secret or licence."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.command import call_command
from vmae_data.format import Rational, series_of
from vmae_data.read.dataset import SampleView
from vmae_data.rng import Rng
from vmae_train import read_clips
from vmae_train.checkpoints.card_parts import Origin, frames_python, origin_of, sampling_text, training_parts
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.frame_sampling import ClipSpec, Spacing, view_sampler
from vmae_train.evaluation.protocol import EvaluationProtocol, parse_views
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier


def _origin(clip: ClipSpec, stated: bool = True) -> Origin:
    return Origin(None, None, "", EvaluationProtocol(parse_views("1x1"), clip), stated)


@pytest.fixture(scope="module")
def converted(tiny_finetuning: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("card") / "hf"
    done = call_command("vmae_train", "convert", tiny_finetuning, dest, "--to", "hf")
    assert done.stdout == f"{dest}\n"
    return dest


def test_a_hugging_face_folder_has_weights_config_both_preprocessors_and_a_card(converted: Path) -> None:
    assert {path.name for path in converted.iterdir()} == {
        *("model.safetensors", "config.json", "README.md"),
        *("preprocessor_config.json", "video_preprocessor_config.json"),
    }
    image, video = (json.loads((converted / f"{name}preprocessor_config.json").read_text()) for name in ("", "video_"))
    assert image.pop("image_processor_type") == "VideoMAEImageProcessor"
    assert video.pop("video_processor_type") == "VideoMAEVideoProcessor"
    assert image == video
    config = json.loads((converted / "config.json").read_text())
    assert config["label2id"] == {name: int(number) for number, name in config["id2label"].items()}


def test_the_card_states_recipe_data_scores_and_an_empty_licence(converted: Path, tiny_finetuning: Path) -> None:
    card = (converted / "README.md").read_text()
    head = card.split("---\n")[1]
    assert re.search(r"^license: +# not known", head, flags=re.MULTILINE)
    assert "pipeline_tag: video-classification\n" in head
    assert "## Licence\n\nNot known." in card
    scores = json.loads((tiny_finetuning / "evaluation.json").read_text())
    assert f"top-1 {scores['top1']:.2f} %, on {scores['videos']} validation videos of demo-shards" in card
    samples = json.loads(
        (Path(json.loads((tiny_finetuning / "run.json").read_text())["data"][0]) / "index.json").read_text()
    )
    assert (
        f"| data | demo-shards, {samples['samples']} video samples, classes: 8, short side 36, stride 2 (index " in card
    )
    assert "| first weights | tiny-pretraining |" in card
    assert "    steps = 4\n" in card
    assert "16 frames, every 2nd frame of the video" in card
    assert "    0 pan-down\n    1 pan-left\n" in card
    assert str(tiny_finetuning.parent) not in card  # no paths of the machine
    assert "[loader]" not in card


def test_an_earlier_checkpoint_has_the_score_of_its_validation_or_none(tiny_finetuning: Path) -> None:
    best = json.loads((tiny_finetuning / "best.json").read_text())
    origin = origin_of(str(tiny_finetuning))
    assert origin.checkpoint == "step-000000004"
    for step in (1, 2, 4):
        origin = origin._replace(checkpoint=f"step-{step:09d}")
        (scores,) = (part for part in training_parts(origin) if part.startswith("## Scores"))
        expected = "in the validation during training" if step == best["step"] else "Not known for this checkpoint"
        assert ("Computed by the training at its end" if step == 4 else expected) in scores
    averaged = origin_of(str(tiny_finetuning / "checkpoints" / "step-000000004"), ema=True)
    assert "Not known for this checkpoint" in training_parts(averaged)[1]
    assert origin_of(str(tiny_finetuning), best=True).checkpoint == f"step-{best['step']:09d}"


def test_a_pretraining_has_no_scores(tiny_pretraining: Path) -> None:
    assert training_parts(origin_of(str(tiny_pretraining)))[1] == "## Scores\n\nNone: a pretraining computes no scores."


def test_a_file_that_belongs_to_no_run_has_a_card_that_knows_nothing(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    save_model(
        tmp_path / "native", Classifier(ModelSpec(size="tiny", position="sinusoid-1d").geometry(), ("a", "b"), seed=0)
    )
    convert(str(tmp_path / "native"), tmp_path / "hf", to="hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "## Training\n\nNot known" in card and "## Scores\n\nNot known." in card
    assert "not stated by the checkpoint. Published models of Kinetics take 16 frames, every 4th frame" in card


def test_a_class_name_can_not_end_its_block(tmp_path: Path) -> None:
    (tmp_path / "native").mkdir()
    names = ("```", "a\n## Scores", "---")
    save_model(
        tmp_path / "native", Classifier(ModelSpec(size="tiny", position="sinusoid-1d").geometry(), names, seed=0)
    )
    convert(str(tmp_path / "native"), tmp_path / "hf", to="hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "    0 ```\n    1 a\\x0a## Scores\n    2 ---\n" in card
    assert card.count("\n## Scores\n") == 1


CLIPS = (ClipSpec(stride=1), ClipSpec(stride=2), ClipSpec(sampler="dense", stride=2), ClipSpec(sampler="uniform"))


@pytest.mark.parametrize("count", [5, 20, 61])
@pytest.mark.parametrize("clip", [*CLIPS, ClipSpec(rate=12.5)], ids=str)
def test_the_python_of_the_card_takes_the_frames_of_the_evaluations_middle_clip(
    clip: ClipSpec, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with av.open("video.mp4", "w") as video:
        stream = video.add_stream("libx264rgb", rate=25, options={"qp": "0", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 16, 16, "rgb24"
        for number in range(count):
            picture = np.full((16, 16, 3), 4 * number, np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                video.mux(packet)
        for packet in stream.encode():
            video.mux(packet)
    variables: dict[str, Any] = {"av": av, "np": np}
    exec(frames_python(clip, 16), variables)
    frames = variables["frames"]
    assert frames.shape == (16, 16, 16, 3) and frames.dtype == np.uint8
    # By rate, the frames are those of the whole video at that rate.
    kept = list(range(count)) if clip.rate is None else list(range(0, count, 2))
    spacing = Spacing() if clip.rate is None else Spacing(None, Rational(25, 2))
    view = SampleView(0, "", len(kept), series_of(kept), count, 25.0, (len(kept),))
    sampled = view_sampler(clip, spacing, 16, 1)(view, Rng(seed=0, epoch=0, sample=0))
    expected = [kept[sampled.decode[position]] for position in sampled.index_VT[0]]
    if clip.sampler == "dense" and count <= 32:  # shorter than a clip: the published rule repeats the end
        expected = np.linspace(0, count, 16).astype(int).clip(max=count - 1).tolist()
    assert np.rint(frames[:, 0, 0, 0] / 4).tolist() == expected


def test_the_colours_that_the_python_of_the_card_reads_are_ours(
    demo_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(next(demo_videos.rglob("scene*.mp4")), tmp_path / "video.mp4")
    monkeypatch.chdir(tmp_path)
    variables: dict[str, Any] = {"av": av, "np": np}
    exec(frames_python(ClipSpec(stride=1), 16), variables)
    (expected,) = read_clips("video.mp4", 16, stride=1).numpy()
    assert np.abs(variables["frames"].astype(int) - expected).mean() < 1


def test_every_kind_of_clip_is_put_in_words() -> None:
    words = {sampling_text(_origin(clip), 16) for clip in (*CLIPS, ClipSpec(rate=6.25), ClipSpec(stride="kept"))}
    assert len(words) == 6
    assert "16 frames, 6.25 frames per second of the video" in words
    assert sampling_text(_origin(ClipSpec(), stated=False), 16).startswith("not stated")
