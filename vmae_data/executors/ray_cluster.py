"""Shards made by a Ray cluster: a task is a shard, staged on its node's own disk, committed to a folder that all see."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data import __version__
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.executors.encoder_pool import Encoded, EncoderPool
from vmae_data.executors.jobs import Progress, ShardDone, ShardJob, SourceDone
from vmae_data.format import path_to_text
from vmae_data.shards.pack import adopt_staged, clean_staging, pack_shard
from vmae_data.shards.plan import read_plan
from vmae_data.storage import options_text, take_options, writer_name

__all__ = ["Same", "make_shard", "need_ray", "run_on_ray"]

RETRIES = 3  # of a task whose worker or node died
WORKERS = 4  # encodes at a time in a task, where the nodes are that large
CONNECT_SECONDS = 10.0
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.5
CANCEL_SECONDS = 5.0


class Same(NamedTuple):
    """What must be the same on every node, for the bytes depend on it."""

    version: str  # of this program
    ffmpeg: str
    ffmpeg_sha256: str
    named: str | None  # the path of the ffmpeg that a person named; left out, each node's own


def run_on_ray(
    works: Iterable[ShardJob], *, workers: int | None, address: str | None, ffmpeg: str | None
) -> Iterator[Progress]:
    """Make shards as tasks of `workers` CPUs; close it to cancel them.

    `address` is that of a running cluster (`auto`, or host:port); left out, RAY_ADDRESS, else one that
    runs on this machine, else one is started for the time of the build. A task whose worker or node dies is done again.
    Raises MisuseError where Ray or the cluster is not there, VmaeError for what no single video is to blame for.
    """
    binary = find_ffmpeg(ffmpeg)
    same = Same(__version__, binary.version, binary.sha256, ffmpeg or os.environ.get("VMAE_FFMPEG"))
    ray = _import_ray()
    # Ray tells of dead workers on stdout, where results go.
    with redirect_stdout(sys.stderr), _connected(ray, address):
        cpus = _task_cpus(ray, workers)
        remote = ray.remote(num_cpus=cpus, max_retries=RETRIES, num_returns="streaming")(_task)
        yield from _Tasks(ray, remote, same, cpus).run(iter(works))


def need_ray(address: str | None) -> None:
    """Raise MisuseError where Ray isn't installed, or nothing answers at `address`: before any work, and in one line.

    Ray itself tries for minutes, with words of its own.
    """
    _import_ray()
    if address is None or address in ("auto", "local"):
        return
    if "://" in address:
        raise MisuseError(
            f"--address {address}: Ray Client can't do this; run on a node of the cluster, with host:port"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise MisuseError(f"--address {address}: expected auto or host:port, such as head-node:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MisuseError(f"--address {address}: no Ray cluster answers there ({error}); check `ray status`") from error


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MisuseError(f"--executor ray needs Ray ({error}); pip install 'vmae[ray]'") from error


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Join a cluster, or start one; a connection that was there before stays."""
    if address is not None and address.startswith("ray://"):
        raise MisuseError(
            f"--address {address}: Ray Client can't do this; run on a node of the cluster, with host:port"
        )
    if ray.is_initialized():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the coming default; else it warns
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "a cluster of this machine"
        raise MisuseError(f"Ray, {where}: can't be joined ({_first_line(error)}); check `ray status`") from error
    finally:
        for number, handler in before.items():  # Ray sets its own, which ends us without a word
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _task_cpus(ray: Any, workers: int | None) -> int:
    """CPUs of a task. One that no node has would wait for ever; where nodes are still to come, nobody knows."""
    largest = int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0))
    if workers is not None and workers > largest > 0:
        raise MisuseError(f"--workers {workers}: the largest node of the cluster has {largest} CPUs; give at most that")
    return workers or min(WORKERS, largest or WORKERS)


class _Tasks:
    """The tasks in flight: enough to keep the cluster busy, not all at once, for each carries its sources."""

    def __init__(self, ray: Any, remote: Any, same: Same, cpus: int) -> None:
        self.ray, self.remote, self.same, self.cpus = ray, remote, same, cpus
        self.streams: dict[Any, int] = {}  # what a task gives, piece by piece → its shard

    def run(self, works: Iterator[ShardJob]) -> Iterator[Progress]:
        try:
            while True:
                while len(self.streams) < self._wanted() and (work := next(works, None)) is not None:
                    stream = self.remote.remote(_absolute(work), self.same, self.cpus, _Options(options_text()))
                    self.streams[stream] = work.pack.shard
                if not self.streams:
                    return
                for stream in self._ready(WAIT_SECONDS):
                    with suppress(StopIteration):
                        yield self._next_of(stream)
        finally:
            self._cancel()

    def _wanted(self) -> int:
        """Twice what runs now, so that a cluster that grows by demand sees some."""
        return 2 * max(1, int(self.ray.cluster_resources().get("CPU", 0)) // self.cpus)

    def _ready(self, seconds: float) -> list[Any]:
        ready, _ = self.ray.wait(list(self.streams), num_returns=1, timeout=seconds)
        found: list[Any] = ready
        return found

    def _next_of(self, stream: Any) -> Progress:
        """What a task did next. Raises StopIteration at its end, and its error under its shard's name."""
        shard = self.streams[stream]
        try:
            progress: Progress = self.ray.get(next(stream))
        except StopIteration:
            del self.streams[stream]
            raise
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, VmaeError):
                raise VmaeError(f"shard {shard} {error.cause}") from error
            raise
        except self.ray.exceptions.RayError as error:
            words = f"{_first_line(error)}, {RETRIES + 1} times"
            raise VmaeError(f"shard {shard}: its task was lost ({words}); run the same build again") from error
        return progress

    def _cancel(self) -> None:
        """End what still runs, and wait a little, so that tasks clean their staging."""
        for stream in self.streams:
            self.ray.cancel(stream)
        until = time.monotonic() + CANCEL_SECONDS
        while self.streams and time.monotonic() < until:
            for stream in self._ready(until - time.monotonic()):
                try:
                    self.ray.get(next(stream))
                except (StopIteration, self.ray.exceptions.RayError):
                    del self.streams[stream]


def _absolute(work: ShardJob) -> ShardJob:
    """A worker's working directory is its own."""
    dest, staging = work.pack.dest, work.pack.staging.absolute()
    if isinstance(dest, Path):
        dest = dest.absolute()
    return work._replace(pack=work.pack._replace(dest=dest, staging=staging))


class _Options:
    """Storage options on their way to a node, by hand: what Ray hands on as an environment stands in its logs."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "storage options"


def _task(work: ShardJob, same: Same, workers: int, options: _Options) -> Iterator[Progress]:
    """A shard is made on a node; its errors say on which."""
    take_options(options.text)
    try:
        yield from make_shard(work, same, workers)
    except (VmaeError, OSError) as error:
        raise VmaeError(f"on node {socket.gethostname()}: {error}") from error


def make_shard(work: ShardJob, same: Same, workers: int) -> Iterator[Progress]:
    """What a task does: encode into staging on its node's disk, pack, commit to the folder that all nodes see.

    A task that is retried does it all again: what is committed is the same bytes.
    Raises VmaeError where the node can't make the same bytes, or for what no single video is to blame for.
    """
    binary = _ffmpeg_of_node(same)
    _need_same_folders(work)
    _sweep_staging()
    shared, keys = work.pack.staging, work.pack.keys
    with (
        tempfile.TemporaryDirectory(prefix=f"{_staging_prefix()}{os.getpid()}-") as name,
        EncoderPool(workers) as encoders,
    ):
        staging = Path(name).resolve()
        for job in work.encodes:
            staged = adopt_staged(shared, staging, job.key)
            if staged is not None:
                yield SourceDone.of(staged, encoded=False)
            else:
                encoders.submit(work.pack.shard, job._replace(ffmpeg=binary, staging=staging))
        while encoders.pool.unfinished:
            # Ray's cancelling interrupts no waiting call: so a short wait, time after time.
            ended = encoders.next(timeout=POLL_SECONDS)
            if isinstance(ended, Encoded):
                yield SourceDone.of(ended.staged, encoded=True)
        head = pack_shard(work.pack._replace(staging=staging, writer=writer_name()))
        clean_staging(shared, keys)
    yield ShardDone(work.pack.shard, head)


def _ffmpeg_of_node(same: Same) -> str:
    """This node's ffmpeg. Raises VmaeError where it, or this program, would make other bytes than the plan's."""
    if __version__ != same.version:
        raise VmaeError(
            f"vmae {__version__} is installed here, the build runs {same.version}; install that on every node"
        )
    binary = find_ffmpeg(same.named)
    if binary.sha256 != same.ffmpeg_sha256:
        raise VmaeError(
            f"ffmpeg {binary.path} ({binary.version}, sha256 {binary.sha256[:12]}) is not the plan's"
            f" ({same.ffmpeg}, {same.ffmpeg_sha256[:12]}); install the same imageio-ffmpeg on every node"
        )
    return binary.path


def _need_same_folders(work: ShardJob) -> None:
    """A folder that isn't mounted here would make every source a failure, or leave shards on one node's disk."""
    try:
        same = read_plan(work.pack.dest).digest() == work.pack.plan
    except DataError:
        if not isinstance(work.pack.dest, Path):  # it says itself what this node can't do with the store
            raise
        same = False
    if not same:
        raise VmaeError(f"{work.pack.dest}: is not the build's folder here; DEST must lie where every node sees it")
    for folder in {job.folder for job in work.encodes}:
        if isinstance(folder, bytes) and not os.path.isdir(folder):  # noqa: PTH112 - bytes paths may not be UTF-8
            raise VmaeError(f"{path_to_text(folder)}: is not there; the sources must lie where every node sees them")


def _staging_prefix() -> str:
    return f"vmae-{socket.gethostname()}-"


def _sweep_staging() -> None:
    """Take away what killed workers left on this node's disk."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_staging_prefix()}*"):
        pid = folder.name.removeprefix(_staging_prefix()).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
