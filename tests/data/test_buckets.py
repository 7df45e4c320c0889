"""`vmae-shard` into and from the buckets of a real S3 server: the bytes are those of a local build, whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pytest

from tests.command import command_line, run_command
from tests.conftest import WORKERS
from tests.s3_server import PUBLIC, S3Bucket
from tools.faults.network import Fault, Faults, Kind
from tools.faults.proxy import Proxy, proxy_thread
from vmae_data.build import build_shards
from vmae_data.check.verify import Problem, verify_shards
from vmae_data.errors import DataError, MisuseError
from vmae_data.format import FAILURES, INDEX, PLAN_TABLE, marker_name, tar_name
from vmae_data.merge import merge_parts
from vmae_data.prepare.classes import read_classes
from vmae_data.prepare.exclude import exclude_sources
from vmae_data.prepare.plan import BuildSpec, Part
from vmae_data.prepare.sources import find_sources
from vmae_data.progress import ProgressStyle
from vmae_data.read.shards import Shards
from vmae_data.store import (
    Place,
    RemotePlace,
    commit_bytes,
    list_tree,
    place_of,
    read_bytes,
    remote,
    remove,
    set_options,
)
from vmae_data.store.options import VARIABLE

QUIET = ProgressStyle.QUIET
SETTINGS = ["--recipe", "demo", "--set", "samples_per_shard=8"]


class Setting(NamedTuple):
    """A bucket that this process and its children reach, and the node's own folder of this test."""

    bucket: S3Bucket
    folder: RemotePlace
    node: Path

    @property
    def staged_keys(self) -> set[str]:
        """Sources whose encodes wait on this machine."""
        return {path.name.partition(".")[0] for path in self.node.glob("staging/*/.staging/[!.]*.staged.json")}


def reach(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3(s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    reach(s3_bucket, monkeypatch)
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["give_up=5"])
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    folder = place_of(f"{s3_bucket.url}/sets/demo")
    assert isinstance(folder, RemotePlace)
    return Setting(s3_bucket, folder, tmp_path / "node")


@pytest.fixture
def network(s3: Setting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between the bucket and us, and counts."""
    with proxy_thread(s3.bucket.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def digests(place: Place) -> dict[str, str]:
    """Every file below a folder, here or in a bucket, and its sum."""
    if isinstance(place, RemotePlace):
        return {path: hashlib.sha256(read_bytes(place / path)).hexdigest() for path in list_tree(place)}
    files = [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def send(folder: Path, to: RemotePlace) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(to / str(path.relative_to(folder)), path)


def build(videos: Path | str, dest: Place, spec: BuildSpec, **how: object) -> int:
    """Build and tell how many sources were encoded."""
    return build_shards(str(videos), dest, spec, workers=WORKERS, style=QUIET, **how).encoded  # type: ignore[arg-type]


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
            with pytest.raises(DataError, match=r"run --part 0/2, then merge again"):
                merge_parts(s3.folder)
        monkeypatch.setenv("VMAE_CACHE", str(s3.node / f"machine-{number}"))
        build(demo_videos, s3.folder, demo_spec, part=Part(number, 2))
    assert "failures-part-0-of-2.jsonl" in list_tree(s3.folder)
    monkeypatch.setenv("VMAE_CACHE", str(s3.node / "another"))
    merge_parts(s3.folder)
    assert digests(s3.folder) == digests(demo_shards)


def test_sources_in_a_bucket_give_the_bytes_of_the_same_folder(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    send(demo_videos, s3.folder)
    build(str(s3.folder), tmp_path / "shards", demo_spec)
    assert digests(tmp_path / "shards") == digests(demo_shards)


def test_names_of_a_bucket_may_hold_what_names_of_files_may(s3: Setting, tmp_path: Path) -> None:
    for name in ("a b/Käse #1 +50%25 &=.mp4", "c/日本.webm", ".hidden/x.mp4", "c/.y.mp4", "c/notes.txt", "flat.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    send(tmp_path / "videos", s3.folder)
    here, there = find_sources(str(tmp_path / "videos")), find_sources(str(s3.folder))
    assert sorted(there.sources) == sorted(here.sources)
    assert there.classes == here.classes == ("a b", "c")


def test_a_listing_in_a_bucket_names_what_lies_beside_it(
    demo_videos: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    send(demo_videos, s3.folder)
    names = sorted(str(path.relative_to(demo_videos)) for path in demo_videos.glob("*/*.mp4"))[:4]
    lines = "".join(f"{name}\t{name.partition('/')[0]}\n" for name in [*names, "gone/not-there.mp4"])
    commit_bytes(s3.folder / "list.tsv", lines.encode())
    local = tmp_path / "local"
    local.mkdir()
    for name in names:
        (local / name).parent.mkdir(exist_ok=True)
        (local / name).symlink_to(demo_videos / name)
    (local / "list.tsv").write_text(lines)
    build(local / "list.tsv", tmp_path / "of-local", demo_spec)
    build(f"{s3.folder}/list.tsv", tmp_path / "of-bucket", demo_spec)
    assert b'"missing"' in (tmp_path / "of-bucket" / FAILURES).read_bytes()
    assert digests(tmp_path / "of-bucket") == digests(tmp_path / "of-local")


@pytest.mark.parametrize("path", ["../x.mp4", "/x.mp4", "s3://other/x.mp4", "http://host/x.mp4"])
def test_a_listing_in_a_bucket_names_nothing_elsewhere(path: str, s3: Setting) -> None:
    commit_bytes(s3.folder / "list.txt", f"{path} a\n".encode())
    with pytest.raises(MisuseError, match="is not below it"):
        find_sources(f"{s3.folder}/list.txt")
    commit_bytes(s3.folder / "list.txt", f"{s3.folder}/in/x.mp4 a\n".encode())
    assert [source.path for source in find_sources(f"{s3.folder}/list.txt").sources] == [b"in/x.mp4"]


def test_annotations_classes_and_exclusions_may_lie_in_a_bucket(
    demo_videos: Path, demo_shards: Path, s3: Setting
) -> None:
    send(demo_shards, s3.folder)
    videos = sorted(path for path in demo_videos.glob("*/*.mp4"))[:3]
    names = [str(path.relative_to(demo_videos)) for path in videos]
    commit_bytes(s3.folder / "ann.csv", b"path,label\n" + "".join(f"{n},zoom-in\n" for n in names).encode())
    commit_bytes(s3.folder / "out.txt", f"{names[0]}\n".encode())
    classes = read_classes(str(s3.folder))
    assert classes == read_classes(f"{s3.folder}/{INDEX}") == Shards.open(str(demo_shards)).classes
    found = find_sources(str(demo_videos), classes, annotations=f"{s3.folder}/ann.csv")
    assert {source.label for source in found.sources} == {classes.index("zoom-in")}
    left = exclude_sources(found, f"{s3.folder}/out.txt")
    assert (left.left_out, len(left.listing.sources)) == (1, 2)


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


def test_verify_fetches_each_tar_once_and_finds_what_is_wrong(
    demo_shards: Path, s3: Setting, network: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    send(demo_shards, s3.folder)
    report = verify_shards(s3.folder, workers=2, style=QUIET)
    assert report.problems == ()
    assert report.samples == len(Shards.open(str(demo_shards)))
    gets = Counter(e.path for e in network.seen().exchanges if e.method == "GET" and ".tar" in e.path)
    assert set(gets.values()) == {1}
    assert list(tmp_path.glob("vmae-verify-*")) == []
    tar = bytearray(read_bytes(s3.folder / tar_name(0)))
    tar[len(tar) // 2] ^= 1
    commit_bytes(s3.folder / tar_name(0), bytes(tar))
    remove(s3.folder / tar_name(1))
    commit_bytes(s3.folder / "notes.txt", b"x")
    commit_bytes(s3.folder / "old" / "x", b"x")
    found = verify_shards(s3.folder, workers=2, style=QUIET).problems
    assert Problem(tar_name(0), "its sum is not the one in its marker") in found
    assert Problem(tar_name(1), "missing") in found
    foreign = "a foreign file, not part of the data set"
    assert {Problem("notes.txt", foreign), Problem("old", foreign)} <= set(found)


def test_a_data_set_in_a_bucket_is_looked_at_where_it_lies(demo_shards: Path, s3: Setting, tmp_path: Path) -> None:
    send(demo_shards, s3.folder)
    for folder, name in ((str(demo_shards), "here"), (str(s3.folder), "there")):
        run_command("vmae_data", "inspect", folder, "--html", tmp_path / f"{name}.html")
        run_command("vmae_data", "audit", folder, "--out", tmp_path / f"{name}.csv", "--quiet")
        found = json.loads(run_command("vmae_data", "inspect", folder, "--json").stdout)
        assert found.pop("folder") == folder
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    assert (tmp_path / "there.json").read_text() == (tmp_path / "here.json").read_text()
    here, there = ((tmp_path / f"{name}.csv").read_text() for name in ("here", "there"))
    assert there.replace(str(s3.folder), "X") == here.replace(str(demo_shards), "X")
    assert (tmp_path / "there.html").stat().st_size > 10_000


def test_a_dry_run_over_a_bucket_counts_what_is_there(demo_videos: Path, s3: Setting) -> None:
    send(demo_videos, s3.folder)
    told = [
        json.loads(run_command("vmae_data", "build", source, "x", *SETTINGS, "--dry-run", "--json").stdout)
        for source in (str(demo_videos), str(s3.folder))
    ]
    for name in ("videos", "missing", "bytes", "shards", "classes", "sample", "sample_failures"):
        assert told[0][name] == told[1][name]


def test_who_may_only_read_is_told_so_and_nothing_is_encoded(
    demo_videos: Path, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_bytes(s3.folder / "kept", b"")
    reach(s3.bucket.server.reader.bucket(s3.bucket.name), monkeypatch)
    done = run_command("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--quiet", status=1)
    assert re.fullmatch(r"vmae-shard: s3://\S+ can't be written \(refused: status 403, .*\); check .*\n", done.stderr)
    assert s3.staged_keys == set()
    assert list(list_tree(s3.folder)) == ["kept"]


@pytest.mark.parametrize("command", ["build", "build from", "verify", "inspect", "merge"])
def test_a_bucket_that_is_not_there_is_one_line(
    command: str, demo_videos: Path, s3: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(s3.bucket.server.reader.bucket("x"), monkeypatch)  # who may do all makes a bucket by writing to it
    url = f"s3://nowhere-{s3.bucket.name}/x"
    source, dest = (url, str(tmp_path / "x")) if command == "build from" else (str(demo_videos), url)
    words = [command, url] if "build" not in command else ["build", source, dest, *SETTINGS, "--quiet"]
    done = run_command("vmae_data", *words, status=1 if command == "build" else 2)
    assert done.stderr.count("\n") == 1
    assert url in done.stderr


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
        r"vmae-shard: s3://\S+: can't be written \(.*\); check the store .*run the same command again", words
    )
    staged = s3.staged_keys
    assert staged
    network.change(Faults())
    again = run_command("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--json")
    plan = pa.ipc.open_file(read_bytes(s3.folder / PLAN_TABLE)).read_all().to_pydict()
    assert json.loads(again.stdout.splitlines()[-1])["encoded"] == len(set(plan["key"]) - staged)
    assert digests(s3.folder) == digests(demo_shards)


def test_a_public_data_set_is_opened_over_plain_http_and_a_listing_there_names_its_videos(
    demo_videos: Path,
    demo_shards: Path,
    demo_spec: BuildSpec,
    s3: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = place_of(f"s3://{PUBLIC}/{s3.bucket.name}")
    assert isinstance(public, RemotePlace)
    send(demo_shards, public / "set")
    videos = sorted(demo_videos.glob("*/scene-*.mp4"))[:3]
    names = [str(path.relative_to(demo_videos)) for path in videos]
    for name in names:
        remote.put(public / "videos" / name, demo_videos / name)
    commit_bytes(public / "videos" / "list.tsv", "".join(f"{name}\tx\n" for name in [*names, "not/there.mp4"]).encode())
    url = f"{s3.bucket.server.endpoint}/{PUBLIC}/{s3.bucket.name}"
    for name in s3.bucket.environment:
        monkeypatch.delenv(name)
    assert json.loads(run_command("vmae_data", "inspect", f"{url}/set", "--json").stdout)["samples"] > 0
    run_command("vmae_data", "inspect", f"{url}/set/{INDEX}", "--html", tmp_path / "page.html")
    run_command("vmae_data", "verify", f"{url}/set", "--quiet")
    assert read_classes(f"{url}/set") == Shards.open(str(demo_shards)).classes
    build(f"{url}/videos/list.tsv", tmp_path / "shards", demo_spec)
    shards = Shards.open(str(tmp_path / "shards"))
    assert sorted(sample.facts.source.path for sample in shards) == sorted(names)
    assert shards.index.failures == {"missing": 1}
    assert (
        "a web server can't be written to"
        in run_command("vmae_data", "build", demo_videos, f"{url}/new", status=2).stderr
    )


def _doctor(url: str, *words: str, status: int = 0) -> dict[str, dict[str, str]]:
    done = run_command("vmae_data", "doctor", url, "--json", *words, status=status)
    return {check["name"]: check for check in map(json.loads, done.stdout.splitlines())}


def test_doctor_tries_a_url_and_says_what_it_allows(s3: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_bytes(s3.folder / "kept", b"")
    told = _doctor(str(s3.folder), "--storage-option", "session_token=abc", "--storage-option", "session_token=")
    assert told["storage"]["found"].startswith("obstore ")
    assert "s3: AWS_ACCESS_KEY_ID" in told["credentials"]["found"]
    assert s3.bucket.server.secret not in json.dumps(told)
    assert (told["list"]["state"], told["write"]["state"]) == ("ok", "ok")
    assert list(list_tree(s3.folder)) == ["kept"]
    reach(s3.bucket.server.reader.bucket(s3.bucket.name), monkeypatch)
    told = _doctor(str(s3.folder))
    assert (told["list"]["state"], told["write"]["state"]) == ("ok", "warning")
    assert "refused: status 403" in told["write"]["found"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    told = _doctor(str(s3.folder), status=1)
    assert told["list"]["state"] == "missing"
    assert "check the credentials" in told["list"]["advice"]
    assert "write" not in told


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
    made = place_of(f"{s3.bucket.url}/made")
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
