"""The Ray executor: a task makes one shard, staged on its node's own disk, committed to a folder that all nodes see."""

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
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from vmae_data import __version__
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.executors.encoder_pool import EncodeTask, encode_result, submit_encode
from vmae_data.executors.jobs import Encode, Pack, Progress, SourceDone
from vmae_data.names import path_to_text
from vmae_data.processes import STOP_SIGNALS, Pool, next_finished
from vmae_data.shards.pack import ShardJob, adopt_staged, clean_staging
from vmae_data.shards.plan import read_plan
from vmae_data.storage import options_text, restore_options, writer_name

__all__ = ["NodeRequirements", "make_shard", "require_ray", "run_on_ray"]

RETRIES = 3  # of a task whose worker or node died
WORKERS = 4  # encodes at a time in a task, on nodes with as many CPUs
CONNECT_SECONDS = 10.0
WAIT_SECONDS = 1.0
POLL_SECONDS = 0.5
CANCEL_SECONDS = 5.0


class NodeRequirements(NamedTuple):
    """What must be the same on every node, because the bytes depend on it."""

    version: str  # of this program
    ffmpeg: str
    ffmpeg_sha256: str
    ffmpeg_path: str | None  # as the user named it; None: each node's own


def require_ray(address: str | None) -> None:
    """Raise MisuseError if Ray is not installed, or if nothing answers at `address`.

    Ray itself would try for minutes, and print many lines.
    """
    _import_ray()
    if address is None or address in ("auto", "local"):
        return
    if "://" in address:
        raise MisuseError(
            f"--address {address}: Ray Client is not supported. Run on a node of the cluster, with host:port"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise MisuseError(f"--address {address}: expected auto or host:port, such as head-node:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise MisuseError(f"--address {address}: no Ray cluster answers there ({error}). Check `ray status`") from error


def _import_ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MisuseError(f"--executor ray needs Ray ({error}). Run `python -m pip install 'vmae[ray]'`") from error


def run_on_ray(
    jobs: Iterable[ShardJob],
    encode: Encode,
    pack: Pack,
    *,
    workers: int | None,
    address: str | None,
    ffmpeg: str | None,
) -> Generator[Progress, None, None]:
    """Make shards as Ray tasks of `workers` CPUs each. An `Executor`.

    `address`: of a running cluster (`auto`, or host:port). By default RAY_ADDRESS, else a cluster on this machine, else a
    new one for this build. Ray repeats a task whose worker or node dies.
    Raises MisuseError if Ray or the cluster is missing.
    """
    binary = find_ffmpeg(ffmpeg)
    requirements = NodeRequirements(__version__, binary.version, binary.sha256, ffmpeg or os.environ.get("VMAE_FFMPEG"))
    ray, remaining = _import_ray(), iter(jobs)
    streams: dict[Any, int] = {}  # a running task's stream of results → its shard
    # Ray reports dead workers on stdout, where our results go.
    with redirect_stdout(sys.stderr), _connected(ray, address):
        cpus = _cpus_per_task(ray, workers)
        task = ray.remote(num_cpus=cpus, max_retries=RETRIES, num_returns="streaming")(_task)
        try:
            while True:
                # Not all tasks at once, because each carries its sources. But twice what can run now: then a cluster
                # that grows on demand sees some.
                limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 0)) // cpus)
                while len(streams) < limit and (job := next(remaining, None)) is not None:
                    stream = task.remote(_absolute(job), encode, pack, requirements, cpus, _Options(options_text()))
                    streams[stream] = job.shard
                if not streams:
                    return
                for stream in _ready(ray, streams, WAIT_SECONDS):
                    progress = _next_result(ray, stream, streams[stream])
                    if progress is None:
                        del streams[stream]
                    else:
                        yield progress
        finally:
            _cancel(ray, streams)


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one. An existing connection stays open."""
    if ray.is_initialized():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's future default; without it Ray warns
    try:
        ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "a cluster of this machine"
        raise MisuseError(f"Ray can't connect to {where} ({_first_line(error)}). Check `ray status`") from error
    finally:
        for number, handler in before.items():  # Ray installs its own handlers, which exit silently
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def _cpus_per_task(ray: Any, workers: int | None) -> int:
    """CPUs of a task. A task with more CPUs than any node would wait forever; a cluster without nodes may still grow."""
    largest = int(max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0))
    if workers is not None and workers > largest > 0:
        raise MisuseError(f"--workers {workers}: the largest node of the cluster has {largest} CPUs. Set at most that")
    return workers or min(WORKERS, largest or WORKERS)


def _absolute(job: ShardJob) -> ShardJob:
    """A Ray worker has its own working directory."""
    dest = job.dest.absolute() if isinstance(job.dest, Path) else job.dest
    return job._replace(dest=dest, staging=job.staging.absolute())


def _ready(ray: Any, streams: Iterable[Any], seconds: float) -> list[Any]:
    ready: list[Any] = ray.wait(list(streams), num_returns=1, timeout=seconds)[0]
    return ready


def _next_result(ray: Any, stream: Any, shard: int) -> Progress | None:
    """The next result of a task, None at its end. Raises its error with its shard."""
    try:
        progress: Progress = ray.get(next(stream))
    except StopIteration:
        return None
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, VmaeError):
            raise VmaeError(f"shard {shard} {error.cause}") from error
        raise
    except ray.exceptions.RayError as error:
        raise VmaeError(
            f"shard {shard}: its task was lost ({_first_line(error)}, {RETRIES + 1} times). Run the same build again"
        ) from error
    return progress


def _cancel(ray: Any, streams: dict[Any, int]) -> None:
    """Cancel the running tasks, and wait a little while they remove their staging."""
    for stream in streams:
        ray.cancel(stream)
    until = time.monotonic() + CANCEL_SECONDS
    while streams and time.monotonic() < until:
        for stream in _ready(ray, streams, until - time.monotonic()):
            try:
                ray.get(next(stream))
            except (StopIteration, ray.exceptions.RayError):
                del streams[stream]


class _Options:
    """Storage options as an argument of a task: Ray logs a task's environment, and may log an argument's repr."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "storage options"


def _task(
    job: ShardJob, encode: Encode, pack: Pack, requirements: NodeRequirements, workers: int, options: _Options
) -> Iterator[Progress]:
    """Make a shard on a node. Errors name the node."""
    restore_options(options.text)
    try:
        yield from make_shard(job, encode, pack, requirements, workers)
    except (VmaeError, OSError) as error:
        raise VmaeError(f"on node {socket.gethostname()}: {error}") from error


def make_shard(
    job: ShardJob, encode: Encode, pack: Pack, requirements: NodeRequirements, workers: int
) -> Iterator[Progress]:
    """Encode into staging on this node's disk, pack, and commit to the folder that all nodes see.

    A repeated task does everything again, and commits the same bytes.
    Raises VmaeError if this node would make other bytes, and for problems that no single video causes.
    """
    binary = _node_ffmpeg(requirements)
    _require_shared_folders(job)
    _remove_dead_staging()
    with tempfile.TemporaryDirectory(prefix=f"{_staging_prefix()}{os.getpid()}-") as name, Pool(workers) as encoders:
        staging = Path(name).resolve()
        for source in job.encodes:
            staged = adopt_staged(job.staging, staging, source.key, source.plan)
            if staged is not None:
                yield SourceDone.of(staged, encoded=False)
            else:
                here = source._replace(ffmpeg=binary, staging=staging)
                submit_encode(encoders, EncodeTask(job.shard, here, encode))
        while encoders.unfinished:
            # Short waits, because Ray can't cancel a task during one.
            finished = next_finished((encoders,), timeout=POLL_SECONDS)
            if finished is not None and (staged := encode_result(encoders, finished)) is not None:
                yield SourceDone.of(staged, encoded=True)
        head = pack(job._replace(staging=staging, writer=writer_name()))
        clean_staging(job.staging, job.keys)
    yield head


def _node_ffmpeg(requirements: NodeRequirements) -> str:
    """This node's ffmpeg. Raises VmaeError if it, or this program, is not the one of the plan."""
    if __version__ != requirements.version:
        raise VmaeError(
            f"vmae {__version__} is installed here, the build runs {requirements.version}. "
            "Install that version on every node"
        )
    binary = find_ffmpeg(requirements.ffmpeg_path)
    if binary.sha256 != requirements.ffmpeg_sha256:
        raise VmaeError(
            f"ffmpeg {binary.path} ({binary.version}, sha256 {binary.sha256[:12]}) is not the plan's "
            f"({requirements.ffmpeg}, {requirements.ffmpeg_sha256[:12]}). "
            "Install the same imageio-ffmpeg on every node"
        )
    return binary.path


def _require_shared_folders(job: ShardJob) -> None:
    """A folder that is not mounted here would fail every source, or leave shards on this node's disk."""
    try:
        same = job.plan in {stage.digest() for stage in read_plan(job.dest).stages()}
    except DataError:
        if not isinstance(job.dest, Path):  # the store's own error tells more
            raise
        same = False
    if not same:
        raise VmaeError(f"{job.dest}: is not the build's folder here. DEST must be a folder that every node sees")
    for folder in {source.folder for source in job.encodes}:
        if isinstance(folder, bytes) and not os.path.isdir(folder):  # noqa: PTH112 - bytes paths may not be UTF-8
            raise VmaeError(
                f"{path_to_text(folder)}: does not exist on this node. Put the sources where every node sees them"
            )


def _staging_prefix() -> str:
    return f"vmae-{socket.gethostname()}-"


def _remove_dead_staging() -> None:
    """Remove the staging folders of killed workers from this node's disk."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_staging_prefix()}*"):
        pid = folder.name.removeprefix(_staging_prefix()).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(". ")
