"""Scores of features: against values computed by hand on planted features, and from shards by the command."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.demo.videos import write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train import Embedder
from vmae_train.evaluate import evaluate_features
from vmae_train.evaluation.frozen_scores import (
    FeatureSet,
    MeanSpread,
    choose_shots,
    few_shot_scores,
    fit_logistic,
    knn_scores,
    knn_votes,
    nearest_mean,
    parse_shots,
)

QUIET = ProgressStyle.QUIET


def _set(rows: Any, labels: Any) -> FeatureSet:
    labels = np.asarray(labels, np.int64)
    return FeatureSet(np.asarray(rows, np.float64), labels, np.arange(len(labels), dtype=np.uint64) * 977 + 13)


def _planted(seed: int, per_class: int, *, apart: float = 6.0) -> FeatureSet:
    """Three Gaussian classes in five dimensions; the first dimension is constant."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3), per_class)
    rows = random.normal(size=(len(labels), 5))
    rows[np.arange(len(labels)), labels + 1] += apart
    rows[:, 0] = 7
    return _set(rows, labels)


def test_a_neighbour_votes_with_the_exponential_of_its_cosine() -> None:
    """Angles of 0, 60 and 90 degrees to the query; lengths don't matter."""
    train = _set([[3, 0], [0.5, math.sqrt(0.75)], [0, 9], [-1, 0]], [0, 1, 1, 2])
    votes_NK = knn_votes(train, np.asarray([[2.0, 0]]), 3, k=3)
    expected = [math.exp(1 / 0.07), math.exp(0.5 / 0.07) + math.exp(0), 0]
    np.testing.assert_allclose(votes_NK[0], expected)
    # One very near neighbour outvotes two that are farther, which a count of neighbours would not.
    assert knn_scores(train, _set([[2, 0]], [0]), 3).top1 == 100


def test_k_nn_agrees_with_a_search_in_python() -> None:
    train, validation = _planted(1, 30, apart=1.5), _planted(2, 20, apart=1.5)
    right = 0
    for query, label in zip(validation.feature_NE, validation.label_N, strict=True):
        cosines = [row @ query / math.hypot(*row) / math.hypot(*query) for row in train.feature_NE]
        votes = [0.0, 0.0, 0.0]
        for near in sorted(range(len(cosines)), key=lambda n: -cosines[n])[:20]:
            votes[train.label_N[near]] += math.exp(cosines[near] / 0.07)
        right += votes.index(max(votes)) == label
    scores = knn_scores(train, validation, 3)
    assert (scores.k, scores.top5) == (20, None)
    assert scores.top1 == pytest.approx(100 * right / len(validation.label_N))
    assert 50 < scores.top1 < 100


def test_top_5_is_of_more_than_five_classes_and_fewer_videos_than_neighbours_all_vote() -> None:
    rows = np.eye(7)
    scores = knn_scores(_set(rows, range(7)), _set(rows, [0, 1, 2, 3, 4, 5, 5]), 7)
    assert (scores.k, scores.top1) == (7, pytest.approx(600 / 7))
    assert scores.top5 is not None and scores.top5 >= scores.top1


def test_the_nearest_class_mean_is_by_distance() -> None:
    train_ME = torch.tensor([[0.0, 0], [2, 0], [10, 0], [0, 4]]).double()  # means (1, 0), (10, 0), (0, 4)
    queries = torch.tensor([[5.4, 0], [5.6, 0], [0, 2.2], [0, 1.8]]).double()
    assert nearest_mean(train_ME, torch.tensor([0, 0, 1, 2]), queries, 3).tolist() == [0, 1, 2, 0]


def test_logistic_regression_of_two_points_has_the_weight_that_bisection_finds() -> None:
    """Points at −1 and 1 of two classes: by symmetry the weights are ∓w, without biases.

    The loss is 2 log(1 + exp(−2 w)) + w². Its derivative −4 / (1 + exp(2 w)) + 2 w is 0 at the smallest loss.
    """
    low, high = 0.0, 5.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * middle - 4 / (1 + math.exp(2 * middle)) < 0 else (low, middle)
    weight_KE, bias_K = fit_logistic(torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1]), 2)
    np.testing.assert_allclose(weight_KE[:, 0], [-low, low], atol=1e-5)
    np.testing.assert_allclose(bias_K, [0, 0], atol=1e-5)


def test_logistic_regression_is_at_the_minimum_of_its_loss() -> None:
    """The gradient, computed by hand: (p − y)ᵀ x + w of the weights, the sum of p − y of the biases."""
    train = _planted(3, 20, apart=1.0)
    x_ME, label_M = train.feature_NE, train.label_N
    weight_KE, bias_K = (value.numpy() for value in fit_logistic(torch.from_numpy(x_ME), torch.from_numpy(label_M), 3))
    logits_MK = x_ME @ weight_KE.T + bias_K
    share_MK = np.exp(logits_MK) / np.exp(logits_MK).sum(axis=1, keepdims=True)
    error_MK = share_MK - np.eye(3)[label_M]
    np.testing.assert_allclose(error_MK.T @ x_ME + weight_KE, 0, atol=1e-3)
    np.testing.assert_allclose(error_MK.sum(axis=0), 0, atol=1e-3)


def test_few_shots_of_separate_classes_suffice_and_more_shots_score_no_less() -> None:
    names = ("a", "b", "c")
    train, validation = _planted(4, 12), _planted(5, 40)
    scores = few_shot_scores(train, validation, 5, names)
    assert (scores.shots, scores.seeds) == (5, 5)
    assert scores.nearest_mean.mean > 95 and scores.logistic.mean > 95
    hard, test = _planted(4, 12, apart=1.5), _planted(5, 40, apart=1.5)
    one, ten = (few_shot_scores(hard, test, shots, names) for shots in (1, 10))
    assert 33 < one.logistic.mean < ten.logistic.mean < 100 and one.nearest_mean.mean < ten.nearest_mean.mean
    assert one.logistic.spread > 0
    assert few_shot_scores(hard, test, 1, names) == one
    every = few_shot_scores(hard, test, 12, names)
    assert every.nearest_mean.spread == every.logistic.spread == 0
    with pytest.raises(DataError, match="class 'a' has 12 readable training videos, which is less than 13 shots"):
        few_shot_scores(hard, test, 13, names)


def test_shots_depend_on_the_videos_and_the_seed_not_on_their_order() -> None:
    train = _planted(6, 10)
    chosen = choose_shots(train, 3, 0, ("a", "b", "c"))
    assert train.label_N[chosen].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and len(set(chosen.tolist())) == 9
    order = np.random.default_rng(0).permutation(30)
    shuffled = FeatureSet(train.feature_NE[order], train.label_N[order], train.sample_N[order])
    again = choose_shots(shuffled, 3, 0, ("a", "b", "c"))
    assert set(shuffled.sample_N[again].tolist()) == set(train.sample_N[chosen].tolist())
    assert any(not np.array_equal(choose_shots(train, 3, seed, ("a", "b", "c")), chosen) for seed in range(1, 5))


def test_numbers_of_shots_are_sorted_and_checked() -> None:
    assert parse_shots("10,1,5,5") == (1, 5, 10)
    for text in ("", "1,", "0", "1, 5", "-1", "1.5", "٣", "1234567"):
        with pytest.raises(MisuseError, match="such as 1,5,10"):
            parse_shots(text)


def test_mean_and_spread_are_of_a_sample() -> None:
    assert MeanSpread.of([10, 20, 30]) == MeanSpread(20, 10)
    assert str(MeanSpread.of([10, 20, 30])) == "20.00 ± 10.00 %"


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory, demo_spec: BuildSpec) -> Path:
    """Shards of other videos with the classes of `demo_shards`."""
    folder = tmp_path_factory.mktemp("other")
    write_demo(folder / "videos", num_videos=16, seed=9, workers=2)
    build_shards(str(folder / "videos"), folder / "shards", demo_spec, workers=2, style=QUIET)
    return folder / "shards"


def test_the_command_scores_the_features_of_shards(
    tiny_pretraining: Path, tiny_finetuning: Path, demo_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    options: list[Any] = ["--train", demo_shards, "--views", "1x1", "--workers", "0", "--knn", "--few-shot", "3,1"]
    command: list[Any] = ["vmae_train", "evaluate", tiny_pretraining, "--data", other_shards, *options]
    done = call_command(*command, "--json", "--quiet", "--out", tmp_path / "scores.json")
    scores = json.loads(done.stdout)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    # The features are those that `embed` writes: the same scores come from them.
    embedder = Embedder(tiny_pretraining, "cpu", settings=["evaluate.views='1x1'"])
    sets = []
    for url in (demo_shards, other_shards):
        shards = Shards.open(str(url))
        rows = {result.video.rpartition("/")[2]: result.rows[0].values for result in embedder.run_shards(shards)}
        keys = [shards.key(n) for n in range(len(shards))]
        samples = np.asarray([shards.sample_number(n) for n in range(len(shards))], np.uint64)
        sets.append(FeatureSet(np.stack([rows[key] for key in keys]).astype(np.float64), shards.label_N, samples))
    expected = knn_scores(*sets, 8)
    assert scores["knn"] == {"k": 20, "top1": pytest.approx(expected.top1), "top5": pytest.approx(expected.top5)}
    assert [one["shots"] for one in scores["few_shot"]] == [1, 3]
    assert scores["few_shot"][0]["logistic"]["mean"] == pytest.approx(
        few_shot_scores(*sets, 1, "abcdefgh").logistic.mean
    )
    assert (scores["videos"], scores["train_videos"], scores["layer"], scores["kind"]) == (16, 24, 2, "features")
    done = call_command("vmae_train", "evaluate", tiny_finetuning, "--data", other_shards, *options, "--layer", "1")
    assert "training videos encoded: 24 of 24" in done.stderr and "\nvideos encoded: 16 of 16" in done.stderr
    # 24 training videos of 8 classes.
    assert "1 video a class, 3 videos a class (all there are: every seed chooses the same)" in " ".join(
        done.stderr.replace("│", " ").split()
    )
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"k-NN, k = 20: top-1 \S+ %, top-5 \S+ %", lines[0])
    assert re.fullmatch(r"1 video a class: nearest class mean \S+ ± \S+ %, logistic regression \S+ ± \S+ %", lines[1])
    assert lines[3:] == ["± is the standard deviation over 5 seeds", "16 videos, 24 training videos, 1x1 views"]


def test_features_that_show_the_class_score_high(tiny_pretraining: Path, demo_shards: Path, tmp_path: Path) -> None:
    """The same videos as another data set: each has a neighbour of its class at distance 0, which only misses the codec."""
    videos = demo_shards.parent / "demo-videos"
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=24"])
    build_shards(str(videos), tmp_path / "again", spec, workers=2, style=QUIET)
    scores = evaluate_features(
        str(tiny_pretraining),
        str(tmp_path / "again"),
        str(demo_shards),
        knn=True,
        few_shot=(3,),
        settings=["evaluate.views='1x1'"],
        workers=0,
        device="cpu",
        style=QUIET,
    )
    assert scores.knn is not None and scores.few_shot[0].logistic.mean == 100


def test_data_and_options_that_do_not_fit_are_refused(
    tiny_pretraining: Path, demo_shards: Path, other_shards: Path, members: list[Path], tmp_path: Path
) -> None:
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=2"])
    build_shards(str(members[0].parent), tmp_path / "plain", spec, workers=1, style=QUIET)
    lines = [json.dumps({"path": str(path), "label": ["a", "b"]}) for path in members]
    (tmp_path / "several.jsonl").write_text("\n".join(lines))
    build_shards(str(tmp_path / "several.jsonl"), tmp_path / "several", spec, workers=1, style=QUIET)
    fit = ["--train", demo_shards]
    for data, options, reason in (
        (other_shards, ["--knn"], "Set --train URL to labelled training shards"),
        (other_shards, fit, "--train: is for the scores of features"),
        (other_shards, ["--layer", "1"], "--layer: is for the scores of features"),
        (other_shards, [*fit, "--knn", "--html", "a.html"], "--html: is for the scores of a head"),
        (other_shards, [*fit, "--knn", "--layer", "3"], "the encoder has blocks 1 to 2. Set another --layer"),
        (other_shards, [*fit, "--few-shot", "1,x"], "such as 1,5,10"),
        (other_shards, [*fit, "--few-shot", "1,4"], "--few-shot 4: "),
        (demo_shards, [*fit, "--knn"], "holds the videos to evaluate"),
        (tmp_path / "plain", [*fit, "--knn"], "plain: has no labels"),
        (tmp_path / "several", [*fit, "--knn"], "several: its labels are several classes a video"),
        (other_shards, ["--knn", "--train", tmp_path / "plain"], "plain: has no labels"),
    ):
        said = call_command("vmae_train", "evaluate", tiny_pretraining, "--data", data, *options, status=2).stderr
        assert reason in said, reason
