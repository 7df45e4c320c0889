"""Listings as sources: every form of text, labels, near names."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.listings import found, listing_file, touch
from tools.soak.listings import LISTINGS, ListingCase, check_listing
from vmae_data.errors import MisuseError
from vmae_data.sources.classes import read_classes
from vmae_data.sources.find import find_sources


@pytest.mark.parametrize(
    "text",
    [
        "v/a b.mp4 3\nv/c.mp4 0\n",
        "v/a b.mp4\t3\nv/c.mp4\t0\n",
        "v/a b.mp4,3\nv/c.mp4,0\n",
        "label,path\n3,v/a b.mp4\n0,v/c.mp4\n",
        "path\tlabel\nv/a b.mp4\t3\nv/c.mp4\t0\n",
        "\ufefffilename,class\r\nv/a b.mp4,3\r\nv/c.mp4,0\r\n",
        '{"path": "v/a b.mp4", "label": 3}\n{"path": "v/c.mp4", "label": "0"}\n',
    ],
)
def test_listings_of_every_form_read_the_same(tmp_path: Path, text: str) -> None:
    assert found(listing_file(tmp_path, text)) == [("v/a b.mp4", 3), ("v/c.mp4", 0)]
    assert find_sources(listing_file(tmp_path, text)).classes == ("0", "1", "2", "3")


def test_names_as_labels_are_numbered_by_their_bytes(tmp_path: Path) -> None:
    assert found(listing_file(tmp_path, "x.mp4,zebra\ny.mp4,Ape\nz.mp4,ape\n")) == [
        ("x.mp4", 2),
        ("y.mp4", 0),
        ("z.mp4", 1),
    ]


def test_the_lines_of_a_listing_without_labels_are_paths(tmp_path: Path) -> None:
    assert found(listing_file(tmp_path, "a b.mp4\nc,d.mp4\n")) == [("a b.mp4", None), ("c,d.mp4", None)]


def test_given_classes_fix_the_numbers(tmp_path: Path) -> None:
    url = listing_file(tmp_path, "x.mp4,cat\n")
    assert found(url, ("ant", "bee", "cat")) == [("x.mp4", 2)]
    with pytest.raises(MisuseError, match="'cat' is not among"):
        find_sources(url, ("ant", "bee"))


def test_a_path_listed_twice_is_one_sample_but_two_labels_are_an_error(tmp_path: Path) -> None:
    assert found(listing_file(tmp_path, "x.mp4 1\n./x.mp4 1\n")) == [("x.mp4", 1)]
    with pytest.raises(MisuseError, match=r"x\.mp4 is listed with two labels"):
        find_sources(listing_file(tmp_path, "x.mp4 1\nx.mp4 2\n"))


def test_a_path_that_leaves_the_folder_and_returns_is_the_same_file(tmp_path: Path) -> None:
    folder = tmp_path / "l"
    folder.mkdir()
    (folder / "a.mp4").touch()
    assert found(listing_file(folder, "a.mp4 1\n../l/a.mp4 1\n../l/./x/../a.mp4 1\n")) == [("a.mp4", 1)]
    with pytest.raises(MisuseError, match=r"a\.mp4 is listed with two labels"):
        find_sources(listing_file(folder, "a.mp4 1\n../l/a.mp4 2\n"))
    (tmp_path / "rows.csv").write_text("path,label\n../l/a.mp4,1\n")
    listing = find_sources(str(folder), annotations=str(tmp_path / "rows.csv"))
    assert [source.path for source in listing.sources] == [b"a.mp4"]
    assert listing.unlisted == ()


@pytest.mark.parametrize("label", ["99999999999999", "1" * 5000, "1000000", "0000001000000", "99999999999999.0"])
def test_a_class_number_above_the_limit_is_refused_and_never_a_name(tmp_path: Path, label: str) -> None:
    with pytest.raises(MisuseError, match="class numbers end at 999999") as caught:
        find_sources(listing_file(tmp_path, f"x.mp4 3\ny.mp4 {label}\n"))
    assert len(str(caught.value)) < 200


def test_class_names_with_spaces_need_a_tab_or_a_comma(tmp_path: Path) -> None:
    message = "entry 1 has 3 fields, 'a.mp4' and the label run fast. .* tab or a comma"
    with pytest.raises(MisuseError, match=message):
        find_sources(listing_file(tmp_path, "a.mp4 run fast\nb.mp4 jump\n"))
    with pytest.raises(MisuseError, match="entry 2 has 4 fields, 'b c.mp4' and the label run very fast"):
        find_sources(listing_file(tmp_path, "a.mp4 jump\nb c.mp4 run very fast\n"))
    assert found(listing_file(tmp_path, "a b.mp4 1\nx.mp4 y/c.mp4 0\n")) == [("a b.mp4", 1), ("x.mp4 y/c.mp4", 0)]


def test_an_absolute_path_becomes_relative(tmp_path: Path) -> None:
    assert found(listing_file(tmp_path, f"{tmp_path.resolve()}/v/x.mp4 1\n")) == [("v/x.mp4", 1)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("one\n", "1 fields"),
        ("a.mp4,1,2\nb.mp4,1,2\n", "3 fields"),
        ("{\n", "entry 1"),
        (b"\0\1", "not text"),
    ],
)
def test_the_error_names_a_wrong_listing(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(MisuseError) as caught:
        find_sources(listing_file(tmp_path, text))
    assert message in str(caught.value)
    assert "list.txt" in str(caught.value)


def test_labels_may_be_empty_or_not_utf8_but_not_huge(tmp_path: Path) -> None:
    assert find_sources(listing_file(tmp_path, b"x.mp4,caf\xe9\n")).classes == ("caf\\xe9",)
    assert found(listing_file(tmp_path, "x.mp4\ta\ny.mp4\t\n")) == [("x.mp4", 0), ("y.mp4", None)]
    with pytest.raises(MisuseError, match="class numbers end at"):
        find_sources(listing_file(tmp_path, "x.mp4 100000000\n"))
    with pytest.raises(MisuseError, match="can't be read"):
        find_sources(listing_file(tmp_path, f"x.mp4,{'y' * 200_000}\n"))


def test_a_name_among_class_numbers_is_told(tmp_path: Path) -> None:
    """It makes names of all numbers: 10 comes before 2."""
    listing = find_sources(listing_file(tmp_path, "a.mp4 2\nb.mp4 10\n# test\n"))
    assert listing.classes == ("10", "2", "test")
    assert any("2 of 3 labels are numbers, but others, such as 'test', are not" in note for note in listing.notes)


@pytest.mark.parametrize("text", ["3 a.mp4\n0 b.mp4\n", "run,a.mp4\nsit,b.mp4\n", "run\ta.mp4\nsit\tb.mp4\n"])
def test_a_label_before_the_path_is_refused_unless_a_file_is_named_so(tmp_path: Path, text: str) -> None:
    file = listing_file(tmp_path, text)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(MisuseError, match=r"list\.txt: entry 1 has '(3|run)' before the path 'a\.mp4'"):
        find_sources(file)
    (tmp_path / text.splitlines()[0]).touch()
    assert find_sources(file).sources[0].path == text.splitlines()[0].encode()


def test_gaps_in_the_class_numbers_of_a_listing_are_told(tmp_path: Path) -> None:
    url = listing_file(tmp_path, "x.mp4 0\ny.mp4 9\nz.mp4 1\n")
    (note,) = find_sources(url).notes
    assert "list.txt: 7 of 10 class numbers have no video (2, 3, 4, 5, 6, …)" in note
    assert not find_sources(url, tuple("abcdefghij")).notes
    assert not find_sources(listing_file(tmp_path, "x.mp4 0\ny.mp4 1\n")).notes


NFC, NFD = "Caf\u00e9", "Cafe\u0301"


@pytest.mark.parametrize(
    ("file", "listed"),
    [
        ("c/v_HandStandPushups_g01.avi", "c/v_HandstandPushups_g01.avi"),
        (f"c/{NFD}.mp4", f"c/{NFC}.mp4"),
        (f"{NFC} 1/x.mp4", f"{NFD} 1/x.mp4"),
        ("c/x.MP4", "c/x.mp4"),
        ("c/Garcia.mp4", "c/García.mp4"),
    ],
)
def test_a_missing_path_that_nearly_matches_a_file_is_named_with_it(tmp_path: Path, file: str, listed: str) -> None:
    videos = tmp_path / "videos"
    touch(videos, file, "c/other.mp4")
    text = f"{listed}\t0\nc/other.mp4\t0\nc/gone.mp4\t0\n"
    own, beside = listing_file(videos, text), listing_file(tmp_path, text)
    for listing in (find_sources(own), find_sources(str(videos), annotations=beside)):
        (note,) = [note for note in listing.notes if "accents" in note]
        assert f"missing paths: 1, {listed} (file: {file})" in note


def test_a_missing_stem_that_nearly_matches_a_file_elsewhere_is_named_with_it(tmp_path: Path) -> None:
    videos = touch(tmp_path / "videos", "deep/v_HandStand.avi", "run/a.mp4", "walk/b.mp4")
    rows = listing_file(tmp_path, "path,label\nv_Handstand,x\nrun/b.mp4,x\n")
    (note,) = find_sources(videos, annotations=rows).notes
    assert "v_Handstand (file: deep/v_HandStand.avi)" in note
    assert "b.mp4" not in note


def test_class_names_that_nearly_match_are_told(tmp_path: Path) -> None:
    url = listing_file(tmp_path, f"x.mp4,Run\ny.mp4,run\nz.mp4,{NFC}\nw.mp4,{NFD}\n")
    notes = find_sources(url).notes
    assert len(notes) == 2
    assert "the classes 'Run' and 'run' differ only in case or accents" in notes[1]
    with pytest.raises(MisuseError, match="class 'Run' is not among .* but 'run' differs only in case or accents"):
        find_sources(url, ("run", NFC, NFD))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("text", ["path,label\na.mp4,é\n", "a.mp4\té\n", '[{"path": "a.mp4", "label": "é"}]'])
def test_listings_in_every_unicode_encoding_read_the_same(tmp_path: Path, encoding: str, text: str) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    listing = find_sources(listing_file(tmp_path, (mark + text).encode(encoding)))
    assert ([s.path for s in listing.sources], listing.classes) == ([b"a.mp4"], ("é",))
    classes = listing_file(tmp_path, (mark + "é\nb\n").encode(encoding), "classes.txt")
    assert read_classes(classes) == ("é", "b")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('v/b.mp4 0\n"v/s f/a.mp4" 3\n', {"v/b.mp4": 0, "v/s f/a.mp4": 3}),
        ('"v/s f/a.mp4" 3\nv/b.mp4 0\n', {"v/b.mp4": 0, "v/s f/a.mp4": 3}),
        ("'v/s f/a.mp4' 3\nv/b.mp4 0\n", {"v/b.mp4": 0, "v/s f/a.mp4": 3}),
        ('"v/a, b.mp4" 0\n"v/c, d.mp4" 1\n', {"v/a, b.mp4": 0, "v/c, d.mp4": 1}),
        ('"a b.mp4" 0 -1 3\nc.mp4 0 -1 1\n', {"a b.mp4": 3, "c.mp4": 1}),
        ('"a b.mp4"\nc.mp4\n', {"a b.mp4": None, "c.mp4": None}),
        ('path label\n"a b.mp4" 3\n', {"a b.mp4": 3}),
        ('a.mp4, "3"\n"b.mp4", 1\n', {"a.mp4": 3, "b.mp4": 1}),
        ('"5"" disk.mp4" 1\nb.mp4 0\n', {'5" disk.mp4': 1, "b.mp4": 0}),
        ("path;label\na b.mp4;3\n", {"a b.mp4": 3}),
        ("a b.mp4;3\nc.mp4;0\n", {"a b.mp4": 3, "c.mp4": 0}),
        ("v;1/a.mp4 3\nv;1/b.mp4 0\n", {"v;1/a.mp4": 3, "v;1/b.mp4": 0}),
        ("a.mp4 3\nb.mp4 1 5\nc d.mp4 0 2 5\n", {"a.mp4": (3,), "b.mp4": (1, 5), "c d.mp4": (0, 2, 5)}),
        ("a.mp4,3\nb.mp4,1,5\n", {"a.mp4": (3,), "b.mp4": (1, 5)}),
        ('{"a.mp4": 3, "b.mp4": 0}', {"a.mp4": 3, "b.mp4": 0}),
        ('{"a.mp4": {"label": 3, "split": "train"},\n "b.mp4": {"label": 0}}', {"a.mp4": 3, "b.mp4": 0}),
    ],
)
def test_forms_of_listings_that_people_write_are_read(tmp_path: Path, text: str, rows: dict[str, object]) -> None:
    assert dict(found(listing_file(tmp_path, text))) == rows


def test_class_names_in_quotes_may_have_spaces(tmp_path: Path) -> None:
    listing = find_sources(listing_file(tmp_path, 'a.mp4 "run fast"\n"b c.mp4" "sit"\n'))
    assert [(s.path, listing.classes[s.label]) for s in listing.sources if isinstance(s.label, int)] == [
        (b"a.mp4", "run fast"),
        (b"b c.mp4", "sit"),
    ]


def test_backslashes_separate_folders_unless_a_file_is_named_so(tmp_path: Path) -> None:
    touch(tmp_path, "v/x/a.mp4", "v\\b.mp4")
    url = listing_file(tmp_path, "v\\x\\a.mp4 0\nv\\b.mp4 1\n")
    assert [s.path for s in find_sources(url).sources] == [b"v/x/a.mp4", b"v\\b.mp4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://host/a.mp4 0\n", "https://host/a.mp4 is a URL"),
        ("path,label\ns3://bucket/v/a.mp4,0\n", "s3://bucket/v/a.mp4 is a URL"),
        ("C:\\videos\\a.mp4 0\n", "is a path with a drive or server of Windows"),
        ("D:/videos/a.mp4,0\n", "is a path with a drive or server of Windows"),
        ("\\\\nas\\videos\\a.mp4\t0\n", "is a path with a drive or server of Windows"),
        ("a.mp4, 3\nb.mp4\n", "entry 1 has ',' after 'a.mp4', but other lines have none"),
        ("b.mp4\na.mp4\trun fast\n", r"entry 2 has '\\t' after 'a.mp4', but other lines have none"),
        ("a.mp4 3 5\nb.mp4 1 2\n", "followed by several numbers. Write several labels as a list"),
        ("a.mp4 0 1 1 0\nb.mp4 1 0 0 1\n", "followed by several numbers. Write several labels as a list"),
        ('a.mp4,"run\nb.mp4,sit\n', "entry 1 can't be read .*Close every quote"),
        ("<!DOCTYPE html>\n<title>videos</title>\n", "is a web page or XML, not a listing"),
        ("a\0,b", r"is not text \(in UTF-8, or UTF-16 with a byte order mark\)"),
        ('[{"path": "v/a\\u0000.mp4", "label": 1}]', r"path b'v/a\\x00.mp4' has a NUL character"),
        (
            '{"database": {"a": {"annotations": []}}, "version": "1.3"}',
            r"no column of paths \(its columns: database, version",
        ),
        ("{" + ", ".join(f'"{"n" * 90}{n}": {{"x": 1}}' for n in range(400)) + "}", "no column of paths"),
    ],
)
def test_one_short_line_names_the_cause_of_a_listing_that_cannot_be_read(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(MisuseError, match=message) as caught:
        find_sources(listing_file(tmp_path, text))
    assert "list.txt" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


CAPTIONS = [
    "two\nlines",
    'a "quoted" word',
    "comma, tab\tand ; semicolon",
    "\n\nblank\r\nlines\n",
    "",
    '"',
    "ends with\\",
]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_tables_are_read_as_csv_reads_the_whole_text(tmp_path: Path, separator: str, quoting: int, end: str) -> None:
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter=separator, quoting=quoting, lineterminator=end)  # type: ignore[arg-type]
        writer.writerow(["path", "caption", "label"])
        writer.writerows([f"{n}.mp4", caption, f"name {n}"] for n, caption in enumerate(CAPTIONS))
    with path.open(newline="") as file:
        expected = [(row["path"], row["label"]) for row in csv.DictReader(file, delimiter=separator)]
    listing = find_sources(str(path))
    found = [(s.path.decode(), listing.classes[s.label]) for s in listing.sources if isinstance(s.label, int)]
    assert found == expected


def test_a_quoted_line_break_needs_no_header(tmp_path: Path) -> None:
    listing = find_sources(listing_file(tmp_path, 'a.mp4,"two\nlines"\nb.mp4,one\n'))
    assert listing.classes == ("one", "two\nlines")


def test_a_lone_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    text = 'path\tcaption\tlabel\na.mp4\t"Hello\tx\nb.mp4\t5" disk\t"y"\nc.mp4\tbye"\t"z\n'
    listing = find_sources(listing_file(tmp_path, text))
    assert listing.classes == ('"z', "x", "y")
    assert [s.label for s in listing.sources] == [1, 2, 0]


@pytest.mark.parametrize("case", LISTINGS, ids=lambda case: case.kind)
def test_every_listing_of_the_soak_table_gives_its_sources(tmp_path: Path, case: ListingCase) -> None:
    result = check_listing(case, tmp_path / "case")
    assert result.as_expected, result
