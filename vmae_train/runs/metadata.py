"""A run's folder: what it was started with, and whether it may go on with what is given now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.read.mixture import Mixture
from vmae_data.recipes import build_spec, difference, shortened, with_defaults
from vmae_data.storage import commit_bytes
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.runs.layout import RUN
from vmae_train.runs.run_files import local_copy

__all__ = [
    "RunFacts",
    "begin_run",
    "check_run",
    "clip_of",
    "data_words",
    "other_data",
    "read_facts",
    "run_clip",
    "run_of",
]

# Where and how fast, not what: these may change when a run goes on.
_MAY_CHANGE = (
    ("loader",),
    ("cache",),
    ("log",),
    ("checkpoint",),
    ("train", "micro_batch"),
    ("train", "threads"),
    ("model", "compile"),
    ("model", "activation_checkpointing"),
)


# A recipe is tables of plain values, and of such tables (augment.randaugment): what is nested deeper was not written
# by a training.
_Plain = None | bool | int | float | str
_Value = _Plain | list[_Plain]
_Table = dict[str, _Value | dict[str, _Value]]
_Tables = dict[str, _Value | _Table]


class _Train(msgspec.Struct):
    batch: int
    steps: int | None = None
    epochs: int | None = None


class _Model(msgspec.Struct):
    size: str


class _Mask(msgspec.Struct):
    ratio: float


class _Needed(msgspec.Struct):
    """What is read of a run's recipe by those who only look at the run."""

    model: _Model
    optim: dict[str, Any]
    train: _Train
    clip: dict[str, Any]
    mask: _Mask | None = None


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: the resolved recipe, the digest of each data set, and where the weights came from."""

    kind: str
    recipe: dict[str, Any]
    data: tuple[str, ...]
    data_digest: tuple[str, ...]
    data_listing: tuple[str, ...] = ()  # which videos each was built from, however they were prepared
    data_weight: tuple[float, ...] = ()  # of each, where they were given
    validation: str | None = None
    validation_digest: str | None = None
    init: str | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < len(self.data) == len(self.data_digest) or len(self.data_weight) not in (0, len(self.data)):
            raise ValueError("data, data_digest and data_weight are not of as many data sets")


def check_run(folder: Path, facts: RunFacts, spec: type[msgspec.Struct], shown: str) -> None:
    """Check that the run in `folder`, if any, is this one. `spec` is the recipe's class, `shown` the run's path or URL.

    Keys that the program has gained since are compared with their defaults. Raises MisuseError with the difference.
    """
    if not (folder / RUN).exists():
        return
    # As it will be read back: a tuple comes back as a list.
    given = msgspec.json.decode(msgspec.json.encode(facts), type=RunFacts)
    stored = read_facts(folder)
    stored = msgspec.structs.replace(stored, recipe=with_defaults(stored.recipe, spec))
    changed = difference(_fixed(stored), _fixed(given))
    if changed:
        raise MisuseError(
            f"{shown}: was started otherwise ({shortened('; '.join(changed))}); "
            "give the old values, or name another --out"
        )


def begin_run(folder: Path, facts: RunFacts) -> None:
    """Write down what the run is made of; only when all of it was found to fit."""
    commit_bytes(folder / RUN, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def _fixed(facts: RunFacts) -> dict[str, Any]:
    """What must stay as it was; the data may have moved, its digest (and so its listing) may not have changed."""
    values: dict[str, Any] = msgspec.to_builtins(facts)
    for name in ("data", "data_listing", "validation"):
        values.pop(name)
    for keys in _MAY_CHANGE:
        inner = values["recipe"]
        for key in keys[:-1]:
            inner = inner.get(key, {})
        inner.pop(keys[-1], None)
    return values


def read_facts(folder: Path) -> RunFacts:
    """What a run was started with. Raises DataError where it isn't one."""
    path = folder / RUN
    try:
        facts = msgspec.json.decode(path.read_bytes(), type=RunFacts)
    except (OSError, *NOT_JSON) as error:
        raise DataError(f"{folder}: is not a run ({error}); name the --out of a training") from error
    try:
        msgspec.convert(facts.recipe, _Tables)
        msgspec.convert(facts.recipe, _Needed)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DataError(f"{path}: its recipe is not a training's ({error}); name the --out of a training") from error
    return facts


def run_of(checkpoint: str) -> Path | None:
    """The run that a checkpoint's path belongs to: itself, or the folder above `checkpoints`."""
    path = local_copy(checkpoint).resolve()
    return next((folder for folder in (path, path.parent.parent) if (folder / RUN).exists()), None)


def run_clip(checkpoint: str) -> ClipSpec | None:
    """The clips that a checkpoint was trained on, where its run is known."""
    folder = run_of(checkpoint)
    return None if folder is None else clip_of(read_facts(folder))


def other_data(init: str | None, mix: Mixture) -> str | None:
    """A word of warning where weights were trained on other videos than a run's, and that is known.

    What is learnt on one data set fits another worse (Tong et al., "VideoMAE", 2022, on domain shift): on
    Something-Something V2 68.5 % were reached from Kinetics-400, 69.6 % from its own videos.
    """
    run = run_of(init) if init is not None else None
    if run is None:
        return None
    facts = read_facts(run)
    if not facts.data_listing or set(facts.data_listing) & set(mix.listings):
        return None
    return (
        f"--init was trained on {data_words(facts)}, not on these videos; the less they look alike, the less it helps: "
        "compare with a pretraining on these"
    )


def data_words(facts: RunFacts) -> str:
    """A run's data sets as they were named, with their weights."""
    if not facts.data_weight:
        return ", ".join(facts.data)
    return ", ".join(f"{url}:{weight:g}" for url, weight in zip(facts.data, facts.data_weight, strict=True))


def clip_of(facts: RunFacts) -> ClipSpec:
    """The clips of a run's recipe."""
    return build_spec(facts.recipe["clip"], ClipSpec, "the run's recipe, clip")
