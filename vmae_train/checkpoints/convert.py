"""`vmae-train convert`: a model from any layout into any other, weights bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
from torch import Tensor

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.storage import sync_folder, temporary_beside
from vmae_train.checkpoints.description import ModelFile
from vmae_train.checkpoints.huggingface import write_hf
from vmae_train.checkpoints.load import read_model, write_native
from vmae_train.checkpoints.official import write_official

__all__ = ["ConvertSpec", "Layout", "convert", "read_class_names"]

Layout = Literal["native", "official", "hf"]


class ConvertSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `--set model.…` gives: fields of Geometry, and `position_resize`."""

    model: dict[str, Any] = {}


def convert(
    source: str, dest: Path, *, to: Layout, spec: ConvertSpec | None = None, classes: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Write the model of `source` to `dest`, whole or not at all; returns what is worth knowing of it.

    `dest` is a file for official, a new folder for the others.
    Raises DataError for what can't be read, MisuseError for what the layout can't hold or a `dest` that is there.
    """
    if dest.exists():
        raise MisuseError(f"{dest}: is there already; name a new one")
    if not dest.absolute().parent.is_dir():
        raise MisuseError(f"{dest}: its folder is not there; make it first")
    given = dict((spec or ConvertSpec()).model)
    resize = given.pop("position_resize", "recompute")
    read = read_model(source, given, classes=classes, position_resize=resize)
    model = read.build()  # refuses weights that are not the description's
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    remarks = read.remarks + _not_finite(state)
    if to == "official":
        return remarks + write_official(dest, read.description, state)
    return remarks + _write_folder(dest, read.description, state, _WRITERS[to])


def _not_finite(state: dict[str, Tensor]) -> tuple[str, ...]:
    names = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if not names:
        return ()
    listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return (f"NaN or inf in {len(names)} of {len(state)} weights ({listed}): its answers are none",)


_Writer = Callable[[Path, ModelFile, dict[str, Tensor]], "tuple[str, ...] | None"]
_WRITERS: dict[str, _Writer] = {"native": write_native, "hf": write_hf}


def _write_folder(dest: Path, description: ModelFile, state: dict[str, Tensor], write: _Writer) -> tuple[str, ...]:
    """A folder appears under its name when all of it is there."""
    temporary = temporary_beside(dest)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        remarks = write(temporary, description, state) or ()
        temporary.rename(dest)
    except VmaeError as error:  # speaks of the folder that goes again
        raise type(error)(str(error).replace(str(temporary), str(dest))) from error
    except OSError as error:
        raise VmaeError(
            f"{dest}: can't be written ({error.strerror or error}); check the folder and its room"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(dest.absolute().parent)
    return remarks


def read_class_names(path: Path) -> tuple[str, ...]:
    """A name a line, in the order of the head's outputs. Raises DataError."""
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: can't be read ({error}); wanted a class name a line") from error
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: names {twice!r} twice; every class needs a name of its own")
    return names
