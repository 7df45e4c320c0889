from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vmae_data.errors import VmaeError
from vmae_data.processes import Pool, WorkerDied, keep_freed_memory, limit_memory_growth, next_finished

pytestmark = pytest.mark.processes


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
    results = {}
    while (finished := next_finished((pool,))) is not None:
        results[finished.tag] = finished.error or finished.result
    return results


def test_every_task_comes_back_once_under_its_tag() -> None:
    with Pool(3) as pool:
        for n in range(20):
            pool.submit(n, double, n)
        assert _drain(pool) == {n: 2 * n for n in range(20)}
        assert pool.unfinished == 0


def test_no_worker_gets_a_signal_that_is_for_its_parent() -> None:
    """The first worker of a process also starts Python's resource tracker, which unblocks SIGINT and SIGTERM."""
    script = (
        "from pathlib import Path\nfrom vmae_data.processes import Pool, next_finished\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        for n in range(2):\n"
        "            pool.submit(n, Path.read_text, Path('/proc/self/status'))\n"
        "        for n in range(2):\n"
        "            print(next_finished((pool,)).result)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    masks = [int(mask, 16) for mask in re.findall(r"^SigBlk:\s*(\w+)", done.stdout, re.MULTILINE)]
    assert len(masks) == 2
    for mask in masks:
        assert all(
            mask >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        )


def test_a_handler_is_made_once_in_each_worker() -> None:
    with Pool(2, make_adder, (100,)) as pool:
        for n in range(6):
            pool.submit(n, n)
        assert _drain(pool) == {n: 100 + n for n in range(6)}


@pytest.mark.parametrize(("outside", "inside"), [(None, "1"), ("3", "3")])
def test_a_worker_computes_in_one_thread_unless_told(
    outside: str | None, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    if outside is not None:
        monkeypatch.setenv("OPENBLAS_NUM_THREADS", outside)
    with Pool(1) as pool:
        assert os.environ.get("OPENBLAS_NUM_THREADS") == outside
        pool.submit(0, os.getenv, "OPENBLAS_NUM_THREADS")
        assert _drain(pool) == {0: inside}


@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_a_worker_whose_parent_is_killed_ends_silently(seconds: float) -> None:
    """The pipe to the parent closes while the worker is busy, or while its answer is unread."""
    script = f"""
import os, signal, time
from vmae_data.processes import Pool
if __name__ == "__main__":
    with Pool(1) as pool:
        pool.submit(0, time.sleep, {seconds})
        time.sleep({1 - seconds})
        os.kill(os.getpid(), signal.SIGKILL)
"""
    # The end of the output comes when the worker has ended too: it inherited it.
    done = subprocess.run([sys.executable, "-c", script], stderr=subprocess.PIPE, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert done.stderr == b""


def test_an_exception_comes_back_and_the_worker_continues() -> None:
    with Pool(1) as pool:
        pool.submit(0, fail, 7)
        pool.submit(1, double, 7)
        results = _drain(pool)
    assert str(results[0]) == "no 7"
    assert results[1] == 14


def test_a_dead_worker_is_reported_and_another_takes_the_rest() -> None:
    with Pool(1) as pool:
        pool.submit(0, double, 1)
        pool.submit(1, die, 1)
        pool.submit(2, double, 2)
        results = _drain(pool)
    assert (results[0], results[2]) == (2, 4)
    assert isinstance(results[1], WorkerDied)
    assert "signal 9" in str(results[1])


def test_a_worker_that_dies_before_it_accepts_work_is_no_task_s_fault() -> None:
    with Pool(1) as pool:
        pool.submit(0, double, 1)
        pool._workers[0].process.kill()
        with pytest.raises(VmaeError, match=r"ended \(signal 9\) before it accepted work. Run the same command"):
            _drain(pool)


def test_a_script_without_a_guard_is_told_and_no_video_is_blamed(demo_videos: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from vmae_data.build import build_shards\n"
        "from vmae_data.encode.build_spec import BuildSpec\n"
        f"build_shards({str(demo_videos)!r}, Path({str(tmp_path / 'shards')!r}), BuildSpec(), workers=1)\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert run.returncode == 1
    assert "(status 1) before it accepted work." in run.stderr.splitlines()[-1]
    assert '`if __name__ == "__main__":`' in run.stderr.splitlines()[-1]
    assert not list((tmp_path / "shards").rglob("*.staged.json"))


def test_a_script_from_standard_input_is_told_to_become_a_file() -> None:
    """It has the guard, so the advice must be another."""
    script = (
        "from vmae_data.processes import Pool, next_finished\n"
        "if __name__ == '__main__':\n"
        "    with Pool(1) as pool:\n"
        "        pool.submit(0, print, 1)\n"
        "        next_finished((pool,))\n"
    )
    run = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert run.returncode == 1
    assert "before it accepted work." in run.stderr.splitlines()[-1]
    assert run.stderr.splitlines()[-1].endswith("Save it as a file, and run that")


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, time\n"
        "from vmae_data.processes import Pool, next_finished\n"
        "def sleep():\n"
        "    os.write(1, b'%d\\n' % os.getpid())\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    with Pool(2) as pool:\n"
        "        pool.submit(0, sleep)\n"
        "        pool.submit(1, sleep)\n"
        "        next_finished((pool,))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
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


def test_memory_is_limited_for_a_while_and_a_lower_limit_from_outside_stays() -> None:
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
    """Finishes a task only when the next one is prepared, and tells which process worked on it."""

    def __init__(self) -> None:
        self.prepared = [threading.Event() for _ in range(100)]

    def prepare(self, n: int) -> int:
        if n == 13:
            raise ValueError("no 13")
        self.prepared[n].set()
        return n

    def finish(self, n: int) -> tuple[bool, int]:
        if n == 99:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.prepared[n + 1].wait(0.5), os.getpid()


def test_a_worker_begins_its_next_task_while_it_works_on_the_one_before() -> None:
    with Pool(1, Slow, depth=2) as pool:
        for n in range(3):
            pool.submit(n, n)
        results = _drain(pool)
    assert [results[n][0] for n in range(3)] == [True, True, False]  # type: ignore[index]


def test_no_worker_gets_a_second_task_while_another_has_none() -> None:
    with Pool(2, Slow, depth=2) as pool:
        for n in range(5):
            pool.submit(n, n)
        assert pool.unfinished == 5
        results = _drain(pool)
    assert results[0][1] != results[1][1]  # type: ignore[index]


def test_a_task_that_can_not_be_prepared_is_the_only_one_that_fails() -> None:
    with Pool(1, Slow, depth=2) as pool:
        for n in (1, 13, 2):
            pool.submit(n, n)
        results = _drain(pool)
    assert str(results[13]) == "no 13"
    assert isinstance(results[1], tuple) and isinstance(results[2], tuple)


def test_tasks_that_a_dead_worker_had_not_started_go_to_another() -> None:
    with Pool(1, Slow, depth=3) as pool:
        for n in (1, 99, 2, 3):
            pool.submit(n, n)
        results = _drain(pool)
    assert isinstance(results[99], WorkerDied)
    assert all(isinstance(results[n], tuple) for n in (1, 2, 3))


_RANK = """\
import os, signal, sys
from vmae_data import processes
if sys.argv[2] == "before":  # torchrun ends after its number is read and before the kernel is asked
    def late(*words):
        os.kill(os.getppid(), signal.SIGKILL)
        while os.getppid() == torchrun:
            pass
        return 0
    torchrun, processes._LIBC = os.getppid(), type("Libc", (), {"prctl": staticmethod(late)})
def stop(number, frame):
    open(sys.argv[1], "a").write(f"signal {number}")
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
processes.stop_with_torchrun()
print("ready", flush=True)
signal.sigtimedwait([signal.SIGUSR1], 20)
"""


@pytest.mark.parametrize("when", ["later", "before"])
def test_a_process_of_torchrun_gets_sigterm_when_torchrun_is_killed(tmp_path: Path, when: str) -> None:
    log = tmp_path / "log"
    launch = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", launch, "-c", _RANK, str(log), when]
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
    torchrun = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert torchrun.stdout is not None
    with torchrun:
        if when == "later":
            assert torchrun.stdout.readline() == "ready\n"
            torchrun.kill()
        torchrun.stdout.read()  # to the end of both
    assert log.read_text() == f"signal {signal.SIGTERM}"


_ENDING = """\
import atexit, os, sys
from vmae_data.processes import exit_process
class Last:
    def __del__(self):
        os.write(2, b"interpreter ended")
sys.modules["last"] = Last()
atexit.register(print, "handler")
print("printed")
exit_process(3)
"""


@pytest.mark.parametrize(("world_size", "ended"), [("1", "interpreter ended"), ("2", "")])
def test_one_of_several_processes_skips_the_interpreters_end_and_loses_nothing(world_size: str, ended: str) -> None:
    """Threads of process groups that free a tensor at that end abort the process."""
    environment = {**os.environ, "WORLD_SIZE": world_size}
    done = subprocess.run(
        [sys.executable, "-c", _ENDING], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (3, "printed\nhandler\n", ended)


def page_faults_of_a_second_block(megabytes: int) -> int:
    """How many pages the second of two equal blocks asks the system for, after the first is freed."""
    b"x" * (megabytes << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (megabytes << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def few_pages(megabytes: int) -> float:
    return (megabytes << 20) / resource.getpagesize() / 10


def _forget_malloc_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(name)


def test_a_process_uses_freed_memory_again(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_malloc_variables(monkeypatch)
    script = """
from tests.data.test_processes import page_faults_of_a_second_block
from vmae_data.processes import keep_freed_memory
print(int(keep_freed_memory()), page_faults_of_a_second_block(100))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, check=True, timeout=120)
    is_kept, faults = map(int, done.stdout.split())
    if not is_kept:
        pytest.skip("this C library has no mallopt")
    assert faults < few_pages(100)

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "100000")
    assert not keep_freed_memory()  # what a user has chosen stays


def test_a_worker_uses_freed_memory_again_but_returns_large_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_malloc_variables(monkeypatch)
    with Pool(1) as pool:
        for megabytes in (20, 200):
            pool.submit(megabytes, page_faults_of_a_second_block, megabytes)
        faults = _drain(pool)
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("this C library has no mallopt")
    assert faults[20] < few_pages(20)
    assert faults[200] > few_pages(200)
