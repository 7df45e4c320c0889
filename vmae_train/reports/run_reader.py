"""All that a run's folder tells, finished or not: its start, log, last checkpoint, scores and data. Reads only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from vmae_data.errors import DataError, VmaeError
from vmae_data.format import NOT_JSON
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.runs.layout import EVALUATION, MARKER, newest_checkpoint
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import RunFacts, read_facts, run_of
from vmae_train.runs.run_files import local_copy
from vmae_train.training.checkpoint import RunState

__all__ = ["RunReader", "pretraining_of", "read_run"]


@dataclass(frozen=True)
class RunReader:
    """All that a run's folder tells. `mix` None: `why_no_shards` says why."""

    name: str
    folder: Path
    facts: RunFacts
    log: list[dict[str, Any]]
    checkpoint: Path | None
    state: RunState
    scores: AnyScores | None
    mix: Mixture | None
    why_no_shards: str

    @property
    def shards(self) -> Shards | None:
        """The data that it is pictured by: the first set of several."""
        return None if self.mix is None else self.mix.sets[0]

    @property
    def is_finetuning(self) -> bool:
        return self.facts.kind == "finetune"

    @property
    def steps(self) -> int | None:
        """All steps of the run; None where they hang on a data set that is not there."""
        train = self.facts.recipe["train"]
        if train["steps"] is not None:
            return int(train["steps"])
        return train["epochs"] * (len(self.mix) // train["batch"]) if self.mix is not None else None

    @property
    def step(self) -> int:
        """The last step that the log or a checkpoint knows of."""
        return max([self.state.step, *(int(line["step"]) for line in self.log)])

    @property
    def finished(self) -> bool:
        if self.is_finetuning:
            return self.scores is not None
        return self.steps is not None and self.state.step >= self.steps

    @property
    def origin(self) -> str:
        """Where its first weights came from, in words."""
        if self.facts.init is None:
            return "from scratch" if self.is_finetuning else "from fresh weights"
        return f"from {self.facts.init}"


def read_run(place: str | Path) -> RunReader:
    """Gather a run's folder, or a run at a URL. Raises DataError where it is no run."""
    run = local_copy(place)
    facts = read_facts(run)
    checkpoint = newest_checkpoint(run)
    state = RunState(step=0, samples=0)
    if checkpoint is not None:
        state = _decode(checkpoint / MARKER, RunState)
    scores = _decode(run / EVALUATION, AnyScores) if (run / EVALUATION).exists() else None
    mix, why = _open_data(facts)
    return RunReader(run.resolve().name, run, facts, read_log(run), checkpoint, state, scores, mix, why)


def _decode(path: Path, kind: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *NOT_JSON) as error:
        raise DataError(f"{path}: can't be read ({error}); the run was damaged, or is of another version") from error


def _open_data(facts: RunFacts) -> tuple[Mixture | None, str]:
    try:
        mix = Mixture([Shards.open(url) for url in facts.data], facts.data_weight)
    except VmaeError as error:
        return None, f"The run's data can't be shown: {error}"
    for url, digest, was in zip(facts.data, mix.digests, facts.data_digest, strict=True):
        if digest != was:
            return None, f"The run's data can't be shown: {url} is another data set now."
    return mix, ""


def pretraining_of(reader: RunReader) -> RunReader | None:
    """The pretraining that a finetuning began from, where its run is still there."""
    if not reader.is_finetuning or reader.facts.init is None:
        return None
    try:
        folder = run_of(reader.facts.init)
    except VmaeError:  # in a bucket that is not there any more, or not for us
        return None
    if folder is None:
        return None
    found = read_run(folder)
    return None if found.is_finetuning else found
