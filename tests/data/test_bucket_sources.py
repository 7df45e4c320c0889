"""Sources in the buckets of a real S3 server: the shards are those of the same folder on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.buckets import SETTINGS, Setting, build, digests, send
from tests.command import run_command
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.format import FAILURES, INDEX
from vmae_data.read.dataset import Shards
from vmae_data.sources.classes import read_classes
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import find_sources
from vmae_data.storage import (
    commit_bytes,
)


def test_sources_in_a_bucket_give_the_bytes_of_the_same_folder(
    demo_videos: Path, demo_shards: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    send(demo_videos, s3.folder)
    build(str(s3.folder), tmp_path / "shards", demo_spec)
    assert digests(tmp_path / "shards") == digests(demo_shards)


def test_names_of_a_bucket_may_hold_what_names_of_files_may(s3: Setting, tmp_path: Path) -> None:
    for name in ("a b/Käse #1 +50%25 &=.mp4", "c/日本.webm", ".hidden/x.mp4", "c/.y.mp4", "c/notes.txt", "flat.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    send(tmp_path / "videos", s3.folder)
    here, there = find_sources(str(tmp_path / "videos")), find_sources(str(s3.folder))
    assert sorted(there.sources) == sorted(here.sources)
    assert there.classes == here.classes == ("a b", "c")


def test_a_listing_in_a_bucket_names_what_lies_beside_it(
    demo_videos: Path, demo_spec: BuildSpec, s3: Setting, tmp_path: Path
) -> None:
    send(demo_videos, s3.folder)
    names = sorted(str(path.relative_to(demo_videos)) for path in demo_videos.glob("*/*.mp4"))[:4]
    lines = "".join(f"{name}\t{name.partition('/')[0]}\n" for name in [*names, "gone/not-there.mp4"])
    commit_bytes(s3.folder / "list.tsv", lines.encode())
    local = tmp_path / "local"
    local.mkdir()
    for name in names:
        (local / name).parent.mkdir(exist_ok=True)
        (local / name).symlink_to(demo_videos / name)
    (local / "list.tsv").write_text(lines)
    build(local / "list.tsv", tmp_path / "of-local", demo_spec)
    build(f"{s3.folder}/list.tsv", tmp_path / "of-bucket", demo_spec)
    assert b'"missing"' in (tmp_path / "of-bucket" / FAILURES).read_bytes()
    assert digests(tmp_path / "of-bucket") == digests(tmp_path / "of-local")


@pytest.mark.parametrize("path", ["../x.mp4", "/x.mp4", "s3://other/x.mp4", "http://host/x.mp4"])
def test_a_listing_in_a_bucket_names_nothing_elsewhere(path: str, s3: Setting) -> None:
    commit_bytes(s3.folder / "list.txt", f"{path} a\n".encode())
    with pytest.raises(MisuseError, match="is outside this folder"):
        find_sources(f"{s3.folder}/list.txt")
    commit_bytes(s3.folder / "list.txt", f"{s3.folder}/in/x.mp4 a\n".encode())
    assert [source.path for source in find_sources(f"{s3.folder}/list.txt").sources] == [b"in/x.mp4"]


def test_annotations_classes_and_exclusions_may_lie_in_a_bucket(
    demo_videos: Path, demo_shards: Path, s3: Setting
) -> None:
    send(demo_shards, s3.folder)
    videos = sorted(path for path in demo_videos.glob("*/*.mp4"))[:3]
    names = [str(path.relative_to(demo_videos)) for path in videos]
    commit_bytes(s3.folder / "ann.csv", b"path,label\n" + "".join(f"{n},zoom-in\n" for n in names).encode())
    commit_bytes(s3.folder / "out.txt", f"{names[0]}\n".encode())
    classes = read_classes(str(s3.folder))
    assert classes == read_classes(f"{s3.folder}/{INDEX}") == Shards.open(str(demo_shards)).classes
    found = find_sources(str(demo_videos), classes, annotations=f"{s3.folder}/ann.csv")
    assert {source.label for source in found.sources} == {classes.index("zoom-in")}
    left = exclude_sources(found, f"{s3.folder}/out.txt")
    assert (left.num_excluded, len(left.sources)) == (1, 2)


def test_a_dry_run_over_a_bucket_counts_what_is_there(demo_videos: Path, s3: Setting) -> None:
    send(demo_videos, s3.folder)
    told = [
        json.loads(run_command("vmae_data", "build", source, "x", *SETTINGS, "--dry-run", "--json").stdout)
        for source in (str(demo_videos), str(s3.folder))
    ]
    for name in ("videos", "missing", "bytes", "shards", "classes", "sample", "sample_failures"):
        assert told[0][name] == told[1][name]
