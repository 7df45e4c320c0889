"""A checkpoint that is a pickle → its tensors and plain values, without running any of its code.

torch's weights-only reader builds tensors and plain containers. VideoMAE's and DeepSpeed's checkpoints also name an
argparse.Namespace, loss scalers and NumPy numbers. These become inert objects: the class or function is never
imported. A file with any other name is refused before it is unpickled.
"""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from vmae_data.errors import DataError

__all__ = ["InertObject", "read_pickle"]

_HARMLESS = re.compile(r"argparse\.Namespace|deepspeed\..+|numpy\.(_?core\.multiarray\.scalar|dtype|dtypes\..+)")
# The names in a file older than torch 1.6 can't be listed before it is unpickled.
_HARMLESS_IN_OLD_FILES = ("argparse.Namespace", "numpy.core.multiarray.scalar", "numpy.dtype")
# torch.save began its files with this number before it wrote zip files.
_OLD_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class InertObject:
    """Replaces an object whose class is not imported; keeps its stored fields."""

    fields: dict[str, Any]

    def __new__(cls, *_: object) -> InertObject:
        made = super().__new__(cls)
        made.fields = {}
        return made

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.fields.update({name: value for name, value in state.items() if isinstance(name, str)})


def read_pickle(path: Path) -> Any:
    """The content of a file of torch.save: tensors on the CPU, containers, numbers, strings and `InertObject`s.

    Tensors of a zip file stay on disk until they are used. Raises DataError naming what is not allowed to run.
    """
    zipped = zipfile.is_zipfile(path)
    stubs = [(type("InertObject", (InertObject,), {}), name) for name in _harmless_names(path, zipped)]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(stubs)):
            warnings.simplefilter("ignore")  # about the pickle protocol
            return torch.load(str(path), map_location="cpu", weights_only=True, mmap=zipped or None)
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged bytes can raise anything here
        raise _unreadable(path, error) from error


def _harmless_names(path: Path, zipped: bool) -> list[str]:
    """The names in a file that become inert objects. Raises DataError for a name that is not known to be harmless."""
    if not zipped:
        return list(_HARMLESS_IN_OLD_FILES)
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception as error:
        raise _unreadable(path, error) from error
    for name in names:
        if not _HARMLESS.fullmatch(name):
            raise _unsafe(path, name)
    return names


def _unsafe(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: names {name}, which is not loaded because it could run code. "
        "Save only the weights, as a dict of tensors"
    )


def _unreadable(path: Path, error: Exception) -> DataError:
    named = re.search(r"GLOBAL (\S+)", str(error))
    if named:
        return _unsafe(path, named[1])
    if isinstance(error, OSError) and error.strerror:
        return DataError(f"{path}: can't be read ({error.strerror}). Check the file")
    return DataError(f"{path}: not a readable checkpoint. {_explanation(path)}")


def _explanation(path: Path) -> str:
    """What the file is instead, and the next step. torch's own message advises to turn the safety off."""
    with path.open("rb") as file:
        head = file.read(4096)
    if not head:
        return "The file is empty. Copy it again"
    if head.startswith((b"PK", _OLD_MAGIC)):
        return "The file is damaged, truncated, or not from torch.save. Copy it again"
    if head.startswith(b"version https://git-lfs"):
        return "The file is a Git LFS pointer. Run `git lfs pull` to fetch the weights"
    if head.startswith(b"\x80"):
        return "The file is a pickle that torch.save did not write. Save a dict of tensors with torch.save"
    text = head.decode("utf-8", errors="replace").strip()
    if text and text.isascii() and all(c.isprintable() or c.isspace() for c in text):
        return f"The file is text that begins with {text.splitlines()[0][:30]!r}. Use a file from torch.save"
    return "The file is not from torch.save. Use another file"
