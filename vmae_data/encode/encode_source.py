"""One source → an encoded file for each segment and phase.

Steps: probe, choose frames, run ffmpeg, check its result, commit the files that the trainer's decoder reads.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import accumulate, chain
from pathlib import Path

import msgspec

from vmae_data.decode import check_key_frames, read_packets
from vmae_data.encode.ffmpeg import FfmpegRun, run_ffmpeg, silence_seconds
from vmae_data.encode.ffmpeg_arguments import (
    Output,
    copy_arguments,
    describe_arguments,
    encode_arguments,
    trial_arguments,
)
from vmae_data.encode.ffmpeg_result import (
    TRUNCATED_BELOW,
    check_result,
    decoded_seconds,
    place_of_change,
    refuse_machine_fault,
    source_remarks,
)
from vmae_data.encode.open_source import describe_source
from vmae_data.encode.packets import changes_of_shape, hidden_packets, jump_remarks, packet_times
from vmae_data.encode.probe import VideoInfo, scaled_size, with_picture_size
from vmae_data.encode.profiles import can_copy, encoded_colour
from vmae_data.encode.staged import EncodeJob, StagedMember, StagedSample, StagedSource, staged_name
from vmae_data.encode.steady_rate import with_steady_rate
from vmae_data.encode.thinning import SegmentCut, choose_frames, kept_frame_rate, select_by_stride, select_frames
from vmae_data.encode.times import first_clean_frame, frame_times
from vmae_data.errors import DataError, NotFoundError, SampleError, SourceError, VmaeError
from vmae_data.format import (
    FORMAT_VERSION,
    Failure,
    PhaseFacts,
    SampleFacts,
    SegmentFacts,
    SourceFacts,
    encode_record,
    series_of,
)
from vmae_data.names import key_of, member_suffix, path_to_text
from vmae_data.processes import limit_cpu_time
from vmae_data.sources.video_files import remote_path
from vmae_data.storage import commit_bytes, commit_file, copied, hash_file, is_folder, temporary_path

_DOLBY_VISION_CODECS = ("hevc", "av1", "libdav1d")  # those that may have no compatible base

__all__ = ["encode_source"]


# Reasons that ffmpeg's own troubles on a machine would cause too.
_REASONS_OF_FFMPEG = ("unreadable", "undecodable", "ffmpeg-failed", "encode-mismatch")


def encode_source(job: EncodeJob) -> StagedSource:
    """Encode one source into staging and commit its record. The record of a bad source holds the reason.

    A SourceError fails only this video. Any other error, such as a full destination, stops the build.
    """
    try:
        staged = StagedSource(samples=_encode(job), plan=job.plan)
    except SourceError as error:
        _require_fault_of_source(job, error)
        name = path_to_text(job.path)
        failure = Failure(key=job.key, path=name, reason=error.reason, detail=error.detail)
        staged = StagedSource(failure=failure, plan=job.plan)
    commit_bytes(job.staging / staged_name(job.key), encode_record(staged))
    return staged


def _require_fault_of_source(job: EncodeJob, error: SourceError) -> None:
    """Raise DataError if the folder of the sources is gone, VmaeError if ffmpeg encodes nothing on this machine."""
    if isinstance(job.folder, bytes) and not os.path.isdir(job.folder):  # noqa: PTH112 - bytes paths may not be UTF-8
        raise DataError(f"{path_to_text(job.folder)}: is gone. Run the same command when it is back") from error
    if error.reason in _REASONS_OF_FFMPEG:
        target = Path(f"{_scratch(job)}.trial.mp4")
        run = run_ffmpeg(trial_arguments(job.ffmpeg, job.spec, str(target)), _log_names(job, job.path))
        target.unlink(missing_ok=True)
        refuse_machine_fault(run, job.staging)
        if run.status != 0:
            raise VmaeError(
                f"{job.staging}: ffmpeg can't encode here ({run.error_text()}). Mend that, then run the same command again"
            ) from error


def _encode(job: EncodeJob) -> tuple[StagedSample, ...]:
    if isinstance(job.folder, bytes):
        return _encode_local(job, os.path.join(job.folder, job.path))
    with ExitStack() as stack:
        try:
            copy = stack.enter_context(copied(remote_path(job.folder, job.path), job.staging))
        except NotFoundError as error:
            if not is_folder(job.folder):  # then no single video is the cause
                raise DataError(f"{job.folder}: is gone. Run the same command when it is back") from error
            raise SourceError("missing", os.strerror(errno.ENOENT)) from error
        return _encode_local(job, os.fsencode(copy.absolute()))


def _encode_local(job: EncodeJob, source: bytes) -> tuple[StagedSample, ...]:
    with limit_cpu_time(silence_seconds()):
        info = describe_source(job.ffmpeg, source, _log_names(job, source), job.staging, job.rules)
    try:
        if job.spec.profile == "copy":
            if can_copy(info, job.spec.short_side) and (samples := _copy_packets(job, source, info)):
                return samples
            job = job._replace(spec=msgspec.structs.replace(job.spec, profile="h264"))
        return _encode_frames(job, source, info)
    except SampleError as error:
        raise SourceError("encode-mismatch", error.detail) from error
    finally:
        for temporary in job.staging.glob(f"{_scratch(job).name}.*"):
            temporary.unlink()


def _scratch(job: EncodeJob) -> Path:
    """The path that all temporary files of a source begin with."""
    return Path(os.path.abspath(temporary_path(job.staging / job.key)))


def _log_names(job: EncodeJob, source: bytes) -> dict[str, str]:
    """The names that replace paths in ffmpeg's messages."""
    return {os.fsdecode(os.path.abspath(source)): path_to_text(job.path), str(_scratch(job)): "the encoded file"}


def _copy_packets(job: EncodeJob, source: bytes, info: VideoInfo) -> tuple[StagedSample, ...]:
    """Copy the packets. Empty unless the trainer's decoder reads each as one frame of a steady frame rate."""
    if info.frame_ticks.denominator != 1 or (job.rules >= 2 and info.turn):  # also mirrored
        return ()
    arguments = copy_arguments(job.ffmpeg, info, source, f"{_scratch(job)}.p0.mp4")
    try:
        run = _run_and_check(job, source, info, arguments, may_change=job.rules >= 2)
    except SourceError as error:
        if error.reason != "ffmpeg-failed" or job.rules < 2:
            raise
        return ()  # mp4 refuses these packets or their times
    if job.rules >= 2 and (run.changed_at is not None or run.sizes[0].size != info.coded):
        return ()  # the packets hold no single picture, or a larger one than the container crops
    if with_steady_rate(run, info) != info:
        return ()
    cuts = choose_frames(frame_times(run, info), info, job.spec.thinning)
    with suppress(SampleError, SourceError):
        return _commit_samples(job, source, info, run, cuts)
    return ()


def _encode_frames(job: EncodeJob, source: bytes, info: VideoInfo) -> tuple[StagedSample, ...]:
    """Encode the kept frames. If their choice depends on times, the packets' times predict it.

    If the decoded frames have other times, encode again by those.
    """
    thinning = job.spec.thinning
    may_change = job.rules >= 2 and job.spec.size_changes == "scale"
    expected: tuple[SegmentCut, ...] | None = None
    if not thinning.is_plain_stride and (times := packet_times(source, info.track)):
        expected = choose_frames(times, info, thinning)
    for _ in range(5):
        outputs = _outputs(job, expected)
        arguments = encode_arguments(job.ffmpeg, job.spec, info, source, outputs, _scratch(job), rules=job.rules)
        run = _run_and_check(job, source, info, arguments, may_change=may_change)
        if run.sizes and run.sizes[0].size != info.coded:  # ffmpeg crops as the container says, the probe does not
            info = with_picture_size(info, *run.sizes[0].size)
            continue
        if (steady := with_steady_rate(run, info)) != info:
            info = steady
            continue
        first = first_clean_frame(run, info)
        cuts = choose_frames(frame_times(run, info), info, thinning, first)
        if (thinning.is_plain_stride and first == 0) or cuts == expected:
            return _commit_samples(job, source, info, run, cuts)
        expected = cuts
    raise SourceError("encode-mismatch", "other frames decode each time; the file is damaged")


def _outputs(job: EncodeJob, cuts: tuple[SegmentCut, ...] | None) -> list[Output]:
    thinning, stem = job.spec.thinning, str(_scratch(job))
    if cuts is None:  # a plain stride, or the times are unknown: then encode all frames, to learn them
        return [Output(select_by_stride(thinning.stride or 1), f"{stem}.p0.mp4")]
    outputs = []
    for phase in range(thinning.phases):
        segments = [cut.kept[phase] for cut in cuts]
        splits = tuple(accumulate(map(len, segments)))[:-1]
        target = f"{stem.replace('%', '%%')}.p{phase}.%04d.mp4" if splits else f"{stem}.p{phase}.mp4"
        outputs.append(Output(select_frames(list(chain(*segments))), target, splits))
    return outputs


def _run_and_check(
    job: EncodeJob, source: bytes, info: VideoInfo, arguments: list[str], *, may_change: bool
) -> FfmpegRun:
    run = run_ffmpeg(arguments, _log_names(job, source))
    if run.status < 0 and not run.stalled:  # killed from outside, for example for lack of memory: try again once
        run = run_ffmpeg(arguments, _log_names(job, source))
    check_result(
        run,
        info,
        source,
        thinning=job.spec.thinning,
        keep_truncated=job.spec.keep_truncated,
        may_change=may_change,
        staging=job.staging,
    )
    return run


def _commit_samples(
    job: EncodeJob, source: bytes, info: VideoInfo, run: FfmpegRun, cuts: tuple[SegmentCut, ...]
) -> tuple[StagedSample, ...]:
    """Check and commit the files of every segment. A video with one segment has no segment number."""
    source_facts, times = _source_facts(job, source, info, len(run.pts)), frame_times(run, info)
    remarks = source_remarks(run, info, job.spec.thinning)
    if job.rules >= 2:
        remarks = (*remarks, *_picture_remarks(job, source, info, run))
    if job.rules != job.plan_rules:
        remarks = (*remarks, f"made later, by rules {job.rules}; the plan has rules {job.plan_rules}")
    width, height = scaled_size(info, job.spec.short_side)
    copied_packets = job.spec.profile == "copy" and job.rules >= 3
    samples = []
    for number, cut in enumerate(cuts):
        segment = SegmentFacts(number=number, start=cut.start, stop=cut.stop) if len(cuts) > 1 else None
        key = job.key if segment is None else key_of(job.path, number)
        members = []
        for phase, kept in enumerate(cut.kept):
            phase_facts = PhaseFacts(
                frames=len(kept),
                source_frames=series_of(kept),
                source_times=series_of([times[frame] for frame in kept]),
                source_time_base=info.time_base,
            )
            temporary = f"{_scratch(job)}.p{phase}{'' if segment is None else f'.{number:04d}'}.mp4"
            final = job.staging / f"{key}.{member_suffix(phase)}"
            members.append(_commit_member(Path(temporary), final, phase_facts, foreign_key_frames=copied_packets))
        facts = SampleFacts(
            version=FORMAT_VERSION,
            key=key,
            source=source_facts,
            segment=segment,
            phases=tuple(member.phase for member in members),
            width=width,
            height=height,
            rate=kept_frame_rate(info.frame_rate, job.spec.thinning),
            profile=job.spec.profile,
            colour=encoded_colour(job.spec.profile, info),
            remarks=remarks,
            label=job.label,
            class_name=job.class_name,
            split=job.split,
        )
        samples.append(StagedSample(facts=facts, members=tuple(members)))
    return tuple(samples)


def _picture_remarks(job: EncodeJob, source: bytes, info: VideoInfo, run: FfmpegRun) -> Iterator[str]:
    """Notes on pictures that change midway, and on colours that are not converted."""
    if len(run.sizes) > 1:
        first, other = run.sizes[0], run.sizes[1]
        yield (
            f"the picture's size changes {place_of_change(run, info, job.spec.thinning)} from {first.width} × {first.height} to "
            f"{other.width} × {other.height}: all pictures are scaled to the first size"
        )
    if job.rules >= 3 and info.table_frames > 2 * len(run.pts) and (hidden := hidden_packets(source, info.track)):
        yield f"its edit list hides {hidden} of its {info.table_frames} frames"
    if job.rules >= 3:
        is_short = decoded_seconds(run, info) < TRUNCATED_BELOW * (info.duration or 0)
        yield from jump_remarks(source, info, is_short=is_short)
    if info.shape_can_change and (change := changes_of_shape(source, info.track)):
        yield change
    if info.unconverted:
        yield f"its colours are coded as {info.unconverted} and not converted, so they are wrong"
    if info.codec in _DOLBY_VISION_CODECS:
        described = run_ffmpeg(describe_arguments(job.ffmpeg, source), {})
        if described.dolby_vision is not None:
            yield f"Dolby Vision, profile {described.dolby_vision}: its colours are not converted, so they are wrong"


def _source_facts(job: EncodeJob, source: bytes, info: VideoInfo, num_frames: int) -> SourceFacts:
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
        rate=info.frame_rate,
        frames=num_frames,
        codec=info.codec,
        pixel_format=info.pixel_format,
    )


def _commit_member(temporary: Path, final: Path, phase: PhaseFacts, *, foreign_key_frames: bool) -> StagedMember:
    """Rename an encoded file, after the trainer's decoder has read every frame of it.

    `foreign_key_frames`: whether another encoder chose the key frames. Then decoding is tested from each of them.
    """
    table = read_packets(temporary, final.stem)
    if foreign_key_frames:
        check_key_frames(temporary.read_bytes(), table.packets, final.stem)
    encoded = len(table.packets.sizes)
    if encoded != phase.frames:
        raise SourceError("encode-mismatch", f"{encoded} frames were encoded, expected {phase.frames}")
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
