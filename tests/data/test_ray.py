"""Against a real Ray, on this machine."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import imageio_ffmpeg
import pytest

from tests.command import command_line, run_command
from tests.s3_server import S3Bucket
from vmae_data import __version__
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import VmaeError
from vmae_data.executors.jobs import BuildJobs
from vmae_data.executors.ray_cluster import make_shard, run_on_ray
from vmae_data.progress import ProgressStyle
from vmae_data.shards.pack import PackJob
from vmae_data.shards.plan import Part, make_plan, write_plan
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.find import find_sources

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'vmae[ray]'")
QUIET = ProgressStyle.QUIET
SETTINGS = ["--recipe", "demo", "--set", "samples_per_shard=8"]


@pytest.fixture(scope="module")
def ray_folder() -> Iterator[Path]:
    """Where a Ray cluster of two CPUs keeps its logs, for as long as it runs."""
    context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    yield Path(context.address_info["session_dir"])
    ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_folder: Path) -> str:
    """Its address."""
    return str(ray.get_runtime_context().gcs_address)


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _is_ours(pid: int) -> bool:
    """Descends from this process: others may run the same test on this machine."""
    while pid > 1 and pid != os.getpid():
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return pid > 1


def _node_staging() -> dict[int, Path]:
    """Process of a task → its staging on this node's disk."""
    folders = Path(tempfile.gettempdir()).glob(f"vmae-{socket.gethostname()}-*")
    found = {int(folder.name.split("-")[-2]): folder for folder in folders}
    return {pid: folder for pid, folder in found.items() if _is_ours(pid)}


def _tasks_with_an_encode() -> list[int]:
    return [pid for pid, folder in _node_staging().items() if list(folder.glob("[!.]*.staged.json"))]


def _wait_for(what: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    until = time.monotonic() + 60
    while not what() and time.monotonic() < until and (process is None or process.poll() is None):
        time.sleep(0.01)
    assert what()


def test_a_killed_worker_changes_no_byte_and_stdout_holds_the_result_alone(
    cluster: str, demo_videos: Path, demo_shards: Path, tmp_path: Path
) -> None:
    dest = tmp_path / "ray"
    words = ["build", demo_videos, dest, *SETTINGS, "--executor", "ray", "--address", cluster, "--workers", "2"]
    process = subprocess.Popen(
        command_line("vmae_data", *words, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    _wait_for(_tasks_with_an_encode, process)
    killed = _tasks_with_an_encode()[0]
    os.kill(killed, signal.SIGKILL)
    out, words_told = process.communicate(timeout=120)
    assert process.returncode == 0, words_told
    assert json.loads(out)["shards"] == 4
    assert _digests(dest) == _digests(demo_shards)
    assert not _node_staging()
    assert not list(Path(tempfile.gettempdir()).glob(f"vmae-{socket.gethostname()}-{killed}-*")), "staging was left"


def test_a_signal_cancels_the_tasks_and_the_build_goes_on_in_parts(
    cluster: str, demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = tmp_path / "ray"
    words = ["build", demo_videos, dest, *SETTINGS, "--executor", "ray", "--address", cluster, "--workers", "1"]
    process = subprocess.Popen(command_line("vmae_data", *words, "--quiet"), stderr=subprocess.PIPE, text=True)
    _wait_for(_tasks_with_an_encode, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    assert told == "vmae-shard: stopped; the same command goes on from here\n"
    _wait_for(lambda: not _node_staging())
    for number in range(2):
        build_shards(str(demo_videos), dest, demo_spec, executor="ray", workers=1, part=Part(number, 2), style=QUIET)
    run_command("vmae_data", "merge", dest)
    assert _digests(dest) == _digests(demo_shards)


def test_a_cluster_builds_into_a_bucket_from_a_bucket_with_the_options_of_the_command_alone(
    cluster: str, ray_folder: Path, demo_videos: Path, demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    store = s3_bucket.store()
    for path in demo_videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(demo_videos)}", path)
    given = {key: value for key, value in s3_bucket.options.items() if isinstance(value, str)}
    # Of this process alone: the cluster was started without them.
    environment = {**os.environ, "VMAE_STORAGE_OPTIONS": json.dumps(given), "VMAE_CACHE": str(tmp_path)}
    url = s3_bucket.url
    words = ["build", f"{url}/videos", f"{url}/set", *SETTINGS, "--executor", "ray", "--address", cluster]
    run_command("vmae_data", *words, "--workers", "2", "--quiet", env=environment)
    made = {item["path"].removeprefix("set/") for page in store.list("set") for item in page}
    sums = {name: hashlib.sha256(store.get(f"set/{name}").bytes()).hexdigest() for name in made}
    assert sums == _digests(demo_shards)
    assert list(tmp_path.glob("staging/*")) == []
    logs = [path for path in ray_folder.rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if s3_bucket.server.secret.encode() in path.read_bytes()]


def test_what_a_local_build_staged_is_not_encoded_again(
    cluster: str, demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    dest = tmp_path / "both"
    local = subprocess.Popen(
        command_line("vmae_data", "build", demo_videos, dest, *SETTINGS, "--workers", "1", "--quiet"), text=True
    )
    _wait_for(lambda: len(list(dest.glob(".staging/[!.]*.staged.json"))) >= 3, local)
    local.kill()
    local.wait()
    before = len(list(dest.glob(".staging/[!.]*.staged.json")))
    report = build_shards(str(demo_videos), dest, demo_spec, executor="ray", workers=2, style=QUIET)
    assert report.encoded <= report.made.sources - before
    assert _digests(dest) == _digests(demo_shards)


def test_a_source_that_crashes_its_worker_twice_is_the_same_failure_as_locally(
    cluster: str, demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, ffmpeg = tmp_path / "videos", tmp_path / "ffmpeg"
    shutil.copytree(demo_videos / "pan-left", source / "pan-left")
    shutil.copytree(demo_videos / "pan-right", source / "pan-right")
    deadly = sorted(source.glob("pan-left/scene-*.mp4"))[0].name
    ffmpeg.write_text(
        f'#!/bin/sh\ncase "$*" in *{deadly}*) kill -9 $PPID; sleep 9;; esac\nexec {imageio_ffmpeg.get_ffmpeg_exe()} "$@"\n'
    )
    ffmpeg.chmod(0o755)
    for executor in ("local", "ray"):
        report = build_shards(
            str(source),
            tmp_path / executor,
            demo_spec,
            workers=1,
            ffmpeg=str(ffmpeg),
            executor=executor,
            style=QUIET,
        )
        assert report.reasons["crashed"] == 1
    assert _digests(tmp_path / "ray") == _digests(tmp_path / "local")


@pytest.fixture
def one_shard(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> tuple[ShardJob, Same]:
    binary = find_ffmpeg()
    listing = find_sources(str(demo_videos))
    plan = make_plan(listing, demo_spec, split=None, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    write_plan(tmp_path, plan)
    work = next(BuildJobs(workspace_of(tmp_path), plan, binary.path).to_do())
    return work, Same(__version__, binary.version, binary.sha256, None)


def test_a_node_with_another_ffmpeg_or_version_is_refused(one_shard: tuple[ShardJob, Same]) -> None:
    work, same = one_shard
    with pytest.raises(VmaeError, match="is not the plan's .*install the same imageio-ffmpeg on every node"):
        list(make_shard(work, same._replace(ffmpeg_sha256="0" * 64), 1))
    with pytest.raises(VmaeError, match="the build runs 9"):
        list(make_shard(work, same._replace(version="9"), 1))


def test_a_node_that_does_not_see_the_sources_books_no_failure(one_shard: tuple[ShardJob, Same]) -> None:
    work, same = one_shard
    blind = work._replace(encodes=tuple(job._replace(folder=b"/nowhere") for job in work.encodes))
    with pytest.raises(VmaeError, match="/nowhere: is not there"):
        list(make_shard(blind, same, 1))


def test_a_task_leaves_its_shard_and_takes_away_what_killed_ones_left(
    one_shard: tuple[ShardJob, Same], demo_shards: Path
) -> None:
    work, same = one_shard
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = Path(tempfile.mkdtemp(prefix=f"vmae-{socket.gethostname()}-{dead.pid}-"))
    *sources, shard = make_shard(work, same, 2)
    assert len(sources) == len(work.encodes)
    assert isinstance(shard, ShardDone)
    assert not left.exists()
    assert not list(work.pack.dest.glob(".tmp-*"))
    tar = work.pack.dest / shard.head.tar
    assert tar.read_bytes() == (demo_shards / tar.name).read_bytes()


def test_an_error_of_a_task_is_one_line_with_its_shard_and_node(cluster: str, one_shard: tuple[ShardJob, Same]) -> None:
    work, _ = one_shard
    other: PackJob = work.pack._replace(plan="0" * 64)
    with pytest.raises(VmaeError, match=r"^shard 0 on node \S+: .* DEST must be a folder that every node sees$"):
        list(run_on_ray([work._replace(pack=other)], workers=1, address=None, ffmpeg=None))


def test_more_workers_than_any_node_has_cpus_is_misuse(cluster: str, demo_videos: Path, tmp_path: Path) -> None:
    words = ["build", demo_videos, tmp_path, *SETTINGS, "--executor", "ray", "--address", cluster]
    done = run_command("vmae_data", *words, "--workers", "64", "--quiet", status=2)
    assert "the largest node of the cluster has 2 CPUs" in done.stderr


@pytest.mark.parametrize("address", ["ray://localhost:1", "nonsense", "127.0.0.1:1", "127.0.0.1:99999"])
def test_a_cluster_that_is_not_there_is_one_line_before_any_work(
    demo_videos: Path, tmp_path: Path, address: str
) -> None:
    words = ["build", demo_videos, tmp_path / "x", "--executor", "ray", "--address", address, "--quiet"]
    done = run_command("vmae_data", *words, status=2)
    assert f"--address {address}: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_without_ray_a_line_says_what_to_install(demo_videos: Path, tmp_path: Path) -> None:
    code = "import sys; sys.modules['ray'] = None; from vmae_data.cli import main; main()"
    words = ["build", str(demo_videos), str(tmp_path / "x"), "--executor", "ray"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'vmae[ray]'" in done.stderr
    assert done.stderr.count("\n") == 1
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / "x").iterdir())
