"""A new plan and the one that a destination holds → the plan to build: the stored one, also with new sources appended."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

import msgspec

from vmae_data.encode.staged import staged_name
from vmae_data.errors import DataError, MisuseError, NotFoundError, VmaeError
from vmae_data.format import (
    FAILURES,
    INDEX,
    PLAN,
    RULES,
    SAMPLES,
    Label,
    PlanFacts,
    PlanStage,
    SourceFacts,
    encode_record,
)
from vmae_data.labels import label_text
from vmae_data.names import first_names, path_to_line, path_to_text
from vmae_data.recipes import with_defaults
from vmae_data.shards.plan import Plan, plan_recipe, read_plan, read_sources, refuse_difference
from vmae_data.shards.workspace import Workspace
from vmae_data.sources.find import Listing, SourceVideo, class_number, listing_digest
from vmae_data.sources.video_files import file_sizes
from vmae_data.storage import TEMPORARY, StoragePath, commit_bytes, list_names, lock, remove

__all__ = ["ComparedPlan", "SizeChanges", "compare_plan", "discard_unstarted"]

MOST_NAMED = 3  # videos in a message
_MARKER = re.compile(r"shard-\d{6,}\.json")
_SHARD_FILE = re.compile(r"shard-(\d{6,})\.(json|tar)")
# A kind of labels → what makes a listing have that kind.
_ADVICE = {
    "names": "Give every video one label, and at least one video a name that is no number",
    "class numbers": "Give every video one class number, such as 0",
    "several classes": 'Write at least one label as a list, such as ["a"]',
    "values": "Give every video a number, and at least one a fraction, such as 0.5",
}


class ComparedPlan(NamedTuple):
    """The plan to build. Removed sources stay in it; they are no longer in the source."""

    plan: Plan
    appended: int = 0
    removed: tuple[str, ...] = ()
    grown: bool = False  # the plan has one more stage than the stored one: of new sources, or of new classes alone


class SizeChanges:
    """Finds sources of a listing whose file changed since it was built, by its size."""

    def __init__(self, listing: Listing | None) -> None:
        """None finds nothing. Neither does a web server, which would be asked for each file."""
        self._sizes: dict[str, int | None] = {}
        self._found: set[str] = set()
        if listing is not None and (isinstance(listing.folder, bytes) or not listing.folder.is_web):
            paths = [source.path for source in listing.sources]
            self._sizes = dict(zip(map(path_to_text, paths), file_sizes(listing.folder, paths), strict=True))

    def note(self, source: SourceFacts) -> None:
        """Compare the source of a sample."""
        if self._sizes.get(source.path) not in (None, source.bytes):
            self._found.add(source.path)

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(sorted(self._found))


class _Change(NamedTuple):
    """How a listing differs from that of the stored plan."""

    added: tuple[SourceVideo, ...]  # in plan order
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]  # path and both labels
    kinds: tuple[str, ...] = ()  # of the stored and the new labels, if the same labels are read in another way

    def __str__(self) -> str:
        parts = []
        for items, what in ((self.added, "added"), (self.removed, "removed"), (self.relabelled, "with another label")):
            names = (path_to_line(item.path) if isinstance(item, SourceVideo) else item for item in items)
            if items:
                parts.append(f"{len(items)} {what} ({first_names(names, MOST_NAMED)})")
        return ", ".join(parts)


def discard_unstarted(workspace: Workspace, plan: Plan, *, append: bool) -> bool:
    """Remove a stored plan that differs from `plan` if nothing of it is finished. With `append`, so for its last append.

    Only if locks and staging are in the destination: elsewhere nobody sees what another machine has begun.
    Returns whether it removed one.
    """
    if workspace.staging_is_outside or _unstarted(workspace, plan) is None:
        return False
    with suppress(VmaeError), lock(workspace.locks, "build"):  # else a build is running
        stored = _unstarted(workspace, plan)
        if stored is None or (stored.appended_to and not append):
            return False
        if stored.appended_to:
            commit_bytes(workspace.dest / PLAN, encode_record(stored.stages()[-2]))
        else:
            remove(workspace.dest / PLAN)
        return True
    return False


def _unstarted(workspace: Workspace, plan: Plan) -> PlanFacts | None:
    """The stored plan, if its settings or sources are others, and no source and no shard of its last stage is finished."""
    try:
        stored = read_plan(workspace.dest)
    except DataError:
        return None
    if msgspec.structs.replace(_completed(stored, plan), rules=plan.facts.rules) == plan.facts:
        return None
    names, first = list_names(workspace.dest), stored.appended_to[-1].shards if stored.appended_to else 0
    finished = not stored.appended_to and not names.keys().isdisjoint((INDEX, SAMPLES, FAILURES))
    finished |= any(match and int(match[1]) >= first for match in map(_SHARD_FILE.fullmatch, names))
    # A stage of new classes alone is complete as soon as it is written.
    finished |= bool(stored.appended_to) and stored.shards == first
    finished |= not all(path.name.startswith(TEMPORARY) for path in workspace.staging.glob(staged_name("*")))
    return None if finished else stored


def compare_plan(
    dest: StoragePath, plan: Plan, *, source: str, append: bool, class_folders: tuple[str, ...] = ()
) -> ComparedPlan:
    """The plan with the facts stored in `dest`, if any: digests are those of the stored plan.

    A recipe key that the stored plan lacks is compared by its default. Older rules of a stored plan hold: equal plans
    give equal tars, whichever version makes them. With `append`, sources that the stored plan lacks are added to it.
    `class_folders` are those of the listing: whether their names are names or numbers stays as the stored plan has it.
    Raises MisuseError with the difference: a destination holds one plan.
    """
    try:
        stored = read_plan(dest)
    except NotFoundError:
        if any(map(_MARKER.fullmatch, list_names(dest))):
            raise MisuseError(
                f"{dest}: holds shards, but no {PLAN}, which says what they are. Restore it, or name another folder"
            ) from None
        return ComparedPlan(plan)
    same_sources = stored.listing == plan.facts.listing
    same_classes = same_sources and not stored.appended_to and not (append and _extends(plan, stored))
    _refuse_other_settings(dest, stored, plan, append=append, same_classes=same_classes)
    if same_classes:
        return ComparedPlan(plan._replace(facts=stored))
    try:
        before = read_sources(dest, stored)
    except DataError:
        if append or stored.appended_to:
            raise
        refuse_difference(dest, stored, plan.facts)  # without the names
        raise
    plan = _keep_reading(dest, stored, before, plan, class_folders)
    change = _compare_sources(before, stored.classes, plan)
    _refuse_change(dest, change, source, append=append, all_removed=len(change.removed) == len(before))
    if not change.added and not (append and _extends(plan, stored)):  # the plan may be read in another way now
        return ComparedPlan(plan._replace(facts=stored, sources=before), removed=change.removed)
    return ComparedPlan(_append(stored, before, change.added, plan), len(change.added), change.removed, grown=True)


def _extends(plan: Plan, stored: PlanFacts) -> bool:
    """Whether a plan has the stored classes and more. Labelled data sets only: nothing is appended to an empty list."""
    found, old = plan.facts.classes, stored.classes
    return 0 < len(old) < len(found) and found[: len(old)] == old


def _refuse_other_settings(
    dest: StoragePath, stored: PlanFacts, plan: Plan, *, append: bool, same_classes: bool
) -> None:
    """Compare all but the sources, and the classes too if they must be the same. An append may use another ffmpeg."""
    not_compared = {"rules", "appended_to", "listing", "sources", "shards"}
    if not same_classes:
        not_compared.add("classes")
    if append:
        not_compared |= {"ffmpeg", "ffmpeg_sha256"}
    same = {name: getattr(stored, name) for name in not_compared}
    refuse_difference(dest, _completed(stored, plan), msgspec.structs.replace(plan.facts, **same))


def _keep_reading(
    dest: StoragePath, stored: PlanFacts, before: Sequence[SourceVideo], plan: Plan, folders: tuple[str, ...]
) -> Plan:
    """The plan with class folders read as names, or as class numbers, as the stored plan has them.

    One more folder, or one less, may change the reading: `01` and `02` are names, with `00` they are class numbers.
    Raises MisuseError if two folders would become one class.
    """
    kept = {
        (path_to_text(source.path).partition("/")[0], stored.classes[source.label])
        for source in before
        if isinstance(source.label, int)
    }
    found = dict(zip(folders, plan.facts.classes, strict=True)) if folders else {}
    if all(found.get(folder, name) == name for folder, name in kept):
        return plan
    if all(folder == name for folder, name in kept):
        classes = folders
    elif all(class_number(folder) == name for folder, name in kept):
        classes = tuple(map(class_number, folders))
    else:
        return plan
    first: dict[str, str] = {}
    for folder, name in zip(folders, classes, strict=True):
        if first.setdefault(name, folder) != folder:
            raise MisuseError(
                f"{dest}: its class folders are class numbers, and {first[name]!r} and {folder!r} are both class {name}. "
                "Rename one of them, or name another folder for the shards"
            )
    facts = msgspec.structs.replace(plan.facts, classes=classes, listing=listing_digest(plan.sources, classes))
    return plan._replace(facts=facts)


def _completed(stored: PlanFacts, plan: Plan) -> PlanFacts:
    """The stored plan, the recipe keys that it lacks by their defaults."""
    return msgspec.structs.replace(stored, recipe=plan_recipe(with_defaults(stored.recipe, type(plan.spec))))


def _compare_sources(before: Sequence[SourceVideo], classes: Sequence[str], plan: Plan) -> _Change:
    old = {source.path: label_text(source.label, classes) for source in before}
    new = {source.path: label_text(source.label, plan.facts.classes) for source in plan.sources}
    changed = [(path, old[path], new[path]) for path in old.keys() & new.keys() if old[path] != new[path]]
    kinds = _kind(before, classes), _kind(plan.sources, plan.facts.classes)
    reread = kinds[0] != kinds[1] and all(a and b for _, a, b in changed)
    if set(kinds) == {"names", "class numbers"}:
        reread = reread and all(class_number(a) == class_number(b) for _, a, b in changed)
    return _Change(
        added=tuple(source for source in plan.sources if source.path not in old),
        removed=tuple(sorted(path_to_line(path) for path in old.keys() - new.keys())),
        relabelled=tuple(
            sorted(f"{path_to_line(path)}: {a or 'no label'} → {b or 'no label'}" for path, a, b in changed)
        ),
        kinds=kinds if reread else (),
    )


def _kind(sources: Sequence[SourceVideo], classes: Sequence[str]) -> str:
    """What the labels are read as: a key of `_ADVICE`."""
    several = [source.label for source in sources if isinstance(source.label, tuple)]
    if several:
        return "values" if any(isinstance(one, float) for label in several for one in label) else "several classes"
    return "class numbers" if all(name.isdecimal() and class_number(name) == name for name in classes) else "names"


def _refuse_change(dest: StoragePath, change: _Change, source: str, *, append: bool, all_removed: bool) -> None:
    """Raises MisuseError if labels changed or no source is left, and without `append` for any change."""
    found = f"{dest}: was built from other videos than those of {source}: {change}"
    if all_removed:
        raise MisuseError(f"{found}. Check SOURCE, or name another folder")
    if change.relabelled and change.kinds:
        old, new = change.kinds
        raise MisuseError(
            f"{found}. Its labels are {old}, but those of {source} are read as {new}. {_ADVICE[old]}, or name another folder"
        )
    if change.relabelled:
        raise MisuseError(
            f"{found}. A data set keeps its labels: restore them, with the same --annotations and --classes, "
            "or name another folder"
        )
    if change.added and not append:
        raise MisuseError(f"{found}. Add --append to build the new ones into new shards, or name another folder")
    if change.removed and not append:
        raise MisuseError(f"{found}. Restore them, add --append to keep them in the data set, or name another folder")


def _append(stored: PlanFacts, before: Sequence[SourceVideo], added: Sequence[SourceVideo], plan: Plan) -> Plan:
    """Classes keep their numbers, new ones come last. The new sources begin a new shard."""
    found, known = plan.facts.classes, set(stored.classes)
    classes = (*stored.classes, *(name for name in found if name not in known))
    numbers = {name: number for number, name in enumerate(classes)}
    sources = (*before, *(one._replace(label=_renumber(one.label, found, numbers)) for one in added))
    facts = msgspec.structs.replace(
        stored,
        listing=listing_digest(sources, classes),
        sources=len(sources),
        shards=stored.shards + -(-len(added) // plan.spec.samples_per_shard),
        classes=classes,
        ffmpeg=plan.facts.ffmpeg,
        ffmpeg_sha256=plan.facts.ffmpeg_sha256,
        rules=RULES,
        appended_to=(*stored.appended_to, _stage_of(stored)),
    )
    return plan._replace(facts=facts, sources=sources)


def _stage_of(plan: PlanFacts) -> PlanStage:
    values = {name: getattr(plan, name) for name in PlanStage.__struct_fields__}
    return PlanStage(**{**values, "classes": len(plan.classes)})


def _renumber(label: Label | None, classes: Sequence[str], numbers: dict[str, int]) -> Label | None:
    """A label in the numbers of the data set. Values stay."""
    if isinstance(label, int):
        return numbers[classes[label]]
    if label is None or any(isinstance(one, float) for one in label):
        return label
    return tuple(sorted(numbers[classes[int(one)]] for one in label))
