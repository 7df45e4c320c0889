"""One of the two data sets that `build --val-share` makes of a source: which sources and class numbers it has."""

from __future__ import annotations

from typing import NamedTuple

from vmae_data.errors import DataError, MisuseError, NotFoundError
from vmae_data.format import PlanFacts
from vmae_data.shards.plan import read_plan, read_sources
from vmae_data.sources.exclude import exclude_sources
from vmae_data.sources.find import Listing, listing_digest
from vmae_data.sources.val_share import TRAIN, VAL, ValShare, split_notes, split_sources
from vmae_data.storage import StoragePath

__all__ = ["SUBSETS", "Subset", "refuse_parent"]

SUBSETS = (TRAIN, VAL)  # in the order of their builds: val takes the class numbers of train


class Subset(NamedTuple):
    """`name` is train or val. `parent` is the folder of both data sets."""

    name: str
    share: ValShare
    parent: StoragePath

    @property
    def dest(self) -> StoragePath:
        return self.parent / self.name

    @property
    def dests(self) -> tuple[StoragePath, ...]:
        """The folders of both data sets."""
        return tuple(self.parent / name for name in SUBSETS)

    def classes(self, given: tuple[str, ...]) -> tuple[str, ...]:
        """The class numbers to use: for val those of train, which also keep their order when classes are appended."""
        return given if self.name == TRAIN else read_plan(self.parent / TRAIN).classes

    def choose(self, listing: Listing, exclude: str | None) -> Listing:
        """The sources of this data set, without those that `exclude` names. `listing` has the sources of both."""
        val = split_sources(listing, self.share, self._stored())
        train_listing, val_listing = (
            listing._replace(sources=tuple(one for one in listing.sources if (one.path in val) == is_val))
            for is_val in (False, True)
        )
        digests = [listing_digest(one.sources, one.classes) for one in (train_listing, val_listing)] if exclude else ()
        remaining = exclude_sources(listing, exclude, digests)
        chosen = train_listing if self.name == TRAIN else val_listing
        paths = {source.path for source in remaining.sources}
        sources = tuple(source for source in chosen.sources if source.path in paths)
        if not sources:
            raise MisuseError(f"{exclude}: excludes all {len(chosen.sources)} sources of {self.name}")
        remaining = remaining._replace(sources=sources, num_excluded=len(chosen.sources) - len(sources))
        return remaining._replace(notes=(*remaining.notes, *split_notes(listing, val)))

    def _stored(self) -> dict[bytes, str]:
        """The data set of each source that is planned already with this share."""
        stored: dict[bytes, str] = {}
        for name in SUBSETS:
            plan = _stored_plan(self.parent / name)
            if plan is None or ValShare(plan.val_share or 0, plan.group_by) != self.share:
                continue
            try:
                stored |= {source.path: name for source in read_sources(self.parent / name, plan)}
            except DataError:
                if plan.appended_to:
                    raise
        return stored


def refuse_parent(dest: StoragePath) -> None:
    """Raise MisuseError if the folder holds the two data sets of a build with --val-share."""
    plan = _stored_plan(dest / TRAIN)
    if plan is not None and plan.val_share is not None:
        pattern = f" --group-by '{plan.group_by}'" if plan.group_by else ""
        raise MisuseError(
            f"{dest}: holds the data sets {' and '.join(SUBSETS)}. Give --val-share {plan.val_share:g}{pattern} as for their "
            "build, or name another folder"
        )


def _stored_plan(dest: StoragePath) -> PlanFacts | None:
    try:
        return read_plan(dest)
    except NotFoundError:
        return None
