"""What two scores say of each other, and what they can't say. Numbers and words only."""

from __future__ import annotations

import math

from vmae_train.evaluation.metrics import Scores

__all__ = ["difference_words", "standard_error"]


def standard_error(percent: float, videos: int) -> float:
    """Of an accuracy over so many videos, in points; at 0 and 100 % as if one more video had gone the other way."""
    share = percent / 100
    if share in (0.0, 1.0):
        share = abs(share - 1 / (videos + 2))
    return 100 * math.sqrt(share * (1 - share) / videos)


def difference_words(first: str, a: Scores, second: str, b: Scores) -> str:
    """The difference of two accuracies and what chance alone would make of it. Neutral, whichever is higher."""
    gap = a.top1 - b.top1
    error = math.hypot(standard_error(a.top1, a.videos), standard_error(b.top1, b.videos))
    told = (
        f"{first} answers {a.top1:.2f} % of {a.videos} validation videos correctly, {second} {b.top1:.2f} %: "
        f"a difference of {gap:+.2f} points. The standard error of one accuracy over {a.videos} videos is about "
        f"{max(standard_error(a.top1, a.videos), standard_error(b.top1, b.videos)):.1f} points, "
        f"of the difference about {error:.1f}. "
    )
    if abs(gap) < 2 * error:
        return told + "That is less than two standard errors: these videos don't show that either is better."
    return told + (
        f"That is {abs(gap) / error:.1f} standard errors, more than the choice of videos alone would explain. "
        "It is one run each: how much another seed would change is not known from it."
    )
