"""What all processes agree on in every step: how many samples count, who received a signal, who failed.

It takes one small all-reduce on the CPU per step, and one per batch of a validation. A signal to one process, or a
sample that one process can't read, takes effect in all processes at the same step, and none waits for one that has
ended.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from vmae_data.errors import DataError, StopRequested, VmaeError
from vmae_data.processes import STOP_SIGNALS, ignore_further_hangups, stop_signals
from vmae_train.clips.loader import Batch, UnreadableSamples
from vmae_train.distributed import Distributed

__all__ = ["StepStatus", "StepSync", "WaitInterrupted"]

_SAME_SIGNAL_SECONDS = 1.0  # torchrun forwards the Ctrl-C that the terminal has already sent to all processes


class WaitInterrupted(StopRequested):
    """A signal to stop came while this process waited for data, or before."""


class StepStatus(NamedTuple):
    """The state of one step, equal in all processes."""

    valid: int  # samples of weight 1
    save: bool
    stop: int | None  # an exit status
    interrupted: bool  # a process has no batch, because a signal ended its wait: nobody makes this step


class StepSync:
    """Handles signals, and shares the state of a step between processes. Use as a context manager.

    SIGTERM, SIGINT and SIGHUP: save at the end of the step, then end with status 143, 130 or 129. A process that waits
    for data waits no longer: all leave out this step, and save the one before. SIGUSR1: save and continue.
    A second signal to stop, at least a second after the first, ends the process at once.
    """

    def __init__(self, distributed: Distributed, unreadable: UnreadableSamples) -> None:
        self._distributed, self._unreadable = distributed, unreadable
        self._save = False
        self._stop: int | None = None
        self._stopped_at = 0.0
        self._waits = False
        self._old_handlers: dict[int, Any] = {}

    def __enter__(self) -> StepSync:
        for number in (*stop_signals(), signal.SIGUSR1):
            self._old_handlers[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            if signal.getsignal(number) == self._on_signal:  # else signals are ignored until the end
                signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: Any) -> None:
        ignore_further_hangups(number)
        if self._stop is not None and number != signal.SIGUSR1:
            if time.monotonic() - self._stopped_at < _SAME_SIGNAL_SECONDS:
                return
            raise StopRequested(self._stop)
        self._save = True
        if number != signal.SIGUSR1:
            self._stop, self._stopped_at = 128 + number, time.monotonic()
            if self._waits:
                raise WaitInterrupted(self._stop)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around a wait for data, which may take hours. Raises WaitInterrupted once a signal asks to stop."""
        self._waits = True
        try:
            if self._stop is not None:
                raise WaitInterrupted(self._stop)
            yield
        finally:
            self._waits = False

    def exchange(self, valid: int, error: Exception | None, *, interrupted: bool = False) -> StepStatus:
        """Share this process's valid samples and error. Every process calls it once per step.

        Raises the error of the first process that has one, and DataError if too many samples are unreadable.
        """
        save, self._save = self._save, False
        fresh = self._unreadable.drain_new()
        sums = self._distributed.all_reduce_sum(
            [valid, error is not None, bool(fresh), save, interrupted, *self._stops()]
        )
        if sums[1]:
            self._distributed.raise_first(error)
        if sums[2]:
            self._share_unreadable(fresh)
        return StepStatus(sums[0], bool(sums[3]), _agreed_stop(sums[5:]), bool(sums[4]))

    def validation_batches(self, own: Iterable[Batch], turns: int) -> Iterator[Batch]:
        """This process's batches of a validation; it has one in each of the `turns`, or none in the last.

        Before each batch all processes agree whether to go on. Raises WaitInterrupted in all of them after a signal to
        one. After an error of one process, which it raises, the others get no more batches.
        """
        batches = iter(own)
        for _ in range(turns):
            batch: Batch | None = None
            error: Exception | None = None
            try:
                with self.interruptible():
                    batch = next(batches, None)
            except (VmaeError, OSError) as caught:
                error = caught
            except WaitInterrupted:
                pass  # all learn it below
            failed, *stops = self._distributed.all_reduce_sum([error is not None, *self._stops()])
            if error is not None:
                raise error
            if failed:
                return
            if (stop := _agreed_stop(stops)) is not None:
                raise WaitInterrupted(stop)
            if batch is not None:
                yield batch

    def _stops(self) -> list[int]:
        return [self._stop == 128 + number for number in STOP_SIGNALS]

    def _share_unreadable(self, fresh: dict[str, str]) -> None:
        try:
            for samples in self._distributed.all_gather(fresh, dict[str, str]):
                self._unreadable.merge(samples)
        except DataError as error:
            self._distributed.raise_first(error)  # all processes have the same list

    def stop_if_requested(self, stop: int | None) -> None:
        """End all processes together after a signal that they agreed on. Raises StopRequested."""
        if stop is not None:
            self._distributed.ignore_signals()
            raise StopRequested(stop)


def _agreed_stop(counts: list[int]) -> int | None:
    """The exit status of the first signal to stop that any process got."""
    return next((128 + number for number, count in zip(STOP_SIGNALS, counts, strict=True) if count), None)
