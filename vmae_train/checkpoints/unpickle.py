"""Checkpoints that are pickles, read without running anything of theirs.

torch's own weights-only reader builds tensors and plain containers. The names that VideoMAE's and DeepSpeed's
checkpoints bring beside them (an argparse.Namespace, loss scalers, NumPy numbers) become inert records: the class or
function of that name is never imported. Any other name is refused before the file is unpickled.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from vmae_data.errors import DataError

__all__ = ["Inert", "read_pickle"]

_INERT = re.compile(r"argparse\.Namespace|deepspeed\..+|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\..+)")
# A file of before torch 1.6 can't be asked for its names beforehand.
_OLD_FILES_NAMES = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy.dtype")


class Inert:
    """Stands for an object whose class is not run; keeps the fields that were stored."""

    fields: dict[str, Any]

    def __new__(cls, *_: object) -> Inert:
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.fields.update({name: value for name, value in state.items() if isinstance(name, str)})


def read_pickle(path: Path) -> Any:
    """What torch.save wrote: tensors on the CPU, containers, numbers, text, and `Inert` records.

    Tensors of a new file stay on disk until they are read. Raises DataError naming what is not allowed to run.
    """
    zipped = zipfile.is_zipfile(path)
    stubs = [(type("Inert", (Inert,), {}), name) for name in _names(path, zipped)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(stubs)):
            warnings.simplefilter("ignore")  # of the protocol's number
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped or None)
    except FileNotFoundError:
        raise
    except Exception as error:  # broken bytes can raise anything here
        raise _refusal(path, error) from error


def _names(path: Path, zipped: bool) -> list[str]:
    """The names in a file that become inert. Raises DataError for a name that is not known to be harmless."""
    if not zipped:
        return list(_OLD_FILES_NAMES)
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:
        raise _refusal(path, error) from error
    for name in names:
        if not _INERT.fullmatch(name):
            raise DataError(
                f"{path}: names {name}, which is not loaded from a checkpoint because it could run anything; "
                "save the weights alone, a dict of tensors"
            )
    return names


def _refusal(path: Path, error: Exception) -> DataError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return DataError(
            f"{path}: names {named[1]}, which is not loaded from a checkpoint because it could run anything; "
            "save the weights alone, a dict of tensors"
        )
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: can't be read ({error.strerror}); check the file")
    return DataError(f"{path}: not a readable checkpoint: {_met(path)}")


# The number that torch.save wrote first before it wrote zip files.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def _met(path: Path) -> str:
    """What the file is instead, and what to do. torch's own words advise to let a checkpoint run what it will."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "it is empty; copy it again"
    if head.startswith((b"PK", _OLD_MAGIC)):
        return "it is damaged, cut off, or was not written by torch.save; copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if head.startswith(b"\x80"):
        return "it is a pickle that torch.save did not write; save the weights with torch.save, a dict of tensors"
    text = head.decode("utf-8", errors="replace").strip()
    if text and text.isascii() and all(mark.isprintable() or mark.isspace() for mark in text):
        return f"it is text that begins with {text.splitlines()[0][:30]!r}; take a file that torch.save wrote"
    return "it is nothing that torch.save writes; take another file"
