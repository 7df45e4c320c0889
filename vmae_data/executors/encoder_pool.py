"""Encodes, several at a time, each in a process that may die without loss."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from vmae_data.encode.encode_source import EncodeJob, StagedSource, encode_source, staged_name
from vmae_data.format import Failure, encode_record, path_to_text
from vmae_data.processes import Finished, Pool, WorkerDied, next_finished
from vmae_data.storage import commit_bytes

__all__ = ["Encoded", "EncoderPool"]


class Encoded(NamedTuple):
    """An encode's end; the staged record is committed."""

    shard: int
    staged: StagedSource


class _Tag(NamedTuple):
    shard: int
    job: EncodeJob


class EncoderPool:
    """A pool of encodes. A library may crash on a bad file, but a worker may also be killed for memory:
    a source whose worker dies is tried once more, and then it is a failure `crashed`.
    """

    def __init__(self, workers: int) -> None:
        self.pool = Pool(workers)
        self._tried_again: set[str] = set()

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.__exit__(kind, error, trace)

    @property
    def hungry(self) -> bool:
        """A waiting task for each worker keeps it busy; more would only hold memory."""
        return self.pool.unfinished < 2 * self.pool.size

    def submit(self, shard: int, job: EncodeJob) -> None:
        self.pool.submit(_Tag(shard, job), encode_source, job)

    def next(self, others: Sequence[Pool] = (), timeout: float | None = None) -> Encoded | Finished | None:
        """The next encode that came to its end, or what ended in another pool.

        None after `timeout` seconds, or where nothing runs.
        Raises what no single video is to blame for, such as a full disk.
        """
        while (finished := next_finished((self.pool, *others), timeout)) is not None:
            if not isinstance(finished.tag, _Tag):
                return finished
            staged = self._settle(finished)
            if staged is not None:
                return Encoded(finished.tag.shard, staged)
        return None

    def _settle(self, finished: Finished) -> StagedSource | None:
        tag: _Tag = finished.tag
        if isinstance(finished.error, WorkerDied):
            if tag.job.key not in self._tried_again:
                self._tried_again.add(tag.job.key)
                self.submit(tag.shard, tag.job)
                return None
            staged = StagedSource(failure=_crash(tag.job, finished.error))
            commit_bytes(tag.job.staging / staged_name(tag.job.key), encode_record(staged))
            return staged
        if finished.error is not None:
            raise finished.error
        result: StagedSource = finished.result
        return result


def _crash(job: EncodeJob, error: WorkerDied) -> Failure:
    return Failure(key=job.key, path=path_to_text(job.path), reason="crashed", detail=f"{error}, twice")
