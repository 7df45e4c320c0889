"""The scores of a model as parts of a page: numbers, confusion, every class or value."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from vmae_data.html import Bar, Bars, Charts, Fact, Facts, Note, Part, Section, Table, write_page
from vmae_data.storage import StoragePath
from vmae_train.evaluation.metrics import AnyScores, LabelScores, Scores, ValueScores
from vmae_train.reports.charts import confusion_picture
from vmae_train.reports.significance import standard_error

__all__ = ["accuracy", "headline_fact", "write_scores"]

CONFUSIONS = 10  # the most frequent wrong answers


def write_scores(scores: AnyScores, page: StoragePath, *, model: str, data: str) -> None:
    """One page on an evaluation. Raises VmaeError where it can't be written."""
    unreadable = Table(("sample", "why"), tuple(sorted(scores.unreadable.items())))
    none = Note("Every sample that was asked for could be read.")
    sections = [
        Section("Accuracy", tuple(accuracy(scores))),
        Section("Unreadable samples", (unreadable if scores.unreadable else none,)),
    ]
    told = f"{data}, {scores.videos} videos, {scores.views} views each, merged by {scores.merge}"
    write_page(page, f"Evaluation of {model}", sections, told)


def headline_fact(scores: AnyScores) -> Fact:
    """The number to compare by; with its standard error where that is known."""
    headline = scores.headline
    if isinstance(scores, Scores):
        return Fact(
            headline.name, f"{scores.top1:.2f} %", f"± {standard_error(scores.top1, scores.videos):.1f}, standard error"
        )
    return Fact(headline.name, f"{headline.value:.2f} %" if headline.unit else f"{headline.value:.4g}")


def accuracy(scores: AnyScores) -> Iterator[Part]:
    """All that is known of a model's answers."""
    if isinstance(scores, Scores):
        yield from _of_classes(scores)
    elif isinstance(scores, LabelScores):
        yield from _of_labels(scores)
    else:
        yield from _of_values(scores)


def _control(scores: AnyScores) -> Iterator[Part]:
    if scores.control:
        yield Note(f"A control: {scores.control}.", warning=True)


def _of_classes(scores: Scores) -> Iterator[Part]:
    counts = {name: sum(row) for name, row in zip(scores.classes, scores.confusion, strict=True)}
    filled = [name for name in scores.classes if counts[name]]
    facts = [
        headline_fact(scores),
        Fact("mean of classes", f"{scores.mean_class:.2f} %", f"{len(filled)} classes"),
        Fact("by chance", f"{100 / len(scores.classes):.4g} %", f"guessing among {len(scores.classes)}"),
    ]
    if scores.top5 is not None:
        facts.insert(1, Fact("top-5", f"{scores.top5:.2f} %"))
    yield Facts(tuple(facts))
    yield from _control(scores)
    confusion = np.asarray(scores.confusion, dtype=np.int64)
    used = np.flatnonzero(confusion.sum(axis=0))
    if len(used) == 1 and len(filled) > 1:
        yield Note(f"Every video got the same answer, {scores.classes[used[0]]}: this model tells nothing apart.", True)
    yield Charts((confusion_picture(confusion, scores.classes),), wide=True)
    yield Note("Right answers of each class:")
    bars = tuple(Bar(n, scores.per_class[n], f"{scores.per_class[n]:.1f} % of {counts[n]}") for n in filled)
    yield Bars(bars, f"all {len(filled)} classes", top=100)
    yield Table(
        ("class", "videos", "right", "right %", "given as answer"),
        _class_rows(scores),
        (1, 2, 3, 4),
        folded="every class",
    )
    wrong = _wrong_answers(confusion, scores.classes)
    if wrong:
        yield Note("The most frequent wrong answers:")
        yield Table(("true class", "answer", "videos"), wrong, (2,))


def _class_rows(scores: Scores) -> tuple[tuple[str, ...], ...]:
    answered = np.asarray(scores.confusion, dtype=np.int64).sum(axis=0)
    return tuple(
        (name, str(sum(row)), str(row[k]), f"{scores.per_class[name]:.1f}" if sum(row) else "–", str(answered[k]))
        for k, (name, row) in enumerate(zip(scores.classes, scores.confusion, strict=True))
    )


def _wrong_answers(confusion: np.ndarray, classes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    off = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    order = np.argsort(-off, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [divmod(int(place), len(classes)) for place in order if off.flat[place]]
    return tuple((classes[true], classes[answer], str(off[true, answer])) for true, answer in pairs)


def _of_labels(scores: LabelScores) -> Iterator[Part]:
    shown = [name for name in scores.classes if name in scores.per_class]
    by_chance = 100 * np.mean([scores.positives[name] / scores.videos for name in shown]) if shown else 0.0
    yield Facts(
        (
            headline_fact(scores),
            Fact("classes", str(len(shown)), f"of {len(scores.classes)} that some video shows"),
            Fact("by chance", f"{by_chance:.4g} %", "a random order of the videos, about"),
        )
    )
    yield from _control(scores)
    yield Note("Average precision of each class:")
    bars = tuple(
        Bar(n, scores.per_class[n], f"{scores.per_class[n]:.1f} %, {scores.positives[n]} videos") for n in shown
    )
    yield Bars(bars, f"all {len(shown)} classes", top=100)


def _of_values(scores: ValueScores) -> Iterator[Part]:
    over = f"mean over {len(scores.per_value)} values" if len(scores.per_value) > 1 else ""
    yield Facts((headline_fact(scores)._replace(note=over), Fact("RMSE", f"{scores.rmse:.4g}", over)))
    yield from _control(scores)
    rows = tuple(
        (name, f"{one.mae:.4g}", f"{one.rmse:.4g}", f"{one.spread:.4g}") for name, one in scores.per_value.items()
    )
    yield Table(("value", "MAE", "RMSE", "RMSE of always answering the mean"), rows, (1, 2, 3))
