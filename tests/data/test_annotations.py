"""Annotation files as the data sets are distributed, with empty video files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vmae_data.errors import MisuseError
from vmae_data.sources.classes import read_classes
from vmae_data.sources.find import Listing, find_sources
from vmae_data.sources.listing import Columns, read_listing

BOM = b"\xef\xbb\xbf"


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


def _touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def _write(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def _find(videos: Path, annotations: str | Path, split: str | None = None, **columns: object) -> Listing:
    return find_sources(str(videos), annotations=str(annotations), split=split, columns=Columns(**columns))  # type: ignore[arg-type]


def _labels(listing: Listing) -> dict[str, object]:
    """Path → the name of the class, or the label."""
    return {s.path.decode(): listing.classes[s.label] if isinstance(s.label, int) else s.label for s in listing.sources}


KINETICS_HEADER = "label,youtube_id,time_start,time_end,split"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize(
    ("header", "rest"), [(KINETICS_HEADER, ""), (KINETICS_HEADER + ",is_cc", ",0")], ids=["k600", "k400"]
)
def test_kinetics_files_are_found_flat_or_in_class_folders_or_by_their_id(
    tmp_path: Path, videos: Path, end: str, bom: bytes, header: str, rest: str
) -> None:
    _touch(
        videos, "-aB_9xYz012_000003_000013.mp4", "train/tasting beer/0b_cD-eF456_000100_000110.mkv", "x/AAAAAAAAAAA.mp4"
    )
    rows = [
        f"abseiling,-aB_9xYz012,3,13,train{rest}",
        f'"tasting beer",0b_cD-eF456,100,110,train{rest}',
        f'"shooting goal, soccer",AAAAAAAAAAA,0,10,train{rest}',
    ]
    path = _write(tmp_path / "train.csv", bom + end.join([header, *rows, ""]).encode())
    listing = _find(videos, path, "train")
    assert _labels(listing) == {
        "-aB_9xYz012_000003_000013.mp4": "abseiling",
        "train/tasting beer/0b_cD-eF456_000100_000110.mkv": "tasting beer",
        "x/AAAAAAAAAAA.mp4": "shooting goal, soccer",
    }
    assert listing.classes == ("abseiling", "shooting goal, soccer", "tasting beer")
    assert listing.unlisted == ()


def test_kinetics_split_column_chooses_rows_and_the_rest_is_not_unlisted(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4", "stray.mp4")
    text = f"{KINETICS_HEADER}\na,aaaaaaaaaaa,0,10,train\nb,bbbbbbbbbbb,0,10,validate\n"
    path = _write(tmp_path / "all.csv", text)
    assert _labels(_find(videos, path, "val")) == {"bbbbbbbbbbb_000000_000010.mp4": "b"}
    assert _find(videos, path, "train").unlisted == (b"stray.mp4",)
    assert len(_find(videos, path).sources) == 2
    with pytest.raises(MisuseError, match=r"no rows of --split test\. Its splits: train, val"):
        _find(videos, path, "test")


def test_kinetics_test_list_without_labels(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "aaaaaaaaaaa_000000_000010.mp4")
    path = _write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\naaaaaaaaaaa,0,10,test\n")
    assert _labels(_find(videos, path, "test")) == {"aaaaaaaaaaa_000000_000010.mp4": None}


def test_a_missing_kinetics_file_is_expected_in_the_folder_of_its_class(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "train/a/aaaaaaaaaaa_000000_000010.mp4")
    rows = "a,aaaaaaaaaaa,0,10,train\na,gone1gone1g,7,17,train\nb,gone2gone2g,8,18,train\n"
    listing = _find(videos, _write(tmp_path / "t.csv", f"{KINETICS_HEADER}\n{rows}"))
    assert set(_labels(listing)) == {
        "train/a/aaaaaaaaaaa_000000_000010.mp4",
        "train/a/gone1gone1g_000007_000017.mp4",
        "train/a/gone2gone2g_000008_000018.mp4",
    }
    _touch(videos, "train/c/ccccccccccc_000000_000010.mp4")
    rows += "c,ccccccccccc,0,10,train\n"
    listing = _find(videos, _write(tmp_path / "t.csv", f"{KINETICS_HEADER}\n{rows}"))
    assert {"train/a/gone1gone1g_000007_000017.mp4", "gone2gone2g_000008_000018.mp4"} < set(_labels(listing))


def test_two_files_with_one_stem_are_an_error_that_names_both(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a/aaaaaaaaaaa_000000_000010.mp4", "b/aaaaaaaaaaa_000000_000010.webm")
    path = _write(tmp_path / "t.csv", f"{KINETICS_HEADER}\na,aaaaaaaaaaa,0,10,train\n")
    with pytest.raises(
        MisuseError, match=r"both a/aaaaaaaaaaa_000000_000010\.mp4 and b/aaaaaaaaaaa_000000_000010\.webm"
    ):
        _find(videos, path)


def test_the_error_names_a_wrong_kinetics_time(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "x.mp4")
    with pytest.raises(MisuseError, match="entry 3 has .*'ten'"):
        _find(videos, _write(tmp_path / "t.csv", f"{KINETICS_HEADER}\na,b,0,10,train\na,c,0,ten,train\n"))


def _ssv2(folder: Path) -> None:
    def item(number: str, template: str) -> dict[str, object]:
        return {
            "id": number,
            "label": template.replace("[something]", "cup"),
            "template": template,
            "placeholders": ["cup"],
        }

    train = [item("78687", "Holding [something] next to [something]"), item("42326", "Bending [something]")]
    _write(folder / "something-something-v2-train.json", json.dumps(train))
    _write(folder / "something-something-v2-validation.json", json.dumps([item("74225", "Bending [something]")]))
    _write(folder / "something-something-v2-test.json", json.dumps([{"id": "1420"}]))
    names = {"Holding something next to something": "0", "Bending something": "1"}
    _write(folder / "something-something-v2-labels.json", json.dumps(names))


def test_ssv2_numbers_come_from_the_labels_file_in_the_same_folder(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    _touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm")
    listing = _find(videos, tmp_path / "labels" / "something-something-v2-train.json", "train")
    assert {s.path: s.label for s in listing.sources} == {b"78687.webm": 0, b"42326.webm": 1}
    assert listing.classes == ("Holding something next to something", "Bending something")
    assert _labels(_find(videos, tmp_path / "labels", "val")) == {"74225.webm": "Bending something"}
    assert _labels(_find(videos, tmp_path / "labels", "test")) == {"1420.webm": None}
    with pytest.raises(MisuseError, match="Splits here: test, train, val"):
        _find(videos, tmp_path / "labels", "val1")


def test_videos_in_the_files_of_other_splits_are_not_unlisted(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    _touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm", "9.webm")
    for split in ("train", "val", "test"):
        assert _find(videos, tmp_path / "labels", split).unlisted == (b"9.webm",)
    lists = tmp_path / "k400"
    _touch(tmp_path / "clips", *(f"{name * 11}_000000_000010.mp4" for name in "abc"), "stray.mp4")
    _write(lists / "train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    _write(lists / "validate.csv", f"{KINETICS_HEADER}\nrun,bbbbbbbbbbb,0,10,validate\n")
    _write(lists / "test.csv", "youtube_id,time_start,time_end,split\nccccccccccc,0,10,test\n")
    assert _find(tmp_path / "clips", lists, "train").unlisted == (b"stray.mp4",)


@pytest.mark.parametrize(
    "broken", ["{", b"\0\1", f"{KINETICS_HEADER}\na,b\n", f"{KINETICS_HEADER}\na,bbbbbbbbbbb,inf,10,val\n", "["]
)
def test_a_broken_file_of_another_split_does_not_stop_this_one(
    tmp_path: Path, videos: Path, broken: str | bytes
) -> None:
    _touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4")
    _write(tmp_path / "k400/train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    _write(tmp_path / "k400/val.csv", broken)
    listing = _find(videos, tmp_path / "k400", "train")
    assert _labels(listing) == {"aaaaaaaaaaa_000000_000010.mp4": "run"}
    assert listing.unlisted == (b"bbbbbbbbbbb_000000_000010.mp4",)


@pytest.mark.parametrize("text", ["", "\n\n", "[]", "path,label\n", f"{KINETICS_HEADER}\n"])
def test_a_listing_without_rows_is_an_error(tmp_path: Path, videos: Path, text: str) -> None:
    _touch(videos, "a.mp4")
    path = _write(tmp_path / "list.csv", text)
    with pytest.raises(MisuseError, match=r"list\.csv: has no rows\. "):
        find_sources(path)
    with pytest.raises(MisuseError, match=r"list\.csv: has no rows of --split val\. "):
        _find(videos, path, "val")


def test_without_a_split_every_row_of_a_folder_is_used(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    _touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm", "9.webm")
    listing = _find(videos, tmp_path / "labels")
    assert {s.path: s.label for s in listing.sources} == {
        b"78687.webm": 0,
        b"42326.webm": 1,
        b"74225.webm": 1,
        b"1420.webm": None,
    }
    assert listing.classes == ("Holding something next to something", "Bending something")
    assert listing.unlisted == (b"9.webm",)


def test_two_files_of_a_folder_may_not_contradict_each_other(tmp_path: Path, videos: Path) -> None:
    lists = tmp_path / "k400"
    _touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4")
    _write(lists / "train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    _write(lists / "val.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,val\njump,bbbbbbbbbbb,0,10,val\n")
    assert _labels(_find(videos, lists)) == {
        "aaaaaaaaaaa_000000_000010.mp4": "run",
        "bbbbbbbbbbb_000000_000010.mp4": "jump",
    }
    _write(lists / "val.csv", f"{KINETICS_HEADER}\nsit,aaaaaaaaaaa,0,10,val\n")
    message = r"train\.csv: gives aaaaaaaaaaa_000000_000010\.mp4 the label 'run', but val\.csv gives 'sit'"
    with pytest.raises(MisuseError, match=message):
        _find(videos, lists)


@pytest.mark.parametrize("odd", ["nan", "NaN", "inf", "-Infinity"])
@pytest.mark.parametrize("others", [("0.5", "1.25"), ("3", "0")])
def test_nan_and_infinity_are_refused_among_numbers(
    tmp_path: Path, videos: Path, odd: str, others: tuple[str, str]
) -> None:
    _touch(videos, "a.mp4", "b.mp4", "c.mp4")
    labels = [others[0], odd, others[1]]
    rows = "".join(f"{name}.mp4,{label}\n" for name, label in zip("abc", labels, strict=True))
    table = pa.table({"path": ["a.mp4", "b.mp4", "c.mp4"], "label": [float(label) for label in labels]})
    pq.write_table(table, tmp_path / "t.parquet")
    for url in (_write(tmp_path / "t.csv", f"path,label\n{rows}"), str(tmp_path / "t.parquet")):
        with pytest.raises(MisuseError, match=r"b\.mp4 has the label .*but the other labels are numbers"):
            _find(videos, url)


def test_nan_among_names_is_a_name(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4", "b.mp4")
    assert _find(videos, _write(tmp_path / "t.csv", "path,label\na.mp4,nan\nb.mp4,naan\n")).classes == ("naan", "nan")


def test_ssv2_names_are_sorted_without_a_labels_file_and_given_classes_go_first(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "l")
    labels = tmp_path / "l" / "something-something-v2-labels.json"
    given = read_classes(str(labels))
    assert given == ("Holding something next to something", "Bending something")
    labels.unlink()
    _touch(videos, "78687.mp4")
    path = tmp_path / "l" / "something-something-v2-train.json"
    assert _find(videos, path).classes == ("Bending something", "Holding something next to something")
    listing = find_sources(str(videos), given, annotations=str(path))
    assert {s.path: s.label for s in listing.sources} == {b"78687.mp4": 0, b"42326.mp4": 1}


def test_classes_and_records_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    for name, data in (("names.txt", b"caf\xe9\nrun\n"), ("labels.json", b'{"caf\xe9": "0"}')):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(MisuseError, match=name):
            read_classes(str(tmp_path / name))
    for data in (b'{"path": "a.mp4", "label": "caf\xe9"}', b'[{"path": "a.mp4", "label": "caf\xe9"}]'):
        (tmp_path / "rows.json").write_bytes(data)
        with pytest.raises(MisuseError, match="rows.json"):
            read_listing(tmp_path / "rows.json", Columns())


def test_numbers_of_a_labels_file_must_be_without_gaps(tmp_path: Path) -> None:
    with pytest.raises(MisuseError, match="2 class numbers are not 0 to 1"):
        read_classes(_write(tmp_path / "labels.json", '{"a": "0", "b": "2"}'))
    with pytest.raises(MisuseError, match="is not JSON of names and numbers"):
        read_classes(_write(tmp_path / "labels.json", "[1]"))


@pytest.mark.parametrize("text", ["run\njump\nrun\n", "1 run\n2 jump\n3 run\n"])
def test_a_repeated_class_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MisuseError, match=r"classes\.txt: has the class 'run' twice"):
        read_classes(_write(tmp_path / "classes.txt", text))


def _ucf(folder: Path) -> None:
    _write(folder / "classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n\r\n")
    _write(
        folder / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c01.avi 2\r\n",
    )
    _write(folder / "testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\r\n")
    _write(folder / "trainlist02.txt", "YoYo/v_YoYo_g01_c01.avi 2\n")


@pytest.mark.parametrize("layout", ["{0}/{1}.avi", "{1}.avi", "UCF-101/{0}/{1}.avi", "{0}/{1}.mp4"])
def test_ucf101_is_read_in_every_layout(tmp_path: Path, videos: Path, layout: str) -> None:
    _ucf(tmp_path / "lists")
    names = [("ApplyEyeMakeup", "v_ApplyEyeMakeup_g08_c01"), ("YoYo", "v_YoYo_g08_c01"), ("YoYo", "v_YoYo_g01_c01")]
    paths = [layout.format(*name) for name in names]
    _touch(videos, *paths, "Juggling/stray.avi")
    listing = _find(videos, tmp_path / "lists", "train1")
    assert _labels(listing) == {paths[0]: "ApplyEyeMakeup", paths[1]: "YoYo"}
    assert listing.classes == ("ApplyEyeMakeup", "YoYo")
    assert listing.unlisted == (b"Juggling/stray.avi",)  # the test list names the third
    assert _labels(_find(videos, tmp_path / "lists" / "testlist01.txt", "test1")) == {paths[2]: "YoYo"}


def test_ucf101_requires_a_split_and_must_agree_with_its_class_file(tmp_path: Path, videos: Path) -> None:
    _ucf(tmp_path)
    _touch(videos, "x.avi")
    for split in (None, "train3", "val"):
        with pytest.raises(MisuseError, match="Splits here: test1, train1, train2"):
            _find(videos, tmp_path, split)
    with pytest.raises(MisuseError, match="is the list of train1"):
        _find(videos, tmp_path / "trainlist01.txt", "test1")
    _write(tmp_path / "classInd.txt", "1 YoYo\n2 ApplyEyeMakeup\n")
    with pytest.raises(MisuseError, match=r"entry 1, .* contradicts classInd\.txt"):
        _find(videos, tmp_path, "train1")
    assert read_classes(str(tmp_path / "classInd.txt")) == ("YoYo", "ApplyEyeMakeup")


def test_hmdb51_flags_choose_the_split_and_videos_in_neither_are_not_unlisted(tmp_path: Path, videos: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    _write(lists / "brush_hair_test_split1.txt", "#20_Rhythm_(2).avi 1 \nApril_09_brush_hair.avi 2 \nb.avi 0 \n")
    _write(lists / "brush_hair_test_split2.txt", "#20_Rhythm_(2).avi 2 \n")
    _write(lists / "shoot_ball_test_split1.txt", "same.avi 1 \r\ngone.avi 1 \r\n")
    _write(lists / "wave_test_split1.txt", "same.avi 2 \r\n")
    _touch(videos, "brush_hair/#20_Rhythm_(2).avi", "brush_hair/April_09_brush_hair.avi", "brush_hair/b.avi")
    _touch(videos, "shoot_ball/same.avi", "wave/same.avi", "wave/gone.avi")
    listing = _find(videos, lists, "train1")
    assert _labels(listing) == {
        "brush_hair/#20_Rhythm_(2).avi": "brush_hair",
        "shoot_ball/same.avi": "shoot_ball",
        "shoot_ball/gone.avi": "shoot_ball",  # not the one of another class
    }
    assert listing.classes == ("brush_hair", "shoot_ball", "wave")
    assert listing.unlisted == (b"wave/gone.avi",)
    assert set(_labels(_find(videos, lists, "test2"))) == {"brush_hair/#20_Rhythm_(2).avi"}
    for split in (None, "train3", "train"):
        with pytest.raises(MisuseError, match="one of test1, test2, train1, train2"):
            _find(videos, lists, split)
    with pytest.raises(MisuseError, match="Give its folder"):
        _find(videos, lists / "wave_test_split1.txt", "test1")


@pytest.mark.parametrize("text", ["a b/x y.mp4 7\nz.mp4 0\n", "a b/x y.mp4 0 -1 7\nz.mp4 0 -1 0\n"])
def test_videomae_lists_of_both_versions_with_spaces_in_paths(tmp_path: Path, videos: Path, text: str) -> None:
    _touch(videos, "a b/x y.mp4", "z.mp4", "more.mp4")
    listing = _find(videos, _write(tmp_path / "train.csv", text))
    assert {s.path: s.label for s in listing.sources} == {b"a b/x y.mp4": 7, b"z.mp4": 0}
    assert listing.unlisted == (b"more.mp4",)


def test_absolute_paths_through_a_link_are_paths_of_the_folder(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a/x.mp4")
    (tmp_path / "link").symlink_to(videos)
    listing = _find(videos, _write(tmp_path / "train.csv", f"{tmp_path}/link/a/x.mp4 1\n"))
    assert [s.path for s in listing.sources] == [b"a/x.mp4"]
    assert not listing.unlisted


@pytest.mark.parametrize("text", ["frames/abc 250 7\n", "frames/abc 0 250 7\n", "frames/a b 250 7\n"])
def test_lists_of_frame_folders_are_refused(tmp_path: Path, videos: Path, text: str) -> None:
    _touch(videos, "x.mp4")
    with pytest.raises(MisuseError, match=r"frames/a.* with 250 frames is a folder of pictures"):
        _find(videos, _write(tmp_path / "train.csv", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("what is this\n", "first line, 'what is this', names no video. Known formats: Kinetics CSV"),
        (
            "clip_id,speed,angle\n1,2,3\n",
            r"3 fields.*'clip_id,speed,angle'.*Known formats: Kinetics CSV.*columns\.path",
        ),
        ("clip,name\na.mp4,cat\n", r"'clip,name', names no video.*--set columns\.path"),
        ('[{"clip": "a.mp4"}]', r"no column of paths \(its columns: clip\)"),
        ("[1, 2]", "not a JSON array of objects.*Known formats"),
        ('{"path": 5}\n', "entry 1 has 5 for a path"),
        ('{"path": "a.mp4", "label": true}\n', "entry 1 has True for a label"),
        ('{"path": "a.mp4", "label": ["b", null]}\n', "entry 1 has None for a label"),
        ("path,path\na,b\n", "names a column twice"),
        ("path,label\na.mp4,b\nc.mp4\n", "entry 3 has 1 fields, expected 2"),
        ("a.mp4 0 -1 3\nb.mp4 4\n", "entry 2 is .*as in the first line"),
        ("a.mp4,1\nb.mp4,-1\n", "label -1: class numbers start at 0"),
        (b"PAR1 and no more", "can't be read as Parquet"),
    ],
)
def test_an_error_about_a_listing_names_the_file_and_its_wrong_line(
    tmp_path: Path, videos: Path, text: str | bytes, message: str
) -> None:
    _touch(videos, "a.mp4")
    with pytest.raises(MisuseError, match=message) as caught:
        _find(videos, _write(tmp_path / "list.txt", text))
    assert "list.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_annotations_is_an_error(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4")
    _touch(tmp_path / "lists", "readme.txt")
    with pytest.raises(MisuseError, match="has no annotations of a known format"):
        _find(videos, tmp_path / "lists", "train")
    with pytest.raises(MisuseError, match="SOURCE is the folder of the videos"):
        _find(Path(_write(tmp_path / "l.txt", "a.mp4 1\n")), tmp_path / "lists")


def _tables(folder: Path, rows: Sequence[tuple[str, object]], path: str, label: str) -> list[str]:
    """The same rows as CSV, TSV, JSON lines, a JSON array and Parquet."""
    cells = [(p, json.dumps(v) if isinstance(v, list) else "" if v is None else str(v)) for p, v in rows]
    quoted = "\n".join('{},"{}"'.format(p, v.replace('"', '""')) for p, v in cells)
    objects = [{path: p, label: v} for p, v in rows]
    table = pa.table({path: [p for p, _ in rows], label: [v for _, v in rows], "video_bytes": [b"\0" * 9] * len(rows)})
    pq.write_table(table, folder / "t.parquet")
    return [
        _write(folder / "t.csv", f"{path},{label}\r\n{quoted}\r\n"),
        _write(folder / "t.tsv", f"{path}\t{label}\n" + "\n".join(f"{p}\t{v}" for p, v in cells)),
        _write(folder / "t.jsonl", "\n".join(json.dumps(one) for one in objects)),
        _write(folder / "t.json", BOM + json.dumps(objects).encode()),
        str(folder / "t.parquet"),
    ]


@pytest.mark.parametrize(
    ("labels", "classes", "numbers"),
    [
        (["b b", "a", None], ("a", "b b"), [1, 0, None]),
        ([2, 0, None], ("0", "1", "2"), [2, 0, None]),
        ([["b b", "a"], ["a"], None], ("a", "b b"), [(0, 1), (0,), None]),
        ([[2, 0, 2], [], None], ("0", "1", "2"), [(0, 2), (), None]),
        ([0.5, -3.0, None], (), [(0.5,), (-3.0,), None]),
        ([[0.5, 1.0], [2.0, -1.5], None], (), [(0.5, 1.0), (2.0, -1.5), None]),
    ],
    ids=["names", "numbers", "several names", "several numbers", "a value", "values"],
)
def test_every_kind_of_label_reads_the_same_from_every_table(
    tmp_path: Path, videos: Path, labels: list[object], classes: tuple[str, ...], numbers: list[object]
) -> None:
    names = ["x y.mp4", "b.mp4", "c.mp4"]
    _touch(videos, *names)
    for url in _tables(tmp_path, list(zip(names, labels, strict=True)), "Clip", "Shows"):
        listing = _find(videos, url, path="clip", label="shows")
        assert listing.classes == classes, url
        assert [s.label for s in listing.sources] == numbers, url


def test_class_numbers_that_a_column_with_gaps_made_floats_stay_class_numbers(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4", "b.mp4", "c.mp4")
    _touch(videos, "run/a.mp4")
    listing = _find(videos, _write(tmp_path / "t.csv", "path,label\na.mp4,3.0\nb.mp4,0.0\nc.mp4,\n"))
    assert [s.label for s in listing.sources] == [3, 0, None]


def test_several_columns_make_one_label(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4", "b.mp4", "c.mp4")
    path = _write(tmp_path / "t.csv", "path,valence,arousal\na.mp4,0.5,1\nb.mp4,-1,0\nc.mp4,,\n")
    assert [s.label for s in _find(videos, path, label=("valence", "arousal")).sources] == [(0.5, 1.0), (-1, 0), None]
    with pytest.raises(MisuseError, match="entry 3 has b'' for a label"):
        _find(
            videos,
            _write(tmp_path / "t.csv", "path,valence,arousal\na.mp4,0.5,1\nb.mp4,-1,\n"),
            label=("valence", "arousal"),
        )


def test_a_named_column_must_exist(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4")
    path = _write(tmp_path / "t.csv", "clip,what\na.mp4,b\n")
    assert _labels(_find(videos, path, path="clip")) == {"a.mp4": None}
    with pytest.raises(MisuseError, match=r"columns\.label = wat: no such column\. Its columns: clip, what"):
        _find(videos, path, path="clip", label="wat")
    with pytest.raises(MisuseError, match="has no column 'clips'. Its first line is 'clip,what'"):
        _find(videos, path, path="clips")


def test_names_without_suffix_are_found_anywhere_below_the_folder(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "deep/0001.mkv")
    path = _write(tmp_path / "t.csv", "video_id,label\n0001,cat\n0002,dog\n")
    listing = _find(videos, path, path="video_id")
    assert _labels(listing) == {"deep/0001.mkv": "cat", "0002": "dog"}
    assert not listing.unlisted


def test_contradictory_labels_and_unequal_numbers_of_values_are_errors(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4", "b.mp4")
    with pytest.raises(MisuseError, match=r'two labels, .*as a list, \["a", "b"\]'):
        _find(videos, _write(tmp_path / "t.csv", "path,label\na.mp4,cat\na.mp4,dog\n"))
    with pytest.raises(MisuseError, match=r"a\.mp4 has 2 values, b\.mp4 has 1"):
        _find(videos, _write(tmp_path / "t.jsonl", '{"path":"a.mp4","label":[1.5,2]}\n{"path":"b.mp4","label":0.1}\n'))
    with pytest.raises(MisuseError, match="values, not classes. Remove --classes"):
        find_sources(str(videos), ("x",), annotations=_write(tmp_path / "t.csv", "path,label\na.mp4,0.5\n"))


def test_given_classes_number_several_labels(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "a.mp4")
    path = _write(tmp_path / "t.jsonl", '{"path": "a.mp4", "label": ["run", "jump"]}\n')
    assert find_sources(str(videos), ("jump", "sit", "run"), annotations=path).sources[0].label == (0, 2)
    with pytest.raises(MisuseError, match="class 'jump' is not among the 1 given"):
        find_sources(str(videos), ("run",), annotations=path)


def test_class_folders_with_decimal_names_keep_their_names(videos: Path) -> None:
    _touch(videos, "0.5/a.mp4", "1.5/b.mp4")
    assert find_sources(str(videos)).classes == ("0.5", "1.5")


def test_a_data_sets_own_list_can_be_the_source(tmp_path: Path) -> None:
    _touch(tmp_path, "a b.mp4", "v/aaaaaaaaaaa_000000_000010.mp4")
    listing = find_sources(_write(tmp_path / "list.txt", "a b.mp4 0 -1 2\n"))
    assert [(s.path, s.label) for s in listing.sources] == [(b"a b.mp4", 2)]
    listing = find_sources(_write(tmp_path / "k.csv", f"{KINETICS_HEADER}\nx,aaaaaaaaaaa,0,10,train\n"))
    assert _labels(listing) == {"v/aaaaaaaaaaa_000000_000010.mp4": "x"}


MOMENTS = "run/a.mp4,run,3,0\nclap/b c.mp4,clap,2,1\n"


def test_moments_in_time_takes_its_class_numbers_from_the_file_beside_it(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "run/a.mp4", "clap/b c.mp4", "clap/more.mp4")
    lists = tmp_path / "moments"
    _write(lists / "trainingSet.csv", MOMENTS)
    _write(lists / "validationSet.csv", "clap/more.mp4,clap,1,0\n")
    assert _find(videos, lists, "train").classes == ("clap", "run")
    _write(lists / "moments_categories.txt", "run,0\nsit,1\nclap,2\n")
    for path in (lists, lists / "trainingSet.csv"):
        listing = _find(videos, path, "train")
        assert listing.classes == ("run", "sit", "clap")
        assert {s.path: s.label for s in listing.sources} == {b"run/a.mp4": 0, b"clap/b c.mp4": 2}
    assert _find(videos, lists, "train").unlisted == ()
    assert read_classes(str(lists / "moments_categories.txt")) == ("run", "sit", "clap")
    with pytest.raises(MisuseError, match="entry 1 has 4 fields, expected 2"):
        _find(videos, _write(tmp_path / "times.csv", "run/a.mp4,jump,3,10\n"))


@pytest.mark.parametrize("text", ["{0}\n{1}\n", "{0} 1\n{1} 0\n", "path,label\n{0},1\n{1},0\n"])
def test_a_bare_kinetics_id_means_its_only_clip(tmp_path: Path, videos: Path, text: str) -> None:
    ids = "-aB_9xYz012", "gone_______"
    _touch(videos, f"x/{ids[0]}_000003_000013.mp4", "stray.mp4")
    listing = _find(videos, _write(tmp_path / "ids.txt", text.format(*ids)))
    assert [s.path.decode() for s in listing.sources] == [f"x/{ids[0]}_000003_000013.mp4", ids[1]]
    _touch(videos, f"y/{ids[0]}_000020_000030.mp4")
    with pytest.raises(MisuseError, match=f"{ids[0]} matches both x/{ids[0]}_000003_000013.mp4 and y/"):
        _find(videos, _write(tmp_path / "ids.txt", text.format(*ids)))


def test_a_kinetics_row_never_means_another_clip_of_its_video(tmp_path: Path, videos: Path) -> None:
    _touch(videos, "aaaaaaaaaaa_000020_000030.mp4")
    listing = _find(videos, _write(tmp_path / "k.csv", f"{KINETICS_HEADER}\nx,aaaaaaaaaaa,0,10,train\n"))
    assert [s.path for s in listing.sources] == [b"aaaaaaaaaaa_000000_000010.mp4"]


@pytest.mark.parametrize("indent", [None, 2])
def test_kinetics_json_reads_as_its_csv(tmp_path: Path, videos: Path, indent: int | None) -> None:
    rows = [("dance", "-aB_9xYz012", 3, 13, "training"), ("run", "AAAAAAAAAAA", 0.0, 10.0, "validate")]
    _touch(videos, "dance/-aB_9xYz012_000003_000013.mp4", "AAAAAAAAAAA.mp4")
    entries = {
        video: {
            "annotations": {"label": label, "segment": [start, end]},
            "duration": 10.0,
            "subset": split,
            "url": f"https://www.youtube.com/watch?v={video}",
        }
        for label, video, start, end, split in rows
    }
    lines = [",".join(map(str, row)) for row in rows]
    table = _write(tmp_path / "k.csv", "\n".join([KINETICS_HEADER, *lines]))
    path = _write(tmp_path / "k.json", json.dumps(entries, indent=indent))
    for split in (None, "train", "val"):
        assert _find(videos, path, split) == _find(videos, table, split)
    for name, text in (("train.csv", Path(table)), ("train.json", Path(path))):
        _write(tmp_path / "both" / name, text.read_text())
    assert _find(videos, tmp_path / "both", "train") == _find(videos, table, "train")
    entries["BBBBBBBBBBB"] = {"annotations": {"label": "run"}, "subset": "training"}
    with pytest.raises(MisuseError, match="has b'BBBBBBBBBBB', b'', b'' for youtube_id, time_start and time_end"):
        _find(videos, _write(tmp_path / "k.json", json.dumps(entries)))
    _write(tmp_path / "both" / "train.csv", f"{KINETICS_HEADER}\nx,AAAAAAAAAAA,0,10,train\n")
    with pytest.raises(MisuseError, match="train.csv and train.json for --split train"):
        _find(videos, tmp_path / "both", "train")


@pytest.mark.parametrize("name", ["{}.txt", "kinetics400_{}_list_videos.txt", "my-{}.list.txt"])
def test_text_files_named_after_splits_are_the_splits_of_a_folder(tmp_path: Path, videos: Path, name: str) -> None:
    _touch(videos, "a.mp4", "b.mp4", "c.mp4")
    lists = tmp_path / "lists"
    _write(lists / name.format("train"), "a.mp4 0\n")
    _write(lists / name.format("val"), "b.mp4 1\n")
    _write(lists / "classes.txt", "x\ny\n")
    train = _find(videos, lists, "train")
    assert ([s.path for s in train.sources], train.unlisted) == ([b"a.mp4"], (b"c.mp4",))
    assert [s.path for s in _find(videos, lists, "val").sources] == [b"b.mp4"]
    assert len(_find(videos, lists).sources) == 2
    with pytest.raises(MisuseError, match="no file for --split test. Splits here: train, val"):
        _find(videos, lists, "test")
    _write(lists / "train.csv", "path,label\nc.mp4,0\n")  # as before: text files beside tables are notes
    assert [s.path for s in _find(videos, lists, "train").sources] == [b"c.mp4"]


def test_a_python_list_in_a_cell_is_several_labels(videos: Path, tmp_path: Path) -> None:
    _touch(videos, "run/a.mp4")
    listing = _find(videos, _write(tmp_path / "t.csv", "path,label\nrun/a.mp4,\"['run', 'jump']\"\n"))
    assert set(listing.classes) == {"run", "jump"}


def test_a_video_that_a_json_object_names_twice_is_refused(videos: Path, tmp_path: Path) -> None:
    _touch(videos, "run/a.mp4")
    with pytest.raises(MisuseError, match="names 'run/a.mp4' twice"):
        _find(videos, _write(tmp_path / "t.json", '{"run/a.mp4": "run", "run/a.mp4": "jump"}'))
