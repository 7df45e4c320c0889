"""Shards made by this machine: a pool of encodes over shard borders, and one process that packs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from vmae_data.encode.encode_source import EncodeJob
from vmae_data.errors import VmaeError
from vmae_data.executors.encoder_pool import Encoded, EncoderPool
from vmae_data.executors.jobs import Progress, ShardDone, ShardJob, SourceDone
from vmae_data.processes import Finished, Pool, WorkerDied
from vmae_data.shards.pack import PackJob, pack_shard, read_staged

__all__ = ["run_local"]


def run_local(works: Iterable[ShardJob], *, workers: int) -> Iterator[Progress]:
    """Make shards in order, `workers` encodes at a time; close it to end every process at once.

    Raises VmaeError for what no single video is to blame for.
    """
    with EncoderPool(workers) as encoders, Pool(1) as packer:
        yield from _Walk(encoders, packer).run(iter(works))


class _Walk:
    """Shards in order, their sources in plan order; a shard is packed when all its sources are staged."""

    def __init__(self, encoders: EncoderPool, packer: Pool) -> None:
        self.encoders, self.packer = encoders, packer
        self.packs: dict[int, PackJob] = {}  # of the shards in work
        self.missing: dict[int, int] = {}  # how many of their sources are not staged yet
        self.waiting: deque[tuple[int, EncodeJob]] = deque()

    def run(self, works: Iterator[ShardJob]) -> Iterator[Progress]:
        while True:
            while self.encoders.hungry:
                if self.waiting:
                    self.encoders.submit(*self.waiting.popleft())
                elif (work := next(works, None)) is not None:
                    yield from self._begin(work)
                else:
                    break
            ended = self.encoders.next((self.packer,))
            if ended is None:
                return
            yield self._encoded(ended) if isinstance(ended, Encoded) else _packed(ended)

    def _begin(self, work: ShardJob) -> Iterator[Progress]:
        """What an earlier run staged is done; a shard that lacks nothing goes to the packer at once."""
        shard = work.pack.shard
        self.packs[shard], self.missing[shard] = work.pack, 0
        for job in work.encodes:
            staged = read_staged(job.staging, job.key)
            if staged is not None:
                yield SourceDone.of(staged, encoded=False)
            else:
                self.missing[shard] += 1
                self.waiting.append((shard, job))
        self._pack_if_whole(shard)

    def _encoded(self, ended: Encoded) -> SourceDone:
        self.missing[ended.shard] -= 1
        self._pack_if_whole(ended.shard)
        return SourceDone.of(ended.staged, encoded=True)

    def _pack_if_whole(self, shard: int) -> None:
        if self.missing[shard] == 0:
            del self.missing[shard]
            self.packer.submit(shard, pack_shard, self.packs.pop(shard))


def _packed(finished: Finished) -> ShardDone:
    if isinstance(finished.error, WorkerDied):
        raise VmaeError(f"packing shard {finished.tag}: {finished.error}; run the same build again")
    if finished.error is not None:
        raise finished.error
    return ShardDone(finished.tag, finished.result)
