from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vmae_data.encode import ffmpeg
from vmae_data.encode.ffmpeg import find_ffmpeg, parse_log, run_ffmpeg, select_and_log


def test_ffmpeg_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from vmae_data.encode.ffmpeg import run_ffmpeg\n"
        "run_ffmpeg([sys.argv[1], '-nostdin', '-f', 'lavfi', '-re', '-i', 'testsrc', '-f', 'null', sys.argv[2]], {})\n"
    )
    mark = str(tmp_path / "endless")
    parent = subprocess.Popen([sys.executable, str(script), find_ffmpeg().path, mark])
    _wait_until(lambda: bool(_ffmpegs(mark)))
    parent.kill()
    parent.wait()
    _wait_until(lambda: not _ffmpegs(mark))


def test_the_facts_of_a_binary_are_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    binary = tmp_path / "ffmpeg"
    shutil.copy(find_ffmpeg().path, binary)
    queries = _count_queries(monkeypatch)
    monkeypatch.setattr(ffmpeg, "SETTLED_SECONDS", 1e9)
    first = [_find(binary) for _ in range(2)]
    assert len(queries) == 4  # it may still be written
    monkeypatch.setattr(ffmpeg, "SETTLED_SECONDS", -1e9)
    first += [_find(binary) for _ in range(3)]
    assert (len(set(first)), len(queries)) == (1, 6)
    assert first[0].sha256 == hashlib.sha256(binary.read_bytes()).hexdigest()
    times = binary.stat()
    changed = bytearray(binary.read_bytes())
    changed[-1] ^= 1
    (tmp_path / "other").write_bytes(changed)
    (tmp_path / "other").chmod(0o755)
    os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    (tmp_path / "other").replace(binary)  # same name, size and time, another content
    assert _find(binary).sha256 == hashlib.sha256(changed).hexdigest() != first[0].sha256
    assert len(queries) == 8
    for kept in (tmp_path / "node" / "binaries").iterdir():
        kept.write_text('["damaged", 1, 2]')
    assert (_find(binary).sha256, len(queries)) == (hashlib.sha256(changed).hexdigest(), 10)


def test_the_facts_of_a_script_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program that it starts can change."""
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    script = tmp_path / "ffmpeg"
    script.write_text(f"#!/bin/sh\nexec '{find_ffmpeg().path}' \"$@\"\n")
    script.chmod(0o755)
    monkeypatch.setattr(ffmpeg, "SETTLED_SECONDS", -1e9)
    queries = _count_queries(monkeypatch)
    assert _find(script) == _find(script)
    assert len(queries) == 4


def _count_queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    queries: list[str] = []
    run_query = ffmpeg._run_query

    def counted(path: str, query: str) -> str:
        queries.append(query)
        return run_query(path, query)

    monkeypatch.setattr(ffmpeg, "_run_query", counted)
    return queries


def _find(binary: Path) -> ffmpeg.Ffmpeg:
    return find_ffmpeg.__wrapped__(str(binary))


def _wait_until(condition: Callable[[], bool]) -> None:
    """Waits long: the machine may be busy."""
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _ffmpegs(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if mark in arguments and "lavfi" in arguments and not arguments[0].endswith("python"):
                found.append(folder.name)
    return found


def test_the_log_gives_numbers_of_frames_and_messages() -> None:
    lines = (
        "[Eval @ 0x1] [fatal] 25.000000",
        "[h264 @ 0x55d0c0] [error] mmco: unref short failure",
        "[Eval @ 0x1] [error] -5.000000",
        "[in#0 @ 0x2] [error] file:/data/../etc/x.mp4: bad",
        "[Eval @ 0x1] [error] nan",
    )
    run = parse_log(lines, {"/data/../etc/x.mp4": "../etc/x.mp4"})
    assert run.pts == (-5, None)
    assert run.ticks_per_second == 25
    assert run.restarted_at is None
    assert run.messages == ("[h264] mmco: unref short failure", "[in#0] ../etc/x.mp4: bad")


def test_the_log_shows_where_a_filter_starts_again() -> None:
    lines = []
    for number in (0, 1, 0, 1, 0):
        lines += ["[Eval @ 0x1] [fatal] 90000.000000"] if number == 0 else []
        lines.append(f"[Eval @ 0x1] [error] {10 * number}.000000")
    run = parse_log(lines, {})
    assert len(run.pts) == 5
    assert run.restarted_at == 2


def test_every_number_is_logged_in_any_order_of_the_threads() -> None:
    """Without `repeat` ffmpeg's log would merge equal lines, such as those of frames without a pts."""
    source = "-nostdin -loglevel repeat+level+error -f lavfi -i testsrc=size=16x16:rate=25:duration=8"
    run = run_ffmpeg(
        [find_ffmpeg().path, *source.split(), "-vf", select_and_log("not(mod(n,4))"), "-f", "null", "-"], {}
    )
    assert run.status == 0
    assert run.pts == tuple(range(200))
    assert run.ticks_per_second == 25
    assert run.messages == ()


def test_messages_do_not_depend_on_their_order_and_omit_consequences() -> None:
    lines = ["[error] Error opening input files: x", "[mov @ 0x1] [error] moov atom not found", "[a @ 0x2] [error] b"]
    for ordered in (lines, lines[::-1]):
        assert parse_log(ordered, {}).messages == ("[a] b", "[mov] moov atom not found")
