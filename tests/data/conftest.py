"""A small build, a bucket that commands reach, and a network before it that can fail."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import msgspec
import pytest

from tests.buckets import Setting, reach
from tests.builds import HELD_FFMPEG, SmallBuild
from tests.s3_server import S3Bucket
from tools.soak.faults.proxy import Proxy, proxy_thread
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.storage import RemotePath, set_options, storage_path
from vmae_data.storage.store_options import VARIABLE


@pytest.fixture(scope="session")
def _small_build(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SmallBuild]:
    folder = tmp_path_factory.mktemp("small")
    for name in ("pan-left", "pan-right", "pan-up"):
        shutil.copytree(demo_videos / name, folder / "videos" / name)
    spec = msgspec.structs.replace(demo_spec, samples_per_shard=4)
    small = SmallBuild(folder / "videos", folder / "shards", spec, folder / "ffmpeg", folder / "held")
    small.ffmpeg.write_text(HELD_FFMPEG.format(held=small.held, ffmpeg=imageio_ffmpeg.get_ffmpeg_exe()))
    small.ffmpeg.chmod(0o755)
    assert small.build(small.shards).sources == 12
    yield small


@pytest.fixture
def small_build(_small_build: SmallBuild) -> Iterator[SmallBuild]:
    """Its shards are read only."""
    yield _small_build
    _small_build.release()


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
    """A proxy between the commands and the bucket, which counts requests."""
    with proxy_thread(s3.bucket.server.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def short_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials from the environment, and retries and time limits of less than a second."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "AZURE_", "GOOGLE_")) or name.upper().endswith(("_PROXY", "CA_BUNDLE")):
            monkeypatch.delenv(name)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("vmae_data.storage.retry.FIRST_WAIT", 0.02)
    monkeypatch.setattr("vmae_data.storage.retry._reported", {})
    set_options(["give_up=3", "read_timeout=0.5", "connect_timeout=0.5"])
