"""Sources and a recipe → the plan: which source goes into which shard, fixed before any work."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, NewerFormatError, NotFoundError
from vmae_data.format import (
    FORMAT_VERSION,
    PLAN,
    PLAN_TABLE,
    RULES,
    Label,
    PlanFacts,
    decode_record,
    encode_record,
    path_to_text,
)
from vmae_data.labels import label_columns
from vmae_data.recipes import difference, shorten_digests, with_defaults
from vmae_data.sources.find import Listing, SourceVideo, listing_digest
from vmae_data.sources.video_files import Folder
from vmae_data.storage import StoragePath, commit_bytes, create_bytes, read_bytes, writer_name

__all__ = ["WHOLE", "Part", "Plan", "compare_plan", "make_plan", "read_plan", "spec_of", "write_plan"]


class Part(NamedTuple):
    """Every `of`-th shard from shard `number` on, for one of several jobs."""

    number: int
    of: int

    def shards(self, total: int) -> range:
        return range(self.number, total, self.of)


WHOLE = Part(0, 1)


class Plan(NamedTuple):
    """The sources in plan order, cut by count into shards."""

    facts: PlanFacts
    folder: Folder
    sources: tuple[SourceVideo, ...]
    spec: BuildSpec

    def shard_sources(self, shard: int) -> tuple[SourceVideo, ...]:
        size = self.spec.samples_per_shard
        return self.sources[shard * size : (shard + 1) * size]

    def class_name(self, label: Label | None) -> str | None:
        """The name of a single class; a sample with several classes stores numbers only."""
        return self.facts.classes[label] if isinstance(label, int) else None


def make_plan(listing: Listing, spec: BuildSpec, *, split: str | None, ffmpeg: str, ffmpeg_sha256: str) -> Plan:
    """Order the sources by a hash of (seed, key), which mixes the classes, and cut them by count.

    Raises MisuseError when two paths share a key.
    """
    ordered = sorted(listing.sources, key=lambda source: hashlib.sha256(f"{spec.seed}/{source.key}".encode()).digest())
    for a, b in itertools.pairwise(ordered):
        if a.key == b.key:
            raise MisuseError(
                f"{path_to_text(a.path)} and {path_to_text(b.path)} have the same key {a.key}. Rename one of them"
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
        rules=RULES,
    )
    return Plan(facts, listing.folder, tuple(ordered), spec)


def _plan_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Without `columns`: the listing's digest covers what they gave."""
    return {key: value for key, value in values.items() if key != "columns"}


def compare_plan(dest: StoragePath, plan: Plan) -> Plan:
    """The plan with the facts stored in `dest`, if any: digests are those of the stored plan.

    A recipe key that the stored plan lacks is compared by its default. Older rules of a stored plan hold: equal plans
    give equal shards, whichever version makes them.
    Raises MisuseError with the difference: a destination holds one plan.
    """
    try:
        stored = read_plan(dest)
    except NotFoundError:
        return plan
    completed = msgspec.structs.replace(stored, recipe=_plan_recipe(with_defaults(stored.recipe, type(plan.spec))))
    _refuse_difference(dest, completed, msgspec.structs.replace(plan.facts, rules=stored.rules))
    return plan._replace(facts=stored)


def write_plan(dest: StoragePath, plan: Plan) -> None:
    """Write the plan. If parts start at the same time, the first plan counts. Raises MisuseError as `compare_plan` does."""
    if not create_bytes(dest / PLAN, encode_record(plan.facts)):
        _refuse_difference(dest, read_plan(dest), plan.facts)
    commit_bytes(dest / PLAN_TABLE, _plan_table(plan), writer_name())


def _refuse_difference(dest: StoragePath, stored: PlanFacts, new: PlanFacts) -> None:
    changed = difference(msgspec.to_builtins(stored), msgspec.to_builtins(new))
    if changed:
        raise MisuseError(
            f"{dest}: has a different plan ({shorten_digests('; '.join(changed))}). Use the old settings, or name another folder"
        )


def read_plan(dest: StoragePath) -> PlanFacts:
    """The plan of a destination. Raises NotFoundError if there is none, NewerFormatError for rules of a newer version."""
    plan = decode_record(read_bytes(dest / PLAN), PlanFacts, str(dest / PLAN))
    if plan.rules > RULES:
        raise NewerFormatError(
            f"{dest / PLAN}: its rules {plan.rules} are newer than this program's {RULES}. Update vmae"
        )
    return plan


def spec_of(plan: PlanFacts) -> BuildSpec:
    """The recipe of a plan. Raises DataError if another version of this program wrote it."""
    try:
        return msgspec.convert(plan.recipe, BuildSpec)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{PLAN}: this version can't read its recipe ({error}). Use the version that built it"
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
