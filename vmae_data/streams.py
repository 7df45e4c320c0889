"""Standard streams that never end the work: closed ones are opened, and stderr drops what it can't write."""

from __future__ import annotations

import io
import os
import sys
from typing import Any

__all__ = ["secure_streams"]


class _DroppingFile(io.FileIO):
    """Drops what can't be written: progress must not end the work when its terminal or its reader is gone."""

    def write(self, data: Any) -> int:
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written  # None: a full pipe that does not block


def secure_streams() -> None:
    """Make the streams of this process safe. Call it once, before any file is opened.

    A closed stream (`2>&-`) becomes /dev/null. Else the next opened file would get its number, and ffmpeg or a worker
    would write messages into that file.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest free number
    sys.stdin = sys.stdin or _null("r")
    sys.stdout = sys.stdout or _null("w")
    if sys.stderr is sys.__stderr__:  # not redirected inside this process
        encoding = sys.stderr.encoding if sys.stderr else "utf-8"
        file = _DroppingFile(2 if sys.stderr else os.devnull, "w", closefd=sys.stderr is None)
        sys.stderr = io.TextIOWrapper(
            io.BufferedWriter(file), encoding=encoding, errors="backslashreplace", line_buffering=True
        )


def _null(mode: str) -> Any:
    return open(os.devnull, mode, encoding="utf-8")  # noqa: PTH123 - open until the process ends
