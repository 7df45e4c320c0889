"""Processes that live as long as their parent, told what to do over one pipe each.

No shared queue: workers blocked in one outlive a killed parent, and its semaphores leak. A worker
whose parent is gone is ended by the kernel (PR_SET_PDEATHSIG); a worker that dies is noticed at once.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import queue
import resource
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, Protocol

__all__ = [
    "Finished",
    "Pool",
    "Staged",
    "WorkerDied",
    "die_with_parent",
    "growing_by_at_most",
    "limit_memory",
    "next_finished",
    "stop_on_signals",
    "stop_with_torchrun",
]

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded here: between fork and exec nothing should be
_PARENTS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_SPAWN = multiprocessing.get_context("spawn")


class WorkerDied(Exception):
    """The process that had a task ended before it answered."""


class Finished(NamedTuple):
    """A task's end: its tag and what it gave, or the exception that it raised."""

    tag: Any
    result: Any
    error: BaseException | None


class _Task(NamedTuple):
    tag: Any
    arguments: tuple[Any, ...]


def _apply(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def die_with_parent(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, whatever ends it."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent went before the call above
        os._exit(1)


def stop_with_torchrun() -> None:
    """In a process that torchrun started: have the kernel send SIGTERM when torchrun ends, whatever ends it.

    One that is killed outright can't pass that on, and its processes would train on with nobody to stop them.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it went before the call above
        signal.raise_signal(signal.SIGTERM)


def limit_memory(most: int) -> None:
    """Let this process, and those that it starts, hold at most so many bytes of data, or fewer where that is set already."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


@contextmanager
def growing_by_at_most(more: int) -> Iterator[None]:
    """Let this process take at most so many bytes of data more than it has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - fewer steps: asked for every source
        used = int(file.read().split()[5]) * resource.getpagesize()
    limit_memory(used + more)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


class Staged(Protocol):
    """A handler of two steps: `prepare` begins a task as soon as the worker has it, in a thread of its own and while
    the task before is still at work; `finish` is given what that gave, one after the other.
    """

    def prepare(self, *arguments: Any) -> Any: ...

    def finish(self, prepared: Any) -> Any: ...


def _serve(
    connection: Connection, parent: int, staged: bool, make: Callable[..., Any] | None, arguments: tuple[Any, ...]
) -> None:
    die_with_parent(parent)
    # A dying parent's pipe closes before its end is told to anyone: a worker may see that first, and has nobody to tell.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        if staged:
            assert make is not None
            _answer_staged(connection, make, arguments)
        else:
            _answer(connection, make, arguments)


def _answer(connection: Connection, make: Callable[..., Any] | None, arguments: tuple[Any, ...]) -> None:
    """Task after task, until the pipe is closed (EOFError and the like)."""
    handler: Callable[..., Any] | None = None
    while (task := connection.recv()) is not None:
        try:
            if handler is None:
                handler = make(*arguments) if make else _apply
            answer = Finished(task.tag, handler(*task.arguments), None)
        except Exception as error:
            answer = Finished(task.tag, None, error)
        connection.send(answer)


def _answer_staged(connection: Connection, make: Callable[..., Staged], arguments: tuple[Any, ...]) -> None:
    """The same, and each task is begun as soon as it is received."""
    prepared: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
    handler: Staged | None = None

    def receive() -> None:
        nonlocal handler
        with suppress(EOFError, ConnectionResetError):
            while (task := connection.recv()) is not None:
                try:
                    if handler is None:
                        handler = make(*arguments)
                    begun = Finished(task.tag, handler.prepare(*task.arguments), None)
                except Exception as error:
                    begun = Finished(task.tag, None, error)
                prepared.put(begun)
        prepared.put(None)

    threading.Thread(target=receive, name="tasks", daemon=True).start()
    while (begun := prepared.get()) is not None:
        if begun.error is None:
            assert handler is not None
            try:
                begun = begun._replace(result=handler.finish(begun.result))
            except Exception as error:
                begun = Finished(begun.tag, None, error)
        connection.send(begun)


class _Worker:
    def __init__(self, make: Callable[..., Any] | None, arguments: tuple[Any, ...], staged: bool) -> None:
        self.connection, child = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(child, os.getpid(), staged, make, arguments), daemon=True)
        # A signal to the whole group is for the parent to decide on. The mask is handed down to the
        # child, also while it starts; the parent gets what came meanwhile when it takes the mask off.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child.close()
        self.tasks: deque[_Task] = deque()  # given and not answered: it works on the first, and answers in order

    def give(self, task: _Task) -> None:
        self.tasks.append(task)
        self.connection.send(task)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Pool:
    """A fixed number of worker processes, each started when first needed.

    Each calls `make(*arguments)` once and hands every task to what that gives; without `make` a
    task is a function and its arguments. With a `depth` of 2 or more, `make` gives a `Staged` handler, and a worker
    is handed its next tasks early; those that it had not come to when it died go to another. Use as a context
    manager; leaving it ends the workers at once. Submit from the main thread only: a worker ends with the thread
    that started it.
    """

    def __init__(
        self, size: int, make: Callable[..., Any] | None = None, arguments: tuple[Any, ...] = (), *, depth: int = 1
    ) -> None:
        assert depth == 1 or make is not None
        self.size, self.depth = size, depth
        self._make, self._arguments = make, arguments
        self._workers: list[_Worker] = []
        self._waiting: deque[_Task] = deque()
        self._done: deque[Finished] = deque()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()

    @property
    def unfinished(self) -> int:
        """Tasks submitted and not yet taken by `next_finished`."""
        return len(self._waiting) + len(self._done) + sum(len(worker.tasks) for worker in self._workers)

    def submit(self, tag: Any, *arguments: Any) -> None:
        self._waiting.append(_Task(tag, arguments))
        self._feed()

    def _feed(self) -> None:
        for already in range(self.depth):  # nobody has two while another has none
            for worker in list(self._workers):  # giving may find one dead and bury it
                if self._waiting and len(worker.tasks) == already:
                    self._give(worker)
            while self._waiting and len(self._workers) < self.size:
                worker = _Worker(self._make, self._arguments, staged=self.depth > 1)
                self._workers.append(worker)
                self._give(worker)

    def _give(self, worker: _Worker) -> None:
        task = self._waiting.popleft()
        try:
            worker.give(task)
        except (BrokenPipeError, ConnectionResetError):
            self._bury(worker)

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        status = worker.process.exitcode
        if worker.tasks:
            error = WorkerDied(f"the worker process ended ({_status_words(status)})")
            self._done.append(Finished(worker.tasks.popleft().tag, None, error))
        self._waiting.extendleft(reversed(worker.tasks))
        worker.connection.close()
        self._workers.remove(worker)

    def _handles(self) -> dict[Any, _Worker]:
        busy = [worker for worker in self._workers if worker.tasks]
        return {worker.connection: worker for worker in busy}

    def _collect(self, worker: _Worker) -> None:
        try:
            finished = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._bury(worker)
        else:
            worker.tasks.popleft()
            self._done.append(finished)
        self._feed()


def _status_words(status: int | None) -> str:
    return f"signal {-status}" if status is not None and status < 0 else f"status {status}"


def next_finished(pools: Sequence[Pool], timeout: float | None = None) -> Finished | None:
    """The next task that ended in any of the pools; None after `timeout` seconds or where nothing runs."""
    while True:
        for pool in pools:
            if pool._done:
                return pool._done.popleft()
        handles = {handle: (pool, worker) for pool in pools for handle, worker in pool._handles().items()}
        if not handles:
            return None
        # A dead worker's pipe is ready too (end of file), so pipes alone show both.
        ready = wait(list(handles), timeout)
        if not ready:
            return None
        for handle in ready:
            pool, worker = handles[handle]
            pool._collect(worker)


def stop_on_signals(raised: Callable[[int], None]) -> None:
    """Call `raised(128 + number)` on SIGTERM and SIGINT (143, 130)."""

    def handler(number: int, _frame: Any) -> None:
        raised(128 + number)

    signal.signal(signal.SIGTERM, handler)
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks a training to save; before and after there is nothing to
