"""Damaged sources and their finished build → whether each outcome is one that the table allows."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from tools.soak.damages.clips import Bench, picture_is_right
from tools.soak.damages.records import Damage, Outcome
from vmae_data.decode import decode_all
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.open_source import open_source, read_pictures
from vmae_data.format import (
    FAILURES,
    Failure,
    MemberEntry,
    Rational,
    SampleFacts,
    ShardMarker,
    decode_record,
    expand_series,
)
from vmae_data.names import path_from_text

_LUMA_TOLERANCE = 5  # of noise that is scaled and encoded, on average

__all__ = ["Finding", "check_all", "file_name", "make_all"]


class Finding(NamedTuple):
    """The outcome of one damaged source."""

    damage: Damage
    found: str
    as_expected: bool


def file_name(number: int, damage: Damage) -> bytes:
    """The name of a source in the folder."""
    return damage.file or f"{number:03d}{damage.suffix}".encode()


def make_all(damages: Sequence[Damage], bench: Bench, folder: Path) -> None:
    """Write every source into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, damage in enumerate(damages):
        damage.make(bench, Path(os.fsdecode(os.path.join(bytes(folder), file_name(number, damage)))))


def check_all(damages: Sequence[Damage], videos: Path, dest: Path, *, opener: bool = True) -> Iterator[Finding]:
    """Compare every outcome in a finished build of the folder `videos` with the table, and with inference's `opener`."""
    built = {path_from_text(sample.facts.source.path): sample for sample in _samples(dest)}
    lines = (dest / FAILURES).read_bytes().splitlines()
    failures = [msgspec.json.decode(line, type=Failure) for line in lines]
    failed = {path_from_text(failure.path): failure for failure in failures}
    for number, damage in enumerate(damages):
        name = file_name(number, damage)
        if (name in built) == (name in failed):
            found = "both built and failed" if name in built else "neither built nor failed"
            yield Finding(damage, found, False)
        elif name in failed:
            failure = failed[name]
            fits = any(o.reason == failure.reason and o.words in failure.detail for o in damage.expected)
            yield Finding(damage, f"failure {failure.reason}: {failure.detail}", fits)
        else:
            sample = built[name]
            source = Path(os.fsdecode(os.path.join(bytes(videos), name)))
            problems = [sample.difference(o, source, opener=opener) for o in damage.expected if not o.reason]
            fits = "" in problems
            text = sample.text() if fits else f"{sample.text()}: {'; or '.join(problems) or 'expected a failure'}"
            yield Finding(damage, text, fits)


class _Built(NamedTuple):
    """A sample as it is stored in its tar."""

    facts: SampleFacts
    member: MemberEntry
    data: bytes

    def text(self) -> str:
        facts = self.facts
        notes = f" ({'; '.join(facts.remarks)})" if facts.remarks else ""
        return f"built, {facts.source.frames} frames, {facts.width} × {facts.height}{notes}"

    def difference(self, expected: Outcome, source: Path, *, opener: bool) -> str:
        """How it differs from an outcome; empty if it fits."""
        facts = self.facts
        notes = "; ".join(facts.remarks)
        if facts.source.frames not in expected.frames:
            return f"expected {expected.frames} frames"
        if expected.words not in notes:
            return f"expected the note {expected.words!r}"
        if facts.remarks and not expected.words:
            return "expected no note"
        if expected.size not in (None, (facts.width, facts.height)):
            return f"expected {expected.size}"
        kept = [int(number) for number in expand_series(facts.phases[0].source_frames)]
        if expected.kept is not None and kept != list(expected.kept):
            return f"frames {kept} are kept, expected {list(expected.kept)}"
        if expected.rate and facts.source.rate != Rational(*Fraction(expected.rate).as_integer_ratio()):
            return f"{float(facts.source.rate):g} frames a second, expected {expected.rate}"
        if expected.profile not in ("", facts.profile):
            return f"encoded as {facts.profile}, expected {expected.profile}"
        planes = decode_all(self.data, len(kept), facts.key)  # raises if a frame is missing
        if expected.right and not picture_is_right(planes.y_THW, kept):
            return "the frames are not the right ones, upright"
        if expected.luma:
            # The opener makes limited range.
            return _luma_difference(planes.y_THW, kept, source, expected, opener=opener and not facts.colour.full_range)
        return ""


def _luma_difference(
    built_THW: NDArray[np.uint8], kept: list[int], source: Path, expected: Outcome, *, opener: bool
) -> str:
    """How built frames differ from ffmpeg's own decode of the source, or from the opener of inference. Empty if not."""
    height, width = built_THW.shape[1:]
    # With threads, ffmpeg decodes some Theora differently each time.
    words = f"-v fatal -threads 1 -max_error_rate 1 -i SOURCE -map 0:V:{expected.track} -fps_mode passthrough".split()
    words[words.index("SOURCE")] = f"file:{source}"
    chain = expected.luma.replace("WxH", f"{width}:{height}")
    own = [find_ffmpeg().path, *words, "-vf", chain, "-f", "rawvideo", "-"]
    raw = subprocess.run(own, capture_output=True, check=True).stdout
    expected_THW = np.frombuffer(raw, np.uint8).reshape(-1, height, width)
    if len(expected_THW) <= kept[-1]:
        return f"ffmpeg decodes {len(expected_THW)} frames, and frame {kept[-1]} is kept"
    found = {"ffmpeg's decode": expected_THW[kept]}
    if opener:
        found["the opener's pictures"] = read_pictures(open_source(source), kept, min(height, width)).y_THW
    for name, found_THW in found.items():
        distance = np.abs(found_THW.astype(float) - built_THW).mean(axis=(1, 2)).max()
        if distance > _LUMA_TOLERANCE:
            return f"differs from {name} by {distance:.1f} grey levels"
    return ""


def _samples(dest: Path) -> Iterator[_Built]:
    for path in sorted(dest.glob("shard-*.json")):
        marker = decode_record(path.read_bytes(), ShardMarker, path.name)
        tar = (dest / marker.tar).read_bytes() if marker.samples else b""
        for sample in marker.samples:
            facts = decode_record(tar[sample.facts.offset :][: sample.facts.size], SampleFacts, marker.tar)
            (member,) = sample.members
            yield _Built(facts, member, tar[member.extent.offset :][: member.extent.size])
