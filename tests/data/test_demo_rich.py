from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.command import call_command
from tests.optical_flow import as_model_sees, class_of, flow
from vmae_data.demo import pictures
from vmae_data.demo.pictures import PICTURES, TILE, load_pictures
from vmae_data.demo.rich import Rich, rich_frames, rich_of
from vmae_data.demo.scenes import CLASSES, Kind, Motion, Scene, frames_of, plan_scenes
from vmae_data.demo.videos import MARKER, write_demo
from vmae_data.errors import MisuseError

pytestmark = pytest.mark.processes

SEED = 5
needs_pictures = pytest.mark.skipif(
    importlib.util.find_spec("skimage") is None, reason="scikit-image, which has the pictures, is not installed"
)


def _scenes(count: int = 8, **changes: object) -> list[Scene]:
    return [scene._replace(**changes) for scene in plan_scenes(count, SEED, kind=Kind.RICH)]


def _frames(scene: Scene, rich: Rich) -> NDArray[np.float64]:
    return np.array([*rich_frames(scene, rich)], np.float64)


def _plain(scene: Scene) -> Rich:
    """Photographs in steady motion, and nothing else."""
    return rich_of(scene)._replace(acceleration=0.0, swings=(), ripples=(), blobs=())


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _displacements(frames: Sequence[NDArray[np.float64]], far: int = 1) -> NDArray[np.float64]:
    """How far each frame is from the one `far` before (x, y), in pixels, by phase correlation of a window in its middle."""
    grey = np.stack([frame.mean(axis=-1) for frame in frames])
    height, width = grey.shape[1:]
    window = np.outer(np.hanning(height), np.hanning(width))
    spectra = np.fft.fft2((grey - grey.mean(axis=(1, 2), keepdims=True)) * window)
    cross = spectra[far:] * spectra[:-far].conj()
    peaks = np.fft.ifft2(cross / np.maximum(np.abs(cross), 1e-9) ** 0.7).real
    found = []
    for peak in peaks:
        row, column = np.unravel_index(int(peak.argmax()), peak.shape)
        found.append(((column + width // 2) % width - width // 2, (row + height // 2) % height - height // 2))
    return np.array(found, np.float64)


@pytest.fixture(scope="module")
def rich_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rich") / "videos"
    write_demo(folder, num_videos=8, seed=SEED, broken=True, workers=2, kind=Kind.RICH)
    return folder


@needs_pictures
def test_the_number_of_workers_and_of_videos_does_not_change_a_rich_video(rich_videos: Path, tmp_path: Path) -> None:
    write_demo(tmp_path / "one", num_videos=8, seed=SEED, broken=True, workers=1, kind=Kind.RICH)
    assert _bytes(tmp_path / "one") == _bytes(rich_videos)
    write_demo(tmp_path / "fewer", num_videos=3, seed=SEED, workers=1, kind=Kind.RICH)
    fewer = {name: data for name, data in _bytes(tmp_path / "fewer").items() if name != MARKER}
    assert len(fewer) == 3
    assert fewer.items() <= _bytes(rich_videos).items()


@needs_pictures
def test_rich_videos_have_the_classes_sizes_and_lengths_of_the_motion_scenes(rich_videos: Path) -> None:
    assert {path.name for path in rich_videos.iterdir()} == {*CLASSES, MARKER}
    for scene, plain in zip(_scenes(), plan_scenes(8, SEED), strict=True):
        assert scene._replace(kind=Kind.MOTION) == plain
        assert scene.path != plain.path
        with av.open(str(rich_videos / scene.path)) as file:
            (video,) = file.streams.video
            assert (video.width, video.height, video.average_rate) == (scene.width, scene.height, scene.rate)
            assert len(list(file.decode(video))) == scene.num_frames


@needs_pictures
def test_a_folder_with_a_demo_of_another_kind_is_refused(rich_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"another demo \(kind rich, requested motion\)"):
        write_demo(rich_videos, num_videos=8, seed=SEED, broken=True)
    write_demo(tmp_path, num_videos=1, seed=SEED)
    with pytest.raises(MisuseError, match=r"another demo \(kind motion, requested rich\)"):
        write_demo(tmp_path, num_videos=1, seed=SEED, kind=Kind.RICH)
    (tmp_path / MARKER).unlink()
    with pytest.raises(MisuseError, match="unfinished demo: .*scene-5-00000.mp4 is not part of kind rich, seed 5"):
        write_demo(tmp_path, num_videos=1, seed=SEED, kind=Kind.RICH)


def test_a_wrong_kind_is_one_line_that_names_the_near_one(tmp_path: Path) -> None:
    done = call_command("vmae_data", "demo", tmp_path / "out", "--kind", "Rihc", status=2)
    assert done.stderr == "vmae-shard: --kind Rihc: expected one of: motion, rich. Did you mean rich? (see --help)\n"
    assert not (tmp_path / "out").exists()


def test_a_missing_or_another_picture_is_an_error_that_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_pictures.cache_clear()
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    done = call_command("vmae_data", "demo", tmp_path / "out", "--kind", "rich", status=2)
    assert "scikit-image, which is not installed. Run `python -m pip install 'vmae[demo]'`" in done.stderr
    assert not (tmp_path / "out").exists()

    (tmp_path / "data").mkdir()
    spec = importlib.util.spec_from_loader("skimage", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(MisuseError, match=r"brick.png: can't be read \(No such file"):
        load_pictures()
    (tmp_path / "data" / "brick.png").write_bytes(b"another")
    with pytest.raises(MisuseError, match="its checksum differs"):
        load_pictures()


@needs_pictures
def test_reading_the_pictures_imports_no_code_of_scikit_image() -> None:
    program = (
        "import sys; from vmae_data.demo.pictures import load_pictures as f; f(); sys.exit('skimage' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@needs_pictures
def test_a_picture_is_a_periodic_tile_of_unit_variance_at_every_level() -> None:
    assert len(load_pictures()) == len(PICTURES)
    for pyramid in load_pictures():
        assert [len(level) for level in pyramid] == [TILE >> level for level in range(6)]
        for level in pyramid:
            assert level[..., :3].mean() == pytest.approx(0, abs=1e-3)
            np.testing.assert_allclose(level, level[::-1], atol=1e-5)
            np.testing.assert_allclose(level, level[:, ::-1], atol=1e-5)
        assert pyramid[0][..., :3].std() == pytest.approx(1, abs=1e-3)


@needs_pictures
def test_the_background_is_textured_at_coarse_and_fine_scales() -> None:
    for scene in _scenes(48, num_frames=2):
        frame = _frames(scene, _plain(scene))[0].mean(axis=-1)
        assert frame.std() > 8
        assert np.abs(np.diff(frame, axis=1)).mean() > 1.5


@needs_pictures
def test_a_growing_photograph_is_as_fine_and_as_bright_at_the_end_as_at_the_start() -> None:
    first, last = [], []
    for scene in plan_scenes(1280, SEED, kind=Kind.RICH):
        if scene.class_name in ("zoom-in", "zoom-out"):
            # Two frames, as far from each other as the ends of a clip.
            far = Motion(*(16 * value for value in scene.motion))
            ends = _frames(scene._replace(width=48, height=48, num_frames=2, stride=1, motion=far), _plain(scene))
            first.append(ends[0])
            last.append(ends[1])
    for measure in (np.mean, np.std, lambda frames: np.abs(np.diff(frames, axis=2)).mean()):
        assert measure(np.array(last)) == pytest.approx(measure(np.array(first)), rel=0.08)


@needs_pictures
def test_the_motion_of_a_rich_scene_is_that_of_its_class() -> None:
    right = 0
    for scene in _scenes(24):
        frames = [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in rich_frames(scene, rich_of(scene))]
        right += class_of(flow(as_model_sees(frames, scene.stride))) == scene.class_name
    assert right >= 20  # shake, deformation and objects mislead a flow of the whole frame


@needs_pictures
@pytest.mark.parametrize("name", ["pan-right", "pan-down"])
def test_an_accelerated_scene_moves_farther_in_its_second_half(name: str) -> None:
    axis = ["pan-right", "pan-down"].index(name)
    motion = Motion(*(2.0 * value for value in CLASSES[name]))
    scene = _scenes(1, width=96, height=96, num_frames=33, stride=2, motion=motion, octave=0.5)[0]
    for acceleration in (-0.6, 0.6):
        frames = _frames(scene, _plain(scene)._replace(acceleration=acceleration))
        halves = _displacements(frames, far=2)[:, axis].reshape(-1)
        early, late = halves[:15].mean(), halves[16:].mean()
        assert late - early == pytest.approx(acceleration * 2.0 * 96 / 36, rel=0.25)
        assert halves.min() > 0
    steady, hastened = (_frames(scene, _plain(scene)._replace(acceleration=a)) for a in (0.0, 0.6))
    np.testing.assert_allclose(hastened[[0, -1]], steady[[0, -1]], atol=1)  # the mean speed is that of the plan


@needs_pictures
def test_deformation_bends_a_still_photograph_and_only_that() -> None:
    for scene in _scenes(4, motion=Motion(0, 0, 0, 0)):
        rich = _plain(scene)
        still = _frames(scene, rich)
        assert (still == still[0]).all()
        bent = _frames(scene, rich._replace(ripples=rich_of(scene).ripples))
        assert np.abs(np.diff(bent, axis=0)).mean() > 0.5
        # No displacement of the whole frame explains it.
        left, right = bent[:, :, : scene.width // 2], bent[:, :, scene.width // 2 :]
        assert np.abs(_displacements(left, far=8) - _displacements(right, far=8)).max() >= 1


@needs_pictures
def test_the_camera_shakes_to_and_fro_and_stays_where_it_is() -> None:
    for scene in _scenes(4, width=96, height=96, num_frames=48, motion=Motion(0, 0, 0, 0)):
        rich = _plain(scene)
        still = _frames(scene, rich)[0]
        shaken = _frames(scene, rich._replace(swings=rich_of(scene).swings))
        away = np.array([_displacements([still, frame])[0] for frame in shaken])
        assert away.std(axis=0).max() > 0.5
        # 3 sines of 0.5 px of the model's input, each pixel of which is 96 / 36 px here.
        assert np.abs(away).max() <= 3 * 0.5 * 96 / 36 + 1.5


@needs_pictures
def test_objects_change_their_outline() -> None:
    (scene,) = _scenes(1, width=96, height=96, num_frames=20, motion=Motion(0, 0, 0, 0))
    rich = _plain(scene)
    disc = scene.discs[0]._replace(x=0.5, y=0.5, speed_x=0, speed_y=0, radius=8)
    blob = rich_of(scene).blobs[0]._replace(disc=disc)
    without = _frames(scene, rich)
    covers = (_frames(scene, rich._replace(blobs=(blob,))) != without).any(axis=-1)
    widths = covers.any(axis=1).sum(axis=1)
    assert widths.max() - widths.min() >= 3
    assert widths.max() <= 2 * 8 * (1 + blob.depth) * 96 / 36 + 3


def test_every_rich_scene_has_accelerations_in_bounds_and_six_different_pictures() -> None:
    signs = []
    for scene in _scenes(200):
        rich = rich_of(scene)
        for value in (rich.acceleration, *(blob.acceleration for blob in rich.blobs)):
            assert 0.3 <= abs(value) <= 0.7
        signs.append(rich.acceleration > 0)
        used = [*(layer.picture for layer in rich.layers), *(blob.fill.picture for blob in rich.blobs)]
        assert sorted(used) == list(range(len(PICTURES)))
    assert 0.4 < np.mean(signs) < 0.6


def test_the_kind_does_not_change_the_motion_scenes() -> None:
    (scene,) = plan_scenes(1, SEED)
    assert scene.kind is Kind.MOTION
    first, *_ = frames_of(scene)
    assert first.shape == (scene.height, scene.width, 3)
