"""What the processes of a run agree on at every step: what counts, who asked for what, who can't go on.

One small sum a step, on the CPU. So a signal to one process, or a sample that one of them can't read, is all processes' affair
at the same step, and none waits for one that has left.
"""

from __future__ import annotations

import signal
import time
from typing import Any, NamedTuple, NoReturn

from vmae_data.errors import DataError, StopRequested
from vmae_train.clips.loader import UnreadableSamples
from vmae_train.distributed import Distributed

__all__ = ["Agreed", "Signals", "StepAgreement"]

_STOPS = (signal.SIGTERM, signal.SIGINT)
_SAME_SECONDS = 1.0  # torchrun passes on the Ctrl-C that the terminal has sent to all already


class Signals:
    """SIGTERM and SIGINT: save, then end with 143 or 130. SIGUSR1: save and go on.

    All at the end of a step; a second request to stop, a second or more after the first, is obeyed at once.
    """

    def __init__(self) -> None:
        self.save = False
        self.stop: int | None = None
        self._stopped_at = 0.0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (*_STOPS, signal.SIGUSR1):
            self._old[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            if signal.getsignal(number) == self._take:  # else it is agreed that all end, and nothing is heeded any more
                signal.signal(number, handler)

    def _take(self, number: int, _frame: Any) -> None:
        if self.stop is not None and number != signal.SIGUSR1:
            if time.monotonic() - self._stopped_at < _SAME_SECONDS:
                return
            raise StopRequested(self.stop)  # asked twice: the end of the step is not in sight
        self.save = True
        if number != signal.SIGUSR1:
            self.stop, self._stopped_at = 128 + number, time.monotonic()


class Agreed(NamedTuple):
    """Of one step, the same in all processes."""

    valid: int  # samples of weight 1
    save: bool
    stop: int | None


class StepAgreement:
    """Called once a step by every process."""

    def __init__(self, distributed: Distributed, signals: Signals, unreadable: UnreadableSamples) -> None:
        self.distributed = distributed
        self._signals, self._unreadable = signals, unreadable

    def __call__(self, valid: int, failed: Exception | None) -> Agreed:
        """What all found together. Raises the first process's `failed`, and DataError where too many samples are lost."""
        signals = self._signals
        save, signals.save = signals.save, False
        stops = [signals.stop == 128 + number for number in _STOPS]
        fresh = self._unreadable.drain_new()
        found = self.distributed.sum([valid, failed is not None, bool(fresh), save, *stops])
        if found[1]:
            self.distributed.raise_first(failed)
        if found[2]:
            self._share(fresh)
        stop = next((128 + number for number, asked in zip(_STOPS, found[4:], strict=True) if asked), None)
        return Agreed(found[0], bool(found[3]), stop)

    def _share(self, fresh: dict[str, str]) -> None:
        try:
            for others in self.distributed.all_gather(fresh, dict[str, str]):
                self._unreadable.merge(others)
        except DataError as error:
            self.distributed.raise_first(error)  # all have the same list

    def stop(self, agreed: Agreed) -> None:
        """End, all together, where that was asked for. Raises StopRequested."""
        if agreed.stop is not None:
            self.distributed.end()
            raise StopRequested(agreed.stop)

    def refuse(self, error: Exception) -> NoReturn:
        """End by an error that every process finds."""
        self.distributed.raise_first(error)
