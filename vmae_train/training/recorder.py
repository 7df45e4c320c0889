"""What a run keeps: its log, its checkpoints, the best of them; written by the main process, agreed by all."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from vmae_data.errors import VmaeError
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import TrainingOrder
from vmae_train.clips.loader import ClipLoader
from vmae_train.distributed import Distributed
from vmae_train.runs.best import Best, read_best, write_best
from vmae_train.runs.layout import BEST
from vmae_train.runs.log import LogSpec, RunLog, is_validated
from vmae_train.runs.metadata import read_facts
from vmae_train.runs.remote_run import RemoteRun
from vmae_train.runs.trackers import Tracker, open_trackers
from vmae_train.training.checkpoint import CheckpointSpec, RunState, last_checkpoint, save_checkpoint
from vmae_train.training.diagnostics import Diagnostic, TrainingFacts, check_log
from vmae_train.training.engine import Engine

__all__ = ["RunPlace", "RunRecorder", "Validated"]


class Validated(NamedTuple):
    """A score on the way: its line in the log, and the number that the best checkpoint is chosen by."""

    line: dict[str, Any]
    metric: str
    value: float
    higher_is_better: bool


class RunPlace(NamedTuple):
    """Where a run is kept, and how often."""

    remote_run: RemoteRun
    checkpoint: CheckpointSpec
    log: LogSpec
    style: ProgressStyle
    facts: TrainingFacts


class RunRecorder:
    """What a run writes: its log, its checkpoints and its best one, by the main process."""

    def __init__(
        self,
        engine: Engine,
        loader: ClipLoader,
        distributed: Distributed,
        place: RunPlace,
        order: TrainingOrder,
        start: RunState,
    ) -> None:
        self._engine, self._loader, self._world, self._place, self._order = engine, loader, distributed, place, order
        if engine.scaler.is_enabled() and start.scaler:
            engine.scaler.load_state_dict(start.scaler)
        self._log: RunLog | None = None
        self._trackers: list[Tracker] = []
        with distributed.all_or_none():
            if distributed.is_main:
                run, kind = place.remote_run.folder, place.facts.kind
                self._log = log = RunLog(run, step=start.step)
                recipe = read_facts(run).recipe
                self._trackers = open_trackers(
                    place.log, run, kind=kind, step=start.step, past=log.lines, recipe=recipe
                )

    def state_at(self, step: int) -> RunState:
        scaler = self._engine.scaler
        return RunState(
            step=step,
            samples=step * self._engine.spec.batch,
            unreadable=dict(sorted(self._loader.unreadable.by_key.items())),
            scaler=scaler.state_dict() if scaler.is_enabled() else None,
        )

    def write(self, line: dict[str, Any]) -> None:
        if self._log is not None:
            self._log.write(line)
            for tracker in self._trackers:
                tracker.write(line)

    def diagnostics(self, step: int, found: list[Diagnostic] | None = None) -> list[Diagnostic]:
        """Of what was found at the start, or is in the log, what this run was not told before; now it is logged."""
        if self._log is None:
            return []
        lines, facts = self._log.lines, self._place.facts
        told = {line.get("name") for line in lines if line["kind"] == "warning"}
        if found is None:
            found = check_log(lines, facts.kind, self._engine.schedule.warmup)
        fresh = [caution for caution in found if caution.name not in told]
        for caution in fresh:
            self.write({"kind": "warning", "step": step, **caution._asdict()})
        return fresh

    def remarked(self, step: int, remarks: list[str]) -> None:
        """What the loaders found that a person should know; in the log once, though it be found again by a later start."""
        if self._log is None:
            return
        told = {line.get("text") for line in self._log.lines if line["kind"] == "warning"}
        for text in remarks:
            if text not in told:
                self.write({"kind": "warning", "step": step, "name": "cache", "text": text})

    def save(self, step: int) -> None:
        """The others wait, so that a run that is to end does not end before it is saved."""
        self.refuse_broken()
        with self._world.all_or_none():
            if self._log is not None:
                self._log.sync()
                engine, keep, remote_run = self._engine, self._place.checkpoint.keep, self._place.remote_run
                state = self.state_at(step)
                save_checkpoint(remote_run.folder, engine.model, engine.optimizer, state, keep=keep, ema=engine.ema)
                remote_run.publish_checkpoint(keep)

    def owes_validation(self, step: int, every: int | None) -> bool:
        """Whether a step is one to score at, and was not scored yet."""
        if not every or step == 0 or step % every:
            return False
        with self._world.all_or_none():
            scored = is_validated(self._place.remote_run.folder, step) if self._world.is_main else False
        return not self._world.all_gather(scored, bool)[0]

    def validated(self, step: int, found: Validated) -> None:
        """Keep the checkpoint of the best score; the log's line last, so that a kill in between is made good."""
        best = Best(step=step, metric=found.metric, value=found.value, higher_is_better=found.higher_is_better)
        remote_run = self._place.remote_run
        with self._world.all_or_none():
            better = best.beats(read_best(remote_run.folder)) if self._world.is_main else False
        if self._world.all_gather(better, bool)[0]:
            self.save(step)
            with self._world.all_or_none():
                if self._world.is_main:
                    write_best(remote_run.folder, best)
                    remote_run.publish(BEST)
        self.write({"kind": "validation", "step": step, **found.line})

    def refuse_broken(self) -> None:
        """Raises VmaeError when a loss was not finite, in any process; called before such weights would be kept."""
        found = self._world.all_gather_floats([float(self._engine.broken_at)])
        at = min(value for (value,) in found)
        if not math.isinf(at):
            self._world.raise_first(_broken(int(at), self._place.remote_run, self._order))

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        if self._log is not None:
            self._log.close()


def _broken(step: int, remote_run: RemoteRun, order: TrainingOrder) -> VmaeError:
    last = last_checkpoint(remote_run.folder)
    good = (
        f"the last good checkpoint is {remote_run.shown_path(last.path)}"
        if last
        else "there is no checkpoint before it"
    )
    keys = ", ".join(order.keys(step))
    return VmaeError(
        f"step {step}: the loss or its gradient is not finite; {good}; start from it by --init into another --out, "
        f"with a lower optim.base_lr or optim.clip_grad; the batch was {keys}"
    )
