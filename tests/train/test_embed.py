"""Features of videos and shards: equal to the model's own, in files that a command continues, in Python."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.command import call_command
from vmae_data.errors import DataError, MisuseError, StopRequested
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_train import Embedder, load_model, read_clips
from vmae_train.embed import embed_all
from vmae_train.inference.features_file import FeaturesFile
from vmae_train.inference.find_videos import VideoFile
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec
from vmae_train.models.heads import Classifier

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def _embed(*arguments: Any, status: int = 0) -> Any:
    return call_command("vmae_train", "embed", *arguments, "--workers", "0", status=status)


@pytest.mark.parametrize("run", ["pretraining", "finetuning"])
def test_features_are_those_of_the_model_and_those_of_the_sample(
    run: str, tiny_pretraining: Path, tiny_finetuning: Path, whole_shards: Path, members: list[Path]
) -> None:
    checkpoint = {"pretraining": tiny_pretraining, "finetuning": tiny_finetuning}[run]
    embedder = Embedder(checkpoint, "cpu", settings=["evaluate.views='2x3'"], batch=2)
    results = embedder.run_videos([VideoFile(path.stem, path) for path in members])
    of_files = {result.video: result.rows for result in results}
    of_samples = {
        result.video.rpartition("/")[2]: result.rows for result in embedder.run_shards(Shards.open(str(whole_shards)))
    }
    assert len(of_samples) == len(Shards.open(str(whole_shards)))
    for name, (row,) in of_files.items():
        np.testing.assert_allclose(row.values, of_samples[name][0].values, atol=1e-4)
    single = Embedder(checkpoint, "cpu", settings=["evaluate.views='1x1'"])
    (row,) = single.embed(members[0])
    clips = read_clips(members[0], stride=2)
    model = load_model(checkpoint)
    with torch.no_grad():
        own = model.features(model.preprocess(clips))[0]
    np.testing.assert_allclose(row.values, own, atol=0.05)  # rounded pixels
    np.testing.assert_allclose(single.embed_clips(clips)[0], own, atol=1e-5)


def test_slices_and_tokens_are_of_one_view(tiny_pretraining: Path, members: list[Path]) -> None:
    mean, slices, tokens = (
        Embedder(tiny_pretraining, "cpu", pool=pool, settings=["evaluate.views='1x1'"]).embed(members[0])[0]
        for pool in ("mean", "slice", "none")
    )
    assert Embedder(tiny_pretraining, "cpu", pool="slice").protocol.views == (1, 1)
    np.testing.assert_allclose(slices.values.mean(axis=0), mean.values, atol=1e-5)
    np.testing.assert_allclose(tokens.values.mean(axis=0), mean.values, atol=1e-5)
    with pytest.raises(MisuseError, match="no common mean"):
        Embedder(tiny_pretraining, "cpu", pool="slice", settings=["evaluate.views='2x1'"])


def test_the_command_writes_parquet_and_npz_alike(
    tiny_pretraining: Path, whole_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    table, arrays, half = tmp_path / "a.parquet", tmp_path / "a.npz", tmp_path / "half.parquet"
    for out in (table, arrays):
        options = ["--out", out, "--pool", "slice"]
        said = _embed(tiny_pretraining, members[0], whole_shards, *options).stdout
        assert re.fullmatch(r"\S+: 25 rows\. 25 videos embedded, 0 kept from before\. \S+ clips/s \(25 .*\n", said)
    _embed(tiny_pretraining, members[0], "--out", half, "--float16", "--quiet")
    read = pq.read_table(table)
    assert read.column_names == ["video", "start", "end", "features"]
    assert json.loads(read.schema.metadata[b"made_with"])["pool"] == "slice"
    with np.load(arrays) as file:
        assert file["video"].tolist() == read.column("video").to_pylist()
        assert file["features"].dtype == np.float32 and file["features"].shape[0] == 25
        np.testing.assert_array_equal(file["features"], np.asarray(read.column("features").to_pylist(), np.float32))
        assert np.isnan(file["start"][1:]).all() and file["start"][0] == 0
    (row,) = Embedder(tiny_pretraining, "cpu", pool="slice").embed(members[0])
    np.testing.assert_array_equal(read.column("features")[0].as_py(), row.values)
    assert str(pq.read_schema(half).field("features").type).startswith("fixed_size_list<element: halffloat>[")


def test_a_file_is_continued_and_has_the_same_bytes(
    tiny_pretraining: Path, whole_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    """A stop after the first video, half a line of a killed command, then the same command; shards resume too."""
    at_once, out, journal = tmp_path / "once.npz", tmp_path / "a.npz", tmp_path / "a.npz.journal"
    spec, names = WindowSpec(), [*map(str, members), str(whole_shards)]
    embedder = Embedder(tiny_pretraining, "cpu", settings=["evaluate.views='1x1'"])
    embed_all(embedder, names, spec=spec, out=str(at_once), style=QUIET)

    def stop(result: VideoResult) -> None:
        raise StopRequested(130)

    with pytest.raises(StopRequested) as stopped:
        embed_all(embedder, names, spec=spec, out=str(out), finished=stop, style=QUIET)
    assert stopped.value.saved == f"{journal} keeps 1 video"
    with journal.open("ab") as file:
        file.write(b'{"video":"half of a l')
    left = journal.read_bytes()
    seen: list[str] = []

    def stop_in_shards(result: VideoResult) -> None:
        seen.append(result.video)
        if len(seen) == 5:
            raise StopRequested(130)

    with pytest.raises(StopRequested) as stopped:
        embed_all(embedder, names, spec=spec, out=str(out), finished=stop_in_shards, style=QUIET)
    assert stopped.value.saved == f"{journal} keeps 6 videos"
    assert seen[:2] == names[1:3] and journal.read_bytes().startswith(left[: left.rfind(b"\n") + 1])
    done = embed_all(embedder, names, spec=spec, out=str(out), style=QUIET)
    assert (done.counts.kept, done.counts.done) == (6, len(Shards.open(str(whole_shards))) - 3)
    assert out.read_bytes() == at_once.read_bytes()
    again = embed_all(embedder, names, spec=spec, out=str(out), style=QUIET)
    assert again.counts.done == 0 and out.read_bytes() == at_once.read_bytes()
    with pytest.raises(MisuseError, match=r"pool: 'mean' → 'slice'"):
        embed_all(Embedder(tiny_pretraining, "cpu", pool="slice"), names, spec=spec, out=str(out), style=QUIET)


def test_two_commands_cannot_write_one_file(tiny_pretraining: Path, members: list[Path], tmp_path: Path) -> None:
    embedder, out = Embedder(tiny_pretraining, "cpu"), tmp_path / "a.npz"
    with FeaturesFile(out, embedder, WindowSpec()):
        refused = _embed(tiny_pretraining, members[0], "--out", out, status=2).stderr
    assert "another command is writing it" in refused


def test_a_damaged_journal_is_named(tiny_pretraining: Path, members: list[Path], tmp_path: Path) -> None:
    out, journal = tmp_path / "a.npz", tmp_path / "a.npz.journal"
    command = [tiny_pretraining, members[0], "--out", out, "--quiet"]
    _embed(*command)
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    for damaged in (b"\x00" + whole, lines[0] + b"\x00" + lines[1], whole.replace(b"]]}", b"]}}")):
        assert damaged != whole
        journal.write_bytes(damaged)
        assert f"{journal}: is damaged" in _embed(*command, status=1).stderr
    journal.write_bytes(whole)
    assert "1 kept" in _embed(*command[:-1]).stdout


def test_settings_can_change_before_the_first_result(tiny_pretraining: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    for pool in ("mean", "slice"):
        said = _embed(tiny_pretraining, tmp_path / "broken.mp4", "--out", tmp_path / "a.npz", "--pool", pool, status=1)
        assert "no video can be read, of 1 (" in said.stderr


def test_broken_videos_are_named_at_the_end_and_json_has_an_object_for_each(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    shutil.copy(members[0], tmp_path / "v.mp4")
    command = [tiny_finetuning, tmp_path, "--window", "0.5", "--views", "1x1", "--out", tmp_path / "a.parquet"]
    done = _embed(*command, "--json")
    objects = list(map(json.loads, done.stdout.splitlines()))
    windows = len(Embedder(tiny_finetuning, "cpu").embed(tmp_path / "v.mp4", window=0.5))
    broken, good, summary = objects
    assert "error" in broken and good == {"video": str(tmp_path / "v.mp4"), "rows": windows}
    assert (summary["rows"], summary["videos"], summary["unreadable"], summary["clips"]) == (windows, 1, 1, windows)
    assert done.stderr.splitlines()[-1].startswith(f"skipped, unreadable: {tmp_path / 'broken.mp4'}: ")


def test_workers_and_batches_change_nothing(tiny_pretraining: Path, members: list[Path]) -> None:
    videos = [VideoFile(path.name, path) for path in members]
    spec = WindowSpec(0.5, 0.25)
    alone = list(Embedder(tiny_pretraining, "cpu", batch=1).run_videos(videos, spec))
    shared = list(Embedder(tiny_pretraining, "cpu", batch=5).run_videos(videos, spec, workers=2))
    for one, other in zip(alone, shared, strict=True):
        assert one.video == other.video and len(one.rows) == len(other.rows) > 1
        for row, same in zip(one.rows, other.rows, strict=True):
            np.testing.assert_allclose(row.values, same.values, atol=1e-5)


def test_options_that_do_not_fit_are_refused(
    tiny_pretraining: Path, whole_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    for options, status, reason in (
        (["--out", "a.txt"], 2, "ends in .parquet, .npz. To write a folder, set --layout"),
        (["--out", tmp_path / "a.npz", "--layer", "9"], 2, "the encoder has blocks 1 to 2"),
        (["--out", tmp_path / "a.npz", "--pool", "none", "--views", "2x1"], 2, "no common mean"),
    ):
        assert reason in _embed(tiny_pretraining, members[0], *options, status=status).stderr
    refused = _embed(tiny_pretraining, whole_shards, "--out", tmp_path / "a.npz", "--window", "1", status=2)
    assert "shards have no windows" in refused.stderr
    assert not list(tmp_path.iterdir())


def test_python_embeds_videos_and_clips(tiny_finetuning: Path, members: list[Path], tmp_path: Path) -> None:
    embedder = Embedder(tiny_finetuning, "cpu", layer=1, float16=True)
    assert re.fullmatch(
        r"Embedder\(\S+: 192 of block 1 of 2, 16 frames of 32 px, stride 2, views 1x1, cpu\)", repr(embedder)
    )
    first, *_ = embedder.embed(members[0], window=0.5)
    assert re.fullmatch(r"Features\(\S+, 0\.00–0\.50 s: 192 float16\)", repr(first))
    clips = read_clips(members[0], stride=2)
    assert embedder.embed_clips(clips).dtype == torch.float16
    assert isinstance(embedder.model, Classifier)
    with pytest.raises(ValueError, match="expected uint8, 0 to 255"):
        embedder.embed_clips(clips / 255)
    with pytest.raises(ValueError, match="axes B T H W 3"):
        embedder.embed_clips(clips.permute(0, 4, 1, 2, 3))
    with pytest.raises(MisuseError, match="expected mean, slice, none"):
        Embedder(tiny_finetuning, "cpu", pool="max")  # type: ignore[arg-type]
    (tmp_path / "v.mp4").write_bytes(b"no video")
    with pytest.raises(DataError, match=r"v\.mp4.*unreadable"):
        embedder.embed(tmp_path / "v.mp4")
