"""Other makers' stores by the same code, where a server of that kind is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.azure_server import AzureContainer
from tests.buckets import QUIET, build, digests
from tests.gcs_server import GcsBucket
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.storage import set_options, storage_path
from vmae_data.storage.options import VARIABLE
from vmae_data.verify.verify import verify_shards


def test_azure_takes_a_build_and_gives_its_sources(
    demo_videos: Path,
    demo_shards: Path,
    demo_spec: BuildSpec,
    azure_container: AzureContainer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in azure_container.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["allow_http=true", "give_up=5"])
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    videos, folder = storage_path(f"{azure_container.url}/videos"), storage_path(f"{azure_container.url}/sets/demo")
    store = azure_container.store()
    for path in demo_videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(demo_videos)}", path)
    build(str(videos), folder, demo_spec)
    assert digests(folder) == digests(demo_shards)
    assert build(str(videos), folder, demo_spec) == 0
    assert verify_shards(folder, workers=2, style=QUIET).problems == ()


def test_google_gives_sources_and_a_data_set(
    demo_videos: Path,
    demo_shards: Path,
    demo_spec: BuildSpec,
    gcs_bucket: GcsBucket,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in gcs_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["allow_http=true", "give_up=5"])
    for folder, name in ((demo_videos, "videos"), (demo_shards, "set")):
        for path in folder.rglob("*.*"):
            gcs_bucket.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    build(f"{gcs_bucket.url}/videos", tmp_path / "shards", demo_spec)
    assert digests(tmp_path / "shards") == digests(demo_shards)
    assert verify_shards(storage_path(f"{gcs_bucket.url}/set"), workers=2, style=QUIET).problems == ()
