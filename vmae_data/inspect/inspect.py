"""What a data set holds: a table, or a page with pictures.

What stands only in KEY.json is read for some samples, so that a million are as quick to look at as a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from vmae_data import html as page
from vmae_data.console import show_facts, size_words, time_words
from vmae_data.format import FAILURES, NOT_JSON, Failure, Index, SampleFacts, ShardMarker, decode_record
from vmae_data.histogram import histogram
from vmae_data.html import LONG_LIST, Bar, Bars, Charts, Fact, Facts, Figure, Note, Part, Section, Table
from vmae_data.inspect.facts import DataFacts, inspect_shards
from vmae_data.pictures import spread
from vmae_data.read.contact_sheet import contact_sheet
from vmae_data.read.dataset import Shards
from vmae_data.read.durations import sample_seconds
from vmae_data.storage import Span, StoragePath, read_bytes, read_each, read_spans

__all__ = ["DataFacts", "inspect_shards", "print_table", "write_page"]

LOOKED_AT = 500  # samples whose KEY.json is read for the page
PICTURED = 24
FAILURES_SHOWN = 20  # of each reason
REMARKS_SHOWN = 20
SIZES_SHOWN = 12
CLASSES_SHOWN = 12  # at either end, where there are too many to look at


def print_table(facts: DataFacts) -> None:
    """The counts, to stdout."""
    show_facts(str(facts.shards.folder), _rows(facts))


def _rows(facts: DataFacts) -> Iterator[tuple[str, str]]:
    index = facts.index
    yield "samples", f"{index.samples}" + (f", split {index.split}" if index.split else "")
    if facts.per_class:
        fewest, most = min(facts.per_class.values()), max(facts.per_class.values())
        yield "classes", f"{len(facts.per_class)}, {_between(fewest, most)} samples each"
    if facts.unlabelled:
        yield "without label", str(facts.unlabelled)
    yield "shards", f"{len(index.shardlist)}, {size_words(facts.bytes)}"
    if facts.index.source_bytes:
        yield "size", _share(facts)
    yield "source", time_words(3600 * facts.source_hours)
    yield "kept frames", f"{facts.kept_frames}; a sample {facts.frames}"
    yield "width", f"{facts.width} px"
    yield "height", f"{facts.height} px"
    yield "kept frames a second", str(facts.kept_rate)
    yield "thinning", index.spacing + (f", {index.phases} phases" if index.phases > 1 else "")
    yield "profile", f"{index.profile}, short side {index.short_side} px" + _profiles(facts)
    yield "may flip", "yes" if index.may_flip else "no"
    failures = ", ".join(f"{count} {reason}" for reason, count in index.failures.items())
    yield "failures", failures or "none"


def _profiles(facts: DataFacts) -> str:
    """Of a `copy` build: how many samples are copies, and how many had to be encoded."""
    if facts.index.profile != "copy":
        return ""
    looked_at = sum(facts.profiles.values())
    counts = ", ".join(f"{count} {profile}" for profile, count in facts.profiles.items())
    return f"; samples: {counts}" + (f" of {looked_at} looked at" if looked_at < len(facts.shards) else "")


def _between(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _size_fact(facts: DataFacts) -> Iterator[Fact]:
    if facts.index.source_bytes:
        percent, _, whole = _share(facts).partition(" of ")
        yield Fact("size", percent, f"of {whole}")


def _share(facts: DataFacts) -> str:
    whole = facts.index.source_bytes or 0
    return f"{100 * facts.bytes / whole:.3g} % of the sources' {size_words(whole)}"


def write_page(facts: DataFacts, html: StoragePath) -> None:
    """The page: figures, pictures, distributions, failures, remarks. Raises DataError where a shard is gone."""
    looked_at = list(_facts_of(facts.shards, spread(facts.shards.label_N, LOOKED_AT)))
    index = facts.index
    sections = [
        Section("At a glance", tuple(_glance(facts))),
        Section("Videos", tuple(_pictures(facts))),
        Section("Classes", tuple(_classes(facts))),
        Section("Distributions", (Charts(tuple(_charts(facts, looked_at))), *_sizes(facts))),
        Section("Failures", tuple(_failures(facts))),
        Section("Remarks", tuple(_remarks(looked_at, index.samples))),
        Section("How it was built", (_recipe(index),)),
    ]
    page.write_page(html, facts.shards.folder.resolve().name, sections, f"{index.samples} samples, shards of videos")


class _LookedAt(NamedTuple):
    facts: SampleFacts
    bytes: int


def _facts_of(shards: Shards, numbers: Sequence[int]) -> Iterator[_LookedAt]:
    """KEY.json of some samples; each marker is read once."""
    by_shard: dict[int, set[str]] = {}
    for number in numbers:
        by_shard.setdefault(shards.place(number).shard, set()).add(shards.key(number))
    chosen = sorted(by_shard.items())
    places = [shards.shard_path(shard).with_suffix(".json") for shard, _ in chosen]
    for (shard, keys), path, record in zip(chosen, places, read_each(places), strict=True):
        tar = shards.shard_path(shard)
        marker = decode_record(record, ShardMarker, str(path))
        entries = [entry for entry in marker.samples if entry.key in keys]
        found = read_spans(tar, [Span(entry.facts.offset, entry.facts.size) for entry in entries])
        for entry, data in zip(entries, found, strict=True):
            size = sum(member.extent.size for member in entry.members)
            yield _LookedAt(decode_record(data, SampleFacts, f"{tar.name}: {entry.key}.json"), size)


def _glance(facts: DataFacts) -> Iterator[Part]:
    index = facts.index
    figures = [Fact("samples", f"{index.samples}", f"split {index.split}" if index.split else "")]
    if facts.per_class:
        counts = facts.per_class.values()
        figures.append(Fact("classes", str(len(facts.per_class)), f"{_between(min(counts), max(counts))} samples each"))
    figures += [
        Fact("shards", str(len(index.shardlist)), size_words(facts.bytes)),
        *_size_fact(facts),
        Fact("of source", time_words(3600 * facts.source_hours)),
        Fact("kept frames", f"{facts.kept_frames}", index.spacing),
        Fact("profile", index.profile, _profiles(facts).removeprefix("; samples: ")),
        Fact(
            "failures", str(sum(index.failures.values())), ", ".join(f"{n} {why}" for why, n in index.failures.items())
        ),
    ]
    yield Facts(tuple(figures))
    if facts.unlabelled and facts.per_class:
        yield Note(f"{facts.unlabelled} samples have no label.", warning=True)
    empty = [name for name, count in facts.per_class.items() if not count]
    if empty:
        classes = f"{len(empty)} classes have" if len(empty) > 1 else "1 class has"
        yield Note(f"{classes} no sample: {', '.join(empty[:20])}{', …' if len(empty) > 20 else ''}", True)


def _pictures(facts: DataFacts) -> Iterator[Part]:
    numbers = spread(facts.shards.label_N, PICTURED)
    shown = contact_sheet(facts.shards, numbers)
    drawn = "" if len(numbers) == len(facts.shards) else ", drawn by a fixed seed, classes in turn"
    yield Note(
        f"First, middle and last kept frame of {len(shown.gallery.tiles)} of {len(facts.shards)} samples{drawn}."
    )
    yield shown.gallery
    for key, why in shown.unreadable.items():
        yield Note(f"{key} can't be shown: {why}", warning=True)


def _classes(facts: DataFacts) -> Iterator[Part]:
    """Greatest first; of many classes the two ends, how many samples classes have, and the rest folded away."""
    ordered = sorted(facts.per_class.items(), key=lambda item: (-item[1], item[0]))
    bars = tuple(Bar(name, n, str(n)) for name, n in ordered)
    if len(bars) <= LONG_LIST:
        if bars:
            yield Bars(bars, "classes")
        return
    top = max(1, ordered[0][1])
    yield Note(f"The {CLASSES_SHOWN} greatest of {len(bars)} classes:")
    yield Bars(bars[:CLASSES_SHOWN], "the greatest", top)
    yield Note(f"The {CLASSES_SHOWN} smallest:")
    yield Bars(bars[-CLASSES_SHOWN:], "the smallest", top)
    yield Charts((histogram([n for _, n in ordered], "Samples of a class, and how many classes have so many"),))
    yield Bars(bars, f"all {len(bars)} classes", top)


def _charts(facts: DataFacts, looked_at: Sequence[_LookedAt]) -> Iterator[Figure]:
    shards = facts.shards
    frames = shards.frames_NP[:, 0]
    some = "" if len(looked_at) == len(shards) else f"Of {len(looked_at)} samples that were looked at."
    yield histogram([sample_seconds(one.facts) for one in looked_at], "Duration of a sample", "s", some)
    yield histogram(shards.source_rate_N, "Rate of the sources", "frames/s", ranges=False)
    yield histogram(frames, "Kept frames of a sample")
    yield histogram(
        [min(one.facts.source.width, one.facts.source.height) for one in looked_at],
        "Short side of the sources", "px", some, ranges=False,
    )  # fmt: skip
    whole = [one for one in looked_at if one.facts.segment is None and one.facts.source.bytes]
    yield histogram(
        [100 * one.bytes / one.facts.source.bytes for one in whole],
        "Size of the kept video, of its source's",
        "%",
        some,
    )
    yield histogram([one.bytes / 1000 for one in looked_at], "Size of a kept video", "kB", some)


def _sizes(facts: DataFacts) -> Iterator[Part]:
    counts = Counter(map(tuple, facts.shards.size_N2.tolist())).most_common()
    bars = [Bar(f"{width} × {height}", n, str(n)) for (height, width), n in counts[:SIZES_SHOWN]]
    if len(counts) > SIZES_SHOWN:
        rest = sum(n for _, n in counts[SIZES_SHOWN:])
        bars.append(Bar(f"{len(counts) - SIZES_SHOWN} other sizes", rest, str(rest)))
    yield Note("Frame sizes, width × height:")
    yield Bars(tuple(bars), "frame sizes")


def _failures(facts: DataFacts) -> Iterator[Part]:
    path = facts.shards.folder / FAILURES
    if not facts.index.failures:
        yield Note("Every source gave a sample.")
        return
    by_reason: dict[str, list[Failure]] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        try:
            failure = msgspec.json.decode(line, type=Failure)
        except NOT_JSON as error:
            yield Note(f"{FAILURES}, line {number}: can't be read ({error})", warning=True)
            continue
        by_reason.setdefault(failure.reason, []).append(failure)
    for reason, failures in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        more = len(failures) - FAILURES_SHOWN
        yield Note(f"{reason}: {len(failures)} {'sources' if len(failures) > 1 else 'source'}")
        yield Table(("source", "what was said"), tuple((f.path, f.detail) for f in failures[:FAILURES_SHOWN]))
        if more > 0:
            yield Note(f"… and {more} more; {FAILURES} names them all.")


def _remarks(looked_at: Sequence[_LookedAt], total: int) -> Iterator[Part]:
    remarked = [one.facts for one in looked_at if one.facts.remarks]
    assumed = sum(one.facts.colour.assumed for one in looked_at)
    of = f"{len(looked_at)} samples" + (" that were looked at" if len(looked_at) < total else "")
    yield Note(f"{len(remarked)} of {of} carry a remark. {assumed} came without colour tags; theirs were assumed.")
    if remarked:
        rows = [(facts.source.path, "\n".join(facts.remarks)) for facts in remarked[:REMARKS_SHOWN]]
        yield Table(("source", "remark"), tuple(rows))


def _recipe(index: Index) -> Table:
    rows = [(name, str(value)) for name, value in sorted(index.recipe.items())]
    return Table(("key", "value"), (*rows, ("format version", str(index.version)), ("plan", index.plan)))
