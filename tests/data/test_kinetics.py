"""Kinetics' annotations in all their forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.listings import BOM, KINETICS_HEADER, find, labels_of, touch, write
from vmae_data.errors import MisuseError


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return tmp_path / "videos"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", BOM])
@pytest.mark.parametrize(
    ("header", "rest"), [(KINETICS_HEADER, ""), (KINETICS_HEADER + ",is_cc", ",0")], ids=["k600", "k400"]
)
def test_kinetics_files_are_found_flat_or_in_class_folders_or_by_their_id(
    tmp_path: Path, videos: Path, end: str, bom: bytes, header: str, rest: str
) -> None:
    touch(
        videos, "-aB_9xYz012_000003_000013.mp4", "train/tasting beer/0b_cD-eF456_000100_000110.mkv", "x/AAAAAAAAAAA.mp4"
    )
    rows = [
        f"abseiling,-aB_9xYz012,3,13,train{rest}",
        f'"tasting beer",0b_cD-eF456,100,110,train{rest}',
        f'"shooting goal, soccer",AAAAAAAAAAA,0,10,train{rest}',
    ]
    path = write(tmp_path / "train.csv", bom + end.join([header, *rows, ""]).encode())
    listing = find(videos, path, "train")
    assert labels_of(listing) == {
        "-aB_9xYz012_000003_000013.mp4": "abseiling",
        "train/tasting beer/0b_cD-eF456_000100_000110.mkv": "tasting beer",
        "x/AAAAAAAAAAA.mp4": "shooting goal, soccer",
    }
    assert listing.classes == ("abseiling", "shooting goal, soccer", "tasting beer")
    assert listing.unlisted == ()


def test_kinetics_split_column_chooses_rows_and_the_rest_is_not_unlisted(tmp_path: Path, videos: Path) -> None:
    touch(videos, "aaaaaaaaaaa_000000_000010.mp4", "bbbbbbbbbbb_000000_000010.mp4", "stray.mp4")
    text = f"{KINETICS_HEADER}\na,aaaaaaaaaaa,0,10,train\nb,bbbbbbbbbbb,0,10,validate\n"
    path = write(tmp_path / "all.csv", text)
    assert labels_of(find(videos, path, "val")) == {"bbbbbbbbbbb_000000_000010.mp4": "b"}
    assert find(videos, path, "train").unlisted == (b"stray.mp4",)
    assert len(find(videos, path).sources) == 2
    with pytest.raises(MisuseError, match=r"no rows of --split test\. Its splits: train, val"):
        find(videos, path, "test")


def test_kinetics_test_list_without_labels(tmp_path: Path, videos: Path) -> None:
    touch(videos, "aaaaaaaaaaa_000000_000010.mp4")
    path = write(tmp_path / "test.csv", "youtube_id,time_start,time_end,split\naaaaaaaaaaa,0,10,test\n")
    assert labels_of(find(videos, path, "test")) == {"aaaaaaaaaaa_000000_000010.mp4": None}


def test_a_missing_kinetics_file_is_expected_in_the_folder_of_its_class(tmp_path: Path, videos: Path) -> None:
    touch(videos, "train/a/aaaaaaaaaaa_000000_000010.mp4")
    rows = "a,aaaaaaaaaaa,0,10,train\na,gone1gone1g,7,17,train\nb,gone2gone2g,8,18,train\n"
    listing = find(videos, write(tmp_path / "t.csv", f"{KINETICS_HEADER}\n{rows}"))
    assert set(labels_of(listing)) == {
        "train/a/aaaaaaaaaaa_000000_000010.mp4",
        "train/a/gone1gone1g_000007_000017.mp4",
        "train/a/gone2gone2g_000008_000018.mp4",
    }
    touch(videos, "train/c/ccccccccccc_000000_000010.mp4")
    rows += "c,ccccccccccc,0,10,train\n"
    listing = find(videos, write(tmp_path / "t.csv", f"{KINETICS_HEADER}\n{rows}"))
    assert {"train/a/gone1gone1g_000007_000017.mp4", "gone2gone2g_000008_000018.mp4"} < set(labels_of(listing))


def test_two_files_with_one_stem_are_an_error_that_names_both(tmp_path: Path, videos: Path) -> None:
    touch(videos, "a/aaaaaaaaaaa_000000_000010.mp4", "b/aaaaaaaaaaa_000000_000010.webm")
    path = write(tmp_path / "t.csv", f"{KINETICS_HEADER}\na,aaaaaaaaaaa,0,10,train\n")
    with pytest.raises(
        MisuseError, match=r"both a/aaaaaaaaaaa_000000_000010\.mp4 and b/aaaaaaaaaaa_000000_000010\.webm"
    ):
        find(videos, path)


def test_the_error_names_a_wrong_kinetics_time(tmp_path: Path, videos: Path) -> None:
    touch(videos, "x.mp4")
    with pytest.raises(MisuseError, match="entry 3 has .*'ten'"):
        find(videos, write(tmp_path / "t.csv", f"{KINETICS_HEADER}\na,b,0,10,train\na,c,0,ten,train\n"))


@pytest.mark.parametrize("text", ["{0}\n{1}\n", "{0} 1\n{1} 0\n", "path,label\n{0},1\n{1},0\n"])
def test_a_bare_kinetics_id_means_its_only_clip(tmp_path: Path, videos: Path, text: str) -> None:
    ids = "-aB_9xYz012", "gone_______"
    touch(videos, f"x/{ids[0]}_000003_000013.mp4", "stray.mp4")
    listing = find(videos, write(tmp_path / "ids.txt", text.format(*ids)))
    assert [s.path.decode() for s in listing.sources] == [f"x/{ids[0]}_000003_000013.mp4", ids[1]]
    touch(videos, f"y/{ids[0]}_000020_000030.mp4")
    with pytest.raises(MisuseError, match=f"{ids[0]} matches both x/{ids[0]}_000003_000013.mp4 and y/"):
        find(videos, write(tmp_path / "ids.txt", text.format(*ids)))


def test_a_kinetics_row_never_means_another_clip_of_its_video(tmp_path: Path, videos: Path) -> None:
    touch(videos, "aaaaaaaaaaa_000020_000030.mp4")
    listing = find(videos, write(tmp_path / "k.csv", f"{KINETICS_HEADER}\nx,aaaaaaaaaaa,0,10,train\n"))
    assert [s.path for s in listing.sources] == [b"aaaaaaaaaaa_000000_000010.mp4"]


@pytest.mark.parametrize("indent", [None, 2])
def test_kinetics_json_reads_as_its_csv(tmp_path: Path, videos: Path, indent: int | None) -> None:
    rows = [("dance", "-aB_9xYz012", 3, 13, "training"), ("run", "AAAAAAAAAAA", 0.0, 10.0, "validate")]
    touch(videos, "dance/-aB_9xYz012_000003_000013.mp4", "AAAAAAAAAAA.mp4")
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
    table = write(tmp_path / "k.csv", "\n".join([KINETICS_HEADER, *lines]))
    path = write(tmp_path / "k.json", json.dumps(entries, indent=indent))
    for split in (None, "train", "val"):
        assert find(videos, path, split) == find(videos, table, split)
    for name, text in (("train.csv", Path(table)), ("train.json", Path(path))):
        write(tmp_path / "both" / name, text.read_text())
    assert find(videos, tmp_path / "both", "train") == find(videos, table, "train")
    entries["BBBBBBBBBBB"] = {"annotations": {"label": "run"}, "subset": "training"}
    with pytest.raises(MisuseError, match="has b'BBBBBBBBBBB', b'', b'' for youtube_id, time_start and time_end"):
        find(videos, write(tmp_path / "k.json", json.dumps(entries)))
    write(tmp_path / "both" / "train.csv", f"{KINETICS_HEADER}\nx,AAAAAAAAAAA,0,10,train\n")
    with pytest.raises(MisuseError, match="train.csv and train.json for --split train"):
        find(videos, tmp_path / "both", "train")
