"""Faults of the machine are recorded as no video's failure."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import av
import pytest

from tests.encodes import encode, reason
from tools.soak.damages.clips import Bench
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError, VmaeError

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


def _wrapper(folder: Path, script: str) -> str:
    path = folder / "ffmpeg"
    path.write_text(f'#!/bin/sh\n{script}\nexec {shlex.quote(find_ffmpeg().path)} "$@"\n')
    path.chmod(0o755)
    return str(path)


_THREADS = "echo '[vf#0:0 @ 0x1] [fatal] pthread_create() failed: Resource temporarily unavailable' >&2; exit 1"
_OUTPUT = "echo '[out#0/mp4 @ 0x1] [error] Error opening output x: Permission denied' >&2; exit 243"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (_THREADS, "pthread_create"),
        (f'case "$*" in *v.mp4*) {_THREADS};; esac', "pthread_create"),  # passes by
        (_OUTPUT, "Permission denied"),
        (
            "echo '[AVIOContext @ 0x1] [error] Error writing x: Read-only file system' >&2; exit 1",
            "Read-only file system",
        ),
    ],
)
def test_a_fault_of_the_machine_is_booked_on_no_video(bench: Bench, tmp_path: Path, script: str, message: str) -> None:
    path = bench.clip("intact.mp4")
    (tmp_path / "v.mp4").write_bytes(path.read_bytes())
    for spoil in (bytes, lambda data: b"text" + data[:100]):  # also for a file that fails by itself
        (tmp_path / "v.mp4").write_bytes(spoil(path.read_bytes()))
        with pytest.raises(VmaeError, match=message):
            encode(tmp_path / "v.mp4", ffmpeg=_wrapper(tmp_path, script))
    assert not list((tmp_path / "staging").iterdir())


def test_a_name_with_the_words_of_a_fault_is_no_fault(tmp_path: Path) -> None:
    path = tmp_path / "pthread_create() failed (No space left on device).mp4"
    path.write_bytes(b"no video")
    assert reason(path) == "unreadable"


def test_videos_of_a_folder_that_is_gone_are_not_missing(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is gone. Run the same command when it is back"):
        encode(tmp_path / "v.mp4", folder=tmp_path / "unmounted")
    assert reason(tmp_path / "v.mp4") == "missing"


def test_too_many_open_files_are_booked_on_no_video(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(24, os.strerror(24))

    (tmp_path / "v.mp4").write_bytes(bench.clip("intact.mp4").read_bytes())
    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(VmaeError, match=r"v\.mp4: this machine can't read it \(Too many open files\)"):
        encode(tmp_path / "v.mp4")
