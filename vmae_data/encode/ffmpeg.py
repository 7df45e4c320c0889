"""Arguments → a finished ffmpeg process: its status, its messages and the time stamp of each decoded frame.

This module alone runs ffmpeg: without a shell or stdin, and ffmpeg ends when this process ends.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from vmae_data.errors import MisuseError, VmaeError
from vmae_data.processes import die_with_parent, limit_memory
from vmae_data.storage import commit_bytes, hash_file, node_folder, writer_name

__all__ = [
    "Ffmpeg",
    "FfmpegRun",
    "PictureSize",
    "encoders_of",
    "ffmpeg_python",
    "find_ffmpeg",
    "log_sizes",
    "owners_of",
    "parse_log",
    "run_ffmpeg",
    "select_and_log",
    "silence_seconds",
]

# ffmpeg logs every decoded frame, so a silence this long is a hang, not a long video.
SILENCE_SECONDS = 120.0
# Between two reads of the log. A read per line costs 2 % of a build; a pipe holds 1,400 lines.
_READ_SECONDS = 0.05
KEPT_MESSAGES = 40
SETTLED_SECONDS = 2.0  # a file that has not changed for so long has other times when it changes
# A header may claim any size, and a decoder allocates it. 8K in 10 bits with 16 reference frames takes 2 GB.
MAX_BYTES = 4 << 30

_NUMBER = re.compile(r"\[Eval @ [^]]*\] \[(error|fatal|panic)\] (-?\d+\.\d+|-?nan)")
_SIZE_BASE = 1 << 16  # above any height
_ADDRESS = re.compile(r" @ 0x[0-9a-f]+")
_MESSAGE = re.compile(r"((?:\[[^\[\]]+ @ 0x[0-9a-f]+\] )*)\[(error|fatal|panic)\] (.*)")
# As ffmpeg describes a stream. Identifier 0: its colours are those of no standard, as in profile 5.
_DOLBY_VISION = re.compile(r"\[info\] +DOVI configuration record: .*\bprofile: (\d+)\b.*\bcompatibility id: 0\b.*")
# Messages that follow from another one. They are reported only if there is no other.
_CONSEQUENCE = re.compile(
    r"(\[[^]]*\] )*(Error opening (input|output)|Error parsing options|Failed to set value|Conversion failed"
    r"|Nothing was written into output|Cannot determine format of input|Task finished with error|Terminating thread"
    r"|Error submitting packet to decoder|Error sending frames to consumers|Could not open encoder before EOF"
    r"|error reading header)"
)


class Ffmpeg(NamedTuple):
    """An ffmpeg binary. The bytes of the shards depend on it."""

    path: str
    version: str
    sha256: str


class PictureSize(NamedTuple):
    """The size of the decoded pictures from a frame on: after their crop, before rotation and sample aspect."""

    frame: int
    width: int
    height: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


class FfmpegRun(NamedTuple):
    """The result of one run."""

    pts: tuple[int | None, ...]  # of every decoded frame, None if it has none
    ticks_per_second: float  # of pts; 0 if no frame was decoded
    messages: tuple[str, ...]  # errors without addresses and paths, sorted
    restarted_at: int | None  # the frame where the pictures' size or format changed and the filters started again
    status: int = 0
    stalled: bool = False
    dolby_vision: int | None = None  # its profile, if only Dolby Vision's own decoders show its colours
    sizes: tuple[PictureSize, ...] = ()  # the first picture that `log_sizes` saw, and each of another size
    first_key_frame: int | None = None  # the number of the first frame that needs no other

    def error_text(self) -> str:
        """ffmpeg's first messages, in one line."""
        return "; ".join(self.messages[:3]) or f"ffmpeg ended with status {self.status} and no message"

    @property
    def changed_at(self) -> int | None:
        """The frame where the pictures change, or None: their size; with filters that start again, their format too."""
        if self.restarted_at is None and len(self.sizes) > 1:
            return self.sizes[1].frame
        return self.restarted_at


@cache
def ffmpeg_python() -> Any:
    """The module `ffmpeg` of the package ffmpeg-python, which builds the argument lists.

    Several packages have a module of this name, and the one installed last wins. Raises VmaeError if the module is
    missing or belongs to another package.
    """
    advice = "python -m pip install --force-reinstall --no-deps ffmpeg-python"
    try:
        import ffmpeg

        arguments = ffmpeg.input("a", threads=1).output("b", f="null").compile(cmd="c", overwrite_output=True)
    except Exception as error:  # a mixture of several packages may raise anything
        problem = f"doesn't work ({type(error).__name__}: {error})"
        if others := [owner for owner in owners_of("ffmpeg") if owner != "ffmpeg-python"]:
            problem = f"comes from {' and '.join(others)}, which hides ffmpeg-python"
            advice = f"python -m pip uninstall {' '.join(others)} && {advice}"
        raise VmaeError(f"the Python module ffmpeg {problem}. Run `{advice}`") from error
    if arguments != ["c", "-threads", "1", "-i", "a", "-f", "null", "b", "-y"]:
        raise VmaeError(f"{ffmpeg.__file__}: is not ffmpeg-python, because its arguments differ. Run `{advice}`")
    return ffmpeg


def owners_of(module: str) -> list[str]:
    """The installed distributions that contain a top-level module, sorted."""
    from importlib.metadata import packages_distributions

    return sorted(set(packages_distributions().get(module, ())))


@cache
def find_ffmpeg(named: str | None = None) -> Ffmpeg:
    """The binary that `named` or VMAE_FFMPEG names, else the one from imageio-ffmpeg.

    Raises VmaeError if it is missing, doesn't run, is another program, or has no libx264. Raises MisuseError if
    `named` or VMAE_FFMPEG names such a binary.
    """
    silence_seconds()  # refuse an invalid value before any work
    path = named or os.environ.get("VMAE_FFMPEG") or None
    error_type = VmaeError if path is None else MisuseError
    advice = "Name another with --ffmpeg or VMAE_FFMPEG, or set neither to use the installed one"
    if path is None:
        advice = "Run `python -m pip install --force-reinstall imageio-ffmpeg`, or set VMAE_FFMPEG to another binary"
        try:
            import imageio_ffmpeg

            path = imageio_ffmpeg.get_ffmpeg_exe()
        except (ImportError, RuntimeError) as error:
            raise VmaeError(
                "no ffmpeg found. Run `python -m pip install imageio-ffmpeg`, or set VMAE_FFMPEG to a binary"
            ) from error
    path = shutil.which(path) or path
    program = Path(path).resolve()
    file = _facts_file(program)  # named before the binary is queried and hashed: it may be replaced meanwhile
    if file is not None:
        with suppress(OSError, ValueError):
            if kept := re.fullmatch(r"([0-9a-f]{64}) (\S+)", file.read_text("utf-8")):
                return Ffmpeg(path, kept[2], kept[1])
    try:
        banner = _run_query(path, "-version")
        encoders = encoders_of(path)
    except (OSError, subprocess.SubprocessError) as error:
        raise error_type(f"{path}: is not an ffmpeg that runs here ({_query_error(error)}). {advice}") from error
    version = re.match(r"ffmpeg version (\S+)", banner)
    if version is None:
        answer = f"begins with {banner[:40]!r}" if banner else "is empty"
        raise error_type(f"{path}: is not ffmpeg: its answer to -version {answer}. {advice}")
    if "libx264" not in encoders:
        raise error_type(f"{path}: is an ffmpeg without the libx264 encoder. {advice}")
    found = Ffmpeg(path, version[1], hash_file(program))
    if file is not None:
        with suppress(OSError, VmaeError):
            commit_bytes(file, f"{found.sha256} {found.version}".encode(), writer_name())
    return found


def _facts_file(program: Path) -> Path | None:
    """Where this machine's cache keeps sha256 and version of a usable binary until the file changes: querying and hashing
    take 0.2 s.

    None for a script, because the program that it starts can change. None for a file that is still being written: it
    can change again without a change of its times. None if there is no cache, or no such file; a pipe is none, because
    to open it would wait for its writer.
    """
    with suppress(OSError, VmaeError):
        if not program.is_file():
            return None
        facts = program.stat()
        with program.open("rb") as file:
            is_script = file.read(2) == b"#!"
        if not is_script and time.time() - facts.st_ctime > SETTLED_SECONDS:
            identity = (str(program), facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
            return node_folder("binaries") / hashlib.sha256(repr(identity).encode()).hexdigest()
    return None


def silence_seconds() -> float:
    """The silence after which ffmpeg is killed: VMAE_SILENCE_SECONDS [default: 120].

    Raises MisuseError unless it is a number above 0, at most 1e6.
    """
    text = os.environ.get("VMAE_SILENCE_SECONDS") or str(SILENCE_SECONDS)
    try:
        seconds = float(text)
        if not 0 < seconds <= 1e6:
            raise ValueError
    except ValueError:
        raise MisuseError(f"VMAE_SILENCE_SECONDS = {text}: expected seconds above 0, such as 120") from None
    return seconds


def encoders_of(path: str) -> frozenset[str]:
    """The names of a binary's encoders. Raises OSError or SubprocessError if it doesn't run."""
    return frozenset(re.findall(r"^ [VAS][.A-Z]{5} (\S+)", _run_query(path, "-encoders"), re.MULTILINE))


def _run_query(path: str, query: str) -> str:
    return subprocess.run(
        [path, "-nostdin", "-hide_banner", query] if query != "-version" else [path, query],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
        errors="replace",
    ).stdout


def _query_error(error: OSError | subprocess.SubprocessError) -> str:
    if isinstance(error, subprocess.TimeoutExpired):
        return f"no answer to {error.cmd[-1]} in {error.timeout:g} s"
    if isinstance(error, subprocess.CalledProcessError):
        end = f"signal {-error.returncode}" if error.returncode < 0 else f"status {error.returncode}"
        message = next((line.strip() for line in (error.stderr or "").splitlines() if line.strip()), "")
        return f"it answers {error.cmd[-1]} with {end}" + (f": {message}" if message else "")
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def select_and_log(expression: str) -> str:
    """A select filter that also logs the pts of every frame that reaches it, for `parse_log`.

    print(pts,16) logs a number at the level of errors, print(1/TB,8) the ticks per second at that of fatal errors
    before frame 0, print(-1-n,8) the number of the first key frame. Each number is one call of ffmpeg's log. showinfo
    writes a line in several calls, between which other threads write: then messages and numbers mix.
    """
    first_key = "if(not(ld(0))*gt(key+eq(pict_type,I),0),print(-1-n,8);st(0,1))"
    return f"select='if(eq(n,0),print(1/TB,8));print(pts,16);{first_key};{expression}'"


def log_sizes(width: int) -> str:
    """The width of a scale filter that also logs the size of its first picture and of each that differs.

    The number stands for both lengths. It is logged at the level of panics, in the thread that logs the frames.
    """
    return f"w='if(print({_SIZE_BASE}*iw+ih,0),{width})':eval=frame"


def run_ffmpeg(arguments: Sequence[str], names: dict[str, str]) -> FfmpegRun:
    """Run ffmpeg to its end, or kill it after a long silence.

    `names` replaces paths in its messages (`/data/a.mp4` → `a.mp4`). Call this from a main thread only: the signal
    that ends ffmpeg with its parent follows the thread that started it.
    """
    process = subprocess.Popen(
        list(arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C must not reach ffmpeg
        preexec_fn=partial(_prepare_child, os.getpid()),
    )
    assert process.stderr is not None
    stalled = False

    def stop_silent() -> None:
        nonlocal stalled
        stalled = True
        _kill(process)

    try:
        run = parse_log(_read_lines(process, process.stderr, stop_silent), names)
        status = process.wait()
    except BaseException:
        _kill(process)
        process.wait()
        raise
    finally:
        process.stderr.close()
    return run._replace(status=status, stalled=stalled)


def _prepare_child(parent: int) -> None:
    """Runs in the child process before ffmpeg."""
    die_with_parent(parent)
    limit_memory(MAX_BYTES)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group: the named binary may be a script that starts ffmpeg."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _read_lines(process: subprocess.Popen[bytes], stderr: IO[bytes], on_silence: Callable[[], None]) -> Iterator[str]:
    """The lines of ffmpeg's log, until it closes or is silent for too long."""
    descriptor, max_silence = stderr.fileno(), silence_seconds()
    rest = b""
    ended = False
    last_read_at = time.monotonic()
    while True:
        ready, _, _ = select.select([descriptor], [], [], min(5.0, max_silence / 4))
        if ready:
            data = os.read(descriptor, 1 << 16)
            if not data:
                break
            last_read_at = time.monotonic()
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
            ended = ended or _wait_for_end(process.pid, _READ_SECONDS)
        elif time.monotonic() - last_read_at > max_silence:
            on_silence()
            return
    if rest:
        yield rest.decode("utf-8", "replace")


def _wait_for_end(pid: int, seconds: float) -> bool:
    """Wait for a child to end, for so long at most. True if it ended, or if this system can't tell."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:
        return True
    try:
        return bool(select.select([descriptor], [], [], seconds)[0])
    finally:
        os.close(descriptor)


def parse_log(lines: Iterable[str], names: dict[str, str]) -> FfmpegRun:
    """The numbers that `select_and_log` and `log_sizes` write, and ffmpeg's messages.

    ffmpeg's threads write complete lines, but their order differs between runs. So the messages are sorted and only
    the first ones kept: the same source gives the same messages.
    """
    pts: list[int | None] = []
    ticks_per_second = 0.0
    restarted_at: int | None = None
    sizes: list[PictureSize] = []
    dolby_vision: int | None = None
    first_key_frame: int | None = None
    messages: set[str] = set()
    for line in lines:
        if number := _NUMBER.fullmatch(line):
            if number[1] == "error":
                pts.append(None if "nan" in number[2] else int(float(number[2])))
                continue
            if number[1] == "panic":
                size = divmod(int(float(number[2])), _SIZE_BASE)
                if not sizes or sizes[-1].size != size:
                    sizes.append(PictureSize(max(0, len(pts) - 1), *size))
                continue
            if float(number[2]) < 0:
                if first_key_frame is None:
                    first_key_frame = -1 - int(float(number[2]))
                continue
            if pts and restarted_at is None:  # ffmpeg made new filters, for other frames
                restarted_at = len(pts)
            ticks_per_second = float(number[2])
        elif stated := _DOLBY_VISION.fullmatch(line):
            dolby_vision = int(stated[1])
        elif message := _MESSAGE.search(line):
            text = _ADDRESS.sub("", message[1]) + message[3]
            for path, name in names.items():
                text = name.join(re.split(f"(?:file:)?{re.escape(path)}", text))
            messages.add(text.strip())
            if len(messages) > 2 * KEPT_MESSAGES:
                messages = set(sorted(messages)[:KEPT_MESSAGES])
    causes = sorted(message for message in messages if not _CONSEQUENCE.match(message))
    return FfmpegRun(
        tuple(pts),
        ticks_per_second,
        tuple(causes or sorted(messages)),
        restarted_at,
        dolby_vision=dolby_vision,
        sizes=tuple(sizes),
        first_key_frame=first_key_frame,
    )
