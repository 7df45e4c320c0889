"""The page of an audit: leaks first, then duplicates side by side, then the worst of each kind, as frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from vmae_data import html as page
from vmae_data.audit.duplicates import Match
from vmae_data.audit.flags import FLAGS, AuditSpec, Flag, Judged, Row
from vmae_data.audit.measure_samples import Looked
from vmae_data.errors import SampleError
from vmae_data.histogram import histogram
from vmae_data.html import Charts, Fact, Facts, Figure, Gallery, Note, Pair, Pairs, Part, Section, Table, Tile
from vmae_data.pictures import Picture, film
from vmae_data.read.dataset import Shards
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
    "frozen": "Frozen: stands still for a part of the time",
    "blurred": "Blurred",
    "many-cuts": "Many cuts",
}


def write_audit_page(data_sets: Sequence[Shards], judged: Judged, spec: AuditSpec, html: StoragePath) -> None:
    """Write the page. Raises DataError where a shard is gone."""
    pictures = _Pictures(data_sets)
    try:
        sections = [
            Section("At a glance", tuple(_glance(judged))),
            Section("Leaks across data sets", tuple(_pairs(judged, "leak", pictures)) if len(data_sets) > 1 else ()),
            Section("Duplicates within a data set", tuple(_pairs(judged, "duplicate", pictures))),
            *(Section(title, tuple(_worst(judged, flag, pictures))) for flag, title in _TITLES.items()),
            Section("Can't be read", tuple(_unreadable(judged))),
            Section("Distributions", (Charts(tuple(_charts(judged))),)),
            Section("Thresholds", (_thresholds(spec),)),
        ]
    finally:
        pictures.close()
    names = ", ".join(dict.fromkeys(row.data_set for row in judged.rows))
    page.write_page(html, "Audit", sections, f"{len(judged.rows)} samples of {names}")


class _Pictures:
    """Frames of samples, as small pictures."""

    def __init__(self, data_sets: Sequence[Shards]) -> None:
        self.data_sets = data_sets
        self.fetchers = [Fetcher(one) for one in data_sets]

    def film(self, one: Looked, frames: Sequence[int]) -> tuple[Picture, ...]:
        shards = self.data_sets[one.data_set]
        bt709, full_range = bool(shards.is_bt709_N[one.number]), bool(shards.full_range_N[one.number])
        try:
            data = self.fetchers[one.data_set].fetch(one.number)
            return film(data, sorted(set(frames)), one.key, is_bt709=bt709, full_range=full_range)
        except SampleError:  # it was read before: the disk changed under us, and the words below stay true
            return ()

    def close(self) -> None:
        for fetcher in self.fetchers:
            fetcher.close()


def _glance(judged: Judged) -> Iterator[Part]:
    counts = judged.counts()
    seconds = sum(row.seconds or 0 for row in judged.rows)
    excluded = sum(row.exclude for row in judged.rows)
    facts = [Fact("samples", str(len(judged.rows)), f"{seconds / 3600:.3g} h")]
    facts += [Fact(flag, str(counts[flag])) for flag in FLAGS]
    facts.append(Fact("to exclude", str(excluded), f"{100 * excluded / max(1, len(judged.rows)):.3g} % of the samples"))
    yield Facts(tuple(facts))
    if counts["leak"]:
        yield Note(
            f"{counts['leak']} samples are copies of samples of another data set: scores on one after training on the other"
            " are too high.",
            warning=True,
        )
    if counts["unreadable"]:
        yield Note(f"{counts['unreadable']} samples can't be read; verify the shards.", warning=True)


def _pairs(judged: Judged, flag: Flag, pictures: _Pictures) -> Iterator[Part]:
    """Least alike first: where the audit errs, it errs there."""
    found = [n for n, row in enumerate(judged.rows) if row.has(flag)]
    if not found:
        yield Note("None.")
        return
    found.sort(key=lambda n: (-judged.duplicates.match[n].distance, n))
    shown = found[:PAIRS_SHOWN]
    some = f" The {len(shown)} least alike of them:" if len(found) > len(shown) else ""
    yield Note(f"{len(found)}, the least alike first; the copy on the right is the one to exclude.{some}")
    yield Pairs(tuple(_pair(judged, number, pictures) for number in shown))


def _pair(judged: Judged, number: int, pictures: _Pictures) -> Pair:
    other, match = judged.duplicates.recorder[number], judged.duplicates.match[number]
    left, right = judged.samples[other], judged.samples[number]
    assert left.seen is not None and right.seen is not None
    start = max(left.seen.started_at, right.seen.started_at - match.offset)
    stop = min(left.seen.started_at + left.seen.seconds, right.seen.started_at + right.seen.seconds - match.offset)
    times = [start + (stop - start) * (n + 0.5) / FRAMES_SHOWN for n in range(FRAMES_SHOWN)]
    return Pair(
        _tile(judged.rows[other], pictures.film(left, [_frame_at(left, time) for time in times])),
        _tile(judged.rows[number], pictures.film(right, [_frame_at(right, time + match.offset) for time in times])),
        _match_words(match, same=left.sha256 == right.sha256),
    )


def _frame_at(one: Looked, time: float) -> int:
    assert one.seen is not None
    share = (time - one.seen.started_at) / max(one.seen.seconds, 1e-9)
    return min(max(int(share * one.frames), 0), one.frames - 1)


def _match_words(match: Match, *, same: bool) -> str:
    if same:
        return "The same bytes."
    shift = f", shifted by {match.offset:+.2f} s" if match.offset else ""
    return f"{match.distance:.1f} of 64 bits differ{shift}{', mirrored' if match.mirrored else ''}."


def _tile(row: Row, pictures: tuple[Picture, ...], *lines: str) -> Tile:
    label = f"{row.label}, " if row.label is not None else ""
    return Tile(pictures, row.path or row.key, (f"{row.data_set}: {label}{row.seconds or 0:.1f} s", *lines))


def _worst(judged: Judged, flag: Flag, pictures: _Pictures) -> Iterator[Part]:
    found = [n for n, row in enumerate(judged.rows) if row.has(flag)]
    if not found:
        return
    found.sort(key=lambda n: (_SEVERITY[flag](judged.rows[n]), n))
    shown = found[:WORST_SHOWN]
    more = f", the worst {len(shown)} of them" if len(found) > len(shown) else ""
    yield Note(f"{len(found)} {'sample' if len(found) == 1 else 'samples'}{more}.")
    tiles = []
    for number in shown:
        one, row = judged.samples[number], judged.rows[number]
        frames = [(2 * n + 1) * one.frames // (2 * FRAMES_SHOWN) for n in range(FRAMES_SHOWN)]
        tiles.append(_tile(row, pictures.film(one, frames), _measures_words(row)))
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
    sharp = "" if row.sharpness is None else f", sharpness {row.sharpness:.2f}"
    cuts = f", {row.cuts} {'cut' if row.cuts == 1 else 'cuts'}" if row.cuts else ""
    return f"motion {row.motion or 0:.3g}, {shares}{sharp}{cuts}"


def _unreadable(judged: Judged) -> Iterator[Part]:
    rows = [(row.data_set, row.key, row.error) for row in judged.rows if row.error is not None]
    if rows:
        yield Table(("data set", "sample", "what was found"), tuple(rows[:UNREADABLE_SHOWN]))
        if len(rows) > UNREADABLE_SHOWN:
            yield Note(f"And {len(rows) - UNREADABLE_SHOWN} more.")


def _charts(judged: Judged) -> Iterator[Figure]:
    rows = [row for row in judged.rows if row.seconds is not None]
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
    inner = values.pop("duplicates")
    rows = [
        (name, ", ".join(value) if isinstance(value, list | tuple) else str(value)) for name, value in values.items()
    ]
    return Table(("key", "value"), (*rows, *((f"duplicates.{name}", str(value)) for name, value in inner.items())))
