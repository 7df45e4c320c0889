"""What is to be done, whoever does it: the shards that a run still has to make, and what they come to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.encode.encode_source import EncodeJob, StagedSource, staged_name
from vmae_data.format import INDEX, ShardHead
from vmae_data.shards.pack import PackJob, read_heads, read_staged, unpack_shard
from vmae_data.shards.plan import WHOLE, Part, Plan
from vmae_data.shards.workspace import Workspace
from vmae_data.sources.find import SourceVideo
from vmae_data.storage import remove

__all__ = ["BuildJobs", "Progress", "ShardDone", "ShardJob", "SourceDone"]


class ShardJob(NamedTuple):
    """One shard to make: encode each of its sources that is not staged, then pack them."""

    encodes: tuple[EncodeJob, ...]
    pack: PackJob


class SourceDone(NamedTuple):
    """A source is staged, by this run or an earlier one."""

    encoded: bool  # by this run
    bytes: int  # of the source file, 0 where it failed
    failed: bool

    @staticmethod
    def of(staged: StagedSource, *, encoded: bool) -> SourceDone:
        size = staged.samples[0].facts.source.bytes if staged.samples else 0  # segments are of one file
        return SourceDone(encoded, size, staged.failure is not None)


class ShardDone(NamedTuple):
    """A shard's tar and marker are committed."""

    shard: int
    head: ShardHead


Progress = SourceDone | ShardDone
"""What an executor gives: one SourceDone for every source of a shard, then its ShardDone."""


class BuildJobs:
    """The shards of a run (all, or those of a part) and what is known of those that are done."""

    def __init__(self, workspace: Workspace, plan: Plan, ffmpeg: str, part: Part = WHOLE) -> None:
        self.dest, self.staging, self.plan, self.ffmpeg = workspace.dest, workspace.staging, plan, ffmpeg
        self.digest = plan.facts.digest()
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

    def forget_failures(self) -> None:
        """Make every source that failed, in a packed shard or in staging, be tried again."""
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

    def to_do(self) -> Iterator[ShardJob]:
        """Every shard that is not done, in order; made one by one, for a data set has many sources."""
        for shard in self.shards:
            if shard not in self.done:
                sources = self.plan.shard_sources(shard)
                keys = tuple(source.key for source in sources)
                pack = PackJob(dest=self.dest, staging=self.staging, shard=shard, keys=keys, plan=self.digest)
                encodes = tuple(
                    encode_job(self.plan, source, ffmpeg=self.ffmpeg, staging=self.staging) for source in sources
                )
                yield ShardJob(encodes, pack)


def encode_job(plan: Plan, source: SourceVideo, *, ffmpeg: str, staging: Path) -> EncodeJob:
    """The job of one of the plan's sources."""
    return EncodeJob(
        key=source.key,
        path=source.path,
        folder=plan.folder,
        label=source.label,
        class_name=plan.class_name(source.label),
        split=plan.facts.split,
        spec=plan.spec,
        ffmpeg=ffmpeg,
        staging=staging,
    )
