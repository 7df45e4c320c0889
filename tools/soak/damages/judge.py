"""Build a folder of damages and hold what came out against what was expected."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tools.soak.damages.clips import Bench, picture_is_right
from tools.soak.damages.records import Damage, Outcome
from vmae_data.decode import decode_all
from vmae_data.format import (
    FAILURES,
    Failure,
    MemberEntry,
    SampleFacts,
    ShardMarker,
    decode_record,
    expand_series,
    path_from_text,
)
from vmae_data.recipes import load_recipe  # noqa: F401

__all__ = ["Finding", "file_name", "judge_all", "make_all"]


class Finding(NamedTuple):
    """What became of a damage."""

    damage: Damage
    found: str
    as_expected: bool


def file_name(number: int, damage: Damage) -> bytes:
    """Where a damage stands in the folder."""
    return damage.file or f"{number:03d}{damage.suffix}".encode()


def make_all(damages: Sequence[Damage], bench: Bench, folder: Path) -> None:
    """Write every damage into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, damage in enumerate(damages):
        damage.make(bench, Path(os.fsdecode(os.path.join(bytes(folder), file_name(number, damage)))))


def judge_all(damages: Sequence[Damage], dest: Path) -> Iterator[Finding]:
    """Hold every damage's outcome in a finished build against the table."""
    made = {path_from_text(sample.facts.source.path): sample for sample in _samples(dest)}
    lines = (dest / FAILURES).read_bytes().splitlines()
    failures = [msgspec.json.decode(line, type=Failure) for line in lines]
    failed = {path_from_text(failure.path): failure for failure in failures}
    for number, damage in enumerate(damages):
        name = file_name(number, damage)
        if (name in made) == (name in failed):
            found = "both made and failed" if name in made else "neither made nor failed"
            yield Finding(damage, found, False)
        elif name in failed:
            failure = failed[name]
            fits = any(o.reason == failure.reason and o.words in failure.detail for o in damage.expected)
            yield Finding(damage, f"failure {failure.reason}: {failure.detail}", fits)
        else:
            found = made[name]
            problems = [found.differs(outcome) for outcome in damage.expected if not outcome.reason]
            fits = "" in problems
            words = found.told() if fits else f"{found.told()}: {'; or '.join(problems) or 'a failure was expected'}"
            yield Finding(damage, words, fits)


class _Made(NamedTuple):
    """A sample as it lies in its tar."""

    facts: SampleFacts
    member: MemberEntry
    data: bytes

    def told(self) -> str:
        facts = self.facts
        remarks = f" ({'; '.join(facts.remarks)})" if facts.remarks else ""
        return f"made, {facts.source.frames} frames, {facts.width} × {facts.height}{remarks}"

    def differs(self, wanted: Outcome) -> str:
        """How it differs from an outcome; empty where it doesn't."""
        facts = self.facts
        remarks = "; ".join(facts.remarks)
        if facts.source.frames not in wanted.frames:
            return f"expected {wanted.frames} frames"
        if wanted.words not in remarks:
            return f"expected the remark {wanted.words!r}"
        if facts.remarks and not wanted.words:
            return "expected no remark"
        if wanted.size not in (None, (facts.width, facts.height)):
            return f"expected {wanted.size}"
        kept = [int(number) for number in expand_series(facts.phases[0].source_frames)]
        planes = decode_all(self.data, len(kept), facts.key)  # raises where a frame is missing
        if wanted.right and not picture_is_right(planes.y_THW, kept):
            return "the picture is not that of these frames, upright"
        return ""


def _samples(dest: Path) -> Iterator[_Made]:
    for path in sorted(dest.glob("shard-*.json")):
        marker = decode_record(path.read_bytes(), ShardMarker, path.name)
        tar = (dest / marker.tar).read_bytes() if marker.samples else b""
        for sample in marker.samples:
            facts = decode_record(tar[sample.facts.offset :][: sample.facts.size], SampleFacts, marker.tar)
            (member,) = sample.members
            yield _Made(facts, member, tar[member.extent.offset :][: member.extent.size])
