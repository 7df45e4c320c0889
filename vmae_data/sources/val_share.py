"""A listing and a share → which of its sources are for validation. A hash of each source's group decides.

So the split depends on the names of the sources alone: not on the machine, their order, or which other videos there are.
One rule goes before the hash: every class has a video in train.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vmae_data.amounts import plural
from vmae_data.errors import MisuseError
from vmae_data.format import Label
from vmae_data.names import first_names, path_to_line
from vmae_data.sources.find import Listing

__all__ = ["TRAIN", "VAL", "ValShare", "split_notes", "split_sources"]

TRAIN, VAL = "train", "val"
MAX_SHOWN = 5  # names in a message


class ValShare(NamedTuple):
    """The share of groups for validation. Without a pattern every source is a group."""

    share: float
    group_by: str | None = None

    def checked(self) -> ValShare:
        """Raises MisuseError for a share that is not between 0 and 1, or an invalid pattern."""
        if not 0 < self.share < 1:
            raise MisuseError(f"--val-share {self.share:g}: expected a number between 0 and 1, such as 0.2")
        try:
            re.compile(self.group_by or "")
        except re.error as error:
            raise MisuseError(f"--group-by {self.group_by}: is not a regular expression ({error})") from error
        return self

    def group_of(self, path: bytes) -> bytes:
        """The pattern's first group that took part, else its whole match. Empty if nothing matches."""
        if self.group_by is None:
            return path
        match = re.search(self.group_by, path.decode("utf-8", "surrogateescape"))
        if match is None:
            return b""
        text: str = next((group for group in match.groups() if group is not None), match[0])
        return text.encode("utf-8", "surrogateescape")


def split_sources(listing: Listing, share: ValShare, stored: Mapping[bytes, str]) -> frozenset[bytes]:
    """The paths of the sources for validation.

    A group stays in the data set that has one of its sources already: `stored` has the data set of each path.
    If all groups of a class are new and for validation, the one with the largest hash goes to train.
    Raises MisuseError for sources without a group, and if train or val gets no source.
    """
    groups = {source.path: share.group_of(source.path) for source in listing.sources}
    _require_groups(share, groups)
    kept = {share.group_of(path): name for path, name in stored.items()}
    hashes = {group: _hash(group) for group in groups.values()}
    val = {group for group, value in hashes.items() if kept.get(group, VAL if value < share.share else TRAIN) == VAL}
    groups_of: dict[int, set[bytes]] = defaultdict(set)
    for source in listing.sources:
        for number in _classes_of(source.label):
            groups_of[number].add(groups[source.path])
    for _, found in sorted(groups_of.items()):
        movable = found - kept.keys()
        if found <= val and movable:
            val.remove(max(movable, key=lambda group: (hashes[group], group)))
    paths = frozenset(path for path, group in groups.items() if group in val)
    _require_both(listing, share, paths, hashes)
    return paths


def split_notes(listing: Listing, val: frozenset[bytes]) -> tuple[str, ...]:
    """Notes on how many sources are in `val`, and on classes without one."""
    notes = [f"{len(val)} of {plural(len(listing.sources), 'video')} are for validation"]
    found = {number for source in listing.sources for number in _classes_of(source.label)}
    found -= {number for source in listing.sources if source.path in val for number in _classes_of(source.label)}
    if found:
        names = first_names((listing.classes[number] for number in sorted(found)), MAX_SHOWN)
        notes.append(f"val has no video of {len(found)} of {len(listing.classes)} classes ({names})")
    return tuple(notes)


def _hash(group: bytes) -> float:
    """Uniform in [0, 1): 53 bits, so that the fraction is exact."""
    return (int.from_bytes(hashlib.sha256(b"val-share/" + group).digest()[:8]) >> 11) / 2**53


def _classes_of(label: Label | None) -> Iterable[int]:
    numbers = label if isinstance(label, tuple) else (label,)
    return [number for number in numbers if isinstance(number, int)]


def _require_groups(share: ValShare, groups: Mapping[bytes, bytes]) -> None:
    unmatched = sorted(path_to_line(path) for path, group in groups.items() if not group)
    if unmatched:
        raise MisuseError(
            f"--group-by {share.group_by}: matches nothing in {len(unmatched)} of {plural(len(groups), 'path')} "
            f"({first_names(unmatched, MAX_SHOWN)}). Give a pattern that matches every path relative to SOURCE"
        )


def _require_both(listing: Listing, share: ValShare, val: frozenset[bytes], hashes: Mapping[bytes, float]) -> None:
    total = len(listing.sources)
    for name, count in ((VAL, len(val)), (TRAIN, total - len(val))):
        if count == 0:
            raise MisuseError(
                f"--val-share {share.share:g}: none of {plural(total, 'video')} in {plural(len(hashes), 'group')} "
                f"falls into {name}. Give a {'larger' if name == VAL else 'smaller'} share, or more videos"
            )
