from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import av
import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image

from tests.command import call_command
from vmae_data.errors import DataError, MisuseError
from vmae_data.read.dataset import Shards
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.mask import MaskSpec, sample_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.inference.drawing import MaskedClip, Reconstruction, draw_moving, draw_still, error_map
from vmae_train.inference.reconstruct import (
    load_pretrained,
    mask_specs,
    reconstruct,
    reconstruct_clips,
    reconstruct_file,
    reconstruct_shards,
)
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.losses import cube_targets
from vmae_train.models.videomae import PretrainModel, grid_of

pytestmark = pytest.mark.processes

GREY = 127.5


@pytest.fixture(scope="session")
def drawn(tiny_pretraining: Path, demo_shards: Path) -> list[Reconstruction]:
    model = load_pretrained(str(tiny_pretraining), "cpu")
    shards = Shards.open(str(demo_shards))
    clips, _ = reconstruct_shards(
        model, shards, clip=ClipSpec(stride=2), videos=6, masks=[MaskSpec(ratio=0.75)], seed=0
    )
    return clips


def test_visible_cubes_are_the_originals_and_masked_cubes_are_grey(drawn: list[Reconstruction]) -> None:
    assert len(drawn) == 6
    for clip in drawn:
        (masked,) = clip.masks
        grey = np.abs(masked.masked_THWC.astype(float) - GREY).max(axis=(0, 3)) <= 1
        assert grey.mean() == pytest.approx(0.75)  # the same patches in every frame
        assert np.array_equal(masked.masked_THWC[:, ~grey], clip.original_THWC[:, ~grey])
        assert np.array_equal(masked.predicted_THWC[:, ~grey], clip.original_THWC[:, ~grey])
        assert not np.array_equal(masked.predicted_THWC[:, grey], clip.original_THWC[:, grey])
        error = error_map(clip.original_THWC, masked.predicted_THWC)
        assert error.shape == clip.original_THWC.shape
        assert not error[:, ~grey].any()
        assert error[:, grey].any()


def test_the_colours_of_an_error_map_grow_with_the_difference() -> None:
    original = np.full((1, 1, 4, 3), 100, np.uint8)
    predicted = np.array([100, 116, 68, 164], np.uint8).repeat(3).reshape(1, 1, 4, 3)
    assert error_map(original, predicted)[0, 0].tolist() == [[0, 0, 0], [95, 20, 110], [200, 60, 75], [255, 255, 170]]
    assert error_map(original, original + np.uint8(120)).max(axis=(0, 1, 2)).tolist() == [255, 255, 170]  # not beyond


def test_clips_in_python_are_masked_apart_and_saved_as_every_kind(tmp_path: Path) -> None:
    model = PretrainModel(ModelSpec(size="tiny").geometry(), seed=0).eval()
    frame = torch.arange(40 * 60 * 3, dtype=torch.int64).remainder(251).byte().reshape(1, 1, 40, 60, 3)
    clips = reconstruct(model, frame.expand(2, 16, 40, 60, 3), ratio=0.5, seed=3)
    assert [clip.title for clip in clips] == ["clip 1", "clip 2"]
    first, second = (clip.masks[0].masked_THWC for clip in clips)
    assert first.shape == (16, 32, 32, 3)
    assert not np.array_equal(first, second)  # the same pictures, each under its own mask
    again = reconstruct(model, frame.expand(1, 16, 40, 60, 3), ratio=0.5, seed=3)
    assert np.array_equal(again[0].masks[0].masked_THWC, first)
    for suffix in ("png", "gif", "mp4", "html"):
        clips[0].save(tmp_path / f"out.{suffix}")
        assert (tmp_path / f"out.{suffix}").stat().st_size > 500
    with pytest.raises(MisuseError, match=r"save .*out\.bmp: expected a name that ends in \.png"):
        clips[0].save(tmp_path / "out.bmp")


def test_what_cannot_be_reconstructed_in_python_is_named() -> None:
    geometry = ModelSpec(size="tiny").geometry()
    model, frames = PretrainModel(geometry, seed=0).eval(), torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(MisuseError, match="Classifier predicts no cubes"):
        reconstruct(Classifier(geometry, ("a", "b"), seed=0), frames)  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match="mask = 'tubes': expected tube, random, frame"):
        reconstruct(model, frames, mask="tubes")  # type: ignore[arg-type]
    with pytest.raises(MisuseError, match=r"ratio = 0\.001"):
        reconstruct(model, frames, ratio=0.001)
    with pytest.raises(ValueError, match="8 frames given; a clip has 16"):
        reconstruct(model, frames[:, :8])
    with pytest.raises(ValueError, match="expected a tensor of uint8"):
        reconstruct(model, frames.float())


def test_masks_are_drawn_side_by_side(tiny_pretraining: Path, demo_shards: Path) -> None:
    model, shards = load_pretrained(str(tiny_pretraining), "cpu"), Shards.open(str(demo_shards))
    masks = mask_specs(str(tiny_pretraining), model.geometry, [0.75, 0.5], ["tube", "frame", "random"])
    assert [(mask.kind, mask.ratio) for mask in masks][:3] == [("tube", 0.75), ("tube", 0.5), ("frame", 0.75)]
    clips, _ = reconstruct_shards(model, shards, clip=ClipSpec(stride=2), videos=2, masks=masks, seed=0)
    for clip in clips:
        assert [one.mask for one in clip.masks][1:3] == ["tube mask, 50 %", "frame mask, 75 %"]
        for mask, shown in zip(masks, clip.masks, strict=True):
            grey = np.abs(shown.masked_THWC.astype(float) - GREY).max(axis=3) <= 1
            assert grey.mean() == pytest.approx(mask.ratio, abs=0.02)
            assert np.array_equal(shown.predicted_THWC[~grey], clip.original_THWC[~grey])
            if mask.kind == "frame":
                assert set(grey.mean(axis=(1, 2)) > 0.9) == {True, False}  # complete frames
    one, _ = reconstruct_shards(model, shards, clip=ClipSpec(stride=2), videos=2, masks=masks[2:3], seed=0)
    assert np.array_equal(one[0].masks[0].predicted_THWC, clips[0].masks[2].predicted_THWC)
    still, moving = draw_still(clips), draw_moving(clips)
    tile = 128 + 3
    assert still.shape[0] > 2 * (1 + 3 * len(masks)) * tile > still.shape[0] * 0.8
    assert len(moving) == 16
    assert moving[0].shape[0] > 2 * len(masks) * tile
    assert moving[0].shape[1] == 4 * tile - 3 + 24


class _Oracle(PretrainModel):
    """Predicts the exact targets of a known clip."""

    def set_target(self, rgb01: torch.Tensor) -> None:
        self.rgb01 = rgb01

    def forward(self, clips: torch.Tensor, mask: object) -> torch.Tensor:
        return cube_targets(self.rgb01, mask.masked_BM, self.geometry)  # type: ignore[attr-defined]


def test_perfect_predictions_give_the_original_back() -> None:
    geometry = ModelSpec(size="tiny", decoder_depth=1).geometry()
    model = _Oracle(geometry, seed=0)
    size = geometry.image_size
    pixels = torch.randint(0, 256, (2, 3, geometry.num_frames, size, size), generator=torch.Generator().manual_seed(1))
    model.set_target(pixels / 255)
    spec, rng = MaskSpec(ratio=0.75), ClipRng.on("cpu", seed=0, epoch=0, sample=[3, 5])
    tokens = sample_mask(spec, rng, grid_of(geometry))
    clips = reconstruct_clips(model, pixels / 255, [tokens], [spec], ["a", "b"])
    for clip, original in zip(clips, rearrange(pixels, "b c t h w -> b t h w c").numpy(), strict=True):
        assert clip.masks[0].loss == 0
        assert np.abs(clip.masks[0].predicted_THWC.astype(int) - original).max() <= 1
        assert np.array_equal(clip.original_THWC, original)


def test_the_same_seed_masks_the_same_patches_and_another_seed_masks_others(
    tiny_pretraining: Path, demo_shards: Path
) -> None:
    model, shards = load_pretrained(str(tiny_pretraining), "cpu"), Shards.open(str(demo_shards))

    def masked(seed: int) -> dict[str, np.ndarray]:
        clip, videos = ClipSpec(stride=2), len(shards)
        clips, _ = reconstruct_shards(model, shards, clip=clip, videos=videos, masks=[MaskSpec(ratio=0.5)], seed=seed)
        return {clip.title: clip.masks[0].masked_THWC for clip in clips}

    first, again, other = masked(0), masked(0), masked(1)
    assert all(np.array_equal(first[title], again[title]) for title in first)
    assert not any(np.array_equal(first[title], other[title]) for title in first)


def test_an_unreadable_sample_is_named_and_skipped(tiny_pretraining: Path, demo_shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    shards = Shards.open(str(folder))
    member = shards.member_range(0)
    data = bytearray(shards.shard_path(member.shard).read_bytes())
    data[member.offset + 100] ^= 1
    shards.shard_path(member.shard).write_bytes(bytes(data))
    model, clip = load_pretrained(str(tiny_pretraining), "cpu"), ClipSpec(stride=2)
    clips, unreadable = reconstruct_shards(
        model, shards, clip=clip, videos=len(shards), masks=[MaskSpec(ratio=0.75)], seed=0
    )
    assert list(unreadable) == [shards.key(0)]
    assert len(clips) == len(shards) - 1


def test_the_default_mask_is_that_of_the_run(tiny_pretraining: Path, tmp_path: Path) -> None:
    geometry = load_pretrained(str(tiny_pretraining), "cpu").geometry
    run = Path(shutil.copytree(tiny_pretraining, tmp_path / "run"))
    assert mask_specs(str(run), geometry) == (MaskSpec(kind="tube", ratio=0.75),)
    assert mask_specs(str(run), geometry, [0.5, 0.5]) == (MaskSpec(kind="tube", ratio=0.5),)
    metadata = run / "run.json"
    metadata.write_text(metadata.read_text().replace('"kind": "tube"', '"kind": "frame"'))
    assert mask_specs(str(run), geometry) == (MaskSpec(kind="frame", ratio=0.75),)
    assert mask_specs(str(run), geometry, (), ["random"]) == (MaskSpec(kind="random", ratio=0.75),)
    checkpoint = next((tiny_pretraining / "checkpoints").iterdir())
    shutil.copytree(checkpoint, tmp_path / "without-run")
    assert mask_specs(str(tmp_path / "without-run"), geometry) == (MaskSpec(kind="tube", ratio=0.9),)


@pytest.mark.parametrize(
    ("kind", "ratio"), [("tube", 0.0), ("tube", 1.0), ("tube", 0.01), ("random", -1.0), ("frame", 0.1), ("frame", 7.0)]
)
def test_a_mask_that_hides_nothing_or_everything_is_refused_in_one_line(
    tiny_pretraining: Path, kind: Literal["tube", "random", "frame"], ratio: float
) -> None:
    geometry = load_pretrained(str(tiny_pretraining), "cpu").geometry
    with pytest.raises(MisuseError, match=f"--mask {kind} --ratio {ratio:g}: mask") as error:
        mask_specs(str(tiny_pretraining), geometry, [0.75, ratio], [kind])
    assert "\n" not in str(error.value)


def test_the_command_draws_shards_still_and_moving(tiny_pretraining: Path, demo_shards: Path, tmp_path: Path) -> None:
    arguments = [
        "vmae_train",
        "reconstruct",
        tiny_pretraining,
        "--data",
        demo_shards,
        "--videos",
        "3",
        "--device",
        "cpu",
    ]
    for name in ("still.png", "moving.gif", "moving.mp4", "page.html"):
        for folder in ("a", "b"):  # the same bytes again
            (tmp_path / folder).mkdir(exist_ok=True)
            done = call_command(*arguments, "--out", tmp_path / folder / name, "--json")
            assert json.loads(done.stdout) == {"out": str(tmp_path / folder / name), "unreadable": {}}
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    tmp_path = tmp_path / "a"
    with Image.open(tmp_path / "still.png") as still, Image.open(tmp_path / "moving.gif") as moving:
        assert still.width > 8 * 128
        assert still.height > 9 * 128
        assert moving.n_frames == 16
        size = moving.size
    with av.open(str(tmp_path / "moving.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert (len(frames), frames[0].shape) == (16, (size[1] // 2 * 2, size[0] // 2 * 2, 3))
    page = (tmp_path / "page.html").read_text()
    assert page.count("data:image/gif") == 3
    assert "Brightness and contrast of each masked cube come from the original" in page
    error = call_command(*arguments, "--mask", "cube", "--out", tmp_path / "x.png", status=2).stderr
    assert "--mask" in error


@pytest.mark.parametrize("suffix", [".jpg", "", ".mp4x"])
def test_another_suffix_is_refused_before_anything_is_read(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(MisuseError, match=r"\.png, \.gif, \.mp4 or \.html"):
        reconstruct_file("nothing", "nowhere", tmp_path / f"out{suffix}", videos=1, seed=0, device="cpu")


def test_a_classifier_and_paths_without_videos_are_refused(tiny_pretraining: Path, tmp_path: Path) -> None:
    from vmae_train.checkpoints.native import save_model

    (tmp_path / "classifier").mkdir()
    geometry: Geometry = ModelSpec(size="tiny", decoder_depth=1).geometry()
    save_model(tmp_path / "classifier", Classifier(geometry, ("a", "b"), seed=0))
    with pytest.raises(MisuseError, match="classifier"):
        load_pretrained(str(tmp_path / "classifier"), "cpu")
    (tmp_path / "text.txt").write_text("no video")
    out = tmp_path / "out.png"
    for data in (tmp_path / "text.txt", tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError):
            reconstruct_file(str(tiny_pretraining), str(data), out, videos=1, seed=0, device="cpu")
    assert not out.exists()


def test_shards_whose_stride_does_not_divide_that_of_the_run_are_refused(
    tiny_pretraining: Path, demo_shards: Path
) -> None:
    model = load_pretrained(str(tiny_pretraining), "cpu")
    with pytest.raises(MisuseError, match="stride"):
        reconstruct_shards(
            model,
            Shards.open(str(demo_shards)),
            clip=ClipSpec(stride=3),
            videos=1,
            masks=[MaskSpec(ratio=0.75)],
            seed=0,
        )


def test_drawings_show_every_clip() -> None:
    original, masked, predicted = (np.full((16, 32, 32, 3), n, np.uint8) for n in (10, 90, 170))
    clip = Reconstruction("title", original, (MaskedClip("tube mask, 75 %", masked, predicted, 1.0),))
    still = draw_still([clip, clip])
    for value in (10, 90, 170):
        assert (still == value).all(axis=-1).sum() >= 2 * 8 * 128 * 128
    assert len(draw_moving([clip])) == 16


@pytest.mark.parametrize("frames", [None, [1], np.zeros((1, 16, 32, 32, 3), np.uint8), torch.zeros(1, 16, 32, 32, 3)])
def test_reconstruct_refuses_what_is_no_clip_in_one_line(tiny_pretraining: Path, frames: object) -> None:
    model = load_pretrained(str(tiny_pretraining), "cpu")
    with pytest.raises(ValueError, match="expected a tensor of uint8 with the axes B T H W 3"):
        reconstruct(model, frames)  # type: ignore[arg-type]


def test_a_reconstruction_has_a_short_repr() -> None:
    original = np.zeros((16, 24, 32, 3), np.uint8)
    clip = Reconstruction("title", original, (MaskedClip("tube mask, 75 %", original, original, 1.25),))
    assert (
        repr(clip) == "Reconstruction('title', 16 frames of 32 × 24 pixels, [MaskedClip('tube mask, 75 %', loss=1.25)])"
    )
