"""RUN/run.json: what a run was started with, and whether it may resume with what is given now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from vmae_data.errors import DataError, MisuseError, NotFoundError
from vmae_data.format import NOT_JSON, Index, Rational
from vmae_data.read.batches import DataStage
from vmae_data.read.mixture import Mixture
from vmae_data.recipes import build_spec, difference, shorten_digests, with_defaults
from vmae_data.storage import commit_bytes, read_bytes
from vmae_train.clips.frame_sampling import ClipSpec, Spacing
from vmae_train.runs.layout import EVALUATION, RUN, newest_checkpoint
from vmae_train.runs.log import read_log
from vmae_train.runs.run_files import local_copy

__all__ = [
    "RunFacts",
    "VideoFormat",
    "check_run",
    "clip_of",
    "data_text",
    "describe_other_data",
    "fixed_facts",
    "read_facts",
    "run_clip",
    "run_of",
    "write_facts",
]

# Keys that say where and how fast, but not what: they may change when a run resumes.
_MAY_CHANGE = (
    ("loader",),
    ("cache",),
    ("log",),
    ("checkpoint",),
    ("train", "micro_batch"),
    ("train", "threads"),
    ("train", "engine"),
    ("train", "zero_stage"),
    ("model", "compile"),
    ("model", "activation_checkpointing"),
)

# A recipe has tables of plain values, and tables in those (augment.randaugment). Deeper nesting is not a training's.
_Plain = None | bool | int | float | str
_Value = _Plain | list[_Plain]
_Table = dict[str, _Value | dict[str, _Value]]
_Tables = dict[str, _Value | _Table]

# The part of a recipe that the readers of a run need.
_ModelTable = msgspec.defstruct("_ModelTable", [("size", str)])
_TrainTable = msgspec.defstruct(
    "_TrainTable", [("batch", int), ("steps", int | None, None), ("epochs", int | None, None)]
)
_MaskTable = msgspec.defstruct("_MaskTable", [("ratio", float)])
_Recipe = msgspec.defstruct(
    "_Recipe",
    [
        ("model", _ModelTable),
        ("optim", dict[str, Any]),
        ("train", _TrainTable),
        ("clip", dict[str, Any]),
        ("mask", _MaskTable | None, None),
    ],
)


class VideoFormat(msgspec.Struct, frozen=True):
    """How the videos of a data set were built: their short side in pixels, and how they were thinned."""

    short_side: int
    stride: int | None  # in source frames; None if `rate` is set
    rate: Rational | None = None

    @classmethod
    def of(cls, index: Index) -> VideoFormat:
        return cls(index.short_side, index.stride, index.rate)

    @property
    def spacing(self) -> Spacing:
        return Spacing(self.stride, self.rate)


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """run.json: the resolved recipe, the digest of each data set, and the source of the first weights."""

    kind: str
    recipe: dict[str, Any]
    data: tuple[str, ...]
    data_digest: tuple[str, ...]
    data_listing: tuple[str, ...] = ()  # digests of the source videos, independent of how they were built
    data_weight: tuple[float, ...] = ()  # of each data set, if weights were given
    data_stages: tuple[DataStage, ...] = ()  # which shards are read from which epoch on; older runs lack it
    validation: str | None = None
    validation_digest: str | None = None
    init: str | None = None
    classes: tuple[str, ...] = ()
    video_format: VideoFormat | None = None  # of the validation data, else of the first data set; older runs lack it

    def __post_init__(self) -> None:
        if not 0 < len(self.data) == len(self.data_digest) or len(self.data_weight) not in (0, len(self.data)):
            raise ValueError("data, data_digest and data_weight have different lengths")
        epochs = [stage.epoch for stage in self.data_stages]
        if epochs and (epochs[0] != 0 or epochs != sorted(set(epochs))):
            raise ValueError("data_stages do not begin at epoch 0, or are not in order")


def check_run(
    folder: Path, facts: RunFacts, mixture: Mixture, spec: type[msgspec.Struct], name: str, *, accept_appended: bool
) -> tuple[DataStage, ...]:
    """Check that the run in `folder`, if any, is this one. `spec` is the recipe's class, `name` the run's --out.

    Returns the stages of its data, without one for shards that were appended since.
    Keys that the program has gained since are compared with their defaults. A run that ended before it trained may
    start anew with any settings. Raises MisuseError with the difference.
    """
    if not (folder / RUN).exists() or not _has_trained(folder):
        return facts.data_stages
    # As it will be read back: a tuple becomes a list.
    given = msgspec.json.decode(msgspec.json.encode(facts), type=RunFacts)
    stored = read_facts(folder)
    stored = msgspec.structs.replace(stored, recipe=with_defaults(stored.recipe, spec))
    stages = stored.data_stages
    if stored.data_digest == given.data_digest:
        stages = stages or given.data_stages
    elif stages and stages[-1].begins(mixture):
        _check_appended(stored, given, mixture, name, accept_appended=accept_appended)
        stored = msgspec.structs.replace(stored, data_digest=given.data_digest)
    changed = difference(fixed_facts(stored), fixed_facts(given))
    if changed:
        advice = "Use the old settings, or name another --out"
        if any(line.startswith(("recipe.train.epochs:", "recipe.train.steps:")) for line in changed):
            advice = f"The learning rate depends on the length. To train longer: --init {name} and another --out"
        raise MisuseError(f"{name}: was started with other settings ({shorten_digests('; '.join(changed))}). {advice}")
    return stages


def _has_trained(folder: Path) -> bool:
    """Whether there is anything that other settings would make wrong."""
    is_saved = newest_checkpoint(folder) is not None or (folder / EVALUATION).exists()
    return is_saved or bool(read_log(folder, "train"))


def _check_appended(stored: RunFacts, given: RunFacts, mixture: Mixture, name: str, *, accept_appended: bool) -> None:
    """Raises MisuseError for appended shards that were not accepted, and for classes that a head does not have."""
    known = stored.data_stages[-1].shards
    grown = [
        f"{shards.url} gained {sum(shards.shard_sizes[count:])} samples"
        for shards, count in zip(mixture.sets, known, strict=True)
        if len(shards.shard_sizes) > count
    ]
    if stored.classes != given.classes:
        raise MisuseError(
            f"{name}: its data gained {len(given.classes) - len(stored.classes)} classes, which its head lacks. "
            "Start a new run with --init, or use the data as it was"
        )
    if grown and not accept_appended:
        raise MisuseError(
            f"{name}: {', '.join(grown)} since this run began. Add --accept-appended to use them from the next epoch on"
        )


def write_facts(folder: Path, facts: RunFacts) -> None:
    """Write run.json, after all checks."""
    commit_bytes(folder / RUN, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def fixed_facts(facts: RunFacts) -> dict[str, Any]:
    """What must not change. Data may move, but its digest (and so its listing) must stay."""
    values: dict[str, Any] = msgspec.to_builtins(facts)
    for name in ("data", "data_listing", "data_stages", "validation", "video_format"):
        values.pop(name)
    for keys in _MAY_CHANGE:
        inner = values["recipe"]
        for key in keys[:-1]:
            inner = inner.get(key, {})
        inner.pop(keys[-1], None)
    return values


def read_facts(folder: Path) -> RunFacts:
    """What a run was started with. Raises DataError if `folder` is not a run."""
    path = folder / RUN
    try:
        facts = msgspec.json.decode(read_bytes(path), type=RunFacts)
    except NotFoundError as error:
        raise NotFoundError(f"{folder}: is not a run: it has no {RUN}. Name the --out of a training") from error
    except NOT_JSON as error:
        raise DataError(f"{folder}: is not a run ({RUN}: {error}). Name the folder of a run") from error
    try:
        msgspec.convert(facts.recipe, _Tables)
        msgspec.convert(facts.recipe, _Recipe)
    except (msgspec.ValidationError, RecursionError) as error:
        raise DataError(f"{path}: its recipe is not a training recipe ({error}). Name the folder of a run") from error
    return facts


def run_of(checkpoint: str) -> Path | None:
    """The run that a checkpoint's path belongs to: the path itself, or the directory above `checkpoints`."""
    path = local_copy(checkpoint).resolve()
    return next((folder for folder in (path, path.parent.parent) if (folder / RUN).exists()), None)


def run_clip(checkpoint: str) -> ClipSpec | None:
    """The clips that a checkpoint was trained on, if its run is known."""
    folder = run_of(checkpoint)
    return None if folder is None else clip_of(read_facts(folder))


def clip_of(facts: RunFacts) -> ClipSpec:
    """The clips of a run's recipe."""
    return build_spec(facts.recipe["clip"], ClipSpec, "the run's recipe, clip")


def describe_other_data(init: str | None, mixture: Mixture) -> str | None:
    """A warning if the weights of --init were trained on other videos than `mixture`. None if not, or not known.

    Features of one data set fit another less (Tong et al., "VideoMAE", 2022, domain shift): Something-Something V2
    reached 68.5 % from Kinetics-400 and 69.6 % from its own videos.
    """
    run = run_of(init) if init is not None else None
    if run is None:
        return None
    facts = read_facts(run)
    if not facts.data_listing or set(facts.data_listing) & set(mixture.listings):
        return None
    return (
        f"--init was trained on {data_text(facts)}, not on these videos. The less similar they are, the less it helps. "
        "Compare with a pretraining run on these videos"
    )


def data_text(facts: RunFacts) -> str:
    """A run's data sets as they were given, with their weights."""
    if not facts.data_weight:
        return ", ".join(facts.data)
    return ", ".join(f"{url}:{weight:g}" for url, weight in zip(facts.data, facts.data_weight, strict=True))
