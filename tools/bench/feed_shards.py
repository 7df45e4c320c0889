"""What one CPU core needs for the clips of shards: by this project's reader, and by FFmpeg alone. For `feed`."""

from __future__ import annotations

import itertools
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from tools.bench.sources import run_ffmpeg
from vmae_data import decode
from vmae_data.decode import choose_packets, decode_frames
from vmae_data.format import Packets
from vmae_data.mp4 import check_claims, packet_table
from vmae_data.processes import KEPT_BY_WORKERS, keep_freed_memory
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher
from vmae_data.read.shared_buffers import BufferLayout, SharedBuffers
from vmae_data.read.stream import ClipFrames, ClipRequest, DataPart, Decoder
from vmae_data.read.table import SampleView
from vmae_data.rng import Rng

__all__ = [
    "AT_KEY_FRAMES",
    "BARE",
    "BY_DEMUXER",
    "FRAMES",
    "OURS",
    "Measured",
    "ShardReader",
    "measure_ffmpeg",
    "timed",
]

OURS, BY_DEMUXER, BARE = "vmae-shard", "vmae-shard, by FFmpeg's demuxer", "FFmpeg alone"
AT_KEY_FRAMES = "vmae-shard, starts at key frames only"
FRAMES = 16
# Frames from the key frame before a random start to the clip's end, and those that wait for their order.
FRAMES_BY_DEMUXER = 23.5


class Measured(msgspec.Struct):
    """One measurement. A rate is clips per CPU second; fields that a reader does not measure are empty."""

    rate: float
    milliseconds: list[float] = []  # of a clip: 50th, 95th and 99th percentile
    decoded: float = 0.0  # frames decoded for a clip, on average
    shares: dict[str, float] = {}  # of the CPU time, by stage


def timed(clips: Iterator[object], seconds: float) -> list[float]:
    """CPU seconds of each clip but the first."""
    next(clips)
    spent: list[float] = []
    while sum(spent) < seconds or not spent:
        started_at = time.process_time()
        next(clips)
        spent.append(time.process_time() - started_at)
    return spent


class ShardReader:
    """What a decode worker does: read a range, check its checksum, decode it into a shared buffer.

    BY_DEMUXER reads as the first version did: FFmpeg's demuxer finds the packets, freed memory goes to the system.
    """

    def __init__(self, folder: str, reader: str, seed: int) -> None:
        self.shards = Shards.open(folder)
        self.gop = len(self._packets(0).pts) if len(self._packets(0).keys) < 2 else self._packets(0).keys[1]
        height, width = (int(side) for side in self.shards.size_N2.max(axis=0))
        self.buffers = SharedBuffers(1, BufferLayout(1, FRAMES, height, width))
        self.decoder = Decoder([DataPart(self.shards.url, self.shards.digest, 0, self._choose)], self.buffers)
        self.reader, self.rng = reader, random.Random(seed)
        self.chosen: list[tuple[int, tuple[int, ...]]] = []
        if reader == BY_DEMUXER:
            decode.packet_table = lambda data: None
        else:
            keep_freed_memory(KEPT_BY_WORKERS)

    def _packets(self, number: int) -> Packets:
        table = packet_table(self.shards.sample(number).data)
        assert table is not None
        return table.packets

    def _choose(self, view: SampleView, _: Rng) -> ClipFrames:
        step = self.gop if self.reader == AT_KEY_FRAMES else 1
        start = self.rng.randrange(0, view.frames - FRAMES + 1, step)
        frames = tuple(range(start, start + FRAMES))
        self.chosen.append((view.number, frames))
        return ClipFrames(frames, np.arange(FRAMES)[None])

    def measure(self, seconds: float) -> Measured:
        spent = timed(self._clips(), seconds)
        del self.chosen[: -len(spent)]
        percentiles = [float(np.percentile(spent, q)) * 1000 for q in (50, 95, 99)]
        if self.reader == BY_DEMUXER:
            return Measured(1 / float(np.mean(spent)), percentiles)
        decoded = float(np.mean([self._decoded(*clip) for clip in self.chosen[:100]]))
        return Measured(1 / float(np.mean(spent)), percentiles, decoded, self._shares(float(np.mean(spent))))

    def _clips(self) -> Iterator[None]:
        for number in itertools.count():
            [clip] = self.decoder.fill(0, [ClipRequest(0, number % len(self.shards), 0, 0)]).clips
            if clip.error:
                raise SystemExit(str(clip.error))
            yield

    def _decoded(self, number: int, frames: tuple[int, ...]) -> int:
        """How many frames of a clip the decoder decodes: it skips those that no other needs and nobody wants."""
        data, packets = self.shards.sample(number).data, self._packets(number)
        choices = choose_packets(packets, frames)
        return sum(choice.wanted or is_reference(data, packets.positions[choice.packet]) for choice in choices)

    def _shares(self, whole: float) -> dict[str, float]:
        """Parts of the CPU time of a clip, which takes `whole` seconds: each stage alone, over the same clips."""
        fetcher, clips = Fetcher(self.shards), self.chosen[:100]
        members = []
        started_at = time.process_time()
        for number, _ in clips:
            members.append(fetcher.fetch(number))
        fetched_at = time.process_time()
        for data in members:
            check_claims(data, "")
            packet_table(data)
        parsed_at = time.process_time()
        for data, (number, frames) in zip(members, clips, strict=True):
            for _ in decode_frames(data, frames, "", self.shards.frame_size(number)):
                pass
        decoded_at = time.process_time()
        fetcher.close()
        parse = parsed_at - fetched_at
        stages = {
            "range and checksum": fetched_at - started_at,
            "packet table": parse,
            "decode": decoded_at - parsed_at - parse,
        }
        shares = {name: cost / len(clips) / whole for name, cost in stages.items()}
        return {**shares, "copy and the rest": 1 - sum(shares.values())}


def is_reference(data: bytes, position: int) -> bool:
    """Whether other frames may need the H.264 frame of the packet at `position`."""
    while True:
        kind = data[position + 4] & 31
        if kind in (1, 5):  # a slice
            return bool(data[position + 4] >> 5 & 3)
        position += 4 + int.from_bytes(data[position : position + 4])


def measure_ffmpeg(folder: str, seconds: float) -> Measured:
    """Frames per CPU second of `ffmpeg -f null` on looped members, divided by 23.5, the frames that a clip costs."""
    shards = Shards.open(folder)
    frames, spent, loops = 0, 0.0, 40
    with tempfile.TemporaryDirectory() as name:
        for number in itertools.cycle(range(len(shards))):
            if spent > seconds:
                break
            path = Path(name) / f"{number}.mp4"
            path.write_bytes(shards.sample(number).data)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            run_ffmpeg("-threads", 1, "-stream_loop", loops - 1, "-i", path, "-f", "null", "-")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent += after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
            frames += loops * shards.view(number).frames
    return Measured(frames / spent / FRAMES_BY_DEMUXER)
