from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.command import run_command
from vmae_data.errors import DataError
from vmae_data.format import (
    FAILURES,
    INDEX,
    PLAN,
    PLAN_TABLE,
    SAMPLES,
    Index,
    PlanFacts,
    ShardMarker,
    decode_record,
    encode_record,
)
from vmae_data.names import marker_name, tar_name
from vmae_data.progress import ProgressStyle
from vmae_data.verify.check_records import failure_problems, index_problems, plan_problems, read_rows
from vmae_data.verify.check_shard import ShardTask, check_shard
from vmae_data.verify.verify import Problem, verify_shards

pytestmark = pytest.mark.processes


@pytest.fixture
def copied(demo_shards: Path, tmp_path: Path) -> Path:
    """A data set to damage."""
    return Path(shutil.copytree(demo_shards, tmp_path / "shards"))


def _problems(folder: Path) -> list[Problem]:
    return list(verify_shards(folder, workers=1, style=ProgressStyle.QUIET).problems)


def _files(problems: Iterable[Problem]) -> set[str]:
    return {problem.file for problem in problems}


def _flip_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << position % 7
    path.write_bytes(bytes(data))


def _change(folder: Path, name: str, record_type: type[Any], /, **fields: Any) -> None:
    record = decode_record((folder / name).read_bytes(), record_type, name)
    (folder / name).write_bytes(encode_record(msgspec.structs.replace(record, **fields)))


def _index(folder: Path) -> Index:
    return decode_record((folder / INDEX).read_bytes(), Index, INDEX)


def _marker(folder: Path, shard: int) -> ShardMarker:
    return decode_record((folder / marker_name(shard)).read_bytes(), ShardMarker, "marker")


def _update_checksums(folder: Path, shard: int) -> None:
    """Write the checksums of a changed tar into marker and index, as an attacker would."""
    name = tar_name(shard)
    data = (folder / name).read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    _change(folder, marker_name(shard), ShardMarker, bytes=len(data), sha256=digest)
    marker = hashlib.sha256((folder / marker_name(shard)).read_bytes()).hexdigest()
    listed = tuple(
        msgspec.structs.replace(one, filesize=len(data), sha256=digest, marker_sha256=marker)
        if one.url == name
        else one
        for one in _index(folder).shardlist
    )
    _change(folder, INDEX, Index, shardlist=listed)


def _append(folder: Path, shard: int, member: tarfile.TarInfo, data: bytes = b"") -> None:
    member.size = len(data)
    with tarfile.open(folder / tar_name(shard), "a:") as tar:
        tar.addfile(member, io.BytesIO(data))
    _update_checksums(folder, shard)


def test_a_data_set_as_it_was_built_has_no_problem(demo_shards: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in demo_shards.iterdir()}
    report = verify_shards(demo_shards, workers=2, style=ProgressStyle.QUIET)
    assert report.problems == ()
    assert report.samples == _index(demo_shards).samples
    assert report.shards == len(list(demo_shards.glob("shard-*.json")))
    assert before == {path.name: path.stat().st_mtime_ns for path in demo_shards.iterdir()}


def test_the_command_prints_the_problem_and_exits_with_1(copied: Path) -> None:
    assert run_command("vmae_data", "verify", copied).returncode == 0
    (copied / tar_name(0)).unlink()
    assert f"{tar_name(0)}: missing" in run_command("vmae_data", "verify", copied, status=1).stdout


@pytest.mark.parametrize("name", [INDEX, PLAN, SAMPLES, FAILURES, tar_name(1), marker_name(1)])
@pytest.mark.parametrize("share", [0.02, 0.55])
def test_a_flipped_bit_is_found_and_its_file_named(copied: Path, name: str, share: float) -> None:
    _flip_bit(copied / name, int(share * (copied / name).stat().st_size))
    assert name in _files(_problems(copied))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2**31))
def test_any_flipped_bit_of_a_shard_is_found(copied: Path, position: int) -> None:
    index = _index(copied)
    task = ShardTask(copied, 0, index, index.shardlist[0], None, index.plan)
    for name in (tar_name(0), marker_name(0)):
        undamaged = (copied / name).read_bytes()
        _flip_bit(copied / name, position)
        problems = check_shard(task).problems
        (copied / name).write_bytes(undamaged)
        assert name in _files(problems)


def test_a_flipped_bit_of_a_video_names_the_video(copied: Path) -> None:
    entry = _marker(copied, 0).samples[2]
    extent = entry.members[0].extent
    _flip_bit(copied / tar_name(0), extent.offset + extent.size // 2)
    assert Problem(tar_name(0), f"{entry.key}.mp4: checksum differs from its marker") in _problems(copied)


@pytest.mark.parametrize("name", [INDEX, PLAN, FAILURES, marker_name(1)])
def test_a_text_that_is_not_utf_8_is_named(copied: Path, name: str) -> None:
    data = (copied / name).read_bytes()
    found = re.search(rb'": ?"[a-z0-9]', data)
    assert found is not None
    (copied / name).write_bytes(data[: found.end()] + b"\xe9" + data[found.end() + 1 :])
    assert name in _files(_problems(copied))


@pytest.mark.parametrize("name", [PLAN, PLAN_TABLE, SAMPLES, FAILURES, tar_name(1), marker_name(1)])
def test_a_missing_file_is_named(copied: Path, name: str) -> None:
    (copied / name).unlink()
    assert Problem(name, "missing") in _problems(copied)


def test_a_shard_without_tar_and_marker_is_reported_as_missing(copied: Path) -> None:
    (copied / tar_name(1)).unlink()
    (copied / marker_name(1)).unlink()
    assert {Problem(tar_name(1), "missing"), Problem(marker_name(1), "missing")} <= set(_problems(copied))


def test_problems_of_every_shard_are_listed_in_order(copied: Path) -> None:
    for shard in (0, 1, 2):
        _flip_bit(copied / tar_name(shard), 3000)
    (copied / "notes.txt").write_text("mine")
    files = [problem.file for problem in verify_shards(copied, workers=2, style=ProgressStyle.QUIET).problems]
    assert [file for file in dict.fromkeys(files) if file.endswith(".tar")] == [tar_name(n) for n in (0, 1, 2)]
    assert "notes.txt" in files


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("README.md", "unexpected"),
        (".lock", "lock"),
        (".staging", "staging"),
        (".tmp-index.json", "temporary file"),
        ("shard-999999.tar", "missing"),
        ("shard-1.tar", "unexpected"),
        (b"not-utf8-\xff", "unexpected"),
        ("escape-\x1b[31m", "unexpected"),
    ],
)
def test_a_file_that_is_not_part_of_the_format_is_named(copied: Path, name: str | bytes, word: str) -> None:
    raw = os.path.join(os.fsencode(copied), os.fsencode(name))
    with open(raw, "wb"):
        pass
    problems = _problems(copied)
    assert len(problems) >= 1
    assert any(word in message for _, message in problems)
    assert all((file + message).isprintable() for file, message in problems)


def test_a_changed_path_in_the_plan_table_is_found(copied: Path) -> None:
    data = (copied / PLAN_TABLE).read_bytes()
    assert b"scene" in data
    (copied / PLAN_TABLE).write_bytes(data.replace(b"scene", b"seene", 1))
    assert PLAN_TABLE in _files(_problems(copied))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 2**31))
def test_a_damaged_table_never_ends_the_check(copied: Path, position: int) -> None:
    # No checksum of the table is compared: a damaged offset must not point outside the memory.
    plan, index = decode_record((copied / PLAN).read_bytes(), PlanFacts, PLAN), _index(copied)
    for name in (PLAN_TABLE, SAMPLES):
        undamaged = (copied / name).read_bytes()
        _flip_bit(copied / name, position)
        list(plan_problems(copied, plan))
        rows = read_rows(copied, None, [])
        own_rows = None if rows is None else tuple(row for row in rows if row.shard == 0)
        check_shard(ShardTask(copied, 0, None, index.shardlist[0], own_rows, None))
        (copied / name).write_bytes(undamaged)


def test_damaged_tables_are_named_without_an_index(copied: Path) -> None:
    (copied / INDEX).write_bytes(b"{}")
    for name in (PLAN_TABLE, SAMPLES):
        (copied / name).write_bytes((copied / name).read_bytes()[:-50])
    assert {INDEX, PLAN_TABLE, SAMPLES} <= _files(_problems(copied))


def test_a_folder_with_the_name_of_a_file_is_named(copied: Path) -> None:
    (copied / FAILURES).unlink()
    (copied / FAILURES).mkdir()
    assert FAILURES in _files(_problems(copied))


@pytest.mark.parametrize(
    "fields",
    [
        {"samples": 3},
        {"classes": ("a", "b")},
        {"id": "0" * 64},
        {"plan": "0" * 64},
        {"failures": {}},
        {"may_flip": True},
        {"stride": 4},
        {"short_side": 256},
        {"phases": 2},
        {"profile": "copy"},
        {"split": "val"},
        {"samples_sha256": "0" * 64},
        {"shardlist": ()},
        {"kind": "another"},
    ],
)
def test_an_index_that_differs_from_the_other_files_is_found(copied: Path, fields: dict[str, Any]) -> None:
    _change(copied, INDEX, Index, **fields)
    plan, index = decode_record((copied / PLAN).read_bytes(), PlanFacts, PLAN), _index(copied)
    markers = [_marker(copied, shard) for shard in range(plan.shards)]
    problems: list[Problem] = []
    rows = read_rows(copied, index, problems)
    problems += index_problems(copied, index, plan, markers, rows, all_read=True)
    problems += failure_problems(copied, markers, index, all_read=True)
    assert problems


def test_a_wrong_count_of_a_shard_is_found(copied: Path) -> None:
    listed = _index(copied).shardlist
    changed = (msgspec.structs.replace(listed[0], nsamples=listed[0].nsamples + 1), *listed[1:])
    _change(copied, INDEX, Index, shardlist=changed)
    assert {INDEX, marker_name(0)} <= _files(_problems(copied))


def test_an_unreadable_index_does_not_hide_what_else_is_wrong(copied: Path) -> None:
    (copied / INDEX).write_bytes(b"{")
    _flip_bit(copied / tar_name(1), 2000)
    assert {INDEX, tar_name(1)} <= _files(_problems(copied))


def test_a_member_that_the_marker_does_not_know_is_found(copied: Path) -> None:
    _append(copied, 0, tarfile.TarInfo("extra.mp4"), b"data")
    assert Problem(tar_name(0), "extra.mp4: not in the marker") in _problems(copied)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd"])
def test_a_member_name_that_points_outside_the_folder_is_found(copied: Path, name: str) -> None:
    _append(copied, 0, tarfile.TarInfo(name))
    assert any("points outside the folder" in message for _, message in _problems(copied))


def test_a_member_that_is_stored_twice_or_is_a_link_is_found(copied: Path) -> None:
    key = _marker(copied, 0).samples[0].key
    _append(copied, 0, tarfile.TarInfo(f"{key}.json"), b"{}")
    link = tarfile.TarInfo(f"{key}.cls")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    _append(copied, 0, link)
    messages = {problem.message for problem in _problems(copied)}
    assert f"{key}.json: stored 2 times" in messages
    assert f"{key}.cls: not a regular file" in messages


def test_another_number_of_frames_than_stated_is_found(copied: Path) -> None:
    marker = _marker(copied, 0)
    first = marker.samples[0]
    member = first.members[0]
    for frames, word in (
        (member.phase.frames + 1, f"{member.phase.frames} of"),
        (member.phase.frames - 1, "more than"),
    ):
        phase = msgspec.structs.replace(member.phase, frames=frames)
        entry = msgspec.structs.replace(first, members=(msgspec.structs.replace(member, phase=phase),))
        _change(copied, marker_name(0), ShardMarker, samples=(entry, *marker.samples[1:]))
        problems = check_shard(ShardTask(copied, 0, None, None, None, None)).problems
        assert any(f"{first.key}.mp4: {word}" in problem.message for problem in problems)


def _relabel(marker: ShardMarker) -> ShardMarker:
    entry = msgspec.structs.replace(marker.samples[0], label=7 if marker.samples[0].label != 7 else 6)
    return msgspec.structs.replace(marker, samples=(entry, *marker.samples[1:]))


def _drop(marker: ShardMarker) -> ShardMarker:
    return msgspec.structs.replace(marker, samples=marker.samples[1:])


@pytest.mark.parametrize(
    ("change", "found_by"), [(_relabel, {tar_name(0), SAMPLES}), (_drop, {tar_name(0), SAMPLES, marker_name(0)})]
)
def test_a_changed_marker_with_correct_checksums_is_found_by_the_other_files(
    copied: Path, change: Callable[[ShardMarker], ShardMarker], found_by: set[str]
) -> None:
    (copied / marker_name(0)).write_bytes(encode_record(change(_marker(copied, 0))))
    _update_checksums(copied, 0)
    assert found_by <= _files(_problems(copied))


def test_nothing_is_unpacked(copied: Path) -> None:
    _append(copied, 0, tarfile.TarInfo("../outside.txt"), b"out")
    names = {path.name for path in copied.iterdir()}
    _problems(copied)
    assert {path.name for path in copied.iterdir()} == names
    assert not (copied.parent / "outside.txt").exists()


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index\.json"):
        verify_shards(tmp_path, workers=1)
    with pytest.raises(DataError, match="does not exist"):
        verify_shards(tmp_path / "nothing", workers=1)


def test_an_unknown_codec_is_a_problem_of_its_sample(copied: Path) -> None:
    """For an unknown codec name in the sample description the library has no decoder."""
    tar = copied / tar_name(0)
    data = tar.read_bytes()
    position = data.index(b"avc1", data.index(b"stsd"))
    tar.write_bytes(data[:position] + b"zzzz" + data[position + 4 :])
    assert any("no decoder" in problem.message for problem in _problems(copied) if problem.file == tar.name)
