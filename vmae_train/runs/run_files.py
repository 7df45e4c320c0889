"""Runs and checkpoints in buckets and on web servers: copied once to this machine, then read as local ones.

A copy is named by its URL and the versions of its files, so a changed checkpoint at the same URL is a new copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import DataError, MisuseError, NotFoundError
from vmae_data.format import NOT_JSON
from vmae_data.storage import (
    RemotePath,
    copy_here,
    exists,
    file_size,
    node_folder,
    read_bytes,
    read_range,
    refuse_special,
    storage_path,
)
from vmae_data.storage.remote import list_tree, stat
from vmae_train.runs.checksums import damaged_files, verify_files
from vmae_train.runs.layout import (
    BEST,
    CHECKPOINTS,
    DESCRIPTION,
    EMA_FILE,
    EVALUATION,
    LOG,
    MARKER,
    RUN,
    WEIGHTS,
    checkpoint_name,
    step_of,
)

__all__ = ["COMPLETE", "list_complete_checkpoints", "local_copy"]

LOG_TAIL_BYTES = 1 << 16  # the last logging steps of a run
# The only names of a store's listing that become names of local files.
COMPLETE = re.compile(rf"(step-\d{{9,18}})/{re.escape(MARKER)}")


def local_copy(path: str | Path) -> Path:
    """The local directory of a run or checkpoint. A URL is copied: of a run the last checkpoint and the best one.

    Raises NotFoundError or DataError for a URL of neither kind, StoreError, and MisuseError for a run on a web server
    whose last checkpoint can't be told.
    """
    url = storage_path(path)
    if isinstance(url, Path):
        refuse_special(url, folder=True)
        return url
    if exists(url / DESCRIPTION):
        return _copy_checkpoint(url)
    if not exists(url / RUN):
        raise NotFoundError(f"{url}: holds neither {DESCRIPTION} nor {RUN}. Name a run or the folder of a checkpoint")
    best = _best_name(url)
    complete = _probe_checkpoints(url, best) if url.is_web else list_complete_checkpoints(url)
    copies = {name: url / name for name in (RUN, LOG, EVALUATION, BEST)}
    for name in (*complete[-1:], best):
        if name in complete:
            copies |= _checkpoint_files(url / CHECKPOINTS / name, f"{CHECKPOINTS}/{name}/")
    return _copy(url, copies)


def list_complete_checkpoints(run: RemotePath) -> list[str]:
    """The names of a run's complete checkpoints, oldest first."""
    matches = (COMPLETE.fullmatch(path) for path in list_tree(run / CHECKPOINTS))
    return sorted((match[1] for match in matches if match), key=step_of)


def _probe_checkpoints(run: RemotePath, best: str | None) -> list[str]:
    """A web server has no listing. Look for the checkpoint of the log's last step (a finished run has it) and the best.

    Raises MisuseError if the last step has no checkpoint: an older one would be taken for the last.
    """
    last = _last_logged(run)
    names = sorted({name for name in (last, best) if name is not None}, key=step_of)
    complete = [name for name in names if exists(run / CHECKPOINTS / name / MARKER)]
    if last not in complete:
        example = run / CHECKPOINTS / (best or checkpoint_name(1000))
        raise MisuseError(
            f"{run}: is a run on a web server, which has no listing, and the last step in its {LOG} has no checkpoint. "
            f"Name a checkpoint, such as {example}{', the best' if best in complete else ''}"
        )
    return complete


def _last_logged(run: RemotePath) -> str | None:
    """The name that the checkpoint of the last logged step would have."""
    size = file_size(run / LOG)
    if not size:
        return None
    first = max(0, size - LOG_TAIL_BYTES)
    for raw in reversed(read_range(run / LOG, first, size - first).splitlines()):
        with suppress(*NOT_JSON):
            line = msgspec.json.decode(raw, type=_Step)
            if line.kind == "train":
                return checkpoint_name(line.step)
    return None


def _best_name(run: RemotePath) -> str | None:
    if not exists(run / BEST):
        return None
    try:
        return checkpoint_name(msgspec.json.decode(read_bytes(run / BEST), type=_Step).step)
    except NOT_JSON as error:
        raise DataError(f"{run / BEST}: can't be read ({error}). Name a checkpoint instead") from error


class _Step(msgspec.Struct):
    """What best.json and a log line have in common."""

    step: int
    kind: str = ""


def _copy_checkpoint(url: RemotePath) -> Path:
    run = url.parent.parent
    if url.parent.name != CHECKPOINTS or not exists(run / RUN):
        return _copy(url, _checkpoint_files(url, ""))
    # With its run.json, which knows the training's clips and masks.
    folder = f"{CHECKPOINTS}/{_safe_name(url.name)}"
    return _copy(run, {RUN: run / RUN, **_checkpoint_files(url, f"{folder}/")}) / folder


def _checkpoint_files(checkpoint: RemotePath, prefix: str) -> dict[str, RemotePath]:
    return {f"{prefix}{name}": checkpoint / name for name in (WEIGHTS, DESCRIPTION, EMA_FILE, MARKER)}


class _RemoteFile(NamedTuple):
    """A file to copy: its name in the local copy, and its size in bytes."""

    name: str
    file: RemotePath
    size: int


def _copy(url: RemotePath, copies: dict[str, RemotePath]) -> Path:
    """A local copy of the files that exist, by their names in it."""
    found = [(name, file, info) for name, file in copies.items() if (info := stat(file))]
    versions = [(name, info.size, info.etag) for name, _, info in found]
    present = [_RemoteFile(name, file, info.size) for name, file, info in found]
    digest = hashlib.sha256(repr((str(url), versions)).encode()).hexdigest()
    folder = node_folder(CHECKPOINTS) / digest[:32] / _safe_name(url.name)
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = {(folder / name).parent: file.parent for name, file, _ in present if file.name == MARKER}
    with _locked(folder.parent / ".lock"):
        _copy_missing(folder, present)
        if damaged := [path / name for path, url in checkpoints.items() for name in damaged_files(path, where=url)]:
            for path in damaged:
                path.unlink()
            _copy_missing(folder, present)  # once more: the way here, or this machine's disk, may have damaged them
            for path, checkpoint in checkpoints.items():
                verify_files(path, where=checkpoint)
    return folder


def _copy_missing(folder: Path, present: Sequence[_RemoteFile]) -> None:
    for name, file, size in present:
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            path.parent.mkdir(parents=True, exist_ok=True)
            copy_here(file, path)


def _safe_name(name: str) -> str:
    """A name that can only be a file name."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name) or "run"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine copies, the others wait for it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
