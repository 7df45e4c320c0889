"""The recipe tables that pretraining and finetuning share."""

from __future__ import annotations

from typing import Literal

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.read.cache import CacheSpec
from vmae_data.recipes import check_bounds
from vmae_train.checkpoints.ema import EmaSpec
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.loader import LoaderSpec
from vmae_train.engines.choose import EngineName, ZeroStage
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.runs.layout import MAX_STEPS
from vmae_train.runs.log import LogSpec
from vmae_train.training.checkpoint import CheckpointSpec
from vmae_train.training.optimizer import OptimSpec

__all__ = ["RunSpec", "TrainSpec"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The length of a training and its batches.

    `batch` is the global batch of an optimizer step, over all processes. `micro_batch` is what one process takes at a
    time, and changes no result. Both count videos: `repeats` clips are made of each decoded video, with their own crop,
    mask and augmentation. `engine` is how the processes share the model, and changes no result either. `zero_stage` is
    what they share of it with `deepspeed`.
    """

    batch: int  # videos of one optimizer step, over all processes
    micro_batch: int | None = None  # videos of one process at a time; none: its whole share
    repeats: int = 1  # clips made of each decoded video
    epochs: int | None = None  # give either this or `steps`
    steps: int | None = None  # optimizer steps
    # auto: bfloat16, else float16, on a GPU; float32 on a CPU
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = None  # of torch on a CPU; none: torch's own number
    engine: EngineName = "ddp"  # ddp: each process has the whole model; fsdp2 and deepspeed share it
    zero_stage: ZeroStage = 1  # of deepspeed

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"train.epochs = {self.epochs}, train.steps = {self.steps}: set exactly one of the two")
        check_bounds(self, batch=(1, 1 << 20), micro_batch=(1, 1 << 20), repeats=(1, 1024), threads=(1, 1024))
        check_bounds(self, epochs=(1, 1_000_000), steps=(1, MAX_STEPS))
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Raises MisuseError for more steps than a run can number."""
        steps = self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch
        if steps > MAX_STEPS:
            raise MisuseError(f"train.epochs = {self.epochs}: makes {steps} steps, expected at most {MAX_STEPS}")
        return steps


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of every training recipe."""

    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    seed: int = 0  # of all random numbers
    clip: ClipSpec = ClipSpec()
    augment: AugmentSpec = AugmentSpec()
    loader: LoaderSpec = LoaderSpec()
    cache: CacheSpec = CacheSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    log: LogSpec = LogSpec()
    ema: EmaSpec = EmaSpec()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}: expected 0 or a positive number below 2^63")
        if self.augment.size is not None:
            raise ValueError(f"augment.size = {self.augment.size}: follows model.image_size. Remove it")
        if self.model.compile and self.train.engine == "deepspeed" and self.train.zero_stage == 3:
            raise ValueError(
                "model.compile = true, train.zero_stage = 3: stage 3 can't be compiled. Change one of them"
            )

    @property
    def reads_motion(self) -> bool:
        """Whether clips come with the motion vectors of their frames."""
        return False

    def geometry(self) -> Geometry:
        return self.model.geometry(mean=self.augment.mean, std=self.augment.std)
