"""The scores of a model → parts of a page: numbers, confusion matrix, every class or value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vmae_data.pages.html import Bar, Bars, Charts, Fact, Facts, Note, Part, Section, Table, write_page
from vmae_data.read.dataset import Shards
from vmae_data.storage import StoragePath
from vmae_train.evaluation.metrics import AnyScores, LabelScores, Scores, ValueScores, standard_error, top_confusions
from vmae_train.reports.charts import confusion_picture
from vmae_train.reports.wrong_videos import wrong_sections

__all__ = ["headline_fact", "score_parts", "unreadable_parts", "write_scores_page"]


def write_scores_page(scores: AnyScores, page: StoragePath, *, model: str, shards: Shards) -> None:
    """Write the page of one evaluation on `shards`. Raises VmaeError if it can't be written."""
    sections = [
        Section("Scores", tuple(score_parts(scores))),
        *wrong_sections(scores, shards),
        Section("Unreadable samples", tuple(unreadable_parts(scores.unreadable))),
    ]
    subtitle = f"{shards.url}, {scores.videos} videos, {scores.views} views each, merged by {scores.merge}"
    write_page(page, f"Evaluation of {model}", sections, subtitle)


def unreadable_parts(unreadable: dict[str, str]) -> Iterator[Part]:
    if unreadable:
        yield Table(("sample", "reason"), tuple(sorted(unreadable.items())))
    else:
        yield Note("Every requested sample could be read.")


def headline_fact(scores: AnyScores) -> Fact:
    """The headline metric; with its standard error if known."""
    headline = scores.headline
    if isinstance(scores, Scores):
        error = standard_error(scores.top1, scores.videos)
        return Fact(headline.name, f"{scores.top1:.2f} %", f"± {error:.1f}, standard error")
    return Fact(headline.name, f"{headline.value:.2f} %" if headline.unit else f"{headline.value:.4g}")


def score_parts(scores: AnyScores) -> Iterator[Part]:
    """All results of an evaluation."""
    if isinstance(scores, Scores):
        yield from _class_parts(scores)
    elif isinstance(scores, LabelScores):
        yield from _label_parts(scores)
    else:
        yield from _value_parts(scores)


def _class_parts(scores: Scores) -> Iterator[Part]:
    counts = {name: sum(row) for name, row in zip(scores.classes, scores.confusion, strict=True)}
    with_videos = [name for name in scores.classes if counts[name]]
    facts = [
        headline_fact(scores),
        Fact("mean of classes", f"{scores.mean_class:.2f} %", f"{len(with_videos)} classes"),
        Fact("chance", f"{100 / len(scores.classes):.4g} %", f"random guess among {len(scores.classes)}"),
    ]
    if scores.top5 is not None:
        facts.insert(1, Fact("top-5", f"{scores.top5:.2f} %"))
    yield Facts(tuple(facts))
    yield from _control(scores)
    confusion = np.asarray(scores.confusion, dtype=np.int64)
    predicted = np.flatnonzero(confusion.sum(axis=0))
    if len(predicted) == 1 and len(with_videos) > 1:
        yield Note(f"The model predicts {scores.classes[predicted[0]]} for every video.", warning=True)
    yield Charts((confusion_picture(confusion, scores.classes),), wide=True)
    yield Note("Accuracy of each class:")
    bars = tuple(Bar(n, scores.per_class[n], f"{scores.per_class[n]:.1f} % of {counts[n]}") for n in with_videos)
    yield Bars(bars, f"all {len(with_videos)} classes", top=100)
    head = ("class", "videos", "correct", "correct %", "predicted")
    yield Table(head, _class_rows(scores), (1, 2, 3, 4), folded="every class")
    wrong = _confusion_rows(confusion, scores.classes)
    if wrong:
        yield Note("The most frequent errors:")
        yield Table(("true class", "predicted class", "videos"), wrong, (2,))


def _control(scores: AnyScores) -> Iterator[Part]:
    if scores.control:
        yield Note(f"Control experiment: {scores.control}.", warning=True)


def _class_rows(scores: Scores) -> tuple[tuple[str, ...], ...]:
    predicted = np.asarray(scores.confusion, dtype=np.int64).sum(axis=0)
    return tuple(
        (name, str(sum(row)), str(row[k]), f"{scores.per_class[name]:.1f}" if sum(row) else "–", str(predicted[k]))
        for k, (name, row) in enumerate(zip(scores.classes, scores.confusion, strict=True))
    )


def _confusion_rows(confusion: np.ndarray, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    pairs = top_confusions(confusion)
    return tuple((classes[true], classes[predicted], str(confusion[true, predicted])) for true, predicted in pairs)


def _label_parts(scores: LabelScores) -> Iterator[Part]:
    with_videos = [name for name in scores.classes if name in scores.per_class]
    shares = [scores.positives[name] / scores.videos for name in with_videos]
    chance = 100 * np.mean(shares) if shares else 0.0
    yield Facts(
        (
            headline_fact(scores),
            Fact("classes", str(len(with_videos)), f"of {len(scores.classes)} have a video"),
            Fact("chance", f"about {chance:.4g} %", "random order of the videos"),
        )
    )
    yield from _control(scores)
    yield Note("Average precision of each class:")
    bars = tuple(
        Bar(n, scores.per_class[n], f"{scores.per_class[n]:.1f} %, {scores.positives[n]} videos") for n in with_videos
    )
    yield Bars(bars, f"all {len(with_videos)} classes", top=100)


def _value_parts(scores: ValueScores) -> Iterator[Part]:
    note = f"mean over {len(scores.per_value)} values" if len(scores.per_value) > 1 else ""
    yield Facts((headline_fact(scores)._replace(note=note), Fact("RMSE", f"{scores.rmse:.4g}", note)))
    yield from _control(scores)
    rows = tuple(
        (name, f"{errors.mae:.4g}", f"{errors.rmse:.4g}", f"{errors.spread:.4g}")
        for name, errors in scores.per_value.items()
    )
    yield Table(("value", "MAE", "RMSE", "RMSE of predicting the mean"), rows, (1, 2, 3))
