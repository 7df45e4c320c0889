from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture, parse_data
from vmae_data.read.order import MixtureOrder, epoch_sequence

SIZES = [[7, 9, 8], [5] * 20]  # 24 and 100 samples


@given(st.lists(st.integers(1, 30), min_size=1, max_size=40))
@settings(max_examples=100)
def test_an_epoch_of_a_data_set_in_a_mixture_holds_every_sample_once(sizes: list[int]) -> None:
    assert sorted(epoch_sequence(sizes, seed=1, epoch=2)) == list(range(sum(sizes)))
    assert np.array_equal(epoch_sequence(sizes, seed=1, epoch=2), epoch_sequence(sizes, seed=1, epoch=2))


def test_each_data_set_has_its_own_epochs_without_a_gap_or_a_repeat() -> None:
    order = MixtureOrder(SIZES, [1, 1], seed=3, batch=31)
    assert order.steps_per_epoch == 124 // 31
    steps = [order.batch(step) for step in range(40)]
    samples = np.concatenate([batch.sample_B for batch in steps])
    epochs = np.concatenate([batch.epoch_B for batch in steps])
    for first, length, sizes in ((0, 24, SIZES[0]), (24, 100, SIZES[1])):
        own = (samples >= first) & (samples < first + length)
        count = int(own.sum())
        expected = [epoch_sequence(sizes, seed=3, epoch=k) + first for k in range(-(-count // length))]
        assert np.array_equal(samples[own], np.concatenate(expected)[:count])
        assert np.array_equal(epochs[own], np.arange(count) // length)


def test_any_step_can_be_computed_first() -> None:
    in_order = MixtureOrder(SIZES, [2, 1], seed=3, batch=31)
    expected = [in_order.batch(step) for step in range(13)]
    for step in (12, 5, 0, 7):
        batch = MixtureOrder(SIZES, [2, 1], seed=3, batch=31).batch(step)
        assert np.array_equal(batch.sample_B, expected[step].sample_B)
        assert np.array_equal(batch.epoch_B, expected[step].epoch_B)


@pytest.mark.parametrize(("weights", "share"), [([3, 1], 0.75), ([], 24 / 124), ([0.5, 1.5], 0.25)])
def test_the_shares_follow_the_weights_or_by_default_the_numbers_of_samples(weights: list[float], share: float) -> None:
    order = MixtureOrder(SIZES, weights, seed=0, batch=124)
    mean = np.mean([(order.batch(step).sample_B < 24).mean() for step in range(200)])
    assert abs(mean - share) < 5 * np.sqrt(share * (1 - share) / (200 * 124))


def test_a_batch_late_in_a_long_run_is_computed_quickly() -> None:
    order = MixtureOrder([[500] * 1600, [500] * 400], [2, 1], seed=0, batch=1024)
    started_at = time.process_time()
    order.batch(3 * order.steps_per_epoch + 100)
    assert time.process_time() - started_at < 5  # 0.4 s on one slow core
    started_at = time.process_time()
    for step in range(10):
        order.batch(3 * order.steps_per_epoch + 101 + step)
    assert time.process_time() - started_at < 0.5


@pytest.mark.parametrize(
    ("text", "url", "weight"),
    [
        ("shards/a", "shards/a", None),
        ("shards/a:2", "shards/a", 2.0),
        ("shards/a:0.25", "shards/a", 0.25),
        ("s3://host:9000/x", "s3://host:9000/x", None),
        ("s3://host:9000/x:3", "s3://host:9000/x", 3.0),
        ("http://host:9000", "http://host:9000", None),
        ("http://host:9000/:2", "http://host:9000/", 2.0),
        ("C:/shards", "C:/shards", None),
        ("shards/a:b", "shards/a:b", None),
    ],
)
def test_a_weight_is_a_number_after_the_last_colon(text: str, url: str, weight: float | None) -> None:
    assert parse_data(text) == (url, weight)


def test_the_colon_of_an_existing_path_is_not_a_weight(tmp_path: Path) -> None:
    folder = tmp_path / "take:2"
    folder.mkdir()
    assert parse_data(str(folder)) == (str(folder), None)
    assert parse_data(f"{folder}:3") == (str(folder), 3.0)


def test_a_data_set_named_twice_and_a_missing_weight_are_refused(demo_shards: Path) -> None:
    one = (str(demo_shards), None)
    with pytest.raises(MisuseError, match="a weight of 0"):
        parse_data("shards/a:0")
    with pytest.raises(MisuseError, match="is named twice"):
        Mixture.open([one, one])
    with pytest.raises(MisuseError, match="has no weight, but others have"):
        Mixture.open([one, (str(demo_shards), 2.0)])


def test_samples_of_all_data_sets_are_numbered_consecutively(demo_shards: Path) -> None:
    shards = Shards.open(str(demo_shards))
    mixture = Mixture([shards, shards])
    count = len(shards)
    assert len(mixture) == 2 * count
    assert mixture.locate(count - 1) == (0, count - 1)
    assert mixture.locate(count) == (1, 0)
    assert mixture.key(count + 3) == f"{shards.key(3)} (data 2)"
    assert mixture.sample_number(count + 3) == shards.sample_number(3)
    assert Mixture.of(shards).key(3) == shards.key(3)


@pytest.mark.parametrize("text", ["s3://b/k:-1", "s3://b/k:nan", "s3://b/k:1e3", "s3://b/k:", "", "x:inf"])
def test_a_weight_that_is_not_a_number_above_0_is_refused(text: str) -> None:
    with pytest.raises(MisuseError, match="--data"):
        parse_data(text)
