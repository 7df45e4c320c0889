"""Labels (one class, several classes, or values) ↔ table columns and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from vmae_data.format import Label

__all__ = ["label_columns", "label_text", "table_labels"]


def label_columns(labels: Sequence[Label | None]) -> dict[str, pa.Array]:
    """The columns of a table: `label`, a class; and `labels`, the classes or values, if any label is a tuple."""
    columns = {"label": pa.array([label if isinstance(label, int) else None for label in labels], pa.int32())}
    several = [label if isinstance(label, tuple) else None for label in labels]
    if any(label is not None for label in several):
        values = any(isinstance(value, float) for label in several for value in label or ())
        columns["labels"] = pa.array(several, pa.list_(pa.float64() if values else pa.int32()))
    return columns


def table_labels(columns: Mapping[str, list[Any]]) -> list[Label | None]:
    """The labels from these columns as plain lists. Raises KeyError if column `label` is missing."""
    single = columns["label"]
    several = columns.get("labels") or [None] * len(single)
    return [label if many is None else tuple(many) for label, many in zip(single, several, strict=True)]


def label_text(label: Label | None, classes: Sequence[str]) -> str:
    """A label in the listing's digest: empty, the name of its class, or JSON of the names or values."""
    if label is None:
        return ""
    if isinstance(label, int):
        return classes[label]
    return msgspec.json.encode([classes[one] if isinstance(one, int) else one for one in label]).decode()
