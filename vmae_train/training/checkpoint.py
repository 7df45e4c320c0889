"""A checkpoint is a folder: weights and optimizer as safetensors, the model's geometry, state.json last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from vmae_data.errors import DataError
from vmae_data.format import NOT_JSON
from vmae_data.storage import TEMPORARY, commit_bytes, sync_folder
from vmae_train.checkpoints.ema import ModelEma
from vmae_train.checkpoints.load import load_weights
from vmae_train.checkpoints.native import save_model
from vmae_train.models.base import VideoModel
from vmae_train.runs.best import read_best
from vmae_train.runs.layout import MARKER, OPTIMIZER, checkpoint_name, newest_checkpoint
from vmae_train.training.optimizer import trained_parameters

__all__ = [
    "Checkpoint",
    "CheckpointSpec",
    "RunState",
    "last_checkpoint",
    "load_checkpoint",
    "resume",
    "save_checkpoint",
]

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class CheckpointSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a run is saved, and how many of the last are kept."""

    every_steps: int = 1000
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every_steps < 1 or self.keep < 1:
            raise ValueError(f"every_steps = {self.every_steps}, keep = {self.keep}: both must be 1 or more")


class RunState(msgspec.Struct, frozen=True, kw_only=True):
    """What a run needs to go on, beside weights and optimizer. Chance has no state."""

    step: int
    samples: int
    unreadable: dict[str, str] = {}
    scaler: dict[str, Any] | None = None


class Checkpoint(NamedTuple):
    path: Path
    state: RunState


def save_checkpoint(
    run: Path,
    model: VideoModel,
    optimizer: torch.optim.Optimizer,
    state: RunState,
    *,
    keep: int,
    ema: ModelEma | None = None,
) -> Path:
    """Write RUN/checkpoints/step-… whole, then take away all but the last `keep` and the best."""
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / checkpoint_name(state.step)
    if (final / MARKER).exists():
        return final
    temporary = folder / f"{TEMPORARY}{final.name}"
    for leftover in (temporary, final):  # `final` without state.json was never a checkpoint
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir()
    save_model(temporary, model)
    commit_bytes(temporary / OPTIMIZER, save(_optimizer_tensors(model, optimizer)))
    if ema is not None:
        ema.save(temporary)
    commit_bytes(temporary / MARKER, msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    temporary.rename(final)
    sync_folder(folder)
    best = read_best(run)
    for old in _complete(folder)[:-keep]:
        if best is not None and old.name == best.name:
            continue
        (old / MARKER).unlink()  # first: what is half removed must not look whole
    for unmarked in folder.glob("step-*"):
        if not (unmarked / MARKER).exists():
            shutil.rmtree(unmarked)
    return final


def _complete(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"step-*/{MARKER}"))


def last_checkpoint(run: Path) -> Checkpoint | None:
    """The last whole checkpoint of a run, or None. Leftovers of a killed save are removed."""
    for leftover in (run / "checkpoints").glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = newest_checkpoint(run)
    if folder is None:
        return None
    path = folder / MARKER
    try:
        state = msgspec.json.decode(path.read_bytes(), type=RunState)
    except (OSError, *NOT_JSON) as error:
        raise DataError(
            f"{path}: can't be read ({error}); remove that checkpoint to go on from the one before"
        ) from error
    if checkpoint_name(state.step) != folder.name:
        raise DataError(
            f"{path}: is of step {state.step}, not of its folder; remove that checkpoint to go on from the one before"
        )
    return Checkpoint(folder, state)


def load_checkpoint(checkpoint: Checkpoint, model: VideoModel, optimizer: torch.optim.Optimizer) -> None:
    """Put a checkpoint's weights and moments into a model and its optimizer.

    Raises DataError when a file is damaged or is of another model.
    """
    load_weights(checkpoint.path, model)
    path = checkpoint.path / OPTIMIZER
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: can't be read ({error}); remove that checkpoint to go on from the one before"
        ) from error
    state = optimizer.state_dict()
    numbers = _numbers(model, optimizer)
    wanted = {f"{moment}/{name}" for name in numbers for moment in _MOMENTS}
    if tensors.keys() != wanted:
        raise DataError(f"{path}: holds other parameters than the model; the run's recipe was another")
    for name, parameter in trained_parameters(model):
        moments = [tensors[f"{moment}/{name}"] for moment in _MOMENTS]
        if [moment.shape for moment in moments] != [parameter.shape, parameter.shape, torch.Size()]:
            raise DataError(f"{path}: the moments of {name} are not of its shape; the run's recipe was another")
    state["state"] = {
        number: {moment: tensors[f"{moment}/{name}"] for moment in _MOMENTS} for name, number in numbers.items()
    }
    optimizer.load_state_dict(state)


def resume(run: Path, model: VideoModel, optimizer: torch.optim.Optimizer, ema: ModelEma | None = None) -> RunState:
    """The state to go on from: that of the last checkpoint, loaded, or the very start."""
    last = last_checkpoint(run)
    if last is None:
        return RunState(step=0, samples=0)
    load_checkpoint(last, model, optimizer)
    if ema is not None:
        ema.load(last.path)
    return last.state


def _numbers(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """The optimizer numbers parameters by group; names say which is which."""
    order = {id(parameter): n for n, parameter in enumerate(p for g in optimizer.param_groups for p in g["params"])}
    return {name: order[id(parameter)] for name, parameter in trained_parameters(model)}


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for name, parameter in trained_parameters(model):
        state = optimizer.state[parameter]
        for moment in _MOMENTS:
            tensors[f"{moment}/{name}"] = state[moment].detach().cpu().contiguous()
    return tensors
