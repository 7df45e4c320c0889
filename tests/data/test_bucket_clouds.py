"""Azure and Google Cloud Storage, if a server of that kind is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.azure_server import AzureContainer
from tests.builds import QUIET, SmallBuild, digests
from tests.gcs_server import GcsBucket
from vmae_data.storage import set_options, storage_path
from vmae_data.storage.store_options import VARIABLE
from vmae_data.verify.verify import verify_shards


def _reach(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["allow_http=true", "give_up=5"])


def test_azure_takes_a_build_and_gives_its_sources(
    small_build: SmallBuild, azure_container: AzureContainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _reach(azure_container.environment, monkeypatch)
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    videos, folder = f"{azure_container.url}/videos", storage_path(f"{azure_container.url}/sets/demo")
    store = azure_container.store()
    for path in small_build.videos.rglob("*.*"):
        store.put(f"videos/{path.relative_to(small_build.videos)}", path)
    small_build.build(folder, videos)
    assert digests(folder) == digests(small_build.shards)
    assert small_build.build(folder, videos).encoded == 0
    assert verify_shards(folder, workers=2, style=QUIET).problems == ()


def test_google_gives_sources_and_a_data_set(
    small_build: SmallBuild, gcs_bucket: GcsBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _reach(gcs_bucket.environment, monkeypatch)
    for folder, name in ((small_build.videos, "videos"), (small_build.shards, "set")):
        for path in folder.rglob("*.*"):
            gcs_bucket.put(f"{name}/{path.relative_to(folder)}", path.read_bytes())
    small_build.build(tmp_path / "shards", f"{gcs_bucket.url}/videos")
    assert digests(tmp_path / "shards") == digests(small_build.shards)
    assert verify_shards(storage_path(f"{gcs_bucket.url}/set"), workers=2, style=QUIET).problems == ()
