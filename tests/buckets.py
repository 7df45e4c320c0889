"""What tests of builds into and from buckets share."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.conftest import WORKERS
from tests.s3_server import S3Bucket
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.storage import (
    RemotePath,
    StoragePath,
    list_tree,
    read_bytes,
    remote,
)

QUIET = ProgressStyle.QUIET
SETTINGS = ["--recipe", "demo", "--set", "samples_per_shard=8"]


class Setting(NamedTuple):
    """A bucket that this process and its children reach, and the node's own folder of this test."""

    bucket: S3Bucket
    folder: RemotePath
    node: Path

    @property
    def staged_keys(self) -> set[str]:
        """Sources whose encodes wait on this machine."""
        return {path.name.partition(".")[0] for path in self.node.glob("staging/*/.staging/[!.]*.staged.json")}


def reach(bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)


def digests(place: StoragePath) -> dict[str, str]:
    """Every file below a folder, here or in a bucket, and its sum."""
    if isinstance(place, RemotePath):
        return {path: hashlib.sha256(read_bytes(place / path)).hexdigest() for path in list_tree(place)}
    files = [path for path in place.rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def send(folder: Path, to: RemotePath) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            remote.put(to / str(path.relative_to(folder)), path)


def build(videos: Path | str, dest: StoragePath, spec: BuildSpec, **how: object) -> int:
    """Build and tell how many sources were encoded."""
    return build_shards(str(videos), dest, spec, workers=WORKERS, style=QUIET, **how).encoded  # type: ignore[arg-type]
