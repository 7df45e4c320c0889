"""Predictions → a CSV, Parquet or JSON lines file, and the journal beside it from which the same command resumes.

The journal has a line for each finished video. It is written as videos finish; the file is made of it at the end.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from vmae_data.errors import DataError, MisuseError
from vmae_data.format import NOT_JSON
from vmae_data.read.dataset import LabelKind
from vmae_data.recipes import difference
from vmae_data.storage import commit_bytes, write_error
from vmae_train.evaluation.predictions_file import TOP, output_columns, parquet_bytes
from vmae_train.inference.predict import Prediction, Predictor, VideoResult
from vmae_train.inference.windows import WindowSpec
from vmae_train.models.heads import HeadModel

__all__ = ["SUFFIXES", "ResultsFile", "json_row"]

SUFFIXES = (".csv", ".parquet", ".jsonl")


class _Maker(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a journal: all that the predictions depend on, except the videos."""

    weights_sha256: str
    names: tuple[str, ...]
    kind: str
    clip: dict[str, Any]
    views: str
    merge: str
    antialias: bool
    short_side: int
    window: float | None
    stride: float | None


class _Row(msgspec.Struct, frozen=True, array_like=True):
    start: float | None
    end: float | None
    outputs: tuple[float, ...]


class _Entry(msgspec.Struct, frozen=True):
    """A finished video. `version` differs if the file was replaced since."""

    video: str
    version: str
    rows: tuple[_Row, ...]


class ResultsFile:
    """The predictions of earlier runs of the command, and those of this one.

    Raises MisuseError for another suffix, for predictions of another checkpoint or with other settings, and for a file
    without its journal. Raises DataError for a damaged journal.
    """

    def __init__(self, path: Path, predictor: Predictor, spec: WindowSpec) -> None:
        check_suffix(path)
        self.path, self._journal = path, path.with_name(f"{path.name}.journal")
        self._names, self._kind = predictor.names, predictor.kind
        self._entries: dict[str, _Entry] = {}
        maker = _maker(predictor, spec)
        if self._journal.exists():
            self._read(maker)
        elif path.exists():
            raise MisuseError(
                f"{path}: exists, but {self._journal.name} does not, so it can't be continued. Name another file"
            )
        else:
            self._append(maker)

    def holds(self, video: str, version: str) -> bool:
        """Whether the video was predicted, and is the same file still."""
        entry = self._entries.get(video)
        return entry is not None and entry.version == version

    def add(self, result: VideoResult, version: str) -> None:
        """Record a finished video. After this no signal and no power failure loses it."""
        rows = tuple(_Row(one.start, one.end, one.outputs) for one in result.predictions)
        entry = _Entry(result.video, version, rows)
        self._append(entry)
        self._entries[result.video] = entry

    def results(self) -> Iterator[VideoResult]:
        """All recorded videos, in the order in which they were predicted first."""
        for entry in self._entries.values():
            predictions = (
                Prediction(entry.video, row.start, row.end, self._names, row.outputs, self._kind) for row in entry.rows
            )
            yield VideoResult(entry.video, tuple(predictions))

    def write(self) -> int:
        """Write the file from all recorded videos, and return the number of its rows."""
        rows = [prediction for result in self.results() for prediction in result.predictions]
        make = {".csv": _csv, ".parquet": _parquet, ".jsonl": _json_lines}[self.path.suffix]
        commit_bytes(self.path, make(rows, self._names, self._kind))
        return len(rows)

    def _read(self, maker: _Maker) -> None:
        data = self._journal.read_bytes()
        complete = data[: data.rfind(b"\n") + 1]  # a killed command may leave half a line
        lines = complete.splitlines()
        if not lines:
            self._journal.unlink()
            self._append(maker)
            return
        try:
            stored = msgspec.json.decode(lines[0], type=_Maker)
            entries = [msgspec.json.decode(line, type=_Entry) for line in lines[1:]]
        except NOT_JSON as error:
            raise DataError(f"{self._journal}: is damaged ({error}). Name another --out") from error
        given = msgspec.json.decode(msgspec.json.encode(maker), type=_Maker)
        if stored != given:
            changed = difference(msgspec.to_builtins(stored), msgspec.to_builtins(given))
            raise MisuseError(
                f"{self.path}: holds predictions of another checkpoint or with other settings "
                f"({'; '.join(line[:100] for line in changed[:3])}). Name another --out"
            )
        if len(complete) < len(data):
            os.truncate(self._journal, len(complete))
        self._entries = {entry.video: entry for entry in entries}

    def _append(self, record: msgspec.Struct) -> None:
        try:
            with self._journal.open("ab") as file:
                file.write(msgspec.json.encode(record) + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self._journal, error) from error


def check_suffix(path: Path) -> None:
    """Raises MisuseError for a name of another format."""
    if path.suffix not in SUFFIXES:
        raise MisuseError(f"--out {path}: expected a name that ends in {', '.join(SUFFIXES)}")


def _maker(predictor: Predictor, spec: WindowSpec) -> _Maker:
    protocol = predictor.protocol
    return _Maker(
        weights_sha256=_weights_sha256(predictor.model),
        names=predictor.names,
        kind=predictor.kind.name.lower(),
        clip=msgspec.to_builtins(predictor.clip),
        views=str(protocol.views),
        merge=protocol.merge,
        antialias=protocol.antialias,
        short_side=predictor.short_side,
        window=spec.seconds,
        stride=spec.stride,
    )


def _weights_sha256(model: HeadModel) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


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
