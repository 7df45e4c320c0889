"""Finetunings side by side: their scores, what differs between them, their curves in one drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vmae_data.html import Charts, Note, Part, Table
from vmae_data.recipes import difference
from vmae_train.evaluation.metrics import Scores
from vmae_train.reports.charts import Curve, curves, log_curve
from vmae_train.reports.run_reader import RunReader
from vmae_train.reports.significance import difference_words, standard_error
from vmae_train.runs.metadata import data_words

__all__ = ["comparison", "validation_curve", "validation_title"]

_TITLES = {
    "top1": "Validation top-1 on the way, %",
    "mean_ap": "Validation mAP on the way, %",
    "mae": "Validation MAE on the way",
}


def comparison(reader: RunReader, others: Sequence[RunReader]) -> Iterator[Part]:
    """The parts of a page that set finetunings beside each other; none where there is no other."""
    if not others:
        return
    every = _with_names([reader, *others])
    rows = tuple(_score_row(name, one) for name, one in every)
    yield Table(
        ("run", "began", "steps", "score", "± s.e.", "top-5 %", "mean of classes %", "videos", "views"),
        rows,
        (2, 3, 4, 5, 6, 7),
    )
    for name, other in every[1:]:
        yield from _difference(every[0][0], reader, name, other)
    loss = curves("Training loss", [log_curve(name, one.log, "loss") for name, one in every])
    yield Charts(
        tuple(
            figure
            for figure in (loss, curves(validation_title(reader), [validation_curve(*one) for one in every]))
            if figure
        )
    )


def _with_names(stories: Sequence[RunReader]) -> list[tuple[str, RunReader]]:
    """Runs by the names of their folders, or by their paths where two share a name."""
    names = [one.name for one in stories]
    return [
        (name if names.count(name) == 1 else str(one.folder), one) for name, one in zip(names, stories, strict=True)
    ]


def _score_row(name: str, one: RunReader) -> tuple[str, ...]:
    scores = one.scores
    if scores is None:
        return (name, one.origin, f"{one.step}, not finished", *["–"] * 6)
    if not isinstance(scores, Scores):
        return (name, one.origin, str(one.step), str(scores.headline), *["–"] * 3, str(scores.videos), scores.views)
    top5 = f"{scores.top5:.2f}" if scores.top5 is not None else "–"
    error = f"{standard_error(scores.top1, scores.videos):.2f}"
    return (
        name, one.origin, str(one.step), str(scores.headline), error, top5, f"{scores.mean_class:.2f}",
        str(scores.videos), scores.views,
    )  # fmt: skip


def _difference(first: str, reader: RunReader, second: str, other: RunReader) -> Iterator[Part]:
    """What two scores say of each other, and what they can't say."""
    if reader.scores is None or other.scores is None:
        yield Note(f"{first} and {second} can't be compared: one of them has no score yet.", warning=True)
        return
    unlike = _unlike(reader, other)
    if unlike:
        yield Note(
            f"{first} and {second} are not scored alike ({'; '.join(unlike)}): their numbers don't compare.", True
        )
        return
    a, b = reader.scores, other.scores
    if isinstance(a, Scores) and isinstance(b, Scores):
        yield Note(difference_words(first, a, second, b))
    else:
        yield Note(
            f"{first}: {a.headline}, {second}: {b.headline}, on the same {a.videos} videos. How much of the difference "
            "is chance is not known from one run each."
        )
    if reader.step != other.step or _samples(reader) != _samples(other):
        yield Note(f"They did not have the same budget: {_budget(reader)} against {_budget(other)}.", warning=True)
    changed = difference(reader.facts.recipe, other.facts.recipe)
    changed += difference({"init": reader.facts.init}, {"init": other.facts.init})
    if (reader.facts.data_digest, reader.facts.data_weight) != (other.facts.data_digest, other.facts.data_weight):
        changed.append(f"data: {data_words(reader.facts)} → {data_words(other.facts)}")
    lines = "\n".join(changed) if changed else "nothing that run.json tells of"
    yield Note(f"What differs between {first} and {second}:\n{lines}")


def _unlike(reader: RunReader, other: RunReader) -> list[str]:
    assert reader.scores is not None
    assert other.scores is not None
    unlike = []
    if reader.facts.validation_digest != other.facts.validation_digest:
        unlike.append("other validation videos")
    if reader.scores.headline.key != other.scores.headline.key:
        unlike.append(f"{reader.scores.headline.name} and {other.scores.headline.name}")
    for name in ("videos", "views", "merge", "control"):
        a, b = getattr(reader.scores, name), getattr(other.scores, name)
        if a != b:
            unlike.append(f"{name}: {a} and {b}")
    return unlike


def _samples(reader: RunReader) -> int:
    return int(reader.step * reader.facts.recipe["train"]["batch"])


def _budget(reader: RunReader) -> str:
    return f"{reader.step} steps of {reader.facts.recipe['train']['batch']} clips"


def _measured(one: RunReader) -> str:
    """The log's key for the score of this run."""
    if one.scores is not None:
        return one.scores.headline.key
    return next((key for key in _TITLES if any(key in line for line in one.log)), "top1")


def validation_title(one: RunReader) -> str:
    return _TITLES[_measured(one)]


def validation_curve(name: str, one: RunReader) -> Curve:
    """The scores in between; the last one too where it has as many views."""
    curve = log_curve(name, one.log, _measured(one), kind="validation")
    views = {line["views"] for line in one.log if line.get("kind") == "validation"}
    if one.scores is None or views - {one.scores.views} or one.step in curve.step:
        return curve
    return Curve(name, [*curve.step, one.step], [*curve.value, one.scores.headline.value])
