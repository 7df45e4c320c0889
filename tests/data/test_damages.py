"""The fast part of `make soak`: every kind of damage, a hang and a full disk. All of it: tools/soak/build.py."""

from __future__ import annotations

import gc
import os
import shlex
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.command import run_command
from tools.soak.damages.check import Finding, check_all, make_all
from tools.soak.damages.clips import Bench
from tools.soak.damages.records import Damage
from tools.soak.damages.table import DAMAGES, FAST, docs_page
from tools.soak.faults.disks import at_limit
from tools.soak.faults.fault_run import Workspace, left_over
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.ffmpeg_result import ticks_in_gaps
from vmae_data.encode.probe import truncated_box
from vmae_data.encode.staged import EncodeJob
from vmae_data.errors import DataError, VmaeError
from vmae_data.names import key_of
from vmae_data.progress import ProgressStyle
from vmae_data.shards.pack import write_tar

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Finding]]:
    """The outcomes of one build of the fast subset, by name."""
    folder = tmp_path_factory.mktemp("damages")
    make_all(FAST, Bench(folder / "bench"), folder / "videos")
    spec = BuildSpec(short_side=32, stride=2, crf=18, samples_per_shard=20)
    build_shards(str(folder / "videos"), folder / "shards", spec, workers=2, style=ProgressStyle.QUIET)
    yield {
        _title(finding.damage): finding
        for finding in check_all(FAST, folder / "videos", folder / "shards", opener=False)
    }


def _title(damage: Damage) -> str:
    return f"{damage.group}: {damage.name}"


@pytest.mark.parametrize("damage", FAST, ids=_title)
def test_a_damage_has_its_stated_outcome(findings: dict[str, Finding], damage: Damage) -> None:
    finding = findings[_title(damage)]
    assert finding.as_expected, finding.found


def test_the_docs_list_every_damage_once() -> None:
    page = Path(__file__).parents[2] / "docs" / "damages.md"
    assert page.read_text() == docs_page(), "run python -m tools.soak.build --write-docs"
    assert [title for title, count in Counter(map(_title, DAMAGES)).items() if count > 1] == []
    assert len(DAMAGES) > 300


@pytest.mark.parametrize("exec_word", ["exec ", ""])
def test_a_silent_ffmpeg_is_killed_with_its_child_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exec_word: str
) -> None:
    wrapper = tmp_path / "ffmpeg"
    wrapper.write_text(f'#!/bin/sh\n{exec_word}sleep 600\n{shlex.quote(find_ffmpeg().path)} "$@"\n')
    wrapper.chmod(0o755)
    Bench(tmp_path).clip("a.mp4")
    monkeypatch.setenv("VMAE_SILENCE_SECONDS", "0.5")
    monkeypatch.setenv("VMAE_SOAK_MARK", f"{os.getpid()}-mark")
    failure = encode_source(_job(tmp_path, str(wrapper))).failure
    assert failure is not None
    assert (failure.reason, failure.detail) == ("stalled", "ffmpeg decoded nothing for 0.5 s and was killed")
    assert not left_over()


def test_a_first_frame_that_takes_too_long_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No call of a library can be interrupted: the process ends, and the source is not tried again."""
    videos = tmp_path / "videos"
    videos.mkdir()
    (videos / "slow.mjpeg").write_bytes(_progressive_jpeg(8192, scans=3000) * 2)  # 5 s of CPU time
    monkeypatch.setenv("VMAE_SILENCE_SECONDS", "1")
    spec = BuildSpec(short_side=32, stride=2, crf=18)
    with pytest.raises(VmaeError, match="all 1 videos failed .1 stalled."):
        build_shards(str(videos), tmp_path / "out", spec, workers=1, style=ProgressStyle.QUIET)
    (line,) = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert '"stalled","detail":"its first frame took more than 1 s of CPU time"' in line


def _progressive_jpeg(side: int, scans: int) -> bytes:
    """A gray picture of zeros. Each scan takes few bytes, and a decoder visits all blocks for it."""

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    def scan(first: int, last: int, bits: int) -> bytes:
        return segment(0xDA, bytes((1, 1, 0, first, last, 0))) + bytes(bits // 8 + 1)

    blocks, one_code = (side // 8) ** 2, bytes([1, *[0] * 15])
    frame = segment(0xC2, struct.pack(">BHHB3B", 8, side, side, 1, 1, 0x11, 0))
    # DC: one bit for each block. AC: 15 bits for each run of 16,384 blocks.
    tables = segment(0xDB, bytes([0, *[1] * 64])) + segment(0xC4, b"\0" + one_code + b"\0")
    tables += segment(0xC4, b"\x10" + one_code + b"\xe0")
    return b"\xff\xd8" + frame + tables + scan(0, 0, blocks) + scan(1, 63, blocks // 16384 * 15) * scans + b"\xff\xd9"


def test_an_invalid_silence_is_refused_before_any_work(tmp_path: Path, demo_videos: Path) -> None:
    environment = {**os.environ, "VMAE_SILENCE_SECONDS": "soon"}
    done = run_command("vmae_data", "build", demo_videos, tmp_path / "out", "--quiet", status=2, env=environment)
    assert "VMAE_SILENCE_SECONDS = soon: expected seconds above 0" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_error_names_a_full_disk_and_the_build_resumes(
    tmp_path: Path, demo_videos: Path, demo_spec: BuildSpec
) -> None:
    videos, complete = tmp_path / "videos", tmp_path / "complete"
    videos.mkdir()
    for path in sorted(demo_videos.glob("*/scene-*.mp4"))[:8]:
        (videos / path.name).symlink_to(path)
    build_shards(str(videos), complete, demo_spec, workers=2, style=ProgressStyle.QUIET)
    (tar,) = complete.glob("*.tar")
    limit = tar.stat().st_size // 2  # above the size of each video
    result = at_limit(Workspace(tmp_path, videos, complete, seconds=0, kills=0, seed=0), limit)
    assert result.as_expected, result.found


def test_an_interrupted_tar_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tarfile writes again when it is garbage collected, and Python would print that error too."""
    Bench(tmp_path).clip("a.mp4")
    (sample,) = encode_source(_job(tmp_path, find_ffmpeg().path)).samples
    (gone,) = sample.members
    missing = msgspec.structs.replace(sample, members=(msgspec.structs.replace(gone, file="gone.mp4"),))
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with pytest.raises(DataError, match=r"gone\.mp4: can't be read"):
        write_tar(tmp_path / "x.tar", tmp_path, [sample, missing])
    gc.collect()
    assert printed == []


def _job(folder: Path, ffmpeg: str) -> EncodeJob:
    return EncodeJob(
        key=key_of(b"a.mp4"),
        path=b"a.mp4",
        folder=bytes(folder),
        label=None,
        class_name=None,
        split=None,
        spec=BuildSpec(short_side=32),
        ffmpeg=ffmpeg,
        staging=folder,
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ""),
        (b"no mp4 at all", ""),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(8), ""),
        (struct.pack(">I4s", 16, b"ftyp") + bytes(7), "the file ends inside its box ftyp, 15 of 16 bytes"),
        (struct.pack(">I4sI4s", 8, b"ftyp", 0, b"mdat") + bytes(7), ""),
        (struct.pack(">I4sI4sQ", 8, b"ftyp", 1, b"mdat", 99), "the file ends inside its box mdat, 16 of 99 bytes"),
    ],
)
def test_the_message_names_the_box_in_which_a_file_ends(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "x.mp4").write_bytes(data)
    assert truncated_box(bytes(tmp_path / "x.mp4")) == message


@pytest.mark.parametrize(
    ("times", "missing"),
    [
        ([0], 0),
        (list(range(0, 250, 10)), 0),
        ([*range(0, 100, 10), *range(190, 250, 10)], 90),
        ([0, 10, 40, 50, 90, 100, 160, 170, 250, 260], 0),  # a variable frame rate has long steps
    ],
)
def test_only_a_steady_video_has_gaps(times: list[int], missing: int) -> None:
    assert ticks_in_gaps(times) == missing
