"""An audit's report → an HTML page: leaks first, then duplicates side by side, then the worst samples of each flag."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from vmae_data.amounts import format_seconds
from vmae_data.audit.duplicates import Match
from vmae_data.audit.flags import FLAGS, AuditReport, AuditSpec, Flag, Row
from vmae_data.audit.measure_samples import MeasuredSample
from vmae_data.errors import SampleError
from vmae_data.pages.histogram import histogram
from vmae_data.pages.html import (
    Charts,
    Fact,
    Facts,
    Figure,
    Gallery,
    Note,
    Pairs,
    Part,
    Section,
    Table,
    Tile,
    write_page,
)
from vmae_data.pages.previews import Previews
from vmae_data.read.contact_sheet import DrawnSample, draw_sample
from vmae_data.read.fetch import Fetcher
from vmae_data.storage import StoragePath

__all__ = ["write_audit_page"]

PAIRS_SHOWN = 40
WORST_SHOWN = 12
UNREADABLE_SHOWN = 40
FRAMES_SHOWN = 3

_TITLES: dict[Flag, str] = {
    "static": "Static: nothing moves",
    "near-static": "Near static: hardly anything moves",
    "black": "Black",
    "frozen": "Frozen: still for part of the time",
    "blurred": "Blurred",
    "many-cuts": "Many cuts",
}
_Show = Callable[[int, Sequence[int], str], Tile]  # the number of a sample in the report, frames, a line of text


def write_audit_page(report: AuditReport, spec: AuditSpec, path: StoragePath) -> None:
    """Write the page. Raises DataError if a shard is missing."""
    fetchers = [Fetcher(shards) for shards in report.data_sets]
    previews = Previews()

    def show(number: int, frames: Sequence[int], line: str) -> Tile:
        sample, row = report.samples[number], report.rows[number]
        label = f"{row.label}, " if row.label is not None else ""
        lines = [f"{row.data_set}: {label}{row.seconds or 0:.1f} s", *([line] if line else [])]
        shards = report.data_sets[sample.data_set]
        try:
            data = fetchers[sample.data_set].fetch(sample.number)
            drawn = draw_sample(shards, sample.number, data, frames, previews)
        except SampleError as error:  # the audit could read it: the disk changed since, and the texts are still true
            drawn = DrawnSample((), "")
            lines.append(f"can't be shown: {error.detail}")
        return Tile(drawn.pictures, row.path or row.key, tuple(lines), drawn.video)

    try:
        leaks = tuple(_pairs(report, "leak", show)) if len(report.data_sets) > 1 else ()
        shown = [
            Section("Leaks between data sets", leaks),
            Section("Duplicates within a data set", tuple(_pairs(report, "duplicate", show))),
            *(Section(title, tuple(_worst(report, flag, show))) for flag, title in _TITLES.items()),
        ]
    finally:
        for fetcher in fetchers:
            fetcher.close()
    sections = [
        Section("Overview", tuple(_overview(report, previews))),
        *shown,
        Section("Unreadable samples", tuple(_unreadable(report))),
        Section("Distributions", (Charts(tuple(_charts(report))),)),
        Section("Thresholds", (_thresholds(spec),)),
    ]
    names = ", ".join(dict.fromkeys(row.data_set for row in report.rows))
    write_page(path, "Audit", sections, f"{len(report.rows)} samples of {names}")


def _overview(report: AuditReport, previews: Previews) -> Iterator[Part]:
    counts = report.counts()
    seconds = sum(row.seconds or 0 for row in report.rows)
    excluded = sum(row.exclude for row in report.rows)
    facts = [Fact("samples", str(len(report.rows)), format_seconds(seconds))]
    facts += [Fact(flag, str(counts[flag])) for flag in FLAGS]
    facts.append(Fact("to exclude", str(excluded), f"{100 * excluded / max(1, len(report.rows)):.3g} % of the samples"))
    yield Facts(tuple(facts))
    if counts["leak"]:
        yield Note(
            f"{counts['leak']} samples are copies of samples of another data set. A model that was trained on one data set"
            " scores too high on the other.",
            warning=True,
        )
    if counts["unreadable"]:
        yield Note(f"{counts['unreadable']} samples can't be read. Verify the shards.", warning=True)
    for note in previews.notes():
        yield Note(note)


def _pairs(report: AuditReport, flag: Flag, show: _Show) -> Iterator[Part]:
    """The least similar first: false alarms are among them."""
    copies = [number for number, row in enumerate(report.rows) if row.has(flag)]
    if not copies:
        yield Note("None.")
        return
    copies.sort(key=lambda number: (-report.duplicates.match[number].distance, number))
    shown = copies[:PAIRS_SHOWN]
    pairs = "1 pair" if len(copies) == 1 else f"{len(copies)} pairs, least similar first"
    if len(copies) > len(shown):
        pairs = f"The {len(shown)} least similar of {len(copies)} pairs"
    yield Note(f"{pairs}. Left: the original. Right: the copy, which is the one to exclude.")
    yield Pairs(tuple(_pair(report, number, show) for number in shown))


def _pair(report: AuditReport, copy: int, show: _Show) -> tuple[Tile, Tile]:
    """Frames of both at the same moments."""
    original, match = report.duplicates.original[copy], report.duplicates.match[copy]
    left, right = report.samples[original], report.samples[copy]
    assert left.measures is not None and right.measures is not None
    start = max(left.measures.started_at, right.measures.started_at - match.offset)
    stop = min(
        left.measures.started_at + left.measures.seconds,
        right.measures.started_at + right.measures.seconds - match.offset,
    )
    times = [start + (stop - start) * (n + 0.5) / FRAMES_SHOWN for n in range(FRAMES_SHOWN)]
    match_words = _match_words(match, same_bytes=left.sha256 == right.sha256)
    return (
        show(original, [_frame_at(left, time) for time in times], ""),
        show(copy, [_frame_at(right, time + match.offset) for time in times], match_words),
    )


def _frame_at(sample: MeasuredSample, time: float) -> int:
    assert sample.measures is not None
    share = (time - sample.measures.started_at) / max(sample.measures.seconds, 1e-9)
    return min(max(int(share * sample.frames), 0), sample.frames - 1)


def _match_words(match: Match, *, same_bytes: bool) -> str:
    if same_bytes:
        return "The same bytes."
    shift = f", shifted by {match.offset:+.2f} s" if match.offset else ""
    return f"Frame hashes differ in {match.distance:.1f} of 64 bits{shift}{', mirrored' if match.mirrored else ''}."


def _worst(report: AuditReport, flag: Flag, show: _Show) -> Iterator[Part]:
    flagged = [number for number, row in enumerate(report.rows) if row.has(flag)]
    if not flagged:
        return
    flagged.sort(key=lambda number: (_SEVERITY[flag](report.rows[number]), number))
    shown = flagged[:WORST_SHOWN]
    more = f"; the worst {len(shown)} are shown" if len(flagged) > len(shown) else ""
    yield Note(f"{len(flagged)} {'sample' if len(flagged) == 1 else 'samples'}{more}.")
    tiles = []
    for number in shown:
        sample, row = report.samples[number], report.rows[number]
        frames = [(2 * n + 1) * sample.frames // (2 * FRAMES_SHOWN) for n in range(FRAMES_SHOWN)]
        tiles.append(show(number, frames, _measures_words(row)))
    yield Gallery(tuple(tiles))


_SEVERITY: dict[Flag, Callable[[Row], float]] = {
    "static": lambda row: row.moved or 0,
    "near-static": lambda row: row.motion or 0,
    "black": lambda row: -(row.black or 0),
    "frozen": lambda row: -(row.frozen or 0),
    "blurred": lambda row: row.sharpness or 0,
    "many-cuts": lambda row: -(row.cuts or 0) / max(row.seconds or 0, 1e-9),
}


def _measures_words(row: Row) -> str:
    shares = f"black {100 * (row.black or 0):.0f} %, frozen {100 * (row.frozen or 0):.0f} %"
    sharpness = "" if row.sharpness is None else f", sharpness {row.sharpness:.2f}"
    cuts = f", {row.cuts} {'cut' if row.cuts == 1 else 'cuts'}" if row.cuts else ""
    return f"motion {row.motion or 0:.3g}, {shares}{sharpness}{cuts}"


def _unreadable(report: AuditReport) -> Iterator[Part]:
    rows = [(row.data_set, row.key, row.error) for row in report.rows if row.error is not None]
    if rows:
        yield Table(("data set", "sample", "error"), tuple(rows[:UNREADABLE_SHOWN]))
        if len(rows) > UNREADABLE_SHOWN:
            yield Note(f"And {len(rows) - UNREADABLE_SHOWN} more.")


def _charts(report: AuditReport) -> Iterator[Figure]:
    rows = [row for row in report.rows if row.seconds is not None]
    if not rows:
        return
    yield histogram([row.motion or 0 for row in rows], "Motion", "grey levels in ¼ s")
    yield histogram([100 * (row.moved or 0) for row in rows], "Part of the picture that ever changes", "%")
    yield histogram([row.sharpness for row in rows if row.sharpness is not None], "Sharpness")
    yield histogram([100 * (row.black or 0) for row in rows], "Black frames", "%")
    yield histogram([100 * (row.frozen or 0) for row in rows], "Frozen time", "%")
    yield histogram([row.cuts or 0 for row in rows], "Cuts in a sample", ranges=False)


def _thresholds(spec: AuditSpec) -> Table:
    values = msgspec.to_builtins(spec)
    duplicates = values.pop("duplicates")
    rows = [
        (name, ", ".join(value) if isinstance(value, list | tuple) else str(value)) for name, value in values.items()
    ]
    return Table(("key", "value"), (*rows, *((f"duplicates.{name}", str(value)) for name, value in duplicates.items())))
