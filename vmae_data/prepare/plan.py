"""Row 2. Sources and a recipe → which source goes into which shard, fixed before any work."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import pyarrow as pa

from vmae_data.errors import MisuseError
from vmae_data.format import (
    FORMAT_VERSION,
    PLAN,
    PLAN_TABLE,
    PlanFacts,
    decode_record,
    encode_record,
    path_to_text,
)
from vmae_data.prepare.sources import Listing, SourceVideo
from vmae_data.recipes import difference, shortened
from vmae_data.store import commit_bytes, read_bytes

__all__ = ["BuildSpec", "Plan", "make_plan", "settle_plan"]


class BuildSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The keys of a build recipe: all that decides what the shards hold."""

    short_side: int = 256
    stride: int = 4
    profile: Literal["h264"] = "h264"
    crf: int = 23
    gop: int = 16
    samples_per_shard: int = 500
    seed: int = 0
    keep_truncated: bool = False
    may_flip: bool = True

    def __post_init__(self) -> None:
        if self.short_side < 16 or self.short_side % 2:
            raise ValueError(f"short_side = {self.short_side}: expected an even number of 16 or more")
        for name, low, high in (
            ("stride", 1, 1000),
            ("crf", 0, 51),
            ("gop", 1, 600),
            ("samples_per_shard", 1, 100000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}: expected {low} to {high}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}: expected 0 or a positive number below 2^63")

    def remarks(self) -> list[str]:
        """What a person should know before the build starts."""
        if not 256 <= self.short_side <= 320:
            return [f"short_side = {self.short_side} lies outside 256 to 320, the sizes that VideoMAE's recipes expect"]
        return []


class Plan(NamedTuple):
    """The whole assignment: sources in plan order, cut by number into shards."""

    facts: PlanFacts
    folder: bytes
    sources: tuple[SourceVideo, ...]
    spec: BuildSpec

    def shard_sources(self, shard: int) -> tuple[SourceVideo, ...]:
        size = self.spec.samples_per_shard
        return self.sources[shard * size : (shard + 1) * size]

    def class_name(self, label: int | None) -> str | None:
        return None if label is None else self.facts.classes[label]


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
        listing=_listing_digest(listing),
        sources=len(ordered),
        shards=-(-len(ordered) // spec.samples_per_shard),
        classes=listing.classes,
        recipe=msgspec.to_builtins(spec),
        split=split,
        ffmpeg=ffmpeg,
        ffmpeg_sha256=ffmpeg_sha256,
    )
    return Plan(facts, listing.folder, tuple(ordered), spec)


def _listing_digest(listing: Listing) -> str:
    """Of relative paths and labels only: a source that moved is the same data set."""
    digest = hashlib.sha256()
    for line in sorted(_listing_lines(listing)):
        digest.update(line)
    return digest.hexdigest()


def _listing_lines(listing: Listing) -> Iterator[bytes]:
    for source in listing.sources:
        label = "" if source.label is None else listing.classes[source.label]
        yield f"{path_to_text(source.path)}\t{label}\n".encode("utf-8", "surrogateescape")


def settle_plan(dest: Path, plan: Plan) -> None:
    """Write the plan, or make sure that the one which is there says the same.

    Raises MisuseError with the difference: one destination holds one plan.
    """
    path = dest / PLAN
    if path.exists():
        old = decode_record(read_bytes(path), PlanFacts, str(path))
        changed = difference(msgspec.to_builtins(old), msgspec.to_builtins(plan.facts))
        if changed:
            raise MisuseError(
                f"{dest}: was planned otherwise ({shortened('; '.join(changed))}); give the old settings, or name another folder"
            )
    commit_bytes(dest / PLAN_TABLE, _plan_table(plan))
    if not path.exists():
        commit_bytes(path, encode_record(plan.facts))


def _plan_table(plan: Plan) -> bytes:
    size = plan.spec.samples_per_shard
    table = pa.table(
        {
            "key": pa.array([source.key for source in plan.sources], pa.string()),
            "path": pa.array([path_to_text(source.path) for source in plan.sources], pa.string()),
            "label": pa.array([source.label for source in plan.sources], pa.int32()),
            "shard": pa.array([n // size for n in range(len(plan.sources))], pa.int32()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
