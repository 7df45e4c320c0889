"""Builds on a real Ray cluster of this machine."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.builds import QUIET, SmallBuild, digests, staged_keys, wait_until
from tests.command import command_line
from tests.s3_server import S3Bucket
from vmae_data import __version__
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import MisuseError, VmaeError
from vmae_data.executors.jobs import BuildJobs
from vmae_data.executors.local_processes import run_local
from vmae_data.executors.ray_cluster import NodeRequirements, make_shard, run_on_ray
from vmae_data.format import PLAN, ShardHead
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.pack import ShardJob, pack_shard
from vmae_data.shards.plan import Part, make_plan, write_plan
from vmae_data.shards.workspace import STAGING, workspace_of
from vmae_data.sources.find import find_sources
from vmae_data.storage import storage_path
from vmae_data.storage.store_options import VARIABLE

pytestmark = pytest.mark.processes

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vmae[ray]'")


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """The log folder of a Ray cluster of two CPUs."""
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield Path(context.address_info["session_dir"])
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_folder: Path) -> str:
    """The address of the cluster."""
    return str(ray.get_runtime_context().gcs_address)


def _is_ours(pid: int) -> bool:
    """Whether a process descends from this one: others may run the same test on this machine."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid > 1


def _node_staging() -> dict[int, Path]:
    """Process of a task → its staging on this node's disk."""
    folders = Path(tempfile.gettempdir()).glob(f"vmae-{socket.gethostname()}-*")
    by_process = {int(folder.name.split("-")[-2]): folder for folder in folders}
    return {pid: folder for pid, folder in by_process.items() if _is_ours(pid)}


def _tasks_with_an_encode() -> list[int]:
    return [pid for pid, folder in _node_staging().items() if staged_keys(folder)]


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte_and_stdout_holds_the_result_alone(
    cluster: str, small_build: SmallBuild, tmp_path: Path
) -> None:
    dest = tmp_path / "ray"
    words = ["build", small_build.videos, dest, *small_build.settings, "--executor", "ray", "--address", cluster]
    small_build.hold_last(0)
    process = subprocess.Popen(
        command_line("vmae_data", *words, "--workers", "2", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(_tasks_with_an_encode, process)
    (killed,) = _tasks_with_an_encode()
    os.kill(killed, signal.SIGKILL)
    small_build.release()
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert json.loads(out)["shards"] == 3
    assert digests(dest) == digests(small_build.shards)
    assert not _node_staging()
    assert not list(Path(tempfile.gettempdir()).glob(f"vmae-{socket.gethostname()}-{killed}-*")), "staging is left"


@pytest.mark.slow
def test_a_signal_cancels_the_tasks_and_the_build_resumes_in_parts(
    cluster: str, small_build: SmallBuild, tmp_path: Path
) -> None:
    dest = tmp_path / "ray"
    words = ["build", small_build.videos, dest, *small_build.settings, "--executor", "ray", "--address", cluster]
    small_build.hold_last(0)
    process = subprocess.Popen(
        command_line("vmae_data", *words, "--workers", "1", "--quiet"), stderr=subprocess.PIPE, text=True
    )
    wait_until(_tasks_with_an_encode, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130, errors
    assert errors.startswith("vmae-shard: stopped") and errors.count("\n") == 1
    wait_until(lambda: not _node_staging())
    small_build.release()
    for number in range(2):
        small_build.build(dest, executor="ray", workers=1, part=Part(number, 2))
    merge_parts(dest)
    assert digests(dest) == digests(small_build.shards)


def test_a_cluster_builds_from_a_bucket_into_a_bucket_with_options_that_only_the_build_has(
    cluster: str,
    ray_folder: Path,
    small_build: SmallBuild,
    s3_bucket: S3Bucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, url = s3_bucket.store(), s3_bucket.url
    for path in small_build.videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(small_build.videos)}", path)
    options = {key: value for key, value in s3_bucket.options.items() if isinstance(value, str)}
    # Only in this process: the cluster was started without them.
    monkeypatch.setenv(VARIABLE, json.dumps(options))
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path))
    small_build.build(storage_path(f"{url}/set"), f"{url}/videos", executor="ray", workers=2)
    assert digests(storage_path(f"{url}/set")) == digests(small_build.shards)
    assert list(tmp_path.glob("staging/*")) == []
    logs = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if s3_bucket.server.secret.encode() in path.read_bytes()]


def test_what_a_local_build_staged_is_not_encoded_again(cluster: str, small_build: SmallBuild, tmp_path: Path) -> None:
    binary, dest = find_ffmpeg(str(small_build.ffmpeg)), tmp_path / "both"
    listing = find_sources(str(small_build.videos))
    plan = make_plan(listing, small_build.spec, split=None, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    (dest / STAGING).mkdir(parents=True)
    write_plan(dest, plan)
    jobs = BuildJobs(workspace_of(dest), plan, binary.path)
    with closing(run_local(jobs.remaining(), encode_source, pack_shard, workers=1)) as results:
        assert len(list(islice(results, 3))) == 3  # of the 4 sources of the first shard
    staged = len(staged_keys(dest / STAGING))
    assert staged >= 3
    report = small_build.build(dest, executor="ray")
    assert report.encoded == report.sources - staged
    assert digests(dest) == digests(small_build.shards)


def test_a_source_that_crashes_its_worker_twice_is_the_same_failure_as_locally(
    cluster: str, small_build: SmallBuild, tmp_path: Path
) -> None:
    source, ffmpeg = small_build.videos / "pan-left", tmp_path / "ffmpeg"
    deadly = sorted(source.glob("scene-*.mp4"))[0].name
    ffmpeg.write_text(
        f'#!/bin/sh\ncase "$*" in *{deadly}*) kill -9 $PPID; sleep 9;; esac\nexec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    ffmpeg.chmod(0o755)
    for executor in ("local", "ray"):
        report = small_build.build(tmp_path / executor, source, workers=1, ffmpeg=str(ffmpeg), executor=executor)
        assert report.failures["crashed"] == 1
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


@pytest.fixture
def one_shard(small_build: SmallBuild, tmp_path: Path) -> tuple[ShardJob, NodeRequirements]:
    binary = find_ffmpeg(str(small_build.ffmpeg))
    listing = find_sources(str(small_build.videos))
    plan = make_plan(listing, small_build.spec, split=None, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    write_plan(tmp_path, plan)
    job = next(BuildJobs(workspace_of(tmp_path), plan, binary.path).remaining())
    return job, NodeRequirements(__version__, binary.version, binary.sha256, binary.path)


def test_a_node_with_another_ffmpeg_or_version_is_refused(one_shard: tuple[ShardJob, NodeRequirements]) -> None:
    job, required = one_shard
    with pytest.raises(VmaeError, match=r"is not the plan's .*Install the same imageio-ffmpeg on every node"):
        list(make_shard(job, encode_source, pack_shard, required._replace(ffmpeg_sha256="0" * 64), 1))
    with pytest.raises(VmaeError, match="the build runs 9"):
        list(make_shard(job, encode_source, pack_shard, required._replace(version="9"), 1))


def test_a_node_that_does_not_see_the_sources_records_no_failure(
    one_shard: tuple[ShardJob, NodeRequirements],
) -> None:
    job, required = one_shard
    blind = job._replace(encodes=tuple(source._replace(folder=b"/nowhere") for source in job.encodes))
    with pytest.raises(VmaeError, match="/nowhere: does not exist on this node"):
        list(make_shard(blind, encode_source, pack_shard, required, 1))


def test_a_task_leaves_its_shard_and_removes_the_staging_of_killed_tasks(
    one_shard: tuple[ShardJob, NodeRequirements], small_build: SmallBuild
) -> None:
    job, required = one_shard
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = Path(tempfile.mkdtemp(prefix=f"vmae-{socket.gethostname()}-{dead.pid}-"))
    *sources, head = make_shard(job, encode_source, pack_shard, required, 2)
    assert len(sources) == len(job.encodes)
    assert isinstance(head, ShardHead)
    assert not left.exists()
    assert isinstance(job.dest, Path)
    assert not list(job.dest.glob(".tmp-*"))
    assert (job.dest / head.tar).read_bytes() == (small_build.shards / head.tar).read_bytes()


def test_an_error_of_a_task_is_one_line_with_its_shard_and_node(
    cluster: str, one_shard: tuple[ShardJob, NodeRequirements]
) -> None:
    job = one_shard[0]._replace(plan="0" * 64)
    with pytest.raises(VmaeError, match=r"^shard 0 on node \S+: .* DEST must be a folder that every node sees$"):
        list(run_on_ray([job], encode_source, pack_shard, workers=1, address=None, ffmpeg=None))


def test_more_workers_than_any_node_has_cpus_is_misuse(cluster: str, demo_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="the largest node of the cluster has 2 CPUs"):
        build_shards(str(demo_videos), tmp_path, BuildSpec(), executor="ray", address=cluster, workers=64, style=QUIET)
    assert not (tmp_path / PLAN).exists()  # the next build may have other settings, in a bucket too


@pytest.mark.parametrize("address", ["ray://localhost:1", "nonsense", "127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_one_line_before_any_work(
    demo_videos: Path, tmp_path: Path, address: str
) -> None:
    with pytest.raises(MisuseError, match=f"^--address {address}: .*$") as caught:
        build_shards(str(demo_videos), tmp_path / "x", BuildSpec(), executor="ray", address=address, style=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_without_ray_a_line_names_what_to_install(
    demo_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MisuseError, match=r"pip install 'vmae\[ray\]'`$") as caught:
        build_shards(str(demo_videos), tmp_path / "x", BuildSpec(), executor="ray", style=QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
