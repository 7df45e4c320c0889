"""All shards are packed → the index is written: the end of every build, and `vmae-shard merge`."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vmae_data.amounts import plural
from vmae_data.errors import DataError
from vmae_data.format import UNLISTED, Index, PlanFacts, ShardHead, SourceFacts
from vmae_data.names import first_names
from vmae_data.shards.index import failure_lines, write_index
from vmae_data.shards.pack import read_heads
from vmae_data.shards.plan import Part, read_plan, read_sources
from vmae_data.shards.workspace import Workspace, workspace_of
from vmae_data.storage import LOCK, StoragePath, commit_bytes, exists, list_names, part_name, read_bytes, remove

__all__ = ["BuildReport", "finish_build", "merge_parts", "part_failures_name", "write_part_failures"]

PART_FAILURES = "failures"
MOST_NAMED = 8  # shards or parts in a message


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """The result of a build, a part of one, or a merge."""

    heads: Sequence[ShardHead]  # of all its shards, whichever run made them
    sources: int
    index: Index | None  # None after a part
    seconds: float  # of this run
    unlisted: int  # videos of the source that its annotations do not name
    encoded: int = 0  # sources in this run
    read_bytes: int = 0  # of those that gave samples
    excluded: int = 0  # sources that `exclude` names
    unmatched: int = 0  # paths that `exclude` names, and that match no source
    appended: int = 0  # sources that this run added to the data set
    changed: Sequence[str] = ()  # sources whose file has another size than when it was built; looked for on append
    removed: Sequence[str] = ()  # sources of the data set that are no longer in its source

    @property
    def samples(self) -> int:
        return sum(head.num_samples for head in self.heads)

    @property
    def shards(self) -> int:
        """Shards with samples."""
        return sum(head.num_samples > 0 for head in self.heads)

    @property
    def bytes(self) -> int:
        return sum(head.bytes for head in self.heads)

    @property
    def failures(self) -> dict[str, int]:
        """Reason → failed sources."""
        return dict(sorted(Counter(failure.reason for head in self.heads for failure in head.failures).items()))

    @property
    def failed(self) -> int:
        return sum(len(head.failures) for head in self.heads)


def merge_parts(dest: StoragePath, staging: Path | None = None) -> BuildReport:
    """Write the index of a build that was made in parts.

    Raises DataError naming the missing shards and the parts that make them, VmaeError while a part is running.
    """
    started_at = time.monotonic()
    workspace = workspace_of(dest, staging)
    read_plan(dest)  # before the lock, which would make a folder of any path
    with workspace.locked("build"):
        plan = read_plan(dest)
        heads = read_heads(dest, range(plan.shards), plan)
        if len(heads) < plan.shards:
            raise DataError(_missing_shards(workspace, [shard for shard in range(plan.shards) if shard not in heads]))
        if plan.appended_to:
            read_sources(dest, plan)  # raises if parts of different appends wrote the two files of the plan
        index = finish_build(workspace, plan, list(heads.values()))
        unlisted = read_bytes(dest / UNLISTED).count(b"\n") if exists(dest / UNLISTED) else 0
    return BuildReport(
        heads=list(heads.values()),
        sources=plan.sources,
        index=index,
        seconds=time.monotonic() - started_at,
        unlisted=unlisted,
    )


def _missing_shards(workspace: Workspace, missing: Sequence[int]) -> str:
    shown = first_names(map(str, missing), MOST_NAMED)
    text = f"{workspace.dest}: {plural(len(missing), 'shard')} not built yet ({shown}). "
    counts = {_count_of(name) for name in (*list_names(workspace.dest), *list_names(workspace.locks))} - {None}
    if len(counts) != 1:
        return text + "Run the parts that make them (shard modulo N), or the whole build"
    count = counts.pop() or 1
    parts = sorted({shard % count for shard in missing})
    return text + f"Run --part {first_names((f'{part}/{count}' for part in parts), MOST_NAMED)}, then merge again"


def _count_of(name: str) -> int | None:
    """The number of parts in the name of a part's own file."""
    match = re.match(rf"({re.escape(LOCK)}|{PART_FAILURES})-part-\d+-of-(\d+)", name)
    return int(match[2]) if match else None


def finish_build(
    workspace: Workspace,
    plan: PlanFacts,
    heads: Sequence[ShardHead],
    on_source: Callable[[SourceFacts], object] = lambda source: None,
) -> Index:
    """Every shard is packed: write the index, and remove all files that were only needed until now."""
    workspace.remove_temporary_files()
    if not workspace.staging_is_outside:  # before the index: a folder with an index holds nothing else
        workspace.remove_staging()
    workspace.remove_part_locks()
    for name in list_names(workspace.dest):
        if name.startswith(f"{PART_FAILURES}-part-"):
            remove(workspace.dest / name)
    index = write_index(workspace.dest, workspace.staging, plan, heads, on_source)
    workspace.remove_staging()
    return index


def write_part_failures(dest: StoragePath, part: Part, heads: Sequence[ShardHead]) -> None:
    """List the failures of a part, to be seen before the merge; remove the lists of another number of parts."""
    for name in list_names(dest):
        if name.startswith(f"{PART_FAILURES}-part-") and _count_of(name) != part.of:
            remove(dest / name)
    failures = [failure for head in heads for failure in head.failures]
    commit_bytes(dest / part_failures_name(part), failure_lines(failures))


def part_failures_name(part: Part) -> str:
    return f"{part_name(PART_FAILURES, *part)}.jsonl"
