"""What a training learns: the part in which pretraining and finetuning differ."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

from vmae_data.progress import ProgressStyle
from vmae_train.clips.loader import Batch
from vmae_train.distributed import Distributed
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.models.base import VideoModel
from vmae_train.training.engine import Engine
from vmae_train.training.setup import TrainingSetup
from vmae_train.training.step_sync import StepSync

__all__ = ["Objective"]


class Objective(ABC):
    """The trainer calls the methods in the order in which they are here."""

    kind: Literal["pretrain", "finetune"]
    frozen: bool = False  # the encoder is not trained
    targets: bool = False  # batches have labels of several classes, or values
    validate_every: int | None = None  # steps between validations
    parts: tuple[str, ...] = ()  # names in the log of what `loss` gives besides the loss

    def prepare(self, setup: TrainingSetup) -> None:
        """Check the data. Raises MisuseError, DataError. The trainer sets `setup` again when it knows the run."""
        self.setup = setup

    def facts(self) -> dict[str, Any]:
        """This objective's fields of run.json."""
        return {}

    @abstractmethod
    def build_model(self, init: str | None, device: torch.device) -> VideoModel:
        """A new model in training mode, or one that starts from the weights of `init`. Raises MisuseError, DataError."""

    @abstractmethod
    def summary(self) -> dict[str, str]:
        """Rows of the table that is printed before the first step."""

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """The weighted mean of the losses of a micro-batch's samples. Everything runs on the device.

        With `parts` a tensor of this loss, which alone has a gradient, and of each part.
        """

    def evaluate(
        self, engine: Engine, distributed: Distributed, *, style: ProgressStyle, sync: StepSync | None = None
    ) -> AnyScores | None:
        """The validation scores, by all processes together. None without a validation set.

        `sync`: of the running training, which a signal stops here too; None: the run is finished.
        """
        return None
