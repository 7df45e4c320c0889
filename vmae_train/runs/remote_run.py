"""A run whose --out is a bucket: it works in a folder of this machine, and what is finished is published.

A checkpoint's state.json goes last and is taken away first: a killed upload or removal leaves none that looks whole.
What lies in the bucket is the run. A local folder is a copy, and is left behind where it is one of another run.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from vmae_data.errors import DataError, MisuseError, NotThereError, VmaeError
from vmae_data.format import INDEX, NOT_JSON
from vmae_data.storage import (
    TEMPORARY,
    RemotePath,
    StoragePath,
    commit_bytes,
    copy_here,
    exists,
    list_names,
    node_folder,
    read_bytes,
    remove,
    storage_path,
    sync_folder,
)
from vmae_data.storage.remote import list_tree, put
from vmae_train.runs.best import read_best
from vmae_train.runs.layout import (
    BEST,
    CHECKPOINTS,
    DESCRIPTION,
    EMA_FILE,
    EVALUATION,
    LOG,
    MARKER,
    OPTIMIZER,
    RUN,
    WEIGHTS,
    newest_checkpoint,
)
from vmae_train.runs.run_files import whole_checkpoints

__all__ = ["RemoteRun"]

PUBLISHED = "published.json"
# In the order in which they are sent.
_FILES = (WEIGHTS, DESCRIPTION, OPTIMIZER, EMA_FILE, MARKER)


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """Which run lies here, and which training may write it: the one that began last."""

    id: str
    holder: str


class RemoteRun:
    """A run's local folder and the place where it is published; nothing is, where --out is a folder.

    Only the main process publishes. Raises StoreError where a store does not answer in time; what was saved is kept in
    `folder`, and published when the run goes on.
    """

    def __init__(self, out: str | Path, scratch: Path | None = None) -> None:
        """Raises MisuseError for a place that no run can be published in, and for a folder of shards."""
        place = storage_path(out)
        self.shown = str(out)
        self._place: RemotePath | None = None
        self._published: Published | None = None
        if isinstance(place, Path):
            if scratch is not None:
                raise MisuseError(
                    f"--scratch {scratch}: is for runs in a bucket; --out {out} is a folder, leave it out"
                )
            self.folder = place
            self._check_no_shards()
            return
        if place.is_web:
            raise MisuseError(f"--out {out}: a web server takes no files; name a folder or a bucket")
        if not place.path:
            raise MisuseError(f"--out {out}: is a whole bucket; name a folder in it, as in {out}/run")
        self._place = place
        # Below a folder that is named, not in it: what is left behind there may be removed.
        self.folder = (scratch or node_folder("runs")) / hashlib.sha256(str(place).encode()).hexdigest()[:32]

    def _check_no_shards(self) -> None:
        """Raises MisuseError where data lie that a run would be mixed with."""
        place = self._place or self.folder
        if exists(place / RUN):
            return
        tar = None if self._place else next(self.folder.glob("shard-*.tar"), None)
        if found := INDEX if exists(place / INDEX) else tar and tar.name:
            raise MisuseError(
                f"--out {self.shown}: is a folder of shards (it holds {found}); name a new folder for the run"
            )

    def pull(self, *, newer_stays: bool = True) -> None:
        """Bring the local folder to where the run is: its last whole checkpoint, log and scores.

        A local checkpoint of the same run that is newer stays, where the caller is going to publish it: it was saved, and
        could not be published then.
        """
        if self._place is None:
            return
        there = self._read_published()
        if there is None or there.id != self._local_id():
            self._leave_behind()
        names = self._copy_files((RUN,))
        if RUN not in names:
            self._check_no_shards()
            return
        if there is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            commit_bytes(self.folder / PUBLISHED, msgspec.json.encode(there))
        whole = whole_checkpoints(self._place)
        local = newest_checkpoint(self.folder)
        if local is not None and newer_stays and (not whole or whole[-1] < local.name):
            return
        if local is not None and whole and whole[-1] == local.name and self._is_alike(local):
            return
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)
        if whole:
            self._fetch(whole[-1])
        self._copy_files((LOG, EVALUATION, BEST))

    def begin(self) -> None:
        """Take the run over, and publish what it is made of and what could not be published before.

        Another training that writes here finds out when it next publishes, and stops.
        """
        if self._place is None:
            return
        self.pull()  # what another may have published since it was pulled
        before = self._read_published()
        self._published = Published(id=before.id if before else secrets.token_hex(16), holder=secrets.token_hex(16))
        data = msgspec.json.encode(self._published)
        commit_bytes(self._place / PUBLISHED, data)
        commit_bytes(self.folder / PUBLISHED, data)

    def shown_path(self, path: Path) -> str:
        """A path in the local folder as it is found where the run is published."""
        return str(path) if self._place is None else str(self._place / path.relative_to(self.folder).as_posix())

    def publish(self, *names: str) -> None:
        """Send files that lie right in the run's folder, where they are there."""
        if self._place is None:
            return
        self._refuse_other_holder()
        for name in names:
            if (self.folder / name).is_file():
                put(self._place / name, self.folder / name)

    def publish_checkpoint(self, keep: int) -> None:
        """Send the newest checkpoint, the log before it, and take away all but the last `keep`."""
        checkpoint = newest_checkpoint(self.folder)
        if self._place is None or checkpoint is None:
            return
        self.publish(LOG)
        if not self._is_alike(checkpoint):
            there = self._place / CHECKPOINTS / checkpoint.name
            remove(there / MARKER)
            for name in _FILES:
                if name != EMA_FILE or (checkpoint / name).is_file():
                    put(there / name, checkpoint / name)
        self._remove_old(keep)

    def _remove_old(self, keep: int) -> None:
        assert self._place is not None
        best = read_best(self.folder)
        kept = [*whole_checkpoints(self._place)[-keep:], *([best.name] if best else [])]
        found: dict[str, list[str]] = {}
        for path in list_tree(self._place / CHECKPOINTS):
            name, _, file = path.partition("/")
            if file in _FILES and name.startswith("step-") and name not in kept:
                found.setdefault(name, []).append(file)
        for name, files in found.items():
            for file in sorted(files, key=_FILES.index, reverse=True):  # the marker first
                remove(self._place / CHECKPOINTS / name / file)

    def _read_published(self) -> Published | None:
        assert self._place is not None
        return _decode_published(self._place / PUBLISHED)

    def _local_id(self) -> str:
        with suppress(DataError):
            if (found := _decode_published(self.folder / PUBLISHED)) is not None:
                return found.id
        return ""

    def _refuse_other_holder(self) -> None:
        if self._read_published() != self._published:
            raise VmaeError(
                f"{self.shown}: another training has taken this run over; the last checkpoint of this one is kept in "
                f"{self.folder}; stop one of the two"
            )

    def _leave_behind(self) -> None:
        """Remove the local copy of a run that is not the one at the place any more. Raises VmaeError."""
        for name in (PUBLISHED, RUN, LOG, EVALUATION, BEST):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder / CHECKPOINTS, ignore_errors=True)

    def _is_alike(self, checkpoint: Path) -> bool:
        """Whether a local checkpoint is the one that is published under its name."""
        assert self._place is not None
        there = self._place / CHECKPOINTS / checkpoint.name
        sizes = list_names(there)
        if any(
            sizes.get(name) != (checkpoint / name).stat().st_size for name in _FILES if (checkpoint / name).exists()
        ):
            return False
        return read_bytes(there / MARKER) == (checkpoint / MARKER).read_bytes()

    def _copy_files(self, names: tuple[str, ...]) -> list[str]:
        """Copy files of the run here, and take those away that are not there; gives those that were."""
        assert self._place is not None
        found = [name for name in names if exists(self._place / name)]
        for name in names:
            if name in found:
                self.folder.mkdir(parents=True, exist_ok=True)
                copy_here(self._place / name, self.folder / name)
            else:
                (self.folder / name).unlink(missing_ok=True)
        return found

    def _fetch(self, name: str) -> None:
        """Copy a checkpoint here, whole or not at all."""
        assert self._place is not None
        folder = self.folder / CHECKPOINTS
        temporary = folder / f"{TEMPORARY}{name}"
        for leftover in (temporary, folder / name):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in _FILES:
            try:
                copy_here(self._place / CHECKPOINTS / name / file, temporary / file)
            except NotThereError as error:
                if file == EMA_FILE:  # of a run that keeps no mean of its weights
                    continue
                raise DataError(
                    f"{self._place / CHECKPOINTS / name}: lacks {file}; remove its {MARKER} to go on from the one before"
                ) from error
        temporary.rename(folder / name)
        sync_folder(folder)


def _decode_published(place: StoragePath) -> Published | None:
    try:
        return msgspec.json.decode(read_bytes(place), type=Published)
    except NotThereError:
        return None
    except NOT_JSON as error:
        raise DataError(
            f"{place}: is not what a training wrote ({error}); remove it to go on from what is there"
        ) from error
