"""A run's directory on this machine and, if --out is a bucket, its copy there.

A run in a bucket works in a local directory, and uploads what is complete. A checkpoint's state.json is uploaded last
and removed first, so an upload or removal that is killed leaves no checkpoint that looks complete.
The bucket holds the run. The local directory is a copy: it is discarded if it belongs to another run.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from vmae_data.errors import DataError, MisuseError, NotFoundError, VmaeError
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
from vmae_train.runs.checksums import damaged_files, verify_files
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
from vmae_train.runs.run_files import list_complete_checkpoints

__all__ = ["RunDirectory"]

PUBLISHED = "published.json"
# In the order of their upload.
_CHECKPOINT_FILES = (WEIGHTS, DESCRIPTION, OPTIMIZER, EMA_FILE, MARKER)
_ADVICE = f"Remove its {MARKER} to resume from the checkpoint before"


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """Which run a bucket holds, and which training may write it: the one that started last."""

    id: str
    holder: str


class RunDirectory:
    """`path` is the local directory, `name` is --out as the user gave it. Only the main process uploads.

    Methods raise StoreError if a store does not answer in time. What was saved stays in `path`, and is uploaded when the
    run resumes. If --out is a local folder, download and upload do nothing.
    """

    def __init__(self, out: str | Path, scratch: Path | None = None) -> None:
        """Raises MisuseError for an --out that can't hold a run, and for a folder of shards."""
        remote = storage_path(out)
        self.name = str(out)
        self._remote: RemotePath | None = None
        self._published: Published | None = None
        if isinstance(remote, Path):
            if scratch is not None:
                raise MisuseError(
                    f"--scratch {scratch}: is for runs in a bucket, and --out {out} is a folder. Remove it"
                )
            self.path = remote
            self._refuse_shards()
            return
        if remote.is_web:
            raise MisuseError(f"--out {out}: a web server takes no files. Name a folder or a bucket")
        if not remote.path:
            raise MisuseError(f"--out {out}: is a whole bucket. Name a folder in it, such as {out}/run")
        self._remote = remote
        # Below the given scratch folder, not the folder itself: a copy of another run may be removed.
        self.path = (scratch or node_folder("runs")) / hashlib.sha256(str(remote).encode()).hexdigest()[:32]

    def _refuse_shards(self) -> None:
        out = self._remote or self.path
        if exists(out / RUN):
            return
        tar = None if self._remote else next(self.path.glob("shard-*.tar"), None)
        if data := INDEX if exists(out / INDEX) else tar and tar.name:
            raise MisuseError(
                f"--out {self.name}: is a folder of shards (it holds {data}). Name a new folder for the run"
            )

    def download(self, *, keep_newer: bool = True) -> None:
        """Copy the run's last complete checkpoint, log and scores from the bucket.

        `keep_newer`: a local checkpoint of the same run that is newer stays. It was saved, but could not be uploaded.
        """
        if self._remote is None:
            return
        published = self._read_published()
        if published is None or published.id != self._local_id():
            self._discard_local()
        if RUN not in self._download_files((RUN,)):
            self._refuse_shards()
            return
        if published is not None:
            self.path.mkdir(parents=True, exist_ok=True)
            commit_bytes(self.path / PUBLISHED, msgspec.json.encode(published))
        complete = list_complete_checkpoints(self._remote)
        local = newest_checkpoint(self.path)
        if local is not None and keep_newer and (not complete or complete[-1] < local.name):
            return
        if local is not None and complete and complete[-1] == local.name and self._is_uploaded(local):
            return
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)
        if complete:
            self._download_checkpoint(complete[-1])
        self._download_files((LOG, EVALUATION, BEST))

    def claim(self) -> None:
        """Become the only training that may write this run. Another one stops at its next upload."""
        if self._remote is None:
            return
        self.download()  # what another training has uploaded since
        before = self._read_published()
        self._published = Published(id=before.id if before else secrets.token_hex(16), holder=secrets.token_hex(16))
        data = msgspec.json.encode(self._published)
        commit_bytes(self._remote / PUBLISHED, data)
        commit_bytes(self.path / PUBLISHED, data)

    def display_path(self, path: Path) -> str:
        """A path in the local directory, as the user finds it: in the bucket, if the run is in one."""
        return str(path) if self._remote is None else str(self._remote / path.relative_to(self.path).as_posix())

    def upload(self, *names: str) -> None:
        """Upload files of the run's top level, if they exist."""
        if self._remote is None:
            return
        self._refuse_other_holder()
        for name in names:
            if (self.path / name).is_file():
                put(self._remote / name, self.path / name)

    def upload_checkpoint(self, keep: int) -> None:
        """Upload the log and the newest checkpoint, then remove all but the last `keep` and the best."""
        checkpoint = newest_checkpoint(self.path)
        if self._remote is None or checkpoint is None:
            return
        self.upload(LOG)
        if not self._is_uploaded(checkpoint):
            target = self._remote / CHECKPOINTS / checkpoint.name
            remove(target / MARKER)
            for name in _CHECKPOINT_FILES:
                if name != EMA_FILE or (checkpoint / name).is_file():
                    put(target / name, checkpoint / name)
        self._remove_old(keep)

    def _remove_old(self, keep: int) -> None:
        assert self._remote is not None
        best = read_best(self.path)
        kept = [*list_complete_checkpoints(self._remote)[-keep:], *([best.name] if best else [])]
        old: dict[str, list[str]] = {}
        for path in list_tree(self._remote / CHECKPOINTS):
            name, _, file = path.partition("/")
            if file in _CHECKPOINT_FILES and name.startswith("step-") and name not in kept:
                old.setdefault(name, []).append(file)
        for name, files in old.items():
            for file in sorted(files, key=_CHECKPOINT_FILES.index, reverse=True):  # the marker first
                remove(self._remote / CHECKPOINTS / name / file)

    def _read_published(self) -> Published | None:
        assert self._remote is not None
        return _decode_published(self._remote / PUBLISHED)

    def _local_id(self) -> str:
        with suppress(DataError):
            if (published := _decode_published(self.path / PUBLISHED)) is not None:
                return published.id
        return ""

    def _refuse_other_holder(self) -> None:
        if self._read_published() != self._published:
            raise VmaeError(
                f"{self.name}: another process has taken over this run. The last checkpoint of this one is in "
                f"{self.path}. Stop one of the two"
            )

    def _discard_local(self) -> None:
        """Remove the local copy: the bucket holds another run."""
        for name in (PUBLISHED, RUN, LOG, EVALUATION, BEST):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / CHECKPOINTS, ignore_errors=True)

    def _is_uploaded(self, checkpoint: Path) -> bool:
        """Whether the bucket has this checkpoint: same sizes, same state.json."""
        assert self._remote is not None
        target = self._remote / CHECKPOINTS / checkpoint.name
        sizes = list_names(target)
        local = [name for name in _CHECKPOINT_FILES if (checkpoint / name).exists()]
        if any(sizes.get(name) != (checkpoint / name).stat().st_size for name in local):
            return False
        return read_bytes(target / MARKER) == (checkpoint / MARKER).read_bytes()

    def _download_files(self, names: tuple[str, ...]) -> list[str]:
        """Copy files from the bucket, and remove local ones that the bucket lacks. Returns the copied names."""
        assert self._remote is not None
        present = [name for name in names if exists(self._remote / name)]
        for name in names:
            if name in present:
                self.path.mkdir(parents=True, exist_ok=True)
                copy_here(self._remote / name, self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)
        return present

    def _download_checkpoint(self, name: str) -> None:
        """Copy a checkpoint from the bucket: completely, or not at all. A copy that is damaged is copied once more."""
        assert self._remote is not None
        folder, source = self.path / CHECKPOINTS, self._remote / CHECKPOINTS / name
        temporary = folder / f"{TEMPORARY}{name}"
        for leftover in (temporary, folder / name):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        for file in _CHECKPOINT_FILES:
            _download_file(source, temporary, file)
        for file in damaged_files(temporary, where=source):
            _download_file(source, temporary, file)
        verify_files(temporary, where=source, advice=_ADVICE)
        temporary.rename(folder / name)
        sync_folder(folder)


def _download_file(checkpoint: RemotePath, folder: Path, name: str) -> None:
    try:
        copy_here(checkpoint / name, folder / name)
    except NotFoundError as error:
        if name != EMA_FILE:  # not every run keeps a moving average
            raise DataError(f"{checkpoint}: lacks {name}. {_ADVICE}") from error


def _decode_published(path: StoragePath) -> Published | None:
    try:
        return msgspec.json.decode(read_bytes(path), type=Published)
    except NotFoundError:
        return None
    except NOT_JSON as error:
        raise DataError(
            f"{path}: was not written by a training ({error}). Remove it to resume from the bucket"
        ) from error
