"""The one place that runs ffmpeg: no shell, no stdin, its words kept, and it dies with us."""

from __future__ import annotations

import math
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.processes import die_with_parent, limit_memory
from vmae_data.storage import hash_file

__all__ = [
    "Ffmpeg",
    "FfmpegRun",
    "encoders_of",
    "ffmpeg_python",
    "find_ffmpeg",
    "owners_of",
    "run_ffmpeg",
    "silence_seconds",
    "telling",
]

# Every decoded frame is told of, so a silence this long is a hang, not a long video.
SILENCE_SECONDS = 120.0
KEPT_WORDS = 40
# A header's claims are believed, and memory is taken for them. 8K in 10 bits, with 16 frames to refer to, takes 2 GB.
MOST_BYTES = 4 << 30

_NUMBER = re.compile(r"\[Eval @ [^]]*\] \[(error|fatal)\] (-?\d+\.\d+|-?nan)")
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
_COMPLAINT = re.compile(r"((?:\[[^\[\]]+ @ 0x[0-9a-f]+\] )*)\[(error|fatal|panic)\] (.*)")
# What ffmpeg says on top of the reason; told only where there is no other word.
_CONSEQUENCE = re.compile(
    r"(\[[^]]*\] )*(Error opening (input|output)|Error parsing options|Failed to set value|Conversion failed"
    r"|Nothing was written into output|Cannot determine format of input|Task finished with error|Terminating thread"
    r"|Error submitting packet to decoder|Error sending frames to consumers|Could not open encoder before EOF"
    r"|error reading header)"
)


class Ffmpeg(NamedTuple):
    """An ffmpeg binary; the shards' bytes depend on it."""

    path: str
    version: str
    sha256: str


class FfmpegRun(NamedTuple):
    """What one run gave."""

    status: int
    pts: tuple[int | None, ...]  # of every decoded frame, None where it has none
    ticks: float  # of pts in a second, 0 where nothing was decoded
    words: tuple[str, ...]  # complaints without addresses and paths, sorted
    stalled: bool
    restarted_at: int | None = None  # the frame where the picture's size changed, and the filters began anew

    def reason(self) -> str:
        """ffmpeg's own last words, one line."""
        return "; ".join(self.words[:3]) or f"ffmpeg ended with status {self.status} and no word"


def telling(select: str) -> str:
    """A select filter that also tells of every frame that reaches it, and of itself when it begins to count.

    A frame's pts is said at the level of errors (16), the ticks of a second, before frame 0, at that of fatal
    ones (8): each number by one call of ffmpeg's log. showinfo builds its lines
    of several, between which other threads write, and then a complaint loses its mark and a frame its number.
    """
    return f"select='if(eq(n,0),print(1/TB,8));print(pts,16);{select}'"


@cache
def ffmpeg_python() -> Any:
    """The module `ffmpeg` of ffmpeg-python, which builds the argument lists.

    Several packages bring a module of that name, and the one that was installed last wins. Raises VmaeError
    where it is another's, or not there.
    """
    advice = "python -m pip install --force-reinstall --no-deps ffmpeg-python"
    try:
        import ffmpeg

        built = ffmpeg.input("a", threads=1).output("b", f="null").compile(cmd="c", overwrite_output=True)
    except Exception as error:  # whatever a mixture of several packages raises
        others = [owner for owner in owners_of("ffmpeg") if owner != "ffmpeg-python"]
        if others:
            raise VmaeError(
                f"the Python module ffmpeg comes from {' and '.join(others)}, which hides ffmpeg-python;"
                f" python -m pip uninstall {' '.join(others)}, then {advice}"
            ) from error
        raise VmaeError(f"the Python module ffmpeg doesn't work ({type(error).__name__}: {error}); {advice}") from error
    if built != ["c", "-threads", "1", "-i", "a", "-f", "null", "b", "-y"]:
        raise VmaeError(f"{ffmpeg.__file__}: is not ffmpeg-python, it gives other arguments; {advice}")
    return ffmpeg


def owners_of(module: str) -> list[str]:
    """The installed distributions that bring a top-level module, sorted."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get(module, ())))


@cache
def find_ffmpeg(named: str | None = None) -> Ffmpeg:
    """The binary that `named` or VMAE_FFMPEG names, else the one that imageio-ffmpeg brings.

    Raises VmaeError where there is none, or it doesn't run, is something else or has no libx264; MisuseError where
    that one was named.
    """
    silence_seconds()  # before any work: it may be set to what is no number
    path = named or os.environ.get("VMAE_FFMPEG") or None
    refused = VmaeError if path is None else MisuseError
    advice = "name another with --ffmpeg or VMAE_FFMPEG, or none: one was installed with this program"
    if path is None:
        advice = "python -m pip install --force-reinstall imageio-ffmpeg, or set VMAE_FFMPEG to another"
    if path is None:
        try:
            import imageio_ffmpeg

            path = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            raise VmaeError("no ffmpeg found; pip install imageio-ffmpeg, or set VMAE_FFMPEG to one") from error
    path = shutil.which(path) or path
    try:
        banner = _ask(path, "-version")
        encoders = encoders_of(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise refused(f"{path}: is no ffmpeg that runs here ({_refusal(error)}); {advice}") from error
    found = re.match(r"ffmpeg version (\S+)", banner)
    if found is None:
        said = f"begins with {banner[:40]!r}" if banner else "is empty"
        raise refused(f"{path}: is no ffmpeg, its answer to -version {said}; {advice}")
    if "libx264" not in encoders:
        raise refused(f"{path}: is an ffmpeg that has no libx264 encoder; {advice}")
    return Ffmpeg(path, found[1], hash_file(Path(path).resolve()))


def _refusal(error: OSError | subprocess.SubprocessError) -> str:
    """Why a program gave no answer, in plain words."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer to {error.cmd[-1]} in {error.timeout:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        ended = f"signal {-error.returncode}" if error.returncode < 0 else f"status {error.returncode}"
        said = next((line.strip() for line in (error.stderr or "").splitlines() if line.strip()), "")
        return f"it answers {error.cmd[-1]} with {ended}" + (f": {said}" if said else "")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def encoders_of(path: str) -> frozenset[str]:
    """The names of a binary's encoders. Raises OSError or SubprocessError when it doesn't run."""
    return frozenset(re.findall(r"^ [VAS][.A-Z]{5} (\S+)", _ask(path, "-encoders"), re.MULTILINE))


def _ask(path: str, question: str) -> str:
    return subprocess.run(
        [path, "-nostdin", "-hide_banner", question] if question != "-version" else [path, question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
        errors="replace",
    ).stdout


def silence_seconds() -> float:
    """How long ffmpeg may say nothing before it is ended: VMAE_SILENCE_SECONDS, else two minutes.

    Raises MisuseError for what is no number above 0.
    """
    text = os.environ.get("VMAE_SILENCE_SECONDS") or str(SILENCE_SECONDS)
    try:
        seconds = float(text)
        if not 0 < seconds < math.inf:
            raise ValueError
    except ValueError:
        raise MisuseError(f"VMAE_SILENCE_SECONDS = {text}: expected seconds above 0, such as 120") from None
    return seconds


def run_ffmpeg(arguments: Sequence[str], names: dict[str, str]) -> FfmpegRun:
    """Run ffmpeg to its end, or kill it after a long silence.

    `names` says what a path is called in its words (`/data/a.mp4` → `a.mp4`). Call it from a main
    thread only: the signal that ends ffmpeg with its parent follows the thread that started it.
    """
    process = subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, not for it
        preexec_fn=partial(_start, os.getpid()),
    )
    assert process.stderr is not None
    reader = _Reader(names)
    try:
        stalled = not _follow(process.stderr, reader)
        if stalled:
            _kill(process)
        status = process.wait()
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        process.stderr.close()
    return FfmpegRun(status, tuple(reader.pts), reader.ticks, reader.words, stalled, reader.restarted_at)


def _start(parent: int) -> None:
    """In the child, before ffmpeg itself."""
    die_with_parent(parent)
    limit_memory(MOST_BYTES)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With all that it started: the binary that a person names may be a script around ffmpeg."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _follow(stderr: IO[bytes], reader: _Reader) -> bool:
    """Read what ffmpeg says until it closes; False when it fell silent."""
    descriptor, silence = stderr.fileno(), silence_seconds()
    rest = b""
    heard_at = time.monotonic()
    while True:
        ready, _, _ = select.select([descriptor], [], [], min(5.0, silence / 4))
        if ready:
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            heard_at = time.monotonic()
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            for line in lines:
                reader.take(line.decode("utf-8", "replace"))
        elif time.monotonic() - heard_at > silence:
            return False
    if rest:
        reader.take(rest.decode("utf-8", "replace"))
    return True


class _Reader:
    """Sorts ffmpeg's lines into the numbers of decoded frames and complaints.

    ffmpeg's threads write whole lines, but their order differs from run to run. So complaints are kept
    as the first few of a sorted set: the same source gives the same words.
    """

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names
        self.pts: list[int | None] = []
        self.ticks = 0.0
        self.restarted_at: int | None = None
        self._words: set[str] = set()

    @property
    def words(self) -> tuple[str, ...]:
        told = sorted(word for word in self._words if not _CONSEQUENCE.match(word))
        return tuple(told or sorted(self._words))

    def take(self, line: str) -> None:
        if number := _NUMBER.fullmatch(line):
            self._take_number(number[1], number[2])
        elif complaint := _COMPLAINT.search(line):
            text = _ADDRESS.sub("", complaint[1]) + complaint[3]
            for path, name in self.names.items():
                text = name.join(re.split(f"(?:file:)?{re.escape(path)}", text))
            self._words.add(text.strip())
            if len(self._words) > 2 * KEPT_WORDS:
                self._words = set(sorted(self._words)[:KEPT_WORDS])

    def _take_number(self, level: str, number: str) -> None:
        if level == "fatal":
            # A filter that begins again was made anew, for frames of another size.
            if self.pts and self.restarted_at is None:
                self.restarted_at = len(self.pts)
            self.ticks = float(number)
        else:
            self.pts.append(None if "nan" in number else int(float(number)))
