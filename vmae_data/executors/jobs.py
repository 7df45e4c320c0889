"""A plan → the shards that a run still has to make, and the interface of the executors that make them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from vmae_data.amounts import plural
from vmae_data.encode.staged import EncodeJob, StagedSource, staged_name
from vmae_data.errors import MisuseError
from vmae_data.format import INDEX, RULES, Index, ShardHead
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
        self.retry_rules: int | None = None  # of every encode of this run, if failed sources are tried again
        self.shards = part.shards(plan.facts.shards)
        self.done = read_heads(self.dest, self.shards, plan.facts)

    @property
    def finished(self) -> bool:
        return len(self.done) == len(self.shards)

    def num_sources(self) -> int:
        return sum(len(self.plan.shard_sources(shard)) for shard in self.shards)

    def num_done(self) -> int:
        return sum(len(self.plan.shard_sources(shard)) for shard in self.done)

    def describe_saved(self) -> str:
        """What a stopped build keeps: sources that are packed, and those whose encodes wait in staging."""
        if isinstance(self.dest, Path):  # a store may not answer now
            self.done |= read_heads(self.dest, self.missing(), self.plan.facts)
        names = {path.name for path in self.staging.glob(staged_name("*"))}
        stages = self.plan.facts.stages()
        count = self.num_done()
        for shard in self.missing() if names else ():
            digest = stages[self.plan.facts.stage_of(shard)].digest()
            keys = (s.key for s in self.plan.shard_sources(shard) if staged_name(s.key) in names)
            count += sum(read_staged(self.staging, key, digest) is not None for key in keys)
        return f"{count} of {plural(self.num_sources(), 'video')} are done in {self.dest}"

    def heads(self) -> list[ShardHead]:
        return [self.done[shard] for shard in self.shards]

    def missing(self) -> list[int]:
        """The shards that this run has to make."""
        return [shard for shard in self.shards if shard not in self.done]

    def require_ffmpeg(self, sha256: str, *, retry_failed: bool) -> None:
        """Raise MisuseError if a shard to make was planned for another ffmpeg, which would give other bytes."""
        stages = self.plan.facts.stages()
        failed = [shard for shard, head in self.done.items() if head.failures] if retry_failed else []
        for shard in (*self.missing(), *failed):
            planned = stages[self.plan.facts.stage_of(shard)]
            if planned.ffmpeg_sha256 != sha256:
                raise MisuseError(
                    f"{self.dest}: shard {shard} was planned for ffmpeg {planned.ffmpeg} (sha256 "
                    f"{planned.ffmpeg_sha256[:12]}…). Name that one with --ffmpeg"
                )

    def breaks(self, index: Index) -> bool:
        """Whether this run makes a shard that belongs to what `index` lists. Else the index stays until the end."""
        shards = next((stage.shards for stage in self.plan.facts.stages() if stage.digest() == index.plan), None)
        return shards is None or any(shard < shards for shard in self.missing())

    def reset_failures(self) -> None:
        """Undo every failed source, in packed shards and in staging. This run encodes them by the newest rules."""
        self.retry_rules = RULES
        failed = [shard for shard, head in self.done.items() if head.failures]
        if failed:
            remove(self.dest / INDEX)
            self.staging.mkdir(parents=True, exist_ok=True)
        for shard in failed:
            unpack_shard(self.dest, self.staging, shard)
            del self.done[shard]
        digests = [stage.digest() for stage in self.plan.facts.stages()]
        for shard in self.shards:
            digest = digests[self.plan.facts.stage_of(shard)]
            for source in self.plan.shard_sources(shard):
                staged = read_staged(self.staging, source.key, digest)
                if staged is not None and staged.failure is not None:
                    (self.staging / staged_name(source.key)).unlink()

    def remaining(self) -> Iterator[ShardJob]:
        """Every shard that is not done, in order; made one by one, because a data set has many sources."""
        stages = self.plan.facts.stages()
        digests = [stage.digest() for stage in stages]
        for shard in self.missing():
            number = self.plan.facts.stage_of(shard)
            plan_rules = stages[number].rules
            jobs = (
                encode_job(self.plan, source, plan_rules=plan_rules, ffmpeg=self.ffmpeg, staging=self.staging)
                for source in self.plan.shard_sources(shard)
            )
            encodes = tuple(job._replace(plan=digests[number], rules=self.retry_rules or job.rules) for job in jobs)
            yield ShardJob(self.dest, self.staging, shard, encodes, digests[number])


def encode_job(plan: Plan, source: SourceVideo, *, plan_rules: int, ffmpeg: str, staging: Path) -> EncodeJob:
    """The encode of a source by the rules of its plan."""
    return EncodeJob(
        key=source.key,
        path=source.path,
        folder=plan.folder,
        label=source.label,
        class_name=plan.class_name(source.label),
        split=plan.facts.split,
        spec=plan.spec,
        rules=plan_rules,
        plan_rules=plan_rules,
        ffmpeg=ffmpeg,
        staging=staging,
    )
