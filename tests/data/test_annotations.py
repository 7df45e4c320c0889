"""Annotation files as the data sets are distributed, with empty video files. Kinetics: test_kinetics.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.listings import KINETICS_HEADER, find, labels_of, touch, write
from vmae_data.errors import MisuseError
from vmae_data.sources.classes import read_classes
from vmae_data.sources.find import find_sources
from vmae_data.sources.listing import Columns, read_listing


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


def _ssv2(folder: Path) -> None:
    def item(number: str, template: str) -> dict[str, object]:
        return {
            "id": number,
            "label": template.replace("[something]", "cup"),
            "template": template,
            "placeholders": ["cup"],
        }

    train = [item("78687", "Holding [something] next to [something]"), item("42326", "Bending [something]")]
    write(folder / "something-something-v2-train.json", json.dumps(train))
    write(folder / "something-something-v2-validation.json", json.dumps([item("74225", "Bending [something]")]))
    write(folder / "something-something-v2-test.json", json.dumps([{"id": "1420"}]))
    names = {"Holding something next to something": "0", "Bending something": "1"}
    write(folder / "something-something-v2-labels.json", json.dumps(names))


def test_ssv2_numbers_come_from_the_labels_file_in_the_same_folder(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm")
    listing = find(videos, tmp_path / "labels" / "something-something-v2-train.json", "train")
    assert {s.path: s.label for s in listing.sources} == {b"78687.webm": 0, b"42326.webm": 1}
    assert listing.classes == ("Holding something next to something", "Bending something")
    assert labels_of(find(videos, tmp_path / "labels", "val")) == {"74225.webm": "Bending something"}
    assert labels_of(find(videos, tmp_path / "labels", "test")) == {"1420.webm": None}
    with pytest.raises(MisuseError, match="Splits here: test, train, val"):
        find(videos, tmp_path / "labels", "val1")


def test_videos_in_the_files_of_other_splits_are_not_unlisted(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm", "9.webm")
    for split in ("train", "val", "test"):
        assert find(videos, tmp_path / "labels", split).unlisted == (b"9.webm",)
    lists = tmp_path / "k400"
    touch(tmp_path / "clips", *(f"{name * 11}_000000_000010.mp4" for name in "abc"), "stray.mp4")
    write(lists / "train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    write(lists / "validate.csv", f"{KINETICS_HEADER}\nrun,bbbbbbbbbbb,0,10,validate\n")
    write(lists / "test.csv", "youtube_id,time_start,time_end,split\nccccccccccc,0,10,test\n")
    assert find(tmp_path / "clips", lists, "train").unlisted == (b"stray.mp4",)


@pytest.mark.parametrize(
    "broken", ["{", b"\0\1", f"{KINETICS_HEADER}\na,b\n", f"{KINETICS_HEADER}\na,bbbbbbbbbbb,inf,10,val\n", "["]
)
def test_a_broken_file_of_another_split_does_not_stop_this_one(
    tmp_path: Path, videos: Path, broken: str | bytes
) -> None:
    touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4")
    write(tmp_path / "k400/train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    write(tmp_path / "k400/val.csv", broken)
    listing = find(videos, tmp_path / "k400", "train")
    assert labels_of(listing) == {"aaaaaaaaaaa_000000_000010.mp4": "run"}
    assert listing.unlisted == (b"bbbbbbbbbbb_000000_000010.mp4",)


@pytest.mark.parametrize("text", ["", "\n\n", "[]", "path,label\n", f"{KINETICS_HEADER}\n"])
def test_a_listing_without_rows_is_an_error(tmp_path: Path, videos: Path, text: str) -> None:
    touch(videos, "a.mp4")
    path = write(tmp_path / "list.csv", text)
    with pytest.raises(MisuseError, match=r"list\.csv: has no rows\. "):
        find_sources(path)
    with pytest.raises(MisuseError, match=r"list\.csv: has no rows of --split val\. "):
        find(videos, path, "val")


def test_without_a_split_every_row_of_a_folder_is_used(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "labels")
    touch(videos, "78687.webm", "42326.webm", "74225.webm", "1420.webm", "9.webm")
    listing = find(videos, tmp_path / "labels")
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
    touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4")
    write(lists / "train.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,train\n")
    write(lists / "val.csv", f"{KINETICS_HEADER}\nrun,aaaaaaaaaaa,0,10,val\njump,bbbbbbbbbbb,0,10,val\n")
    assert labels_of(find(videos, lists)) == {
        "aaaaaaaaaaa_000000_000010.mp4": "run",
        "bbbbbbbbbbb_000000_000010.mp4": "jump",
    }
    write(lists / "val.csv", f"{KINETICS_HEADER}\nsit,aaaaaaaaaaa,0,10,val\n")
    message = r"train\.csv: gives aaaaaaaaaaa_000000_000010\.mp4 the label 'run', but val\.csv gives 'sit'"
    with pytest.raises(MisuseError, match=message):
        find(videos, lists)


def test_ssv2_names_are_sorted_without_a_labels_file_and_given_classes_go_first(tmp_path: Path, videos: Path) -> None:
    _ssv2(tmp_path / "l")
    labels = tmp_path / "l" / "something-something-v2-labels.json"
    given = read_classes(str(labels))
    assert given == ("Holding something next to something", "Bending something")
    labels.unlink()
    touch(videos, "78687.mp4")
    path = tmp_path / "l" / "something-something-v2-train.json"
    assert find(videos, path).classes == ("Bending something", "Holding something next to something")
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
        read_classes(write(tmp_path / "labels.json", '{"a": "0", "b": "2"}'))
    with pytest.raises(MisuseError, match="is not JSON of names and numbers"):
        read_classes(write(tmp_path / "labels.json", "[1]"))


@pytest.mark.parametrize("text", ["run\njump\nrun\n", "1 run\n2 jump\n3 run\n"])
def test_a_repeated_class_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(MisuseError, match=r"classes\.txt: has the class 'run' twice"):
        read_classes(write(tmp_path / "classes.txt", text))


def _ucf(folder: Path) -> None:
    write(folder / "classInd.txt", "1 ApplyEyeMakeup\r\n2 YoYo\r\n\r\n")
    write(
        folder / "trainlist01.txt",
        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\nYoYo/v_YoYo_g08_c01.avi 2\r\n",
    )
    write(folder / "testlist01.txt", "YoYo/v_YoYo_g01_c01.avi\r\n")
    write(folder / "trainlist02.txt", "YoYo/v_YoYo_g01_c01.avi 2\n")


@pytest.mark.parametrize("layout", ["{0}/{1}.avi", "{1}.avi", "UCF-101/{0}/{1}.avi", "{0}/{1}.mp4"])
def test_ucf101_is_read_in_every_layout(tmp_path: Path, videos: Path, layout: str) -> None:
    _ucf(tmp_path / "lists")
    names = [("ApplyEyeMakeup", "v_ApplyEyeMakeup_g08_c01"), ("YoYo", "v_YoYo_g08_c01"), ("YoYo", "v_YoYo_g01_c01")]
    paths = [layout.format(*name) for name in names]
    touch(videos, *paths, "Juggling/stray.avi")
    listing = find(videos, tmp_path / "lists", "train1")
    assert labels_of(listing) == {paths[0]: "ApplyEyeMakeup", paths[1]: "YoYo"}
    assert listing.classes == ("ApplyEyeMakeup", "YoYo")
    assert listing.unlisted == (b"Juggling/stray.avi",)  # the test list names the third
    assert labels_of(find(videos, tmp_path / "lists" / "testlist01.txt", "test1")) == {paths[2]: "YoYo"}


def test_ucf101_requires_a_split_and_must_agree_with_its_class_file(tmp_path: Path, videos: Path) -> None:
    _ucf(tmp_path)
    touch(videos, "x.avi")
    for split in (None, "train3", "val"):
        with pytest.raises(MisuseError, match="Splits here: test1, train1, train2"):
            find(videos, tmp_path, split)
    with pytest.raises(MisuseError, match="is the list of train1"):
        find(videos, tmp_path / "trainlist01.txt", "test1")
    write(tmp_path / "classInd.txt", "1 YoYo\n2 ApplyEyeMakeup\n")
    with pytest.raises(MisuseError, match=r"entry 1, .* contradicts classInd\.txt"):
        find(videos, tmp_path, "train1")
    assert read_classes(str(tmp_path / "classInd.txt")) == ("YoYo", "ApplyEyeMakeup")


def test_hmdb51_flags_choose_the_split_and_videos_in_neither_are_not_unlisted(tmp_path: Path, videos: Path) -> None:
    lists = tmp_path / "testTrainMulti_7030_splits"
    write(lists / "brush_hair_test_split1.txt", "#20_Rhythm_(2).avi 1 \nApril_09_brush_hair.avi 2 \nb.avi 0 \n")
    write(lists / "brush_hair_test_split2.txt", "#20_Rhythm_(2).avi 2 \n")
    write(lists / "shoot_ball_test_split1.txt", "same.avi 1 \r\ngone.avi 1 \r\n")
    write(lists / "wave_test_split1.txt", "same.avi 2 \r\n")
    touch(videos, "brush_hair/#20_Rhythm_(2).avi", "brush_hair/April_09_brush_hair.avi", "brush_hair/b.avi")
    touch(videos, "shoot_ball/same.avi", "wave/same.avi", "wave/gone.avi")
    listing = find(videos, lists, "train1")
    assert labels_of(listing) == {
        "brush_hair/#20_Rhythm_(2).avi": "brush_hair",
        "shoot_ball/same.avi": "shoot_ball",
        "shoot_ball/gone.avi": "shoot_ball",  # not the one of another class
    }
    assert listing.classes == ("brush_hair", "shoot_ball", "wave")
    assert listing.unlisted == (b"wave/gone.avi",)
    assert set(labels_of(find(videos, lists, "test2"))) == {"brush_hair/#20_Rhythm_(2).avi"}
    for split in (None, "train3", "train"):
        with pytest.raises(MisuseError, match="one of test1, test2, train1, train2"):
            find(videos, lists, split)
    with pytest.raises(MisuseError, match="Give its folder"):
        find(videos, lists / "wave_test_split1.txt", "test1")


@pytest.mark.parametrize("text", ["a b/x y.mp4 7\nz.mp4 0\n", "a b/x y.mp4 0 -1 7\nz.mp4 0 -1 0\n"])
def test_videomae_lists_of_both_versions_with_spaces_in_paths(tmp_path: Path, videos: Path, text: str) -> None:
    touch(videos, "a b/x y.mp4", "z.mp4", "more.mp4")
    listing = find(videos, write(tmp_path / "train.csv", text))
    assert {s.path: s.label for s in listing.sources} == {b"a b/x y.mp4": 7, b"z.mp4": 0}
    assert listing.unlisted == (b"more.mp4",)


def test_absolute_paths_through_a_link_are_paths_of_the_folder(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a/x.mp4")
    (tmp_path / "link").symlink_to(videos)
    listing = find(videos, write(tmp_path / "train.csv", f"{tmp_path}/link/a/x.mp4 1\n"))
    assert [s.path for s in listing.sources] == [b"a/x.mp4"]
    assert not listing.unlisted


@pytest.mark.parametrize("text", ["frames/abc 250 7\n", "frames/abc 0 250 7\n", "frames/a b 250 7\n"])
def test_lists_of_frame_folders_are_refused(tmp_path: Path, videos: Path, text: str) -> None:
    touch(videos, "x.mp4")
    with pytest.raises(MisuseError, match=r"frames/a.* with 250 frames is a folder of pictures"):
        find(videos, write(tmp_path / "train.csv", text))


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
    touch(videos, "a.mp4")
    with pytest.raises(MisuseError, match=message) as caught:
        find(videos, write(tmp_path / "list.txt", text))
    assert "list.txt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_annotations_is_an_error(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a.mp4")
    touch(tmp_path / "lists", "readme.txt")
    with pytest.raises(MisuseError, match="has no annotations of a known format"):
        find(videos, tmp_path / "lists", "train")
    with pytest.raises(MisuseError, match="SOURCE is the folder of the videos"):
        find(Path(write(tmp_path / "l.txt", "a.mp4 1\n")), tmp_path / "lists")


def test_names_without_suffix_are_found_anywhere_below_the_folder(tmp_path: Path, videos: Path) -> None:
    touch(videos, "deep/0001.mkv")
    path = write(tmp_path / "t.csv", "video_id,label\n0001,cat\n0002,dog\n")
    listing = find(videos, path, path="video_id")
    assert labels_of(listing) == {"deep/0001.mkv": "cat", "0002": "dog"}
    assert not listing.unlisted


def test_a_data_sets_own_list_can_be_the_source(tmp_path: Path) -> None:
    touch(tmp_path, "a b.mp4", "v/aaaaaaaaaaa_000000_000010.mp4")
    listing = find_sources(write(tmp_path / "list.txt", "a b.mp4 0 -1 2\n"))
    assert [(s.path, s.label) for s in listing.sources] == [(b"a b.mp4", 2)]
    listing = find_sources(write(tmp_path / "k.csv", f"{KINETICS_HEADER}\nx,aaaaaaaaaaa,0,10,train\n"))
    assert labels_of(listing) == {"v/aaaaaaaaaaa_000000_000010.mp4": "x"}


MOMENTS = "run/a.mp4,run,3,0\nclap/b c.mp4,clap,2,1\n"


def test_moments_in_time_takes_its_class_numbers_from_the_file_beside_it(tmp_path: Path, videos: Path) -> None:
    touch(videos, "run/a.mp4", "clap/b c.mp4", "clap/more.mp4")
    lists = tmp_path / "moments"
    write(lists / "trainingSet.csv", MOMENTS)
    write(lists / "validationSet.csv", "clap/more.mp4,clap,1,0\n")
    assert find(videos, lists, "train").classes == ("clap", "run")
    write(lists / "moments_categories.txt", "run,0\nsit,1\nclap,2\n")
    for path in (lists, lists / "trainingSet.csv"):
        listing = find(videos, path, "train")
        assert listing.classes == ("run", "sit", "clap")
        assert {s.path: s.label for s in listing.sources} == {b"run/a.mp4": 0, b"clap/b c.mp4": 2}
    assert find(videos, lists, "train").unlisted == ()
    assert read_classes(str(lists / "moments_categories.txt")) == ("run", "sit", "clap")
    with pytest.raises(MisuseError, match="entry 1 has 4 fields, expected 2"):
        find(videos, write(tmp_path / "times.csv", "run/a.mp4,jump,3,10\n"))


@pytest.mark.parametrize("name", ["{}.txt", "kinetics400_{}_list_videos.txt", "my-{}.list.txt"])
def test_text_files_named_after_splits_are_the_splits_of_a_folder(tmp_path: Path, videos: Path, name: str) -> None:
    touch(videos, "a.mp4", "b.mp4", "c.mp4")
    lists = tmp_path / "lists"
    write(lists / name.format("train"), "a.mp4 0\n")
    write(lists / name.format("val"), "b.mp4 1\n")
    write(lists / "classes.txt", "x\ny\n")
    train = find(videos, lists, "train")
    assert ([s.path for s in train.sources], train.unlisted) == ([b"a.mp4"], (b"c.mp4",))
    assert [s.path for s in find(videos, lists, "val").sources] == [b"b.mp4"]
    assert len(find(videos, lists).sources) == 2
    with pytest.raises(MisuseError, match="no file for --split test. Splits here: train, val"):
        find(videos, lists, "test")
    write(lists / "train.csv", "path,label\nc.mp4,0\n")  # as before: text files beside tables are notes
    assert [s.path for s in find(videos, lists, "train").sources] == [b"c.mp4"]
