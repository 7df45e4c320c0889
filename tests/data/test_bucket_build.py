"""Builds into the buckets of a real S3 server: the bytes are those of a local build."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path

import msgspec
import pytest

from tests.buckets import Setting, send
from tests.builds import SmallBuild, digests, wait_until
from tests.command import call_command, command_line
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError
from vmae_data.executors.jobs import BuildJobs
from vmae_data.format import INDEX
from vmae_data.names import key_of, marker_name
from vmae_data.read.dataset import Shards
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.pack import adopt_staged
from vmae_data.shards.plan import Part, make_plan
from vmae_data.shards.workspace import workspace_of
from vmae_data.sources.find import find_sources
from vmae_data.storage import list_tree, remove, storage_path
from vmae_data.storage.store_options import VARIABLE

pytestmark = pytest.mark.processes


def _keys(small_build: SmallBuild, *shards: int) -> set[str]:
    return {key_of(path.encode()) for shard in shards for path in small_build.paths_of(shard)}


def test_a_build_into_a_bucket_has_the_bytes_of_a_local_one_and_leaves_nothing(
    small_build: SmallBuild, s3: Setting
) -> None:
    assert small_build.build(s3.folder).encoded == 12
    assert digests(s3.folder) == digests(small_build.shards)
    assert list(s3.node.glob("staging/*")) == []
    assert small_build.build(s3.folder).encoded == 0
    assert digests(s3.folder) == digests(small_build.shards)


@pytest.mark.parametrize("moment", ["encodes are staged", "a shard is done"])
def test_a_build_that_is_killed_resumes_from_the_bucket_and_from_staging(
    moment: str, small_build: SmallBuild, s3: Setting
) -> None:
    small_build.hold_last(0 if moment == "encodes are staged" else 1)
    process = small_build.start(s3.folder)
    if moment == "encodes are staged":
        wait_until(lambda: len(s3.staged_keys) > 2, process)
    else:
        wait_until(lambda: marker_name(0) in list_tree(s3.folder), process)
    process.kill()
    process.join()
    small_build.release()
    stored = set(list_tree(s3.folder))
    assert INDEX not in stored
    assert stored < set(digests(small_build.shards))
    every = _keys(small_build, 0, 1, 2)
    done = _keys(small_build, *(shard for shard in range(3) if marker_name(shard) in stored))
    remaining = every - done - s3.staged_keys
    assert small_build.build(s3.folder).encoded == len(remaining) < len(every)
    assert digests(s3.folder) == digests(small_build.shards)
    assert list(s3.node.glob("staging/*")) == []


@pytest.mark.parametrize("change", [{"short_side": 64}, {}], ids=["another recipe", "the same plan"])
def test_encodes_wait_for_their_own_plan_only(
    change: dict[str, int], small_build: SmallBuild, s3: Setting, tmp_path: Path
) -> None:
    """A build stopped, its objects were deleted, and its encodes remain on this machine."""
    spec = msgspec.structs.replace(small_build.spec, **change)
    binary = find_ffmpeg(str(small_build.ffmpeg))
    listing = find_sources(str(small_build.videos))
    plan = make_plan(listing, spec, split=None, ffmpeg=binary.version, ffmpeg_sha256=binary.sha256)
    workspace = workspace_of(s3.folder)
    workspace.staging.mkdir(parents=True)
    first = next(BuildJobs(workspace, plan, binary.path).remaining())
    kept = [encode_source(job) for job in first.encodes]
    assert any(one.failure for one in kept) and any(one.samples for one in kept)
    for job, one in zip(first.encodes, kept, strict=True):
        assert adopt_staged(workspace.staging, tmp_path, job.key, job.plan) == one
        assert adopt_staged(workspace.staging, tmp_path, job.key, "another") is None
    assert small_build.build(s3.folder).encoded == (12 if change else 12 - len(kept))
    assert digests(s3.folder) == digests(small_build.shards)


def test_parts_of_several_machines_meet_in_the_bucket(
    small_build: SmallBuild, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 0):
        if number == 0:
            with pytest.raises(DataError, match=r"Run --part 0/2, then merge again"):
                merge_parts(s3.folder)
        monkeypatch.setenv("VMAE_CACHE", str(s3.node / f"machine-{number}"))
        small_build.build(s3.folder, part=Part(number, 2))
    assert "failures-part-0-of-2.jsonl" in list_tree(s3.folder)
    monkeypatch.setenv("VMAE_CACHE", str(s3.node / "another"))
    merge_parts(s3.folder)
    assert digests(s3.folder) == digests(small_build.shards)


def test_failures_in_a_bucket_are_tried_again_on_request(small_build: SmallBuild, s3: Setting, tmp_path: Path) -> None:
    videos = Path(shutil.copytree(small_build.videos, tmp_path / "videos"))
    repaired = videos / small_build.paths_of(0)[0]
    data = repaired.read_bytes()
    repaired.write_bytes(b"")
    small_build.build(s3.folder, videos)
    repaired.write_bytes(data)
    assert small_build.build(s3.folder, videos).encoded == 0
    assert 0 < small_build.build(s3.folder, videos, retry_failed=True).encoded < len(Shards.open(str(s3.folder)))
    assert digests(s3.folder) == digests(small_build.shards)


def test_a_build_that_is_run_again_lists_and_does_not_request_each_shard(
    small_build: SmallBuild, s3: Setting, network: Proxy
) -> None:
    small = small_build._replace(spec=msgspec.structs.replace(small_build.spec, samples_per_shard=1))
    shards = small.build(s3.folder).sources
    before = len(network.seen().exchanges)
    remove(s3.folder / INDEX)
    small.build(s3.folder)
    paths = [exchange.path for exchange in network.seen().exchanges[before:]]
    assert sum(".tar" in path for path in paths) == len(Shards.open(str(s3.folder)))  # facts, for the index
    assert sum("shard-" in path and ".json" in path for path in paths) <= 2 * shards
    assert len([path for path in paths if "shard-" not in path]) < 20


def test_a_builds_own_facts_are_not_read_back_from_the_bucket(
    small_build: SmallBuild, s3: Setting, network: Proxy
) -> None:
    small_build.build(s3.folder)
    assert not [e for e in network.seen().exchanges if e.method == "GET" and ".tar" in e.path]


def test_a_bucket_that_goes_away_ends_the_build_in_one_line_and_what_is_done_is_kept(
    small_build: SmallBuild, s3: Setting, network: Proxy
) -> None:
    words = ["build", small_build.videos, str(s3.folder), *small_build.settings, "--quiet", "--workers", "1"]
    small_build.hold_last(0)
    with subprocess.Popen(command_line("vmae_data", *words), stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: s3.staged_keys, process)
        network.change(Faults(faults=(Fault(kind=Kind.STATUS, status=500),), methods=("GET", "HEAD", "PUT", "POST")))
        small_build.release()
        line = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 1
    assert re.fullmatch(
        r"vmae-shard: s3://\S+: can't be written \(.*\)\. Check the store .*run the same command again", line
    )
    staged = s3.staged_keys
    assert staged
    network.change(Faults())
    assert small_build.build(s3.folder).encoded == 12 - len(staged)
    assert digests(s3.folder) == digests(small_build.shards)


def test_options_of_the_command_line_reach_every_process(
    small_build: SmallBuild, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(small_build.videos, s3.folder)
    options = {name: value for name, value in s3.bucket.options.items() if isinstance(value, str)}
    for name in s3.bucket.environment:
        monkeypatch.delenv(name)
    words = [word for name, value in options.items() for word in ("--storage-option", f"{name}={value}")]
    made = f"{s3.bucket.url}/made"
    call_command("vmae_data", "build", str(s3.folder), made, *small_build.settings, "--quiet", *words)
    monkeypatch.setenv(VARIABLE, "{}")  # as before the command
    call_command("vmae_data", "verify", made, "--quiet", *words)
    monkeypatch.setenv(VARIABLE, json.dumps(options))
    assert digests(storage_path(made)) == digests(small_build.shards)


def test_staging_may_be_in_a_named_folder(small_build: SmallBuild, s3: Setting, tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    (fast / "other").mkdir(parents=True)
    for dest in (s3.folder, tmp_path / "local"):
        small_build.build(dest, staging=fast)
        assert digests(dest) == digests(small_build.shards)
        assert [path.name for path in fast.iterdir()] == ["other"]
    assert not (s3.node / "staging").exists()


def test_a_signal_ends_a_command_that_waits_for_a_silent_store(
    small_build: SmallBuild, s3: Setting, network: Proxy
) -> None:
    send(small_build.shards, s3.folder)
    remove(s3.folder / INDEX)
    network.change(Faults(faults=(Fault(kind=Kind.STATUS, status=500),), path_part="shard-"))
    words = ["merge", str(s3.folder), "--storage-option", "give_up=60"]
    process = subprocess.Popen(command_line("vmae_data", *words), stderr=subprocess.PIPE, text=True)
    wait_until(lambda: network.seen().faults, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    kept = f"The shards in {s3.folder} are kept"
    assert errors == f"merging the parts …\nvmae-shard: stopped. {kept}. Run the same command again to resume\n"
