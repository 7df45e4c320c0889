"""Builds in parts, on one machine or several, and their merge."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builds import QUIET, SmallBuild, digests, staged_keys, wait_until
from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.format import PLAN
from vmae_data.names import marker_name, tar_name
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.plan import Part, read_plan
from vmae_data.shards.workspace import STAGING
from vmae_data.storage import create_bytes
from vmae_data.verify.verify import verify_shards

pytestmark = pytest.mark.processes


@contextlib.contextmanager
def _locked_elsewhere(folder: Path, call: str) -> Iterator[None]:
    """Another process holds a lock, until it is killed."""
    script = (
        "import sys, time; from pathlib import Path; from vmae_data.storage import lock, lock_part\n"
        f"with {call}: print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        holder.kill()
        holder.communicate()


@given(total=st.integers(0, 50), of=st.integers(1, 12))
def test_parts_share_out_all_shards_and_none_twice(total: int, of: int) -> None:
    shards = [shard for number in range(of) for shard in Part(number, of).shards(total)]
    assert sorted(shards) == list(range(total))


def test_three_parts_at_the_same_time_then_merge_are_byte_identical_to_one_build(
    small_build: SmallBuild, tmp_path: Path
) -> None:
    dest = tmp_path / "parts"
    running = [small_build.start(dest, workers=1, part=Part(n, 3)) for n in range(3)]
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert not (dest / "index.json").exists()
    merge_parts(dest)
    assert digests(dest) == digests(small_build.shards)
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()


def test_a_part_that_is_killed_resumes_and_another_finishes_meanwhile(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "parts"
    small_build.hold_last(0)
    killed = small_build.start(dest, workers=1, part=Part(0, 2))
    wait_until(lambda: staged_keys(dest / STAGING), killed)
    small_build.build(dest, workers=1, part=Part(1, 2))
    killed.kill()
    killed.join()
    small_build.release()
    with pytest.raises(DataError, match=r"not built yet \(0, 2\)\. Run --part 0/2, then merge again"):
        merge_parts(dest)
    call_command("vmae_data", "build", small_build.videos, dest, *small_build.settings, "--part", "0/2", "--quiet")
    call_command("vmae_data", "merge", dest)
    assert digests(dest) == digests(small_build.shards)


def test_a_whole_build_takes_over_what_parts_made(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "parts"
    first = small_build.build(dest, part=Part(1, 3))
    whole = small_build.build(dest)
    assert first.encoded > 0
    assert first.encoded + whole.encoded == whole.sources
    assert digests(dest) == digests(small_build.shards)


def test_a_part_run_again_after_the_merge_changes_and_leaves_nothing(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(small_build.shards, tmp_path / "merged"))
    assert small_build.build(dest, part=Part(0, 2)).encoded == 0
    assert digests(dest) == digests(small_build.shards)


def test_failures_of_a_part_are_tried_again_on_request(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(small_build.shards, tmp_path / "merged"))
    reports = [small_build.build(dest, part=Part(n, 2), retry_failed=True) for n in range(2)]
    assert all(report.encoded == report.failed for report in reports)
    lines = (small_build.shards / "failures.jsonl").read_text().splitlines()
    assert sum(report.failed for report in reports) == len(lines) > 0
    merge_parts(dest)
    assert digests(dest) == digests(small_build.shards)


def test_a_part_beyond_the_number_of_shards_has_nothing_to_do(small_build: SmallBuild, tmp_path: Path) -> None:
    report = small_build.build(tmp_path / "x", part=Part(90, 91))
    assert (report.sources, report.samples, report.encoded) == (0, 0, 0)


@pytest.mark.parametrize(
    ("lock", "part", "words"),
    [
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", Part(1, 3), "another build of part 1/3 is writing here"),
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", Part(0, 2), "with other parts than 0/2"),
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", None, "another build is writing here"),
        ("lock(Path(sys.argv[1]), 'build')", Part(1, 3), "another build is writing here, not in parts"),
    ],
)
def test_a_build_that_would_overlap_is_refused(
    small_build: SmallBuild, tmp_path: Path, lock: str, part: Part | None, words: str
) -> None:
    with _locked_elsewhere(tmp_path, lock), pytest.raises(VmaeError, match=words):
        small_build.build(tmp_path, part=part)
    # The kernel unlocked it when the holder was killed, whatever files are left.
    small_build.build(tmp_path, part=part and Part(90, 91))
    assert not list(tmp_path.glob(".lock*"))


def test_merge_refuses_while_a_part_is_running(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(small_build.shards, tmp_path / "x"))
    lock = "lock_part(Path(sys.argv[1]), 'build', 0, 2)"
    with _locked_elsewhere(dest, lock), pytest.raises(VmaeError, match="another build is writing here"):
        merge_parts(dest)


def test_merge_makes_the_index_again_from_markers_alone(demo_shards: Path, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "x"))
    for name in ("index.json", "samples.arrow", "failures.jsonl"):
        (dest / name).unlink()
    merge_parts(dest)
    assert digests(dest) == digests(demo_shards)
    (dest / marker_name(2)).unlink()
    with pytest.raises(DataError, match=r"1 shard not built yet \(2\)"):
        merge_parts(dest)


def test_a_part_with_another_plan_is_refused(demo_videos: Path, tmp_path: Path, demo_shards: Path) -> None:
    for name in (PLAN, tar_name(1)):
        shutil.copy(demo_shards / name, tmp_path / name)
    other = BuildSpec(short_side=36, stride=2, crf=20, samples_per_shard=8, may_flip=False)
    with pytest.raises(MisuseError, match="has a different plan"):
        build_shards(str(demo_videos), tmp_path, other, workers=1, part=Part(0, 2), style=QUIET)
    assert (tmp_path / PLAN).read_bytes() == (demo_shards / PLAN).read_bytes()


def test_a_part_replaces_a_plan_of_which_nothing_is_finished_but_not_while_another_part_runs(
    demo_videos: Path, tmp_path: Path, demo_shards: Path
) -> None:
    shutil.copy(demo_shards / PLAN, tmp_path / PLAN)
    other = BuildSpec(short_side=36, stride=2, crf=20, samples_per_shard=8, may_flip=False)
    lock = "lock_part(Path(sys.argv[1]), 'build', 1, 91)"
    with _locked_elsewhere(tmp_path, lock), pytest.raises(MisuseError, match="has a different plan"):
        build_shards(str(demo_videos), tmp_path, other, workers=1, part=Part(90, 91), style=QUIET)
    build_shards(str(demo_videos), tmp_path, other, workers=1, part=Part(90, 91), style=QUIET)
    assert read_plan(tmp_path).recipe["crf"] == 20


def _create(path: Path, text: str) -> bool:
    code = (
        "import sys; from pathlib import Path; from vmae_data.storage import create_bytes\n"
        "sys.stdin.readline(); print(create_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 100000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), text], input="go\n", capture_output=True, text=True, check=True
    )
    return done.stdout == "True\n"


def test_of_several_that_create_a_file_one_does_and_its_bytes_stay(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: _create(path, f"{n}"), range(4)))
    assert sum(made) == 1
    assert path.read_bytes() == f"{made.index(True)}".encode() * 100000
    assert os.listdir(tmp_path) == ["plan.json"]
    assert not create_bytes(path, b"late")


@pytest.mark.parametrize("part", ["3/3", "-1/3", "1", "1/0", "a/b", "1/2/3"])
def test_an_invalid_part_is_misuse(demo_videos: Path, tmp_path: Path, part: str) -> None:
    done = call_command("vmae_data", "build", demo_videos, tmp_path / "x", f"--part={part}", status=2)
    assert "such as 0/3" in done.stderr
    assert not (tmp_path / "x").exists()


def test_merge_of_no_build_makes_nothing(tmp_path: Path) -> None:
    done = call_command("vmae_data", "merge", tmp_path / "nothing", status=2)
    assert "plan.json" in done.stderr
    assert not (tmp_path / "nothing").exists()
