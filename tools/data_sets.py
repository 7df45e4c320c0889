"""Data sets that benchmarks and soaks measure on: a built one made as long as is wanted, and a small one in a real bucket."""

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

__all__ = ["DemoBucket", "demo_in_bucket", "write_enlarged"]


def write_enlarged(
    shards: Shards, dest: StoragePath, columns: Mapping[str, Sequence[Any]], listing: Sequence[ShardListing]
) -> int:
    """A table and an index in `dest`: the given columns, and the others of `shards` again and again. Bytes of the table."""
    samples = sum(one.nsamples for one in listing)
    table = pa.concat_tables([shards._table] * -(-samples // len(shards))).slice(0, samples)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=samples)
    data = sink.getvalue().to_pybytes()
    digest = hashlib.sha256(data).hexdigest()
    index = msgspec.structs.replace(shards.index, samples=samples, samples_sha256=digest, shardlist=tuple(listing))
    commit_bytes(dest / SAMPLES, data)
    commit_bytes(dest / INDEX, encode_record(index))
    return len(data)


class DemoBucket(NamedTuple):
    """64 demo videos as shards, on the disk and in a bucket of a server of this machine."""

    shards: Path
    bucket: S3Bucket
    url: str


@contextmanager
def demo_in_bucket(*, samples_per_shard: int) -> Iterator[DemoBucket]:
    """Made for the time of its use; this process and what it starts reach the server."""
    with tempfile.TemporaryDirectory() as name, s3_server(Path(name) / "s3") as server:
        folder = Path(name)
        write_demo(folder / "videos", num_videos=64, seed=1, broken=False, workers=2)
        spec = load_recipe("vmae_data", "demo", BuildSpec, [f"samples_per_shard={samples_per_shard}"])
        build_shards(str(folder / "videos"), folder / "shards", spec, workers=2, style=ProgressStyle.QUIET)
        bucket = server.bucket("demo")
        os.environ.update(bucket.environment, VMAE_CACHE=str(folder / "node"))
        yield DemoBucket(folder / "shards", bucket, bucket.upload(folder / "shards"))
