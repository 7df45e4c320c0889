"""What a plan takes from outside: data sheets of GPUs, sizes of data sets, rates that were measured or are assumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import msgspec

from vmae_data.errors import MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.recipes import difference, expected_one_of, with_defaults
from vmae_train.runs.layout import RUN
from vmae_train.runs.metadata import read_facts

__all__ = ["GPUS", "Gpu", "Rates", "Value", "find_gpu", "read_rates", "videos_of"]

Source = Literal["given", "measured", "data sheet", "assumed", "computed"]


class Value(msgspec.Struct, frozen=True):
    """A number of a plan, and where it comes from."""

    value: float
    source: Source


class Gpu(NamedTuple):
    """Peak of dense products in bfloat16 (V100, A5000, T4: float16) with float32 sums, and memory, by its data sheet."""

    tflops: float
    memory_gib: float


GPUS = {
    "T4": Gpu(65, 15),
    "V100": Gpu(125, 32),
    "A10": Gpu(125, 23),
    "A5000": Gpu(111, 24),
    "A6000": Gpu(155, 48),
    "A100": Gpu(312, 80),
    "L4": Gpu(121, 23),
    "L40S": Gpu(362, 45),
    "RTX4090": Gpu(165, 24),
    "H100": Gpu(989, 80),
    "H200": Gpu(989, 140),
    "B200": Gpu(2250, 179),
}

# Videos of the training sets, rounded: what can be downloaded of Kinetics differs. `hybrid` is VideoMAE V2's.
_DATA_SETS = {
    "k400": 240_000,
    "k600": 370_000,
    "k710": 658_000,
    "hybrid": 1_350_000,
    "ssv2": 168_913,
    "ucf101": 9_537,
    "hmdb51": 3_570,
}


def find_gpu(name: str) -> Gpu | None:
    """None for `cpu`. Raises MisuseError for an unknown name."""
    names = {known.lower(): gpu for known, gpu in GPUS.items()}
    key = name.lower().replace(" ", "").replace("-", "")
    if key != "cpu" and key not in names:
        raise MisuseError(f"--gpu {name}: {expected_one_of(name, [*GPUS, 'cpu'])}")
    return names.get(key)


def videos_of(recipe: str) -> int | None:
    """Videos of the data set in a recipe's name: of `pretrain/k400-b-1600` those of k400."""
    for word in Path(recipe).name.removesuffix(".toml").split("-"):
        if word in _DATA_SETS:
            return _DATA_SETS[word]
    return None


class Rates(NamedTuple):
    """What one video or clip costs. A video is decoded once, for one clip or several."""

    cpu_seconds_a_video: Value = Value(1 / 80, "assumed")  # the default profile at a short side of 256
    kb_a_video: Value = Value(200.0, "assumed")  # 10 s of the default profile, every 4th frame
    transfer_seconds_a_video: Value | None = None
    device_seconds_a_video: Value | None = None  # of a training's step on one device, without waiting for data
    memory_mb: Value | None = None


def read_rates(paths: Sequence[Path], spec: msgspec.Struct | None = None) -> Rates:
    """The rates in files of JSON lines. Later lines replace earlier ones. Raises MisuseError for other content.

    Known are the JSON of `vmae-train feed` and of a dry run, a run's log.jsonl, and objects with fields of Rates.
    Step times are those of one process. `spec` is the planned training's recipe: a log beside a run.json whose steps
    are others is refused.
    """
    rates = Rates()
    for path in paths:
        logged: list[float] = []
        found = False
        try:
            lines = [line for line in path.read_bytes().splitlines() if line.strip()]
        except OSError as error:
            raise MisuseError(f"--rates {path}: {error.strerror}. Give a file of JSON") from error
        for line in lines:
            try:
                measured = msgspec.json.decode(line, type=dict[str, Any])
                values = _rates_of(measured)
                logged += _logged_step(measured)
            except (*NOT_JSON, KeyError, TypeError, ZeroDivisionError, ValueError) as error:
                raise MisuseError(f"--rates {path}: {_NOT_RATES} ({error})") from error
            found = found or bool(values)
            rates = rates._replace(**values)
        if logged:
            if spec is not None:
                _check_steps(path, spec)
            rates = rates._replace(device_seconds_a_video=Value(fmean(logged), "measured"))
        if not found and not logged:
            raise MisuseError(f"--rates {path}: {_NOT_RATES}")
    return rates


_NOT_RATES = (
    "expected JSON of `vmae-train feed --json`, of `--dry-run --json`, a run's log.jsonl, or an object of positive "
    f"numbers such as {{{', '.join(Rates._fields)}}}"
)


# What decides the time of a step for a video. Recipes of the same values may differ in data, length and rate.
_STEP = ("model", "mask", "aux", "augment", "train.precision", "train.repeats")


def _check_steps(log: Path, spec: msgspec.Struct) -> None:
    """Raises MisuseError if the log's run has another model, mask, augmentation, precision or number of clips."""
    if not (log.parent / RUN).exists():
        return
    planned = msgspec.json.decode(msgspec.json.encode(spec))
    changed = difference(with_defaults(read_facts(log.parent).recipe, type(spec)), planned)
    if changed := [line for line in changed if line.split(":")[0].startswith(_STEP)]:
        raise MisuseError(
            f"--rates {log}: its run had other steps ({'; '.join(changed)}). Give the log of a run of the planned recipe"
        )


def _rates_of(measured: dict[str, Any]) -> dict[str, Value]:
    source: Source = "measured"
    if "cpu_seconds_a_clip" in measured:
        stages = {stage["name"]: stage["seconds_a_clip"] for stage in measured["stages"]}
        numbers = {
            "cpu_seconds_a_video": measured["cpu_seconds_a_clip"],
            "kb_a_video": 1000 * measured["read_mb"] / measured["clips"],
            "transfer_seconds_a_video": stages["transfer"],
        }
    elif "step_seconds" in measured:
        numbers = {
            "device_seconds_a_video": (measured["step_seconds"] - measured["wait_seconds"]) / measured["batch"],
            "memory_mb": measured["memory_mb"],
        }
    elif "kind" in measured:  # a line of a log
        return {}
    else:
        numbers, source = measured, "given"
        if unknown := measured.keys() - {*Rates._fields}:
            raise ValueError(f"{', '.join(sorted(unknown))} is no rate")
    if not all(type(number) is not bool and 0 < number < math.inf for number in numbers.values()):
        raise ValueError("a rate is a number above 0 and finite")
    return {name: Value(float(number), source) for name, number in numbers.items()}


def _logged_step(line: dict[str, Any]) -> list[float]:
    """Seconds of the device per video of a line of log.jsonl. Lines without a speed, or that only waited, have none."""
    if line.get("kind") != "train" or not line.get("clips_per_second"):
        return []
    seconds = (1 - line["data_wait"]) / line["clips_per_second"]
    return [seconds] if 0 < seconds < math.inf else []
