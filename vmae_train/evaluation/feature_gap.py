"""Features of two sets of videos → how far apart the sets are: Fréchet distance, linear separability, a projection.

N samples of a set, E channels, G source videos, S sets, P parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from vmae_data.rng import Purpose, bits, permutation
from vmae_train.evaluation.frozen_scores import fit_logistic
from vmae_train.evaluation.metrics import standard_error

__all__ = [
    "FOLDS",
    "RELABELLINGS",
    "SPLITS",
    "FrechetGap",
    "GapReport",
    "Projection",
    "SampleFeatures",
    "Separability",
    "deal_sources",
    "frechet_distance",
    "frechet_gap",
    "project",
    "separability",
]

SPLITS = 5  # random splits into halves, whose distances are averaged
FOLDS = 5
RELABELLINGS = 39  # so that the smallest p is 1 in 40
SURE = 0.05


class SampleFeatures(NamedTuple):
    """Features of the samples of a set. `source_N`: samples of one source video share a number, in all sets."""

    feature_NE: NDArray[np.float64]
    source_N: NDArray[np.uint64]


class FrechetGap(msgspec.Struct, frozen=True, kw_only=True):
    """Squared Fréchet distances, each between `samples` of one side and as many of the other, as means over splits.

    `between`: a half of A and a half of B. `halves_a`, `halves_b`: the halves of one set, which differ by chance only.
    `excess`: what `between` exceeds their mean by. `ratio`: `between` in units of their mean; None if that is 0.
    `p_value`: how often two random sets of the samples of both are as far apart as A and B are, with all samples.
    """

    between: float
    halves_a: float
    halves_b: float
    excess: float
    ratio: float | None
    p_value: float
    samples: int
    splits: int


class Separability(msgspec.Struct, frozen=True, kw_only=True):
    """How often a logistic regression tells the set of a sample that it was not fitted to, in per cent. 50 is chance.

    `standard_error`: of as many independent videos as the sets have sources.
    """

    accuracy: float
    standard_error: float
    folds: int


class GapReport(msgspec.Struct, frozen=True, kw_only=True):
    """The gap between two sets, and all that it depends on. `samples`: of each set. `unreadable`: of both."""

    a: str
    b: str
    checkpoint: str
    samples: int
    seed: int
    features: str
    views: str
    clip_a: str
    clip_b: str
    frechet: FrechetGap
    separability: Separability
    shared_sources: int
    unreadable: dict[str, str]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What the numbers say, and no more."""
        ratio, found = self.frechet.ratio, self.separability
        distance = "The sets are apart, and the halves of each are equal"
        if ratio is not None:
            distance = f"The sets are {ratio:.2f} times as far apart as random halves of one set"
        if self.frechet.p_value > SURE:
            distance += f", as chance alone may give (p = {self.frechet.p_value:.2g})"
        told = f"tells them apart in {found.accuracy:.1f} % of the samples"
        if found.accuracy - 2 * found.standard_error <= 50:
            told += ", which is chance within two standard errors"
        return f"{distance}. A linear classifier {told}."


class Projection(NamedTuple):
    """The two main axes of all samples (PCA), and the share of their variance that each axis shows."""

    a_N2: NDArray[np.float64]
    b_N2: NDArray[np.float64]
    share_2: NDArray[np.float64]


class _Gaussian(NamedTuple):
    """`root_RE.T @ root_RE` is the covariance; R is the smaller one of N and E."""

    mean_E: NDArray[np.float64]
    root_RE: NDArray[np.float64]


def frechet_distance(a_NE: NDArray[np.float64], b_NE: NDArray[np.float64]) -> float:
    """The squared Fréchet distance between the Gaussians of two sets, as FID states it.

    Heusel et al., "GANs trained by a two time-scale update rule", NeurIPS 2017, equation 6. Any number of samples.
    """
    return _distance(_gaussian(a_NE), _gaussian(b_NE))


def _gaussian(feature_NE: NDArray[np.float64]) -> _Gaussian:
    mean_E = feature_NE.mean(axis=0)
    centred_NE = (feature_NE - mean_E) / np.sqrt(max(1, len(feature_NE) - 1))
    return _Gaussian(mean_E, np.asarray(np.linalg.qr(centred_NE, mode="r")))


def _distance(a: _Gaussian, b: _Gaussian) -> float:
    """With roots A and B of the covariances, tr((AᵀA BᵀB)^½) is the sum of the singular values of A Bᵀ.

    So no root of a matrix is taken, and a covariance without full rank is exact too.
    """
    cross = float(np.linalg.svd(a.root_RE @ b.root_RE.T, compute_uv=False).sum())
    spreads = float(np.square(a.root_RE).sum() + np.square(b.root_RE).sum())
    return max(0.0, float(np.square(a.mean_E - b.mean_E).sum()) + spreads - 2 * cross)


def deal_sources(source_SN: Sequence[NDArray[np.uint64]], parts: int, seed: int, turn: int) -> list[NDArray[np.int64]]:
    """The part of each sample of each set. All samples of a source are in one part, whatever their set.

    The parts have about equally many samples of each set. They depend on the sources, the seed and the turn only.
    """
    lengths = [len(source_N) for source_N in source_SN]
    source_G, group = np.unique(np.concatenate(source_SN), return_inverse=True)
    count_GS = np.zeros((len(source_G), len(source_SN)), np.int64)
    np.add.at(count_GS, (group, np.repeat(np.arange(len(source_SN)), lengths)), 1)
    dealt_PS = np.zeros((parts, len(source_SN)), np.int64)
    part_G = np.zeros(len(source_G), np.int64)
    for number in permutation(bits(seed, turn, source_G, 0, 0, Purpose.GAP)):
        part_G[number] = np.argmin(dealt_PS[:, count_GS[number] > 0].sum(axis=1))
        dealt_PS[part_G[number]] += count_GS[number]
    return np.split(part_G[group], np.cumsum(lengths)[:-1])


def frechet_gap(
    a: SampleFeatures, b: SampleFeatures, *, seed: int, done: Callable[[], None] = lambda: None
) -> FrechetGap:
    """The distance between the sets, and that between halves of one set, from equally many samples.

    Few samples make every Fréchet distance too large, so only the two together say something. No source video is on
    both sides of a distance. `done` is called after each of the `SPLITS` and of the `RELABELLINGS`.
    """
    between, halves_a, halves_b = [], [], []
    size = 0
    for split in range(SPLITS):
        part_a, part_b = deal_sources((a.source_N, b.source_N), 2, seed, split)
        chosen = [one.feature_NE[part == half] for one, part in ((a, part_a), (b, part_b)) for half in (0, 1)]
        size = min(len(feature_NE) for feature_NE in chosen)
        a_first, a_second, b_first, b_second = (_gaussian(feature_NE[:size]) for feature_NE in chosen)
        between += [_distance(a_first, b_second), _distance(a_second, b_first)]
        halves_a.append(_distance(a_first, a_second))
        halves_b.append(_distance(b_first, b_second))
        done()
    apart, own_a, own_b = (float(np.mean(values)) for values in (between, halves_a, halves_b))
    chance = (own_a + own_b) / 2
    return FrechetGap(
        between=apart,
        halves_a=own_a,
        halves_b=own_b,
        excess=apart - chance,
        ratio=apart / chance if chance > 0 else None,
        p_value=_p_value(a, b, seed, done),
        samples=size,
        splits=SPLITS,
    )


def _p_value(a: SampleFeatures, b: SampleFeatures, seed: int, done: Callable[[], None]) -> float:
    """A permutation test: the samples of both sets, dealt anew into two sets. The observed deal counts as one."""
    feature_NE, source_N = (np.concatenate(pair) for pair in zip(a, b, strict=True))
    observed, reached = frechet_distance(a.feature_NE, b.feature_NE), 1
    for turn in range(RELABELLINGS):
        (part_N,) = deal_sources((source_N,), 2, seed, SPLITS + 1 + turn)
        sides = [feature_NE[part_N == part] for part in (0, 1)]
        size = min(map(len, sides))
        reached += frechet_distance(sides[0][:size], sides[1][:size]) >= observed
        done()
    return reached / (RELABELLINGS + 1)


def separability(
    a: SampleFeatures, b: SampleFeatures, *, seed: int, done: Callable[[], None] = lambda: None
) -> Separability:
    """Cross-validated over `FOLDS` folds of source videos; features are standardised on the training folds.

    `done` is called after each fold.
    """
    feature_NE = np.concatenate([a.feature_NE, b.feature_NE])
    label_N = np.repeat([0, 1], [len(a.source_N), len(b.source_N)])
    fold_N = np.concatenate(deal_sources((a.source_N, b.source_N), FOLDS, seed, SPLITS))
    right = 0
    for fold in range(FOLDS):
        is_test_N = fold_N == fold
        train_ME = feature_NE[~is_test_N]
        mean_E, spread_E = train_ME.mean(axis=0), train_ME.std(axis=0)
        spread_E[spread_E == 0] = 1
        weight_KE, bias_K = fit_logistic(
            torch.from_numpy((train_ME - mean_E) / spread_E), torch.from_numpy(label_N[~is_test_N]), 2
        )
        logits_NK = (feature_NE[is_test_N] - mean_E) / spread_E @ weight_KE.numpy().T + bias_K.numpy()
        right += int((logits_NK.argmax(axis=1) == label_N[is_test_N]).sum())
        done()
    videos = len(np.unique(np.concatenate([a.source_N, b.source_N])))
    accuracy = 100 * right / len(label_N)
    return Separability(accuracy=accuracy, standard_error=standard_error(accuracy, videos), folds=FOLDS)


def project(a_NE: NDArray[np.float64], b_NE: NDArray[np.float64]) -> Projection:
    """Positions on the two main axes of both sets together. The sign of an axis is that of its largest part."""
    both_NE = np.concatenate([a_NE, b_NE])
    centred_NE = both_NE - both_NE.mean(axis=0)
    _, spread_R, axes_RE = np.linalg.svd(centred_NE, full_matrices=False)
    axes_2E = axes_RE[:2]
    axes_2E *= np.sign(axes_2E[np.arange(2), np.abs(axes_2E).argmax(axis=1)])[:, None]
    at_N2 = centred_NE @ axes_2E.T
    variance_R = np.square(spread_R)
    return Projection(at_N2[: len(a_NE)], at_N2[len(a_NE) :], variance_R[:2] / max(float(variance_R.sum()), 1e-300))
