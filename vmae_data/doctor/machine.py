"""This machine → what a build may use: cores, memory, and folders in which its file operations work."""

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
    "file_system_of",
    "memory_bytes",
    "shared_memory_bytes",
    "try_folder",
]

CGROUPS = Path("/sys/fs/cgroup")
# Several machines may use these at a time, and a lock may then work on one machine only.
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
    """A folder's file system and the result of a trial in it."""

    file_system: str
    is_network: bool
    free_bytes: int
    free_names: int | None  # files that can still be created; None: no such limit
    problem: str  # why a build can't work there, else empty


def cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0))


def core_quota(groups: str | None = None, root: Path = CGROUPS) -> float | None:
    """The number of cores whose time the control groups grant; None: no limit.

    `groups`: the text of /proc/self/cgroup.
    """
    quotas = []
    for value in _group_values("cpu", "cpu.max", groups, root):  # version 2: "QUOTA PERIOD"
        quota, _, period = value.partition(" ")
        if quota.isdigit():
            quotas.append(int(quota) / int(period or 100_000))
    limits = _group_values("cpu", "cpu.cfs_quota_us", groups, root)
    for limit, period in zip(limits, _group_values("cpu", "cpu.cfs_period_us", groups, root), strict=False):
        if int(limit) > 0:
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def memory_bytes(groups: str | None = None, root: Path = CGROUPS) -> int:
    """The memory that this process may use: the machine's, or less if a control group limits it."""
    limits = [
        int(value)
        for name in ("memory.max", "memory.limit_in_bytes")
        for value in _group_values("memory", name, groups, root)
        if value.isdigit()
    ]
    return min([*limits, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")])


def _group_values(controller: str, file: str, groups: str | None, root: Path) -> list[str]:
    """The contents of a file in the process's group and in the groups above it; the lowest limit applies.

    In a container the path may be the host's, and then only groups above it exist.
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
    """The size of /dev/shm; 0 if it does not exist."""
    try:
        return shutil.disk_usage("/dev/shm").total  # noqa: S108
    except OSError:
        return 0


def existing_part(path: Path) -> Path:
    """The folder, or the nearest existing folder above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def try_folder(folder: Path) -> FolderFacts:
    """Try what a build does in a folder: write, sync, rename, lock. No file stays."""
    status = os.statvfs(folder)
    file_system = file_system_of(folder)
    return FolderFacts(
        file_system=file_system,
        is_network=file_system.startswith(NETWORK_TYPES),
        free_bytes=status.f_bavail * status.f_frsize,
        free_names=status.f_favail if status.f_files else None,
        problem=_folder_problem(folder),
    )


def _folder_problem(folder: Path) -> str:
    if not folder.is_dir():
        return "is not a folder"
    try:
        with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder) as name:
            trial = Path(name)
            for data in (b"first", b"second"):  # the second replaces the first
                commit_bytes(trial / "file", data)
            if (trial / "file").read_bytes() != b"second" or len(list(trial.iterdir())) != 1:
                return "a renamed file does not replace the old one"
            return _lock_problem(trial)
    except (OSError, VmaeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        return f"can't be written ({why or error})"


def _lock_problem(folder: Path) -> str:
    try:
        with lock(folder, "trial"):
            try:
                with lock(folder, "trial"):
                    return "flock gives one lock twice"
            except VmaeError:
                return ""
    except (OSError, VmaeError) as error:
        return f"flock does not work ({error.__cause__ or error})"


def file_system_of(folder: Path, mounts: str | None = None) -> str:
    """The type of a folder's file system, in the kernel's words. `mounts`: the text of /proc/self/mountinfo."""
    text = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape") if mounts is None else mounts
    path, longest, kind = folder.resolve(), -1, "unknown"
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point = Path(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), left.split()[4]))
        # The later of two mounts on one point hides the earlier.
        if (path == point or point in path.parents) and len(point.parts) >= longest:
            longest, kind = len(point.parts), right.split()[0]
    return kind
