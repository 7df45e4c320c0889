"""The function that a pool of encodes calls. The process of a build imports it without the libraries that decode."""

from __future__ import annotations

from vmae_data.encode.staged import EncodeJob, StagedSource

__all__ = ["encode_later"]


def encode_later(job: EncodeJob) -> StagedSource:
    """`encode_source`, whose libraries are imported where this runs."""
    from vmae_data.encode.encode_source import encode_source

    return encode_source(job)
