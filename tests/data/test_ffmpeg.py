from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from vmae_data.encode.ffmpeg import _Reader, find_ffmpeg, run_ffmpeg, telling


def test_ffmpeg_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from vmae_data.encode.ffmpeg import run_ffmpeg\n"
        "run_ffmpeg([sys.argv[1], '-nostdin', '-f', 'lavfi', '-re', '-i', 'testsrc', '-f', 'null', sys.argv[2]], {})\n"
    )
    mark = str(tmp_path / "endless")
    parent = subprocess.Popen([sys.executable, str(script), find_ffmpeg().path, mark])
    until = time.monotonic() + 20
    while not _ffmpegs(mark) and time.monotonic() < until:
        time.sleep(0.02)
    assert _ffmpegs(mark)
    parent.kill()
    parent.wait()
    until = time.monotonic() + 5
    while _ffmpegs(mark) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _ffmpegs(mark)


def _ffmpegs(mark: str) -> list[str]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")
            if mark in words and "lavfi" in words and not words[0].endswith("python"):
                found.append(folder.name)
    return found


def test_numbers_of_frames_and_complaints_are_told_apart() -> None:
    reader = _Reader({"/data/../etc/x.mp4": "../etc/x.mp4"})
    for line in (
        "[Eval @ 0x1] [fatal] 25.000000",
        "[h264 @ 0x55d0c0] [error] mmco: unref short failure",
        "[Eval @ 0x1] [error] -5.000000",
        "[in#0 @ 0x2] [error] file:/data/../etc/x.mp4: bad",
        "[Eval @ 0x1] [error] nan",
    ):
        reader.take(line)
    assert reader.pts == [-5, None]
    assert reader.ticks == 25
    assert reader.restarted_at is None
    assert reader.words == ("[h264] mmco: unref short failure", "[in#0] ../etc/x.mp4: bad")


def test_a_filter_that_counts_anew_is_noticed() -> None:
    reader = _Reader({})
    for number in (0, 1, 0, 1, 0):
        if number == 0:
            reader.take("[Eval @ 0x1] [fatal] 90000.000000")
        reader.take(f"[Eval @ 0x1] [error] {10 * number}.000000")
    assert len(reader.pts) == 5
    assert reader.restarted_at == 2


def test_every_number_is_told_however_the_threads_interleave() -> None:
    """Without `repeat` ffmpeg's log would fold equal lines, such as those of frames without a pts, into one."""
    words = [
        "-nostdin",
        "-loglevel",
        "repeat+level+error",
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=16x16:rate=25:duration=8",
    ]
    end = ["-vf", telling("not(mod(n,4))"), "-f", "null", "-"]
    run = run_ffmpeg([find_ffmpeg().path, *words, *end], {})
    assert run.status == 0
    assert run.pts == tuple(range(200))
    assert run.ticks == 25
    assert run.words == ()


def test_words_don_t_depend_on_their_order_and_consequences_come_last() -> None:
    lines = ["[error] Error opening input files: x", "[mov @ 0x1] [error] moov atom not found", "[a @ 0x2] [error] b"]
    readers = [_Reader({}), _Reader({})]
    for line in lines:
        readers[0].take(line)
    for line in reversed(lines):
        readers[1].take(line)
    assert readers[0].words == readers[1].words == ("[a] b", "[mov] moov atom not found")
