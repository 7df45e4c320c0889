from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.optical_flow import as_model_sees, class_of, flow
from vmae_data.demo.scenes import (
    CLASSES,
    FASTEST,
    FEWEST_KEPT,
    RATES,
    SLOWEST,
    Motion,
    Scene,
    frames_of,
    plan_scenes,
)
from vmae_data.demo.videos import MARKER, render_video, write_demo
from vmae_data.errors import MisuseError

pytestmark = pytest.mark.processes

SEED, VIDEOS = 5, 24  # of the fixture `demo_videos`
NEVER_OPEN = ["empty", "text", "without-moov"]


def _decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as file:
        return list(file.decode(video=0))


def _rendered(scene: Scene) -> list[av.VideoFrame]:
    return [av.VideoFrame.from_ndarray(frame, format="rgb24") for frame in frames_of(scene)]


def test_the_same_seed_gives_the_same_bytes_in_any_process(demo_videos: Path, tmp_path: Path) -> None:
    for scene in plan_scenes(VIDEOS, SEED):
        render_video(scene, tmp_path / "here.mp4")
        assert (tmp_path / "here.mp4").read_bytes() == (demo_videos / scene.path).read_bytes()


def test_classes_are_the_folders_and_have_equally_many_videos(demo_videos: Path) -> None:
    counts = Counter(path.parent.name for path in demo_videos.glob("*/scene-*.mp4"))
    assert counts == dict.fromkeys(CLASSES, VIDEOS // len(CLASSES))
    assert {path.name for path in demo_videos.iterdir()} == {*CLASSES, MARKER}


def test_more_videos_begin_with_the_same_ones() -> None:
    assert plan_scenes(100, SEED)[:9] == plan_scenes(9, SEED)


def test_files_are_ordinary_h264_of_the_planned_size_rate_and_length(demo_videos: Path) -> None:
    for scene in plan_scenes(VIDEOS, SEED):
        with av.open(str(demo_videos / scene.path)) as file:
            (video,) = file.streams.video
            assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
            assert (video.width, video.height) == (scene.width, scene.height)
            assert video.average_rate == scene.rate
            assert [stream.codec_context.name for stream in file.streams.audio] == ["aac"] * (scene.tone is not None)
            assert len(list(file.decode(video))) == video.frames == scene.num_frames


def test_sizes_frame_rates_and_sound_vary_and_every_video_has_the_frames_of_a_clip() -> None:
    scenes = plan_scenes(800, SEED)
    for scene in scenes:
        short, long = sorted((scene.width, scene.height))
        assert 48 <= short <= long <= 1.5 * short + 1 <= 145
        assert scene.width % 2 == scene.height % 2 == 0
        assert 33 <= scene.num_frames <= 48
        assert len(range(0, scene.num_frames, scene.stride)) >= FEWEST_KEPT > 16
    assert {scene.rate for scene in scenes} == {*RATES}
    assert 0.15 < np.mean([scene.height > scene.width for scene in scenes]) < 0.25
    assert 0.15 < np.mean([scene.tone is not None for scene in scenes]) < 0.25


def test_the_motion_in_a_file_is_that_of_its_folder(demo_videos: Path) -> None:
    right = 0
    for scene in plan_scenes(VIDEOS, SEED):
        found = flow(as_model_sees(_decode(demo_videos / scene.path), scene.stride))
        right += class_of(found) == scene.class_name
    assert right >= 0.9 * VIDEOS  # the drifting discs may mislead a plain flow of the whole frame


def test_speeds_are_in_bounds_and_other_motions_are_slower() -> None:
    for scene in plan_scenes(800, SEED):
        slower = sorted(map(abs, scene.motion))
        speed = slower.pop()
        assert SLOWEST <= speed <= FASTEST
        assert max(slower) <= 0.3 * speed
        assert class_of(scene.motion) == scene.class_name


@pytest.mark.parametrize(
    ("width", "height", "stride", "rate"), [(48, 48, 2, 24), (144, 96, 2, 30), (64, 80, 1, 25), (80, 64, 4, 30)]
)
def test_the_speed_at_the_model_does_not_depend_on_size_frame_rate_and_stride(
    width: int, height: int, stride: int, rate: int
) -> None:
    for scene in plan_scenes(8, SEED, stride=stride):
        scene = scene._replace(width=width, height=height, rate=Fraction(rate), discs=())
        found = flow(as_model_sees(_rendered(scene), stride))
        assert np.abs(np.subtract(found, scene.motion)).max() < 0.15 * max(map(abs, scene.motion))


def test_a_growing_texture_is_as_fine_and_as_bright_at_the_end_as_at_the_start() -> None:
    ends = []
    for scene in plan_scenes(1280, SEED):
        if scene.class_name in ("zoom-in", "zoom-out"):
            # Two frames, as far from each other as the ends of a clip.
            far = Motion(*((FEWEST_KEPT - 1) * value for value in scene.motion))
            scene = scene._replace(width=48, height=48, num_frames=2, stride=1, motion=far)
            ends.append((scene.class_name, *frames_of(scene)))
    for class_name in ("zoom-in", "zoom-out"):
        first, last = np.array([frames for name, *frames in ends if name == class_name], np.float64).swapaxes(0, 1)
        for measure in (_detail, np.std, np.mean):
            assert measure(last) == pytest.approx(measure(first), rel=0.08)


def _detail(frames: NDArray[np.float64]) -> float:
    return float(np.abs(np.diff(frames, axis=2)).mean())


def test_another_seed_gives_other_scenes_under_other_names() -> None:
    ours, others = plan_scenes(VIDEOS, SEED), plan_scenes(VIDEOS, SEED + 1)
    assert not {scene.path for scene in ours} & {scene.path for scene in others}
    same_plan = ours[0]._replace(seed=SEED + 1)  # the texture alone differs too
    assert np.abs(next(frames_of(ours[0])).astype(int) - next(frames_of(same_plan))).mean() > 20


def test_a_second_call_writes_nothing_and_a_lost_file_is_the_only_one_written_again(
    demo_videos: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "demo"
    shutil.copytree(demo_videos, dest)
    before = _states(dest)
    done: list[int] = []
    write_demo(dest, num_videos=VIDEOS, seed=SEED, broken=True, on_done=done.append)
    assert (_states(dest), done) == (before, [])

    lost = dest / plan_scenes(VIDEOS, SEED)[7].path
    data = lost.read_bytes()
    lost.unlink()
    (dest / MARKER).unlink()
    write_demo(dest, num_videos=VIDEOS, seed=SEED, broken=True, on_done=done.append)
    assert done == [len(before) - 1]
    assert lost.read_bytes() == data
    after = _states(dest)
    assert {path for path in before if before[path] != after[path]} == {lost, dest / MARKER}


def _states(dest: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in dest.rglob("*") if path.is_file()}


def test_a_folder_with_another_demo_is_refused(demo_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match=r"another demo \(seed 5, requested 6\)"):
        write_demo(demo_videos, num_videos=VIDEOS, seed=SEED + 1, broken=True)
    with pytest.raises(MisuseError, match="videos 24, requested 25; broken True, requested False"):
        write_demo(demo_videos, num_videos=VIDEOS + 1, seed=SEED)
    unfinished = tmp_path / plan_scenes(1, SEED)[0].path
    unfinished.parent.mkdir()
    unfinished.touch()
    with pytest.raises(MisuseError, match="unfinished demo: pan-left/scene-5-00000.mp4"):
        write_demo(tmp_path, num_videos=1, seed=SEED + 1)
    with pytest.raises(MisuseError, match="can't be written"):
        write_demo(unfinished, num_videos=1, seed=SEED)
    with pytest.raises(MisuseError, match="num_videos=0"):
        write_demo(tmp_path / "none", num_videos=0, seed=SEED)


def test_broken_files_are_next_to_good_ones_and_are_really_broken(demo_videos: Path) -> None:
    found = {
        path.stem.removeprefix("broken-").removesuffix(f"-{SEED}"): path for path in demo_videos.glob("*/broken-*")
    }
    assert sorted(found) == sorted([*NEVER_OPEN, "audio-only", "cut-in-half", "flipped-bytes"])
    for name in NEVER_OPEN:
        with pytest.raises(av.error.InvalidDataError):
            av.open(str(found[name]))
    with av.open(str(found["audio-only"])) as file:
        assert not file.streams.video
        assert list(file.decode(audio=0))
    for name in ("cut-in-half", "flipped-bytes"):
        with av.open(str(found[name])) as file:
            assert file.streams.video[0].frames >= 33  # what it declares
            decoded = 0
            with pytest.raises(av.error.InvalidDataError):
                for _ in file.decode(video=0):
                    decoded += 1
            assert decoded < 33


def test_broken_files_are_the_same_on_every_call(demo_videos: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, num_videos=3, seed=SEED, broken=True, workers=2)
    again = tmp_path.parent / "again"
    write_demo(again, num_videos=3, seed=SEED, broken=True, workers=1)
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 3 + 6 + 1
    assert {path.parts[0] for path in files} == {*list(CLASSES)[:3], MARKER}
    for path in files:
        assert (tmp_path / path).read_bytes() == (again / path).read_bytes()


def test_the_demo_needs_no_torch() -> None:
    program = "import sys, vmae_data.demo; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
