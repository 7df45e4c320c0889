"""Folders as sources: which files are videos, their classes, links and permissions."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.listings import found, listing_file, touch
from vmae_data.errors import MisuseError
from vmae_data.sources.find import find_sources
from vmae_data.sources.video_files import relative_path, suffix


def test_the_class_is_the_first_folder_and_names_are_sorted(tmp_path: Path) -> None:
    for name in ("b/x.mp4", "b/deep/y.MKV", "a/z.webm", "top.avi", "a/notes.txt", ".hidden/h.mp4", "a/._z.webm"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    listing = find_sources(str(tmp_path))
    assert listing.classes == ("a", "b")
    assert sorted((s.path, s.label) for s in listing.sources if s.label is not None) == [
        (b"a/z.webm", 0),
        (b"b/deep/y.MKV", 1),
        (b"b/x.mp4", 1),
    ]
    assert [s.path for s in listing.sources if s.label is None] == [b"top.avi"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert len(find_sources(str(tmp_path)).sources) == 1


def test_a_link_to_a_class_that_was_found_before_is_told(tmp_path: Path) -> None:
    (tmp_path / "all" / "run").mkdir(parents=True)
    (tmp_path / "all" / "run" / "a.mp4").touch()
    (tmp_path / "run").symlink_to(tmp_path / "all" / "run")
    listing = find_sources(str(tmp_path))
    assert [source.path for source in listing.sources] == [b"all/run/a.mp4"]
    assert any("1 link to a folder found before skipped (run)" in note for note in listing.notes)


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/x\n'\"-.mp4", "w"):
        pass
    listing = find_sources(str(tmp_path))
    assert listing.sources[0].path == b"caf\xe9/x\n'\"-.mp4"
    assert listing.classes == ("caf\\xe9",)


def test_a_wrong_path_and_a_single_video_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="neither a folder"):
        find_sources(str(tmp_path / "nothing"))
    (tmp_path / "v.mp4").touch()
    with pytest.raises(MisuseError, match="a single video"):
        find_sources(str(tmp_path / "v.mp4"))
    with pytest.raises(MisuseError, match="unknown scheme"):
        find_sources("ftp://host/videos")


def test_a_folder_without_permission_is_named_and_passed_over(tmp_path: Path, closed: list[OSError]) -> None:
    touch(tmp_path, "a/x.mp4", "closed/y.mp4")
    closed.append(PermissionError(13, "Permission denied"))
    listing = find_sources(str(tmp_path))
    assert ([s.path for s in listing.sources], listing.classes) == ([b"a/x.mp4"], ("a",))
    assert listing.warnings == (f"{tmp_path}: 1 folder without permission left out (closed)",)
    with pytest.raises(MisuseError, match="has no videos .* 1 folder without permission left out"):
        find_sources(touch(tmp_path / "other", "closed/y.mp4"))
    with pytest.raises(MisuseError, match="closed: can't be read .Permission denied"):
        find_sources(str(tmp_path / "closed"))


def test_a_folder_that_a_disk_fails_to_read_is_an_error_and_not_skipped(tmp_path: Path, closed: list[OSError]) -> None:
    touch(tmp_path, "a/x.mp4", "closed/y.mp4")
    closed.append(OSError(5, "Input/output error"))
    with pytest.raises(MisuseError, match="/closed: can't be read .Input/output error"):
        find_sources(str(tmp_path))


SYSTEM_FOLDERS = [
    "@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information", "__MACOSX", "@Recycle", "#snapshot",
]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM_FOLDERS)
def test_folders_of_the_system_are_skipped_and_counted(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "run/a.mp4", f"run/{name}/a.mp4/SYNOPHOTO_FILM_M.mp4", f"{name}/b.mp4")
    listing = find_sources(str(tmp_path))
    assert ([s.path for s in listing.sources], listing.classes) == ([b"run/a.mp4"], ("run",))
    assert listing.notes == (f"{tmp_path}: 2 system folders skipped ({name})",)
    listing = find_sources(str(tmp_path), annotations=listing_file(tmp_path, "path,label\na.mp4,3\n"))
    assert listing.unlisted == (b"run/a.mp4",)


def test_files_that_are_no_videos_by_their_suffix_are_counted_and_a_listing_takes_them(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.gif", "b/y.vob", "c/z.RMVB", "d/w.dat", "d/notes", ".hidden")
    listing = find_sources(str(tmp_path))
    assert listing.classes == ("a", "b", "c")
    assert listing.notes == (
        f"{tmp_path}: 2 files without the suffix of a video left out (1 without a suffix, 1 .dat). "
        "If some are videos in a format that builds open, a listing can name them",
    )
    for text in ("d/w.dat 1\n", "d/w.dat\n", "path\nd/w.dat\n", "d/w.dat,1\n", "d/w.dat 0 -1 1\n"):
        found = find_sources(listing_file(tmp_path, text))
        assert [s.path for s in found.sources] == [b"d/w.dat"], text


def test_a_plan_of_older_rules_counts_the_videos_that_only_an_append_takes(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.gif", "a/y.y4m", "a/z.dat", "a/v.mp4")
    for rules, newer in ((1, "2 files left out, {} (1 .gif, 1 .y4m)"), (2, "1 file left out, {} (1 .y4m)")):
        newer = newer.format("whose suffix the rules of this plan don't have")
        assert find_sources(str(tmp_path), rules=rules).notes == (
            f"{tmp_path}: {newer}. --append takes the newest suffixes",
            f"{tmp_path}: 1 file without the suffix of a video left out (1 .dat). "
            "If some are videos in a format that builds open, a listing can name them",
        )


def test_a_stem_that_ends_like_a_suffix_of_newer_rules_means_the_same_video(tmp_path: Path) -> None:
    touch(tmp_path, "v/x.mp4", "v/x.264.mp4", "v/y.266.mp4", "v/z.y4m")
    rows = listing_file(tmp_path, "path,label\nx.264,a\ny.266,b\nz.y4m,c\n", "l.csv")
    for rules in (1, 3):
        found = find_sources(str(tmp_path / "v"), annotations=rows, rules=rules)
        assert [s.path for s in found.sources] == [b"x.264.mp4", b"y.266.mp4", b"z.y4m"]


def test_a_stem_means_the_usual_container_before_a_rare_one(tmp_path: Path) -> None:
    touch(tmp_path, "v/0001.gif", "v/0001.mp4", "v/0002.gif")
    rows = listing_file(tmp_path, "path,label\n0001,a\n0002,b\n", "l.csv")
    found = find_sources(str(tmp_path / "v"), annotations=rows)
    assert [s.path for s in found.sources] == [b"0001.mp4", b"0002.gif"]


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ("0 90 180 270", ("0", "180", "270", "90")),
        ("2024 2025", ("2024", "2025")),
        ("01 1", ("01", "1")),
        ("20240101", ("20240101",)),
        ("1 2 3", ("1", "2", "3")),
        ("99999999999999999999", ("99999999999999999999",)),
        ("0 1 2", ("0", "1", "2")),
        ("00 01 02", ("0", "1", "2")),
        ("0 1 2 3 4 5 6 7 8 9 10", tuple(map(str, range(11)))),
    ],
)
def test_folders_of_digits_are_class_numbers_only_from_0_without_gaps(
    tmp_path: Path, folders: str, classes: tuple[str, ...]
) -> None:
    listing = find_sources(touch(tmp_path, *(f"{name}/{name}.mp4" for name in folders.split())))
    assert listing.classes == classes
    assert len({s.label for s in listing.sources}) == len(classes)


def test_given_classes_number_folders_of_digits_by_name_and_else_by_number(tmp_path: Path) -> None:
    folder = touch(tmp_path / "angles", "90/a.mp4", "180/b.mp4")
    angles = ("0", "180", "270", "90")
    assert found(folder, angles) == [("180/b.mp4", 1), ("90/a.mp4", 3)]
    assert found(touch(tmp_path / "part", "05/a.mp4", "2/b.mp4"), tuple("abcdef")) == [
        ("05/a.mp4", 5),
        ("2/b.mp4", 2),
    ]
    assert found(listing_file(tmp_path, "a.mp4 90\nb.mp4 180\n"), angles) == [("a.mp4", 3), ("b.mp4", 1)]
    with pytest.raises(MisuseError, match="'91' is not among"):
        found(listing_file(tmp_path, "a.mp4 91\nb.mp4 180\n"), angles)


PARTS = [b"", b".", b"..", b"...", b"a", b"f", b"g", b".mp4", b"a.", b"A.B.MOV", b"\xff", b" "]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(b"/".join)


@given(PATHS, st.sampled_from([b"/", b"/f", b"/f/g"]), st.booleans())
def test_a_path_inside_the_folder_is_relative_as_the_standard_library_says(
    path: bytes, folder: bytes, absolute: bool
) -> None:
    listed = os.path.join(folder, path) if absolute else path
    expected = os.path.relpath(os.path.join(folder, listed), folder)
    if not os.path.isabs(listed) or not expected.startswith(b".."):
        assert relative_path(listed, folder) == expected


@given(PATHS)
def test_a_suffix_is_that_of_the_standard_library_in_lower_case(path: bytes) -> None:
    assert suffix(path) == os.path.splitext(path)[1].lower()
