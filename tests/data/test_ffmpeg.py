from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

from vmae_data.prepare.ffmpeg import _Reader, find_ffmpeg


def test_ffmpeg_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\n"
        "from vmae_data.prepare.ffmpeg import run_ffmpeg\n"
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


def test_a_complaint_inside_a_line_of_showinfo_is_heard_and_the_frame_counted() -> None:
    reader = _Reader({"/data/../etc/x.mp4": "../etc/x.mp4"})
    reader.take("[Parsed_showinfo_0 @ 0x1] [info] config in time_base: 1/25, frame_rate: 25/1")
    reader.take(
        "[Parsed_showinfo_0 @ 0x1] [info] n:   0 pts:      5 pts_time:0.2 duration:      1 duration_time:0.04 fmt:"
        "yuv420p i:P iskey:1 type:I [h264 @ 0x55d0c0] [error] mmco: unref short failure"
    )
    reader.take("[in#0 @ 0x2] [error] file:/data/../etc/x.mp4: bad")
    assert [frame.pts for frame in reader.shown] == [5]
    assert reader.time_base == (1, 25)
    assert reader.words == ("[h264] mmco: unref short failure", "[in#0] ../etc/x.mp4: bad")


def test_words_don_t_depend_on_their_order_and_consequences_come_last() -> None:
    lines = ["[error] Error opening input files: x", "[mov @ 0x1] [error] moov atom not found", "[a @ 0x2] [error] b"]
    readers = [_Reader({}), _Reader({})]
    for line in lines:
        readers[0].take(line)
    for line in reversed(lines):
        readers[1].take(line)
    assert readers[0].words == readers[1].words == ("[a] b", "[mov] moov atom not found")
