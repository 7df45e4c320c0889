from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmae_data.errors import MisuseError
from vmae_data.sources.find import find_sources


def _listing(tmp_path: Path, text: str | bytes, name: str = "list.txt") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def _found(url: str, classes: tuple[str, ...] = ()) -> list[tuple[str, int | None]]:
    return [
        (source.path.decode("utf-8", "backslashreplace"), source.label) for source in find_sources(url, classes).sources
    ]


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


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    with open(folder + b"/x\n'\"-.mp4", "w"):
        pass
    listing = find_sources(str(tmp_path))
    assert listing.sources[0].path == b"caf\xe9/x\n'\"-.mp4"
    assert listing.classes == ("caf\\xe9",)


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
    assert _found(_listing(tmp_path, text)) == [("v/a b.mp4", 3), ("v/c.mp4", 0)]
    assert find_sources(_listing(tmp_path, text)).classes == ("0", "1", "2", "3")


def test_names_as_labels_are_numbered_by_their_bytes(tmp_path: Path) -> None:
    assert _found(_listing(tmp_path, "x.mp4,zebra\ny.mp4,Ape\nz.mp4,ape\n")) == [
        ("x.mp4", 2),
        ("y.mp4", 0),
        ("z.mp4", 1),
    ]


def test_the_lines_of_a_listing_without_labels_are_paths(tmp_path: Path) -> None:
    assert _found(_listing(tmp_path, "a b.mp4\nc,d.mp4\n")) == [("a b.mp4", None), ("c,d.mp4", None)]


def test_given_classes_fix_the_numbers(tmp_path: Path) -> None:
    url = _listing(tmp_path, "x.mp4,cat\n")
    assert _found(url, ("ant", "bee", "cat")) == [("x.mp4", 2)]
    with pytest.raises(MisuseError, match="'cat' is not among"):
        find_sources(url, ("ant", "bee"))


def test_a_path_listed_twice_is_one_sample_but_two_labels_are_an_error(tmp_path: Path) -> None:
    assert _found(_listing(tmp_path, "x.mp4 1\n./x.mp4 1\n")) == [("x.mp4", 1)]
    with pytest.raises(MisuseError, match=r"x\.mp4 is listed with two labels"):
        find_sources(_listing(tmp_path, "x.mp4 1\nx.mp4 2\n"))


def test_a_path_that_leaves_the_folder_and_returns_is_the_same_file(tmp_path: Path) -> None:
    folder = tmp_path / "l"
    folder.mkdir()
    (folder / "a.mp4").touch()
    assert _found(_listing(folder, "a.mp4 1\n../l/a.mp4 1\n../l/./x/../a.mp4 1\n")) == [("a.mp4", 1)]
    with pytest.raises(MisuseError, match=r"a\.mp4 is listed with two labels"):
        find_sources(_listing(folder, "a.mp4 1\n../l/a.mp4 2\n"))
    (tmp_path / "rows.csv").write_text("path,label\n../l/a.mp4,1\n")
    listing = find_sources(str(folder), annotations=str(tmp_path / "rows.csv"))
    assert [source.path for source in listing.sources] == [b"a.mp4"]
    assert listing.unlisted == ()


@pytest.mark.parametrize("label", ["99999999999999", "1" * 5000, "1000000", "0000001000000", "99999999999999.0"])
def test_a_class_number_above_the_limit_is_refused_and_never_a_name(tmp_path: Path, label: str) -> None:
    with pytest.raises(MisuseError, match="class numbers end at 999999") as caught:
        find_sources(_listing(tmp_path, f"x.mp4 3\ny.mp4 {label}\n"))
    assert len(str(caught.value)) < 200


def test_class_names_with_spaces_need_a_tab_or_a_comma(tmp_path: Path) -> None:
    message = "entry 1 has 3 fields, 'a.mp4' and the label run fast. .* tab or a comma"
    with pytest.raises(MisuseError, match=message):
        find_sources(_listing(tmp_path, "a.mp4 run fast\nb.mp4 jump\n"))
    with pytest.raises(MisuseError, match="entry 2 has 4 fields, 'b c.mp4' and the label run very fast"):
        find_sources(_listing(tmp_path, "a.mp4 jump\nb c.mp4 run very fast\n"))
    assert _found(_listing(tmp_path, "a b.mp4 1\nx.mp4 y/c.mp4 0\n")) == [("a b.mp4", 1), ("x.mp4 y/c.mp4", 0)]


def test_an_absolute_path_becomes_relative(tmp_path: Path) -> None:
    assert _found(_listing(tmp_path, f"{tmp_path.resolve()}/v/x.mp4 1\n")) == [("v/x.mp4", 1)]


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
        find_sources(_listing(tmp_path, text))
    assert message in str(caught.value)
    assert "list.txt" in str(caught.value)


def test_a_wrong_path_and_a_single_video_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="neither a folder"):
        find_sources(str(tmp_path / "nothing"))
    (tmp_path / "v.mp4").touch()
    with pytest.raises(MisuseError, match="a single video"):
        find_sources(str(tmp_path / "v.mp4"))
    with pytest.raises(MisuseError, match="unknown scheme"):
        find_sources("ftp://host/videos")


def test_labels_may_be_empty_or_not_utf8_but_not_huge(tmp_path: Path) -> None:
    assert find_sources(_listing(tmp_path, b"x.mp4,caf\xe9\n")).classes == ("caf\\xe9",)
    assert _found(_listing(tmp_path, "x.mp4\ta\ny.mp4\t\n")) == [("x.mp4", 0), ("y.mp4", None)]
    with pytest.raises(MisuseError, match="class numbers end at"):
        find_sources(_listing(tmp_path, "x.mp4 100000000\n"))
    with pytest.raises(MisuseError, match="can't be read"):
        find_sources(_listing(tmp_path, f"x.mp4,{'y' * 200_000}\n"))


def test_an_unreadable_folder_is_an_error_and_not_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    scandir = os.scandir

    def forbidding(path: bytes) -> object:  # root can read every folder, and runs the tests in a container
        if os.fsencode(path).endswith(b"/a"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    with pytest.raises(MisuseError, match="/a: can't be read"):
        find_sources(str(tmp_path))
