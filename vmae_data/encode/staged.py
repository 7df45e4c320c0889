"""The records of an encode: its job, and what it leaves in staging.

The process of a build imports this module, and not the libraries that decode.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec

from vmae_data.encode.build_spec import BuildSpec
from vmae_data.format import RULES, Failure, Label, Packets, PhaseFacts, SampleFacts
from vmae_data.sources.video_files import Folder

__all__ = ["EncodeJob", "StagedMember", "StagedSample", "StagedSource", "staged_name"]


class EncodeJob(NamedTuple):
    """The input of one encode; small, so that it can be sent to any process."""

    key: str
    path: bytes
    folder: Folder
    label: Label | None
    class_name: str | None
    split: str | None
    spec: BuildSpec
    ffmpeg: str
    staging: Path
    rules: int = RULES  # to encode by
    plan_rules: int = RULES
    plan: str = ""  # digest


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
    """The result of a source: samples (one, or one per segment), or a failure."""

    samples: tuple[StagedSample, ...] = ()
    failure: Failure | None = None
    plan: str = ""  # digest of the plan that has the source first; empty in a record of an older version


def staged_name(key: str) -> str:
    """The file name of a source's record in staging. It is written last: if it exists, the encoded files do."""
    return f"{key}.staged.json"
