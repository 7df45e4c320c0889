"""The choice of a video track, and files with further tracks or a second file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.encodes import encode, kept_frames, planes, reason, sample_of
from tools.soak.damages.clips import Bench, picture_is_right
from vmae_data.encode.container_end import joined_file
from vmae_data.encode.probe import probe_video

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(("suffix", "noise"), [(".mkv", "drop=1"), (".mp4", "amount=1"), (".nut", "amount=1")])
def test_a_track_without_frames_is_passed_over(bench: Bench, tmp_path: Path, suffix: str, noise: str) -> None:
    clip = str(bench.clip("intact.mp4"))
    path = tmp_path / f"v{suffix}"
    maps = ["-i", clip, "-i", clip, "-map", "0:v", "-map", "1:v"]
    bench.run(*maps, "-c", "copy", "-bsf:v:0", f"noise={noise}", str(path))
    sample = sample_of(path, rate=6.25)
    assert "video track 2 of 2 is used, because none before it decodes" in sample.facts.remarks
    assert picture_is_right(planes(path, sample), kept_frames(sample))
    assert reason(path, rate=6.25, rules=1) in ("undecodable", "unreadable")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".avi", ".nut"])
@pytest.mark.parametrize("codec", ["mjpeg", "png"])
def test_a_single_picture_before_the_video_is_passed_over(
    bench: Bench, tmp_path: Path, suffix: str, codec: str
) -> None:
    clip, path = bench.clip("intact.mp4"), tmp_path / f"v{suffix}"
    still = bench.clip(f"{codec}.nut", f"-c:v {codec} -pix_fmt {'yuvj420p' if codec == 'mjpeg' else 'rgb24'}", frames=1)
    maps = ["-i", str(still), "-i", str(clip), "-map", "0:v", "-map", "1:v", "-c", "copy"]
    bench.run(*maps, "-disposition:v:0", "default", "-disposition:v:1", "0", str(path))
    sample = sample_of(path, rate=6.25)
    assert "video track 2 of 2 is used, because track 1 is a single picture" in sample.facts.remarks
    assert kept_frames(sample) == list(range(0, 25, 4))
    assert picture_is_right(planes(path, sample), kept_frames(sample))
    older = encode(path, rate=6.25, rules=2)
    assert older.failure or older.samples[0].facts.source.frames == 1


def test_the_longest_track_replaces_a_single_picture(bench: Bench, tmp_path: Path) -> None:
    inputs = [bench.clip("mjpeg.nut", "-c:v mjpeg -pix_fmt yuvj420p", frames=1), bench.clip("short.mp4", frames=5)]
    inputs.append(bench.clip("intact.mp4"))
    words = [word for path in inputs for word in ("-i", str(path))]
    path = tmp_path / "v.mkv"
    bench.run(
        *words, "-map", "0:v", "-map", "1:v", "-map", "2:v", "-c", "copy", "-disposition:v:0", "default", str(path)
    )
    assert len(kept_frames(sample_of(path))) == 25


def test_two_single_pictures_are_a_video_of_the_first(bench: Bench, tmp_path: Path) -> None:
    still, path = bench.clip("mjpeg.nut", "-c:v mjpeg -pix_fmt yuvj420p", frames=1), tmp_path / "v.mkv"
    bench.run("-i", str(still), "-i", str(still), "-map", "0:v", "-map", "1:v", "-c", "copy", str(path))
    assert (probe_video(bytes(path)).track, probe_video(bytes(path)).remarks) == (0, ())


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_the_default_track_of_the_container_is_used(bench: Bench, tmp_path: Path, suffix: str) -> None:
    """mp4 calls it enabled: players show no other."""
    other, path = bench.clip("short.mp4", frames=5), tmp_path / f"v{suffix}"
    maps = ["-i", str(other), "-i", str(bench.clip("intact.mp4")), "-map", "0:v", "-map", "1:v", "-c", "copy"]
    bench.run(*maps, "-disposition:v:0", "0", "-disposition:v:1", "default", str(path))
    sample = sample_of(path)
    assert sample.facts.remarks == ("video track 2 of 2 is used, because it is the container's default",)
    assert len(kept_frames(sample)) == 25
    assert len(kept_frames(sample_of(path, rules=2))) == 5
    bench.run(*maps, "-disposition:v", "default", str(path))
    assert probe_video(bytes(path)).track == 0


_FLV = "-c:v flv -q:v 2"
_JOINED = [
    (".mp4", "", "are not read"),
    (".mp4", "-movflags +faststart", "are not read"),
    (".mov", "-c:v mjpeg -pix_fmt yuvj420p", "are not read"),
    (".mp4", "-movflags +frag_keyframe+empty_moov", "may be missing"),
    (".flv", _FLV, "are not read"),
    (".flv", f"{_FLV} -flvflags no_metadata", "are not read"),
    (".flv", f"{_FLV} -flvflags no_duration_filesize", "are not read"),
    (".wmv", "-c:v wmv2 -q:v 2", "may be missing"),
    (".wtv", "-c:v mpeg2video -q:v 2", "are not read"),
    (".ivf", "-c:v libvpx -b:v 1M", "are not read"),
    (".apng", "-c:v apng -pix_fmt rgb24", "are not read"),
    (".drc", "-c:v vc2 -pix_fmt yuv422p", "may be missing"),
    (".nut", "-bf 0", "may be missing"),
    (".rm", "-c:v rv20 -q:v 2 -s 352x288", "may be missing"),
]


@pytest.mark.parametrize(("suffix", "options", "frames"), _JOINED)
def test_a_second_file_after_the_end_of_the_first_is_told(
    bench: Bench, tmp_path: Path, suffix: str, options: str, frames: str
) -> None:
    part = bench.clip(f"joined{''.join(filter(str.isalnum, options))}{suffix}", options).read_bytes()
    path = tmp_path / f"v{suffix}"
    path.write_bytes(part)
    assert not any("second file" in remark for remark in (*probe_video(bytes(path)).remarks, joined_file(bytes(path))))
    path.write_bytes(part + part)
    told = f"a second file begins at byte {len(part)}: its frames {frames}"
    sample = sample_of(path)
    assert told in sample.facts.remarks
    assert len(kept_frames(sample)) == 25 or frames == "may be missing"
    if suffix not in (".apng", ".drc"):  # which rules 2 does not open
        assert told not in sample_of(path, rules=2).facts.remarks


@pytest.mark.parametrize("suffix", [".wmv", ".nut"])
def test_a_second_file_after_a_cut_one_is_told(bench: Bench, tmp_path: Path, suffix: str) -> None:
    whole = bench.clip(f"cut{suffix}", "-c:v wmv2 -q:v 2" if suffix == ".wmv" else "-bf 0").read_bytes()
    path = tmp_path / f"v{suffix}"
    path.write_bytes(whole[:-100] + whole)
    assert joined_file(bytes(path)) == f"a second file begins at byte {len(whole) - 100}: its frames may be missing"


@pytest.mark.parametrize("declared", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_file_may_declare_a_size_that_no_file_has(bench: Bench, tmp_path: Path, declared: int) -> None:
    data, path = bytearray(bench.clip("sized.wmv", "-c:v wmv2 -q:v 2").read_bytes()), tmp_path / "v.wmv"
    field = data.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 40
    data[field : field + 8] = declared.to_bytes(8, "little")
    path.write_bytes(data)
    assert joined_file(bytes(path)) == ""
    assert probe_video(bytes(path)).remarks == ()


def test_frames_that_an_edit_list_hides_are_told(bench: Bench, tmp_path: Path) -> None:
    """An mp4 whose first frame is stamped an hour ahead begins there: ffmpeg shows nothing before it."""
    path, plain = tmp_path / "v.mp4", bench.clip("one-group.mp4", "-bf 0 -g 100")
    bench.run("-i", str(plain), "-c", "copy", "-bsf:v", "setts=pts=if(eq(N\\,0)\\,PTS+3600/TB\\,PTS)", str(path))
    assert "its edit list hides 24 of its 25 frames" in sample_of(path).facts.remarks
    assert sample_of(plain).facts.remarks == ()
