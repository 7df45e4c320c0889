"""A data set's counts and some of its samples → an HTML page with pictures.

What only KEY.json holds is read for some samples, so that a million samples take no longer than a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from vmae_data.amounts import format_bytes, format_seconds
from vmae_data.errors import DataError
from vmae_data.format import FAILURES, NOT_JSON, Failure, Index, SampleFacts, ShardMarker, decode_record
from vmae_data.inspect.inspect import DataFacts
from vmae_data.names import first_names
from vmae_data.pages.histogram import histogram
from vmae_data.pages.html import (
    LONG_LIST,
    Bar,
    Bars,
    Charts,
    Fact,
    Facts,
    Figure,
    Note,
    Part,
    Section,
    Table,
    write_page,
)
from vmae_data.pages.pictures import choose_samples
from vmae_data.pages.previews import Previews
from vmae_data.read.contact_sheet import contact_sheet
from vmae_data.read.dataset import Shards, sample_seconds
from vmae_data.storage import Span, StoragePath, read_bytes, read_each, read_spans

__all__ = ["write_inspect_page"]

SAMPLES_READ = 500  # whose KEY.json is read
SAMPLES_SHOWN = 24
FAILURES_SHOWN = 20  # of each reason
NOTES_SHOWN = 20
SIZES_SHOWN = 12
CLASSES_SHOWN = 12  # the largest, and the smallest, of a long list


def write_inspect_page(facts: DataFacts, path: StoragePath) -> None:
    """Write the page. Raises DataError if a shard is missing."""
    damaged: list[str] = []
    samples = list(_read_samples(facts.shards, choose_samples(facts.shards.label_N, SAMPLES_READ), damaged))
    sections = [
        Section("Overview", tuple(_overview(facts))),
        Section("Videos", tuple(_videos(facts))),
        Section("Classes", tuple(_classes(facts))),
        Section("Distributions", (Charts(tuple(_charts(facts, samples))), *_frame_sizes(facts))),
        Section("Failures", tuple(_failures(facts))),
        Section("Unreadable samples", tuple(_damaged(damaged))),
        Section("Notes of the build", tuple(_notes(samples))),
        Section("How it was built", (_recipe(facts.index),)),
    ]
    write_page(path, facts.shards.folder.resolve().name, sections, f"Data set of {facts.index.samples} samples")


def _damaged(messages: Sequence[str]) -> Iterator[Part]:
    if messages:
        yield Note("Run `vmae-shard verify` to find all of them. What follows is of the others.", warning=True)
    for message in messages[:LONG_LIST]:
        yield Note(message)
    if len(messages) > LONG_LIST:
        yield Note(f"… and {len(messages) - LONG_LIST} more.")


def _read_samples(shards: Shards, numbers: Sequence[int], damaged: list[str]) -> Iterator[tuple[SampleFacts, int]]:
    """KEY.json of these samples and the size of their videos; each marker is read once.

    `damaged` gets a message for each that can't be read.
    """
    by_shard: dict[int, set[str]] = {}
    for number in numbers:
        by_shard.setdefault(shards.member_range(number).shard, set()).add(shards.key(number))
    chosen = sorted(by_shard.items())
    paths = [shards.shard_path(shard).with_suffix(".json") for shard, _ in chosen]
    for (shard, keys), path, record in zip(chosen, paths, read_each(paths), strict=True):
        tar = shards.shard_path(shard)
        marker = decode_record(record, ShardMarker, str(path))
        entries = [entry for entry in marker.samples if entry.key in keys]
        spans = read_spans(tar, [Span(entry.facts.offset, entry.facts.size) for entry in entries])
        for entry, data in zip(entries, spans, strict=True):
            try:
                facts = decode_record(data, SampleFacts, f"{tar.name}: {entry.key}.json")
            except DataError as error:
                damaged.append(str(error))
                continue
            yield facts, sum(member.extent.size for member in entry.members)


def _overview(facts: DataFacts) -> Iterator[Part]:
    index = facts.index
    figures = [Fact("samples", f"{index.samples}", f"split {index.split}" if index.split else "")]
    if facts.per_class:
        figures.append(Fact("classes", str(len(facts.per_class)), facts.class_sizes))
    figures.append(Fact("shards", str(len(index.shardlist)), format_bytes(facts.bytes)))
    if index.source_bytes:
        share = f"{100 * facts.bytes / index.source_bytes:.3g} %"
        figures.append(Fact("size", share, f"of the sources' {format_bytes(index.source_bytes)}"))
    failures = ", ".join(f"{count} {reason}" for reason, count in index.failures.items())
    figures += [
        Fact("source duration", format_seconds(3600 * facts.source_hours)),
        Fact("kept frames", f"{facts.kept_frames}", index.spacing),
        Fact("profile", index.profile, facts.profile_counts),
        Fact("failures", str(sum(index.failures.values())), failures),
    ]
    yield Facts(tuple(figures))
    if facts.unlabelled and facts.per_class:
        yield Note(f"{facts.unlabelled} samples have no label.", warning=True)
    empty = [name for name, count in facts.per_class.items() if not count]
    if empty:
        classes = f"{len(empty)} classes have" if len(empty) > 1 else "1 class has"
        yield Note(f"{classes} no sample: {first_names(empty, 20)}", warning=True)


def _videos(facts: DataFacts) -> Iterator[Part]:
    numbers = choose_samples(facts.shards.label_N, SAMPLES_SHOWN)
    previews = Previews()
    gallery, unreadable = contact_sheet(facts.shards, numbers, previews)
    chosen = "" if len(numbers) == len(facts.shards) else ", chosen at random from all classes, with a fixed seed"
    yield Note(f"First, middle and last kept frame of {len(gallery.tiles)} of {len(facts.shards)} samples{chosen}.")
    for note in previews.notes():
        yield Note(note)
    yield gallery
    for key, why in unreadable.items():
        yield Note(f"{key} can't be shown: {why}", warning=True)


def _classes(facts: DataFacts) -> Iterator[Part]:
    """Largest first. Of a long list both ends and a histogram are shown; the list itself is collapsed."""
    ordered = sorted(facts.per_class.items(), key=lambda item: (-item[1], item[0]))
    bars = tuple(Bar(name, n, str(n)) for name, n in ordered)
    if len(bars) <= LONG_LIST:
        if bars:
            yield Bars(bars, "classes")
        return
    top = max(1, ordered[0][1])
    yield Note(f"The {CLASSES_SHOWN} largest of {len(bars)} classes:")
    yield Bars(bars[:CLASSES_SHOWN], "the largest", top)
    yield Note(f"The {CLASSES_SHOWN} smallest:")
    yield Bars(bars[-CLASSES_SHOWN:], "the smallest", top)
    yield Charts((histogram([n for _, n in ordered], "Classes by their number of samples"),))
    yield Bars(bars, f"all {len(bars)} classes", top)


def _charts(facts: DataFacts, samples: Sequence[tuple[SampleFacts, int]]) -> Iterator[Figure]:
    shards = facts.shards
    some = "" if len(samples) == len(shards) else f"Of {len(samples)} samples."
    yield histogram([sample_seconds(one) for one, _ in samples], "Duration of a sample", "s", some)
    yield histogram(shards.source_rate_N, "Frame rate of the sources", "fps", ranges=False)
    yield histogram(shards.frames_NP[:, 0], "Kept frames of a sample")
    sides = [min(one.source.width, one.source.height) for one, _ in samples]
    yield histogram(sides, "Short side of the sources", "px", some, ranges=False)
    # A segment has no source file of its own.
    shares = [100 * size / one.source.bytes for one, size in samples if one.segment is None and one.source.bytes]
    yield histogram(shares, "Size of a kept video relative to its source", "%", some)
    yield histogram([size / 1000 for _, size in samples], "Size of a kept video", "kB", some)


def _frame_sizes(facts: DataFacts) -> Iterator[Part]:
    counts = Counter(map(tuple, facts.shards.size_N2.tolist())).most_common()
    bars = [Bar(f"{width} × {height}", n, str(n)) for (height, width), n in counts[:SIZES_SHOWN]]
    if len(counts) > SIZES_SHOWN:
        rest = sum(n for _, n in counts[SIZES_SHOWN:])
        bars.append(Bar(f"{len(counts) - SIZES_SHOWN} other sizes", rest, str(rest)))
    yield Note("Samples by frame size (width × height, px):")
    yield Bars(tuple(bars), "frame sizes")


def _failures(facts: DataFacts) -> Iterator[Part]:
    if not facts.index.failures:
        yield Note("Every source gave a sample.")
        return
    by_reason: dict[str, list[Failure]] = {}
    for number, line in enumerate(read_bytes(facts.shards.folder / FAILURES).splitlines(), 1):
        try:
            failure = msgspec.json.decode(line, type=Failure)
        except NOT_JSON as error:
            yield Note(f"{FAILURES}, line {number}: can't be read ({error})", warning=True)
            continue
        by_reason.setdefault(failure.reason, []).append(failure)
    for reason, failures in sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0])):
        yield Note(f"{reason}: {len(failures)} {'sources' if len(failures) > 1 else 'source'}")
        yield Table(("source", "message"), tuple((f.path, f.detail) for f in failures[:FAILURES_SHOWN]))
        if len(failures) > FAILURES_SHOWN:
            yield Note(f"… and {len(failures) - FAILURES_SHOWN} more; {FAILURES} lists them all.")


def _notes(samples: Sequence[tuple[SampleFacts, int]]) -> Iterator[Part]:
    noted = [facts for facts, _ in samples if facts.remarks]
    assumed = sum(facts.colour.assumed for facts, _ in samples)
    yield Note(
        f"{len(samples)} samples were read for this section. {len(noted)} have a note. {assumed} had no colour tags;"
        " the build assumed theirs."
    )
    if noted:
        rows = [(facts.source.path, "\n".join(facts.remarks)) for facts in noted[:NOTES_SHOWN]]
        yield Table(("source", "note"), tuple(rows))
    if len(noted) > NOTES_SHOWN:
        yield Note(f"… and {len(noted) - NOTES_SHOWN} more.")


def _recipe(index: Index) -> Table:
    rows = [(name, str(value)) for name, value in sorted(index.recipe.items())]
    return Table(("key", "value"), (*rows, ("format version", str(index.version)), ("plan", index.plan)))
