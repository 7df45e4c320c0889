"""A plan → the shards that a run still has to make, and the interface of the executors that make them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.encode.encode_source import EncodeJob, StagedSource, staged_name
from vmae_data.format import INDEX, RULES, ShardHead
from vmae_data.shards.pack import ShardJob, read_heads, read_staged, unpack_shard
from vmae_data.shards.plan import WHOLE, Part, Plan
from vmae_data.shards.workspace import Workspace
from vmae_data.sources.find import SourceVideo
from vmae_data.storage import remove

__all__ = ["BuildJobs", "Encode", "Executor", "Pack", "Progress", "SourceDone", "encode_job"]


class SourceDone(NamedTuple):
    """A source is staged, by this run or an earlier one."""

    encoded: bool  # by this run
    bytes: int  # of the source file, 0 if it failed
    failed: bool

    @staticmethod
    def of(staged: StagedSource, *, encoded: bool) -> SourceDone:
        size = staged.samples[0].facts.source.bytes if staged.samples else 0  # segments share one file
        return SourceDone(encoded, size, staged.failure is not None)


Encode = Callable[[EncodeJob], StagedSource]
Pack = Callable[[ShardJob], ShardHead]
Progress = SourceDone | ShardHead
Executor = Callable[[Iterable[ShardJob], Encode, Pack], Generator[Progress, None, None]]
"""Makes shards: `execute(jobs, encode, pack)`.

It calls `encode` once for each source of a shard that is not staged yet, in any process on any machine, then `pack` once
for the shard. It yields a SourceDone for every source, and the ShardHead of a shard once its tar and marker are
committed. Closing the generator ends all processes. It raises VmaeError for problems that no single video causes.
"""


class BuildJobs:
    """The shards of a run (all, or those of a part), and the heads of those that are done."""

    def __init__(self, workspace: Workspace, plan: Plan, ffmpeg: str, part: Part = WHOLE) -> None:
        self.dest, self.staging, self.plan, self.ffmpeg = workspace.dest, workspace.staging, plan, ffmpeg
        self.digest = plan.facts.digest()
        self.rules = plan.facts.rules
        self.shards = part.shards(plan.facts.shards)
        self.done = read_heads(self.dest, self.shards, self.digest)

    @property
    def finished(self) -> bool:
        return len(self.done) == len(self.shards)

    def num_sources(self) -> int:
        return sum(len(self.plan.shard_sources(shard)) for shard in self.shards)

    def num_done(self) -> int:
        return sum(len(self.plan.shard_sources(shard)) for shard in self.done)

    def heads(self) -> list[ShardHead]:
        return [self.done[shard] for shard in self.shards]

    def reset_failures(self) -> None:
        """Undo every failed source, in packed shards and in staging. This run encodes them by the newest rules."""
        self.rules = RULES
        failed = [shard for shard, head in self.done.items() if head.failures]
        if failed:
            remove(self.dest / INDEX)
            self.staging.mkdir(parents=True, exist_ok=True)
        for shard in failed:
            unpack_shard(self.dest, self.staging, shard)
            del self.done[shard]
        for shard in self.shards:
            for source in self.plan.shard_sources(shard):
                staged = read_staged(self.staging, source.key)
                if staged is not None and staged.failure is not None:
                    (self.staging / staged_name(source.key)).unlink()

    def remaining(self) -> Iterator[ShardJob]:
        """Every shard that is not done, in order; made one by one, because a data set has many sources."""
        for shard in self.shards:
            if shard not in self.done:
                encodes = tuple(
                    encode_job(self.plan, source, rules=self.rules, ffmpeg=self.ffmpeg, staging=self.staging)
                    for source in self.plan.shard_sources(shard)
                )
                yield ShardJob(self.dest, self.staging, shard, encodes, self.digest)


def encode_job(plan: Plan, source: SourceVideo, *, rules: int, ffmpeg: str, staging: Path) -> EncodeJob:
    return EncodeJob(
        key=source.key,
        path=source.path,
        folder=plan.folder,
        label=source.label,
        class_name=plan.class_name(source.label),
        split=plan.facts.split,
        spec=plan.spec,
        rules=rules,
        plan_rules=plan.facts.rules,
        ffmpeg=ffmpeg,
        staging=staging,
    )
