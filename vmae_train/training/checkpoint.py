"""A checkpoint is a directory: weights and optimizer as safetensors, the model's geometry, and state.json, written last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vmae_data.errors import DataError
from vmae_data.format import NOT_JSON
from vmae_data.recipes import check_bounds
from vmae_data.storage import TEMPORARY, commit_bytes, read_bytes, refuse_special, sync_folder
from vmae_train.checkpoints.ema import ModelEma
from vmae_train.checkpoints.load import load_weights
from vmae_train.checkpoints.native import save_model, write_weights
from vmae_train.distributed import shard_like
from vmae_train.engines.ddp import MOMENTS, WEIGHT, CheckpointTensors
from vmae_train.models.base import VideoModel, trained_parameters, training_only_parameters
from vmae_train.runs.best import read_best
from vmae_train.runs.checksums import MARKER_FORMAT, NEEDED_FILES, hash_files, verify_files
from vmae_train.runs.layout import (
    CHECKPOINTS,
    EMA_FILE,
    MARKER,
    MAX_STEPS,
    OPTIMIZER,
    checkpoint_name,
    newest_checkpoint,
)

__all__ = [
    "CheckpointSpec",
    "RunState",
    "last_checkpoint",
    "load_checkpoint",
    "read_state",
    "resume",
    "save_checkpoint",
]

_ADVICE = "Remove that checkpoint to resume from the one before"


class CheckpointSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a run is saved, and how many of the last checkpoints are kept."""

    every_steps: int = 1000  # steps between checkpoints
    keep: int = 3  # number of last checkpoints kept

    def __post_init__(self) -> None:
        check_bounds(self, every_steps=(1, MAX_STEPS), keep=(1, MAX_STEPS))


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs to resume, besides weights and optimizer. Random numbers have no state."""

    step: int
    samples: int
    unreadable: dict[str, str] = {}
    scaler: dict[str, Any] | None = None
    # Set when the files are written; older versions wrote neither.
    format: int = 1
    sha256: dict[str, str] = {}  # of the checkpoint's files


def save_checkpoint(
    run: Path,
    model: VideoModel,
    tensors: CheckpointTensors,
    state: RunState,
    *,
    keep: int,
) -> Path:
    """Write RUN/checkpoints/step-…, then remove all but the last `keep` checkpoints and the best one.

    The directory gets its name when it is complete: a save that is killed leaves only a temporary directory.
    """
    folder = run / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / checkpoint_name(state.step)
    if (final / MARKER).exists():
        return final
    temporary = folder / f"{TEMPORARY}{final.name}"
    for leftover in (temporary, final):  # a folder without its marker is unfinished, or half removed
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    save_model(temporary, model, tensors.weights)
    commit_bytes(temporary / OPTIMIZER, save(tensors.moments))
    if tensors.ema is not None:
        write_weights(temporary / EMA_FILE, tensors.ema)
    marker = msgspec.structs.replace(state, format=MARKER_FORMAT, sha256=hash_files(temporary))
    commit_bytes(temporary / MARKER, msgspec.json.format(msgspec.json.encode(marker)) + b"\n")
    temporary.rename(final)
    sync_folder(folder)
    _remove_old(run, keep)
    return final


def _remove_old(run: Path, keep: int) -> None:
    folder, best = run / CHECKPOINTS, read_best(run)
    complete = sorted(path.parent for path in folder.glob(f"step-*/{MARKER}"))
    for old in complete[:-keep]:
        if best is None or old.name != best.name:
            (old / MARKER).unlink()  # first: a half-removed checkpoint must not look complete
    for incomplete in folder.glob("step-*"):
        if not (incomplete / MARKER).exists():
            shutil.rmtree(incomplete)


def last_checkpoint(run: Path) -> Path | None:
    """The last complete checkpoint of a run, or None. Removes what a killed save left."""
    for leftover in (run / CHECKPOINTS).glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    return newest_checkpoint(run)


def read_state(checkpoint: Path) -> RunState:
    """The state of a checkpoint. Raises DataError if it can't be read, or is of another step than the directory's."""
    path = checkpoint / MARKER
    try:
        state = msgspec.json.decode(read_bytes(path), type=RunState)
    except NOT_JSON as error:
        raise _damaged(path, f"can't be read ({error})") from error
    if checkpoint_name(state.step) != checkpoint.name:
        raise _damaged(path, f"is of step {state.step}, unlike its folder")
    return state


def load_checkpoint(checkpoint: Path, model: VideoModel, optimizer: torch.optim.Optimizer) -> None:
    """Load a checkpoint's weights and moments into a model and its optimizer.

    Raises DataError if a file is missing, damaged, or belongs to another model.
    """
    for name in NEEDED_FILES:
        if not (checkpoint / name).exists():  # what is no file is refused when it is read
            raise _damaged(checkpoint / name, "is missing")
    verify_files(checkpoint, advice=_ADVICE)
    load_weights(checkpoint, model)
    path = checkpoint / OPTIMIZER
    refuse_special(path)
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise _damaged(path, f"can't be read ({error})") from error
    state, numbers = optimizer.state_dict(), _parameter_numbers(model, optimizer)
    own = training_only_parameters(model)
    kinds = {name: (*MOMENTS, WEIGHT) if name in own else MOMENTS for name in numbers}
    if tensors.keys() != {f"{kind}/{name}" for name, stored in kinds.items() for kind in stored}:
        raise DataError(f"{path}: its parameters are not the model's. The run had another recipe")
    for name, parameter in trained_parameters(model):
        shapes = {kind: tensors[f"{kind}/{name}"].shape for kind in kinds[name]}
        if shapes != {kind: torch.Size() if kind == "step" else parameter.shape for kind in shapes}:
            raise DataError(f"{path}: the moments of {name} do not have its shape. The run had another recipe")
    for name, parameter in own.items():
        parameter.data.copy_(tensors[f"{WEIGHT}/{name}"])
    for name, parameter in trained_parameters(model):
        moments = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
        moments = {
            moment: value if moment == "step" else shard_like(value, parameter) for moment, value in moments.items()
        }
        state["state"][numbers[name]] = moments
    optimizer.load_state_dict(state)


def _damaged(path: Path, problem: str) -> DataError:
    return DataError(f"{path}: {problem}. {_ADVICE}")


def resume(run: Path, model: VideoModel, optimizer: torch.optim.Optimizer, ema: ModelEma | None = None) -> RunState:
    """Load the last checkpoint of a run and return its state, or the state of the very start."""
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        return RunState(step=0, samples=0)
    state = read_state(checkpoint)
    load_checkpoint(checkpoint, model, optimizer)
    if ema is not None:
        ema.load(checkpoint)
    return state


def _parameter_numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """The optimizer numbers parameters by group. This maps names to those numbers."""
    order = {id(parameter): n for n, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    return {name: order[id(parameter)] for name, parameter in trained_parameters(model)}
