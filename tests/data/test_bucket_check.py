"""`verify`, `inspect`, `audit` and `doctor` of data sets in a bucket and on a web server."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.buckets import QUIET, SETTINGS, Setting, build, reach, send
from tests.command import run_command
from tests.s3_server import PUBLIC
from tools.soak.faults.proxy import Proxy
from vmae_data.audit.audit import AuditSpec, audit_shards, write_table
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import INDEX
from vmae_data.inspect.inspect import inspect_shards
from vmae_data.names import tar_name
from vmae_data.read.dataset import Shards
from vmae_data.sources.classes import read_classes
from vmae_data.storage import (
    RemotePath,
    commit_bytes,
    list_tree,
    read_bytes,
    remote,
    remove,
    storage_path,
)
from vmae_data.verify.verify import Problem, verify_shards

pytestmark = pytest.mark.processes


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
    assert Problem(tar_name(0), "checksum differs from its marker") in found
    assert Problem(tar_name(1), "missing") in found
    unexpected = "an unexpected file, not part of the data set"
    assert {Problem("notes.txt", unexpected), Problem("old", unexpected)} <= set(found)


def test_inspect_and_audit_of_a_bucket_give_the_same_as_of_a_local_folder(
    demo_shards: Path, s3: Setting, tmp_path: Path
) -> None:
    send(demo_shards, s3.folder)
    url = str(s3.folder)
    run_command("vmae_data", "inspect", url, "--html", tmp_path / "page.html")
    run_command("vmae_data", "audit", url, "--out", tmp_path / "remote.csv", "--quiet")
    facts = json.loads(run_command("vmae_data", "inspect", url, "--json").stdout)
    assert facts == inspect_shards(demo_shards).as_dict() | {"folder": url}
    write_table(audit_shards([str(demo_shards)], AuditSpec(), workers=1, style=QUIET).rows, tmp_path / "local.csv")
    local, remote_rows = ((tmp_path / f"{name}.csv").read_text() for name in ("local", "remote"))
    assert remote_rows.replace(url, "X") == local.replace(str(demo_shards), "X")
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_build_without_write_permission_fails_before_it_encodes(
    demo_videos: Path, s3: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_bytes(s3.folder / "kept", b"")
    reach(s3.bucket.server.reader.bucket(s3.bucket.name), monkeypatch)
    done = run_command("vmae_data", "build", demo_videos, str(s3.folder), *SETTINGS, "--quiet", status=1)
    assert re.fullmatch(r"vmae-shard: s3://\S+ can't be written \(refused: status 403, .*\)\. Check .*\n", done.stderr)
    assert s3.staged_keys == set()
    assert list(list_tree(s3.folder)) == ["kept"]


@pytest.mark.parametrize("command", ["build", "build from", "verify", "inspect", "merge"])
def test_a_missing_bucket_is_an_error_of_one_line(
    command: str, demo_videos: Path, s3: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(s3.bucket.server.reader.bucket("x"), monkeypatch)  # full rights would create the bucket by writing to it
    url = f"s3://nowhere-{s3.bucket.name}/x"
    source, dest = (url, str(tmp_path / "x")) if command == "build from" else (str(demo_videos), url)
    words = [command, url, "--quiet"] if "build" not in command else ["build", source, dest, *SETTINGS, "--quiet"]
    done = run_command("vmae_data", *words, status=2)
    assert done.stderr.count("\n") == 1
    assert url in done.stderr


def test_a_public_data_set_and_a_listing_are_read_over_plain_http(
    demo_videos: Path,
    demo_shards: Path,
    demo_spec: BuildSpec,
    s3: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    public = storage_path(f"s3://{PUBLIC}/{s3.bucket.name}")
    assert isinstance(public, RemotePath)
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
    assert "holds no shards" in run_command("vmae_data", "inspect", f"{url}/nothing", status=2).stderr
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


def test_doctor_tries_what_a_url_allows(s3: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_bytes(s3.folder / "kept", b"")
    checks = _doctor(str(s3.folder), "--storage-option", "session_token=abc", "--storage-option", "session_token=")
    assert checks["storage"]["found"].startswith("obstore ")
    assert "s3: AWS_ACCESS_KEY_ID" in checks["credentials"]["found"]
    assert s3.bucket.server.secret not in json.dumps(checks)
    assert (checks["list"]["state"], checks["write"]["state"]) == ("ok", "ok")
    assert list(list_tree(s3.folder)) == ["kept"]
    reach(s3.bucket.server.reader.bucket(s3.bucket.name), monkeypatch)
    checks = _doctor(str(s3.folder))
    assert (checks["list"]["state"], checks["write"]["state"]) == ("ok", "warning")
    assert "refused: status 403" in checks["write"]["found"]
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    checks = _doctor(str(s3.folder), status=1)
    assert checks["list"]["state"] == "missing"
    assert "Check the credentials" in checks["list"]["advice"]
    assert "write" not in checks
