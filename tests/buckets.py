"""What tests of builds into and from buckets share."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from tests.builds import QUIET, digests, staged_keys
from tests.conftest import WORKERS
from tests.s3_server import S3Bucket
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.storage import RemotePath, StoragePath, remote

__all__ = ["QUIET", "SETTINGS", "Setting", "build", "digests", "reach", "send"]

SETTINGS = ["--recipe", "demo", "--set", "samples_per_shard=8"]


class Setting(NamedTuple):
    """A bucket that this process and its children reach, and this test's own cache folder."""

    bucket: S3Bucket
    folder: RemotePath
    node: Path

    @property
    def staged_keys(self) -> set[str]:
        """Sources whose encodes wait on this machine."""
        return {key for staging in self.node.glob("staging/*/.staging") for key in staged_keys(staging)}


def reach(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)


def send(folder: Path, to: RemotePath) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(to / str(path.relative_to(folder)), path)


def build(videos: Path | str, dest: StoragePath, spec: BuildSpec, **options: object) -> int:
    """Build, and return how many sources were encoded."""
    return build_shards(str(videos), dest, spec, workers=WORKERS, style=QUIET, **options).encoded  # type: ignore[arg-type]
