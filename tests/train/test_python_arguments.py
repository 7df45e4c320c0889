"""Wrong arguments of the Python interface, and values that a loaded model refuses: each is named in one line."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny_models import CLASSES, TINY, tiny_clips, tiny_mask
from vmae_data import Shards
from vmae_data.errors import MisuseError, VmaeError
from vmae_data.read.dataset import LabelKind
from vmae_train import Embedder, Predictor, load_model, read_clips, reconstruct
from vmae_train.clips.mask import TokenMask
from vmae_train.inference.predict import Prediction
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel, _check_mask

NO_INTEGERS = (None, "3", 1.5, True, math.nan, -1, 2**70, [], b"3")
NO_NUMBERS = (None, "0.9", True, [], b"1")
NO_TEXTS = ("a=1", None, 3, [3], [None])


def refused(error: type[Exception], text: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with pytest.raises(error, match=f"^{re.escape(text)}") as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_reconstruct_names_a_ratio_or_seed_that_cannot_be() -> None:
    model, frames = PretrainModel(TINY).eval(), torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8)
    for ratio in NO_NUMBERS:
        refused(MisuseError, f"ratio = {ratio!r}: expected a number", reconstruct, model, frames, ratio=ratio)
    for ratio in (-1, 0, 1, math.nan, math.inf):
        refused(MisuseError, f"mask = 'tube', ratio = {ratio}: ", reconstruct, model, frames, ratio=ratio)
    for seed in NO_INTEGERS:
        text = f"seed = {seed!r}: expected an integer from 0 to {2**63 - 1}"
        refused(MisuseError, text, reconstruct, model, frames, seed=seed)
    refused(MisuseError, "seed = a number of 400000 bits", reconstruct, model, frames, seed=(1 << 400_000) - 1)


def test_read_clips_names_what_is_no_path_or_no_count(members: list[Path]) -> None:
    for path in (None, 3, [], b"a.mp4", math.nan):
        refused(MisuseError, f"path = {path!r}: expected a path or a URL", read_clips, path)
    for name in ("num_frames", "stride", "views", "short_side"):
        for value in (0, *NO_INTEGERS):
            text = f"{name} = {value!r}: expected an integer from 1 to 16384"
            refused(MisuseError, text, read_clips, members[0], **{name: value})
    assert len(read_clips(members[0], stride=np.int64(2))[0]) == 16  # type: ignore[arg-type]


def test_load_model_names_what_is_no_path_and_no_device(tiny_finetuning: Path) -> None:
    for path in (None, 3, [], b"a"):
        refused(MisuseError, f"path = {path!r}: expected a path", load_model, path)
    refused(VmaeError, f"device '{2**70}': not available", load_model, tiny_finetuning, device=2**70)


def test_a_predictor_names_its_wrong_arguments(tiny_finetuning: Path, tiny_pretraining: Path) -> None:
    for batch in (0, *NO_INTEGERS):
        refused(MisuseError, f"batch = {batch!r}: expected an integer", Predictor, tiny_finetuning, "cpu", batch=batch)
    for settings in NO_TEXTS:
        for build, run in ((Predictor, tiny_finetuning), (Embedder, tiny_pretraining)):
            refused(MisuseError, "settings", build, run, "cpu", settings=settings)
    refused(MisuseError, "recipe = 3: expected the name of a recipe", Predictor, tiny_finetuning, "cpu", recipe=3)
    refused(MisuseError, "float16 = 'no': expected True or False", Embedder, tiny_pretraining, "cpu", float16="no")


def test_windows_are_named_as_arguments_in_python(tiny_finetuning: Path, members: list[Path]) -> None:
    predict = Predictor(tiny_finetuning, "cpu").predict
    for window in NO_NUMBERS[1:]:
        refused(MisuseError, f"window = {window!r}: expected a number", predict, members[0], window=window)
        refused(MisuseError, f"stride = {window!r}: expected a number", predict, members[0], window=1, stride=window)
    for window in (-1, 0, math.nan, math.inf):
        refused(MisuseError, f"window = {window:g}: expected 0.01 to 1e+06 seconds", predict, members[0], window=window)
    text = "stride = 2 is the distance of windows. Set window = SECONDS too"
    refused(MisuseError, text, predict, members[0], stride=2)
    refused(MisuseError, "path = None: expected a path", predict, None)


def test_the_best_classes_are_counted_by_an_integer() -> None:
    prediction = Prediction("v", 0.0, 1.0, ("a", "b"), (0.2, 0.8), LabelKind.CLASS)
    for count in NO_INTEGERS[1:7]:
        refused(MisuseError, f"count = {count!r}: expected an integer", prediction.top, count)
    assert prediction.top(0) == []


def test_shards_name_their_wrong_arguments(demo_shards: Path) -> None:
    shards = Shards.open(demo_shards)
    assert shards.url == str(demo_shards)
    refused(MisuseError, "path = None: expected a path", Shards.open, None)
    for number in (None, "3", 1.5, True, []):
        refused(MisuseError, f"number = {number!r}: expected the number of a sample", shards.sample, number)
    assert shards.sample(np.int64(1)).facts.key == shards.key(1)  # type: ignore[arg-type]
    for name in ("batch", "seed", "epoch", "start"):
        for value in NO_INTEGERS:
            found = f"{name} = {value!r}: expected an integer from "
            refused(MisuseError, found, shards.stream, max, **{"batch": 2, name: value})
    refused(MisuseError, "sampler = 'x': expected a function", shards.stream, "x", batch=2)


@pytest.mark.parametrize("value", [255.0, -11.0, math.inf, -math.inf, math.nan])
def test_a_loaded_model_refuses_values_that_preprocess_never_gives(device: torch.device, value: float) -> None:
    clips = tiny_clips(device)
    clips[1, 2, 3, 4, 5] = value
    mask, model, classifier = tiny_mask(device), PretrainModel(TINY).to(device), Classifier(TINY, CLASSES).to(device)
    calls = [model.features, lambda clips: model(clips, mask), lambda clips: model.loss(clips, mask), classifier]
    for call in calls:
        call(clips)  # a training step does not wait for such a check
    model.eval()
    classifier.eval()
    for call in calls:
        with pytest.raises(ValueError, match=r"^clips have values from .* expected -2\.118 to 2\.64, as `preprocess`"):
            call(clips)
        call(tiny_clips(device))


def test_a_loaded_model_refuses_tokens_that_a_clip_lacks(device: torch.device) -> None:
    model, clips, mask = PretrainModel(TINY).to(device).eval(), tiny_clips(device), tiny_mask(device)
    for number in (-1, TINY.num_tokens):
        masked = mask.masked_BM.clone()
        masked[0, 0] = number
        with pytest.raises(ValueError, match=r"^mask\.masked_BM has tokens .*; a clip has 0 to 127$"):
            model(clips, mask._replace(masked_BM=masked))


def test_what_is_no_mask_of_tokens_is_named() -> None:
    clips, tokens = tiny_clips(torch.device("cpu")), torch.zeros(2, 128, dtype=torch.bool)
    text = "mask is bool of shape (2, 128) on cpu; expected a TokenMask, as `sample_mask` gives it"
    refused(ValueError, text, _check_mask, tokens, clips, 128)
    refused(ValueError, "mask is of type NoneType; expected a TokenMask", _check_mask, None, clips, 128)
    refused(ValueError, "mask.visible_BV is of type list; ", _check_mask, TokenMask([1], None), clips, 128)  # type: ignore[arg-type]
