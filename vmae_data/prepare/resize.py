"""Row 5. One source → one encoded file: one ffmpeg command, then a check by the trainer's own decoder."""

from __future__ import annotations

import hashlib
import math
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import ffmpeg
import msgspec

from vmae_data.decode import read_packets
from vmae_data.errors import SampleError, SourceError, VmaeError
from vmae_data.format import (
    FORMAT_VERSION,
    Colour,
    Failure,
    Packets,
    PhaseFacts,
    SampleFacts,
    SourceFacts,
    encode_record,
    path_to_text,
    series_of,
)
from vmae_data.prepare.ffmpeg import FfmpegRun, run_ffmpeg, telling
from vmae_data.prepare.plan import BuildSpec
from vmae_data.prepare.probe import DEMUXERS, VideoInfo, packet_seconds, probe_video, scaled_size
from vmae_data.prepare.thinning import ends_early, kept_by_stride, kept_rate, select_expression
from vmae_data.store import commit_bytes, commit_file, hash_file, temporary_beside

__all__ = ["EncodeJob", "StagedMember", "StagedSample", "StagedSource", "encode_source", "staged_name"]

# libavutil's names of the BT.601 family; anything else that is tagged is converted by its own matrix.
_UNTAGGED = ("unknown",)
_HD_LINES = 720
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "File too large")


class EncodeJob(NamedTuple):
    """All that one encode needs; small, so that it can be sent to any process."""

    key: str
    path: bytes
    folder: bytes
    label: int | None
    class_name: str | None
    split: str | None
    spec: BuildSpec
    ffmpeg: str
    staging: Path


class StagedMember(msgspec.Struct, frozen=True, kw_only=True):
    """An encoded file in staging."""

    file: str
    size: int
    sha256: str
    phase: PhaseFacts
    codec: str
    extradata: bytes
    packets: Packets


class StagedSample(msgspec.Struct, frozen=True, kw_only=True):
    facts: SampleFacts
    members: tuple[StagedMember, ...]


class StagedSource(msgspec.Struct, frozen=True, kw_only=True):
    """What a source gave: samples (one, or one a segment), or a failure. Its file is written last."""

    samples: tuple[StagedSample, ...] = ()
    failure: Failure | None = None


def staged_name(key: str) -> str:
    """The record of a source in staging; that it is there proves that its encodes are."""
    return f"{key}.staged.json"


def encode_source(job: EncodeJob) -> StagedSource:
    """Encode one source into staging and commit its record. A bad source gives a record of why.

    This is the build's per-video boundary: a SourceError ends here, errors of the destination don't.
    """
    try:
        staged = StagedSource(samples=(_encode(job),))
    except SourceError as error:
        name = path_to_text(job.path)
        staged = StagedSource(failure=Failure(key=job.key, path=name, reason=error.reason, detail=error.detail))
    commit_bytes(job.staging / staged_name(job.key), encode_record(staged))
    return staged


def _encode(job: EncodeJob) -> StagedSample:
    source = os.path.join(job.folder, job.path)
    info = _probe(source, job)
    final = job.staging / f"{job.key}.mp4"
    temporary = temporary_beside(final)
    width, height = scaled_size(info, job.spec.short_side)
    try:
        arguments = encode_arguments(job, info, source, temporary, width, height)
        run = run_ffmpeg(arguments, _names(source, temporary, job))
        if run.status < 0 and not run.stalled:  # by another's hand, such as for want of memory: once more
            run = run_ffmpeg(arguments, _names(source, temporary, job))
        _judge(run, info, source, job)
        table = read_packets(temporary, job.key)
        commit_file(temporary, final)
    except SampleError as error:
        raise SourceError("encode-mismatch", error.detail) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    kept = kept_by_stride(len(run.pts), job.spec.stride)
    if len(table.packets.sizes) != kept.count:
        raise SourceError(
            "encode-mismatch", f"{len(table.packets.sizes)} frames were encoded, {kept.count} were to be kept"
        )
    times = _times(run, info)
    phase = PhaseFacts(
        frames=kept.count,
        source_frames=kept,
        source_times=series_of(times[:: job.spec.stride]),
        source_time_base=info.time_base,
    )
    facts = SampleFacts(
        version=FORMAT_VERSION,
        key=job.key,
        source=_source_facts(source, info, job, len(run.pts)),
        segment=None,
        phases=(phase,),
        width=width,
        height=height,
        rate=kept_rate(info.rate, job.spec.stride),
        profile=job.spec.profile,
        colour=_colour(info),
        remarks=_remarks(run, info),
        label=job.label,
        class_name=job.class_name,
        split=job.split,
    )
    member = StagedMember(
        file=final.name,
        size=final.stat().st_size,
        sha256=hash_file(final),
        phase=phase,
        codec=table.codec,
        extradata=table.extradata,
        packets=table.packets,
    )
    return StagedSample(facts=facts, members=(member,))


def _probe(source: bytes, job: EncodeJob) -> VideoInfo:
    """Probe; where that fails, let ffmpeg itself say why, in the words that people search for."""
    try:
        return probe_video(source)
    except SourceError as error:
        if error.reason in ("missing", "empty", "not-a-file"):
            raise
        stream = ffmpeg.input(_SOURCE, **_INPUT).output("-", map="0:v:0", f="null")
        run = run_ffmpeg(_compile(stream, job.ffmpeg, {_SOURCE: _url(source)}), _names(source, Path("-"), job))
        if not run.words:
            raise
        raise SourceError(error.reason, run.reason()) from error


_INPUT = {"threads": 1, "format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
# Put in place of the paths while ffmpeg-python compiles: it can't encode names that are not UTF-8.
_SOURCE, _TARGET = "SOURCE-PATH", "TARGET-PATH"


def _url(path: bytes) -> str:
    # The protocol is named so that no path is taken for an option, another protocol or a pattern.
    return f"file:{os.fsdecode(os.path.abspath(path))}"


def _names(source: bytes, temporary: Path, job: EncodeJob) -> dict[str, str]:
    return {
        os.fsdecode(os.path.abspath(source)): path_to_text(job.path),
        str(temporary.resolve()): "the encoded file",
    }


def encode_arguments(
    job: EncodeJob, info: VideoInfo, source: bytes, target: Path, width: int, height: int
) -> list[str]:
    """The command: thin, then scale, then encode; one thread, every library bit-exact.

    Why each option is there is written down in docs/format.md, section "The encode command".
    """
    rate = kept_rate(info.rate, job.spec.stride)
    tick = f"{rate.den}/{rate.num}"
    scale = f"scale={width}:{height}:flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
    if not info.rgb and _colour(info).assumed:
        scale += f":in_color_matrix={_colour(info).source_matrix}"
    filters = [
        telling(select_expression(job.spec.stride)),
        f"{scale}:out_color_matrix=bt709:out_range=tv",
        "format=yuv420p",
        "setsar=1",
        f"settb={tick}",
        "setpts=N",
    ]
    stream = ffmpeg.input(_SOURCE, **_INPUT).output(
        _TARGET,
        **{
            "map": "0:v:0",
            "an": None,
            "sn": None,
            "dn": None,
            "map_metadata": -1,
            "map_chapters": -1,
            "filter_threads": 1,
            "vf": ",".join(filters),
            "fps_mode": "passthrough",
            "enc_time_base": tick,
            "c:v": "libx264",
            "threads": 1,
            "preset": "medium",
            "tune": "fastdecode",
            "crf": job.spec.crf,
            "g": job.spec.gop,
            "sc_threshold": 0,
            "x264-params": "cpu-independent=1",
            "flags:v": "+bitexact",
            "fflags": "+bitexact",
            "colorspace": "bt709",
            "color_range": "tv",
            "bsf:v": "setts=pts=PTS:dts=DTS:duration=1",
            "movflags": "+faststart",
            "f": "mp4",
        },
    )
    return _compile(stream, job.ffmpeg, {_SOURCE: _url(source), _TARGET: _url(os.fsencode(target))})


def _compile(stream: ffmpeg.nodes.OutputStream, program: str, paths: dict[str, str]) -> list[str]:
    arguments: list[str] = [paths.get(word, word) for word in stream.compile(cmd=program, overwrite_output=True)]
    options = ["-nostdin", "-hide_banner", "-nostats", "-loglevel", "repeat+level+error"]
    return [arguments[0], *options, *arguments[1:]]


def _judge(run: FfmpegRun, info: VideoInfo, source: bytes, job: EncodeJob) -> None:
    """Exit status is no test of a source: ffmpeg ends with 0 on damaged files. Count and time are."""
    if run.stalled:
        raise SourceError("stalled", "ffmpeg decoded nothing for two minutes and was ended")
    if run.status == -signal.SIGXFSZ or any(full in word for word in run.words for full in _FULL_DISK):
        # The disk's fault, not the video's: nothing is booked, and the same build goes on later.
        raise VmaeError(f"{job.staging}: no room left on the disk; free some and run the same command again")
    if run.status < 0:
        raise SourceError("killed", f"ffmpeg was ended by signal {-run.status}, twice")
    if run.restarted_at is not None:
        raise SourceError(
            "size-changes", f"the picture's size changes at frame {run.restarted_at}; encode it to one size"
        )
    if not run.pts:
        raise SourceError("undecodable", run.reason())
    if run.status != 0:
        raise SourceError("ffmpeg-failed", run.reason())
    if not math.isclose(run.ticks * info.time_base.num, info.time_base.den, rel_tol=1e-5):
        base = f"{info.time_base.num}/{info.time_base.den}"
        raise SourceError(
            "encode-mismatch", f"ffmpeg counts {run.ticks:g} ticks a second, PyAV a time base of {base}; encode it anew"
        )
    seconds = _decoded_seconds(run, info, 1 / float(info.rate))
    if not job.spec.keep_truncated and ends_early(seconds, info.duration):
        # The last frame may be shown for long, as in recordings of a screen; only its packet says so.
        seconds = _decoded_seconds(run, info, packet_seconds(source, run.pts[-1]))
    if not job.spec.keep_truncated and ends_early(seconds, info.duration):
        words = f" ({run.reason()})" if run.words else ""
        raise SourceError(
            "truncated",
            f"the last of {len(run.pts)} frames ends at {seconds:.2f} of {info.duration:.2f} s{words}",
        )


def _decoded_seconds(run: FfmpegRun, info: VideoInfo, last: float) -> float:
    """How long the video lasts: from its first frame, or from time 0 where it begins later.

    Containers count a declared duration from either.
    """
    times = _times(run, info)
    tick = info.time_base.num / info.time_base.den
    return (max(times) - min(times)) * tick + last + max(0.0, info.start)


def _times(run: FfmpegRun, info: VideoInfo) -> list[int]:
    """Time stamps of the decoded frames; a frame without one follows its neighbour."""
    step = max(1, round(info.time_base.den * info.rate.den / (info.time_base.num * info.rate.num)))
    times: list[int] = []
    for pts in run.pts:
        times.append(pts if pts is not None else (times[-1] if times else 0) + step)
    return times


def _source_facts(source: bytes, info: VideoInfo, job: EncodeJob, frames: int) -> SourceFacts:
    with open(source, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return SourceFacts(
        path=path_to_text(job.path),
        sha256=digest,
        bytes=size,
        width=info.width,
        height=info.height,
        rotation=info.rotation,
        rate=info.rate,
        frames=frames,
        codec=info.codec,
        pixel_format=info.pixel_format,
    )


def _colour(info: VideoInfo) -> Colour:
    """We encode BT.709, limited. What an untagged source is taken for follows its lines, and is said."""
    assumed = not info.rgb and info.matrix in _UNTAGGED
    matrix = ("bt709" if min(info.width, info.height) >= _HD_LINES else "bt601") if assumed else info.matrix
    return Colour(matrix="bt709", full_range=False, source_matrix=matrix, assumed=assumed)


def _remarks(run: FfmpegRun, info: VideoInfo) -> tuple[str, ...]:
    """What a person should know of a source that was made all the same."""
    remarks = []
    if run.words:
        remarks.append(f"ffmpeg complained: {run.reason()}")
    if info.duration is None:
        remarks.append("no declared duration: truncation was not tested")
    return tuple(remarks)
