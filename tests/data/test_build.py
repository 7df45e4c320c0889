from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import msgspec
import pytest

from tests.command import command_line, run_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, VmaeError
from vmae_data.format import FAILURES, Failure, ShardMarker, decode_record, tar_name
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.rng import Purpose, bits, uniform
from vmae_data.shards.workspace import STAGING

QUIET = ProgressStyle.QUIET


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _failures(folder: Path) -> dict[str, str]:
    lines = (folder / FAILURES).read_text().splitlines()
    return {line["path"]: line["reason"] for line in map(json.loads, lines)}


def _running(word: str) -> list[int]:
    """Processes whose command line holds a word, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            alive = (folder / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if word in line and alive and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found


def test_every_good_video_is_in_and_every_bad_one_listed(demo_videos: Path, demo_shards: Path) -> None:
    files = {str(path.relative_to(demo_videos)) for path in demo_videos.glob("*/*.mp4")}
    good = {path for path in files if "broken" not in path}
    shards = Shards.open(str(demo_shards))
    made = {sample.facts.source.path for sample in shards}
    failed = _failures(demo_shards)
    assert good <= made
    assert made | set(failed) == files
    assert not made & set(failed)
    assert {"empty", "no-video", "unreadable"} <= set(failed.values())


def test_a_failure_says_why_in_ffmpegs_own_words_without_a_machines_paths(demo_videos: Path, demo_shards: Path) -> None:
    text = (demo_shards / FAILURES).read_text()
    assert "moov atom not found" in text
    assert str(demo_videos) not in text
    assert "0x" not in text


def test_one_worker_and_four_give_the_same_bytes(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    for workers in (1, 4):
        build_shards(str(demo_videos), tmp_path / str(workers), demo_spec, workers=workers, style=QUIET)
        assert _digests(tmp_path / str(workers)) == _digests(demo_shards)


def test_ten_kills_change_no_byte_and_leave_nothing_behind(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = tmp_path / "killed"
    command = command_line(
        "vmae_data",
        "build",
        demo_videos,
        dest,
        "--recipe",
        "demo",
        "--set",
        "samples_per_shard=8",
        "--workers",
        "2",
        "--quiet",
    )
    staging = dest / STAGING
    for n in range(10):
        before = _finished(dest, staging)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        until = time.monotonic() + 60
        while len(_finished(dest, staging)) <= len(before) and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.1 * float(uniform(bits(0, n, 0, 0, 0, Purpose.DEMO))))
        process.kill()
        process.communicate()
        assert before <= _finished(dest, staging), "a finished encode was lost"
    time.sleep(1.0)  # the kernel ends the workers and their ffmpeg
    assert not _running(str(dest))
    run_command(*command_words(command))
    assert _digests(dest) == _digests(demo_shards)
    assert not _running(str(dest))


def command_words(command: list[str]) -> list[str]:
    return ["vmae_data", *command[3:]]


def _finished(dest: Path, staging: Path) -> set[str]:
    """Keys that are staged or packed."""
    done = {path.name.removesuffix(".staged.json") for path in staging.glob("[!.]*.staged.json")}
    for path in dest.glob("shard-*.json"):
        marker = decode_record(path.read_bytes(), ShardMarker, path.name)
        done |= {entry.key for entry in marker.samples} | {failure.key for failure in marker.failures}
    return done


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_build_at_once_and_it_goes_on(
    demo_videos: Path, demo_shards: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    dest = tmp_path / "stopped"
    command = command_line(
        "vmae_data", "build", demo_videos, dest, "--recipe", "demo", "--set", "samples_per_shard=8", "--quiet"
    )
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((dest / STAGING).glob("[!.]*.staged.json")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, words = process.communicate(timeout=20)
    assert process.returncode == status
    assert words.count("\n") == 1
    assert not _running(str(dest))
    run_command(*command_words(command))
    assert _digests(dest) == _digests(demo_shards)


def test_a_second_run_does_no_work(demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("shard-*")}
    report = build_shards(str(demo_videos), demo_shards, demo_spec, workers=2, style=QUIET)
    assert report.encoded == 0
    assert {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("shard-*")} == before


def test_another_plan_is_refused_with_the_difference(demo_videos: Path, demo_shards: Path) -> None:
    with pytest.raises(MisuseError, match=r"recipe\.crf: 4 → 20"):
        build_shards(
            str(demo_videos),
            demo_shards,
            BuildSpec(short_side=36, stride=2, crf=20, samples_per_shard=8, may_flip=False),
            workers=1,
            style=QUIET,
        )


def test_a_moved_source_is_the_same_data_set(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(demo_videos)
    report = build_shards(str(moved), demo_shards, demo_spec, workers=1, style=QUIET)
    assert report.encoded == 0


def test_two_builds_into_one_folder_exclude_each_other(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable, "-c",
            "import sys, time; from pathlib import Path; from vmae_data.storage import lock\n"
            "with lock(Path(sys.argv[1]), 'build'): print('held', flush=True); time.sleep(60)",
            str(tmp_path),
        ],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(VmaeError, match="another build is writing here"):
        build_shards(str(demo_videos), tmp_path, demo_spec, workers=1, style=QUIET)
    holder.kill()
    holder.communicate()
    build_shards(str(demo_videos), tmp_path, demo_spec, workers=2, style=QUIET)


def test_tar_ffmpeg_and_stock_webdataset_read_the_shards(demo_shards: Path, tmp_path: Path) -> None:
    import webdataset

    path = demo_shards / tar_name(0)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert all(member.isfile() and member.mtime == 0 and member.uname == "vmae" for member in tar)
    with path.open("rb") as file:  # webdataset leaves a file that it opens itself to the garbage collector
        samples = list(
            webdataset.tariterators.group_by_keys(
                webdataset.tariterators.tar_file_expander([{"stream": file, "url": path.name}])
            )
        )
    assert [
        name
        for sample in samples
        for name in (f"{sample['__key__']}.cls", f"{sample['__key__']}.json", f"{sample['__key__']}.mp4")
    ] == names
    for sample in samples:
        facts = json.loads(sample["json"])
        assert sample["cls"].decode() == str(facts["label"])
        assert facts["class_name"] == facts["source"]["path"].split("/")[0]
    video = tmp_path / "x.mp4"
    video.write_bytes(samples[0]["mp4"])
    import imageio_ffmpeg

    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "null", "-"],
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""


def test_nothing_but_the_format_is_left_in_the_folder(demo_shards: Path) -> None:
    names = {path.name for path in demo_shards.iterdir()}
    shards = {name for name in names if name.startswith("shard-")}
    assert names - shards == {"plan.json", "plan.arrow", "samples.arrow", "failures.jsonl", "index.json"}


def test_mended_sources_come_in_on_request_only_and_change_only_their_shards(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    spec = msgspec.structs.replace(demo_spec, samples_per_shard=4)  # so that some shards have no failure
    source, broken, whole = tmp_path / "videos", tmp_path / "broken", tmp_path / "whole"
    shutil.copytree(demo_videos, source)
    good = next(source.glob("pan-left/scene-*.mp4"))
    data = good.read_bytes()
    build_shards(str(source), whole, spec, workers=2, style=QUIET)
    good.write_bytes(b"")
    build_shards(str(source), broken, spec, workers=2, style=QUIET)
    before = {path.name: path.stat().st_mtime_ns for path in broken.glob("shard-*.tar")}
    good.write_bytes(data)
    assert build_shards(str(source), broken, spec, workers=2, style=QUIET).encoded == 0
    failures = len(_failures(broken))
    report = build_shards(str(source), broken, spec, workers=2, retry_failed=True, style=QUIET)
    assert report.encoded == failures
    assert _digests(broken) == _digests(whole)
    kept = {path.name for path in broken.glob("shard-*.tar") if before.get(path.name) == path.stat().st_mtime_ns}
    failed_shards = {
        m.tar for p in broken.glob("shard-*.json") if (m := decode_record(p.read_bytes(), ShardMarker, p.name)).failures
    }
    assert kept
    assert not kept & failed_shards


def test_segments_of_good_sources_are_not_encoded_again_for_a_failed_one(demo_videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    shutil.copytree(demo_videos / "pan-left", source / "pan-left")
    (source / "pan-left" / "bad.mp4").write_bytes(b"no video")
    spec = BuildSpec(short_side=36, stride=2, longest_seconds=0.5)
    first = build_shards(str(source), tmp_path / "x", spec, workers=2, style=QUIET)
    assert first.made.samples > first.made.sources, "no video was cut"
    before = _digests(tmp_path / "x")
    again = build_shards(str(source), tmp_path / "x", spec, workers=2, retry_failed=True, style=QUIET)
    assert again.encoded == first.failed
    assert _digests(tmp_path / "x") == before


def test_a_data_set_of_only_bad_videos_says_so(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "v" / "b.mp4").touch()
    done = run_command("vmae_data", "build", tmp_path / "v", tmp_path / "out", "--quiet", status=1)
    assert "all 2 videos failed (1 " in done.stderr
    assert {json.loads(line)["reason"] for line in (tmp_path / "out" / FAILURES).read_text().splitlines()} == {
        "empty",
        "unreadable",
    }


def test_too_many_failures_are_status_1_but_nothing_is_lost(demo_videos: Path, demo_shards: Path) -> None:
    command = [
        "vmae_data",
        "build",
        demo_videos,
        demo_shards,
        "--recipe",
        "demo",
        "--set",
        "samples_per_shard=8",
        "--quiet",
    ]
    run_command(*command, "--max-failures", "50%")
    done = run_command(*command, "--max-failures", "1", status=1)
    assert "more than --max-failures 1" in done.stderr
    run_command(*command, "--max-failures", "many", status=2)


def test_failures_stand_in_plan_order_with_their_keys(demo_shards: Path) -> None:
    import pyarrow as pa

    plan = pa.ipc.open_file(str(demo_shards / "plan.arrow")).read_all()
    order = {key: n for n, key in enumerate(plan.column("key").to_pylist())}
    lines = [json.loads(line) for line in (demo_shards / FAILURES).read_text().splitlines()]
    assert [order[line["key"]] for line in lines] == sorted(order[line["key"]] for line in lines)
    assert set(lines[0]) == set(Failure.__struct_fields__)


def test_a_damaged_marker_is_made_again(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    (dest / "shard-000001.json").write_bytes((dest / "shard-000001.json").read_bytes()[:100])
    build_shards(str(demo_videos), dest, demo_spec, workers=2, style=QUIET)
    assert _digests(dest) == _digests(demo_shards)


@pytest.mark.parametrize("name", ["a.mp4", "class/a.mkv"])
def test_a_folder_of_other_videos_is_no_destination(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(MisuseError, match=f"holds videos, such as {name}. Name a separate folder"):
        build_shards(str(demo_videos), tmp_path, demo_spec, workers=1, style=QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {name.split("/")[0]}


def test_the_source_is_no_destination(demo_videos: Path, demo_spec: BuildSpec) -> None:
    with pytest.raises(MisuseError, match="is the source itself"):
        build_shards(str(demo_videos), demo_videos, demo_spec, workers=1, style=QUIET)


def _of_a_newer_version(path: Path) -> None:
    data = path.read_bytes()
    assert b'"version": 1,' in data
    path.write_bytes(data.replace(b'"version": 1,', b'"version": 2,', 1))


@pytest.mark.parametrize("name", ["index.json", "shard-000001.json", "plan.json"])
def test_what_a_newer_version_built_is_neither_built_on_nor_verified(
    demo_videos: Path, demo_shards: Path, tmp_path: Path, name: str
) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "shards"))
    (dest / "shard-000000.json").unlink()  # there is work to do
    _of_a_newer_version(dest / name)
    before = _digests(dest)
    settings = ("--recipe", "demo", "--set", "samples_per_shard=8", "--workers", "2", "--quiet")
    for words in (("build", demo_videos, dest, *settings), ("verify", dest, "--quiet")):
        done = run_command("vmae_data", *words, status=1)
        assert done.stderr == f"vmae-shard: {dest / name}: format version 2, this program reads up to 1; update vmae\n"
        assert done.stdout == ""
    assert _digests(dest) == before


def test_a_remark_on_the_recipe_waits_until_the_build_begins(demo_videos: Path, tmp_path: Path) -> None:
    words = ("build", demo_videos, tmp_path / "out", "--recipe", "demo", "--set", "short_side=64", "--json")
    assert "note: short_side" in run_command("vmae_data", *words).stderr
    done = run_command("vmae_data", *words, "--set", "seed=3", status=2)
    assert "remark:" not in done.stderr
    assert done.stderr.count("\n") == 1
