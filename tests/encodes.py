"""Encodes of single files, as a build makes them, and what they hold."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from vmae_data.decode import decode_all
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.encode.encode_source import encode_source
from vmae_data.encode.ffmpeg import find_ffmpeg
from vmae_data.encode.staged import EncodeJob, StagedSample, StagedSource
from vmae_data.format import RULES, expand_series
from vmae_data.names import key_of

__all__ = ["encode", "kept_frames", "planes", "reason", "sample_of"]


def encode(
    path: Path, *, rules: int = RULES, ffmpeg: str = "", folder: Path | None = None, **spec: object
) -> StagedSource:
    staging = path.parent / "staging"
    staging.mkdir(exist_ok=True)
    job = EncodeJob(
        key=key_of(os.fsencode(path.name)),
        path=os.fsencode(path.name),
        folder=bytes(folder or path.parent),
        label=None,
        class_name=None,
        split=None,
        spec=BuildSpec(**{"short_side": 32, "crf": 10, **({} if "rate" in spec else {"stride": 1}), **spec}),
        ffmpeg=ffmpeg or find_ffmpeg().path,
        staging=staging,
        rules=rules,
        plan_rules=rules,
    )
    return encode_source(job)


def sample_of(path: Path, **options: object) -> StagedSample:
    staged = encode(path, **options)  # type: ignore[arg-type]
    assert staged.failure is None, staged.failure
    return staged.samples[0]


def reason(path: Path, **options: object) -> str:
    failure = encode(path, **options).failure  # type: ignore[arg-type]
    return failure.reason if failure else "none"


def kept_frames(sample: StagedSample) -> list[int]:
    return expand_series(sample.facts.phases[0].source_frames).tolist()


def planes(path: Path, sample: StagedSample) -> np.ndarray:
    data = (path.parent / "staging" / sample.members[0].file).read_bytes()
    return decode_all(data, len(kept_frames(sample)), "v").y_THW
