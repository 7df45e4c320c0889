"""Worker processes: one pipe each, and no worker outlives its parent.

There is no shared queue: its semaphores leak, and workers that wait for it outlive a killed parent. The kernel ends a
worker whose parent is gone (PR_SET_PDEATHSIG). The parent notices a dead worker at once, by its closed pipe.
"""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import queue
import resource
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

from vmae_data.errors import VmaeError

__all__ = [
    "KEPT_BY_WORKERS",
    "STOP_SIGNALS",
    "Finished",
    "Pool",
    "TwoStepHandler",
    "WorkerDied",
    "die_with_parent",
    "exit_process",
    "ignore_further_hangups",
    "keep_freed_memory",
    "limit_cpu_time",
    "limit_memory",
    "limit_memory_growth",
    "next_finished",
    "stop_on_signals",
    "stop_signals",
    "stop_with_torchrun",
]

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)  # loaded now, because nothing should be loaded between fork and exec
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h: parameters of mallopt
KEPT_BY_WORKERS = 64 << 20  # bytes of freed memory: the frames of a clip
# Each ends the work in order. SIGHUP comes when the terminal closes. SIGQUIT stays the way to end a process at once.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_PARENTS_SIGNALS = (*STOP_SIGNALS, signal.SIGUSR1)
_SPAWN = multiprocessing.get_context("spawn")
# numpy's OpenBLAS starts a thread a core when it is imported, and they spin for work that workers don't have.
_WORKERS_VARIABLES = {"OPENBLAS_NUM_THREADS": "1"}
_READY = None  # a worker's first message
# Each worker imports the script that started it.
_GUARD_ADVICE = 'If a script of yours called this, put the call below `if __name__ == "__main__":`'
_FILE_ADVICE = "Workers import the script, but this one came from standard input. Save it as a file, and run that"


class WorkerDied(Exception):
    """A worker process ended before it finished its task. `by_cpu_limit`: `limit_cpu_time` ended it."""

    def __init__(self, cause: str, *, by_cpu_limit: bool = False) -> None:
        super().__init__(cause)
        self.by_cpu_limit = by_cpu_limit


class Finished(NamedTuple):
    """The end of a task: its tag and its result, or the exception that it raised."""

    tag: Any
    result: Any
    error: BaseException | None


class TwoStepHandler(Protocol):
    """Handles a task in two steps, so that a worker can start one task while it works on another.

    `prepare` runs in its own thread as soon as the worker receives a task. `finish` gets what `prepare` returned, one
    task after the other.
    """

    def prepare(self, *arguments: Any) -> Any: ...

    def finish(self, prepared: Any) -> Any: ...


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent ends for any reason."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)


def stop_with_torchrun() -> None:
    """In a process of torchrun: have the kernel send SIGTERM when torchrun ends for any reason.

    A killed torchrun can't forward a signal, and its processes would train on with nobody to stop them.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    parent = os.getppid()
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it ended before the call above
        signal.raise_signal(signal.SIGTERM)


def exit_process(status: int) -> NoReturn:
    """End this process. One of several in a training skips the interpreter's own end, after all exit handlers.

    The threads of process groups may still free a tensor then. That needs the interpreter, and ended 1 of some 300 runs
    with SIGABRT ("terminate called without an active exception") after everything had been saved.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(status)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def keep_freed_memory(most: int | None = None) -> bool:
    """Let the C library reuse freed memory, which it would return to the system and ask for again.

    Clips, and a training's steps on the CPU, free and allocate the same amounts again and again: without page faults
    they take a tenth less CPU time (docs/benchmarks.md). `most` is what is kept, in bytes. [default: all, but for
    blocks from 1 GiB on] Only glibc has the function; its variables of the environment have precedence. Returns whether
    it changed something.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    try:
        mallopt = _LIBC.mallopt
    except AttributeError:
        return False
    trim, from_block = (-1, 1 << 30) if most is None else (most, most // 2)
    return bool(mallopt(_TRIM_THRESHOLD, trim) and mallopt(_MMAP_THRESHOLD, from_block))


def limit_memory(most: int) -> None:
    """Limit the data of this process and its children to `most` bytes each, or to a lower limit that is already set."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (most if soft == resource.RLIM_INFINITY else min(most, soft), hard))


@contextmanager
def limit_memory_growth(more: int) -> Iterator[None]:
    """Let the data of this process grow by at most `more` bytes while the block runs."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - faster, and called for every source
        used = int(file.read().split()[5]) * resource.getpagesize()
    limit_memory(used + more)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


@contextmanager
def limit_cpu_time(seconds: float) -> Iterator[None]:
    """End this process if the block takes more CPU time: nothing else stops a call of a library. For workers only."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # then the kernel sends SIGPROF, which ends a process
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def stop_on_signals(raised: Callable[[int], None]) -> None:
    """Call `raised(128 + number)` on SIGTERM, SIGINT and SIGHUP (143, 130, 129)."""

    def handler(number: int, _frame: Any) -> None:
        ignore_further_hangups(number)
        raised(128 + number)

    for stop in stop_signals():
        signal.signal(stop, handler)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # asks a training to save; outside of one there is nothing to save


def stop_signals() -> tuple[signal.Signals, ...]:
    """The signals to handle. A SIGHUP that is ignored stays so: `nohup` ignores it for the command that it starts."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in STOP_SIGNALS if number != signal.SIGHUP or not is_ignored)


def ignore_further_hangups(number: int) -> None:
    """After a SIGHUP ignore the next ones: the kernel, the shell and torchrun each send one for one closed terminal."""
    if number == signal.SIGHUP:
        signal.signal(number, signal.SIG_IGN)


class Pool:
    """A fixed number of worker processes, each started when first needed.

    Each worker calls `make(*arguments)` once, and passes every task to the handler that this returns. Without `make` a
    task is a function and its arguments. With a `depth` of 2 or more, `make` returns a `TwoStepHandler`, and a worker
    gets up to `depth` tasks at once; if it dies, the tasks that it had not started go to another.

    Use as a context manager; at its end the workers are killed. Submit from the main thread only: a worker ends with
    the thread that started it. A worker that dies before it accepts tasks raises VmaeError: no task is the cause.
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
        """Tasks submitted, and not yet returned by `next_finished`."""
        return len(self._waiting) + len(self._done) + sum(len(worker.tasks) for worker in self._workers)

    def submit(self, tag: Any, *arguments: Any) -> None:
        self._waiting.append((tag, arguments))
        self._assign()

    def _assign(self) -> None:
        for count in range(self.depth):  # no worker gets a second task while another has none
            for worker in self._workers:
                if self._waiting and len(worker.tasks) == count:
                    self._send(worker)
            while self._waiting and len(self._workers) < self.size:
                worker = _Worker(self._make, self._arguments, two_steps=self.depth > 1)
                self._workers.append(worker)
                self._send(worker)

    def _send(self, worker: _Worker) -> None:
        task = self._waiting.popleft()
        with suppress(BrokenPipeError, ConnectionResetError):  # dead: `_receive` finds what it sent before, and its end
            worker.send(task)

    def _remove_dead(self, worker: _Worker) -> None:
        worker.process.join()
        status = worker.process.exitcode or 0
        cause = f"signal {-status}" if status < 0 else f"status {status}"
        if not worker.ready:
            advice = _start_advice() if status > 0 else "Run the same command again"
            raise VmaeError(f"a worker process ended ({cause}) before it accepted work. {advice}")
        if worker.tasks:
            tag, _ = worker.tasks.popleft()
            by_cpu_limit = status == -signal.SIGPROF
            cause = "it took too much CPU time" if by_cpu_limit else cause
            died = WorkerDied(f"the worker process ended ({cause})", by_cpu_limit=by_cpu_limit)
            self._done.append(Finished(tag, None, died))
        self._waiting.extendleft(reversed(worker.tasks))
        worker.connection.close()
        self._workers.remove(worker)

    def _connections(self) -> dict[Any, _Worker]:
        return {worker.connection: worker for worker in self._workers if worker.tasks}

    def _receive(self, worker: _Worker) -> None:
        try:
            finished = worker.connection.recv()
        except (EOFError, ConnectionResetError):
            self._remove_dead(worker)
        else:
            if finished is _READY:
                worker.ready = True
                return
            tag, _ = worker.tasks.popleft()
            self._done.append(finished._replace(tag=tag))
        self._assign()


def _start_advice() -> str:
    """What to do if a worker fails while it imports the script."""
    return _FILE_ADVICE if getattr(sys.modules["__main__"], "__file__", None) == "<stdin>" else _GUARD_ADVICE


def next_finished(pools: Sequence[Pool], timeout: float | None = None) -> Finished | None:
    """The next task that ended in any of the pools; None after `timeout` seconds, or if no task runs."""
    while True:
        for pool in pools:
            if pool._done:
                return pool._done.popleft()
        running = {pipe: (pool, worker) for pool in pools for pipe, worker in pool._connections().items()}
        if not running:
            return None
        # A dead worker's pipe is ready too (end of file), so pipes alone show both.
        ready = wait(list(running), timeout)
        if not ready:
            return None
        for pipe in ready:
            pool, worker = running[pipe]
            pool._receive(worker)


_Task = tuple[Any, tuple[Any, ...]]  # tag, arguments


class _Worker:
    """The parent's side of a worker process."""

    def __init__(self, make: Callable[..., Any] | None, arguments: tuple[Any, ...], two_steps: bool) -> None:
        self.connection, child = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(child, os.getpid(), two_steps, make, arguments), daemon=True)
        # A signal to the process group is for the parent to handle. The child inherits the mask, also while it starts;
        # the parent gets a signal that arrives meanwhile when it restores its mask. The first child also starts
        # Python's resource tracker, which unblocks signals in this thread.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            with _environment(_WORKERS_VARIABLES):
                self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        child.close()
        self.tasks: deque[_Task] = deque()  # sent and not finished; the worker finishes them in order
        self.ready = False  # whether it has started, and accepts tasks

    def send(self, task: _Task) -> None:
        self.tasks.append(task)
        self.connection.send(task[1])  # without the tag: the worker would import what it is made of

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """With these variables, unless they are set, in the environment of a process that starts meanwhile."""
    missing = defaults.keys() - os.environ.keys()
    os.environ.update({name: defaults[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            del os.environ[name]


def _serve(
    connection: Connection, parent: int, two_steps: bool, make: Callable[..., Any] | None, arguments: tuple[Any, ...]
) -> None:
    die_with_parent(parent)
    keep_freed_memory(KEPT_BY_WORKERS)
    # A dying parent's pipe closes before the kernel kills this process. Then there is nobody to report to.
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        connection.send(_READY)
        if two_steps:
            assert make is not None
            _serve_two_steps(connection, make, arguments)
        else:
            _serve_one_step(connection, make, arguments)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _serve_one_step(connection: Connection, make: Callable[..., Any] | None, make_arguments: tuple[Any, ...]) -> None:
    """Task after task, until the pipe is closed (EOFError and the like)."""
    handler: Callable[..., Any] | None = None
    while True:
        arguments = connection.recv()
        try:
            if handler is None:
                handler = make(*make_arguments) if make else _call
            finished = Finished(None, handler(*arguments), None)
        except Exception as error:
            finished = Finished(None, None, error)
        connection.send(finished)


def _serve_two_steps(
    connection: Connection, make: Callable[..., TwoStepHandler], make_arguments: tuple[Any, ...]
) -> None:
    prepared: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
    handler: TwoStepHandler | None = None

    def receive() -> None:
        nonlocal handler
        with suppress(EOFError, ConnectionResetError):
            while True:
                arguments = connection.recv()
                try:
                    if handler is None:
                        handler = make(*make_arguments)
                    task = Finished(None, handler.prepare(*arguments), None)
                except Exception as error:
                    task = Finished(None, None, error)
                prepared.put(task)
        prepared.put(None)

    threading.Thread(target=receive, name="tasks", daemon=True).start()
    while (task := prepared.get()) is not None:
        if task.error is None:
            assert handler is not None
            try:
                task = task._replace(result=handler.finish(task.result))
            except Exception as error:
                task = Finished(None, None, error)
        connection.send(task)
