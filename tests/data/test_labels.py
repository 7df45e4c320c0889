"""From annotations through a real build to samples.arrow, and back."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest

from tests.command import call_command
from vmae_data.build import BuildReport, build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import FAILURES, PLAN_TABLE, SAMPLES, UNLISTED, Label
from vmae_data.inspect.inspect import inspect_shards
from vmae_data.inspect.inspect_page import write_inspect_page
from vmae_data.labels import label_columns, label_text, table_labels
from vmae_data.names import path_from_text
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.verify.verify import verify_shards

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def _some(videos: Path, count: int) -> list[str]:
    found = sorted(str(path.relative_to(videos)) for path in videos.glob("*/*.mp4") if "broken" not in path.name)
    return found[:: len(found) // count][:count]


def _build(videos: Path, dest: Path, labels: dict[str, object], spec: BuildSpec) -> BuildReport:
    listing = dest.with_suffix(".jsonl")
    listing.write_text("".join(json.dumps({"path": p, "label": v}) + "\n" for p, v in labels.items()))
    return build_shards(str(videos), dest, spec, workers=1, annotations=str(listing), style=QUIET)


@pytest.mark.parametrize(
    "labels",
    [
        [0, None, 7],
        [(0, 7), None, (), (3,)],
        [(0.5, -1.0), (2.0, 0.0), None],
        [None],
        [],
    ],
)
def test_labels_survive_a_table(labels: list[Label | None]) -> None:
    back = table_labels(pa.table(label_columns(labels)).to_pydict())
    assert back == labels
    assert [type(v) for label in back if isinstance(label, tuple) for v in label] == [
        type(v) for label in labels if isinstance(label, tuple) for v in label
    ]


def test_one_class_per_video_needs_no_second_column() -> None:
    assert list(label_columns([1, None])) == ["label"]


def test_different_labels_have_different_texts() -> None:
    classes = ("a", "b", 'a","b')
    texts = [label_text(label, classes) for label in (None, 0, (0,), (0, 1), (2,), (), (0.5,))]
    assert len(set(texts)) == len(texts)


def test_several_classes_per_video_survive_a_build(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    names = _some(demo_videos, 4)
    labels = dict(zip(names, (["run", "jump"], ["sit"], [], None), strict=True))
    dest = tmp_path / "out"
    report = _build(demo_videos, dest, labels, demo_spec)
    assert not report.failed
    shards = Shards.open(str(dest))
    assert shards.classes == ("jump", "run", "sit")
    assert shards.label_kind is LabelKind.CLASSES
    expected = dict(zip(names, ((0, 1), (2,), (), None), strict=True))
    facts = {n: shards.sample(n).facts for n in range(4)}
    assert {facts[n].source.path: shards.label(n) for n in range(4)} == expected
    assert {one.source.path: one.label for one in facts.values()} == expected
    assert shards.class_count_K.tolist() == [1, 1, 1]
    assert (shards.label_N == -1).all()
    with tarfile.open(dest / "shard-000000.tar") as tar:
        texts = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".cls")}  # type: ignore[union-attr]
    assert sorted(texts.values()) == [b"", b"0 1", b"2"]
    assert not verify_shards(dest, workers=1, style=QUIET).problems
    counted = inspect_shards(dest)
    assert (counted.per_class, counted.unlabelled) == ({"jump": 1, "run": 1, "sit": 1}, 1)
    write_inspect_page(counted, tmp_path / "page.html")
    assert "jump, run" in (tmp_path / "page.html").read_text()
    before = {path.name: path.read_bytes() for path in dest.iterdir()}
    assert _build(demo_videos, dest, labels, demo_spec).encoded == 0
    assert {path.name: path.read_bytes() for path in dest.iterdir()} == before


def test_values_survive_a_build(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    names = _some(demo_videos, 2)
    dest = tmp_path / "out"
    _build(demo_videos, dest, dict(zip(names, ([0.25, 3], [1.5, -2]), strict=True)), demo_spec)
    shards = Shards.open(str(dest))
    assert (shards.label_kind, shards.classes) == (LabelKind.VALUES, ())
    found = {shards.sample(n).facts.source.path: shards.label(n) for n in range(2)}
    assert found == dict(zip(names, ((0.25, 3.0), (1.5, -2.0)), strict=True))
    assert not verify_shards(dest, workers=1, style=QUIET).problems


def test_verify_finds_a_changed_label(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    names = _some(demo_videos, 2)
    dest = tmp_path / "out"
    _build(demo_videos, dest, dict(zip(names, (["a", "b"], ["b"]), strict=True)), demo_spec)
    for name in (PLAN_TABLE, SAMPLES):
        table = pa.ipc.open_file(pa.memory_map(str(dest / name))).read_all()
        at = table.column_names.index("labels")
        changed = table.set_column(at, "labels", pa.array([[1]] * 2, table.schema.field("labels").type))
        with pa.ipc.new_file(str(tmp_path / "new"), table.schema) as writer:
            writer.write_table(changed)
        (tmp_path / "new").replace(dest / name)
    found = {problem.file: problem.message for problem in verify_shards(dest, workers=1, style=QUIET).problems}
    assert {PLAN_TABLE, SAMPLES} <= set(found)


def test_missing_videos_are_failures_and_unlisted_ones_are_named(
    demo_videos: Path, tmp_path: Path, demo_spec: BuildSpec
) -> None:
    """A build with UCF101's lists. The source has an unlisted video with a line break in its name."""
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (videos / "YoYo").mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Bowling\n2 YoYo\n")
    (lists / "trainlist01.txt").write_text("YoYo/v_YoYo_g08_c01.avi 2\nBowling/v_Bowling_g08_c01.avi 1\n")
    for name in ("v_YoYo_g08_c01.mp4", "more.mp4", "odd\nname.mp4"):
        (videos / "YoYo" / name).symlink_to(demo_videos / _some(demo_videos, 1)[0])
    dest = tmp_path / "out"
    command = [
        "vmae_data",
        "build",
        videos,
        dest,
        "--annotations",
        lists,
        "--split",
        "train1",
        "--recipe",
        "demo",
        "--workers",
        "1",
    ]
    done = call_command(*command)
    assert f"1 of 2 videos; 1 failed, listed in {dest / FAILURES}" in done.stdout
    assert f"{lists} has no row for 2 videos, listed in {dest / UNLISTED}" in done.stdout
    (failure,) = [json.loads(line) for line in (dest / FAILURES).read_text().splitlines()]
    assert (failure["path"], failure["reason"]) == ("Bowling/v_Bowling_g08_c01.avi", "missing")
    lines = (dest / UNLISTED).read_text().splitlines()
    assert [path_from_text(line) for line in lines] == [b"YoYo/more.mp4", b"YoYo/odd\nname.mp4"]
    assert not verify_shards(dest, workers=1, style=QUIET).problems
    (sample,) = list(Shards.open(str(dest)))
    assert (sample.facts.class_name, sample.facts.label, sample.facts.split) == ("YoYo", 1, "train1")
    printed = json.loads(call_command(*command, "--json").stdout)
    assert (printed["unlisted"], printed["failures"]) == (2, {"missing": 1})
    for name in ("more.mp4", "odd\nname.mp4"):
        (videos / "YoYo" / name).unlink()
    call_command(*command)
    assert not (dest / UNLISTED).exists()


def test_a_build_says_what_its_walk_left_out_and_quietly_only_what_is_lost(
    demo_videos: Path, tmp_path: Path, closed: list[OSError]
) -> None:
    videos = tmp_path / "videos"
    for name in ("run/a.mp4", "run/@eaDir/b.mp4", "closed/c.mp4"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).symlink_to(demo_videos / _some(demo_videos, 1)[0])
    (videos / "run" / "notes.r3d").touch()
    closed.append(PermissionError(13, "Permission denied"))
    command = ["vmae_data", "build", videos, tmp_path / "out", "--recipe", "demo", "--workers", "1"]
    warning = f"warning: {videos}: 1 folder without permission left out (closed)\n"
    for more in (["--dry-run"], []):
        told = call_command(*command, *more).stderr
        assert warning in told
        assert f"note: {videos}: 1 system folder skipped (@eaDir)\n" in told
        assert f"note: {videos}: 1 file in a format that builds don't open left out (1 .r3d)." in told
    assert call_command(*command, "--quiet").stderr == warning
