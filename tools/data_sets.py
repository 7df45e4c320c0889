"""Data sets for benchmarks and soak runs: a small built one, the same in a bucket, and a built one enlarged to any size."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from tests.s3_server import S3Bucket, s3_server
from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import INDEX, SAMPLES, ShardListing, encode_record
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_data.storage import StoragePath, commit_bytes

__all__ = ["DemoBucket", "demo_in_bucket", "demo_shards", "repeated_rows", "write_enlarged"]


def demo_shards(
    folder: Path, *, videos: int, seed: int, settings: Sequence[str] = (), dest: Path | None = None
) -> Path:
    """Render motion videos into `folder`/videos and build them with recipe `demo`. Returns the folder of shards."""
    dest = folder / "shards" if dest is None else dest
    write_demo(folder / "videos", num_videos=videos, seed=seed, workers=2)
    spec = load_recipe("vmae_data", "demo", BuildSpec, settings)
    build_shards(str(folder / "videos"), dest, spec, workers=2, style=ProgressStyle.QUIET)
    return dest


class DemoBucket(NamedTuple):
    """A small data set, on the disk and in a bucket of a local S3 server."""

    shards: Path
    bucket: S3Bucket
    url: str


@contextmanager
def demo_in_bucket(*, samples_per_shard: int) -> Iterator[DemoBucket]:
    """64 demo videos in a bucket. This process and its children get the server's credentials by environment."""
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "s3") as server:
        folder = Path(name)
        settings = [f"samples_per_shard={samples_per_shard}"]
        shards = demo_shards(folder, videos=64, seed=1, settings=settings)
        bucket = server.bucket("demo")
        os.environ.update(bucket.environment, VMAE_CACHE=str(folder / "node"))
        yield DemoBucket(shards, bucket, bucket.upload(shards))


def repeated_rows(samples: int, per_shard: int) -> dict[str, Sequence[Any]]:
    """The columns of `write_enlarged` for rows that repeat others: each has its own key and source."""
    return {
        "key": [f"video-{hashlib.sha256(str(number).encode()).hexdigest()[:16]}" for number in range(samples)],
        "source": range(samples),
        "shard": [number // per_shard for number in range(samples)],
    }


def write_enlarged(
    shards: Shards, dest: StoragePath, columns: Mapping[str, Sequence[Any]], listing: Sequence[ShardListing]
) -> int:
    """Write an index of `listing` and its table: `columns`, and the rows of `shards` repeated for the others.

    Returns the bytes of the table.
    """
    samples = sum(one.nsamples for one in listing)
    table = pa.concat_tables([shards._table] * -(-samples // len(shards))).slice(0, samples)
    for name, values in columns.items():
        position = table.column_names.index(name)
        table = table.set_column(position, name, pa.array(values, table.schema.field(name).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=samples)
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    index = msgspec.structs.replace(shards.index, samples=samples, samples_sha256=digest, shardlist=tuple(listing))
    commit_bytes(dest / SAMPLES, data)
    commit_bytes(dest / INDEX, encode_record(index))
    return len(data)
