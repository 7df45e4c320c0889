"""What a machine lends to a process: cores, memory, and folders in which a build can keep its promises."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import VmaeError
from vmae_data.storage import TEMPORARY, commit_bytes, lock

__all__ = [
    "FolderFacts",
    "core_quota",
    "cores",
    "existing_part",
    "look_at_folder",
    "memory_bytes",
    "shared_memory_bytes",
]

CGROUPS = Path("/sys/fs/cgroup")
# What several machines may see at a time: a lock there may hold on one of them only.
NETWORK_TYPES = (
    "nfs",
    "cifs",
    "smb",
    "lustre",
    "gpfs",
    "ceph",
    "beegfs",
    "gluster",
    "fuse",
    "9p",
    "afs",
    "panfs",
    "weka",
)


class FolderFacts(NamedTuple):
    """A folder, and what was tried in it."""

    folder: Path
    kind: str  # of file system
    is_network: bool
    free_bytes: int
    free_names: int | None  # files that may still be made, None where there is no such limit
    problem: str  # why nothing can be built there, "" where it can


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def core_quota(groups: str | None = None, root: Path = CGROUPS) -> float | None:
    """How many cores' worth of time the control groups grant, None where they don't say.

    `groups`: the text of /proc/self/cgroup.
    """
    quotas = []
    for found in _group_values("cpu", "cpu.max", groups, root):  # version 2: "QUOTA PERIOD"
        quota, _, period = found.partition(" ")
        if quota.isdigit():
            quotas.append(int(quota) / int(period or 100_000))
    limits = _group_values("cpu", "cpu.cfs_quota_us", groups, root)
    for found, period in zip(limits, _group_values("cpu", "cpu.cfs_period_us", groups, root), strict=False):
        if int(found) > 0:
            quotas.append(int(found) / int(period))
    return min(quotas, default=None)


def memory_bytes(groups: str | None = None, root: Path = CGROUPS) -> int:
    """The memory that this process may use: the machine's, or what the control groups grant of it."""
    limits = [
        int(found)
        for name in ("memory.max", "memory.limit_in_bytes")
        for found in _group_values("memory", name, groups, root)
        if found.isdigit()
    ]
    return min([*limits, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")])


def _group_values(controller: str, file: str, groups: str | None, root: Path) -> list[str]:
    """What a file says in the process's group and those above it; the least of all holds.

    In a container the group's path may be the host's, so that only the groups above it are there.
    """
    text = Path("/proc/self/cgroup").read_text("utf-8", "replace") if groups is None else groups
    values = []
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        for top in (root / controllers, root / controller) if controllers else (root,):
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                if (folder / file).is_file():
                    values.append((folder / file).read_text().strip())
                if folder == top:
                    break
            if values:
                break
    return values


def shared_memory_bytes() -> int:
    """The size of /dev/shm, 0 where there is none."""
    try:
        return shutil.disk_usage("/dev/shm").total  # noqa: S108
    except OSError:
        return 0


def existing_part(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def look_at_folder(folder: Path) -> FolderFacts:
    """Try in a folder what a build does there: write, sync, rename, lock. Nothing of it stays."""
    status = os.statvfs(folder)
    kind = _file_system(folder)
    return FolderFacts(
        folder=folder,
        kind=kind,
        is_network=kind.startswith(NETWORK_TYPES),
        free_bytes=status.f_bavail * status.f_frsize,
        free_names=status.f_favail if status.f_files else None,
        problem=_try_folder(folder),
    )


def _try_folder(folder: Path) -> str:
    """Why a build can't work in a folder, or nothing."""
    if not folder.is_dir():
        return "is not a folder"
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as made:
            trial = Path(made)
            for data in (b"first", b"second"):  # the second takes the place of the first
                commit_bytes(trial / "file", data)
            if (trial / "file").read_bytes() != b"second" or len(list(trial.iterdir())) != 1:
                return "a renamed file does not take the place of the old one"
            return _try_lock(trial)
    except (OSError, VmaeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        return f"nothing can be written there ({why or error})"


def _try_lock(folder: Path) -> str:
    try:
        with lock(folder, "trial"):
            try:
                with lock(folder, "trial"):
                    return "flock lets two hold one lock"
            except VmaeError:
                return ""
    except (OSError, VmaeError) as error:
        return f"flock does not work there ({error.__cause__ or error})"


def _file_system(folder: Path, mounts: str | None = None) -> str:
    """The type of the file system that a folder is on, as the kernel names it."""
    text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape") if mounts is None else mounts
    place, best, kind = folder.resolve(), -1, "unknown"
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), left.split()[4]))
        # The later of two mounts on one point hides the earlier.
        if (place == point or point in place.parents) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split()[0]
    return kind
