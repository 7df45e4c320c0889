"""Near duplicates among any number of samples, by the hashes of their frames.

Two steps. An index nominates pairs that share a frame: the hashes are sorted four times, each time with another quarter of
the bits in front, and each is compared with the WINDOW that follow it, so that F hashes cost 4 · F · (log F + WINDOW), never
all pairs, and a picture that thousands share (a title, a test card) floods nothing. Then each nominated pair is aligned in
time, and stands only where one offset makes the frames agree, in looks and in what moves.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from vmae_data.audit.hashes import MIRROR, Fingerprint, distance

__all__ = ["DuplicateSpec", "Duplicates", "Match", "align", "find_duplicates"]

TURNS = (0, 16, 32, 48)
WINDOW = 32
ROWS = 64  # frames of the shorter sample that are looked up in the other
OFFSETS = 48  # the most voted for are tried
OFFSET_SECONDS = 0.125
REACH_SECONDS = 0.25  # a frame meets its like within this: kept frames are up to 0.4 s apart
NEAR_BITS = 10  # frames that differ in at most so many bits nominate a pair, and an offset
FEWEST = 3  # frames that must overlap; of less only equal bytes are duplicates
TOLD = 0.25  # of them must say what moves, else nothing does
KEEPERS = 256  # of one group, that a sample is compared with: bounds what a chain of half copies costs


class DuplicateSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When two samples are near duplicates. Distances are mean bits of 64; unrelated frames differ by about 32.

    Measured (docs/audit.md): planted copies up to 14 bits in motion (11 in real videos), distinct videos from 15 on, and those only
    before one fixed camera; elsewhere the looks of distinct videos differ by 23 bits or more.
    """

    look_bits: float = 14.0
    still_bits: float = 6.0  # the same, where hardly anything moves: looks alone decide
    motion_bits: float = 14.5
    overlap: float = 0.65  # share of the shorter sample's frames that must overlap
    mirrored: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("look_bits", 0, 32),
            ("still_bits", 0, 32),
            ("motion_bits", 0, 32),
            ("overlap", 0.1, 1),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} = {value}: expected {low} to {high}")


class Match(NamedTuple):
    """How two samples agree: frame times of the second = those of the first + `offset`."""

    distance: float  # mean bits that looks differ in; 0 for equal bytes
    offset: float  # s
    mirrored: bool


class Duplicates(NamedTuple):
    """Sample → the earlier sample that it repeats, and how; and how many pairs were nominated."""

    recorder: dict[int, int]
    match: dict[int, Match]
    nominated: int


class _Compared(NamedTuple):
    recorder: int
    match: Match


def find_duplicates(
    prints: Sequence[Fingerprint], digests: Sequence[bytes], sources: Sequence[Hashable], spec: DuplicateSpec
) -> Duplicates:
    """Samples in order of preference: the first of each group of duplicates is kept.

    A sample is compared with those that are kept, never with copies, so that no chain of small differences grows.
    `digests`: sums of the bytes; equal ones are duplicates whatever they show. `sources`: samples with an equal one are
    parts of one video, and never duplicates of each other.
    """
    nominated = sorted({*_nominated(prints, sources, spec), *_equal_bytes(digests, sources)})
    # Only pairs that stand hang samples together: a title that thousands share makes no group of thousands.
    stand = [pair for pair in nominated if _compare(*pair, prints, digests, sources, spec) is not None]
    recorder: dict[int, int] = {}
    match: dict[int, Match] = {}
    for group in _groups(stand):
        kept: list[int] = []
        for sample in group:
            found = [
                _Compared(other, one)
                for other in kept[:KEEPERS]
                if (one := _compare(other, sample, prints, digests, sources, spec)) is not None
            ]
            if found:
                recorder[sample], match[sample] = min(found, key=lambda one: (one.match.distance, one.recorder))
            else:
                kept.append(sample)
    return Duplicates(recorder, match, len(nominated))


class _Entries(NamedTuple):
    """Each different hash of a sample once (E of them), and once more mirrored where asked for."""

    hash_E: NDArray[np.uint64]
    owner_E: NDArray[np.int64]
    mirrored_E: NDArray[np.bool_]


def _entries(prints: Sequence[Fingerprint], mirrored: bool) -> _Entries:
    hashes = [np.unique(one.look_T) for one in prints]
    owner = np.repeat(np.arange(len(prints)), [len(h) for h in hashes])
    plain = np.concatenate([*hashes, np.zeros(0, dtype=np.uint64)])
    if not mirrored:
        return _Entries(plain, owner, np.zeros(len(plain), dtype=np.bool_))
    both = np.concatenate([plain, plain ^ MIRROR])
    return _Entries(both, np.tile(owner, 2), np.repeat([False, True], len(plain)))


def _nominated(
    prints: Sequence[Fingerprint], sources: Sequence[Hashable], spec: DuplicateSpec
) -> Iterator[tuple[int, int]]:
    """Pairs of samples that share a frame, as far as sorting brings the two together."""
    entries = _entries(prints, spec.mirrored)
    numbers: dict[Hashable, int] = {}
    source = np.asarray([numbers.setdefault(name, len(numbers)) for name in sources], dtype=np.int64)
    total = len(prints)
    codes = [np.zeros(0, dtype=np.int64)]
    for turn in TURNS:
        turned = (entries.hash_E << np.uint64(turn)) | (entries.hash_E >> np.uint64((64 - turn) % 64))
        order = np.lexsort((entries.mirrored_E, entries.owner_E, turned))
        hash_E, owner_E = entries.hash_E[order], entries.owner_E[order]
        mirrored_E = entries.mirrored_E[order]
        for step in range(1, min(WINDOW, len(order) - 1) + 1):
            near = np.flatnonzero(distance(hash_E[step:], hash_E[:-step]) <= NEAR_BITS)
            one, other = owner_E[near], owner_E[near + step]
            told = (source[one] != source[other]) & ~(mirrored_E[near] & mirrored_E[near + step])
            one, other = one[told], other[told]
            codes.append(np.unique(np.minimum(one, other) * total + np.maximum(one, other)))
    for code in np.unique(np.concatenate(codes)).tolist():
        yield divmod(code, total)


def _equal_bytes(digests: Sequence[bytes], sources: Sequence[Hashable]) -> Iterator[tuple[int, int]]:
    first: dict[bytes, int] = {}
    for number, digest in enumerate(digests):
        other = first.setdefault(digest, number)
        if other != number and sources[other] != sources[number]:
            yield other, number


def _groups(pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Samples that hang together by pairs, each group in order."""
    root: dict[int, int] = {}

    def find(number: int) -> int:
        while (above := root.setdefault(number, number)) != number:
            root[number] = number = root[above]
        return number

    for one, other in pairs:
        a, b = find(one), find(other)
        root[max(a, b)] = min(a, b)
    groups: dict[int, list[int]] = {}
    for number in sorted(root):
        groups.setdefault(find(number), []).append(number)
    return [group for _, group in sorted(groups.items())]


def _compare(
    one: int,
    other: int,
    prints: Sequence[Fingerprint],
    digests: Sequence[bytes],
    sources: Sequence[Hashable],
    spec: DuplicateSpec,
) -> Match | None:
    if sources[one] == sources[other]:
        return None
    if digests[one] == digests[other]:
        return Match(0.0, 0.0, False)
    found = align(prints[one], prints[other], spec)
    if found is None and spec.mirrored:
        found = align(prints[one], prints[other], spec, mirrored=True)
    return found


def align(one: Fingerprint, other: Fingerprint, spec: DuplicateSpec, *, mirrored: bool = False) -> Match | None:
    """The offset at which the frames of the shorter sample agree best with the other's; None where they don't agree enough.

    Two moments before one fixed camera look alike; what moves in them does not, so both have to agree.
    """
    if len(other.time_T) < len(one.time_T):
        found = align(other, one, spec, mirrored=mirrored)
        return found._replace(offset=-found.offset) if found else None
    if len(one.time_T) < FEWEST:
        return None
    rows = np.unique(np.linspace(0, len(one.time_T) - 1, min(ROWS, len(one.time_T))).round().astype(np.int64))
    flip = MIRROR if mirrored else np.uint64(0)
    time_R = one.time_T[rows]
    look_RT = distance((one.look_T[rows] ^ flip)[:, None], other.look_T[None, :])
    offset_C = _offsets(time_R, other.time_T, look_RT <= NEAR_BITS)
    if not len(offset_C):
        return None
    partner_CR = _partners(time_R, other.time_T, offset_C, look_RT)
    met_CR = np.abs(other.time_T[partner_CR] - (time_R + offset_C[:, None])) <= REACH_SECONDS
    told_CR = met_CR & one.moves_T[rows] & other.moves_T[partner_CR]
    look_C = _mean(look_RT[np.arange(len(rows)), partner_CR], met_CR)
    move_C = _mean(distance((one.move_T[rows] ^ flip)[None, :], other.move_T[partner_CR]), told_CR)
    moves_C = told_CR.sum(axis=1) >= np.maximum(FEWEST, TOLD * met_CR.sum(axis=1))
    overlaps_C = met_CR.sum(axis=1) >= max(FEWEST, spec.overlap * len(rows))
    agrees_C = overlaps_C & np.where(
        moves_C, (look_C <= spec.look_bits) & (move_C <= spec.motion_bits), look_C <= spec.still_bits
    )
    if not agrees_C.any():
        return None
    best = int(np.argmin(np.where(agrees_C, look_C + np.where(moves_C, move_C, 0), np.inf)))
    return Match(float(look_C[best]), float(offset_C[best]), mirrored)


def _mean(bits_CR: NDArray[np.uint8], where_CR: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean of each line where it counts; 64 where nothing does."""
    count = where_CR.sum(axis=1)
    return np.where(count > 0, (bits_CR * where_CR).sum(axis=1) / np.maximum(count, 1), 64.0)


def _offsets(
    time_R: NDArray[np.float32], time_T: NDArray[np.float32], near_RT: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """The offsets that most pairs of like frames ask for; among equals the least."""
    row, column = np.nonzero(near_RT)
    bins, votes = np.unique(np.rint((time_T[column] - time_R[row]) / OFFSET_SECONDS), return_counts=True)
    order = np.lexsort((bins, np.abs(bins), -votes))[:OFFSETS]
    return np.asarray(bins[order] * OFFSET_SECONDS, dtype=np.float32)


def _partners(
    time_R: NDArray[np.float32],
    time_T: NDArray[np.float32],
    offset_C: NDArray[np.float32],
    bits_RT: NDArray[np.uint8],
) -> NDArray[np.int64]:
    """For each offset and row: of the two frames around the wanted time the one that is more alike."""
    after = np.searchsorted(time_T, time_R + offset_C[:, None]).clip(1, len(time_T) - 1)
    wanted = time_R + offset_C[:, None]
    rows = np.arange(len(time_R))
    near_before = np.abs(time_T[after - 1] - wanted) <= REACH_SECONDS
    near_after = np.abs(time_T[after] - wanted) <= REACH_SECONDS
    likes_before = bits_RT[rows, after - 1] < bits_RT[rows, after]
    return np.where(near_before & (likes_before | ~near_after), after - 1, after)
