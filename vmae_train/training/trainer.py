"""The training loop of pretraining and finetuning: set up, then for each step: train, log, save, validate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from vmae_data.errors import VmaeError, resumable
from vmae_data.progress import ProgressBar, ProgressStyle
from vmae_data.storage import lock
from vmae_train.clips.loader import ClipLoader
from vmae_train.distributed import Distributed, choose_device
from vmae_train.evaluation.metrics import AnyScores, read_scores, write_scores
from vmae_train.runs.best import Best, read_best, write_best
from vmae_train.runs.layout import BEST, EVALUATION, newest_checkpoint, step_of
from vmae_train.runs.log import is_validated
from vmae_train.runs.metadata import read_facts
from vmae_train.runs.recorder import RunRecorder
from vmae_train.runs.run_directory import RunDirectory
from vmae_train.runs.starts import describe_start
from vmae_train.training.checkpoint import RunState, last_checkpoint, save_checkpoint
from vmae_train.training.diagnostics import Diagnostic, check_log, check_setup
from vmae_train.training.engine import Engine, StepResult
from vmae_train.training.objective import Objective
from vmae_train.training.resume import resume_run
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.setup import TrainingSetup, set_up_training
from vmae_train.training.step_sync import StepSync, WaitInterrupted
from vmae_train.training.summary import print_summary, training_rows
from vmae_train.training.throughput import Throughput, progress_note

__all__ = ["Trainer", "train"]


def train(
    spec: RunSpec,
    objective: Objective,
    *,
    data: Sequence[str],
    out: str | Path,
    scratch: Path | None = None,
    init: str | None = None,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
    max_steps: int | None = None,
    accept_appended: bool = False,
) -> Trainer:
    """Train in the folder or bucket `out`, or resume there, together with the other processes of `distributed`.

    `data` are data sets, each `URL` or `URL:WEIGHT`. A run in a bucket works in a folder below `scratch`, else in this
    machine's cache. `max_steps` makes a dry run: it ends after these steps and writes no log, checkpoint or score,
    only the run's facts: `out` is a temporary folder then.
    With `accept_appended` a run continues on data sets that were appended to, from its next epoch.

    Raises MisuseError if recipe, data or folder don't fit each other, VmaeError if the run can't continue.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        run = RunDirectory(out, scratch)
        setup = set_up_training(spec, data, distributed, accept_appended=accept_appended)
        objective.prepare(setup)
    with resumable(partial(_describe_saved, run)), distributed.on_main_process(lock(run.path, "training")):
        trainer = Trainer(setup, objective, run, distributed, init=init, device=device, max_steps=max_steps)
        trainer.print_summary(style)
        if trainer.step < trainer.last_step or trainer.owes_validation():
            with trainer.setup.loader(trainer.step, trainer.engine.device, targets=objective.targets) as loader:
                trainer.run_steps(loader, style)
        if max_steps is None:
            trainer.finish(style)
    return trainer


def _describe_saved(run: RunDirectory) -> str:
    """The checkpoint from which a stopped run resumes; empty if there is none."""
    saved = newest_checkpoint(run.path)
    return f"Step {step_of(saved.name)} is saved in {run.display_path(saved)}" if saved is not None else ""


class Trainer:
    """A run in memory. `step` is the number of finished steps, `scores` are those of the finished run."""

    def __init__(
        self,
        setup: TrainingSetup,
        objective: Objective,
        run: RunDirectory,
        distributed: Distributed,
        *,
        init: str | None,
        device: str | None,
        max_steps: int | None,
    ) -> None:
        """Check the run directory, build the model, and load the last checkpoint if there is one."""
        self.spec, self.objective, self.run, self.distributed = setup.spec, objective, run, distributed
        with distributed.all_or_none():
            if distributed.local_rank == 0:  # one process per machine
                run.download(keep_newer=distributed.is_main)
        with distributed.all_or_none():
            facts = setup.run_facts(objective.kind, init, **objective.facts())
            self.setup = objective.setup = setup = setup.for_run(run, facts)
            torch_device = choose_device(device, threads=self.spec.train.threads, distributed=distributed)
            model = objective.build_model(init, torch_device)
            self.warnings = check_setup(setup.training_facts(objective.kind, init, frozen=objective.frozen))
            self.engine = Engine(setup, model, objective.loss, torch_device, distributed)
        self.setup, state = resume_run(setup, facts, self.engine, run, distributed)
        self.step, self.unreadable = state.step, state.unreadable
        self.is_dry_run = max_steps is not None
        self.last_step = min(setup.steps, self.step + max_steps) if max_steps is not None else setup.steps
        self.recorder: RunRecorder | None = None  # in the main process, while steps run
        self.log_line: dict[str, Any] = {}  # the last one
        self.scores: AnyScores | None = None

    def print_summary(self, style: ProgressStyle) -> None:
        """Print the resolved values as a table."""
        kind, engine = self.objective.kind, self.engine
        rows = self.objective.summary() | training_rows(self.setup, engine.device, engine.dtype, self.step)
        title = f"{kind}, a dry run" if self.is_dry_run else f"{kind} → {self.run.name}"
        print_summary(title, rows, quiet=self.distributed.style(style) is ProgressStyle.QUIET)

    def run_steps(self, loader: ClipLoader, style: ProgressStyle) -> None:
        """Train from `step` to `last_step`.

        Raises VmaeError for a loss that is not finite, StopRequested on a signal after saving.
        """
        spec, engine, distributed = self.spec, self.engine, self.distributed
        self.unreadable = loader.unreadable.by_key = dict(self.unreadable)
        with distributed.all_or_none():
            self.recorder = self._open_recorder()
        batches = iter(loader)
        self.throughput = Throughput(loader, distributed)
        self.printed_notes: set[str] = set()
        engine.wrap()
        style = ProgressStyle.QUIET if self.is_dry_run else distributed.style(style)
        with (
            StepSync(distributed, loader.unreadable) as sync,
            self.recorder or nullcontext(),
            ProgressBar(f"{self.objective.kind} steps", self.setup.steps, style, start=self.step) as progress,
        ):
            self._warn(self.warnings, progress)
            if self.owes_validation():  # the run stopped before this validation
                self.validate(sync, progress)
            while self.step < self.last_step:
                result = engine.step(self.step, batches, sync)
                if result.status.interrupted:
                    self.save()
                    sync.stop_if_requested(result.status.stop)
                self.step += 1
                if self.step % spec.log.every_steps == 0 or self.step == self.last_step or self.is_dry_run:
                    self.log(result, loader, progress)
                progress.advance()
                if self.step % spec.checkpoint.every_steps == 0 or self.step == self.last_step or result.status.save:
                    self.save()
                sync.stop_if_requested(result.status.stop)
                if self.owes_validation():
                    self.validate(sync, progress)
                    self.throughput.restart()
            sync.stop_if_requested(sync.exchange(0, None).stop)  # a signal that came after the last step

    def _open_recorder(self) -> RunRecorder | None:
        if not self.distributed.is_main or self.is_dry_run:
            return None
        recipe = read_facts(self.run.path).recipe
        recorder = RunRecorder(self.run.path, self.spec.log, kind=self.objective.kind, step=self.step, recipe=recipe)
        engine, processes = self.engine, self.distributed.world_size
        start = describe_start(self.step, device=engine.device, dtype=engine.dtype, processes=processes)
        recorder.write(msgspec.to_builtins(start))
        return recorder

    def log(self, result: StepResult, loader: ClipLoader, progress: ProgressBar) -> None:
        """Fetch the numbers of a step. Log and print them, and any new warnings."""
        self._refuse_not_finite()
        self.log_line = line = self.throughput.line(
            self.step,
            loss=result.loss,
            parts=self.objective.parts,
            grad_norm=result.grad_norm,
            lr=result.lr,
            epoch=self.setup.order.epoch_of(self.step - 1),
            batch=self.spec.train.batch,
        )
        kind = self.objective.kind
        progress.status = progress_note(line, "masked loss" if kind == "pretrain" else "loss")
        if self.recorder is not None:
            self.recorder.write(line)
            self._warn(check_log(self.recorder.lines, kind, self.setup.schedule), progress)
        for notes in self.distributed.all_gather(list(loader.notes), list[str]):
            for note in notes:
                if note not in self.printed_notes:
                    self.printed_notes.add(note)
                    if self.recorder is not None and not self.recorder.has_warning(text=note):
                        self.recorder.warn(self.step, "cache", note)
                    progress.print_note(note)

    def _warn(self, warnings: Sequence[Diagnostic], progress: ProgressBar) -> None:
        """Record and show warnings: each once per run."""
        for name, text in warnings:
            if self.recorder is not None and not self.recorder.has_warning(name=name):
                self.recorder.warn(self.step, name, text)
                progress.print_note(text, label="warning")

    def _refuse_not_finite(self) -> None:
        """Raises VmaeError if a loss was not finite in any process. Such weights are never saved."""
        at = min(value for (value,) in self.distributed.all_gather_floats([float(self.engine.not_finite_at)]))
        if not math.isinf(at):
            last = last_checkpoint(self.run.path)
            init = f"with --init {self.run.display_path(last)}, the last good checkpoint, " if last else ""
            error = VmaeError(
                f"step {int(at)}: the loss or its gradient is not finite. Start a new run {init}into another --out, with "
                f"a lower optim.base_lr or optim.clip_grad. Batch: {', '.join(self.setup.order.keys(int(at)))}"
            )
            self.distributed.raise_first(error)

    def state(self) -> RunState:
        """What state.json holds."""
        scaler = self.engine.scaler
        return RunState(
            step=self.step,
            samples=self.step * self.spec.train.batch,
            unreadable=dict(sorted(self.unreadable.items())),
            scaler=scaler.state_dict() if scaler.is_enabled() else None,
        )

    def save(self) -> None:
        """Write a checkpoint. All processes wait, so that none ends before it is written."""
        self._refuse_not_finite()
        if self.is_dry_run or self.step == 0:  # no step has made moments; a resumed run starts at step 0 without them
            return
        with self.distributed.waiting_for_peers():
            tensors = self.engine.gather()
        with self.distributed.all_or_none():
            if self.recorder is not None:
                self.recorder.sync()
                keep = self.spec.checkpoint.keep
                save_checkpoint(self.run.path, self.engine.model, tensors, self.state(), keep=keep)
                self.run.upload_checkpoint(keep)

    def owes_validation(self) -> bool:
        """True if the current step needs a validation, and the log has none."""
        every = self.objective.validate_every
        if not every or self.step == 0 or self.step % every or self.is_dry_run:
            return False
        with self.distributed.all_or_none():
            is_done = self.distributed.is_main and is_validated(self.run.path, self.step)
        return not self.distributed.all_gather(is_done, bool)[0]

    def validate(self, sync: StepSync, progress: ProgressBar) -> None:
        """Score the model, print the score and keep the best checkpoint. The log line is last: a killed run validates again.

        A signal to one process ends it in all of them before the next batch.
        """
        progress.print_note(f"step {self.step}: evaluating on the validation set")
        try:
            scores = self.objective.evaluate(self.engine, self.distributed, style=ProgressStyle.QUIET, sync=sync)
        except WaitInterrupted as stopped:
            self.save()
            sync.stop_if_requested(stopped.exit_status)
        assert scores is not None
        headline = scores.headline
        best = Best(
            step=self.step, metric=headline.key, value=headline.value, higher_is_better=headline.higher_is_better
        )
        with self.distributed.all_or_none():
            is_better = self.distributed.is_main and best.beats(read_best(self.run.path))
        if is_best := self.distributed.all_gather(is_better, bool)[0]:
            self.save()
            with self.distributed.all_or_none():
                if self.distributed.is_main:
                    write_best(self.run.path, best)
                    self.run.upload(BEST)
        if self.recorder is not None:
            line: dict[str, Any] = {headline.key: headline.value, "views": scores.views}
            self.recorder.write({"kind": "validation", "step": self.step, **line})
        progress.print_note(f"step {self.step}: {headline}{', the best so far' if is_best else ''}")

    def finish(self, style: ProgressStyle) -> None:
        """Score the finished run, unless it was scored before. Process 0 decides: others may not see the file yet."""
        scores = read_scores(self.run.path / EVALUATION) if self.distributed.is_main else None
        self.scores = self.distributed.all_gather(scores, AnyScores | None)[0]
        if self.scores is not None:
            return
        self.scores = self.objective.evaluate(self.engine, self.distributed, style=style)
        with self.distributed.all_or_none():
            if self.scores is not None and self.distributed.is_main:
                write_scores(self.run.path / EVALUATION, self.scores)
                self.run.upload(EVALUATION)
