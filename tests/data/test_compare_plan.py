"""A new plan against the stored one: labels and class folders of an append; plans that do not bind."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import msgspec
import pytest

from tests.builds import QUIET, SmallBuild, digests
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, VmaeError
from vmae_data.format import FAILURES, INDEX, PLAN, PLAN_TABLE, SAMPLES
from vmae_data.shards.compare_plan import compare_plan
from vmae_data.shards.plan import Plan, make_plan, read_plan, read_sources, write_appended_plan, write_plan
from vmae_data.shards.workspace import STAGING
from vmae_data.sources.find import find_sources
from vmae_data.storage import lock
from vmae_data.verify.verify import verify_shards

INDEXES = (INDEX, SAMPLES, FAILURES)


def _append_listed(dest: Path, source: Path, **options: str) -> Plan:
    """The plan of a folder or a listing, appended to the one of `dest`, without an encode."""
    listing = find_sources(str(source), **options)  # type: ignore[arg-type]
    plan = make_plan(listing, BuildSpec(), split=None, ffmpeg="", ffmpeg_sha256="")
    compared = compare_plan(dest, plan, source=str(source), append=True, class_folders=listing.class_folders)
    write_appended_plan(dest, compared.plan) if compared.appended else write_plan(dest, compared.plan)
    return compared.plan


@pytest.mark.parametrize(
    ("given", "classes", "labels"),
    [
        (["b", "c", "a", "c"], ("b", "c", "a"), [0, 1, 2, 1]),
        ([1, 0, 5, 2], ("0", "1", "2", "3", "4", "5"), [1, 0, 5, 2]),
        ([["b"], ["c", "b"], ["a", "c"], []], ("b", "c", "a"), [(0,), (0, 1), (1, 2), ()]),
        ([[1.5, 2], [0.5, 1], [3, 0.25], [1, 1]], (), [(1.5, 2.0), (0.5, 1.0), (3.0, 0.25), (1.0, 1.0)]),
        ([None, None, "a", None], ("a",), [None, None, 0, None]),
    ],
)
def test_labels_of_every_kind_keep_their_numbers(
    tmp_path: Path, given: list[object], classes: tuple[str, ...], labels: list[object]
) -> None:
    table, plans = tmp_path / "table.jsonl", []
    rows = [json.dumps({"path": f"{n}.mp4", "label": label}) for n, label in enumerate(given)]
    for count in (2, 4):
        table.write_text("\n".join(rows[:count]))
        plans.append(_append_listed(tmp_path, table))
    first, second = plans
    assert second.facts.classes == classes
    assert {source.path: source.label for source in second.sources} == {
        b"%d.mp4" % n: label for n, label in enumerate(labels)
    }
    assert second.sources[:2] == first.sources == read_sources(tmp_path, first.facts)
    assert second.sources == read_sources(tmp_path, second.facts)


@pytest.mark.parametrize(
    ("stages", "classes"),
    [
        (["01 02", "00"], "01 02 00"),  # names, then numbers if they were read anew
        (["01 02", "00", "03 abc", "4"], "01 02 00 03 abc 4"),
        (["1 2", "0"], "1 2 0"),
        (["00 01", "90"], "0 1 90"),  # numbers, then names
        (["00 01", "abc", "02"], "0 1 abc 2"),
        (["00 01 02", "-00"], "0 1 2"),
        (["0 1", "90", "2"], "0 1 90 2"),
        (["0 1", "00"], "0 1 00"),
        (["90 180", "0", "360"], "180 90 0 360"),
    ],
)
def test_an_append_reads_the_names_of_class_folders_as_the_first_build_did(
    tmp_path: Path, stages: list[str], classes: str
) -> None:
    source, dest, labels = tmp_path / "source", tmp_path / "dest", {}
    dest.mkdir()
    for stage in stages:
        for name in stage.split():
            if name.startswith("-"):
                shutil.rmtree(source / name[1:])
                continue
            (source / name).mkdir(parents=True)
            (source / name / "a.mp4").write_bytes(b"")
        plan = _append_listed(dest, source)
        now = {one.path: plan.class_name(one.label) for one in plan.sources}
        assert labels.items() <= now.items()
        labels = now
        assert _append_listed(dest, source).facts == plan.facts
    assert plan.facts.classes == tuple(classes.split())
    assert plan.sources == read_sources(dest, plan.facts)


def test_an_append_refuses_two_class_folders_of_one_number(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("00", "01"):
        (source / name).mkdir(parents=True)
        (source / name / "a.mp4").write_bytes(b"")
    _append_listed(tmp_path, source)
    shutil.copytree(source / "00", source / "0")
    with pytest.raises(MisuseError, match="'0' and '00' are both class 0. Rename one of them"):
        _append_listed(tmp_path, source)


@pytest.mark.parametrize(
    ("first", "later", "said", "mended"),
    [
        (["01", "abc"], ["01", "", "02"], "names.* read as class numbers.* no number", ["01", "abc", "02"]),
        (["00", "01"], ["00", "01", "abc"], "class numbers.* read as names.* one class number", ["00", "01", "2"]),
        (["0", "1"], ["0", "1", 1.5], "class numbers.* read as values.* one class number", ["0", "1", "5"]),
        (["a", "b"], ["a", "b", ["a", "b"]], "names.* read as several classes.* one label", ["a", "b", "c"]),
        ([["a"], "b"], ["a", "b", "c"], "several classes.* read as names.* as a list", ["a", "b", ["c"]]),
        ([1.5, 2], [1, 2, 3], "values.* read as class numbers.* a fraction", [1.5, 2, 3]),
    ],
)
def test_labels_that_are_read_in_another_way_are_refused_and_the_advice_works(
    tmp_path: Path, first: list[object], later: list[object], said: str, mended: list[object]
) -> None:
    table = tmp_path / "table.jsonl"

    def write(labels: list[object]) -> Path:
        rows = [json.dumps({"path": f"{n}.mp4", "label": label}) for n, label in enumerate(labels) if label]
        table.write_text("\n".join(rows))
        return table

    _append_listed(tmp_path, write(first))
    with pytest.raises(MisuseError, match=f"Its labels are {said}"):
        _append_listed(tmp_path, write(later))
    assert len(_append_listed(tmp_path, write(mended)).sources) == 3


_NO_THREADS = 'case "$*" in *.mp4*) echo "[vf#0:0 @ 0x1] [fatal] pthread_create() failed: no" >&2; exit 1;; esac'


def _failing(small: SmallBuild, folder: Path) -> str:
    """An ffmpeg that can't encode on this machine."""
    path = folder / "ffmpeg"
    shell, rest = small.ffmpeg.read_text().split("\n", 1)
    path.write_text("\n".join([shell, _NO_THREADS, rest]))
    path.chmod(0o755)
    return str(path)


def _intact(small: SmallBuild, folder: Path, *classes: str) -> Path:
    """Class folders with the videos that are not broken: a broken one is finished by its failure."""
    for name in classes:
        (folder / name).mkdir(parents=True)
        for path in (small.videos / name).glob("scene-*"):
            shutil.copy(path, folder / name)
    return folder


def test_a_plan_of_which_nothing_is_finished_does_not_bind(small_build: SmallBuild, tmp_path: Path) -> None:
    dest, source = tmp_path / "dest", _intact(small_build, tmp_path / "source", "pan-left")
    other = small_build._replace(spec=msgspec.structs.replace(small_build.spec, crf=20))
    with pytest.raises(VmaeError, match="ffmpeg failed on this machine"):
        other.build(dest, source, ffmpeg=_failing(small_build, tmp_path))
    assert read_plan(dest).recipe["crf"] == 20
    small_build.build(dest, source)
    assert read_plan(dest).recipe["crf"] == small_build.spec.crf
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()


@pytest.mark.parametrize(
    "finished", ["shard-000002.json", "shard-000002.tar", SAMPLES, ".staging/a.staged.json", ".lock"]
)
def test_a_plan_of_which_something_is_finished_or_built_now_binds(
    small_build: SmallBuild, tmp_path: Path, finished: str
) -> None:
    shutil.copy(small_build.shards / PLAN, tmp_path / PLAN)
    (tmp_path / STAGING).mkdir()
    (tmp_path / finished).write_bytes(b"")
    other = small_build._replace(spec=msgspec.structs.replace(small_build.spec, crf=20))
    with (
        lock(tmp_path, "build") if finished == ".lock" else nullcontext(),
        pytest.raises(VmaeError, match="crf|another build"),
    ):
        other.build(tmp_path)
    assert (tmp_path / PLAN).read_bytes() == (small_build.shards / PLAN).read_bytes()


def test_an_append_of_which_nothing_is_finished_does_not_bind(small_build: SmallBuild, tmp_path: Path) -> None:
    dest, source = tmp_path / "dest", _intact(small_build, tmp_path / "source", "pan-left")
    small_build.build(dest, source)
    before = digests(dest)
    _intact(small_build, source, "pan-up")
    mistake = (source / "pan-up").rename(source / "mistake")
    with pytest.raises(VmaeError, match="ffmpeg failed on this machine"):
        small_build.build(dest, source, append=True, ffmpeg=_failing(small_build, tmp_path))
    assert len(read_plan(dest).appended_to) == 1
    mistake.rename(source / "pan-up")
    report = small_build.build(dest, source, append=True)
    assert (report.appended, report.removed) == (len(list((source / "pan-up").iterdir())), ())
    assert before.items() - digests(dest).items() <= {(name, before[name]) for name in (PLAN, PLAN_TABLE, *INDEXES)}
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()
