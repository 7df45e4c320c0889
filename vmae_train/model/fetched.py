"""Checkpoints and runs that lie elsewhere: copied once to this machine, then read as if they were of it.

A copy is named by its URL and by the versions of its files, so another checkpoint under the same URL is another copy.
"""

from __future__ import annotations

import fcntl
import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.errors import DataError, NotThereError
from vmae_data.store import RemotePlace, copy_here, exists, node_folder, place_of, read_bytes
from vmae_data.store.remote import list_tree, stat
from vmae_train.model.ema import EMA_FILE

__all__ = [
    "BEST",
    "CHECKPOINTS",
    "DESCRIPTION",
    "EVALUATION",
    "LOG",
    "MARKER",
    "RUN",
    "WEIGHTS",
    "checkpoint_name",
    "fetched",
    "whole_checkpoints",
]

CHECKPOINTS = "checkpoints"
WEIGHTS, DESCRIPTION, MARKER = "model.safetensors", "model.json", "state.json"
RUN, LOG, EVALUATION, BEST = "run.json", "log.jsonl", "evaluation.json", "best.json"
# The only names of a store's listing that become names of files here.
_WHOLE = re.compile(rf"(step-\d{{9,18}})/{re.escape(MARKER)}")


class _Wanted(NamedTuple):
    """A file elsewhere, and where its copy lies below the copy's folder."""

    place: RemotePlace
    path: str


def checkpoint_name(step: int) -> str:
    return f"step-{step:09d}"


def fetched(path: str | Path) -> Path:
    """The local folder of a run, or of a checkpoint, that a path or URL names. Of a run the last checkpoint comes
    along, and the best where one is named.

    Raises NotThereError, DataError for a URL that names neither, StoreError.
    """
    place = place_of(path)
    if isinstance(place, Path):
        return place
    if exists(place / DESCRIPTION):
        return _fetch_checkpoint(place)
    if not exists(place / RUN):
        raise NotThereError(
            f"{place}: holds neither {DESCRIPTION} nor {RUN}; name a run, or the folder of a checkpoint"
        )
    wanted = [_Wanted(place / name, name) for name in (RUN, LOG, EVALUATION, BEST)]
    if place.is_web:
        raise DataError(f"{place}: is a run on a web server, which has no listing; name one of its checkpoints")
    if whole := whole_checkpoints(place):
        for name in dict.fromkeys((whole[-1], *_best_of(place, whole))):
            wanted += _files_of(place / CHECKPOINTS / name, f"{CHECKPOINTS}/{name}/")
    return _copied(place, wanted)


def whole_checkpoints(run: RemotePlace) -> list[str]:
    """The names of a run's checkpoints that were written to their end, oldest first."""
    found = (_WHOLE.fullmatch(listed.path) for listed in list_tree(run / CHECKPOINTS))
    return sorted((match[1] for match in found if match), key=lambda name: int(name.removeprefix("step-")))


def _best_of(run: RemotePlace, whole: list[str]) -> list[str]:
    """The name of the best checkpoint, where it is among the whole ones."""
    if not exists(run / BEST):
        return []
    try:
        name = checkpoint_name(msgspec.json.decode(read_bytes(run / BEST), type=_Named).step)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DataError(f"{run / BEST}: can't be read ({error}); name a checkpoint instead") from error
    return [name] if name in whole else []


class _Named(msgspec.Struct):
    step: int


def _fetch_checkpoint(place: RemotePlace) -> Path:
    if place.parent.name != CHECKPOINTS or not exists(place.parent.parent / RUN):
        return _copied(place, _files_of(place, ""))
    # With its run beside it, as it lies there: that knows the clips and the masks of the training.
    wanted = [_Wanted(place.parent.parent / RUN, RUN), *_files_of(place, f"{CHECKPOINTS}/{_plain(place.name)}/")]
    return _copied(place.parent.parent, wanted) / CHECKPOINTS / _plain(place.name)


def _files_of(checkpoint: RemotePlace, prefix: str) -> list[_Wanted]:
    return [_Wanted(checkpoint / name, f"{prefix}{name}") for name in (WEIGHTS, DESCRIPTION, EMA_FILE, MARKER)]


def _copied(place: RemotePlace, wanted: list[_Wanted]) -> Path:
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
