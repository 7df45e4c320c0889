"""A bucket that commands reach, and a network before it that fails as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.buckets import Setting, reach
from tests.s3_server import S3Bucket
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.storage import (
    RemotePath,
    set_options,
    storage_path,
)
from vmae_data.storage.options import VARIABLE


@pytest.fixture
def s3(s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    reach(s3_bucket, monkeypatch)
    monkeypatch.setenv(VARIABLE, "{}")
    set_options(["give_up=5"])
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    folder = storage_path(f"{s3_bucket.url}/sets/demo")
    assert isinstance(folder, RemotePath)
    return Setting(s3_bucket, folder, tmp_path / "node")


@pytest.fixture
def network(s3: Setting, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What stands between the bucket and us, and counts."""
    with proxy_thread(s3.bucket.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy
