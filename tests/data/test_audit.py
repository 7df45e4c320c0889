from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest

from tests.audited_videos import (
    FRAMES,
    HEIGHT,
    RATE,
    U8,
    WIDTH,
    blurred_frames,
    frames_with_cuts,
    half_frozen_frames,
    moving_frames,
    write_frames,
)
from tests.command import run_command
from vmae_data.audit.audit import AuditReport, AuditSpec, audit_shards, write_table
from vmae_data.audit.audit_page import write_audit_page
from vmae_data.audit.duplicates import DuplicateSpec
from vmae_data.audit.flags import Row, flag_samples
from vmae_data.audit.measure_samples import SampleMeasurer
from vmae_data.build import BuildReport, build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.format import ShardMarker, decode_record
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import find_sources

pytestmark = pytest.mark.processes

SPEC = BuildSpec(short_side=192, stride=2, samples_per_shard=6, crf=23)
QUIET = ProgressStyle.QUIET


class Planted(NamedTuple):
    videos: Path
    train: Path
    val: Path
    report: AuditReport

    def row(self, name: str, data_set: str = "train") -> Row:
        folder = str(self.train if data_set == "train" else self.val)
        return next(row for row in self.report.rows if row.path == name and row.data_set == folder)


CASES: dict[str, Callable[[], Iterator[U8]]] = {
    "static": lambda: iter([next(moving_frames(20))] * FRAMES),
    "black": lambda: iter([np.zeros((HEIGHT, WIDTH), dtype=np.uint8)] * FRAMES),
    "half-frozen": lambda: half_frozen_frames(21),
    "cuts": lambda: frames_with_cuts(22),
    "blurred": lambda: blurred_frames(23),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Distinct moving videos, odd ones, and copies within and between two data sets; the second has another stride."""
    folder = tmp_path_factory.mktemp("audit")
    train, val = folder / "videos-train", folder / "videos-val"
    for seed in range(6):
        write_frames(train / f"moving-{seed}.mp4", moving_frames(seed))
    for name, frames in CASES.items():
        write_frames(train / f"{name}.mp4", frames(), scale=2.0 if name == "blurred" else 1.0)
    write_frames(train / "zz-crf35.mp4", moving_frames(0), crf=35)
    write_frames(train / "zz-half.mp4", moving_frames(1), scale=0.5)
    (train / "zz-bytes.mp4").write_bytes((train / "moving-4.mp4").read_bytes())
    write_frames(val / "own.mp4", moving_frames(30))
    write_frames(val / "start.mp4", moving_frames(2, FRAMES // 10))
    write_frames(val / "end.mp4", moving_frames(3, 0, FRAMES - FRAMES // 10))
    write_frames(val / "mirrored.mp4", moving_frames(5), mirrored=True)
    build_shards(str(train), folder / "train", SPEC, workers=2, style=QUIET)
    build_shards(str(val), folder / "val", BuildSpec(short_side=96, stride=4), workers=2, style=QUIET)
    report = _audit(folder / "train", folder / "val", mirrored=True)
    return Planted(train, folder / "train", folder / "val", report)


def _audit(*folders: Path, workers: int = 2, mirrored: bool = False) -> AuditReport:
    spec = AuditSpec(duplicates=DuplicateSpec(mirrored=mirrored))
    return audit_shards([str(folder) for folder in folders], spec, workers=workers, style=QUIET)


def _key(planted: Planted, name: str) -> str:
    return planted.row(name).key


@pytest.mark.parametrize(
    ("copy", "original"),
    [("zz-crf35.mp4", "moving-0.mp4"), ("zz-half.mp4", "moving-1.mp4"), ("zz-bytes.mp4", "moving-4.mp4")],
)
def test_a_copy_in_the_same_data_set_is_a_duplicate_and_excluded(planted: Planted, copy: str, original: str) -> None:
    row = planted.row(copy)
    assert row.duplicate_of == _key(planted, original)
    assert row.leak_of is None
    assert row.exclude and row.has("duplicate")
    assert not planted.row(original).exclude


@pytest.mark.parametrize(
    ("copy", "original"),
    [("start.mp4", "moving-2.mp4"), ("end.mp4", "moving-3.mp4"), ("mirrored.mp4", "moving-5.mp4")],
)
def test_a_trimmed_or_mirrored_copy_with_another_stride_is_a_leak(planted: Planted, copy: str, original: str) -> None:
    row = planted.row(copy, "val")
    assert row.leak_of == f"{planted.train}:{_key(planted, original)}"
    assert row.duplicate_of is None
    assert row.exclude and row.has("leak")
    assert row.mirrored is (copy == "mirrored.mp4")


def test_no_other_sample_is_called_a_copy(planted: Planted) -> None:
    copies = {row.path for row in planted.report.rows if row.duplicate_of or row.leak_of}
    assert copies == {"zz-crf35.mp4", "zz-half.mp4", "zz-bytes.mp4", "start.mp4", "end.mp4", "mirrored.mp4"}


def test_mirrored_copies_are_found_only_on_request(planted: Planted) -> None:
    rows = flag_samples(planted.report.samples, planted.report.data_sets, AuditSpec()).rows
    assert not next(row for row in rows if row.path == "mirrored.mp4").flags


def test_the_data_set_that_is_named_first_keeps_its_copy(planted: Planted) -> None:
    swapped = [sample._replace(data_set=1 - sample.data_set) for sample in planted.report.samples]
    rows = flag_samples(swapped, planted.report.data_sets[::-1], AuditSpec()).rows
    assert {row.path for row in rows if row.leak_of} == {"moving-2.mp4", "moving-3.mp4"}


@pytest.mark.parametrize(
    ("name", "flags", "exclude"),
    [
        ("static", "static,frozen", True),
        ("black", "static,black,frozen", True),
        ("half-frozen", "frozen", False),
        ("blurred", "blurred", False),
        ("cuts", "many-cuts", False),
        *((f"moving-{seed}", "", False) for seed in range(6)),
    ],
)
def test_each_planted_oddity_is_flagged_and_no_ordinary_video(
    planted: Planted, name: str, flags: str, exclude: bool
) -> None:
    row = planted.row(f"{name}.mp4")
    assert row.flags == flags, row
    assert row.exclude is exclude


def test_the_measures_are_those_of_the_planted_videos(planted: Planted) -> None:
    assert planted.row("black.mp4").black == 1
    assert planted.row("half-frozen.mp4").frozen == pytest.approx(0.5, abs=0.06)
    assert planted.row("cuts.mp4").cuts == 2
    assert planted.row("static.mp4").motion == pytest.approx(0, abs=0.2)
    for row in planted.report.rows:
        if row.path.startswith("moving"):
            assert row.seconds == pytest.approx(FRAMES / RATE, abs=0.05)
            assert (row.black, row.frozen, row.cuts) == (0, 0, 0)


def test_the_number_of_workers_changes_nothing(planted: Planted) -> None:
    one, two = _audit(planted.train, planted.val, workers=1, mirrored=True), planted.report
    assert one.rows == two.rows
    assert one.duplicates == two.duplicates


def _audit_here(folder: Path) -> AuditReport:
    """An audit in this process."""
    shards = Shards.open(str(folder))
    return flag_samples(SampleMeasurer((str(folder),))(0, tuple(range(len(shards)))), (shards,), AuditSpec())


def test_a_sample_that_cant_be_read_is_a_row_with_the_reason(planted: Planted, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted.train, tmp_path / "train"))
    shards = Shards.open(str(folder))
    place = shards.member_range(0)
    data = bytearray(shards.shard_path(place.shard).read_bytes())
    data[place.offset + place.size // 2] ^= 1
    shards.shard_path(place.shard).write_bytes(bytes(data))
    rows = _audit_here(folder).rows
    bad = [row for row in rows if row.error is not None]
    assert [row.key for row in bad] == [shards.key(0)]
    assert bad[0].flags == "unreadable" and bad[0].motion is None and not bad[0].exclude
    assert len(rows) == len(shards)


def test_a_sample_with_a_damaged_key_json_is_a_row_with_the_reason(planted: Planted, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(planted.train, tmp_path / "train"))
    shards = Shards.open(str(folder))
    shard = shards.shard_path(0)
    marker = decode_record(shard.with_suffix(".json").read_bytes(), ShardMarker, "marker")
    entry = marker.samples[0]
    data = bytearray(shard.read_bytes())
    data[entry.facts.offset + 1] ^= 1
    shard.write_bytes(bytes(data))
    report = _audit_here(folder)
    rows = {row.key: row for row in report.rows}
    undamaged = {row.key: row for row in planted.report.rows if row.listing == shards.index.id}
    bad = rows[entry.key]
    assert len(rows) == len(shards)
    assert [row.key for row in rows.values() if row.has("unreadable")] == [entry.key]
    assert (bad.path, bad.label, bad.split) == (None, undamaged[entry.key].label, undamaged[entry.key].split)
    assert f"checksum of {entry.key}.json" in (bad.error or "")
    write_table(report.rows, tmp_path / "rows.csv")
    write_audit_page(report, AuditSpec(), tmp_path / "page.html")
    assert entry.key in (tmp_path / "page.html").read_text()


def test_a_build_omits_the_sources_that_the_table_excludes(planted: Planted, tmp_path: Path) -> None:
    table = tmp_path / "audit.parquet"
    write_table(planted.report.rows, table)
    report = _build(planted.videos, tmp_path / "clean", table)
    kept = {sample.facts.source.path for sample in Shards.open(str(tmp_path / "clean"))}
    rows = [row for row in planted.report.rows if row.data_set == str(planted.train)]
    assert kept == {row.path for row in rows if not row.exclude}
    assert len(rows) - len(kept) == 5
    assert report.index.id != Shards.open(str(planted.train)).index.id
    again = _audit_here(tmp_path / "clean").counts()
    assert again["duplicate"] == again["static"] == again["black"] == 0


def test_both_tables_have_the_same_rows_and_exclude_the_same_sources(planted: Planted, tmp_path: Path) -> None:
    rows = planted.report.rows
    remaining = []
    for name in ("a.csv", "a.parquet"):
        write_table(rows, tmp_path / name)
        remaining.append(exclude_sources(find_sources(str(planted.videos)), str(tmp_path / name)))
    parquet = pyarrow.parquet.read_table(tmp_path / "a.parquet")
    assert [tuple(row.values()) for row in parquet.to_pylist()] == list(rows)
    csv = pyarrow.csv.read_csv(tmp_path / "a.csv")
    for column in ("path", "exclude", "motion", "frozen", "cuts"):
        assert csv.column(column).to_pylist() == parquet.column(column).to_pylist()
    assert remaining[0] == remaining[1]
    assert {source.path.decode() for source in remaining[0].sources} == {
        row.path for row in rows if row.data_set == str(planted.train) and not row.exclude
    }


def _build(videos: Path, dest: Path, exclude: Path) -> BuildReport:
    return build_shards(str(videos), dest, SPEC, workers=2, exclude=str(exclude), style=QUIET)


def test_a_build_omits_the_paths_of_a_text_file_and_counts_unknown_ones(planted: Planted, tmp_path: Path) -> None:
    others = sorted(path.name for path in planted.videos.iterdir())[:10]  # fewer to encode
    listed = tmp_path / "bad.txt"
    listed.write_text("\n".join([f"./{others[0]}", "", f"{planted.videos / others[1]}\r", "nowhere.mp4", *others, ""]))
    done = run_command(
        "vmae_data", "build", planted.videos, tmp_path / "left", "--exclude", listed, "--set", "short_side=96",
        "--set", "stride=8",
    )  # fmt: skip
    assert f"{listed}: 1 path did not match any video of {planted.videos}" in done.stdout.splitlines()
    assert done.stdout.splitlines()[-1].endswith("4 of 4 videos; none failed, 10 excluded")
    assert len(Shards.open(str(tmp_path / "left"))) == 4


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"video\0", "is not text"),
        ("a.csv", b"path,keep\na.mp4,true\n", "no column 'exclude'"),
        ("a.csv", b"path,exclude\na.mp4,perhaps\n", "can't be read as csv"),
        ("a.parquet", b"PAR1", "can't be read as parquet"),
        (
            "a.csv",
            b"data_set,listing,path,exclude\nx,1,a.mp4,true\ny,2,a.mp4,false\n",
            "none built from this listing",
        ),
    ],
)
def test_a_file_that_does_not_list_what_to_exclude_is_refused(
    planted: Planted, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MisuseError, match=message):
        _build(planted.videos, tmp_path / "dest", tmp_path / name)


def test_excluding_everything_is_refused(planted: Planted, tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("\n".join(path.name for path in planted.videos.iterdir()))
    with pytest.raises(MisuseError, match="No source remains"):
        _build(planted.videos, tmp_path / "dest", tmp_path / "all.txt")


def test_a_source_stays_if_one_of_its_rows_stays(planted: Planted, tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("path,exclude\nmoving-0.mp4,true\nmoving-0.mp4,false\nmoving-1.mp4,true\nmoving-1.mp4,true\n")
    listing = find_sources(str(planted.videos))
    remaining = {source.path for source in exclude_sources(listing, str(table)).sources}
    assert {source.path for source in listing.sources} - remaining == {b"moving-1.mp4"}


def test_the_command_writes_the_table_and_the_page_and_prints_the_rows(planted: Planted, tmp_path: Path) -> None:
    html = tmp_path / "audit.html"
    done = run_command(
        "vmae_data", "audit", planted.train, planted.val, "--mirrored", "--json", "--html", html,
        "--out", tmp_path / "audit.parquet",
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Row(**line) for line in lines] == list(planted.report.rows)
    text = html.read_text()
    assert text.index("Leaks between data sets") < text.index("Duplicates within") < text.index("Static: nothing moves")
    assert all(name in text for name in ("zz-crf35.mp4", "mirrored.mp4", "half-frozen.mp4"))
    assert "The same bytes." in text
    assert pyarrow.parquet.read_table(tmp_path / "audit.parquet").num_rows == len(lines)


def test_both_videos_of_a_pair_and_every_flagged_video_play(planted: Planted, tmp_path: Path) -> None:
    write_audit_page(planted.report, AuditSpec(), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert (
        text.count("<video controls muted loop")
        == text.count("<figure><div")
        > 2 * text.count('<div class="pair">')
        > 0
    )
    assert "at the speed of the source" in text


def test_a_video_that_was_damaged_since_the_audit_is_a_line_on_the_page(planted: Planted, tmp_path: Path) -> None:
    shards = Shards.open(shutil.copytree(planted.train, tmp_path / "train"))
    number = next(number for number in range(len(shards)) if shards.key(number) == _key(planted, "black.mp4"))
    place = shards.member_range(number)
    data = bytearray(shards.shard_path(place.shard).read_bytes())
    data[place.offset + place.size // 2] ^= 1
    shards.shard_path(place.shard).write_bytes(bytes(data))
    report = planted.report._replace(data_sets=(shards, *planted.report.data_sets[1:]))
    write_audit_page(report, AuditSpec(), tmp_path / "page.html")
    lines = [line for line in (tmp_path / "page.html").read_text().splitlines() if "can&#39;t be shown" in line]
    assert lines and all("black.mp4" in line for line in lines)


def test_the_command_prints_the_counts(planted: Planted) -> None:
    counts = run_command("vmae_data", "audit", planted.val).stdout
    assert "to exclude" in counts and "duplicate" in counts


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "audit.xlsx"], "expected a name that ends in .parquet or .csv"),
        (["--set", "blak=0.5"], "no such key"),
        (["--set", "duplicates.overlap=7"], "expected 0.1 to 1"),
    ],
)
def test_a_wrong_option_is_refused_before_the_work(planted: Planted, arguments: list[str], message: str) -> None:
    done = run_command("vmae_data", "audit", planted.train, *arguments, status=2)
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_data_set_named_twice_is_refused(planted: Planted) -> None:
    with pytest.raises(MisuseError, match="named twice"):
        _audit(planted.train, planted.val / ".." / "train")


def test_thresholds_are_checked() -> None:
    with pytest.raises(ValueError, match="black = -1"):
        AuditSpec(black=-1)
