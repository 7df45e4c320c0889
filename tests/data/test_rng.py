from __future__ import annotations

import math

import numpy as np
import pytest

from vmae_data import rng
from vmae_data.rng import Purpose, Rng


def _splitmix64(x: int) -> int:
    mask = (1 << 64) - 1
    z = (x + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_splitmix64_gives_its_published_first_numbers() -> None:
    # Seed 1234567; from the generator's reference output.
    state, numbers = 1234567, []
    for _ in range(3):
        numbers.append(int(rng.splitmix64(state)))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert numbers == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_bits_chain_every_argument_in_the_stated_order() -> None:
    expected = 7
    for x in (3, 2**63 + 5, 1, 2, int(Purpose.MASK), 9):
        expected = _splitmix64(expected ^ x)
    assert int(rng.bits(7, 3, np.uint64(2**63 + 5), 1, 2, Purpose.MASK, 9)) == expected


def test_integers_and_uniforms_follow_their_formulas() -> None:
    h = rng.bits(1, 0, np.arange(10_000), 0, 0, Purpose.CROP_SIZE)
    assert rng.integer(h, 10).tolist() == [((int(x) >> 32) * 10) >> 32 for x in h]
    assert rng.uniform(h).tolist() == [(int(x) >> 40) / 2**24 for x in h]
    counts = np.bincount(rng.integer(h, 10), minlength=10)
    assert np.abs(counts - 1000).max() < 150  # five standard deviations


def test_a_permutation_holds_every_number_once() -> None:
    h = rng.bits(1, 0, 5, 0, 0, Purpose.MASK, np.arange(196))
    assert sorted(rng.permutation(h).tolist()) == list(range(196))


def test_a_sample_is_identified_by_data_set_and_key_not_by_row() -> None:
    assert rng.sample_number("a", "k") == rng.sample_number("a", "k")
    assert rng.sample_number("a", "k") != rng.sample_number("b", "k")
    sample_rng = Rng(seed=1, epoch=2, sample=rng.sample_number("a", "k"))
    assert sample_rng.integer(Purpose.FRAMES, 100) == int(
        rng.integer(rng.bits(1, 2, np.uint64(sample_rng.sample), 0, 0, Purpose.FRAMES), 100)
    )


def test_normal_numbers_are_normal() -> None:
    values = np.sort(rng.normal(rng.bits(1, 0, np.arange(5000), 0, 0, Purpose.RANDAUGMENT_MAGNITUDE)))
    expected = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in values])
    assert np.abs(expected - np.arange(1, 5001) / 5000).max() < 1.95 / math.sqrt(5000)


@pytest.mark.parametrize(("a", "b"), [(0.8, 0.8), (1.0, 1.0), (0.05, 0.3), (4.0, 2.0)])
def test_beta_numbers_have_the_moments_of_their_distribution(a: float, b: float) -> None:
    count = 2000
    values = np.array([Rng(3, 1, sample).beta(Purpose.MIXUP_LAMBDA, a, b) for sample in range(count)])
    variance = a * b / ((a + b) ** 2 * (a + b + 1))
    assert ((values >= 0) & (values <= 1)).all()
    assert abs(values.mean() - a / (a + b)) < 5 * math.sqrt(variance / count)
    assert abs(values.var() - variance) < 5 * math.sqrt(((values - values.mean()) ** 2).var() / count)
    assert values[7] == Rng(3, 1, 7).beta(Purpose.MIXUP_LAMBDA, a, b)


def test_no_two_purposes_share_a_number() -> None:
    assert len(Purpose.__members__) == len(set(Purpose))
