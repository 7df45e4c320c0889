"""`vmae-shard build --append`: a data set whose source gained videos keeps its shards and gets new ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from tests.buckets import Setting, send
from tests.builds import QUIET, SmallBuild, digests, staged_keys, start_process, wait_until
from tests.command import call_command
from vmae_data import __version__
from vmae_data.build import BuildReport
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError, MisuseError, VmaeError
from vmae_data.executors.jobs import BuildJobs
from vmae_data.executors.ray_cluster import NodeRequirements, make_shard
from vmae_data.format import INDEX, PLAN, PLAN_TABLE, RULES, PlanFacts, decode_record, encode_record
from vmae_data.names import marker_name, tar_name
from vmae_data.read.dataset import Shards
from vmae_data.shards.merge import merge_parts
from vmae_data.shards.pack import pack_shard
from vmae_data.shards.plan import Part, Plan, read_plan, read_sources
from vmae_data.shards.workspace import STAGING, workspace_of
from vmae_data.storage import StoragePath
from vmae_data.verify.verify import verify_shards

pytestmark = pytest.mark.processes

FIRST, LATER = "pan-right", ("pan-up", "pan-left")  # class folders; pan-left gets the lower number if built at once


class Grown(NamedTuple):
    """A source that gained two classes and a video of a known class, and its data set before and after."""

    small: SmallBuild
    few: Path
    many: Path
    before: Path
    after: Path
    report: BuildReport

    def append(self, dest: StoragePath, source: Path | None = None, **options: object) -> BuildReport:
        return self.small.build(dest, source or self.many, append=True, **options)

    def copy(self, folder: Path) -> Path:
        """A copy of the data set before the append."""
        return Path(shutil.copytree(self.before, folder))


@pytest.fixture(scope="module")
def _grown(_small_build: SmallBuild, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")
    many = Path(shutil.copytree(_small_build.videos, folder / "many"))
    few = folder / "few"
    shutil.copytree(many / FIRST, few / FIRST)
    next((few / FIRST).glob("scene-*")).unlink()
    before, after = folder / "before", folder / "after"
    _small_build.build(before, few)
    shutil.copytree(before, after)
    report = _small_build.build(after, many, append=True)
    return Grown(_small_build, few, many, before, after, report)


@pytest.fixture
def grown(_grown: Grown, small_build: SmallBuild) -> Grown:
    """Its data sets are read only."""
    return _grown


def _kept(before: Path, after: Path) -> None:
    old = {name: digest for name, digest in digests(before).items() if name.startswith("shard-")}
    assert old
    assert old.items() <= digests(after).items()


def _plan(folder: Path) -> PlanFacts:
    return decode_record((folder / PLAN).read_bytes(), PlanFacts, PLAN)


def test_new_videos_go_into_new_shards_and_finished_ones_keep_their_bytes(grown: Grown) -> None:
    _kept(grown.before, grown.after)
    old, new = Shards.open(str(grown.before)), Shards.open(str(grown.after))
    assert [new.key(n) for n in range(len(old))] == [old.key(n) for n in range(len(old))]
    assert new.shard_sizes[: len(old.shard_sizes)] == old.shard_sizes
    assert {sample.facts.source.path for sample in new} == {
        str(path.relative_to(grown.many)) for path in grown.many.rglob("scene-*")
    }
    assert grown.report.appended == grown.report.sources - len(list(grown.few.rglob("*.mp4")))
    assert verify_shards(grown.after, workers=1, style=QUIET).problems == ()


def test_the_data_set_keeps_its_id_and_class_numbers_and_new_classes_come_last(grown: Grown) -> None:
    old, new = Shards.open(str(grown.before)), Shards.open(str(grown.after))
    assert new.index.id == old.index.id
    assert new.classes == (FIRST, "pan-left", "pan-up")
    for sample in new:
        assert sample.facts.class_name == sample.facts.source.path.partition("/")[0]
        assert new.classes[int(str(sample.facts.label))] == sample.facts.class_name
    assert [new.sample_number(n) for n in range(len(old))] == [old.sample_number(n) for n in range(len(old))]


def test_the_plan_records_both_listings_and_what_each_stage_was_planned_for(grown: Grown) -> None:
    before, after = _plan(grown.before), _plan(grown.after)
    assert after.stages() == (before, after)
    assert after.listing != before.listing == after.id == after.appended_to[0].listing
    marker = json.loads((grown.after / marker_name(after.shards - 1)).read_text())
    assert marker["plan"] == after.digest() == Shards.open(str(grown.after)).index.plan
    assert [after.stage_of(shard) for shard in range(after.shards)] == [0] * before.shards + [1] * (
        after.shards - before.shards
    )


def test_an_append_without_anything_new_changes_nothing(grown: Grown, tmp_path: Path) -> None:
    for source, made in ((grown.few, grown.before), (grown.many, grown.after)):
        dest = Path(shutil.copytree(made, tmp_path / made.name))
        assert grown.append(dest, source).encoded == 0
        assert digests(dest) == digests(made)
    assert grown.small.build(tmp_path / "after", grown.many).encoded == 0  # the flag is for the first time only
    assert digests(tmp_path / "after") == digests(grown.after)


def test_an_append_to_no_data_set_builds_one(grown: Grown, tmp_path: Path) -> None:
    grown.append(tmp_path / "new", grown.few)
    assert digests(tmp_path / "new") == digests(grown.before)


def test_several_appends_follow_each_other(grown: Grown, tmp_path: Path) -> None:
    dest, source = grown.copy(tmp_path / "dest"), Path(shutil.copytree(grown.few, tmp_path / "source"))
    for number, name in enumerate(LATER, 1):
        before = shutil.copytree(dest, tmp_path / f"before-{name}")
        shutil.copytree(grown.many / name, source / name)
        grown.append(dest, source)
        _kept(before, dest)
        assert len(_plan(dest).appended_to) == number
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()
    assert Shards.open(str(dest)).classes == (FIRST, *LATER)


def test_without_the_flag_a_changed_source_is_refused_and_the_videos_are_named(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    words = ["vmae_data", "build", grown.many, dest, *grown.small.settings, "--quiet"]
    error = call_command(*words, status=2).stderr
    added = len(list(grown.many.rglob("*.mp4"))) - len(list(grown.few.rglob("*.mp4")))
    assert f"{added} added (pan-" in error
    assert "Add --append" in error
    assert error.count("\n") == 1
    assert "Remove one of them" in call_command(*words, "--dry-run", "--append", status=2).stderr
    fewer = Path(shutil.copytree(grown.few, tmp_path / "fewer"))
    gone = next(fewer.rglob("scene-*"))
    gone.unlink()
    with pytest.raises(MisuseError, match=rf"1 removed \({FIRST}/{gone.name}\)\. Restore them, add --append"):
        grown.small.build(dest, fewer)
    assert digests(dest) == digests(grown.before)


def test_a_video_that_is_gone_stays_in_the_data_set_and_is_named(grown: Grown, tmp_path: Path) -> None:
    dest, source = grown.copy(tmp_path / "dest"), Path(shutil.copytree(grown.many, tmp_path / "source"))
    gone = sorted(path.name for path in (grown.few / FIRST).glob("scene-*"))[0]
    (source / FIRST / gone).unlink()
    done = call_command("vmae_data", "build", source, dest, *grown.small.settings, "--append")
    assert f"1 video of {dest} not in {source} any more: {FIRST}/{gone}. The data set keeps" in done.stdout
    assert f"{FIRST}/{gone}" in {sample.facts.source.path for sample in Shards.open(str(dest))}
    assert digests(dest) == digests(grown.after)


def test_a_video_whose_file_changed_keeps_its_sample_and_is_named(grown: Grown, tmp_path: Path) -> None:
    dest, source = grown.copy(tmp_path / "dest"), Path(shutil.copytree(grown.many, tmp_path / "source"))
    changed = next(source / path.relative_to(grown.few) for path in grown.few.rglob("scene-*"))
    changed.write_bytes(changed.read_bytes() + b"x")
    done = call_command("vmae_data", "build", source, dest, *grown.small.settings, "--append")
    assert f"1 video of {source} changed since it was built: {FIRST}/{changed.name}. " in done.stdout
    assert digests(dest) == digests(grown.after)


def test_changed_labels_and_another_source_are_refused(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    names = sorted(path.name for path in (grown.few / FIRST).iterdir())
    rows = "".join(f"{FIRST}/{name},{'other' if name == names[-1] else FIRST}\n" for name in names)
    (tmp_path / "list.csv").write_text(rows)
    with pytest.raises(MisuseError, match=rf"1 with another label \({FIRST}/{names[-1]}: {FIRST} → other\)"):
        grown.append(dest, grown.few, annotations=str(tmp_path / "list.csv"))
    with pytest.raises(MisuseError, match=r"removed \(.*Check SOURCE"):
        grown.append(dest, grown.many / "pan-up")
    assert digests(dest) == digests(grown.before)


def test_other_settings_are_refused_but_another_ffmpeg_only_makes_new_shards(
    grown: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dest = grown.copy(tmp_path / "dest")
    other = grown.small._replace(spec=msgspec.structs.replace(grown.small.spec, crf=20))
    with pytest.raises(MisuseError, match=r"recipe\.crf: 4 → 20"):
        other.build(dest, grown.many, append=True)
    ffmpeg = tmp_path / "ffmpeg"
    ffmpeg.write_text(grown.small.ffmpeg.read_text() + "# another\n")
    ffmpeg.chmod(0o755)
    with pytest.raises(MisuseError, match="ffmpeg_sha256"):
        grown.small.build(dest, grown.few, ffmpeg=str(ffmpeg))
    grown.append(dest, ffmpeg=str(ffmpeg))
    _kept(grown.before, dest)
    plan = _plan(dest)
    assert plan.ffmpeg_sha256 != plan.appended_to[0].ffmpeg_sha256
    (dest / marker_name(0)).unlink()
    with pytest.raises(MisuseError, match=r"shard 0 was planned for ffmpeg .* --ffmpeg"):
        grown.append(dest, ffmpeg=str(ffmpeg))
    grown.append(dest)
    _kept(grown.before, dest)


def test_the_appended_shards_of_an_older_data_set_have_the_newest_rules(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    plan = msgspec.structs.replace(_plan(dest), rules=1)
    (dest / PLAN).write_bytes(encode_record(plan))
    for path in dest.glob("shard-*.json"):
        path.write_bytes(encode_record({**json.loads(path.read_text()), "plan": plan.digest()}))
    grown.append(dest)
    assert [stage.rules for stage in _plan(dest).stages()] == [1, RULES]
    assert {remark for sample in Shards.open(str(dest)) for remark in sample.facts.remarks} == set()


def test_an_append_that_is_killed_leaves_the_data_set_as_it_was_and_resumes_to_the_same_bytes(
    grown: Grown, tmp_path: Path
) -> None:
    dest = grown.copy(tmp_path / "dest")
    shards = _plan(grown.after).shards
    for shard in range(_plan(grown.before).shards, shards):  # in every shard, before its last source is encoded
        after = grown.small._replace(shards=grown.after)
        after.hold_last(shard)
        process = start_process(grown.append, dest, workers=1)
        earlier, others = dest / marker_name(shard - 1), len(after.paths_of(shard)) - 1
        wait_until(
            lambda earlier=earlier, others=others: earlier.exists() and len(staged_keys(dest / STAGING)) >= others,
            process,
        )
        process.kill()
        process.join()
        assert Shards.open(str(dest)).digest == Shards.open(str(grown.before)).digest
        _kept(grown.before, dest)
    grown.small.release()
    grown.append(dest)
    assert digests(dest) == digests(grown.after)


@pytest.mark.parametrize("written", [(PLAN_TABLE,), (PLAN_TABLE, PLAN)])
def test_an_append_that_is_killed_while_it_plans_begins_again(
    grown: Grown, tmp_path: Path, written: tuple[str, ...]
) -> None:
    dest = grown.copy(tmp_path / "dest")
    for name in written:
        shutil.copy(grown.after / name, dest / name)
    if PLAN not in written:
        other = Path(shutil.copytree(grown.few, tmp_path / "other"))
        shutil.copytree(grown.many / "pan-up", other / "pan-up")
        shutil.copytree(dest, tmp_path / "elsewhere")
        grown.append(tmp_path / "elsewhere", other)  # the source may change before the second try
        assert verify_shards(tmp_path / "elsewhere", workers=1, style=QUIET).problems == ()
    grown.append(dest)
    assert digests(dest) == digests(grown.after)


def test_an_unfinished_build_is_finished_and_appended_to_at_once(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    for name in (INDEX, marker_name(0), tar_name(0)):
        (dest / name).unlink()
    grown.append(dest)
    assert digests(dest) == digests(grown.after)


def test_a_damaged_table_of_sources_is_an_error_that_names_it(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    (dest / PLAN_TABLE).write_bytes(b"x")
    with pytest.raises(DataError, match=r"plan\.arrow: can't be read"):
        grown.append(dest)
    shutil.copy(grown.before / PLAN_TABLE, dest / PLAN_TABLE)
    (dest / PLAN).write_bytes(encode_record(msgspec.structs.replace(_plan(dest), listing="0" * 64)))
    with pytest.raises(DataError, match=r"plan\.arrow: is not the table of plan\.json"):
        grown.append(dest)


def test_verify_finds_another_stage_in_the_plan(grown: Grown, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(grown.after, tmp_path / "dest"))
    plan = _plan(dest)
    (stage,) = plan.appended_to
    for change in ({"listing": "0" * 64}, {"sources": stage.sources + 1}, {"rules": 1}):
        changed = (msgspec.structs.replace(stage, **change),)  # type: ignore[arg-type]
        (dest / PLAN).write_bytes(encode_record(msgspec.structs.replace(plan, appended_to=changed)))
        problems = verify_shards(dest, workers=1, style=QUIET).problems
        assert {PLAN_TABLE, INDEX, marker_name(0)} & {problem.file for problem in problems}


@pytest.mark.parametrize("change", [{"sources": 10**9}, {"shards": 0}, {"shards": 10**9}])
def test_a_plan_whose_stages_do_not_grow_is_refused(grown: Grown, tmp_path: Path, change: dict[str, int]) -> None:
    facts = json.loads((grown.after / PLAN).read_text())
    facts["appended_to"] = [facts["appended_to"][0], {**facts["appended_to"][0], **change}]
    (tmp_path / PLAN).write_text(json.dumps(facts))
    with pytest.raises(DataError, match="they do not grow"):
        read_plan(tmp_path)


def test_failures_of_every_stage_are_tried_again_on_request(grown: Grown, tmp_path: Path) -> None:
    dest, source = tmp_path / "dest", Path(shutil.copytree(grown.few, tmp_path / "source"))
    first = next(source.rglob("scene-*"))
    first.write_bytes(b"")
    grown.small.build(dest, source)
    shutil.copytree(grown.many / "pan-up", source / "pan-up")
    second = next((source / "pan-up").glob("scene-*"))
    second.write_bytes(b"")
    grown.append(dest, source)
    for broken in (first, second):
        shutil.copy(grown.many / broken.relative_to(source), broken)
    grown.append(dest, source, retry_failed=True)
    paths = {sample.facts.source.path for sample in Shards.open(str(dest))}
    assert {str(broken.relative_to(source)) for broken in (first, second)} <= paths
    assert verify_shards(dest, workers=1, style=QUIET).problems == ()


def test_exclusions_and_unlisted_videos_work_with_an_append(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    left_out = sorted(str(path.relative_to(grown.many)) for path in (grown.many / "pan-up").iterdir())
    (tmp_path / "exclude.txt").write_text("\n".join(left_out))
    report = grown.append(dest, exclude=str(tmp_path / "exclude.txt"))
    assert report.excluded == len(left_out)
    assert Shards.open(str(dest)).classes == (FIRST, "pan-left", "pan-up")
    assert not {sample.facts.source.path for sample in Shards.open(str(dest))} & set(left_out)


def test_parts_append_together_and_the_merge_gives_the_bytes_of_one_build(grown: Grown, tmp_path: Path) -> None:
    dest = grown.copy(tmp_path / "dest")
    running = [start_process(grown.append, dest, workers=1, part=Part(n, 2)) for n in range(2)]
    for process in running:
        process.join(timeout=120)
    assert [process.exitcode for process in running] == [0, 0]
    assert Shards.open(str(dest)).digest == Shards.open(str(grown.before)).digest
    merge_parts(dest)
    assert digests(dest) == digests(grown.after)


def test_a_node_of_a_cluster_makes_a_shard_of_any_stage(grown: Grown, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(grown.after, tmp_path / "dest"))
    for shard in (0, _plan(dest).shards - 1):
        (dest / marker_name(shard)).unlink()
    binary = find_ffmpeg(str(grown.small.ffmpeg))
    plan = Plan(_plan(dest), bytes(grown.many), read_sources(dest, _plan(dest)), grown.small.spec)
    required = NodeRequirements(__version__, binary.version, binary.sha256, binary.path)
    for job in BuildJobs(workspace_of(dest), plan, binary.path).remaining():
        list(make_shard(job, encode_source, pack_shard, required, 1))
    assert digests(dest) == digests(grown.after)


def test_an_append_in_a_bucket_has_the_bytes_of_a_local_one(grown: Grown, s3: Setting) -> None:
    send(grown.before, s3.folder)
    grown.append(s3.folder)
    assert digests(s3.folder) == digests(grown.after)
    assert read_sources(s3.folder, read_plan(s3.folder)) == read_sources(grown.after, _plan(grown.after))


@pytest.mark.parametrize(
    ("data", "said"), [(None, "holds shards, but no plan.json"), (b"{", "plan.json: can't be read")]
)
def test_shards_whose_plan_is_lost_are_not_built_over(
    grown: Grown, tmp_path: Path, data: bytes | None, said: str
) -> None:
    dest = Path(shutil.copytree(grown.after, tmp_path / "dest"))
    (dest / PLAN).unlink() if data is None else (dest / PLAN).write_bytes(data)
    before = digests(dest)
    with pytest.raises(VmaeError, match=f"{said}.*another folder"):
        grown.small.build(dest, grown.many)
    assert before.items() <= digests(dest).items()
