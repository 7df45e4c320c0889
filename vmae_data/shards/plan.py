"""Sources and a recipe → the plan: which source goes into which shard, fixed before any work."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError, NewerFormatError
from vmae_data.format import (
    FORMAT_VERSION,
    PLAN,
    PLAN_TABLE,
    RESTORE_PLAN,
    RULES,
    Label,
    PlanFacts,
    decode_record,
    encode_record,
)
from vmae_data.labels import label_columns, table_labels
from vmae_data.names import path_from_text, path_to_text
from vmae_data.recipes import difference, shorten_digests
from vmae_data.sources.find import Listing, SourceVideo, listing_digest
from vmae_data.sources.val_share import ValShare
from vmae_data.sources.video_files import Folder
from vmae_data.storage import StoragePath, commit_bytes, create_bytes, read_bytes, writer_name

__all__ = [
    "WHOLE",
    "Part",
    "Plan",
    "make_plan",
    "plan_recipe",
    "read_plan",
    "read_sources",
    "refuse_difference",
    "spec_of",
    "stored_rules",
    "write_appended_plan",
    "write_plan",
]


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
        """The sources of a shard. Each append begins a shard."""
        stage, before = self.facts.stage_of(shard), self.facts.appended_to
        first_source, first_shard = (before[stage - 1].sources, before[stage - 1].shards) if stage else (0, 0)
        end = before[stage].sources if stage < len(before) else len(self.sources)
        start = first_source + (shard - first_shard) * self.spec.samples_per_shard
        return self.sources[start : min(start + self.spec.samples_per_shard, end)]

    def class_name(self, label: Label | None) -> str | None:
        """The name of a single class; a sample with several classes stores numbers only."""
        return self.facts.classes[label] if isinstance(label, int) else None


def make_plan(
    listing: Listing,
    spec: BuildSpec,
    *,
    split: str | None,
    ffmpeg: str,
    ffmpeg_sha256: str,
    share: ValShare | None = None,
) -> Plan:
    """Order the sources by a hash of (seed, key), which mixes the classes, and cut them by count.

    `share` says how the source was split, if the listing is one of its two parts.
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
        listing=listing_digest(listing.sources, listing.classes),
        sources=len(ordered),
        shards=-(-len(ordered) // spec.samples_per_shard),
        classes=listing.classes,
        recipe=plan_recipe(msgspec.to_builtins(spec)),
        split=split,
        ffmpeg=ffmpeg,
        ffmpeg_sha256=ffmpeg_sha256,
        rules=RULES,
        val_share=share.share if share else None,
        group_by=share.group_by if share else None,
    )
    return Plan(facts, listing.folder, tuple(ordered), spec)


def plan_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Without `columns`: the listing's digest covers what they gave."""
    return {key: value for key, value in values.items() if key != "columns"}


def write_plan(dest: StoragePath, plan: Plan) -> None:
    """Write the plan. If parts start at the same time, the first plan counts. Raises MisuseError for another plan."""
    if not create_bytes(dest / PLAN, encode_record(plan.facts)):
        refuse_difference(dest, read_plan(dest), plan.facts)
    commit_bytes(dest / PLAN_TABLE, _plan_table(plan), writer_name())


def write_appended_plan(dest: StoragePath, plan: Plan) -> None:
    """Replace the plan by one that appends to it. Its last file is `plan.json`: before that, nothing was appended.

    Raises MisuseError if `dest` meanwhile has another plan.
    """
    stored = read_plan(dest)
    if stored.digest() not in {stage.digest() for stage in plan.facts.stages()}:
        raise MisuseError(f"{dest}: another build appended to it meanwhile. Run the same build again")
    commit_bytes(dest / PLAN_TABLE, _plan_table(plan), writer_name())
    commit_bytes(dest / PLAN, encode_record(plan.facts), writer_name())


def refuse_difference(dest: StoragePath, stored: PlanFacts, new: PlanFacts) -> None:
    """Raise MisuseError with the difference: a destination holds one plan."""
    changed = difference(msgspec.to_builtins(stored), msgspec.to_builtins(new))
    if changed:
        raise MisuseError(
            f"{dest}: has a different plan ({shorten_digests('; '.join(changed))}). Use the old settings, or name another folder"
        )


def read_plan(dest: StoragePath) -> PlanFacts:
    """The plan of a destination. Raises NotFoundError if there is none, NewerFormatError for rules of a newer version."""
    plan = decode_record(read_bytes(dest / PLAN), PlanFacts, str(dest / PLAN), advice=RESTORE_PLAN)
    if plan.rules > RULES:
        raise NewerFormatError(
            f"{dest / PLAN}: its rules {plan.rules} are newer than this program's {RULES}. Update vmae"
        )
    return plan


def stored_rules(dest: StoragePath) -> int:
    """The rules of the plan that a destination holds. The newest if there is none that this version can read."""
    try:
        return read_plan(dest).rules
    except DataError:
        return RULES


def read_sources(dest: StoragePath, plan: PlanFacts) -> tuple[SourceVideo, ...]:
    """The sources of a stored plan, in its order. Further rows are of an append that was killed before it began.

    Raises DataError if `plan.arrow` is missing, damaged, or of another plan.
    """
    path = dest / PLAN_TABLE
    try:
        table = pa.ipc.open_file(pa.py_buffer(read_bytes(path))).read_all().slice(0, plan.sources)
        table.validate(full=True)  # a damaged offset would point outside the memory
        columns = table.to_pydict()
        rows = zip(columns["key"], columns["path"], table_labels(columns), strict=True)
        sources = tuple(SourceVideo(key, path_from_text(text), label) for key, text, label in rows)
        found = listing_digest(sources, plan.classes)
    except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as error:
        raise DataError(f"{path}: can't be read ({error}). {RESTORE_PLAN}") from error
    if found != plan.listing:
        raise DataError(f"{path}: is not the table of {PLAN}. {RESTORE_PLAN}")
    return sources


def spec_of(plan: PlanFacts) -> BuildSpec:
    """The recipe of a plan. Raises DataError if another version of this program wrote it."""
    try:
        return msgspec.convert(plan.recipe, BuildSpec)
    except msgspec.ValidationError as error:
        raise DataError(
            f"{PLAN}: this version can't read its recipe ({error}). Use the version that built it"
        ) from error


def _plan_table(plan: Plan) -> bytes:
    table = pa.table(
        {
            "key": pa.array([source.key for source in plan.sources], pa.string()),
            "path": pa.array([path_to_text(source.path) for source in plan.sources], pa.string()),
            **label_columns([source.label for source in plan.sources]),
            "shard": pa.array(
                [shard for shard in range(plan.facts.shards) for _ in plan.shard_sources(shard)], pa.int32()
            ),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
