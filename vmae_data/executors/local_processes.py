"""The local executor: a pool of encodes across shard borders, and a process that packs while others encode."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable

from vmae_data.errors import VmaeError
from vmae_data.executors.encoder_pool import EncodeTask, encode_result, submit_encode
from vmae_data.executors.jobs import Encode, Pack, Progress, SourceDone
from vmae_data.format import ShardHead
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.shards.pack import ShardJob, read_staged

__all__ = ["run_local"]


def run_local(jobs: Iterable[ShardJob], encode: Encode, pack: Pack, *, workers: int) -> Generator[Progress, None, None]:
    """Make shards in order with `workers` encodes at a time. An `Executor`."""
    remaining = iter(jobs)
    started: dict[int, ShardJob] = {}  # shards whose sources are being encoded
    unstaged: dict[int, int] = {}  # how many of a started shard's sources are not staged yet
    waiting: deque[EncodeTask] = deque()
    with Pool(workers) as encoders, Pool(1) as packer:

        def pack_if_staged(shard: int) -> None:
            if unstaged[shard] == 0:
                del unstaged[shard]
                # With nothing to encode an encoder packs, because another process would take 0.3 s to start.
                pool = packer if waiting or encoders.unfinished else encoders
                pool.submit(shard, pack, started.pop(shard))

        while True:
            # One waiting task for each worker keeps it busy; more would only hold memory.
            while encoders.unfinished < 2 * workers:
                if waiting:
                    submit_encode(encoders, waiting.popleft())
                    continue
                job = next(remaining, None)
                if job is None:
                    break
                for source in job.encodes:
                    staged = read_staged(source.staging, source.key, source.plan)
                    if staged is not None:  # by an earlier run
                        yield SourceDone.of(staged, encoded=False)
                    else:
                        waiting.append(EncodeTask(job.shard, source, encode))
                started[job.shard], unstaged[job.shard] = job, len(waiting)
                pack_if_staged(job.shard)
            finished = next_finished((encoders, packer))
            if finished is None:
                return
            if not isinstance(finished.tag, EncodeTask):
                yield _packed(finished)
            elif (staged := encode_result(encoders, finished)) is not None:
                unstaged[finished.tag.shard] -= 1
                pack_if_staged(finished.tag.shard)
                yield SourceDone.of(staged, encoded=True)


def _packed(finished: Finished) -> ShardHead:
    if isinstance(finished.error, WorkerDied):
        raise VmaeError(f"packing shard {finished.tag}: {finished.error}. Run the same build again")
    if finished.error is not None:
        raise finished.error
    head: ShardHead = finished.result
    return head
