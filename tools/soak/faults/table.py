"""Every fault of the machine, and its expected outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from tools.soak.faults.appends import appends_killed
from tools.soak.faults.arguments import closed_streams, hangups, numbers, special_paths
from tools.soak.faults.disks import file_sizes, link_loop, no_permission, no_space, small_disk
from tools.soak.faults.fault_run import Result, Workspace
from tools.soak.faults.process_faults import hang, kills, retries_killed, signals, troubles, two_builds
from tools.soak.faults.stores import folder_markers, redirects, server_numbers, slow_answers
from tools.soak.faults.worker_starts import worker_starts

__all__ = ["FAULTS", "Fault"]


class Fault(NamedTuple):
    """A way to disturb a build; `name` and `outcome` are printed in docs/damages.md."""

    run: Callable[[Workspace], Iterator[Result]]
    name: str
    outcome: str


_RESUMES = "the next build resumes to the bytes of an undisturbed one"
FAULTS = (
    Fault(
        two_builds,
        "two builds into one destination at once",
        "one is refused with status 1, the other is not disturbed",
    ),
    Fault(
        worker_starts,
        "workers that fail or die before they accept work: a script without a guard, an exit, a signal",
        f"status 1, the cause in one line, nothing is recorded; {_RESUMES}",
    ),
    Fault(signals, "SIGTERM, SIGINT", f"status 143, 130, one line; no process is left; {_RESUMES}"),
    Fault(hangups, "SIGHUP; SIGHUP under nohup", f"status 129, one line, and {_RESUMES}; the build continues"),
    Fault(closed_streams, "closed standard streams, a full disk at stderr", "the bytes of an undisturbed build"),
    Fault(special_paths, "a pipe, a socket, a device or a folder in place of a file", "status 2, one line names it"),
    Fault(numbers, "numbers without bounds, values nested 20,000 deep", "status 2, one short line names the key"),
    Fault(hang, "an ffmpeg that hangs", "it is killed, failure `stalled`; only `--retry-failed` builds its source"),
    Fault(
        troubles,
        "an ffmpeg that gets no thread, no permission to write, too many open files",
        f"status 1, one line, nothing is recorded; {_RESUMES}",
    ),
    Fault(retries_killed, "kill -9 during `--retry-failed`, of complete videos and of segments", _RESUMES),
    Fault(
        appends_killed,
        "kill -9 during `--append`: of complete videos, phases, segments, and in parts",
        f"the old index stays until the append is done; {_RESUMES}",
    ),
    Fault(
        file_sizes,
        "a limit on the size of a file (RLIMIT_FSIZE), in the middle of each kind",
        f"status 1, “no space left on the disk”; {_RESUMES}",
    ),
    Fault(
        no_space,
        "no space left (ENOSPC) when a file gets its final name, for each kind",
        f"the same status and message; {_RESUMES}",
    ),
    Fault(small_disk, "a file system of a few kB that fills up", f"the same status and message; {_RESUMES}"),
    Fault(
        no_permission,
        "no permission for a file; for a folder; for the destination",
        "failure `unreadable`; a note, and its videos are left out; status 2; each names it",
    ),
    Fault(link_loop, "folders that link to each other in a loop", "every video once"),
    Fault(
        slow_answers,
        "`verify` of a web server that sends two bytes a second, of each kind of file; then SIGTERM, or the time limit",
        "status 143, or status 1 and “no answer”, within seconds",
    ),
    Fault(
        redirects, "`verify` of a web server that redirects to another", "it is read there without the user's headers"
    ),
    Fault(
        folder_markers,
        "`verify` of a bucket, and a build of its videos, with markers of folders among the objects",
        "the markers are no files",
    ),
    Fault(
        server_numbers,
        "`verify` of a web server that states lengths, ranges and waits without sense",
        "status 1 and one line, or the numbers change nothing",
    ),
    Fault(
        kills,
        "kill -9 at 100 random moments",
        f"nothing finished is lost, no process is left, no partial file counts as complete; {_RESUMES}",
    ),
)
