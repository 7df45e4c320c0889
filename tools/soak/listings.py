"""Listings and folders as people and programs write them, each with the sources that it must give.

Tables are checked against Python's `csv`, which reads the same text. The videos are empty files: nothing is encoded.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tools.soak.faults.fault_run import Result
from vmae_data.errors import MisuseError
from vmae_data.sources.find import Listing, find_sources

__all__ = ["LISTINGS", "ListingCase", "check_listing", "check_listings"]

_NFC = "Fu\u00dfg\u00e4nger"
_NFD = unicodedata.normalize("NFD", _NFC)


class ListingCase(NamedTuple):
    """A listing, or class folders if it is empty, and the class of each path; or words of the error or note.

    Without `expected` it is a table with the columns `path` and `label`, and Python's `csv` says what it holds.
    """

    kind: str
    text: str
    expected: dict[str, object] | None = None
    words: str = ""
    files: tuple[str, ...] = ()
    separator: str = ","
    encoding: str = "utf-8"


_TABLES, _QUOTES, _DIGITS = "Tables with line breaks", "Quotes", "Folders of digits"
_SYSTEM, _SUFFIXES, _NEAR, _FORMS = "System folders", "Suffixes", "Near names", "Forms of listings"
LISTINGS: tuple[ListingCase, ...] = (
    ListingCase(_TABLES, 'path,label,caption\na.mp4,x,"one\ntwo"\nb.mp4,y,"one, two"\n'),
    ListingCase(_TABLES, 'caption,path,label\r\n"\r\n",a.mp4,x\r\n"say ""hi""\r\n\r\n",b.mp4,y\r\n'),
    ListingCase(_TABLES, 'path\tlabel\tcaption\na.mp4\tx\t"one\n\ttwo"\nb.mp4\ty\tz\n', separator="\t"),
    ListingCase(_TABLES, 'label;caption;path\n"x;y";"one\ntwo";a.mp4\nz;;b.mp4\n', separator=";"),
    ListingCase(_TABLES, 'path,label\n"a\nb.mp4","x\ny"\nc.mp4,z\n'),
    ListingCase(_TABLES, 'path\tlabel\na.mp4\t"x\nb.mp4\ty"\n', {"a.mp4": '"x', "b.mp4": 'y"'}),
    ListingCase(_TABLES, 'path\tlabel\tcaption\na.mp4\tx\t"\nb.mp4\ty\t5" disk\n', {"a.mp4": "x", "b.mp4": "y"}),
    ListingCase(_TABLES, 'path,label\na.mp4,"x\nb.mp4,y\n', words="Close every quote"),
    ListingCase(_QUOTES, '"v/a b.mkv" x\nc.webm y\n', {"v/a b.mkv": "x", "c.webm": "y"}),
    ListingCase(_QUOTES, "c.webm y\n'v/a b.mkv' x\n", {"v/a b.mkv": "x", "c.webm": "y"}),
    ListingCase(_QUOTES, '"a b.avi" 0 -1 1\n"c, d.avi" 0 -1 0\n', {"a b.avi": "1", "c, d.avi": "0"}),
    ListingCase(_QUOTES, 'path label\n"a b.mov" "x y"\nc.mov z\n', {"a b.mov": "x y", "c.mov": "z"}),
    ListingCase(_QUOTES, 'a.mp4, "x, y"\nb.mp4, z\n', {"a.mp4": "x, y", "b.mp4": "z"}),
    ListingCase(_DIGITS, "", {"-10/a.mp4": "-10", "0/b.mp4": "0", "10/c.mp4": "10"}),
    ListingCase(_DIGITS, "", {"1999/a.mp4": "1999", "2000/b.mp4": "2000"}),
    ListingCase(_DIGITS, "", {"007/a.mp4": "007", "7/b.mp4": "7"}),
    ListingCase(_DIGITS, "", {"20240101120000/a.mp4": "20240101120000"}),
    ListingCase(_DIGITS, "", {"0/a.mp4": "0", "1/b.mp4": "1"}),
    ListingCase(_DIGITS, "a.mp4 0\nb.mp4 30\n", {"a.mp4": "0", "b.mp4": "30"}, "29 of 31 class numbers have no video"),
    ListingCase(_SYSTEM, "", {"x/a.mp4": "x"}, "1 system folder", ("x/@eaDir/a.mp4/SYNOVIDEO.mp4",)),
    ListingCase(_SYSTEM, "", {"x/a.mp4": "x"}, "1 system folder", ("$Recycle.Bin/S-1-5/b.mp4",)),
    ListingCase(_SYSTEM, "", {"x/a.mp4": "x"}, "2 system folders", ("@Recycle/b.mp4", "@Recently-Snapshot/c.mp4")),
    ListingCase(_SYSTEM, "", {"x/a.mp4": "x"}, "", (".@__thumb/b.mp4", ".Trash-1000/files/c.mp4", "x/._a.mp4")),
    ListingCase(_SUFFIXES, "", {"x/a.RM": "x", "y/b.wtv": "y", "z/c.hevc": "z"}),
    ListingCase(_SUFFIXES, "", {"x/a.mp4": "x"}, "2 files without the suffix of a video", ("y/b.dat", "y/c.dat")),
    ListingCase(_SUFFIXES, "", {"x/a.mp4": "x"}, "2 files in a format that builds don't open", ("y/b.bik", "y/c.bik")),
    ListingCase(_SUFFIXES, "", {"x/a.Y4M": "x", "y/b.mjpeg": "y", "z/c.apng": "z"}),
    ListingCase(_SUFFIXES, "y/b.bik 3\n", {"y/b.bik": "3"}, "", ("y/b.bik",)),
    ListingCase(_SUFFIXES, "y/b c.bik\n", {"y/b c.bik": None}, "", ("y/b c.bik",)),
    ListingCase(_NEAR, "x/A.mp4 0\n", {"x/A.mp4": "0"}, "x/A.mp4 (file: x/a.mp4)", ("x/a.mp4",)),
    ListingCase(_NEAR, f"{_NFC}/a.mp4 0\n", {f"{_NFC}/a.mp4": "0"}, f"(file: {_NFD}/a.mp4)", (f"{_NFD}/a.mp4",)),
    ListingCase(_NEAR, f"{_NFD}.mp4 0\n", {f"{_NFD}.mp4": "0"}, f"(file: {_NFC}.mp4)", (f"{_NFC}.mp4",)),
    ListingCase(_NEAR, "", {f"{_NFC}/a.mp4": _NFC, f"{_NFD}/b.mp4": _NFD}, "differ only in case or accents"),
    ListingCase(_NEAR, "a.mp4,Run\nb.mp4,RUN\n", {"a.mp4": "Run", "b.mp4": "RUN"}, "'RUN' and 'Run' differ only"),
    ListingCase(_FORMS, "path,label\na.mp4,\u00e9\n", encoding="utf-16"),
    ListingCase(_FORMS, "a.mp4\t\u00e9\r\n", {"a.mp4": "\u00e9"}, encoding="utf-16"),
    ListingCase(_FORMS, "a.mp4 1\nb.mp4 0 2\n", {"a.mp4": (1,), "b.mp4": (0, 2)}),
    ListingCase(_FORMS, "x\\a b.mp4 1\nc.mp4 0\n", {"x/a b.mp4": "1", "c.mp4": "0"}, "", ("x/a b.mp4",)),
    ListingCase(_FORMS, '{"a.mp4": {"label": "x"}, "b.mp4": {"label": "y"}}', {"a.mp4": "x", "b.mp4": "y"}),
    ListingCase(_FORMS, "x/a.mp4,x,3,0\ny/b.mp4,y,2,1\n", {"x/a.mp4": "x", "y/b.mp4": "y"}),
    ListingCase(_FORMS, "gs://bucket/a.mp4 0\n", words="is a URL"),
    ListingCase(_FORMS, "file:///videos/a.mp4\t0\n", words="is a URL"),
    ListingCase(_FORMS, "e:\\a.mp4 0\n", words="is a path with a drive"),
    ListingCase(_FORMS, "a.mp4 30 1\nb.mp4 25 0\n", words="followed by several numbers"),
)


def check_listings(folder: Path) -> Iterator[Result]:
    for number, case in enumerate(LISTINGS):
        yield check_listing(case, folder / str(number))


def check_listing(case: ListingCase, folder: Path) -> Result:
    """Find the sources of one case in a new folder."""
    videos = () if case.text or case.expected is None else case.expected
    for name in (*case.files, *videos):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "list.txt" if case.text else folder
    if case.text:
        source.write_bytes(case.text.encode(case.encoding))
    expected = case.expected
    if expected is None and not case.words:
        rows = csv.DictReader(io.StringIO(case.text, newline=""), delimiter=case.separator)
        expected = {row["path"]: row["label"] for row in rows}
    try:
        listing = find_sources(str(source))
    except MisuseError as error:
        right = expected is None and case.words in str(error) and "\n" not in str(error)
        return _result(case, str(error), expected, right)
    found = {source.path.decode(): _label(listing, source.label) for source in listing.sources}
    right = found == expected and (any(case.words in note for note in listing.notes) if case.words else True)
    return _result(case, f"{found} {' '.join(listing.notes)}".strip(), expected, right)


def _label(listing: Listing, label: object) -> object:
    return listing.classes[label] if isinstance(label, int) else label


def _result(case: ListingCase, found: str, expected: dict[str, object] | None, right: bool) -> Result:
    name = f"{case.kind}: {case.text[:40]!r}" if case.text else f"{case.kind}: {', '.join(case.expected or ())}"
    return Result(name, found, " ".join(filter(None, [str(expected) if expected else "an error", case.words])), right)
