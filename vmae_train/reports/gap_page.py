"""The gap between two sets of shards → a page: numbers, what they say, a projection of the features."""

from __future__ import annotations

from vmae_data.pages.html import Charts, Fact, Facts, Figure, Note, Part, Section, write_page
from vmae_data.storage import StoragePath
from vmae_train.evaluation.feature_gap import GapReport, Projection
from vmae_train.reports.charts import scatter
from vmae_train.reports.scores_page import unreadable_parts

__all__ = ["write_gap_page"]

MOST_POINTS = 1000  # of each set: more would hide each other, and make the page large


def write_gap_page(report: GapReport, projection: Projection, page: StoragePath) -> None:
    """Write the page. Raises VmaeError if it can't be written."""
    frechet, linear = report.frechet, report.separability
    facts = (
        Fact("Fréchet distance", f"{frechet.between:.4g}", f"squared; {frechet.samples} samples of each side"),
        Fact("halves of A", f"{frechet.halves_a:.4g}", "the distance by chance"),
        Fact("halves of B", f"{frechet.halves_b:.4g}", "the distance by chance"),
        Fact("excess", f"{frechet.excess:.4g}", "above the mean of the halves"),
        Fact("p", f"{frechet.p_value:.2g}", "random relabellings that are as far apart"),
        Fact("linear classifier", f"{linear.accuracy:.1f} %", f"± {linear.standard_error:.1f}, standard error"),
    )
    parts: list[Part] = [Facts(facts), Note(f"{report.summary} Chance is 50 %.")]
    parts += [Note(f"{warning[:1].upper()}{warning[1:]}.", warning=True) for warning in report.warnings]
    clips = {"A": report.clip_a, "B": report.clip_b}
    told = [f"{name}: {text}" for name, text in clips.items()] if report.clip_a != report.clip_b else [report.clip_a]
    parts.append(Note(f"Features: {report.features}, views {report.views}.\nClips: " + "\n".join(told)))
    sections = [
        Section("Gap", tuple(parts)),
        Section("Projection", (Charts((_picture(report, projection),), wide=True),)),
        Section("Unreadable samples", tuple(unreadable_parts(report.unreadable))),
    ]
    subtitle = f"A: {report.a}, B: {report.b}, {report.samples} samples of each, in features of {report.checkpoint}"
    write_page(page, "Gap between two sets of videos", sections, subtitle)


def _picture(report: GapReport, projection: Projection) -> Figure:
    names = [f"axis {number} ({share:.0%} of the variance)" for number, share in enumerate(projection.share_2, 1)]
    shown = min(report.samples, MOST_POINTS)
    sets = [(f"○ A: {report.a}", projection.a_N2[:shown]), (f"△ B: {report.b}", projection.b_N2[:shown])]
    caption = (
        f"The two main axes of the features of both sets (PCA), {shown} samples of each. Sets that overlap here may be "
        "apart along other axes."
    )
    return scatter("Features of the samples", sets, (names[0], names[1]), caption)
