from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vmae_data.processes import Pool, WorkerDied, limit_memory_growth, next_finished


def double(n: int) -> int:
    return 2 * n


def fail(n: int) -> int:
    raise ValueError(f"no {n}")


def die(n: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def make_adder(base: int):
    def add(n: int) -> int:
        return base + n

    return add


def _drain(pool: Pool) -> dict[int, object]:
    found = {}
    while (finished := next_finished((pool,))) is not None:
        found[finished.tag] = finished.error or finished.result
    return found


def test_every_task_comes_back_once_under_its_tag() -> None:
    with Pool(3) as pool:
        for n in range(20):
            pool.submit(n, double, n)
        assert _drain(pool) == {n: 2 * n for n in range(20)}
        assert pool.unfinished == 0


def test_a_handler_is_made_once_in_each_worker() -> None:
    with Pool(2, make_adder, (100,)) as pool:
        for n in range(6):
            pool.submit(n, n)
        assert _drain(pool) == {n: 100 + n for n in range(6)}


@pytest.mark.parametrize("arguments", [(time.sleep, 1.0), (double, 1)])
def test_a_worker_whose_parents_pipe_is_closed_ends_without_a_word(
    arguments: tuple[object, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    """As at a parent's kill: the pipe goes while the worker is busy, or while its answer is unread."""
    with Pool(1) as pool:
        pool.submit(0, *arguments)
        (worker,) = pool._workers
        if arguments[0] is double:
            assert worker.connection.poll(60)
        worker.connection.close()
        worker.process.join(60)
        assert worker.process.exitcode == 0
    assert capfd.readouterr().err == ""


def test_an_exception_comes_back_and_the_worker_lives_on() -> None:
    with Pool(1) as pool:
        pool.submit(0, fail, 7)
        pool.submit(1, double, 7)
        found = _drain(pool)
    assert str(found[0]) == "no 7"
    assert found[1] == 14


def test_a_worker_that_dies_is_said_and_another_takes_the_rest() -> None:
    with Pool(1) as pool:
        pool.submit(0, double, 1)
        pool.submit(1, die, 1)
        pool.submit(2, double, 2)
        found = _drain(pool)
    assert (found[0], found[2]) == (2, 4)
    assert isinstance(found[1], WorkerDied)
    assert "signal 9" in str(found[1])


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from vmae_data.processes import Pool, next_finished\n"
        "def pid(): return os.getpid()\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        pool.submit(0, time.sleep, 60)\n"
        "        pool.submit(1, time.sleep, 60)\n"
        "        print(*[w.process.pid for w in pool._workers], flush=True)\n"
        "        next_finished((pool,))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 10
    while any(_alive(pid) for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_memory_is_limited_for_a_while_and_a_lower_limit_from_outside_stands() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    with limit_memory_growth(64 << 20):
        with pytest.raises(MemoryError):
            bytearray(256 << 20)
        low, _ = resource.getrlimit(resource.RLIMIT_DATA)
        with limit_memory_growth(1 << 40):
            assert resource.getrlimit(resource.RLIMIT_DATA) == (low, hard)
    assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)
    bytearray(256 << 20)


class Slow:
    """A staged handler that says when it began and when it was done."""

    def prepare(self, n: int) -> tuple[int, float]:
        if n == 13:
            raise ValueError("no 13")
        return n, time.monotonic()

    def finish(self, prepared: tuple[int, float]) -> tuple[float, float]:
        n, began_at = prepared
        if n == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.2)
        return began_at, time.monotonic()


def test_a_worker_begins_its_next_task_while_it_works_on_the_one_before() -> None:
    with Pool(1, Slow, depth=2) as pool:
        for n in range(3):
            pool.submit(n, n)
        found = _drain(pool)
    spans = [found[n] for n in range(3)]
    for (_, done_at), (began_at, _) in itertools.pairwise(spans):  # type: ignore[misc]
        assert began_at < done_at - 0.1


def test_no_worker_gets_a_second_task_while_another_has_none() -> None:
    with Pool(2, Slow, depth=2) as pool:
        pool.submit(0, 0)
        pool.submit(1, 1)
        assert [len(worker.tasks) for worker in pool._workers] == [1, 1]
        pool.submit(2, 2)
        pool.submit(3, 3)
        pool.submit(4, 4)
        assert pool.unfinished == 5
        assert len(_drain(pool)) == 5


def test_a_task_that_can_not_be_begun_fails_alone() -> None:
    with Pool(1, Slow, depth=2) as pool:
        for n in (1, 13, 2):
            pool.submit(n, n)
        found = _drain(pool)
    assert str(found[13]) == "no 13"
    assert isinstance(found[1], tuple) and isinstance(found[2], tuple)


def test_what_a_dead_worker_had_not_come_to_goes_to_another() -> None:
    with Pool(1, Slow, depth=3) as pool:
        for n in (1, 99, 2, 3):
            pool.submit(n, n)
        found = _drain(pool)
    assert isinstance(found[99], WorkerDied)
    assert all(isinstance(found[n], tuple) for n in (1, 2, 3))


_RANK = """\
import os, signal, sys
from vmae_data import processes
if sys.argv[2] == "gone before":  # torchrun ends after its number was asked for and before the kernel was
    def late(*words):
        os.kill(os.getppid(), signal.SIGKILL)
        while os.getppid() == torchrun:
            pass
        return 0
    torchrun, processes._LIBC = os.getppid(), type("Libc", (), {"prctl": staticmethod(late)})
def told(number, frame):
    open(sys.argv[1], "a").write(f"told {number}")
    os._exit(0)
signal.signal(signal.SIGTERM, told)
processes.stop_with_torchrun()
print("ready", flush=True)
signal.sigtimedwait([signal.SIGUSR1], 20)
"""


@pytest.mark.parametrize("when", ["gone later", "gone before"])
def test_a_process_of_torchrun_is_asked_to_stop_when_torchrun_is_killed_outright(tmp_path: Path, when: str) -> None:
    told = tmp_path / "told"
    launch = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", launch, "-c", _RANK, str(told), when]
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    torchrun = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert torchrun.stdout is not None
    with torchrun:
        if when == "gone later":
            assert torchrun.stdout.readline() == "ready\n"
            torchrun.kill()
        torchrun.stdout.read()  # to the end of both
    assert told.read_text() == f"told {signal.SIGTERM}"
