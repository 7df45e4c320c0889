"""Labels in tables: every kind of label in every kind of file, columns, values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.listings import BOM, find, labels_of, touch, write
from vmae_data.errors import MisuseError
from vmae_data.sources.find import find_sources


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


@pytest.mark.parametrize("odd", ["nan", "NaN", "inf", "-Infinity"])
@pytest.mark.parametrize("others", [("0.5", "1.25"), ("3", "0")])
def test_nan_and_infinity_are_refused_among_numbers(
    tmp_path: Path, videos: Path, odd: str, others: tuple[str, str]
) -> None:
    touch(videos, "a.mp4", "b.mp4", "c.mp4")
    labels = [others[0], odd, others[1]]
    rows = "".join(f"{name}.mp4,{label}\n" for name, label in zip("abc", labels, strict=True))
    table = pa.table({"path": ["a.mp4", "b.mp4", "c.mp4"], "label": [float(label) for label in labels]})
    pq.write_table(table, tmp_path / "t.parquet")
    for url in (write(tmp_path / "t.csv", f"path,label\n{rows}"), str(tmp_path / "t.parquet")):
        with pytest.raises(MisuseError, match=r"b\.mp4 has the label .*but the other labels are numbers"):
            find(videos, url)


def test_nan_among_names_is_a_name(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4", "b.mp4")
    assert find(videos, write(tmp_path / "t.csv", "path,label\na.mp4,nan\nb.mp4,naan\n")).classes == ("naan", "nan")


def _tables(folder: Path, rows: Sequence[tuple[str, object]], path: str, label: str) -> list[str]:
    """The same rows as CSV, TSV, JSON lines, a JSON array and Parquet."""
    cells = [(p, json.dumps(v) if isinstance(v, list) else "" if v is None else str(v)) for p, v in rows]
    quoted = "\n".join('{},"{}"'.format(p, v.replace('"', '""')) for p, v in cells)
    objects = [{path: p, label: v} for p, v in rows]
    table = pa.table({path: [p for p, _ in rows], label: [v for _, v in rows], "video_bytes": [b"\0" * 9] * len(rows)})
    pq.write_table(table, folder / "t.parquet")
    return [
        write(folder / "t.csv", f"{path},{label}\r\n{quoted}\r\n"),
        write(folder / "t.tsv", f"{path}\t{label}\n" + "\n".join(f"{p}\t{v}" for p, v in cells)),
        write(folder / "t.jsonl", "\n".join(json.dumps(one) for one in objects)),
        write(folder / "t.json", BOM + json.dumps(objects).encode()),
        str(folder / "t.parquet"),
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b b", "a", None], ("a", "b b"), [1, 0, None]),
        ([2, 0, None], ("0", "1", "2"), [2, 0, None]),
        ([["b b", "a"], ["a"], None], ("a", "b b"), [(0, 1), (0,), None]),
        ([[2, 0, 2], [], None], ("0", "1", "2"), [(0, 2), (), None]),
        ([0.5, -3.0, None], (), [(0.5,), (-3.0,), None]),
        ([[0.5, 1.0], [2.0, -1.5], None], (), [(0.5, 1.0), (2.0, -1.5), None]),
    ],
    ids=["names", "numbers", "several names", "several numbers", "a value", "values"],
)
def test_every_kind_of_label_reads_the_same_from_every_table(
    tmp_path: Path, videos: Path, labels: list[object], classes: tuple[str, ...], numbers: list[object]
) -> None:
    names = ["x y.mp4", "b.mp4", "c.mp4"]
    touch(videos, *names)
    for url in _tables(tmp_path, list(zip(names, labels, strict=True)), "Clip", "Shows"):
        listing = find(videos, url, path="clip", label="shows")
        assert listing.classes == classes, url
        assert [s.label for s in listing.sources] == numbers, url


def test_class_numbers_that_a_column_with_gaps_made_floats_stay_class_numbers(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4", "b.mp4", "c.mp4")
    touch(videos, "run/a.mp4")
    listing = find(videos, write(tmp_path / "t.csv", "path,label\na.mp4,3.0\nb.mp4,0.0\nc.mp4,\n"))
    assert [s.label for s in listing.sources] == [3, 0, None]


def test_several_columns_make_one_label(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4", "b.mp4", "c.mp4")
    path = write(tmp_path / "t.csv", "path,valence,arousal\na.mp4,0.5,1\nb.mp4,-1,0\nc.mp4,,\n")
    assert [s.label for s in find(videos, path, label=("valence", "arousal")).sources] == [(0.5, 1.0), (-1, 0), None]
    with pytest.raises(MisuseError, match="entry 3 has b'' for a label"):
        find(
            videos,
            write(tmp_path / "t.csv", "path,valence,arousal\na.mp4,0.5,1\nb.mp4,-1,\n"),
            label=("valence", "arousal"),
        )


def test_a_named_column_must_exist(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4")
    path = write(tmp_path / "t.csv", "clip,what\na.mp4,b\n")
    assert labels_of(find(videos, path, path="clip")) == {"a.mp4": None}
    with pytest.raises(MisuseError, match=r"columns\.label = wat: no such column\. Its columns: clip, what"):
        find(videos, path, path="clip", label="wat")
    with pytest.raises(MisuseError, match="has no column 'clips'. Its first line is 'clip,what'"):
        find(videos, path, path="clips")


def test_contradictory_labels_and_unequal_numbers_of_values_are_errors(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4", "b.mp4")
    with pytest.raises(MisuseError, match=r'two labels, .*as a list, \["a", "b"\]'):
        find(videos, write(tmp_path / "t.csv", "path,label\na.mp4,cat\na.mp4,dog\n"))
    with pytest.raises(MisuseError, match=r"a\.mp4 has 2 values, b\.mp4 has 1"):
        find(videos, write(tmp_path / "t.jsonl", '{"path":"a.mp4","label":[1.5,2]}\n{"path":"b.mp4","label":0.1}\n'))
    with pytest.raises(MisuseError, match="values, not classes. Remove --classes"):
        find_sources(str(videos), ("x",), annotations=write(tmp_path / "t.csv", "path,label\na.mp4,0.5\n"))


def test_given_classes_number_several_labels(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4")
    path = write(tmp_path / "t.jsonl", '{"path": "a.mp4", "label": ["run", "jump"]}\n')
    assert find_sources(str(videos), ("jump", "sit", "run"), annotations=path).sources[0].label == (0, 2)
    with pytest.raises(MisuseError, match="class 'jump' is not among the 1 given"):
        find_sources(str(videos), ("run",), annotations=path)
    with pytest.raises(MisuseError, match=r"given classes \(jumping, run\)\. Did you mean jumping\? Correct"):
        find_sources(str(videos), ("jumping", "run"), annotations=path)


def test_class_folders_with_decimal_names_keep_their_names(videos: Path) -> None:
    touch(videos, "0.5/a.mp4", "1.5/b.mp4")
    assert find_sources(str(videos)).classes == ("0.5", "1.5")


def test_a_python_list_in_a_cell_is_several_labels(videos: Path, tmp_path: Path) -> None:
    touch(videos, "run/a.mp4")
    listing = find(videos, write(tmp_path / "t.csv", "path,label\nrun/a.mp4,\"['run', 'jump']\"\n"))
    assert set(listing.classes) == {"run", "jump"}


def test_a_video_that_a_json_object_names_twice_is_refused(videos: Path, tmp_path: Path) -> None:
    touch(videos, "run/a.mp4")
    with pytest.raises(MisuseError, match="names 'run/a.mp4' twice"):
        find(videos, write(tmp_path / "t.json", '{"run/a.mp4": "run", "run/a.mp4": "jump"}'))
