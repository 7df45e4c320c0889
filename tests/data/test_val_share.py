"""`vmae-shard build --val-share`: a train and a val data set of one source."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.buckets import Setting
from tests.builds import SmallBuild, digests, start_command, wait_until
from tests.command import call_command
from vmae_data.build import build_train_and_val
from vmae_data.errors import MisuseError
from vmae_data.format import PLAN_TABLE, Label
from vmae_data.names import key_of
from vmae_data.read.dataset import Shards
from vmae_data.shards.plan import read_plan, read_sources
from vmae_data.sources.find import Listing, SourceVideo, listing_digest
from vmae_data.sources.val_share import TRAIN, VAL, ValShare, split_notes, split_sources

FIFTH = ValShare(0.2)
SHARE = ("--val-share", "0.4")  # 5 of the 12 small videos are for validation


def _listing(paths: Sequence[str], labels: Sequence[Label | None] = (), classes: Sequence[str] = ()) -> Listing:
    values = labels or [None] * len(paths)
    sources = (SourceVideo(key_of(p.encode()), p.encode(), label) for p, label in zip(paths, values, strict=True))
    return Listing(b"/videos", tuple(sources), tuple(classes))


PATHS = [f"run/clip-{n}.mp4" for n in range(2000)]


def test_the_share_of_the_videos_is_for_validation() -> None:
    val = split_sources(_listing(PATHS), FIFTH, {})
    assert abs(len(val) - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert val < split_sources(_listing(PATHS), ValShare(0.3), {})


def test_the_split_is_fixed_for_ever() -> None:
    paths = [f"run/{n}.mp4" for n in range(8)]
    assert sorted(split_sources(_listing(paths), ValShare(0.5), {})) == [
        b"run/0.mp4",
        b"run/2.mp4",
        b"run/4.mp4",
        b"run/7.mp4",
    ]


def test_neither_order_nor_other_videos_move_a_video() -> None:
    val = split_sources(_listing(PATHS), FIFTH, {})
    assert split_sources(_listing(PATHS[::-1]), FIFTH, {}) == val
    assert split_sources(_listing(PATHS[:500]), FIFTH, {}) == val & {path.encode() for path in PATHS[:500]}


def test_groups_stay_together_and_the_share_counts_groups() -> None:
    paths = [f"run/v_run_g{group:03}_c{clip}.avi" for group in range(300) for clip in range(4)]
    val = split_sources(_listing(paths), ValShare(0.2, r"v_.*_g(\d+)_"), {})
    assert {sum(f"_g{group:03}_".encode() in path for path in val) for group in range(300)} == {0, 4}
    assert abs(len(val) / 4 - 60) < 4 * (300 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(
    ("pattern", "path", "group"),
    [
        (r"v_.*_g(\d+)_", "run/v_run_g07_c1.avi", b"07"),
        (r"^\w+/[^-]+", "run/tom-3.mp4", b"run/tom"),
        (r"a(\d)|b(\d)", "b4.mp4", b"4"),
        (None, "run/1.mp4", b"run/1.mp4"),
        (r"x", "run/1.mp4", b""),
    ],
)
def test_a_group_is_the_first_group_of_the_pattern_or_its_whole_match(
    pattern: str | None, path: str, group: bytes
) -> None:
    assert ValShare(0.2, pattern).group_of(path.encode()) == group


def test_every_class_has_a_video_in_train() -> None:
    paths = [f"{name}/{n}.mp4" for name in range(200) for n in range(2)]
    labels = [name for name in range(200) for _ in range(2)]
    listing = _listing(paths, labels, [str(n) for n in range(200)])
    share = ValShare(0.6)
    val = split_sources(listing, share, {})
    assert {source.label for source in listing.sources if source.path not in val} == set(range(200))
    hashed = split_sources(_listing(paths), share, {})  # without labels the hash alone decides
    moved = hashed - val
    assert val < hashed
    assert len(moved) == sum({f"{n}/0.mp4".encode(), f"{n}/1.mp4".encode()} <= hashed for n in range(200))
    notes = split_notes(listing, val)
    assert notes[0] == f"{len(val)} of 400 videos are for validation"
    empty = sorted(set(range(200)) - {source.label for source in listing.sources if source.path in val})
    assert notes[1].startswith(f"val has no video of {len(empty)} of 200 classes ({empty[0]}, {empty[1]}, ")
    assert len(split_notes(listing, frozenset(source.path for source in listing.sources))) == 1


def test_a_video_with_several_classes_counts_for_each_of_them() -> None:
    paths = [path.decode() for path in sorted(split_sources(_listing(PATHS), FIFTH, {}))[:2]]
    train = next(path for path in PATHS if path not in paths)
    listing = _listing([*paths, train], [(0, 1), (1, 2), (0,)], "abc")
    val = split_sources(listing, FIFTH, {})  # of class 1 one must move, and of class 2 there is only the second
    assert {source.label for source in listing.sources if source.path not in val} >= {(1, 2)}


def test_a_video_that_is_planned_already_stays_when_its_class_grows() -> None:
    val = sorted(split_sources(_listing(PATHS), FIFTH, {}))
    train = next(path for path in PATHS if path.encode() not in val)
    first = val[0].decode()
    others = [path.decode() for path in val[1:3]]
    start = _listing([first, *others], [0, 1, 1], "ab")
    assert first.encode() not in split_sources(start, FIFTH, {})  # the only one of its class
    grown = _listing([first, train, *others], [0, 0, 1, 1], "ab")
    assert first.encode() in split_sources(grown, FIFTH, {})
    assert first.encode() not in split_sources(grown, FIFTH, {first.encode(): TRAIN})


def test_a_video_of_val_never_moves_to_train() -> None:
    val = [path.decode() for path in sorted(split_sources(_listing(PATHS), FIFTH, {}))[:2]]
    train = next(path for path in PATHS if path not in val)
    listing = _listing([*val, train], [0, 0, 1], "ab")
    stored = {path.encode(): VAL for path in val}
    assert split_sources(listing, FIFTH, stored) == set(stored)


def test_a_group_stays_where_its_first_videos_are() -> None:
    paths = ["run/g1_a.mp4", "run/g1_b.mp4", "run/g2_a.mp4", "run/g3_a.mp4"]
    for name in (TRAIN, VAL):
        other = {b"run/g2_a.mp4": TRAIN, b"run/g3_a.mp4": VAL}
        val = split_sources(_listing(paths), ValShare(0.5, r"g(\d)"), {b"run/g1_gone.mp4": name, **other})
        assert (b"run/g1_a.mp4" in val, b"run/g1_b.mp4" in val) == (name == VAL, name == VAL)


def test_errors_of_a_split_say_what_to_give() -> None:
    with pytest.raises(MisuseError, match=r"--group-by g\(\\d\): matches nothing in 2 of 3 paths \(a\.mp4, b\.mp4\)"):
        split_sources(_listing(["a.mp4", "b.mp4", "g1.mp4"]), ValShare(0.2, r"g(\d)"), {})
    with pytest.raises(
        MisuseError, match=r"none of 2 videos in 2 groups falls into val\. Give a larger share, or more"
    ):
        split_sources(_listing(PATHS[:2]), ValShare(0.0001), {})
    with pytest.raises(MisuseError, match=r"none of 2 videos in 1 group falls into train\. Give a smaller share"):
        split_sources(_listing(PATHS[:2]), ValShare(0.9999, "run"), {})


@pytest.mark.parametrize("share", ["0", "1", "-0.2", "20", "nan"])
def test_a_share_that_is_none_is_refused(share: str, tmp_path: Path) -> None:
    error = call_command("vmae_data", "build", tmp_path, f"--val-share={share}", status=2).stderr
    assert f"--val-share {share}: expected a number between 0 and 1, such as 0.2" in error


def test_a_pattern_must_be_valid_and_needs_a_share(tmp_path: Path) -> None:
    error = call_command("vmae_data", "build", tmp_path, *SHARE, "--group-by", "g(", status=2).stderr
    assert error.startswith("vmae-shard: --group-by g(: is not a regular expression (missing )")
    assert error.count("\n") == 1
    error = call_command("vmae_data", "build", tmp_path, "--group-by", "g", status=2).stderr
    assert "--group-by g: needs --val-share, such as --val-share 0.2" in error


def _build(small: SmallBuild, dest: Path, *words: str, source: Path | None = None, status: int = 0) -> str:
    done = call_command(
        "vmae_data", "build", source or small.videos, dest, *small.settings, *SHARE, *words, status=status
    )
    return done.stdout + done.stderr


def _sources(folder: Path) -> dict[bytes, Label | None]:
    return {source.path: source.label for source in read_sources(folder, read_plan(folder))}


@pytest.fixture(scope="module")
def _both(_small_build: SmallBuild, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("both") / "mine"
    _build(_small_build, dest)
    return dest


@pytest.fixture
def both(_both: Path, small_build: SmallBuild) -> Path:
    """The two data sets of the small build. Read only."""
    return _both


@pytest.mark.processes
def test_both_data_sets_are_whole_and_have_the_same_classes(both: Path, small_build: SmallBuild) -> None:
    train, val = _sources(both / TRAIN), _sources(both / VAL)
    assert not train.keys() & val.keys()
    assert train | val == _sources(small_build.shards)  # with the same labels
    assert len(val) == 5
    sets = [Shards.open(str(both / name)) for name in (TRAIN, VAL)]
    assert sets[0].classes == sets[1].classes == ("pan-left", "pan-right", "pan-up")
    assert [one.index.split for one in sets] == [TRAIN, VAL]
    for name in (TRAIN, VAL):
        assert "every frame decodes" in call_command("vmae_data", "verify", both / name).stdout
    error = call_command("vmae_data", "verify", both, status=2).stderr
    assert f"has no index.json, but train/ in it has one. Name {both / TRAIN}" in error


@pytest.mark.processes
def test_the_same_command_repeats_nothing_and_another_share_is_refused(both: Path, small_build: SmallBuild) -> None:
    before = digests(both)
    assert _build(small_build, both).count("none in this run; all were done before") == 2
    printed = call_command(
        "vmae_data", "build", small_build.videos, both, *small_build.settings, *SHARE, "--json"
    ).stdout
    assert {name: one["dest"] for name, one in json.loads(printed).items()} == {n: str(both / n) for n in (TRAIN, VAL)}
    assert "has a different plan (val_share: 0.4 → 0.3)" in _build(small_build, both, "--val-share", "0.3", status=2)
    error = _build(small_build, both, "--group-by", r"[^/]*$", "--append", status=2)
    assert "has a different plan (group_by: not set → '[^/]*$')" in error
    plain = ["vmae_data", "build", small_build.videos, both, *small_build.settings]
    error = call_command(*plain, "--append", status=2).stderr
    assert "holds the data sets train and val. Give --val-share 0.4 as for their build" in error
    assert digests(both) == before


@pytest.mark.processes
def test_a_data_set_of_all_videos_is_not_split(small_build: SmallBuild) -> None:
    error = _build(small_build, small_build.shards, status=2)
    assert "holds a data set that was built without --val-share. Name another folder" in error


@pytest.mark.processes
def test_an_append_keeps_the_split_and_the_class_numbers_of_both(
    both: Path, small_build: SmallBuild, tmp_path: Path
) -> None:
    dest, source = (
        Path(shutil.copytree(both, tmp_path / "mine")),
        Path(shutil.copytree(small_build.videos, tmp_path / "v")),
    )
    video = next((source / "pan-up").glob("scene-*"))
    for name in ("zoom", "also-new"):  # a class of a single video: val gets its name only
        (source / name).mkdir()
        shutil.copy(video, source / name / "one.mp4")
        assert "Add --append to build the new ones" in _build(small_build, dest, source=source, status=2)
        _build(small_build, dest, "--append", source=source)
    assert [stage.classes for stage in read_plan(dest / VAL).appended_to] == [3, 4]
    for n in range(6):
        shutil.copy(video, source / "zoom" / f"{n}.mp4")
    _build(small_build, dest, "--append", source=source)
    train, val = _sources(dest / TRAIN), _sources(dest / VAL)
    classes = ("pan-left", "pan-right", "pan-up", "zoom", "also-new")
    for name, sources in ((TRAIN, train), (VAL, val)):
        old = _sources(both / name)
        assert old.items() < sources.items()
        assert all(classes[label] == path.decode().partition("/")[0] for path, label in sources.items())
        assert Shards.open(str(dest / name)).classes == read_plan(dest / name).classes == classes
        assert {k: v for k, v in digests(both / name).items() if k.endswith(".tar")}.items() <= digests(
            dest / name
        ).items()
        call_command("vmae_data", "verify", dest / name)
    assert {b"zoom/one.mp4", b"also-new/one.mp4"} <= train.keys()
    assert not train.keys() & val.keys()
    before = digests(dest)
    _build(small_build, dest, "--append", source=source)
    _build(small_build, dest, source=source)
    assert digests(dest) == before


@pytest.mark.processes
def test_a_killed_build_ends_with_the_same_bytes(both: Path, small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "mine"
    small_build.held.write_text(Path(next(iter(_sources(both / VAL))).decode()).name)
    words = ["build", str(small_build.videos), str(dest), *small_build.settings, *SHARE]
    process = start_command(words, tmp_path / "log")
    wait_until((dest / VAL / PLAN_TABLE).exists, process)
    process.kill()
    process.join()
    small_build.release()
    _build(small_build, dest)
    assert digests(dest) == digests(both)


@pytest.mark.processes
def test_parts_are_merged_one_data_set_after_the_other(both: Path, small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "mine"
    for part in ("1/2", "0/2"):
        text = _build(small_build, dest, "--part", part)
        assert all(f"run: vmae-shard merge {dest / name}" in text for name in (TRAIN, VAL))
    for name in (TRAIN, VAL):
        call_command("vmae_data", "merge", dest / name)
    assert digests(dest) == digests(both)


@pytest.mark.processes
def test_failed_videos_of_both_are_tried_again(both: Path, small_build: SmallBuild, tmp_path: Path) -> None:
    dest = Path(shutil.copytree(both, tmp_path / "mine"))
    reports = dict(
        build_train_and_val(
            str(small_build.videos),
            dest,
            small_build.spec,
            ValShare(0.4),
            ffmpeg=str(small_build.ffmpeg),
            retry_failed=True,
            workers=2,
        )
    )
    failed = {name: reports[dest / name].failed for name in (TRAIN, VAL)}
    assert sum(failed.values()) == 3
    assert {name: reports[dest / name].encoded for name in (TRAIN, VAL)} == failed


@pytest.mark.processes
def test_exclusions_apply_to_both(both: Path, small_build: SmallBuild, tmp_path: Path) -> None:
    train, val = sorted(_sources(both / TRAIN))[0], sorted(_sources(both / VAL))[0]
    (tmp_path / "one.txt").write_bytes(train + b"\n")
    text = _build(small_build, tmp_path / "a", "--exclude", str(tmp_path / "one.txt"))
    assert "6 of 6 videos" in text or ", 1 excluded" in text
    assert _sources(tmp_path / "a" / TRAIN).keys() == _sources(both / TRAIN).keys() - {train}
    assert _sources(tmp_path / "a" / VAL) == _sources(both / VAL)
    rows = []
    for name, path in ((TRAIN, train), (VAL, val)):  # as `audit DEST/train DEST/val --out` writes it
        plan = read_plan(both / name)
        digest = listing_digest(read_sources(both / name, plan), plan.classes)
        rows.append({"path": path.decode(), "listing": digest, "data_set": name, "exclude": "true"})
    with (tmp_path / "both.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    _build(small_build, tmp_path / "b", "--exclude", str(tmp_path / "both.csv"))
    for name, path in ((TRAIN, train), (VAL, val)):
        assert _sources(tmp_path / "b" / name).keys() == _sources(both / name).keys() - {path}


@pytest.mark.processes
def test_a_dry_run_counts_both_and_checks_the_split(small_build: SmallBuild, tmp_path: Path) -> None:
    dest = tmp_path / "mine"
    assert "note: 5 of 12 videos are for validation" in _build(small_build, dest, "--dry-run")
    assert "--group-by x: matches nothing in" in _build(small_build, dest, "--dry-run", "--group-by", "x", status=2)
    assert not dest.exists()


@pytest.mark.processes
def test_a_bucket_holds_both_data_sets(both: Path, small_build: SmallBuild, s3: Setting) -> None:
    reports = build_train_and_val(
        str(small_build.videos),
        s3.folder,
        small_build.spec,
        ValShare(0.4),
        ffmpeg=str(small_build.ffmpeg),
        workers=2,
    )
    assert [folder for folder, _ in reports] == [s3.folder / TRAIN, s3.folder / VAL]
    assert digests(s3.folder) == digests(both)
