"""A run of ffmpeg and what the source declares → nothing, or the reason why the source fails."""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from vmae_data.encode.build_spec import Thinning
from vmae_data.encode.ffmpeg import FfmpegRun, silence_seconds
from vmae_data.encode.packets import packet_duration, packet_ends, packet_times, time_jumps
from vmae_data.encode.probe import MACHINE_FAULTS, MAX_PIXELS, VideoInfo
from vmae_data.encode.times import frame_times, time_remarks, time_stamps
from vmae_data.errors import SourceError, VmaeError

__all__ = [
    "check_output_size",
    "check_result",
    "decoded_seconds",
    "place_of_change",
    "refuse_machine_fault",
    "source_remarks",
    "ticks_in_gaps",
]

TRUNCATED_BELOW = 0.9  # of the declared duration
DAMAGED_ABOVE = 0.1  # of the frames, lost anywhere
SLOWER_BELOW = 0.99  # of the requested rate: containers round times, Matroska to a thousandth of a second
_CLAIMED_SIZE = re.compile(r"Picture size (\d+)x(\d+) (?:exceeds specified max pixel count|is invalid)")
_FULL_DISK = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT), os.strerror(errno.EFBIG))
# At the end of a message: a name of a file may hold the same words.
_MACHINE_FAULT = re.compile(
    rf"pthread_create\(\) failed: |[:(] ?({'|'.join(re.escape(os.strerror(number)) for number in MACHINE_FAULTS)})\)?$"
)


def check_result(
    run: FfmpegRun,
    info: VideoInfo,
    source: bytes,
    *,
    thinning: Thinning,
    keep_truncated: bool,
    may_change: bool,
    staging: Path,
) -> None:
    """Raise SourceError if the source is damaged. ffmpeg exits with 0 on damaged files: frames and times decide.

    `may_change`: whether the pictures may change their size midway. Raises VmaeError for a fault of this machine, such
    as a full disk.
    """
    if run.stalled:
        raise SourceError("stalled", f"ffmpeg decoded nothing for {silence_seconds():g} s and was killed")
    refuse_machine_fault(run, staging)
    if run.status < 0:
        raise SourceError("killed", f"ffmpeg ended by signal {-run.status}, twice")
    if run.changed_at is not None and not may_change:
        place = place_of_change(run, info, thinning)
        raise SourceError("size-changes", f"the picture's size changes {place}; encode it with one size")
    if not run.pts:
        check_output_size(run)
        raise SourceError("undecodable", run.error_text())
    if run.status != 0:
        raise SourceError("ffmpeg-failed", run.error_text())
    base = info.time_base
    # ffmpeg prints six decimals.
    if not math.isclose(run.ticks_per_second, base.den / base.num, rel_tol=1e-5, abs_tol=1e-6 * (info.rules >= 2)):
        raise SourceError(
            "encode-mismatch",
            f"ffmpeg counts {run.ticks_per_second:g} ticks per second, but PyAV has the time base {base.num}/{base.den}; "
            "encode the video again",
        )
    if not keep_truncated:
        _check_end(run, info, source)
        if run.messages:
            _check_losses(run, info, source)


def place_of_change(run: FfmpegRun, info: VideoInfo, thinning: Thinning) -> str:
    """Where the pictures change their size. Only kept frames reach the scaler, which reports it."""
    frame = run.changed_at
    if frame is None or info.rules < 3 or thinning.stride == 1 or run.restarted_at is not None:
        return f"at frame {frame}"
    if thinning.stride and thinning.longest_seconds is None:
        return f"between frames {frame - thinning.stride} and {frame}"
    return f"at or before frame {frame}"


def refuse_machine_fault(run: FfmpegRun, staging: Path) -> None:
    """Raise VmaeError if ffmpeg met a fault of this machine. Nothing is recorded, and the same build can resume later."""
    faults = [(message, fault[1]) for message in run.messages if (fault := _MACHINE_FAULT.search(message))]
    if run.status == -signal.SIGXFSZ or any(error in _FULL_DISK for _, error in faults):
        raise VmaeError(f"{staging}: no space left on the disk. Free some, then run the same command again")
    for message, _ in faults:
        raise VmaeError(f"ffmpeg failed on this machine ({message}). Mend that, then run the same command again")


def check_output_size(run: FfmpegRun) -> None:
    """Raise `too-large` if no frame was decoded because ffmpeg refused one above MAX_PIXELS."""
    for message in run.messages:
        size = _CLAIMED_SIZE.search(message)
        if size and int(size[1]) * int(size[2]) > MAX_PIXELS:
            raise SourceError("too-large", f"{size[1]} × {size[2]} pixels; the maximum is {MAX_PIXELS} (8192 × 8192)")


def _check_end(run: FfmpegRun, info: VideoInfo, source: bytes) -> None:
    """The last decoded frame must end at 90 % of the declared duration or later; of declared frames, 90 % must decode.

    If it ends there, but too many of the first frames are missing, the source is damaged, not truncated.
    """
    if len(run.pts) < TRUNCATED_BELOW * info.declared_frames:
        detail = f"{len(run.pts)} of the {info.declared_frames} frames that it declares decode{_messages(run)}"
        raise SourceError("truncated", detail)
    if info.duration is None:
        return
    seconds = decoded_seconds(run, info, 1 / float(info.frame_rate))
    if seconds < TRUNCATED_BELOW * info.duration:
        # The last frame may last long, as in screen recordings. Only its packet states that.
        seconds = decoded_seconds(run, info, packet_duration(source, info.track, run.pts[-1]))
    if TRUNCATED_BELOW * info.duration <= seconds <= info.duration / TRUNCATED_BELOW:
        return  # they agree; to explain a duration, all packets are read
    wanted = TRUNCATED_BELOW * _explained_duration(info, source)
    if seconds < wanted:
        lost = _lost_start(run, info)
        if seconds + lost >= wanted:
            _check_losses(run, info, source)
            raise SourceError("damaged", f"no frames for its first {lost:.2f} s{_messages(run)}")
        detail = f"its {len(run.pts)} frames last {seconds:.2f} of {info.duration:.2f} s{_messages(run)}"
        raise SourceError("truncated", detail)


def _messages(run: FfmpegRun) -> str:
    return f" ({run.error_text()})" if run.messages else ""


def _explained_duration(info: VideoInfo, source: bytes) -> float:
    """The video's duration. If the declared one is that of a longer track, such as audio, it is that of its packets.

    Jumps of the time stamps that ffmpeg does not follow are no part of it.
    """
    assert info.duration is not None
    if info.rules >= 3 and (seconds := time_jumps(source, info).seconds) is not None:
        return seconds
    if info.rules >= 2 and info.duration_of_all:
        video, others = packet_ends(source, info.track)
        if others >= TRUNCATED_BELOW * info.duration:
            return video
    return info.duration


def decoded_seconds(run: FfmpegRun, info: VideoInfo, last_frame: float = 0) -> float:
    """The duration from the first frame, or from time 0 if the video begins later: containers declare either.

    Containers count by the largest time stamp, also if it is far off.
    """
    span = max(max(times) - min(times) for times in (frame_times(run, info), time_stamps(run, info)))
    return span * info.time_base.num / info.time_base.den + last_frame + max(0.0, info.start)


def _lost_start(run: FfmpegRun, info: VideoInfo) -> float:
    """Seconds from the first packet, whose time ffmpeg counts from the container's start, to the first decoded frame."""
    if info.rules < 3 or info.begins is None:
        return 0.0
    first = min(*frame_times(run, info), *time_stamps(run, info))
    return max(0.0, first * info.time_base.num / info.time_base.den - info.begins)


def _check_losses(run: FfmpegRun, info: VideoInfo, source: bytes) -> None:
    """A file may be damaged in its middle or at its start. Then frames are missing, and ffmpeg mostly reports errors."""
    packets = packet_times(source, info.track)
    lost = _num_lost_packets(packets, sorted(time_stamps(run, info)), info) if packets else 0
    if lost > DAMAGED_ABOVE * len(packets):
        raise SourceError("damaged", f"{lost} of {len(packets)} frames don't decode{_messages(run)}")
    times, tick = sorted(frame_times(run, info)), info.time_base.num / info.time_base.den
    gaps, span = ticks_in_gaps(times) * tick, (times[-1] - times[0]) * tick
    if gaps > DAMAGED_ABOVE * span:
        raise SourceError("damaged", f"no frames for {gaps:.2f} of {span:.2f} s{_messages(run)}")


def _num_lost_packets(packets: Sequence[int], times: Sequence[int], info: VideoInfo) -> int:
    """The number of packets without a decoded frame.

    Compares times, not counts: the two fields of a frame may be two packets, and some packets are never displayed.
    """
    tolerance = float(info.frame_ticks * 3 / 4)

    def num_lost(shift: int) -> int:
        def is_lost(time: int) -> bool:
            after = bisect_left(times, time)
            return all(abs(time - neighbour) > tolerance for neighbour in times[max(0, after - 1) : after + 1])

        return sum(is_lost(time - shift) for time in packets)

    # ffmpeg subtracts the container's start and PyAV doesn't. The first or the last packets may be the lost ones.
    return min(map(num_lost, {0, packets[0] - times[0], packets[-1] - times[-1]}))


def ticks_in_gaps(times: Sequence[int]) -> int:
    """Missing ticks in a video that is steady except for a few gaps, where the demuxer lost packets too.

    0 for a video of variable frame rate: its long steps are no gaps.
    """
    steps = [after - before for before, after in pairwise(times)]
    usual = median(steps) if steps else 0
    gaps = [step - usual for step in steps if step > 1.5 * usual]
    return int(sum(gaps)) if len(gaps) <= max(2, len(steps) // 4) else 0


def source_remarks(run: FfmpegRun, info: VideoInfo, thinning: Thinning) -> tuple[str, ...]:
    """Notes on a source that was encoded. Shards store these texts in KEY.json: another text changes their bytes."""
    remarks = [*info.remarks, *time_remarks(run, info)]
    if run.messages:
        remarks.append(f"ffmpeg complained: {run.error_text()}")
        lost, shown = _lost_start(run, info), decoded_seconds(run, info) - max(0.0, info.start)
        if lost > DAMAGED_ABOVE * (lost + shown):
            remarks.append(f"its first {lost:.2f} s do not decode")
    if info.duration is None and not info.declared_frames:
        remarks.append("no declared duration: truncation was not tested")
    frame_rate = _mean_frame_rate(run, info)
    if thinning.rate is not None and frame_rate < SLOWER_BELOW * float(thinning.rate):
        remarks.append(f"shows {frame_rate:.3g} frames a second, fewer than the {float(thinning.rate):g} asked for")
    return tuple(remarks)


def _mean_frame_rate(run: FfmpegRun, info: VideoInfo) -> float:
    """The mean by the frames' times. For a single frame, the frame rate that the container states."""
    times = frame_times(run, info)
    ticks = max(times) - min(times)
    return (len(times) - 1) * info.time_base.den / (ticks * info.time_base.num) if ticks else float(info.frame_rate)
