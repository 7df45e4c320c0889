"""How long what a sample shows lasts in its source: by the times of its frames, which a nominal rate may not tell."""

from __future__ import annotations

from typing import NamedTuple

from vmae_data.format import PhaseFacts, Regular, SampleFacts, Series

__all__ = ["Span", "sample_seconds", "span_of"]


def sample_seconds(facts: SampleFacts) -> float:
    """How long a sample's part of its source lasts, by the times of its frames."""
    start, stop = (facts.segment.start, facts.segment.stop) if facts.segment else (0, facts.source.frames)
    return span_of(facts.phases[0]).seconds(start, stop, float(facts.source.rate))


class Span(NamedTuple):
    """The first and the last kept frame: their numbers, and seconds between them."""

    first: int
    last: int
    begins: float
    ends: float

    def joined(self, other: Span) -> Span:
        return Span(
            min(self.first, other.first),
            max(self.last, other.last),
            min(self.begins, other.begins),
            max(self.ends, other.ends),
        )

    def seconds(self, start: int, stop: int, rate: float) -> float:
        """How long source frames [start, stop) are shown: by the times, and at the nominal rate where none is known."""
        return max(0.0, self.ends - self.begins) + (stop - start - (self.last - self.first)) / rate


def span_of(phase: PhaseFacts) -> Span:
    base = float(phase.source_time_base)
    (first, last), (begins, ends) = _ends(phase.source_frames), _ends(phase.source_times)
    return Span(first, last, begins * base, ends * base)


def _ends(series: Series) -> tuple[int, int]:
    if isinstance(series, Regular):
        return series.first, series.first + series.step * (series.count - 1)
    return series[0], series[-1]
