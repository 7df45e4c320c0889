"""The recipe tables that pretraining and finetuning share."""

from __future__ import annotations

from typing import Literal

import msgspec

from vmae_data.read.cache import CacheSpec
from vmae_train.checkpoints.ema import EmaSpec
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.clips.loader import LoaderSpec
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.runs.log import LogSpec
from vmae_train.training.checkpoint import CheckpointSpec
from vmae_train.training.optimizer import OptimSpec

__all__ = ["RunSpec", "TrainSpec"]


class TrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The length of a training and its batches.

    `batch` is the global batch of an optimizer step, over all processes. `micro_batch` is what one process takes at a
    time, and changes no result. Both count videos: `repeats` clips are made of each decoded video, with their own crop,
    mask and augmentation.
    """

    batch: int
    micro_batch: int | None = None
    repeats: int = 1
    epochs: int | None = None
    steps: int | None = None
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(f"train.epochs = {self.epochs}, train.steps = {self.steps}: set exactly one of the two")
        for name in ("batch", "micro_batch", "repeats", "epochs", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} = {value}: expected 1 or more")
        if self.batch % (self.micro_batch or self.batch):
            raise ValueError(f"micro_batch = {self.micro_batch} does not divide batch = {self.batch}")

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables of every training recipe."""

    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    seed: int = 0
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

    def geometry(self) -> Geometry:
        return self.model.geometry(mean=self.augment.mean, std=self.augment.std)
