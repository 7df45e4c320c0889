"""Lines of kind "start" in a run's log: command, versions and machine of each start of a training.

They hold no secret, and neither the name of the host nor that of the user.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch

from vmae_data import __version__
from vmae_data.storage import shown_option

__all__ = ["Start", "command_text", "describe_start", "read_starts"]

_STORAGE_OPTION = "--storage-option"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A start of a training at `step`. `command` is None for a training that a Python program started.

    `precision` is None in logs of older versions.
    """

    kind: Literal["start"] = "start"
    step: int
    time: str  # UTC, ISO 8601
    command: str | None
    vmae: str
    python: str
    torch: str
    cpu: str
    gpu: str | None
    processes: int
    precision: str | None = None


def describe_start(step: int, *, device: torch.device, dtype: torch.dtype, processes: int) -> Start:
    """This process as a start of a training. It computes in `dtype`; `processes` is the number of all."""
    return Start(
        step=step,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        command=command_text(sys.argv),
        vmae=__version__,
        python=platform.python_version(),
        torch=str(torch.__version__),
        cpu=_cpu_name(),
        gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        processes=processes,
        precision=str(dtype).removeprefix("torch."),
    )


def read_starts(lines: Iterable[dict[str, Any]]) -> list[Start]:
    """The starts in a log. Lines of another form are skipped."""
    starts = []
    for line in lines:
        try:
            starts.append(msgspec.convert(line, Start))
        except msgspec.ValidationError:
            continue
    return starts


def command_text(argv: Sequence[str], home: Path | None = None) -> str | None:
    """A command of vmae-train as one line, without secrets; None for another program. The home folder becomes ~."""
    program, *words = argv
    path = Path(program)
    if path.name not in ("vmae-train", "vmae_train") and path.parts[-2:] != ("vmae_train", "cli.py"):
        return None
    shown = ["vmae-train"]
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if before == _STORAGE_OPTION:
            word = shown_option(word)
        elif option == _STORAGE_OPTION and equals:
            word = f"{option}={shown_option(value)}"
        shown.append(_quote(_without_home(_without_credentials(word), str(home or Path.home()))))
    return os.fsencode(" ".join(shown)).decode("utf-8", "replace")  # a path may have any bytes, JSON has text


def _without_credentials(word: str) -> str:
    """A URL without its user, password and query."""
    word = re.sub(r"(://)[^/\s]*@", r"\1", word)
    return re.sub(r"(://[^?\s]*)\?.*", r"\1?…", word, flags=re.DOTALL)


def _without_home(word: str, home: str) -> str:
    return word if home == "/" else re.sub(rf"(?<![^=:,\[\"']){re.escape(home)}(?=/|$)", "~", word)


def _quote(word: str) -> str:
    """A word of a shell command. A shell expands ~ only outside of quotes."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") and word != "~/" else shlex.quote(word)


def _cpu_name() -> str:
    """The name of the CPU and the number of cores that this process may use."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        text = ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    return f"{name[1].strip() if name else platform.machine()}, {cores} {'cores' if cores > 1 else 'core'}"
