"""The settings of an evaluation: views of a video, frames of a clip, resize, mean over the views."""

from __future__ import annotations

import re
from typing import NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.recipes import check_bounds
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluation.metrics import Merge
from vmae_train.runs.layout import MAX_STEPS

__all__ = ["EvaluateSpec", "EvaluationProtocol", "Views", "parse_views"]


class Views(NamedTuple):
    """The views of one video: clips in time × crops in space."""

    clips: int
    crops: int

    def __str__(self) -> str:
        return f"{self.clips}x{self.crops}"


def parse_views(text: str) -> Views:
    """`5x3` → 5 clips, 3 crops. Raises MisuseError."""
    match = re.fullmatch(r"(\d{1,3})x(\d{1,3})", text, re.ASCII)
    if not match or not int(match[1]) or not int(match[2]):
        raise MisuseError(f"views = {text[:40]}: expected CLIPSxCROPS, each 1 to 999, such as 5x3")
    return Views(int(match[1]), int(match[2]))


class EvaluateSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a finetuning evaluates on the validation set: at its end, and after every `every_steps` steps if set.

    `merge`: the mean over a video's views is over probabilities (softmax) or over logits (logit).
    """

    views: str = "5x3"  # clips × crops of each video at the end
    merge: Merge = "softmax"  # average probabilities or logits of the views
    every_steps: int | None = None  # also evaluate after each so many steps; none: at the end only
    every_views: str = "1x1"  # views of these evaluations
    batch: int = 8  # videos at a time

    def __post_init__(self) -> None:
        for text in (self.views, self.every_views):
            try:
                parse_views(text)
            except MisuseError as error:
                raise ValueError(str(error)) from error
        check_bounds(self, batch=(1, 1 << 16), every_steps=(1, MAX_STEPS))


class EvaluationProtocol(NamedTuple):
    """Everything that changes a score, except the model and the data."""

    views: Views
    clip: ClipSpec
    merge: Merge = "softmax"
    antialias: bool = True

    @property
    def control(self) -> str | None:
        """The name of the control experiment, if the protocol is one."""
        return "one frame repeated" if self.clip.frozen else None
