"""Fingerprints of any number of samples → which are near duplicates of which.

Two steps. First an index finds candidate pairs, which share a similar frame. It sorts all hashes four times, each time with
another quarter of the bits in front, and compares each with the WINDOW that follow it. So F hashes cost
4 · F · (log F + WINDOW), never all pairs, and a picture that thousands share (a title, a test card) causes no flood. Then each
candidate pair is aligned in time. It is a duplicate only if its frames agree at one offset, in look and in motion.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.audit.hashes import MIRROR, Fingerprint, distance
from vmae_data.recipes import check_bounds

__all__ = ["DuplicateSpec", "Duplicates", "Match", "align", "find_duplicates"]

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
F32 = NDArray[np.float32]
Bool = NDArray[np.bool_]
# E hashes of all samples, T frames of the longer sample, R frames of the shorter one, C candidate offsets.
ROTATIONS = (0, 16, 32, 48)  # in bits, one per sorting
WINDOW = 32
MAX_FRAMES = 64  # of the shorter sample, which are compared with all frames of the other
MAX_OFFSETS = 48  # the ones with the most votes are tried
OFFSET_SECONDS = 0.125
REACH_SECONDS = 0.25  # a frame matches one within this time: kept frames are up to 0.4 s apart
NEAR_BITS = 10  # frames that differ in at most this many bits vote for a pair, and for an offset
MIN_OVERLAP = 3  # frames; samples with fewer are duplicates only if their bytes are equal
MIN_MOVING = 0.25  # share of the overlapping frames that must have a motion hash, else it is ignored
MAX_ORIGINALS = 256  # of one group, with which a sample is compared: bounds the cost of a chain of half copies


class DuplicateSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When two samples are near duplicates. Distances are mean bits of 64; unrelated frames differ in about 32.

    Measured (docs/audit.md): planted copies differ by up to 14 bits in motion (11 in real videos). Distinct videos differ by
    15 or more, and by that little only before one fixed camera; elsewhere their looks differ by 23 bits or more.
    """

    look_bits: float = 14.0
    still_bits: float = 6.0  # the same, if hardly anything moves: then the look decides alone
    motion_bits: float = 14.5
    overlap: float = 0.65  # share of the shorter sample's frames that must overlap
    mirrored: bool = False

    def __post_init__(self) -> None:
        check_bounds(self, look_bits=(0, 32), still_bits=(0, 32), motion_bits=(0, 32), overlap=(0.1, 1))


class Match(NamedTuple):
    """How two samples agree: frame times of the second = those of the first + `offset`."""

    distance: float  # mean bits that differ in the look; 0 for equal bytes
    offset: float  # s
    mirrored: bool


class Duplicates(NamedTuple):
    """Copy → its original, an earlier sample, and how the two match; and the number of candidate pairs."""

    original: dict[int, int]
    match: dict[int, Match]
    num_candidates: int


def find_duplicates(
    prints: Sequence[Fingerprint], digests: Sequence[bytes], sources: Sequence[Hashable], spec: DuplicateSpec
) -> Duplicates:
    """Samples are in order of preference: the first of each group of duplicates is kept.

    A sample is compared with kept samples, never with copies, so that small differences do not add up along a chain.
    `digests`: checksums of the bytes; samples with equal ones are duplicates whatever they show. `sources`: samples with an
    equal one are parts of one video, and never duplicates of each other.
    """

    def compare(one: int, other: int) -> Match | None:
        if sources[one] == sources[other]:
            return None
        if digests[one] == digests[other]:
            return Match(0.0, 0.0, False)
        match = align(prints[one], prints[other], spec)
        if match is None and spec.mirrored:
            match = align(prints[one], prints[other], spec, mirrored=True)
        return match

    candidates = sorted({*_similar_pairs(prints, sources, spec), *_equal_pairs(digests, sources)})
    # Only real matches form groups: a title that thousands share makes no group of thousands.
    matching = [pair for pair in candidates if compare(*pair) is not None]
    original_of: dict[int, int] = {}
    match_of: dict[int, Match] = {}
    for group in _groups(matching):
        kept: list[int] = []
        for sample in group:
            compared = {original: compare(original, sample) for original in kept[:MAX_ORIGINALS]}
            matches = {original: match for original, match in compared.items() if match is not None}
            if matches:
                best = min(matches, key=lambda original: (matches[original].distance, original))
                original_of[sample], match_of[sample] = best, matches[best]
            else:
                kept.append(sample)
    return Duplicates(original_of, match_of, len(candidates))


def _similar_pairs(
    prints: Sequence[Fingerprint], sources: Sequence[Hashable], spec: DuplicateSpec
) -> Iterator[tuple[int, int]]:
    """Pairs of samples with a similar frame, if sorting puts the two frames within the window."""
    hashes = [np.unique(one.look_T) for one in prints]
    hash_E = np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)])
    sample_E = np.repeat(np.arange(len(prints)), [len(one) for one in hashes])
    mirrored_E = np.zeros(len(hash_E), dtype=np.bool_)
    if spec.mirrored:
        mirrored_E = np.repeat([False, True], len(hash_E))
        hash_E, sample_E = np.concatenate([hash_E, hash_E ^ MIRROR]), np.tile(sample_E, 2)
    numbers: dict[Hashable, int] = {}
    source = np.asarray([numbers.setdefault(name, len(numbers)) for name in sources], dtype=np.int64)
    total = len(prints)
    codes = [np.zeros(0, dtype=np.int64)]
    for rotation in ROTATIONS:
        rotated_E = (hash_E << np.uint64(rotation)) | (hash_E >> np.uint64((64 - rotation) % 64))
        order = np.lexsort((mirrored_E, sample_E, rotated_E))
        sorted_hash, sorted_sample, sorted_mirrored = hash_E[order], sample_E[order], mirrored_E[order]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            near = np.flatnonzero(distance(sorted_hash[step:], sorted_hash[:-step]) <= NEAR_BITS)
            one, other = sorted_sample[near], sorted_sample[near + step]
            counts = (source[one] != source[other]) & ~(sorted_mirrored[near] & sorted_mirrored[near + step])
            one, other = one[counts], other[counts]
            codes.append(np.unique(np.minimum(one, other) * total + np.maximum(one, other)))
    for code in np.unique(np.concatenate(codes)).tolist():
        yield divmod(code, total)


def _equal_pairs(digests: Sequence[bytes], sources: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        other = first.setdefault(digest, number)
        if other != number and sources[other] != sources[number]:
            yield other, number


def _groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Samples that are connected by pairs (union-find), each group in order."""
    parent: dict[int, int] = {}

    def root(number: int) -> int:
        while (above := parent.setdefault(number, number)) != number:
            parent[number] = number = parent[above]
        return number

    for one, other in pairs:
        a, b = root(one), root(other)
        parent[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for number in sorted(parent):
        groups.setdefault(root(number), []).append(number)
    return [group for _, group in sorted(groups.items())]


def align(one: Fingerprint, other: Fingerprint, spec: DuplicateSpec, *, mirrored: bool = False) -> Match | None:
    """The offset at which the frames of the shorter sample agree best with the other's; None if they do not agree enough.

    Two moments before one fixed camera have the same look but other motion, so both have to agree.
    """
    if len(other.time_T) < len(one.time_T):
        swapped = align(other, one, spec, mirrored=mirrored)
        return swapped._replace(offset=-swapped.offset) if swapped else None
    if len(one.time_T) < MIN_OVERLAP:
        return None
    frames = np.unique(np.linspace(0, len(one.time_T) - 1, min(MAX_FRAMES, len(one.time_T))).round().astype(np.int64))
    flip = MIRROR if mirrored else np.uint64(0)
    time_R = one.time_T[frames]
    look_RT = distance((one.look_T[frames] ^ flip)[:, None], other.look_T[None, :])
    offset_C = _offsets(time_R, other.time_T, look_RT <= NEAR_BITS)
    if not len(offset_C):
        return None
    partner_CR = _partners(time_R, other.time_T, offset_C, look_RT)
    overlap_CR = np.abs(other.time_T[partner_CR] - (time_R + offset_C[:, None])) <= REACH_SECONDS
    moving_CR = overlap_CR & one.moves_T[frames] & other.moves_T[partner_CR]
    look_C = _mean(look_RT[np.arange(len(frames)), partner_CR], overlap_CR)
    motion_C = _mean(distance((one.move_T[frames] ^ flip)[None, :], other.move_T[partner_CR]), moving_CR)
    moves_C = moving_CR.sum(axis=1) >= np.maximum(MIN_OVERLAP, MIN_MOVING * overlap_CR.sum(axis=1))
    overlaps_C = overlap_CR.sum(axis=1) >= max(MIN_OVERLAP, spec.overlap * len(frames))
    agrees_C = overlaps_C & np.where(
        moves_C, (look_C <= spec.look_bits) & (motion_C <= spec.motion_bits), look_C <= spec.still_bits
    )
    if not agrees_C.any():
        return None
    best = int(np.argmin(np.where(agrees_C, look_C + np.where(moves_C, motion_C, 0), np.inf)))
    return Match(float(look_C[best]), float(offset_C[best]), mirrored)


def _mean(bits_CR: U8, counts_CR: Bool) -> NDArray[np.float64]:
    """The mean of each row over the entries that count; 64 if none does."""
    count = counts_CR.sum(axis=1)
    return np.where(count > 0, (bits_CR * counts_CR).sum(axis=1) / np.maximum(count, 1), 64.0)


def _offsets(time_R: F32, time_T: F32, near_RT: Bool) -> F32:
    """The offsets with the most votes from pairs of similar frames; among equals the smallest first."""
    row, column = np.nonzero(near_RT)
    bins, votes = np.unique(np.rint((time_T[column] - time_R[row]) / OFFSET_SECONDS), return_counts=True)
    order = np.lexsort((bins, np.abs(bins), -votes))[:MAX_OFFSETS]
    return np.asarray(bins[order] * OFFSET_SECONDS, dtype=np.float32)


def _partners(time_R: F32, time_T: F32, offset_C: F32, bits_RT: U8) -> I64:
    """For each offset and frame of the shorter sample: the more similar of the other's two frames around that time."""
    time_CR = time_R + offset_C[:, None]
    after = np.searchsorted(time_T, time_CR).clip(1, len(time_T) - 1)
    rows = np.arange(len(time_R))
    near_before = np.abs(time_T[after - 1] - time_CR) <= REACH_SECONDS
    near_after = np.abs(time_T[after] - time_CR) <= REACH_SECONDS
    before_is_closer = bits_RT[rows, after - 1] < bits_RT[rows, after]
    return np.where(near_before & (before_is_closer | ~near_after), after - 1, after)
