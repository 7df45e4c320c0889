"""One call to a store, in a thread that nobody else uses meanwhile.

The caller's wait for it ends by a signal, and if the answer only trickles.

A call of obstore holds its thread until the answer is complete, and no signal interrupts it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

__all__ = ["CHUNK_BYTES", "Progress", "Transient", "attempt", "pause", "stopping", "thread_pool"]

Result = TypeVar("Result")
CHUNK_BYTES = 32 << 10  # an answer brings this much in each period, or its end
POLL_SECONDS = 0.2
_local = threading.local()


class Transient(Exception):
    """A wrong answer, or none, that may be right the next time."""


class _Abandoned(Exception):
    """Nobody waits for this call any more."""


class Progress:
    """What a call has received so far."""

    def __init__(self) -> None:
        self.chunks = 0
        self.abandoned = False

    def add_chunk(self) -> None:
        """Called by the call for every chunk of `CHUNK_BYTES`. Ends a call that nobody waits for."""
        if self.abandoned:
            raise _Abandoned
        self.chunks += 1


class _Call(Generic[Result]):
    """A call that another thread runs."""

    def __init__(self, call: Callable[[Progress], Result]) -> None:
        self.progress, self.done = Progress(), threading.Event()
        self._call = call
        self._result: Result
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._call(self.progress)
        except BaseException as error:  # a panic of the client is no Exception
            self._error = error

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result


class _Runner:
    """A thread that runs one call after the other: a new thread for each costs more than a call's own work.

    A daemon: an abandoned call must not keep the process alive.
    """

    def __init__(self) -> None:
        self.calls: SimpleQueue[_Call[Any]] = SimpleQueue()
        threading.Thread(target=self._run, name="store", daemon=True).start()

    def _run(self) -> None:
        while True:
            call = self.calls.get()
            call.run()
            _idle.append(self)  # first: the caller's next call gets this thread
            call.done.set()
            del call  # its result may be large


_idle: list[_Runner] = []  # a child process has none of these threads
os.register_at_fork(after_in_child=_idle.clear)


def _start(call: _Call[Any]) -> None:
    try:
        runner = _idle.pop()
    except IndexError:
        runner = _Runner()
    runner.calls.put(call)


def attempt(call: Callable[[Progress], Result], period: float | None) -> Result:
    """`call(progress)`, which must bring a chunk, or end, in each `period` of seconds; None: it may take any time.

    Raises Transient if it does not, or if this thread is to stop, and what the call raises.
    """
    running = _Call(call)
    _start(running)
    try:
        chunks, since = 0, time.monotonic()
        while not running.done.wait(POLL_SECONDS):
            if stopping():
                raise Transient("stopped")
            if running.progress.chunks != chunks:
                chunks, since = running.progress.chunks, time.monotonic()
            elif period is not None and time.monotonic() - since > period:
                raise Transient(f"no answer, or less than {CHUNK_BYTES} bytes, in {period:.3g} s")
        return running.result()
    finally:
        running.progress.abandoned = True


def pause(seconds: float) -> bool:
    """Wait. True, and earlier, if this thread is to stop."""
    until = time.monotonic() + seconds
    while not stopping() and (left := until - time.monotonic()) > 0:
        time.sleep(min(left, POLL_SECONDS))
    return stopping()


@contextmanager
def thread_pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Threads for calls to stores. If the block ends by an exception, such as a signal's, their calls end soon."""
    stop = threading.Event()

    def start(stops: tuple[threading.Event, ...]) -> None:
        _local.stops = stops

    with ThreadPoolExecutor(size, initializer=start, initargs=((*_stops(), stop),)) as pool:
        try:
            yield pool
        except BaseException:
            stop.set()
            raise


def _stops() -> tuple[threading.Event, ...]:
    stops: Any = getattr(_local, "stops", ())
    return tuple(stops)


def stopping() -> bool:
    """Whether calls of this thread are to end."""
    return any(stop.is_set() for stop in _stops())
