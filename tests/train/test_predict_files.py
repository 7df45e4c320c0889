"""What `vmae-train predict` writes and reads: files that it continues, pages, videos of a web server."""

from __future__ import annotations

import csv
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.command import call_command
from tests.scripted_server import FACTS, Answer, Request, scripted_server
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train import Predictor
from vmae_train.evaluate import evaluate_checkpoint
from vmae_train.inference.find_videos import find_videos

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def test_a_file_is_continued_and_a_killed_command_loses_no_finished_video(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path
) -> None:
    out, journal = tmp_path / "out.csv", tmp_path / "out.csv.journal"
    command: list[Any] = ["vmae_train", "predict", tiny_finetuning, "--out", out, "--views", "1x1", "--workers", "0"]
    assert "1 video predicted, 0 kept" in call_command(*command, members[0]).stdout
    first = out.read_text()
    with journal.open("ab") as file:
        file.write(b'{"video":"half of a l')  # what a killed command leaves
    out.unlink()
    assert "2 videos predicted, 1 kept" in call_command(*command, *members).stdout
    assert out.read_text().startswith(first)
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["video"] for row in rows] == [str(path) for path in members]
    assert all(float(row[row["prediction"]]) == float(row["probability"]) for row in rows)
    # Nothing is missing: the model predicts nothing, and the file stays as it is.
    written = out.read_bytes()
    assert "0 videos predicted, 3 kept" in call_command(*command, *members).stdout
    assert out.read_bytes() == written
    refused = call_command(*command, *members, "--set", "clip.stride=1", status=2).stderr.splitlines()[-1]
    assert refused.startswith(f"vmae-train: {out}: ") and refused.endswith("(clip.stride: 2 → 1). Name another --out")
    journal.unlink()
    assert "can't be continued" in call_command(*command, *members, status=2).stderr


def test_a_replaced_video_is_predicted_again(tiny_finetuning: Path, members: list[Path], tmp_path: Path) -> None:
    video, out = tmp_path / "v.mp4", tmp_path / "out.jsonl"
    command: list[Any] = [
        "vmae_train",
        "predict",
        tiny_finetuning,
        video,
        "--out",
        out,
        "--views",
        "1x1",
        "--quiet",
        "--workers",
        "0",
    ]
    shutil.copy(members[0], video)
    call_command(*command)
    shutil.copy(members[1], video)
    call_command(*command)
    (row,) = map(json.loads, out.read_text().splitlines())
    (expected,) = Predictor(tiny_finetuning, "cpu", settings=["evaluate.views='1x1'"]).predict(members[1])
    assert row["probabilities"] == pytest.approx(dict(expected.top()))


def test_parquet_has_the_columns_of_an_evaluation(
    tiny_finetuning: Path, whole_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out.parquet"
    call_command(
        "vmae_train", "predict", tiny_finetuning, members[0], whole_shards, "--out", out, "--quiet", "--workers", "0"
    )
    table = pq.read_table(out)
    assert table.column_names == ["video", "start", "end", "top5", "probabilities"]
    names = json.loads(table.schema.metadata[b"names"])
    row, *samples = table.to_pylist()
    assert len(samples) == len(Shards.open(str(whole_shards))) and samples[0]["start"] is None
    assert row["top5"][0] == names[int(np.argmax(row["probabilities"]))]
    same = next(sample for sample in samples if sample["video"] == f"{whole_shards}/{members[0].stem}")
    np.testing.assert_allclose(row["probabilities"], same["probabilities"], atol=1e-5)


def test_samples_of_shards_are_continued_and_merged_by_source(
    tiny_finetuning: Path, demo_videos: Path, tmp_path: Path
) -> None:
    """Segments of half a second. One can't be read, so the next command tries its source again."""
    cut, out = tmp_path / "cut", tmp_path / "out.jsonl"
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["longest_seconds=0.5"])
    build_shards(str(demo_videos), cut, spec, workers=2, style=QUIET)
    shards = Shards.open(str(cut))
    tar = cut / shards.index.shardlist[0].url
    whole, member = tar.read_bytes(), shards.member_range(1)
    damaged = bytearray(whole)
    damaged[member.offset + member.size // 2] ^= 1
    tar.write_bytes(damaged)
    command: list[Any] = ["vmae_train", "predict", tiny_finetuning, cut, "--out", out, "--workers", "0"]
    first = call_command(*command)
    assert "24 videos predicted, 0 kept" in first.stdout
    assert f"skipped, unreadable: {cut}/{shards.key(1)}: " in first.stderr
    tar.write_bytes(whole)
    second = call_command(*command)
    assert "1 video predicted, 23 kept" in second.stdout and "skipped" not in second.stderr
    found = evaluate_checkpoint(str(tiny_finetuning), str(cut), workers=0, device="cpu", style=QUIET).predictions
    expected = dict(zip(found.key, found.output_NK, strict=True))
    rows = list(map(json.loads, out.read_text().splitlines()))
    assert len(rows) == len(expected) == 24
    for row in rows:
        outputs = [row["probabilities"][name] for name in found.names]
        np.testing.assert_allclose(outputs, expected[row["video"].rpartition("/")[2]], atol=1e-6)
    assert "0 videos predicted, 24 kept" in call_command(*command).stdout


def test_the_page_has_players_timelines_and_frames(tiny_finetuning: Path, members: list[Path], tmp_path: Path) -> None:
    video, page = tmp_path / "a #1 & ü.mp4", tmp_path / "page.html"
    shutil.copy(members[0], video)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    command: list[Any] = [
        "vmae_train",
        "predict",
        tiny_finetuning,
        tmp_path,
        "--views",
        "1x1",
        "--quiet",
        "--workers",
        "0",
    ]
    shutil.copy(members[0], tmp_path / "old.avi")
    call_command(*command, "--window", "0.5", "--html", page)
    text = page.read_text()
    assert text.count("<video") == 1 and "Without a player: browsers don&#39;t open .avi files." in text
    (tmp_path / "old.avi").unlink()
    call_command(*command, "--window", "0.5", "--html", page)
    text = page.read_text()
    assert 'src="a%20%231%20%26%20%C3%BC.mp4"' in text and "a #1 &amp; ü.mp4" in text
    rows = re.findall(r"<p>([a-z-]+)</p>\s*<div>(.*?)</div>", text)
    (prediction, *_) = windows = Predictor(tiny_finetuning, "cpu", settings=["evaluate.views='1x1'"]).predict(
        video, window=0.5
    )
    assert len(rows) == 6 and set(dict(rows)) <= set(prediction.names)
    for name, spans in rows:
        heights = [float(height) / 100 for height in re.findall(r"height:([0-9.]+)%", spans)]
        assert heights == pytest.approx([dict(one.top())[name] for one in windows], abs=1e-4)
    assert text.count("data:image/") == min(6, len(windows))
    assert "Unreadable videos" in text and "broken.mp4" in text
    # With --out the page shows the videos that were predicted before, too.
    call_command(*command, "--out", tmp_path / "o.csv")
    spoken = [word for word in command if word != "--quiet"]
    done = call_command(*spoken, "--out", tmp_path / "o.csv", "--html", page)
    assert done.stdout.splitlines()[-1] == str(page)
    assert 'class="bars"' in page.read_text() and "<video" in page.read_text()
    assert "Without frames: an earlier command predicted this video." in page.read_text()


def test_videos_of_a_web_server_are_read_and_removed(
    tiny_finetuning: Path, members: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = members[0].read_bytes()

    def answer(request: Request) -> Answer:
        if request.path != "/v.mp4":
            return Answer(404)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", ""))
        if wanted is None:
            return Answer(200, data)
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        facts = {**FACTS, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
        return Answer(206, data[start:stop], facts)

    with scripted_server(answer) as server:
        (tmp_path / "urls.txt").write_text(f"{server.url}/v.mp4\n\n{server.url}/no.mp4 3\n")
        done = call_command(
            "vmae_train",
            "predict",
            tiny_finetuning,
            tmp_path / "urls.txt",
            "--json",
            "--workers",
            "0",
        )
    row, error = map(json.loads, done.stdout.splitlines())
    assert row["video"] == f"{server.url}/v.mp4" and error["video"] == f"{server.url}/no.mp4"
    (expected,) = Predictor(tiny_finetuning, "cpu").predict(members[0])
    assert row["probabilities"] == pytest.approx(dict(expected.top()))
    assert not list(tmp_path.glob("**/*.mp4"))


def test_a_listing_of_urls_names_videos_anywhere(tmp_path: Path) -> None:
    listing = tmp_path / "videos.csv"
    listing.write_text("label,url\n1,s3://b/x/a.mp4\n2,https://host/b.mp4\n1,s3://b/x/a.mp4\n")
    found = find_videos([str(listing)])
    assert [video.name for video in found.videos] == ["s3://b/x/a.mp4", "https://host/b.mp4"]
    nobody = "http://127.0.0.1:9/v.mp4"  # a URL of a video asks no server before it is read
    assert [video.name for video in find_videos([nobody]).videos] == [nobody]
    for text, reason in (
        ("s3://b/a.mp4\nb.mp4\n", "videos.csv: mixes URLs and paths, such as 'b.mp4'. Make a listing of each"),
        ("ftp://host/a.mp4\n", "ftp://: unknown scheme"),
    ):
        listing.write_text(text)
        with pytest.raises(MisuseError, match=re.escape(reason)):
            find_videos([str(listing)])
