"""A run's folder, finished or not → its recipe, log, last checkpoint, scores and data. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vmae_data.errors import DataError, VmaeError
from vmae_data.format import NOT_JSON
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_data.storage import read_bytes
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.runs.layout import EVALUATION, MARKER, newest_checkpoint
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import RunFacts, read_facts, run_of
from vmae_train.runs.run_files import local_copy
from vmae_train.runs.starts import Start, read_starts
from vmae_train.training.checkpoint import RunState

__all__ = ["StoredRun", "pretraining_of", "read_run"]


@dataclass(frozen=True)
class StoredRun:
    """The content of a run's folder. `mixture` None: `data_problem` is the reason."""

    name: str
    folder: Path
    facts: RunFacts
    log: list[dict[str, Any]]
    checkpoint: Path | None
    state: RunState
    scores: AnyScores | None
    mixture: Mixture | None
    data_problem: str

    @property
    def shards(self) -> Shards | None:
        """The data set that the page shows: the first one of a mixture."""
        return None if self.mixture is None else self.mixture.sets[0]

    @property
    def is_finetuning(self) -> bool:
        return self.facts.kind == "finetune"

    @property
    def num_steps(self) -> int | None:
        """All steps of the run; None if they depend on a data set that can't be read."""
        train = self.facts.recipe["train"]
        if train["steps"] is not None:
            return int(train["steps"])
        return train["epochs"] * (len(self.mixture) // train["batch"]) if self.mixture is not None else None

    @property
    def step(self) -> int:
        """The last step in the log or in a checkpoint."""
        return max([self.state.step, *(int(line["step"]) for line in self.log)])

    @property
    def starts(self) -> list[Start]:
        """Each start of the training that the log has."""
        return read_starts(self.log)

    @property
    def finished(self) -> bool:
        if self.is_finetuning:
            return self.scores is not None
        return self.num_steps is not None and self.state.step >= self.num_steps

    @property
    def progress(self) -> str:
        """How many steps it has made, and whether these are all."""
        return str(self.step) if self.finished else f"{self.step}, not finished"

    @property
    def origin(self) -> str:
        """The source of the first weights, in words."""
        return "from scratch" if self.facts.init is None else f"from {self.facts.init}"


def read_run(url: str | Path) -> StoredRun:
    """Read a run's folder or URL. Raises DataError if it is not a run."""
    folder = local_copy(url)
    facts = read_facts(folder)
    checkpoint = newest_checkpoint(folder)
    state = RunState(step=0, samples=0)
    if checkpoint is not None:
        state = _decode(checkpoint / MARKER, RunState)
    scores = _decode(folder / EVALUATION, AnyScores) if (folder / EVALUATION).exists() else None
    log = read_log(folder)
    mixture, problem = _open_data(facts)
    return StoredRun(folder.resolve().name, folder, facts, log, checkpoint, state, scores, mixture, problem)


def _decode(path: Path, file_type: Any) -> Any:
    try:
        return msgspec.json.decode(read_bytes(path), type=file_type)
    except NOT_JSON as error:
        raise DataError(f"{path}: can't be read ({error}). The run is damaged or of another version") from error


def _open_data(facts: RunFacts) -> tuple[Mixture | None, str]:
    """The run's data, or the reason why it can't be shown."""
    try:
        mixture = Mixture([Shards.open(url) for url in facts.data], facts.data_weight)
    except VmaeError as error:
        return None, f"The run's data can't be shown: {error}"
    for url, digest, trained_on in zip(facts.data, mixture.digests, facts.data_digest, strict=True):
        if digest != trained_on:
            return None, f"The run's data can't be shown: {url} has changed since the training."
    return mixture, ""


def pretraining_of(run: StoredRun) -> StoredRun | None:
    """The pretraining run that a finetuning started from, if it still exists."""
    if not run.is_finetuning or run.facts.init is None:
        return None
    try:
        folder = run_of(run.facts.init)
    except VmaeError:  # in a bucket that is gone or not readable for us
        return None
    if folder is None:
        return None
    pretraining = read_run(folder)
    return None if pretraining.is_finetuning else pretraining
