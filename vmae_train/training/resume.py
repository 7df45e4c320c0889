"""A run directory → this training owns it, and its model continues from the last checkpoint."""

from __future__ import annotations

import msgspec

from vmae_data.errors import DataError
from vmae_data.read.batches import DataStage
from vmae_train.distributed import Distributed
from vmae_train.runs.layout import BEST, EVALUATION, RUN
from vmae_train.runs.metadata import RunFacts, write_facts
from vmae_train.runs.run_directory import RunDirectory
from vmae_train.training.checkpoint import RunState, last_checkpoint, read_state, resume
from vmae_train.training.engine import Engine
from vmae_train.training.setup import TrainingSetup

__all__ = ["resume_run"]


def resume_run(
    setup: TrainingSetup, facts: RunFacts, engine: Engine, run: RunDirectory, distributed: Distributed
) -> tuple[TrainingSetup, RunState]:
    """Claim the run, write its facts, and load its last checkpoint into `engine`.

    Returns the setup with the data that the run reads from now on, and the state of the checkpoint or of the very start.
    Raises DataError if processes see different checkpoints.
    """
    stages = setup.order.stages
    with distributed.all_or_none():
        if distributed.is_main:
            run.claim()
            last = last_checkpoint(run.path)  # removes leftovers before other processes read
            order = setup.for_run(run, facts).order  # another training may have written since
            stages = order.next_stages(read_state(last).step if last else 0)
            write_facts(run.path, msgspec.structs.replace(facts, data_stages=stages))
            run.upload(RUN)
            run.upload_checkpoint(setup.spec.checkpoint.keep)
            run.upload(EVALUATION, BEST)
    with distributed.all_or_none():
        if distributed.local_rank == 0 and not distributed.is_main:  # on another machine
            run.download(keep_newer=False)
    with distributed.all_or_none():
        state = resume(run.path, engine.model, engine.optimizer, engine.ema)
    first = distributed.all_gather(state.step, int)[0]
    with distributed.all_or_none():
        if state.step != first:
            raise DataError(
                f"{run.name}: process {distributed.rank} sees the checkpoint of step {state.step}, process 0 that of "
                f"step {first}. Put --out where all processes see the same files"
            )
    if engine.scaler.is_enabled() and state.scaler:
        engine.scaler.load_state_dict(state.scaler)
    return setup.with_stages(distributed.all_gather(stages, tuple[DataStage, ...])[0]), state
