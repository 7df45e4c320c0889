"""Where a build works: its destination, and on this machine the folders in which it holds its locks and stages its encodes."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from vmae_data.errors import VmaeError
from vmae_data.shards.plan import Part
from vmae_data.storage import LOCK, TEMPORARY, StoragePath, lock, lock_part, node_folder, writable

__all__ = ["STAGING", "Workspace", "workspace_of"]

STAGING = ".staging"


class Workspace(NamedTuple):
    """`locks` is the destination where that is a folder; a store has no locks, so there they hold on this machine only."""

    dest: StoragePath
    locks: Path
    staging: Path

    @property
    def apart(self) -> bool:
        """Whether staging is no part of the destination."""
        return self.staging.parent != self.dest

    @contextmanager
    def held(self, what: str, part: Part | None = None) -> Iterator[None]:
        """Hold the whole, or a part. Raises VmaeError when another process of this machine does."""
        try:
            with lock_part(self.locks, what, *part) if part else lock(self.locks, what):
                yield
        finally:
            if self.apart:
                self._leave()

    def _leave(self) -> None:
        """Take the folders away that nobody needs any more: other parts may be in work here, or wait to go on."""
        home = self.staging.parent
        with suppress(VmaeError, OSError), lock(self.locks, "build"):
            self.staging.rmdir()
        with suppress(OSError):
            home.rmdir()

    def clean_half_written(self) -> None:
        """What killed processes left half written. Only for who holds the whole: nobody else is writing then."""
        for folder in (self.locks, self.staging):
            for path in folder.glob(f"{TEMPORARY}*"):
                path.unlink(missing_ok=True)

    def forget_parts(self) -> None:
        """Locks of parts that were killed. Only for who holds the whole."""
        for path in self.locks.glob(f"{LOCK}-part-*"):
            path.unlink()

    def remove_staging(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)


def workspace_of(dest: StoragePath, staging: Path | None = None) -> Workspace:
    """The site of a destination. Staging lies in it, but for a store's in the node's own folder, or below `staging`.

    Raises MisuseError for a destination that can't be written to.
    """
    writable(dest)
    if isinstance(dest, Path) and staging is None:
        return Workspace(dest, dest, dest / STAGING)
    whole = dest.absolute() if isinstance(dest, Path) else dest
    # A name to know it by, and a sum that tells it from others of that name.
    name = f"{dest.name or 'root'}-{hashlib.sha256(str(whole).encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"
    home = (staging.absolute() if staging else node_folder("staging")) / name
    return Workspace(dest, dest if isinstance(dest, Path) else home, home / STAGING)
