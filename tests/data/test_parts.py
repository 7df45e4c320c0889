from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.command import command_line, run_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.format import PLAN, marker_name
from vmae_data.progress import ProgressStyle
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.plan import Part
from vmae_data.storage import create_bytes
from vmae_data.verify.verify import verify_shards

QUIET = ProgressStyle.QUIET


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _part_command(source: Path, dest: Path, part: str, *more: str) -> list[str]:
    words = ["build", str(source), str(dest), "--recipe", "demo", "--set", "samples_per_shard=8", "--workers", "1"]
    return command_line("vmae_data", *words, "--part", part, "--quiet", *more)


@contextlib.contextmanager
def _holding(folder: Path, call: str) -> Iterator[None]:
    """Another process that holds a lock."""
    script = (
        "import sys, time; from pathlib import Path; from vmae_data.storage import lock, lock_part\n"
        f"with {call}: print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
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
    demo_videos: Path, demo_shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "parts"
    running = [subprocess.Popen(_part_command(demo_videos, dest, f"{n}/3")) for n in range(3)]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert not (dest / "index.json").exists()
    run_command("vmae_data", "merge", dest)
    assert _digests(dest) == _digests(demo_shards)
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()


def test_a_part_that_is_killed_goes_on_while_another_finishes(
    demo_videos: Path, demo_shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "parts"
    killed = subprocess.Popen(_part_command(demo_videos, dest, "0/2"), start_new_session=True)
    other = subprocess.Popen(_part_command(demo_videos, dest, "1/2"))
    while not list(dest.glob(".staging/[!.]*.staged.json")) and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert other.wait(timeout=120) == 0
    with pytest.raises(DataError, match=r"not built yet \(.*\)\. Run --part 0/2, then merge again"):
        merge_parts(dest)
    run_command(*_words(_part_command(demo_videos, dest, "0/2")))
    merge_parts(dest)
    assert _digests(dest) == _digests(demo_shards)


def _words(command: list[str]) -> list[str]:
    return ["vmae_data", *command[3:]]


def test_a_whole_build_takes_over_what_parts_made(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = tmp_path / "parts"
    first = build_shards(str(demo_videos), dest, demo_spec, workers=2, part=Part(1, 3), style=QUIET)
    whole = build_shards(str(demo_videos), dest, demo_spec, workers=2, style=QUIET)
    assert first.encoded > 0
    assert first.encoded + whole.encoded == whole.made.sources
    assert _digests(dest) == _digests(demo_shards)


def test_a_part_run_again_after_the_merge_changes_and_leaves_nothing(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "merged"))
    report = build_shards(str(demo_videos), dest, demo_spec, workers=1, part=Part(0, 2), style=QUIET)
    assert report.encoded == 0
    assert _digests(dest) == _digests(demo_shards)


def test_failures_of_a_part_are_tried_again_on_request(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "merged"))
    reports = [
        build_shards(str(demo_videos), dest, demo_spec, workers=2, part=Part(n, 2), retry_failed=True, style=QUIET)
        for n in range(2)
    ]
    assert all(report.encoded == report.failed for report in reports)
    assert sum(report.failed for report in reports) == len((demo_shards / "failures.jsonl").read_text().splitlines())
    merge_parts(dest)
    assert _digests(dest) == _digests(demo_shards)


def test_a_part_more_than_there_are_shards_has_nothing_to_do(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    report = build_shards(str(demo_videos), tmp_path / "x", demo_spec, workers=1, part=Part(90, 91), style=QUIET)
    assert (report.made.sources, report.made.samples, report.encoded) == (0, 0, 0)


@pytest.mark.parametrize(
    ("held", "part", "words"),
    [
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", Part(1, 3), "another build of part 1/3 is writing here"),
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", Part(0, 2), "with other parts than 0/2"),
        ("lock_part(Path(sys.argv[1]), 'build', 1, 3)", None, "another build is writing here"),
        ("lock(Path(sys.argv[1]), 'build')", Part(1, 3), "another build is writing here, not in parts"),
    ],
)
def test_what_would_overlap_is_refused(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, held: str, part: Part | None, words: str
) -> None:
    with _holding(tmp_path, held), pytest.raises(VmaeError, match=words):
        build_shards(str(demo_videos), tmp_path, demo_spec, workers=1, part=part, style=QUIET)
    # The holder was killed: its lock is gone with it, whatever name it left.
    build_shards(str(demo_videos), tmp_path, demo_spec, workers=2, part=part and Part(90, 91), style=QUIET)
    assert not list(tmp_path.glob(".lock*"))


def test_merge_waits_for_no_part_but_says_that_one_runs(demo_shards: Path, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "x"))
    held = "lock_part(Path(sys.argv[1]), 'build', 0, 2)"
    with _holding(dest, held), pytest.raises(VmaeError, match="another build is writing here"):
        merge_parts(dest)


def test_merge_makes_the_index_again_from_markers_alone(demo_shards: Path, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(demo_shards, tmp_path / "x"))
    for name in ("index.json", "samples.arrow", "failures.jsonl"):
        (dest / name).unlink()
    merge_parts(dest)
    assert _digests(dest) == _digests(demo_shards)
    (dest / marker_name(2)).unlink()
    with pytest.raises(DataError, match=r"1 shard not built yet \(2\)"):
        merge_parts(dest)


def test_a_part_with_another_plan_is_refused(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, demo_shards: Path
) -> None:
    shutil.copy(demo_shards / PLAN, tmp_path / PLAN)
    other = BuildSpec(short_side=36, stride=2, crf=20, samples_per_shard=8, may_flip=False)
    with pytest.raises(MisuseError, match="has a different plan"):
        build_shards(str(demo_videos), tmp_path, other, workers=1, part=Part(0, 2), style=QUIET)
    assert (tmp_path / PLAN).read_bytes() == (demo_shards / PLAN).read_bytes()


def _create(path: Path, text: str) -> bool:
    code = (
        "import sys; from pathlib import Path; from vmae_data.storage import create_bytes\n"
        "sys.stdin.readline(); print(create_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 100000))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), text], input="go\n", capture_output=True, text=True, check=True
    )
    return done.stdout == "True\n"


def test_of_several_that_create_a_file_one_does_and_its_bytes_stand(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda n: _create(path, f"{n}"), range(4)))
    assert sum(made) == 1
    assert path.read_bytes() == f"{made.index(True)}".encode() * 100000
    assert os.listdir(tmp_path) == ["plan.json"]
    assert not create_bytes(path, b"late")


@pytest.mark.parametrize("part", ["3/3", "-1/3", "1", "1/0", "a/b", "1/2/3", ""])
def test_a_part_that_is_none_is_misuse(demo_videos: Path, tmp_path: Path, part: str) -> None:
    done = run_command("vmae_data", "build", demo_videos, tmp_path / "x", f"--part={part}", status=2)
    assert "such as 0/3" in done.stderr
    assert not (tmp_path / "x").exists()


def test_merge_of_no_build_makes_nothing(tmp_path: Path) -> None:
    done = run_command("vmae_data", "merge", tmp_path / "nothing", status=2)
    assert "plan.json" in done.stderr
    assert not (tmp_path / "nothing").exists()
