"""Full disks, files and folders without permission, folders that link to each other in a loop."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from tools.soak.faults.fault_run import (
    NO_SPACE,
    Result,
    Workspace,
    after,
    command,
    run,
)
from vmae_data.format import INDEX

__all__ = ["at_limit", "file_sizes", "link_loop", "no_permission", "no_space", "small_disk"]

_NOBODY = 65534


def file_sizes(workspace: Workspace) -> Iterator[Result]:
    """RLIMIT_FSIZE: a write fails in the middle of a file, in the build's processes and in ffmpeg."""
    largest = max(path.stat().st_size for path in workspace.undisturbed.iterdir())
    for limit in (500, 2500, 5000, largest // 3, largest - 1):
        yield at_limit(workspace, limit)


def at_limit(workspace: Workspace, limit: int) -> Result:
    """A build that may write no file larger than `limit` bytes."""
    launcher = "import os, resource, sys; n = int(sys.argv[1]); resource.setrlimit(resource.RLIMIT_FSIZE, (n, n)); "
    launcher += "os.execv(sys.argv[2], sys.argv[2:])"
    dest = workspace.dest(f"limit-{limit}")
    ended = run([sys.executable, "-c", launcher, str(limit), *command(workspace.videos, dest)])
    expected = f"status 1, “{NO_SPACE}”; it resumes to the same bytes"
    return after(workspace, dest, f"files of at most {limit} bytes", expected, ended, 1, NO_SPACE)


_NO_SPACE = """\
import errno, os
def refusing(call):
    def refuse(old, new, *more, **named):
        if os.environ["VMAE_SOAK_FULL"] in os.fspath(new):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), new)
        return call(old, new, *more, **named)
    return refuse
os.replace, os.link = refusing(os.replace), refusing(os.link)
"""


def no_space(workspace: Workspace) -> Iterator[Result]:
    """ENOSPC when a file gets its final name, for each kind of file."""
    folder = workspace.dest("patch")
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_NO_SPACE)
    names = ["plan.arrow", "plan.json", ".staged.json", ".mp4", "shard-000001.tar", "shard-000001.json"]
    for name in (*names, "failures.jsonl", "samples.arrow", "index.json"):
        dest = workspace.dest("full")
        path = os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))
        ended = run(command(workspace.videos, dest), PYTHONPATH=path, VMAE_SOAK_FULL=name)
        expected = f"status 1, “{NO_SPACE}”; it resumes to the same bytes"
        yield after(workspace, dest, f"no space left for {name}", expected, ended, 1, NO_SPACE)


def small_disk(workspace: Workspace) -> Iterator[Result]:
    """A real file system that fills up and is then enlarged."""
    total = sum(path.stat().st_size for path in workspace.undisturbed.iterdir())
    for share in (0.02, 0.3, 0.7, 1.0):
        name, expected = f"a disk of {share:.0%} of the shards", f"status 1, “{NO_SPACE}”; it resumes to the same bytes"
        disk = workspace.dest("disk")
        disk.mkdir()
        size = max(8192, int(total * share)) // 4096 * 4096
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            yield Result(name, "skipped: mounting is not allowed on this machine", expected, True)
            return
        try:
            ended = run(command(workspace.videos, disk / "dest"))
            subprocess.run(["mount", "-o", "remount,size=256m", disk], check=True)
            yield after(workspace, disk / "dest", name, expected, ended, 1, NO_SPACE)
        finally:
            subprocess.run(["umount", disk], check=True)


_AS_ANOTHER = [
    ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"],
    # For an interpreter that another user cannot reach: root without the capabilities that ignore file modes.
    ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"],
]
_START_ANOTHER = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import vmae_data'], check=True)"


def _switch() -> list[str] | None:
    """The prefix that starts a command as a user who may not read every file. None if there is none."""
    if os.geteuid() != 0:
        return []
    for words in _AS_ANOTHER:
        with contextlib.suppress(OSError):
            attempt = [*words, sys.executable, "-c", _START_ANOTHER]
            if subprocess.run(attempt, capture_output=True, check=False).returncode == 0:
                return words
    return None


def no_permission(workspace: Workspace) -> Iterator[Result]:
    """Files and folders without permission, for a user other than root."""
    switch = _switch()
    if switch is None:
        yield Result("no permission", "skipped: cannot run as another user on this machine", "", True)
        return
    folder = workspace.dest("rights")
    videos, closed = folder / "videos", folder / "closed"
    (videos / "a").mkdir(parents=True)
    for path in (workspace.folder, folder.parent, folder):
        path.chmod(0o755)
    good = sorted(workspace.videos.glob("*/scene-*.mp4"))[:2]
    for path in good:
        shutil.copy(path, videos / "a")
    (videos / "a" / good[0].name).chmod(0)
    (folder / "out").mkdir()
    if switch is _AS_ANOTHER[0]:
        os.chown(folder / "out", _NOBODY, _NOBODY)
    failures = folder / "out" / "failures.jsonl"
    ended = run([*switch, *command(videos, folder / "out")])
    lines = failures.read_text() if failures.exists() else ""
    right = ended.status == 0 and lines.count("\n") == 1 and '"unreadable"' in lines and "Permission denied" in lines
    expected = "failure unreadable “Permission denied”, the other one built"
    yield Result("a file without permission", expected if right else f"{ended} {lines}", expected, right)
    (videos / "b").mkdir(mode=0)
    ended = run([*switch, *command(videos, folder / "out")])
    right = ended.status == 0 and "1 folder without permission left out (b)" in ended.words
    expected = "status 0, names the folder"
    yield Result("a folder without permission", expected if right else str(ended), expected, right)
    (videos / "b").rmdir()
    closed.mkdir(mode=0o555)
    for name in (closed, closed / "new"):
        ended = run([*switch, *command(videos, name)])
        right = ended.status == 2 and "closed" in ended.words and "Permission denied" in ended.words
        right = right and "\n" not in ended.words
        expected = "status 2, one line that names the folder"
        title = "a destination" if name == closed else "a destination's folder"
        yield Result(f"{title} without permission", expected if right else str(ended), expected, right)


def link_loop(workspace: Workspace) -> Iterator[Result]:
    """Folders that link to each other: every video once."""
    folder = workspace.dest("loop")
    (folder / "videos" / "a").mkdir(parents=True)
    shutil.copy(sorted(workspace.videos.glob("*/scene-*.mp4"))[0], folder / "videos" / "a")
    (folder / "videos" / "a" / "up").symlink_to("..")
    (folder / "videos" / "b").symlink_to("a")
    ended = run([*command(folder / "videos", folder / "out"), "--json"])
    samples = json.loads((folder / "out" / INDEX).read_text())["samples"] if ended.status == 0 else ended.words
    expected = "the video once"
    yield Result("folders that link in a loop", expected if samples == 1 else f"{samples}", expected, samples == 1)
