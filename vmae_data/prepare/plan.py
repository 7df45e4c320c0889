"""Row 2. Sources and a recipe → which source goes into which shard, fixed before any work."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import msgspec
import pyarrow as pa
from msgspec.structs import force_setattr

from vmae_data.errors import DataError, MisuseError, NotThereError
from vmae_data.format import (
    FORMAT_VERSION,
    PLAN,
    PLAN_TABLE,
    Label,
    PlanFacts,
    Rational,
    decode_record,
    encode_record,
    path_to_text,
)
from vmae_data.labels import label_columns, label_words
from vmae_data.prepare.listing import Columns
from vmae_data.prepare.sources import Listing, SourceVideo
from vmae_data.prepare.tree import Folder
from vmae_data.recipes import difference, shortened, with_defaults
from vmae_data.store import Place, commit_bytes, create_bytes, read_bytes, writer_name

__all__ = [
    "WHOLE",
    "BuildSpec",
    "Part",
    "Plan",
    "Profile",
    "Thinning",
    "compare_plan",
    "listing_digest",
    "make_plan",
    "read_plan",
    "spec_of",
    "write_plan",
]


Profile = Literal["h264", "mpeg4", "mjpeg", "copy"]


class Thinning(NamedTuple):
    """What a build recipe says of time: every `stride`-th frame, or `rate` frames a second (stride 0 then)."""

    stride: int
    rate: Rational | None = None
    phases: int = 1
    longest_seconds: float | None = None

    @property
    def by_rule(self) -> bool:
        """Whether the kept frames follow from a frame's number alone."""
        return self.rate is None and self.phases == 1 and self.longest_seconds is None


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a build recipe: all that decides what the shards hold."""

    short_side: int = 256
    stride: int | None = None  # in source frames; 4 where neither it nor `rate` is given
    rate: float | None = None  # kept frames a second, for sources of mixed or variable rate
    phases: int = 1
    longest_seconds: float | None = None
    profile: Profile = "h264"
    crf: int = 23  # of h264
    qscale: int = 3  # of mpeg4 and mjpeg
    gop: int = 16
    samples_per_shard: int = 500
    seed: int = 0
    keep_truncated: bool = False
    may_flip: bool = True
    columns: Columns | None = None  # of a listing; None: the names that are known

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side = {self.short_side}: expected an even number of 16 or more")
        self._check_time()
        for name, low, high in (
            ("crf", 0, 51),
            ("qscale", 1, 31),
            ("gop", 1, 600),
            ("samples_per_shard", 1, 100000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}: expected {low} to {high}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}: expected 0 or a positive number below 2^63")

    def _check_time(self) -> None:
        if self.stride is not None and self.rate is not None:
            raise ValueError(f"stride = {self.stride}, rate = {self.rate}: give one of the two")
        if self.rate is None and self.stride is None:
            force_setattr(self, "stride", 4)
        if self.stride is not None and not 1 <= self.stride <= 1000:
            raise ValueError(f"stride = {self.stride}: expected 1 to 1000")
        if self.rate is not None and not 0.01 <= self.rate <= 1000:
            raise ValueError(f"rate = {self.rate}: expected 0.01 to 1000 frames a second")
        if self.longest_seconds is not None and not 0 < self.longest_seconds < math.inf:
            raise ValueError(f"longest_seconds = {self.longest_seconds}: expected seconds above 0, such as 10")
        most = self.stride or 16
        if not 1 <= self.phases <= most:
            raise ValueError(f"phases = {self.phases}: expected 1 to {most}, the stride")
        if self.profile == "copy" and self.thinning != Thinning(1):
            raise ValueError(
                'profile = "copy" keeps a video as it is: give stride = 1, and no rate, phases or longest_seconds'
            )

    @property
    def thinning(self) -> Thinning:
        """What it says of time. A rate is taken as it is written: 6.25 is 25/4."""
        exact = None if self.rate is None else Fraction(repr(self.rate))
        rate = None if exact is None else Rational(exact.numerator, exact.denominator)
        return Thinning(self.stride or 0, rate, self.phases, self.longest_seconds)

    def remarks(self) -> list[str]:
        """What a person should know before the build starts."""
        if not 256 <= self.short_side <= 320:
            return [f"short_side = {self.short_side} lies outside 256 to 320, the sizes that VideoMAE's recipes expect"]
        return []


class Part(NamedTuple):
    """Every `of`-th shard, from shard `number` on: what one job of several makes."""

    number: int
    of: int

    def shards(self, total: int) -> range:
        return range(self.number, total, self.of)


WHOLE = Part(0, 1)


class Plan(NamedTuple):
    """The whole assignment: sources in plan order, cut by number into shards."""

    facts: PlanFacts
    folder: Folder
    sources: tuple[SourceVideo, ...]
    spec: BuildSpec

    def shard_sources(self, shard: int) -> tuple[SourceVideo, ...]:
        size = self.spec.samples_per_shard
        return self.sources[shard * size : (shard + 1) * size]

    def class_name(self, label: Label | None) -> str | None:
        """The name of one class; several stand in the facts as numbers only."""
        return self.facts.classes[label] if isinstance(label, int) else None


def make_plan(listing: Listing, spec: BuildSpec, *, split: str | None, ffmpeg: str, ffmpeg_sha256: str) -> Plan:
    """Order the sources by a hash of (seed, key), so that classes mix, and cut them by number.

    Raises MisuseError when two paths share a key.
    """
    ordered = sorted(listing.sources, key=lambda source: hashlib.sha256(f"{spec.seed}/{source.key}".encode()).digest())
    for a, b in itertools.pairwise(ordered):
        if a.key == b.key:
            raise MisuseError(
                f"{path_to_text(a.path)} and {path_to_text(b.path)} have the same key {a.key}; rename one of them"
            )
    facts = PlanFacts(
        version=FORMAT_VERSION,
        listing=listing_digest(listing),
        sources=len(ordered),
        shards=-(-len(ordered) // spec.samples_per_shard),
        classes=listing.classes,
        recipe=_plan_recipe(msgspec.to_builtins(spec)),
        split=split,
        ffmpeg=ffmpeg,
        ffmpeg_sha256=ffmpeg_sha256,
    )
    return Plan(facts, listing.folder, tuple(ordered), spec)


def _plan_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Without `columns`: what they gave is in the listing's digest."""
    return {key: value for key, value in values.items() if key != "columns"}


def listing_digest(listing: Listing) -> str:
    """Of relative paths and labels only: a source that moved is the same data set."""
    digest = hashlib.sha256()
    for line in sorted(_listing_lines(listing)):
        digest.update(line)
    return digest.hexdigest()


def _listing_lines(listing: Listing) -> Iterator[bytes]:
    for source in listing.sources:
        label = label_words(source.label, listing.classes)
        yield f"{path_to_text(source.path)}\t{label}\n".encode("utf-8", "surrogateescape")


def compare_plan(dest: Place, plan: Plan) -> Plan:
    """The plan with the facts that `dest` stores, if any: digests come from the plan as stored.

    Keys that recipes have gained since are compared with their defaults.
    Raises MisuseError with the difference: one destination holds one plan.
    """
    try:
        stored = read_plan(dest)
    except NotThereError:
        return plan
    completed = msgspec.structs.replace(stored, recipe=_plan_recipe(with_defaults(stored.recipe, type(plan.spec))))
    _refuse_difference(dest, completed, plan.facts)
    return plan._replace(facts=stored)


def write_plan(dest: Place, plan: Plan) -> None:
    """Write the plan. Of parts that begin at the same time the first one's plan holds. Raises MisuseError as `compare_plan`."""
    if not create_bytes(dest / PLAN, encode_record(plan.facts)):
        _refuse_difference(dest, read_plan(dest), plan.facts)
    commit_bytes(dest / PLAN_TABLE, _plan_table(plan), writer_name())


def _refuse_difference(dest: Place, stored: PlanFacts, given: PlanFacts) -> None:
    changed = difference(msgspec.to_builtins(stored), msgspec.to_builtins(given))
    if changed:
        raise MisuseError(
            f"{dest}: was planned otherwise ({shortened('; '.join(changed))}); give the old settings, or name another folder"
        )


def read_plan(dest: Place) -> PlanFacts:
    """The plan of a destination. Raises DataError where there is none."""
    return decode_record(read_bytes(dest / PLAN), PlanFacts, str(dest / PLAN))


def spec_of(plan: PlanFacts) -> BuildSpec:
    """The recipe of a plan. Raises DataError where another version of this program wrote it."""
    try:
        return msgspec.convert(plan.recipe, BuildSpec)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{PLAN}: its recipe is not one of this version ({error}); use the version that built it"
        ) from error


def _plan_table(plan: Plan) -> bytes:
    size = plan.spec.samples_per_shard
    table = pa.table(
        {
            "key": pa.array([source.key for source in plan.sources], pa.string()),
            "path": pa.array([path_to_text(source.path) for source in plan.sources], pa.string()),
            **label_columns([source.label for source in plan.sources]),
            "shard": pa.array([n // size for n in range(len(plan.sources))], pa.int32()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
