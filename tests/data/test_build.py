"""Builds into a local folder: what they make, how they stop, resume and refuse."""

from __future__ import annotations

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
import pyarrow as pa
import pytest

from tests.builds import QUIET, SmallBuild, digests, processes_with, staged_keys, start_process, wait_until
from tests.command import call_command, command_line
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, NewerFormatError, VmaeError
from vmae_data.format import FAILURES, PLAN, RULES, Failure, PlanFacts, ShardMarker, decode_record, encode_record
from vmae_data.names import tar_name
from vmae_data.read.dataset import Shards
from vmae_data.rng import Purpose, bits, uniform
from vmae_data.shards.workspace import STAGING

pytestmark = pytest.mark.processes


def _failures(folder: Path) -> dict[str, str]:
    lines = (folder / FAILURES).read_text().splitlines()
    return {line["path"]: line["reason"] for line in map(json.loads, lines)}


def _marker(path: Path) -> ShardMarker:
    return decode_record(path.read_bytes(), ShardMarker, path.name)


def test_every_good_video_is_in_and_every_bad_one_listed(demo_videos: Path, demo_shards: Path) -> None:
    files = {str(path.relative_to(demo_videos)) for path in demo_videos.glob("*/*.mp4")}
    good = {path for path in files if "broken" not in path}
    made = {sample.facts.source.path for sample in Shards.open(str(demo_shards))}
    failed = _failures(demo_shards)
    assert good <= made
    assert made | set(failed) == files
    assert not made & set(failed)
    assert {"empty", "no-video", "unreadable"} <= set(failed.values())


def test_a_failure_quotes_ffmpeg_without_a_machines_paths(demo_videos: Path, demo_shards: Path) -> None:
    text = (demo_shards / FAILURES).read_text()
    assert "moov atom not found" in text
    assert str(demo_videos) not in text
    assert "0x" not in text


@pytest.mark.parametrize("workers", [1, 4])
def test_any_number_of_workers_gives_the_same_bytes(small_build: SmallBuild, tmp_path: Path, workers: int) -> None:
    small_build.build(tmp_path / "shards", workers=workers)
    assert digests(tmp_path / "shards") == digests(small_build.shards)


def test_ten_kills_change_no_byte_and_leave_nothing_behind(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest, options = tmp_path / "killed", {"workers": 2, "style": QUIET}
    start_process(int).join()  # the server of processes starts without the variable
    monkeypatch.setenv("KILLED_BUILD", str(dest))  # each process that the build starts inherits it
    for n in range(10):
        before = _finished(dest)
        process = start_process(build_shards, str(demo_videos), dest, demo_spec, **options)
        until = time.monotonic() + 60
        while len(_finished(dest)) <= len(before) and process.is_alive() and time.monotonic() < until:
            time.sleep(0.005)
        time.sleep(0.1 * float(uniform(bits(0, n, 0, 0, 0, Purpose.DEMO))))
        process.kill()
        process.join()
        assert before <= _finished(dest), "a finished encode was lost"
    wait_until(lambda: not processes_with(str(dest)))  # the kernel ends the workers and their ffmpeg
    build_shards(str(demo_videos), dest, demo_spec, **options)
    assert digests(dest) == digests(demo_shards)
    assert not processes_with(str(dest))


def _finished(dest: Path) -> set[str]:
    """Keys that are staged or packed."""
    keys = staged_keys(dest / STAGING)
    for path in dest.glob("shard-*.json"):
        marker = _marker(path)
        keys |= {entry.key for entry in marker.samples} | {failure.key for failure in marker.failures}
    return keys


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_build_at_once_and_it_resumes(
    small_build: SmallBuild, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    dest = tmp_path / "stopped"
    words = ["build", small_build.videos, dest, *small_build.settings, "--quiet"]
    small_build.hold_last(0)
    words = ["env", "--default-signal=HUP", *command_line("vmae_data", *words)]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: staged_keys(dest / STAGING), process)
    process.send_signal(number)
    while number == signal.SIGHUP and process.poll() is None:  # the kernel and the shell each send one
        process.send_signal(number)
        time.sleep(0.001)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    done = f"{len(_finished(dest))} of {12} videos are done in {dest}"
    assert errors == f"vmae-shard: stopped. {done}. Run the same command again to resume\n"
    assert not processes_with(str(dest))
    small_build.release()
    small_build.build(dest)
    assert digests(dest) == digests(small_build.shards)


def test_a_build_outlives_the_terminal_of_its_progress(small_build: SmallBuild, tmp_path: Path) -> None:
    dest, (master, terminal) = tmp_path / "outlives", os.openpty()
    small_build.hold_last(0)
    words = ["env", "--ignore-signal=HUP", *command_line("vmae_data", "build", small_build.videos, dest)]
    process = subprocess.Popen([*words, *small_build.settings], stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    wait_until(lambda: staged_keys(dest / STAGING), process)
    os.close(master)
    small_build.release()
    assert process.wait(timeout=60) == 0
    assert digests(dest) == digests(small_build.shards)


def test_a_second_run_does_no_work(demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("shard-*")}
    report = build_shards(str(demo_videos), demo_shards, demo_spec, workers=2, style=QUIET)
    assert report.encoded == 0
    assert {path.name: path.stat().st_mtime_ns for path in demo_shards.glob("shard-*")} == before


def test_another_plan_is_refused_with_the_difference(demo_videos: Path, demo_shards: Path) -> None:
    other = BuildSpec(short_side=36, stride=2, crf=20, samples_per_shard=8, may_flip=False)
    with pytest.raises(MisuseError, match=r"recipe\.crf: 4 → 20"):
        build_shards(str(demo_videos), demo_shards, other, workers=1, style=QUIET)


def test_a_moved_source_is_the_same_data_set(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    moved.symlink_to(demo_videos)
    report = build_shards(str(moved), demo_shards, demo_spec, workers=1, style=QUIET)
    assert report.encoded == 0


def test_two_builds_into_one_folder_exclude_each_other(small_build: SmallBuild, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from vmae_data.storage import lock\n"
        "with lock(Path(sys.argv[1]), 'build'): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    holder.stdout.readline()
    with pytest.raises(VmaeError, match="another build is writing here"):
        small_build.build(tmp_path)
    holder.kill()
    holder.communicate()
    small_build.build(tmp_path)


def test_tar_ffmpeg_and_stock_webdataset_read_the_shards(demo_shards: Path, tmp_path: Path) -> None:
    import imageio_ffmpeg
    import webdataset

    path = demo_shards / tar_name(0)
    with tarfile.open(path) as tar:
        names = tar.getnames()
        assert all(member.isfile() and member.mtime == 0 and member.uname == "vmae" for member in tar)
    with path.open("rb") as file:  # webdataset leaves a file that it opens itself to the garbage collector
        files = webdataset.tariterators.tar_file_expander([{"stream": file, "url": path.name}])
        samples = list(webdataset.tariterators.group_by_keys(files))
    assert [f"{sample['__key__']}.{suffix}" for sample in samples for suffix in ("cls", "json", "mp4")] == names
    for sample in samples:
        facts = json.loads(sample["json"])
        assert sample["cls"].decode() == str(facts["label"])
        assert facts["class_name"] == facts["source"]["path"].split("/")[0]
    video = tmp_path / "x.mp4"
    video.write_bytes(samples[0]["mp4"])
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(video), "-f", "null", "-"]
    assert subprocess.run(command, capture_output=True, check=True).stderr == b""


def test_a_tar_has_the_bytes_of_webdatasets_own_writer(demo_shards: Path, tmp_path: Path) -> None:
    from webdataset import TarWriter

    for path in demo_shards.glob("shard-*.tar"):
        copy = tmp_path / path.name
        with (
            tarfile.open(path) as tar,
            TarWriter(str(copy), mtime=0, user="vmae", group="vmae", encoder=False) as writer,
        ):
            for member in tar:
                key, _, suffix = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                writer.write({"__key__": key, suffix: file.read()})
        assert copy.read_bytes() == path.read_bytes()


def test_nothing_but_the_format_is_left_in_the_folder(demo_shards: Path) -> None:
    names = {path.name for path in demo_shards.iterdir()}
    shards = {name for name in names if name.startswith("shard-")}
    assert names - shards == {"plan.json", "plan.arrow", "samples.arrow", "failures.jsonl", "index.json"}


def test_repaired_sources_come_in_on_request_only_and_change_only_their_shards(
    small_build: SmallBuild, tmp_path: Path
) -> None:
    source, dest = tmp_path / "videos", tmp_path / "broken"
    shutil.copytree(small_build.videos, source)
    good = source / small_build.paths_of(0)[0]  # of a shard with a failure; the last shard has none
    data = good.read_bytes()
    good.write_bytes(b"")
    small_build.build(dest, source)
    before = {path.name: path.stat().st_mtime_ns for path in dest.glob("shard-*.tar")}
    failed_shards = {path.with_suffix(".tar").name for path in dest.glob("shard-*.json") if _marker(path).failures}
    good.write_bytes(data)
    assert small_build.build(dest, source).encoded == 0
    failures = len(_failures(dest))
    assert small_build.build(dest, source, retry_failed=True).encoded == failures
    assert digests(dest) == digests(small_build.shards)
    kept = {path.name for path in dest.glob("shard-*.tar") if before.get(path.name) == path.stat().st_mtime_ns}
    assert kept
    assert not kept & failed_shards


def _tars(folder: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(folder).items() if name.endswith(".tar")}


def _set_rules(dest: Path, rules: int) -> None:
    """Make `dest` a data set that was planned by these rules."""
    plan = decode_record((dest / PLAN).read_bytes(), PlanFacts, PLAN)
    (dest / PLAN).write_bytes(encode_record(msgspec.structs.replace(plan, rules=rules)))


def test_a_build_continues_by_the_rules_of_its_plan(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "older"
    dest.mkdir()
    shutil.copy(small_build.shards / PLAN, dest)
    _set_rules(dest, 1)
    older = (dest / PLAN).read_bytes()
    assert b'"rules"' not in older, "plans before rules had a number lack it"
    small_build.build(dest)
    assert (dest / PLAN).read_bytes() == older
    assert _tars(dest) == _tars(small_build.shards)


def test_a_retried_source_of_an_older_data_set_tells_its_rules(small_build: SmallBuild, tmp_path: Path) -> None:
    source, dest = tmp_path / "videos", tmp_path / "older"
    shutil.copytree(small_build.videos, source)
    broken = source / small_build.paths_of(0)[0]
    data = broken.read_bytes()
    broken.write_bytes(b"")
    dest.mkdir()
    shutil.copy(small_build.shards / PLAN, dest)
    _set_rules(dest, 1)
    small_build.build(dest, source)
    broken.write_bytes(data)
    small_build.build(dest, source, retry_failed=True)
    remarks = {sample.facts.source.path: sample.facts.remarks for sample in Shards.open(str(dest))}
    told = f"made later, by rules {RULES}; the plan has rules 1"
    assert [path for path, texts in remarks.items() if told in texts] == [small_build.paths_of(0)[0]]


def test_a_plan_of_newer_rules_is_refused(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "newer"
    dest.mkdir()
    shutil.copy(small_build.shards / PLAN, dest)
    _set_rules(dest, RULES + 1)
    with pytest.raises(
        NewerFormatError, match=rf"its rules {RULES + 1} are newer than this program's {RULES}. Update vmae"
    ):
        small_build.build(dest)


def test_segments_of_good_sources_are_not_encoded_again_for_a_failed_one(demo_videos: Path, tmp_path: Path) -> None:
    source, dest = tmp_path / "videos", tmp_path / "x"
    shutil.copytree(demo_videos / "pan-left", source / "pan-left")
    (source / "pan-left" / "bad.mp4").write_bytes(b"no video")
    spec = BuildSpec(short_side=36, stride=2, longest_seconds=0.5)
    first = build_shards(str(source), dest, spec, workers=2, style=QUIET)
    assert first.samples > first.sources, "no video was cut"
    before = digests(dest)
    again = build_shards(str(source), dest, spec, workers=2, retry_failed=True, style=QUIET)
    assert again.encoded == first.failed
    assert digests(dest) == before


def test_a_data_set_of_only_bad_videos_is_an_error_with_their_reasons(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.mp4").write_bytes(b"not a video")
    (tmp_path / "v" / "b.mp4").touch()
    done = call_command("vmae_data", "build", tmp_path / "v", tmp_path / "out", "--quiet", status=1)
    assert "all 2 videos failed (1 " in done.stderr
    assert set(_failures(tmp_path / "out").values()) == {"empty", "unreadable"}


def test_too_many_failures_are_status_1_but_nothing_is_lost(demo_videos: Path, demo_shards: Path) -> None:
    before = digests(demo_shards)
    settings = ("--recipe", "demo", "--set", "samples_per_shard=8", "--quiet")
    command = ("vmae_data", "build", demo_videos, demo_shards, *settings)
    call_command(*command, "--max-failures", "50%")
    done = call_command(*command, "--max-failures", "1", status=1)
    assert "--max-failures 1" in done.stderr
    call_command(*command, "--max-failures", "many", status=2)
    assert digests(demo_shards) == before


def test_failures_are_in_plan_order_with_their_keys(demo_shards: Path) -> None:
    plan = pa.ipc.open_file(str(demo_shards / "plan.arrow")).read_all()
    order = {key: n for n, key in enumerate(plan.column("key").to_pylist())}
    lines = [json.loads(line) for line in (demo_shards / FAILURES).read_text().splitlines()]
    assert [order[line["key"]] for line in lines] == sorted(order[line["key"]] for line in lines)
    assert set(lines[0]) == set(Failure.__struct_fields__)


def test_a_shard_with_a_damaged_marker_is_made_again(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(small_build.shards, tmp_path / "shards"))
    (dest / "shard-000001.json").write_bytes((dest / "shard-000001.json").read_bytes()[:100])
    small_build.build(dest)
    assert digests(dest) == digests(small_build.shards)


@pytest.mark.parametrize("name", ["a.mp4", "class/a.mkv"])
def test_a_folder_of_other_videos_is_no_destination(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    with pytest.raises(MisuseError, match=rf"holds videos, such as {name}\. Name a separate folder"):
        build_shards(str(demo_videos), tmp_path, demo_spec, workers=1, style=QUIET)
    assert {path.name for path in tmp_path.iterdir()} == {name.split("/")[0]}


def test_the_source_is_no_destination(demo_videos: Path, demo_spec: BuildSpec) -> None:
    with pytest.raises(MisuseError, match="is also the source"):
        build_shards(str(demo_videos), demo_videos, demo_spec, workers=1, style=QUIET)


@pytest.mark.parametrize("name", ["index.json", "shard-000001.json", "plan.json"])
def test_what_a_newer_version_built_is_neither_resumed_nor_verified(
    small_build: SmallBuild, tmp_path: Path, name: str
) -> None:
    dest = Path(shutil.copytree(small_build.shards, tmp_path / "shards"))
    (dest / "shard-000000.json").unlink()  # there is work to do
    data = (dest / name).read_bytes()
    assert b'"version": 1,' in data
    (dest / name).write_bytes(data.replace(b'"version": 1,', b'"version": 2,', 1))
    before = digests(dest)
    build = ("build", small_build.videos, dest, *small_build.settings, "--quiet")
    for words in (build, ("verify", dest, "--quiet")):
        done = call_command("vmae_data", *words, status=1)
        assert done.stderr.startswith(f"vmae-shard: {dest / name}: format version 2 is newer than this program's 1")
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""
    assert digests(dest) == before


def test_a_note_on_the_recipe_waits_until_the_build_begins(demo_videos: Path, tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    shutil.copy(next(demo_videos.glob("pan-left/scene-*.mp4")), source)
    words = ("build", source, tmp_path / "out", "--recipe", "demo", "--set", "short_side=64", "--json")
    assert "note: short_side" in call_command("vmae_data", *words).stderr
    done = call_command("vmae_data", *words, "--set", "seed=3", status=2)
    assert "note: short_side" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_process_of_a_build_leaves_the_libraries_that_decode_to_its_workers() -> None:
    code = "import sys, vmae_data.commands.app, vmae_data.build; print({'av', 'jinja2', 'rich', 'webdataset'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    code = "import sys, vmae_data.cli, vmae_data.executors.encode_later; print({'typer', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
