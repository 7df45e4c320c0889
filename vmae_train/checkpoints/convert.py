"""`vmae-train convert`: a model in any format → any other format, weights bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.names import first_names
from vmae_data.storage import read_bytes, sync_folder, temporary_path
from vmae_train.checkpoints.card_parts import origin_of
from vmae_train.checkpoints.huggingface import write_hf
from vmae_train.checkpoints.load import read_model
from vmae_train.checkpoints.model_card import model_card
from vmae_train.checkpoints.native import write_native
from vmae_train.checkpoints.official import write_official

__all__ = ["ConvertSpec", "Layout", "check_new", "convert", "new_folder", "read_class_names"]

Layout = Literal["native", "official", "hf"]


class ConvertSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of `--set model.…`: fields of Geometry, and `position_resize`."""

    model: dict[str, Any] = {}


def convert(
    source: str, dest: Path, *, to: Layout, spec: ConvertSpec | None = None, classes: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """Write the model of `source` to `dest`, completely or not at all; returns notes for the user.

    `dest` is a new file for official, a new folder for the other formats.
    Raises DataError for what can't be read, MisuseError for what the format can't hold or an existing `dest`.
    """
    if to not in get_args(Layout):
        raise MisuseError(f"to = {to!r}: expected native, official or hf")
    check_new(dest)
    user_fields = dict((spec or ConvertSpec()).model)
    resize = user_fields.pop("position_resize", "recompute")
    read = read_model(source, user_fields, classes=classes, position_resize=resize)
    model = read.build()  # refuses weights that don't match the description
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    notes = read.notes
    not_finite = [name for name, value in state.items() if not bool(value.isfinite().all())]
    if not_finite:
        listed = first_names(not_finite, 3)
        notes += (f"NaN or inf in {len(not_finite)} of {len(state)} weights ({listed}): the model is not usable",)
    if to == "official":
        return notes + write_official(dest, read.description, state)
    with new_folder(dest) as folder:
        if to == "hf":
            card = model_card(read.description, origin_of(source))
            notes += write_hf(folder, read.description, state, card)
        else:
            write_native(folder, read.description, state)
    return notes


def check_new(dest: Path) -> None:
    """Raises MisuseError for an existing path, or one whose parent folder does not exist."""
    if dest.exists():
        raise MisuseError(f"{dest}: already exists. Choose a new path")
    if not dest.absolute().parent.is_dir():
        raise MisuseError(f"{dest}: its parent folder does not exist. Create it first")


@contextmanager
def new_folder(dest: Path) -> Iterator[Path]:
    """A temporary folder, which becomes `dest` if its block ends without an error, and else vanishes.

    Raises VmaeError if it can't be written. An error that names the temporary folder names `dest` instead.
    """
    temporary = temporary_path(dest)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(dest)
    except VmaeError as error:
        raise type(error)(str(error).replace(str(temporary), str(dest))) from error
    except OSError as error:
        reason = error.strerror or error
        raise VmaeError(f"{dest}: can't be written ({reason}). Check the folder and the free disk space") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sync_folder(dest.absolute().parent)


def read_class_names(path: Path) -> tuple[str, ...]:
    """One name per line, in the order of the head's outputs. Raises DataError."""
    try:
        names = tuple(line.strip() for line in read_bytes(path).decode("utf-8").splitlines() if line.strip())
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: can't be read ({error}); expected one class name per line") from error
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{path}: names {twice!r} twice. Give every class its own name")
    return names
