"""Sources in the buckets of a real S3 server: the shards are those of the same local folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.buckets import Setting, send
from tests.builds import SmallBuild, digests
from tests.command import call_command
from vmae_data.errors import MisuseError
from vmae_data.format import FAILURES, INDEX
from vmae_data.read.dataset import Shards
from vmae_data.sources.classes import read_classes
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import find_sources
from vmae_data.storage import commit_bytes

pytestmark = pytest.mark.processes


def test_sources_in_a_bucket_give_the_bytes_of_the_same_folder(
    small_build: SmallBuild, s3: Setting, tmp_path: Path
) -> None:
    send(small_build.videos, s3.folder)
    small_build.build(tmp_path / "shards", str(s3.folder))
    assert digests(tmp_path / "shards") == digests(small_build.shards)


def test_names_of_a_bucket_may_hold_what_names_of_files_may(s3: Setting, tmp_path: Path) -> None:
    for name in ("a b/Käse #1 +50%25 &=.mp4", "c/日本.webm", ".hidden/x.mp4", "c/.y.mp4", "c/notes.txt", "flat.mkv"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    send(tmp_path / "videos", s3.folder)
    local, remote = find_sources(str(tmp_path / "videos")), find_sources(str(s3.folder))
    assert sorted(remote.sources) == sorted(local.sources)
    assert remote.classes == local.classes == ("a b", "c")


def test_a_listing_in_a_bucket_names_files_of_its_own_folder(
    small_build: SmallBuild, s3: Setting, tmp_path: Path
) -> None:
    videos = small_build.videos
    send(videos, s3.folder)
    names = sorted(str(path.relative_to(videos)) for path in videos.glob("*/*.mp4"))[:4]
    lines = "".join(f"{name}\t{name.partition('/')[0]}\n" for name in [*names, "gone/not-there.mp4"])
    commit_bytes(s3.folder / "list.tsv", lines.encode())
    local = tmp_path / "local"
    local.mkdir()
    for name in names:
        (local / name).parent.mkdir(exist_ok=True)
        (local / name).symlink_to(videos / name)
    (local / "list.tsv").write_text(lines)
    small_build.build(tmp_path / "of-local", local / "list.tsv")
    small_build.build(tmp_path / "of-bucket", f"{s3.folder}/list.tsv")
    assert b'"missing"' in (tmp_path / "of-bucket" / FAILURES).read_bytes()
    assert digests(tmp_path / "of-bucket") == digests(tmp_path / "of-local")


@pytest.mark.parametrize("path", ["../x.mp4", "/x.mp4", "s3://other/x.mp4", "http://host/x.mp4"])
def test_a_listing_in_a_bucket_names_nothing_elsewhere(path: str, s3: Setting) -> None:
    commit_bytes(s3.folder / "list.txt", f"{path} a\n".encode())
    with pytest.raises(MisuseError, match="is outside this folder"):
        find_sources(f"{s3.folder}/list.txt")
    commit_bytes(s3.folder / "list.txt", f"{s3.folder}/in/x.mp4 a\n".encode())
    assert [source.path for source in find_sources(f"{s3.folder}/list.txt").sources] == [b"in/x.mp4"]


def test_annotations_classes_and_exclusions_may_be_in_a_bucket(
    demo_videos: Path, demo_shards: Path, s3: Setting
) -> None:
    send(demo_shards, s3.folder)
    videos = sorted(path for path in demo_videos.glob("*/*.mp4"))[:3]
    names = [str(path.relative_to(demo_videos)) for path in videos]
    commit_bytes(s3.folder / "ann.csv", b"path,label\n" + "".join(f"{n},zoom-in\n" for n in names).encode())
    commit_bytes(s3.folder / "out.txt", f"{names[0]}\n".encode())
    classes = read_classes(str(s3.folder))
    assert classes == read_classes(f"{s3.folder}/{INDEX}") == Shards.open(str(demo_shards)).classes
    sources = find_sources(str(demo_videos), classes, annotations=f"{s3.folder}/ann.csv")
    assert {source.label for source in sources.sources} == {classes.index("zoom-in")}
    left = exclude_sources(sources, f"{s3.folder}/out.txt")
    assert (left.num_excluded, len(left.sources)) == (1, 2)


def test_a_dry_run_over_a_bucket_counts_what_is_there(small_build: SmallBuild, s3: Setting) -> None:
    send(small_build.videos, s3.folder)
    local, remote = (
        json.loads(call_command("vmae_data", "build", source, "x", *small_build.settings, "--dry-run", "--json").stdout)
        for source in (str(small_build.videos), str(s3.folder))
    )
    for name in ("videos", "missing", "bytes", "shards", "classes", "sample", "sample_failures"):
        assert local[name] == remote[name]
