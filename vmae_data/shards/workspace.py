"""Destination → workspace: the folders on this machine for a build's locks and its staged encodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import VmaeError
from vmae_data.shards.plan import Part
from vmae_data.storage import LOCK, TEMPORARY, StoragePath, lock, lock_part, node_folder, path_digest, writable

__all__ = ["STAGING", "Workspace", "workspace_of"]

STAGING = ".staging"


class Workspace(NamedTuple):
    """`locks` is the destination if that is a folder. A store has no locks: there they hold on this machine only."""

    dest: StoragePath
    locks: Path
    staging: Path

    @property
    def staging_is_outside(self) -> bool:
        """Whether staging is outside the destination."""
        return self.staging.parent != self.dest

    @contextmanager
    def locked(self, what: str, part: Part | None = None) -> Iterator[None]:
        """Lock the whole build, or a part. Raises VmaeError if another process of this machine holds the lock."""
        try:
            with lock_part(self.locks, what, *part) if part else lock(self.locks, what):
                yield
        finally:
            if self.staging_is_outside:
                self._remove_empty_folders()

    def _remove_empty_folders(self) -> None:
        """Remove folders that nobody uses: other parts may be running here, or be stopped for now."""
        home = self.staging.parent
        with suppress(VmaeError, OSError), lock(self.locks, "build"):
            self.staging.rmdir()
        with suppress(OSError):
            home.rmdir()

    def remove_temporary_files(self) -> None:
        """Remove what killed processes left half written. Needs the lock of the whole build: nobody else writes then."""
        for folder in (self.locks, self.staging):
            for path in folder.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)

    def remove_part_locks(self) -> None:
        """Remove the locks of killed parts. Needs the lock of the whole build."""
        for path in self.locks.glob(f"{LOCK}-part-*"):
            path.unlink()

    def remove_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)


def workspace_of(dest: StoragePath, staging: Path | None = None) -> Workspace:
    """The workspace of a destination. Staging is below `staging`, else in a local destination, else in the node's cache.

    Raises MisuseError for a destination that can't be written to.
    """
    writable(dest)
    if isinstance(dest, Path) and staging is None:
        return Workspace(dest, dest, dest / STAGING)
    full = dest.absolute() if isinstance(dest, Path) else dest
    # A readable name, and a hash that keeps destinations of the same name apart.
    name = f"{dest.name or 'root'}-{path_digest(full)[:16]}"
    home = (staging.absolute() if staging else node_folder("staging")) / name
    return Workspace(dest, dest if isinstance(dest, Path) else home, home / STAGING)
