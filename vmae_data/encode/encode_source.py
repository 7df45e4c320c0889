"""Row 5. One source → an encoded file for each segment and phase: one ffmpeg command, then a check by the trainer's own decoder."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack, suppress
from itertools import accumulate, chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.decode import read_packets
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.ffmpeg import FfmpegRun, run_ffmpeg
from vmae_data.encode.ffmpeg_arguments import Output, copy_arguments, encode_arguments, read_arguments
from vmae_data.encode.ffmpeg_result import check_output_size, check_result, frame_times, remarks_on
from vmae_data.encode.probe import VideoInfo, cut_box, packet_times, probe_video, scaled_size
from vmae_data.encode.profiles import colour_of, copies
from vmae_data.encode.thinning import SegmentCut, cut_video, kept_rate, select_by_stride, select_frames
from vmae_data.errors import DataError, NotThereError, SampleError, SourceError
from vmae_data.format import (
    FORMAT_VERSION,
    Failure,
    Label,
    Packets,
    PhaseFacts,
    Rational,
    SampleFacts,
    SegmentFacts,
    SourceFacts,
    encode_record,
    key_of,
    member_suffix,
    path_to_text,
    series_of,
)
from vmae_data.sources.video_files import Folder, place_within
from vmae_data.storage import commit_bytes, commit_file, copied, hash_file, is_folder, temporary_beside

__all__ = ["EncodeJob", "StagedMember", "StagedSample", "StagedSource", "encode_source", "staged_name"]


class EncodeJob(NamedTuple):
    """All that one encode needs; small, so that it can be sent to any process."""

    key: str
    path: bytes
    folder: Folder
    label: Label | None
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
        staged = StagedSource(samples=_encode(job))
    except SourceError as error:
        name = path_to_text(job.path)
        staged = StagedSource(failure=Failure(key=job.key, path=name, reason=error.reason, detail=error.detail))
    commit_bytes(job.staging / staged_name(job.key), encode_record(staged))
    return staged


class _Work(NamedTuple):
    """A source that is being encoded."""

    job: EncodeJob
    source: bytes
    info: VideoInfo

    @property
    def scratch(self) -> Path:
        """What all its temporary files begin with."""
        return Path(os.path.abspath(temporary_beside(self.job.staging / self.job.key)))


def _encode(job: EncodeJob) -> tuple[StagedSample, ...]:
    if isinstance(job.folder, bytes):
        return _encode_here(job, os.path.join(job.folder, job.path))
    with ExitStack() as kept:
        try:
            copy = kept.enter_context(copied(place_within(job.folder, job.path), job.staging))
        except NotThereError as error:
            if not is_folder(job.folder):  # then no single video is to blame
                raise DataError(f"{job.folder}: is not there any more; run the same command when it is back") from error
            raise SourceError("missing", os.strerror(errno.ENOENT)) from error
        return _encode_here(job, os.fsencode(copy.absolute()))


def _encode_here(job: EncodeJob, source: bytes) -> tuple[StagedSample, ...]:
    work = _Work(job, source, _probe(source, job))
    try:
        if job.spec.profile == "copy":
            if copies(work.info, job.spec.short_side) and (samples := _copy(work)):
                return samples
            work = work._replace(job=job._replace(spec=msgspec.structs.replace(job.spec, profile="h264")))
        return _encode_frames(work)
    except SampleError as error:
        raise SourceError("encode-mismatch", error.detail) from error
    finally:
        for left in job.staging.glob(f"{work.scratch.name}.*"):
            left.unlink()


def _encode_frames(work: _Work) -> tuple[StagedSample, ...]:
    """Encode what is to be kept. Where that hangs on when frames are shown, their packets' times are a
    guess: if the frames that decode say otherwise, encode again by those.
    """
    info, thinning = work.info, work.job.spec.thinning
    guess: tuple[SegmentCut, ...] | None = None
    if not thinning.by_rule and (times := packet_times(work.source)):
        guess = cut_video(times, info.time_base, info.rate, thinning)
    for _ in range(3):
        outputs = _outputs(work, guess)
        run = _run(work, encode_arguments(work.job.ffmpeg, work.job.spec, info, work.source, outputs, work.scratch))
        found = cut_video(frame_times(run, info), info.time_base, info.rate, thinning)
        if thinning.by_rule or found == guess:
            return _samples(work, run, found)
        guess = found
    raise SourceError("encode-mismatch", "other frames decode each time; the file is damaged")


def _outputs(work: _Work, cuts: tuple[SegmentCut, ...] | None) -> list[Output]:
    thinning, stem = work.job.spec.thinning, str(work.scratch)
    if cuts is None:  # one phase by a rule, or nothing known yet: then all frames, to learn their times
        return [Output(select_by_stride(thinning.stride or 1), f"{stem}.p0.mp4")]
    outputs = []
    for phase in range(thinning.phases):
        parts = [cut.kept[phase] for cut in cuts]
        splits = tuple(accumulate(map(len, parts)))[:-1]
        target = f"{stem.replace('%', '%%')}.p{phase}.%04d.mp4" if splits else f"{stem}.p{phase}.mp4"
        outputs.append(Output(select_frames(list(chain(*parts))), target, splits))
    return outputs


def _copy(work: _Work) -> tuple[StagedSample, ...]:
    """The packets as they are; nothing where training's decoder would not read each as a frame at a steady rate."""
    info = work.info
    step = Rational(info.rate.den * info.time_base.den, info.rate.num * info.time_base.num)
    if step.num % step.den:
        return ()
    run = _run(work, copy_arguments(work.job.ffmpeg, info, work.source, f"{work.scratch}.p0.mp4"))
    cuts = cut_video(frame_times(run, info), info.time_base, info.rate, work.job.spec.thinning)
    with suppress(SampleError, SourceError):
        return _samples(work, run, cuts)
    return ()


def _run(work: _Work, arguments: list[str]) -> FfmpegRun:
    names = _names(work.source, work.job)
    run = run_ffmpeg(arguments, names)
    if run.status < 0 and not run.stalled:  # by another's hand, such as for want of memory: once more
        run = run_ffmpeg(arguments, names)
    spec, staging = work.job.spec, work.job.staging
    check_result(run, work.info, work.source, keep_truncated=spec.keep_truncated, staging=staging)
    return run


def _samples(work: _Work, run: FfmpegRun, cuts: tuple[SegmentCut, ...]) -> tuple[StagedSample, ...]:
    """Check and commit the files of every segment; a video in one piece has no segment number."""
    source, times = _source_facts(work, len(run.pts)), frame_times(run, work.info)
    samples = []
    for number, cut in enumerate(cuts):
        segment = SegmentFacts(number=number, start=cut.start, stop=cut.stop) if len(cuts) > 1 else None
        suffix = "" if segment is None else f".{number:04d}"
        key = work.job.key if segment is None else key_of(work.job.path, number)
        members = []
        for phase, kept in enumerate(cut.kept):
            facts = PhaseFacts(
                frames=len(kept),
                source_frames=series_of(kept),
                source_times=series_of([times[frame] for frame in kept]),
                source_time_base=work.info.time_base,
            )
            final = work.job.staging / f"{key}.{member_suffix(phase)}"
            members.append(_commit(Path(f"{work.scratch}.p{phase}{suffix}.mp4"), final, facts))
        remarks = remarks_on(run, work.info, work.job.spec.thinning)
        facts_of_sample = _facts(work, key, source, segment, tuple(members), remarks)
        samples.append(StagedSample(facts=facts_of_sample, members=tuple(members)))
    return tuple(samples)


def _commit(temporary: Path, final: Path, phase: PhaseFacts) -> StagedMember:
    """Name a finished file, once the decoder that training uses reads every frame of it."""
    table = read_packets(temporary, final.stem)
    encoded = len(table.packets.sizes)
    if encoded != phase.frames:
        raise SourceError("encode-mismatch", f"{encoded} frames were encoded, {phase.frames} were to be kept")
    commit_file(temporary, final)
    return StagedMember(
        file=final.name,
        size=final.stat().st_size,
        sha256=hash_file(final),
        phase=phase,
        codec=table.codec,
        extradata=table.extradata,
        packets=table.packets,
    )


def _facts(
    work: _Work,
    key: str,
    source: SourceFacts,
    segment: SegmentFacts | None,
    members: tuple[StagedMember, ...],
    remarks: tuple[str, ...],
) -> SampleFacts:
    job, info = work.job, work.info
    width, height = scaled_size(info, job.spec.short_side)
    return SampleFacts(
        version=FORMAT_VERSION,
        key=key,
        source=source,
        segment=segment,
        phases=tuple(member.phase for member in members),
        width=width,
        height=height,
        rate=kept_rate(info.rate, job.spec.thinning),
        profile=job.spec.profile,
        colour=colour_of(job.spec.profile, info),
        remarks=remarks,
        label=job.label,
        class_name=job.class_name,
        split=job.split,
    )


def _probe(source: bytes, job: EncodeJob) -> VideoInfo:
    """Probe; where that fails, let ffmpeg itself say why, in the words that people search for."""
    try:
        return probe_video(source)
    except SourceError as error:
        if error.reason not in ("unreadable", "undecodable", "no-video"):
            raise
        run = run_ffmpeg(read_arguments(job.ffmpeg, source), _names(source, job))
        check_output_size(run)
        words = run.reason() if run.words and error.reason != "no-video" else error.detail
        with suppress(OSError):
            if cut := cut_box(source):
                raise SourceError("truncated", f"{cut} ({words})") from error
        raise SourceError(error.reason, words) from error


def _names(source: bytes, job: EncodeJob) -> dict[str, str]:
    """What ffmpeg's words call the paths that it was given."""
    return {
        os.fsdecode(os.path.abspath(source)): path_to_text(job.path),
        os.path.abspath(temporary_beside(job.staging / job.key)): "the encoded file",
    }


def _source_facts(work: _Work, frames: int) -> SourceFacts:
    job, info = work.job, work.info
    with open(work.source, "rb") as file:  # noqa: PTH123 - bytes paths may not be UTF-8
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
