"""Videos that readers open differently: inference must show the pictures of ffmpeg's own decode, and open no script.

    python -m tools.soak.inference

Exit status 1 if any outcome differs.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tools.soak.build import show
from tools.soak.damages.clips import Bench
from tools.soak.damages.records import LUMA
from tools.soak.damages.table import DAMAGES
from tools.soak.faults.fault_run import Result
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.errors import DataError
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.inference.read_video import local_video, read_clip

_TOLERANCE = 6  # levels of a colour on average; readers enlarge the planes of colour differently
_SHORT_SIDE = 64
_SHOWN = (9, 11, 13, 15)  # the middle clip of 25 frames
_SOURCE = "-f lavfi -i testsrc2=s=320x240:r=25:d=1,gblur=sigma=8"


class Video(NamedTuple):
    """A file of ffmpeg's test pictures by these output options. `size` is that of the clip."""

    file: str
    options: str
    size: tuple[int, int] = (86, 64)


_HEVC = "-c:v libx265 -x265-params log-level=error:pools=1 -pix_fmt yuv420p"
_VP9 = "-c:v libvpx-vp9 -b:v 4M -cpu-used 8 -deadline realtime"
_H264 = "-c:v libx264 -crf 5 -pix_fmt yuv420p"
VIDEOS: tuple[Video, ...] = (
    Video("half.mp4", f"{_H264} -vf setsar=1/2", (64, 96)),
    Video("half.mkv", f"{_HEVC} -vf setsar=1/2", (64, 96)),
    Video("half.mov", "-c:v mpeg4 -q:v 2 -vf setsar=1/2", (64, 96)),
    Video("wide.mpg", "-c:v mpeg2video -q:v 2 -aspect 16:9", (114, 64)),
    Video("wide.webm", f"{_VP9} -vf setsar=2", (170, 64)),
    Video("wide.avi", "-c:v mpeg4 -q:v 2 -vf setsar=64/45", (122, 64)),
    Video("2024-08-20T13:28:35Z.mp4", _H264),
    Video("concat:half.mp4|half.mkv.mkv", _HEVC),
    Video("data:video,x.webm", _VP9),
    Video("pipe:0.avi", "-c:v mpeg4 -q:v 2"),
    Video("http:..half.mp4.mov", "-c:v mjpeg -q:v 2"),
    Video("-i %03d [x].ts", _H264),
    Video("turned.mp4", f"{_H264} -vf transpose=clock,setsar=1/2", (64, 170)),
    Video("full-range.mp4", f"{_H264} -vf scale=out_range=pc -color_range pc"),
    Video("bt709.mkv", f"{_H264} -vf scale=out_color_matrix=bt709 -colorspace bt709"),
    Video("bt601.mkv", f"{_H264} -vf scale=out_color_matrix=smpte170m -colorspace smpte170m"),
    Video("ten-bits.mp4", f"{_HEVC}10le"),
    Video("rgb.mkv", "-c:v ffv1 -pix_fmt gbrp"),
)  # fmt: skip
# Rows of the damages: their frames are grey.
_ROWS = re.compile(
    r"rotated by (90|180|270)|sample aspect|^crop|^size, |^matrix|^range, |interlaced|^starts |Dolby|joined"
)

_SCRIPTS = {
    "ffconcat.mp4": "ffconcat version 1.0\nfile half.mp4\n",
    "ffconcat.mkv": "ffconcat version 1.0\nfile 'half.mkv'\ninpoint 0.2\n",
    "ffconcat-without-head.mov": "file half.mp4\n",
    "playlist.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhalf.mp4\n#EXT-X-ENDLIST\n",
    "playlist.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhalf.mp4\n#EXT-X-ENDLIST\n",
    "description.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "manifest.mp4": '<?xml version="1.0"?><MPD type="static"><Period><AdaptationSet><Representation id="1" bandwidth="1">'
    "<BaseURL>half.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "graph.avi": "movie=half.mp4\n",
}  # fmt: skip


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as name:
        results = []
        for result in check_inference(Path(name)):
            show(result)
            results.append(result)
    differing = sum(not result.as_expected for result in results)
    print(f"inference: {len(results) - differing} of {len(results)} as expected")
    sys.exit(1 if differing else 0)


def check_inference(folder: Path) -> Iterator[Result]:
    bench = Bench(folder / "bench")
    for video in VIDEOS:
        path = folder / video.file
        bench.run(*_SOURCE.split(), *video.options.split(), f"file:{path}")
        yield _compared(video.file, path, _SHORT_SIDE, video.size)
    for number, damage in enumerate(DAMAGES):
        outcome = damage.expected[0]
        if _ROWS.search(damage.name) and outcome.luma == LUMA and 25 in outcome.frames:
            path = folder / f"{number}{damage.suffix}"
            damage.make(bench, path)
            yield _compared(f"{damage.group}: {damage.name}", path, 32, outcome.size)
    for file, text in _SCRIPTS.items():
        path = folder / file
        path.write_text(text)
        yield _refused(path)


def _compared(name: str, path: Path, short_side: int, size: tuple[int, int] | None) -> Result:
    """The middle clip, as `reconstruct` reads it, beside what ffmpeg's own decode of the file shows."""
    local = local_video(str(path))
    assert local is not None
    clip_THWC = read_clip(local, len(_SHOWN), ClipSpec(stride=2), short_side)
    height, width = clip_THWC.shape[1:3]
    filters = f"scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24"
    words = ["-v", "fatal", "-threads", "1", "-i", f"file:{path}", "-map", "0:V:0", "-fps_mode", "passthrough"]
    own = [find_ffmpeg().path, *words, "-vf", filters, "-f", "rawvideo", "-"]
    raw = subprocess.run(own, capture_output=True, check=True).stdout
    expected_THWC = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)[list(_SHOWN)]
    distance = float(np.abs(clip_THWC.astype(float) - expected_THWC).mean(axis=(1, 2, 3)).max())
    expected = f"{'×'.join(map(str, size or (width, height)))}, the pictures of ffmpeg's decode"
    right = distance <= _TOLERANCE and size in (None, (width, height))
    return Result(name, expected if right else f"{width}×{height}, differs by {distance:.1f} levels", expected, right)


def _refused(path: Path) -> Result:
    local, expected = local_video(str(path)), "one line names the file"
    assert local is not None
    try:
        read_clip(local, len(_SHOWN), ClipSpec(stride=2), _SHORT_SIDE)
    except DataError as error:
        words = str(error)
        return Result(path.name, words, expected, path.name in words and "\n" not in words)
    return Result(path.name, "it was opened", expected, False)


if __name__ == "__main__":
    main()
