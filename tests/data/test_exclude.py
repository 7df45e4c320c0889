from __future__ import annotations

import csv
from pathlib import Path

import pytest

from vmae_data.errors import MisuseError
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import Listing, find_sources


@pytest.fixture
def listing(tmp_path: Path) -> Listing:
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (folder / name).touch()
    return find_sources(str(folder))


def test_the_error_about_a_file_without_any_source_names_its_first_path(listing: Listing, tmp_path: Path) -> None:
    named = tmp_path / "bad.txt"
    named.write_text("videos/c.mp4\nvideos/a.mp4\n")
    with pytest.raises(
        MisuseError,
        match=r"bad\.txt: names no source of this listing\. Its first path of 2 is videos/c\.mp4, a source's",
    ):
        exclude_sources(listing, str(named))
    (tmp_path / "bad.csv").write_text("path,exclude\nz.mp4,true\na.mp4,false\n")
    with pytest.raises(MisuseError, match=r"bad\.csv: names no source of this listing\. Its first path of 1 is z\.mp4"):
        exclude_sources(listing, str(tmp_path / "bad.csv"))


def test_a_file_may_match_in_part_or_be_empty(listing: Listing, tmp_path: Path) -> None:
    named = tmp_path / "some.txt"
    named.write_text("../videos/a.mp4\nz.mp4\n")
    remaining = exclude_sources(listing, str(named))
    assert [source.path for source in remaining.sources] == [b"b.mp4", b"c.mp4"]
    assert (remaining.num_excluded, remaining.unmatched) == (1, (b"z.mp4",))
    named.write_text("")
    assert exclude_sources(listing, str(named)).num_excluded == 0
    (tmp_path / "none.csv").write_text("path,exclude\na.mp4,false\n")
    assert exclude_sources(listing, str(tmp_path / "none.csv")).num_excluded == 0


@pytest.mark.parametrize("name", ["odd\nname.mp4", 'a "quoted" one, two.mp4', "x y.mp4"])
def test_a_csv_is_read_as_csv_reads_the_whole_text(tmp_path: Path, name: str) -> None:
    for one in (name, "b.mp4"):
        (tmp_path / "videos" / "c" / one).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / "c" / one).touch()
    found = find_sources(str(tmp_path / "videos"))
    with (tmp_path / "marked.csv").open("w", newline="", encoding="utf-16") as file:
        csv.writer(file).writerows([("path", "exclude"), (f"c/{name}", "true"), ("c/b.mp4", "false")])
    remaining = exclude_sources(found, str(tmp_path / "marked.csv"))
    assert [source.path for source in remaining.sources] == [b"c/b.mp4"]


def test_lines_may_have_quotes_and_any_unicode_encoding(listing: Listing, tmp_path: Path) -> None:
    named = tmp_path / "some.txt"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        named.write_text('"a.mp4"\nb.mp4\n', encoding)
        assert [source.path for source in exclude_sources(listing, str(named)).sources] == [b"c.mp4"]


def test_an_excluded_path_that_nearly_matches_a_source_is_told(listing: Listing, tmp_path: Path) -> None:
    named = tmp_path / "some.txt"
    named.write_text("A.mp4\nb.mp4\nz.mp4\n")
    (note,) = exclude_sources(listing, str(named)).notes
    assert note == f"{named}: A.mp4 matches no source; a.mp4 differs only in case or accents"
