"""Features for temporal localisation: every source frame counts, and the JSON file says when each feature is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.open_source import open_source
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train import Embedder, read_clips
from vmae_train.embed import embed_all
from vmae_train.inference import read_video, temporal_folder
from vmae_train.inference.windows import WindowSpec, frame_windows

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def _embed(*arguments: Any, status: int = 0) -> Any:
    return call_command("vmae_train", "embed", *arguments, "--workers", "0", status=status)


def test_every_window_lies_in_the_video() -> None:
    spec = WindowSpec(frames=16, stride=4)
    assert frame_windows(32, spec) == [(0, 16), (4, 20), (8, 24), (12, 28), (16, 32)]
    assert frame_windows(31, spec) == [(0, 16), (4, 20), (8, 24), (12, 28)]
    assert frame_windows(16, spec) == frame_windows(19, spec) == [(0, 16)]
    assert frame_windows(5, spec) == [(0, 5)]
    assert frame_windows(8, WindowSpec(frames=4)) == [(0, 4), (4, 8)]


@pytest.mark.parametrize("window", [16, 32])
def test_a_feature_is_of_the_source_frames_from_its_number_times_the_stride(
    tiny_pretraining: Path, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    """Compared with clips cut by hand out of all frames. Few frames fit into memory, so parts are decoded in turn."""
    monkeypatch.setattr(read_video, "BYTES_ON_DISK", 20 * 36 * 48 * 3 // 2)
    frames = len(open_source(members[0]).times)
    out = tmp_path / "features"
    options = ["--layout", "opentad", "--window", window, "--stride", "3", "--out", out, "--quiet"]
    _embed(tiny_pretraining, members[0], *options)
    features_TC = np.load(out / f"{members[0].stem}.npy")
    embedder = Embedder(tiny_pretraining, "cpu")
    assert features_TC.dtype == np.float32
    assert features_TC.shape == ((frames - window) // 3 + 1, embedder.model.geometry.embed_dim)
    frames_THWC = read_clips(members[0], frames, stride=1)[0]
    clips = [frames_THWC[first : first + window : window // 16] for first in range(frames - window + 1)]
    by_hand_NC = embedder.embed_clips(torch.stack(clips)).numpy()
    for number, own_C in enumerate(features_TC):
        distance_N = np.abs(by_hand_NC - own_C).max(axis=1)  # by hand, pixels are rounded
        assert distance_N.argmin() == 3 * number and distance_N.min() < 0.01


def test_the_json_file_places_features_in_time(tiny_pretraining: Path, members: list[Path], tmp_path: Path) -> None:
    video, out = open_source(members[0]), tmp_path / "features"
    said = _embed(tiny_pretraining, *members, "--layout", "actionformer", "--out", out)
    about = json.loads((out / "features.json").read_text())
    config, entry = about["config"], about["database"][members[0].stem]
    expected = {"feat_stride": 4, "num_frames": 16, "file_ext": ".npy"}
    assert {name: config[name] for name in expected} == expected and config["input_dim"] == 192
    assert set(about["database"]) == {path.stem for path in members}
    assert entry["frame"] == len(video.times) and entry["duration"] == pytest.approx(video.seconds()[-1])
    assert (entry["feature_stride"], entry["offset_frames"], entry["annotations"]) == (4, 8, [])
    assert (
        entry["fps"] == pytest.approx(float(video.info.frame_rate)) == pytest.approx(entry["frame"] / entry["duration"])
    )
    assert entry["features"] == len(np.load(out / f"{members[0].stem}.npy"))
    assert f"{sum(one['features'] for one in about['database'].values())} rows" in said.stdout
    # The middle of feature i in seconds, as both programs compute it, against the times of the frames.
    seconds = video.seconds()
    for number in range(entry["features"]):
        middle = (number * config["feat_stride"] + config["num_frames"] / 2) / entry["fps"]
        assert middle == pytest.approx(seconds[4 * number + 8], abs=1e-6)


def test_frames_at_uneven_times_are_told(
    tiny_pretraining: Path, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second half of the frames comes ten times slower."""

    def slowed(path: Path) -> Any:
        video = open_source(path)
        half = len(video.times) // 2
        times = (time + 9 * max(0, time - video.times[half]) for time in video.times)
        return video._replace(times=tuple(times))

    monkeypatch.setattr("vmae_train.inference.load_videos.open_source", slowed)
    said = _embed(tiny_pretraining, members[0], "--layout", "opentad", "--out", tmp_path / "f", "--quiet").stderr
    assert "frames are not evenly spaced, so times of features are wrong by up to" in said
    (entry,) = json.loads((tmp_path / "f" / "features.json").read_text())["database"].values()
    assert entry["time_error"] > 2 / entry["fps"]


def test_a_folder_is_continued_and_a_lost_file_is_made_again(
    tiny_pretraining: Path, members: list[Path], tmp_path: Path
) -> None:
    out, spec = tmp_path / "features", WindowSpec(None, 4, 16)
    out.mkdir()  # an empty folder is no reason to refuse
    embedder, names = Embedder(tiny_pretraining, "cpu"), [str(path) for path in members]

    def run(some: list[str]) -> tuple[int, int]:
        counts = embed_all(embedder, some, spec=spec, out=str(out), layout="opentad", style=QUIET).counts
        return counts.done, counts.kept

    assert run(names[:1]) == (1, 0)
    assert run(names) == (2, 1)
    made = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(made) == {"features.json", *(f"{path.stem}.npy" for path in members)}
    (out / f"{members[1].stem}.npy").unlink()
    assert run(names) == (1, 2)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == made
    # The command keeps the annotations of people, and writes its own values again.
    about = json.loads(made["features.json"])
    labels = {"subset": "training", "annotations": [{"segment": [0.1, 0.4], "label": "turn"}], "split": 3}
    about["database"][members[1].stem] |= {**labels, "fps": 1}
    (out / "features.json").write_text(json.dumps(about))
    assert run(names) == (0, 3)
    about["database"][members[1].stem]["fps"] = json.loads(made["features.json"])["database"][members[1].stem]["fps"]
    assert json.loads((out / "features.json").read_text()) == about
    (out / "features.json").write_text("{")
    with pytest.raises(DataError, match="Correct it, or remove it"):
        run(names)
    (out / "features.json").unlink()
    assert run(names) == (0, 3)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == made
    with pytest.raises(MisuseError, match="layout: 'opentad' → 'actionformer'"):
        embed_all(embedder, names, spec=spec, out=str(out), layout="actionformer", style=QUIET)
    shutil.rmtree(out)
    out.mkdir()
    (out / "other").touch()
    (tmp_path / "features.journal").unlink()
    with pytest.raises(MisuseError, match="can't be continued"):
        run(names)


def test_complete_shards_serve_and_thinned_ones_are_refused(
    tiny_pretraining: Path, whole_shards: Path, demo_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    shards = Shards.open(str(whole_shards))
    layout = ["--layout", "opentad", "--quiet"]
    _embed(tiny_pretraining, whole_shards, *layout, "--out", tmp_path / "a")
    _embed(tiny_pretraining, members[0], *layout, "--out", tmp_path / "b")
    ids = [Path(path or "").stem for path in shards.source_paths(range(len(shards)))]
    assert {path.stem for path in (tmp_path / "a").glob("*.npy")} == set(ids)
    of_member = np.load(tmp_path / "b" / f"{members[0].stem}.npy")
    np.testing.assert_allclose(np.load(tmp_path / "a" / f"{ids[0]}.npy"), of_member, atol=1e-5)
    refused = _embed(tiny_pretraining, demo_shards, *layout, "--out", tmp_path / "c", status=2).stderr
    assert "keeps one frame in 2, but temporal localisation needs every source frame" in refused
    assert "or name the source videos" in refused
    assert not (tmp_path / "c").exists() and not (tmp_path / "c.journal").exists()


def test_a_damaged_sample_is_named_and_segments_are_refused(
    tiny_pretraining: Path, members: list[Path], tmp_path: Path
) -> None:
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1"])
    build_shards(str(members[0].parent), tmp_path / "shards", spec, workers=1, style=QUIET)
    shards = Shards.open(str(tmp_path / "shards"))
    member = shards.member_range(0)
    tar = tmp_path / "shards" / shards.index.shardlist[member.shard].url
    data = bytearray(tar.read_bytes())
    data[member.offset + member.size // 2] ^= 1
    tar.write_bytes(data)
    said = _embed(tiny_pretraining, tmp_path / "shards", "--layout", "opentad", "--out", tmp_path / "a", "--quiet")
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("skipped")]
    assert "its checksum in shard-000000.tar differs" in line
    cut = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1", "longest_seconds=0.5"])
    build_shards(str(members[0].parent), tmp_path / "cut", cut, workers=1, style=QUIET)
    with pytest.raises(MisuseError, match="segments of longer videos"):
        temporal_folder.shard_members(str(tmp_path / "cut"))
    # In a file each segment has a row of its own, and the video is the source.
    results = list(Embedder(tiny_pretraining, "cpu").run_shards(Shards.open(str(tmp_path / "cut"))))
    assert len(results) == len(members)
    for result in results:
        assert [row.video for row in result.rows] == [f"{result.video}-s{n:04d}" for n in range(len(result.rows))]


def test_options_that_do_not_fit_a_layout_are_refused(
    tiny_pretraining: Path, members: list[Path], tmp_path: Path
) -> None:
    command = [tiny_pretraining, members[0], "--layout", "opentad", "--out"]
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / members[0].name
    for options, reason in (
        ([tmp_path / "a.npz"], "writes a folder"),
        ([tmp_path / "a", "--window", "20"], "Set a multiple of 16"),
        ([tmp_path / "a", "--stride", "1.5"], "counts source frames"),
        ([tmp_path / "a", "--stride", "nan"], "counts source frames"),
        ([tmp_path / "a", "--window", "inf"], "counts source frames"),
        ([tmp_path / "a", "--pool", "slice"], "Remove --pool"),
        ([tmp_path / "a", "--views", "2x1"], "--views 2x1: a window of --layout is one clip. Use 1x1"),
        ([Path("/")], "has no name"),
    ):
        assert reason in _embed(*command, *options, status=2).stderr
    shutil.copy(members[0], same)
    assert f"both would be {same.stem}.npy" in _embed(*command, tmp_path / "a", same, status=2).stderr
