"""`vmae-shard merge`, and how every build ends: all markers are there, so the index is written."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmae_data.errors import DataError
from vmae_data.format import UNLISTED, Index, PlanFacts, ShardHead
from vmae_data.shards.index import failure_lines, write_index
from vmae_data.shards.pack import read_heads
from vmae_data.shards.plan import Part, read_plan
from vmae_data.shards.workspace import Workspace, workspace_of
from vmae_data.storage import LOCK, StoragePath, commit_bytes, exists, list_names, part_name, read_bytes, remove

__all__ = [
    "BuildReport",
    "Made",
    "finish",
    "made_of",
    "merge_parts",
    "part_failures_name",
    "write_part_failures",
]

PART_FAILURES = "failures"
NAMED = 8  # shards or parts that a message names


@dataclass(frozen=True)
class Made:
    """What the shards of a run hold, whoever made them."""

    sources: int
    samples: int
    shards: int  # with samples
    bytes: int
    failures: dict[str, int]  # by reason


@dataclass(frozen=True)
class BuildReport:
    """What a build, a part of one, or a merge ended with."""

    made: Made
    index: Index | None  # None after a part
    encoded: int  # in this run
    read_bytes: int  # of sources that gave samples in this run
    seconds: float  # of this run
    unlisted: int  # videos of the source that its annotations don't name
    left_out: int = 0  # sources that `exclude` named
    unmatched: int = 0  # paths that it named and that are no sources here

    @property
    def failed(self) -> int:
        return sum(self.made.failures.values())

    @property
    def reasons(self) -> dict[str, int]:
        return self.made.failures


def merge_parts(dest: StoragePath, staging: Path | None = None) -> BuildReport:
    """Write the index of a build that was made in parts.

    Raises DataError naming the shards that are missing and the parts that make them, VmaeError while a
    part is being built.
    """
    started_at = time.monotonic()
    workspace = workspace_of(dest, staging)
    read_plan(dest)  # no destination of a build should become a folder by being locked
    with workspace.held("build"):
        plan = read_plan(dest)
        found = read_heads(dest, range(plan.shards), plan.digest())
        if len(found) < plan.shards:
            raise DataError(_missing_words(workspace, [shard for shard in range(plan.shards) if shard not in found]))
        heads = list(found.values())
        index = finish(workspace, plan, heads)
        unlisted = read_bytes(dest / UNLISTED).count(b"\n") if exists(dest / UNLISTED) else 0
    return BuildReport(
        made=made_of(plan.sources, heads),
        index=index,
        encoded=0,
        read_bytes=0,
        seconds=time.monotonic() - started_at,
        unlisted=unlisted,
    )


def _missing_words(workspace: Workspace, missing: Sequence[int]) -> str:
    words = (
        f"{workspace.dest}: {len(missing)} shard{'' if len(missing) == 1 else 's'} not built yet ({_some(missing)}); "
    )
    counts = {_parts_of(name) for name in (*list_names(workspace.dest), *list_names(workspace.locks))} - {None}
    if len(counts) != 1:
        return words + "run the parts that make them (shard modulo N), or the whole build"
    count = counts.pop() or 1
    parts = sorted({shard % count for shard in missing})
    return words + f"run --part {_some([f'{number}/{count}' for number in parts])}, then merge again"


def _some(things: Sequence[object]) -> str:
    return ", ".join([str(thing) for thing in things[:NAMED]] + ["…"] * (len(things) > NAMED))


def _parts_of(name: str) -> int | None:
    """How many parts the name of a part's own file speaks of."""
    found = re.match(rf"({re.escape(LOCK)}|{PART_FAILURES})-part-\d+-of-(\d+)", name)
    return int(found[2]) if found else None


def finish(workspace: Workspace, plan: PlanFacts, heads: Sequence[ShardHead]) -> Index:
    """Every shard is there: write the index, and take away whatever helped to make them."""
    workspace.clean_half_written()
    if not workspace.apart:  # with the index the folder holds nothing else any more
        workspace.remove_staging()
    workspace.forget_parts()
    for name in list_names(workspace.dest):
        if name.startswith(f"{PART_FAILURES}-part-"):
            remove(workspace.dest / name)
    index = write_index(workspace.dest, workspace.staging, plan, heads)
    workspace.remove_staging()
    return index


def write_part_failures(dest: StoragePath, part: Part, heads: Sequence[ShardHead]) -> None:
    """What a person wants to see of a part before all are merged; those of another division say nothing any more."""
    for name in list_names(dest):
        if name.startswith(f"{PART_FAILURES}-part-") and _parts_of(name) != part.of:
            remove(dest / name)
    failures = [failure for head in heads for failure in head.failures]
    commit_bytes(dest / part_failures_name(part), failure_lines(failures))


def part_failures_name(part: Part) -> str:
    return f"{part_name(PART_FAILURES, *part)}.jsonl"


def made_of(sources: int, heads: Sequence[ShardHead]) -> Made:
    full = [head for head in heads if head.num_samples]
    reasons = Counter(failure.reason for head in heads for failure in head.failures)
    return Made(
        sources=sources,
        samples=sum(head.num_samples for head in full),
        shards=len(full),
        bytes=sum(head.bytes for head in full),
        failures=dict(sorted(reasons.items())),
    )
