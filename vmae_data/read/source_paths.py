"""Which video files the samples of a data set were made of, by the plan that lies beside its index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from vmae_data.errors import VmaeError
from vmae_data.format import PLAN_TABLE
from vmae_data.read.table import Table
from vmae_data.storage import read_bytes

__all__ = ["source_paths"]


def source_paths(table: Table, samples: Sequence[int]) -> list[str | None]:
    """The path of each sample's source video, below the folder that was built from.

    None for each where the plan can't be had, or is not that of the index: shards are read without it.
    """
    try:
        data = read_bytes(table.folder / PLAN_TABLE)
        if hashlib.sha256(data).hexdigest() != table.index.plan_table_sha256:
            return [None] * len(samples)
        paths = pa.ipc.open_file(pa.py_buffer(data)).read_all().column("path")
        return [str(paths[int(table.source_N[number])].as_py()) for number in samples]
    except (VmaeError, OSError, MemoryError, LookupError, pa.ArrowException):
        return [None] * len(samples)
