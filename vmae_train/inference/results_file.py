"""Predictions → a CSV, Parquet or JSON lines file. The same command continues it by its journal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from vmae_data.read.dataset import LabelKind
from vmae_data.storage import commit_bytes
from vmae_train.evaluation.predictions_file import TOP, output_columns, parquet_bytes
from vmae_train.inference.journal import Journal, JournalRow, check_suffix
from vmae_train.inference.predict import Prediction, Predictor
from vmae_train.inference.video_runner import VideoResult
from vmae_train.inference.windows import WindowSpec

__all__ = ["SUFFIXES", "ResultsFile", "json_row"]

SUFFIXES = (".csv", ".parquet", ".jsonl")


class ResultsFile(Journal[Prediction]):
    """The predictions of earlier runs of the command, and those of this one. Raises as `Journal` does."""

    def __init__(self, path: Path, predictor: Predictor, spec: WindowSpec) -> None:
        check_suffix(path, SUFFIXES)
        self._names, self._kind = predictor.names, predictor.kind
        super().__init__(path, {**predictor.record(), **spec.record()})

    def add_result(self, result: VideoResult[Prediction], version: str) -> None:
        rows = [JournalRow.of(row.video, row.start, row.end, np.asarray(row.outputs)) for row in result.rows]
        self.add(result.video, version, result.length, rows)

    def results(self) -> Iterator[VideoResult[Prediction]]:
        """All recorded videos, in the order in which they were predicted first."""
        for entry in self.entries():
            predictions = (
                Prediction(row.video, row.start, row.end, self._names, tuple(row.values(float).tolist()), self._kind)
                for row in entry.rows
            )
            yield VideoResult(entry.video, tuple(predictions), length=entry.length)

    def write(self) -> int:
        """Write the file from all recorded videos, and return the number of its rows."""
        rows = [prediction for result in self.results() for prediction in result.rows]
        make = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[self.path.suffix]
        commit_bytes(self.path, make(rows, self._names, self._kind))
        return len(rows)


def json_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as one JSON object; the most probable class first."""
    key = "values" if prediction.kind is LabelKind.VALUES else "probabilities"
    return {
        "video": prediction.video,
        "start": prediction.start,
        "end": prediction.end,
        key: dict(prediction.top()),
    }


def _json_lines(rows: Iterable[Prediction], names: tuple[str, ...], kind: LabelKind) -> bytes:
    return b"".join(msgspec.json.encode(json_row(row)) + b"\n" for row in rows)


def _csv(rows: Iterable[Prediction], names: tuple[str, ...], kind: LabelKind) -> bytes:
    """A column for each class or value; of classes also the most probable one and its probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    is_values = kind is LabelKind.VALUES
    writer.writerow(["video", "start", "end", *([] if is_values else ["prediction", "probability"]), *names])
    for row in rows:
        writer.writerow([row.video, row.start, row.end, *([] if is_values else row.top(1)[0]), *row.outputs])
    return text.getvalue().encode("utf-8", "surrogateescape")


def _parquet(rows: Iterable[Prediction], names: tuple[str, ...], kind: LabelKind) -> bytes:
    """The columns of `vmae-train evaluate --predictions` that need no label, and the times."""
    rows = list(rows)
    columns: dict[str, Any] = {
        "video": pa.array([row.video for row in rows], pa.string()),
        "start": pa.array([row.start for row in rows], pa.float64()),
        "end": pa.array([row.end for row in rows], pa.float64()),
        **output_columns(kind, [row.outputs for row in rows], [[name for name, _ in row.top(TOP)] for row in rows]),
    }
    return parquet_bytes(pa.table(columns).replace_schema_metadata({"names": msgspec.json.encode(names)}))
