"""Checkpoints and runs that lie elsewhere: copied once to this machine, then read as if they were of it.

A copy is named by its URL and by the versions of its files, so another checkpoint under the same URL is another copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import DataError, MisuseError, NotThereError
from vmae_data.format import NOT_JSON
from vmae_data.storage import (
    RemotePath,
    copy_here,
    exists,
    file_size,
    node_folder,
    read_bytes,
    read_range,
    storage_path,
)
from vmae_data.storage.remote import list_tree, stat
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
)

__all__ = ["local_copy", "whole_checkpoints"]

LOG_TAIL_BYTES = 1 << 16  # the last logging steps of a run
# The only names of a store's listing that become names of files here.
_WHOLE = re.compile(rf"(step-\d{{9,18}})/{re.escape(MARKER)}")


class _Wanted(NamedTuple):
    """A file elsewhere, and where its copy lies below the copy's folder."""

    place: RemotePath
    path: str


def local_copy(path: str | Path) -> Path:
    """The local folder of a run, or of a checkpoint, that a path or URL names. Of a run the last checkpoint comes
    along, and the best where one is named.

    Raises NotThereError, DataError for a URL that names neither, StoreError, MisuseError for a run on a web server
    whose last checkpoint nothing names.
    """
    place = storage_path(path)
    if isinstance(place, Path):
        return place
    if exists(place / DESCRIPTION):
        return _fetch_checkpoint(place)
    if not exists(place / RUN):
        raise NotThereError(
            f"{place}: holds neither {DESCRIPTION} nor {RUN}; name a run, or the folder of a checkpoint"
        )
    wanted = [_Wanted(place / name, name) for name in (RUN, LOG, EVALUATION, BEST)]
    best = _best_name(place)
    whole = _told_checkpoints(place, best) if place.is_web else whole_checkpoints(place)
    for name in dict.fromkeys(name for name in (*whole[-1:], best) if name in whole):
        wanted += _files_of(place / CHECKPOINTS / name, f"{CHECKPOINTS}/{name}/")
    return _copied(place, wanted)


def whole_checkpoints(run: RemotePath) -> list[str]:
    """The names of a run's checkpoints that were written to their end, oldest first."""
    found = (_WHOLE.fullmatch(path) for path in list_tree(run / CHECKPOINTS))
    return sorted((match[1] for match in found if match), key=_step_of)


def _told_checkpoints(run: RemotePath, best: str | None) -> list[str]:
    """Of a run on a web server, which has no listing: the checkpoint of its log's last step (a finished run has it), and the best.

    Raises MisuseError where that of the last step is not there: another one would be taken for the last.
    """
    last = _last_logged(run)
    told = sorted({name for name in (last, best) if name is not None}, key=_step_of)
    whole = [name for name in told if exists(run / CHECKPOINTS / name / MARKER)]
    if last not in whole:
        example = run / CHECKPOINTS / (best or checkpoint_name(1000))
        raise MisuseError(
            f"{run}: is a run on a web server, which has no listing, and of the last step in its {LOG} there is no checkpoint; "
            f"name one, such as {example}{', the best' if best in whole else ''}"
        )
    return whole


def _last_logged(run: RemotePath) -> str | None:
    """The checkpoint that the last logging step would have."""
    size = file_size(run / LOG)
    if not size:
        return None
    first = max(0, size - LOG_TAIL_BYTES)
    for raw in reversed(read_range(run / LOG, first, size - first).splitlines()):
        with suppress(*NOT_JSON):
            line = msgspec.json.decode(raw, type=_Line)
            if line.kind == "train":
                return checkpoint_name(line.step)
    return None


def _best_name(run: RemotePath) -> str | None:
    """The name of the best checkpoint, where one was found."""
    if not exists(run / BEST):
        return None
    try:
        return checkpoint_name(msgspec.json.decode(read_bytes(run / BEST), type=_Named).step)
    except NOT_JSON as error:
        raise DataError(f"{run / BEST}: can't be read ({error}); name a checkpoint instead") from error


def _step_of(name: str) -> int:
    return int(name.removeprefix("step-"))


class _Named(msgspec.Struct):
    step: int


class _Line(msgspec.Struct):
    kind: str
    step: int


def _fetch_checkpoint(place: RemotePath) -> Path:
    if place.parent.name != CHECKPOINTS or not exists(place.parent.parent / RUN):
        return _copied(place, _files_of(place, ""))
    # With its run beside it, as it lies there: that knows the clips and the masks of the training.
    wanted = [_Wanted(place.parent.parent / RUN, RUN), *_files_of(place, f"{CHECKPOINTS}/{_plain(place.name)}/")]
    return _copied(place.parent.parent, wanted) / CHECKPOINTS / _plain(place.name)


def _files_of(checkpoint: RemotePath, prefix: str) -> list[_Wanted]:
    return [_Wanted(checkpoint / name, f"{prefix}{name}") for name in (WEIGHTS, DESCRIPTION, EMA_FILE, MARKER)]


def _copied(place: RemotePath, wanted: list[_Wanted]) -> Path:
    """The local copy of some files; those that are not there are left out."""
    there = [(one, found) for one in wanted if (found := stat(one.place))]
    versions = [(one.path, found.size, found.etag) for one, found in there]
    digest = hashlib.sha256(repr((str(place), versions)).encode()).hexdigest()
    folder = node_folder(CHECKPOINTS) / digest[:32] / _plain(place.name)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder.parent / ".lock"):
        for one, found in there:
            path = folder / one.path
            if not path.is_file() or path.stat().st_size != found.size:
                path.parent.mkdir(parents=True, exist_ok=True)
                copy_here(one.place, path)
    return folder


def _plain(name: str) -> str:
    """A name that is one of a file and of nothing else."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name) or "run"


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Of the processes of a machine one copies, and the others wait for it."""
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
