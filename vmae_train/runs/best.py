"""RUN/best.json: which checkpoint of a run had the best validation score. That checkpoint is never removed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vmae_data.errors import DataError, NotFoundError
from vmae_data.format import NOT_JSON
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.runs.layout import BEST, CHECKPOINTS, MARKER, checkpoint_name

__all__ = ["Best", "best_checkpoint", "read_best", "write_best"]


class Best(msgspec.Struct, frozen=True, kw_only=True):
    """The best validation score during training, and its step. Of equal scores the first counts."""

    step: int
    metric: str
    value: float
    higher_is_better: bool

    @property
    def name(self) -> str:
        return checkpoint_name(self.step)

    def beats(self, other: Best | None) -> bool:
        if other is None:
            return True
        return self.value > other.value if self.higher_is_better else self.value < other.value


def read_best(run: Path) -> Best | None:
    """None before the first validation. Raises DataError for a damaged file."""
    path = run / BEST
    try:
        return msgspec.json.decode(read_bytes(path), type=Best)
    except NotFoundError:
        return None
    except NOT_JSON as error:
        raise DataError(f"{path}: can't be read ({error}). Remove it to choose the best checkpoint again") from error


def write_best(run: Path, best: Best) -> None:
    commit_bytes(run / BEST, msgspec.json.format(msgspec.json.encode(best)) + b"\n")


def best_checkpoint(run: Path) -> Path:
    """The directory of the best checkpoint. Raises DataError if the run has none."""
    best = read_best(run)
    if best is None:
        raise DataError(f"{run}: has no {BEST}. Finetune with evaluate.every_steps, or use the last checkpoint")
    folder = run / CHECKPOINTS / best.name
    if not (folder / MARKER).is_file():
        raise DataError(f"{run / BEST}: names {best.name}, which does not exist. Use the last checkpoint")
    return folder
