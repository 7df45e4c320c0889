"""Encodes in a pool of processes. A source that ends its process twice, or takes too long, becomes a failure."""

from __future__ import annotations

from typing import NamedTuple

from vmae_data.encode.ffmpeg import silence_seconds
from vmae_data.encode.staged import EncodeJob, StagedSource, staged_name
from vmae_data.executors.jobs import Encode
from vmae_data.format import Failure, encode_record
from vmae_data.names import path_to_text
from vmae_data.processes import Finished, Pool, WorkerDied
from vmae_data.storage import commit_bytes

__all__ = ["EncodeTask", "encode_result", "submit_encode"]


class EncodeTask(NamedTuple):
    """The tag of an encode in a pool."""

    shard: int
    job: EncodeJob
    encode: Encode
    is_retry: bool = False


def submit_encode(pool: Pool, task: EncodeTask) -> None:
    pool.submit(task, task.encode, task.job)


def encode_result(pool: Pool, finished: Finished) -> StagedSource | None:
    """The result of an encode, its record committed; None if the encode was submitted again.

    A library may crash on a bad file, but a worker may also be killed for memory. So a source whose worker dies is tried
    once more, then it is a failure `crashed`. One that takes more CPU time than `limit_cpu_time` allows is `stalled`.
    Raises errors that no single video causes, such as a full disk.
    """
    task: EncodeTask = finished.tag
    if isinstance(finished.error, WorkerDied):
        by_cpu_limit = finished.error.by_cpu_limit
        if not (task.is_retry or by_cpu_limit):
            submit_encode(pool, task._replace(is_retry=True))
            return None
        job, reason, detail = task.job, "crashed", f"{finished.error}, twice"
        if by_cpu_limit:
            reason, detail = "stalled", f"its first frame took more than {silence_seconds():g} s of CPU time"
        failure = Failure(key=job.key, path=path_to_text(job.path), reason=reason, detail=detail)
        staged = StagedSource(failure=failure, plan=job.plan)
        commit_bytes(job.staging / staged_name(job.key), encode_record(staged))
        return staged
    if finished.error is not None:
        raise finished.error
    result: StagedSource = finished.result
    return result
