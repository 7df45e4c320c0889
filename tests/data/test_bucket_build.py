"""Builds into the buckets of a real S3 server: the bytes are those of a local build, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from tests.buckets import SETTINGS, Setting, build, digests, send
from tests.command import command_line, run_command
from tools.soak.faults.network import Fault, Faults, Kind
from tools.soak.faults.proxy import Proxy
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError
from vmae_data.format import INDEX, PLAN_TABLE, marker_name
from vmae_data.read.dataset import Shards
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.plan import Part
from vmae_data.sources.find import find_sources
from vmae_data.storage import (
    list_tree,
    read_bytes,
    remove,
    storage_path,
)
from vmae_data.storage.options import VARIABLE


def test_a_build_into_a_bucket_has_the_bytes_of_a_local_one_and_leaves_nothing(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, s3: Setting
) -> None:
    assert build(demo_videos, s3.folder, demo_spec) > 0
    assert digests(s3.folder) == digests(demo_shards)
    assert list(s3.node.glob("staging/*")) == []
    assert build(demo_videos, s3.folder, demo_spec) == 0
    assert digests(s3.folder) == digests(demo_shards)


@pytest.mark.parametrize("moment", ["encodes are staged", "a shard is done"])
def test_a_build_that_is_killed_goes_on_from_the_bucket_and_from_staging(
    moment: str, demo_videos: Path, demo_shards: Path, s3: Setting
) -> None:
    command = command_line("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--workers", "2", "--quiet")
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None:
        if marker_name(0) in list_tree(s3.folder) if moment == "a shard is done" else len(s3.staged_keys) > 2:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    there = set(list_tree(s3.folder))
    assert INDEX not in there
    assert there < set(digests(demo_shards))
    plan = pa.ipc.open_file(read_bytes(s3.folder / PLAN_TABLE)).read_all().to_pydict()
    done = {key for key, shard in zip(plan["key"], plan["shard"], strict=True) if marker_name(shard) in there}
    left = set(plan["key"]) - done - s3.staged_keys
    again = run_command("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--json")
    assert json.loads(again.stdout.splitlines()[-1])["encoded"] == len(left) < len(plan["key"])
    assert digests(s3.folder) == digests(demo_shards)
    assert list(s3.node.glob("staging/*")) == []


def test_parts_of_several_machines_meet_in_the_bucket(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 0):
        if number == 0:
            with pytest.raises(DataError, match=r"Run --part 0/2, then merge again"):
                merge_parts(s3.folder)
        monkeypatch.setenv("VMAE_CACHE", str(s3.node / f"machine-{number}"))
        build(demo_videos, s3.folder, demo_spec, part=Part(number, 2))
    assert "failures-part-0-of-2.jsonl" in list_tree(s3.folder)
    monkeypatch.setenv("VMAE_CACHE", str(s3.node / "another"))
    merge_parts(s3.folder)
    assert digests(s3.folder) == digests(demo_shards)


def test_failures_in_a_bucket_are_tried_again_on_request(
    demo_videos: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    videos, whole = tmp_path / "videos", tmp_path / "whole"
    shutil.copytree(demo_videos, videos)
    some = sorted(videos.glob("*/*.mp4"))[0]
    data = some.read_bytes()
    some.write_bytes(b"")
    build(videos, s3.folder, demo_spec)
    some.write_bytes(data)
    assert build(videos, s3.folder, demo_spec) == 0
    assert 0 < build(videos, s3.folder, demo_spec, retry_failed=True) < len(Shards.open(str(s3.folder)))
    build(videos, whole, demo_spec)
    assert digests(s3.folder) == digests(whole)


def test_a_build_that_is_run_again_lists_and_does_not_ask_for_each_shard(
    demo_videos: Path, demo_spec: BuildSpec, s3: Setting, network: Proxy
) -> None:
    spec = msgspec.structs.replace(demo_spec, samples_per_shard=1)
    build(demo_videos, s3.folder, spec)
    before = len(network.seen().exchanges)
    remove(s3.folder / INDEX)
    build(demo_videos, s3.folder, spec)
    asked = [exchange.path for exchange in network.seen().exchanges[before:]]
    shards = len(find_sources(str(demo_videos)).sources)
    assert sum(".tar" in path for path in asked) == len(Shards.open(str(s3.folder)))  # facts, for the index
    assert sum("shard-" in path and ".json" in path for path in asked) <= 2 * shards
    assert len([path for path in asked if "shard-" not in path]) < 20


def test_a_builds_own_facts_are_not_read_back_from_the_bucket(
    demo_videos: Path, demo_spec: BuildSpec, s3: Setting, network: Proxy
) -> None:
    build(demo_videos, s3.folder, demo_spec)
    assert not [e for e in network.seen().exchanges if e.method == "GET" and ".tar" in e.path]


def test_a_bucket_that_goes_away_ends_the_build_in_one_line_and_what_is_done_is_kept(
    demo_videos: Path, demo_shards: Path, s3: Setting, network: Proxy
) -> None:
    command = command_line("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--quiet", "--workers", "1")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not s3.staged_keys and process.poll() is None:
            time.sleep(0.02)
        network.change(Faults(faults=(Fault(kind=Kind.STATUS, status=500),), methods=("GET", "HEAD", "PUT", "POST")))
        words = process.communicate(timeout=120)[1].splitlines()[-1]
    assert process.returncode == 1
    assert re.fullmatch(
        r"vmae-shard: s3://\S+: can't be written \(.*\)\. Check the store .*run the same command again", words
    )
    staged = s3.staged_keys
    assert staged
    network.change(Faults())
    again = run_command("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--json")
    plan = pa.ipc.open_file(read_bytes(s3.folder / PLAN_TABLE)).read_all().to_pydict()
    assert json.loads(again.stdout.splitlines()[-1])["encoded"] == len(set(plan["key"]) - staged)
    assert digests(s3.folder) == digests(demo_shards)


def test_options_of_the_command_line_reach_every_process(
    demo_videos: Path, demo_shards: Path, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(demo_videos, s3.folder)
    given = {name: value for name, value in s3.bucket.options.items() if isinstance(value, str)}
    for name in s3.bucket.environment:
        monkeypatch.delenv(name)
    words = [word for name, value in given.items() for word in ("--storage-option", f"{name}={value}")]
    run_command("vmae_data", "build", str(s3.folder), f"{s3.bucket.url}/made", *SETTINGS, "--quiet", *words)
    run_command("vmae_data", "verify", f"{s3.bucket.url}/made", "--quiet", *words)
    monkeypatch.setenv(VARIABLE, json.dumps(given))
    made = storage_path(f"{s3.bucket.url}/made")
    assert digests(made) == digests(demo_shards)


def test_staging_may_lie_in_a_folder_that_is_named(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    fast = tmp_path / "fast"
    (fast / "other").mkdir(parents=True)
    for dest in (s3.folder, tmp_path / "local"):
        build(demo_videos, dest, demo_spec, staging=fast)
        assert digests(dest) == digests(demo_shards)
        assert [path.name for path in fast.iterdir()] == ["other"]
    assert not (s3.node / "staging").exists()


def test_a_signal_ends_a_command_that_waits_for_a_silent_store(demo_shards: Path, s3: Setting, network: Proxy) -> None:
    send(demo_shards, s3.folder)
    remove(s3.folder / INDEX)
    fault = Fault(kind=Kind.STATUS, status=500)
    network.change(Faults(faults=(fault,), path_part="shard-"))
    words = ["merge", str(s3.folder), "--storage-option", "give_up=60"]
    process = subprocess.Popen(command_line("vmae_data", *words), stderr=subprocess.PIPE, text=True)
    while not network.seen().faults and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told == "vmae-shard: stopped. Run the same command again to resume\n"
