"""The gap between two sets: against closed forms on numbers, in order on planted videos, and by the command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.demo.scenes import Motion, scenes_of
from vmae_data.demo.videos import render_video, write_demo
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError, MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.recipes import load_recipe
from vmae_train import Embedder
from vmae_train.evaluation.feature_gap import (
    FOLDS,
    GapReport,
    SampleFeatures,
    deal_sources,
    frechet_distance,
    frechet_gap,
    project,
    separability,
)
from vmae_train.gap import measure_gap

QUIET = ProgressStyle.QUIET
ONE_VIEW = ("evaluate.views='1x1'",)


def _plus_minus(deviations: Any, mean: Any) -> np.ndarray:
    """Two samples on each axis, whose covariance is diagonal with these deviations."""
    steps = np.diag(np.asarray(deviations, np.float64)) * np.sqrt((2 * len(deviations) - 1) / 2)
    return np.concatenate([steps, -steps]) + np.asarray(mean, np.float64)


def test_the_distance_of_diagonal_covariances_is_the_closed_form() -> None:
    """|difference of means|² + the sum of squared differences of deviations."""
    a, b = _plus_minus([1, 2, 3], [0, 0, 0]), _plus_minus([2, 2, 0.5], [3, 0, -4])
    np.testing.assert_allclose(np.cov(a.T), np.diag([1, 4, 9]), atol=1e-12)
    assert frechet_distance(a, b) == pytest.approx(25 + 1 + 0 + 2.5**2, rel=1e-12)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(32.25, rel=1e-12)


@pytest.mark.parametrize(("samples", "channels"), [(40, 6), (5, 30)])
def test_the_distance_agrees_with_roots_of_matrices(samples: int, channels: int) -> None:
    """Also of fewer samples than channels, where the covariances have no full rank."""
    random = np.random.default_rng(1)
    a = random.normal(size=(samples, channels)) @ random.normal(size=(channels, channels))
    b = random.normal(size=(samples + 3, channels)) + 2
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root_a @ cov_b @ root_a).clip(0)).sum()
    expected = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def _set(seed: int, samples: int = 200, *, apart: float = 0.0, first: int = 0, per_source: int = 1) -> SampleFeatures:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(samples, 5))
    rows[:, 2] += apart
    rows[:, 0] = 7
    return SampleFeatures(rows, np.arange(samples, dtype=np.uint64) // np.uint64(per_source) + np.uint64(first))


def test_sets_of_one_distribution_have_no_gap_and_others_have_theirs() -> None:
    a = _set(1)
    same, near, far = (_set(2, apart=apart, first=1000) for apart in (0, 1, 4))
    gaps = [frechet_gap(a, b, seed=0) for b in (same, near, far)]
    assert [gap.samples for gap in gaps] == [100] * 3
    # The excess has no bias of few samples: only the squared distance of the means is left, for equal covariances.
    means = [np.square(a.feature_NE.mean(axis=0) - b.feature_NE.mean(axis=0)).sum() for b in (same, near, far)]
    assert [gap.excess for gap in gaps] == pytest.approx(means, abs=0.1)
    assert gaps[0].ratio is not None and 0.7 < gaps[0].ratio < 1.4 < gaps[1].between / gaps[1].halves_a
    assert gaps[0].p_value > 0.1 and [gap.p_value for gap in gaps[1:]] == [1 / 40] * 2
    found = [separability(a, b, seed=0) for b in (same, near, far)]
    assert abs(found[0].accuracy - 50) < 2 * found[0].standard_error
    # The best that can be done is the normal distribution at half of the distance: 69 and 98 %.
    assert [one.accuracy for one in found] == pytest.approx([50, 69, 98], abs=5)
    assert found[0].standard_error == pytest.approx(2.5, abs=0.01)


def test_under_chance_the_p_value_is_even() -> None:
    """Of sets of one distribution, about one in four has a p below a quarter."""
    values = [frechet_gap(_set(seed, 20), _set(seed + 1000, 20, first=1000), seed=0).p_value for seed in range(40)]
    assert 4 <= sum(value <= 0.25 for value in values) <= 16


def test_random_splits_depend_on_the_seed_only() -> None:
    a, b = _set(1), _set(2, apart=1, first=1000)
    assert frechet_gap(a, b, seed=3) == frechet_gap(a, b, seed=3) != frechet_gap(a, b, seed=4)
    assert separability(a, b, seed=3) == separability(a, b, seed=3)


def test_all_samples_of_a_source_are_in_one_part_in_both_sets() -> None:
    a = _set(1, 60, per_source=3).source_N  # sources 0 to 19
    b = _set(2, 60, per_source=2, first=10).source_N  # sources 10 to 39, of which a has the first ten
    for seed in range(5):
        part_a, part_b = deal_sources((a, b), FOLDS, seed, 0)
        places: dict[int, set[int]] = {}
        for source, part in zip([*a, *b], [*part_a, *part_b], strict=True):
            places.setdefault(int(source), set()).add(int(part))
        assert all(len(parts) == 1 for parts in places.values())
        for part in (part_a, part_b):
            counts = np.bincount(part, minlength=FOLDS)
            assert counts.max() - counts.min() <= 6  # twice the samples of a source
    again = deal_sources((a[::-1], b), FOLDS, 4, 0)
    assert np.array_equal(again[0][::-1], part_a) and np.array_equal(again[1], part_b)


def test_copies_of_a_video_in_both_sets_do_not_look_separable() -> None:
    """If a copy could be in a training fold, a test sample would be taken for the set of its copy."""
    a = _set(1, 100)
    found = separability(a, a, seed=0)
    assert abs(found.accuracy - 50) < 1e-9
    assert frechet_gap(a, a, seed=0).ratio == pytest.approx(1)


def test_the_projection_shows_the_axes_of_most_variance() -> None:
    a, b = _set(1, apart=0), _set(2, apart=50)
    shown = project(a.feature_NE, b.feature_NE)
    assert shown.share_2[0] > 0.9 and 0 < shown.share_2[1] < 0.1
    assert shown.b_N2[:, 0].mean() - shown.a_N2[:, 0].mean() == pytest.approx(50, abs=0.5)  # the sign is fixed
    constant = project(np.ones((4, 3)), np.ones((4, 3)))
    assert not constant.a_N2.any() and not constant.share_2.any()


def _planted(folder: Path, classes: tuple[int, ...], first: int, speed: float = 1.0) -> Path:
    """Shards of 48 small scenes. No frame shows class or speed; scenes from `first` on are others."""
    numbers = [8 * (first + n // len(classes)) + classes[n % len(classes)] for n in range(48)]
    for scene in scenes_of(numbers, 1, 1):
        path = folder / "videos" / scene.path
        path.parent.mkdir(parents=True, exist_ok=True)
        motion = Motion(*(speed * value for value in scene.motion))
        small = {"width": 36, "height": 36, "num_frames": 16, "octave": 0.5, "discs": (), "tone": None}
        render_video(scene._replace(motion=motion, **small), path)
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1"])
    build_shards(str(folder / "videos"), folder / "shards", spec, workers=2, style=QUIET)
    return folder / "shards"


@pytest.mark.processes
def test_the_gap_grows_from_the_same_set_to_other_classes_to_other_motion(
    tiny_pretraining: Path, tmp_path: Path
) -> None:
    """The encoder was pretrained for four steps. Two random ones, and three seeds of scenes, had the same order."""
    pans, zooms = (0, 1, 2, 3), (6, 7)
    a = _planted(tmp_path / "a", pans, 0)
    others = {
        "same": _planted(tmp_path / "same", pans, 1000),
        "classes": _planted(tmp_path / "classes", zooms, 2000),
        "motion": _planted(tmp_path / "motion", pans, 3000, speed=8),
    }
    embedder = Embedder(tiny_pretraining, "cpu", settings=[*ONE_VIEW, "clip.stride=1"])
    found = {name: measure_gap(embedder, str(a), str(url), style=QUIET)[0] for name, url in others.items()}
    ratios = [report.frechet.ratio or 0 for report in found.values()]
    assert ratios[0] < 1.4 < ratios[1] < ratios[2]
    assert ratios == sorted(ratios)
    distances = [report.frechet.between for report in found.values()]
    assert distances == sorted(distances)
    accuracies = [report.separability.accuracy for report in found.values()]
    assert accuracies == sorted(accuracies) and accuracies[0] < 60 and accuracies[2] > 85
    assert [report.samples for report in found.values()] == [48] * 3
    chances = [report.frechet.p_value for report in found.values()]
    assert chances[0] > 0.1 and chances[1:] == [1 / 40] * 2
    same = found["same"].summary
    assert ", as chance alone may give (p = 0." in same and "which is chance within two standard errors" in same
    assert found["motion"].summary.startswith(f"The sets are {ratios[2]:.2f} times as far apart as random halves")


@pytest.fixture(scope="module")
def other_shards(tmp_path_factory: pytest.TempPathFactory, demo_spec: BuildSpec) -> Path:
    folder = tmp_path_factory.mktemp("other")
    write_demo(folder / "videos", num_videos=16, seed=9, workers=2)
    build_shards(str(folder / "videos"), folder / "shards", demo_spec, workers=2, style=QUIET)
    return folder / "shards"


def _gap(*arguments: Any, status: int = 0) -> Any:
    return call_command("vmae_train", "gap", *arguments, status=status)


def test_the_command_prints_a_table_a_sentence_json_and_a_page(
    tiny_pretraining: Path, demo_shards: Path, other_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    command = [demo_shards, other_shards, "--init", tiny_pretraining]
    page = tmp_path / "gap.html"
    done = _gap(*command, "--workers", "0", "--html", page)
    assert "16 of 24 samples" in done.stderr and "16 of 16 samples" in done.stderr
    *table_lines, summary, written = done.stdout.strip().split("\n")
    table = "\n".join(table_lines)
    assert written == str(page)
    assert re.search(r"Fréchet distance +│ \S+ \(squared; 8 samples of each side\)", table)
    assert re.match(r"The sets are \d\.\d\d times as far apart as random halves of one set, .*\. A linear", summary)
    report = json.loads(_gap(*command, "--workers", "2", "--batch", "8", "--json", "--quiet").stdout)
    fields = set(GapReport.__struct_fields__)
    assert set(report) == {*fields, "summary"} and report["summary"] == summary
    assert (report["samples"], report["views"], report["warnings"], report["unreadable"]) == (16, "1x1", [], {})
    assert f"{report['frechet']['between']:.4g} (squared" in table
    text = page.read_text()
    assert report["summary"] in text and text.count("<svg") == 1 and "○ A: " in text and "△ B: " in text
    assert '<ul class="legend points">' in text  # a chart of points has no line in its legend
    assert "var(--c1)" in text and "var(--c2)" in text and "axis 1 (" in text
    assert _gap(*command, "--quiet", "--workers", "0").stdout == ""


def test_the_features_are_those_of_embed_and_the_seed_chooses_the_samples(
    tiny_pretraining: Path, demo_shards: Path, other_shards: Path
) -> None:
    embedder = Embedder(tiny_pretraining, "cpu", settings=ONE_VIEW)
    urls = (str(demo_shards), str(other_shards))
    report, shown = measure_gap(embedder, *urls, style=QUIET)
    rows = []
    for url in urls:
        results = embedder.run_shards(Shards.open(url))
        rows.append(np.stack([row.values for result in results for row in result.rows]).astype(np.float64))
    # All 16 of the second set are compared, in another order.
    centre = np.linalg.norm(rows[1] - rows[1].mean(axis=0), axis=1)
    spread = np.linalg.norm(shown.b_N2 - shown.b_N2.mean(axis=0), axis=1)
    assert len(spread) == 16 and (np.sort(spread) <= np.sort(centre) + 1e-9).all()
    again, _ = measure_gap(embedder, *urls, style=QUIET, workers=2)
    assert again == report
    fewer = [measure_gap(embedder, *urls, samples=12, seed=seed, style=QUIET)[0] for seed in (0, 0, 1)]
    assert fewer[0] == fewer[1] != fewer[2] and fewer[0].samples == 12


def test_a_broken_member_is_named_and_the_others_are_compared(
    tiny_pretraining: Path, demo_shards: Path, other_shards: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(other_shards, cut)
    shards = Shards.open(str(cut))
    member = shards.member_range(3)
    path = cut / shards.index.shardlist[member.shard].url
    data = bytearray(path.read_bytes())
    data[member.offset + member.size // 2] ^= 0xFF
    path.write_bytes(data)
    done = _gap(demo_shards, cut, "--init", tiny_pretraining, "--workers", "0", "--json", "--quiet")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"skipped, unreadable: {cut}/{shards.key(3)}: ")
    report = json.loads(done.stdout)
    assert report["samples"] == 15 and list(report["unreadable"]) == [f"{cut}/{shards.key(3)}"]


def test_what_else_differs_between_the_sets_is_a_warning(
    tiny_pretraining: Path, demo_videos: Path, demo_shards: Path, tmp_path: Path
) -> None:
    """The same videos with another spacing and another quality: every source is in both sets."""
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["stride=1", "crf=20"])
    build_shards(str(demo_videos), tmp_path / "whole", spec, workers=2, style=QUIET)
    command = [demo_shards, tmp_path / "whole", "--init", tiny_pretraining, "--workers", "0", "--quiet"]
    thinned = "warning: the shards are thinned differently (stride 2 and stride 1), so their clips differ"
    encoded = "warning: the shards are encoded differently (crf 4 and 20)"
    shared = "warning: 24 source videos of the same path in both sets"
    said = _gap(*command, "--set", "clip.stride=kept").stderr.splitlines()
    assert [line.startswith(start) for line, start in zip(said, (thinned, encoded, shared), strict=True)] == [True] * 3
    # A stride that both hold gives the same frames.
    said = _gap(*command).stderr.splitlines()
    assert [line.startswith(start) for line, start in zip(said, (encoded, shared), strict=True)] == [True] * 2


def test_sets_and_checkpoints_that_do_not_fit_are_refused(
    tiny_pretraining: Path,
    demo_videos: Path,
    demo_shards: Path,
    other_shards: Path,
    demo_spec: BuildSpec,
    tmp_path: Path,
) -> None:
    build_shards(str(demo_videos / "pan-left"), tmp_path / "few", demo_spec, workers=1, style=QUIET)
    (tmp_path / "nothing").mkdir()
    init = ["--init", tiny_pretraining]
    for arguments, reason in (
        ([demo_shards, demo_shards, *init], "hold the same samples. Name two sets of shards"),
        ([demo_shards, f"{demo_shards}/index.json", *init], "hold the same samples"),
        ([demo_shards, tmp_path / "few", *init], "few: has 3 samples, a gap needs 10 of each set. Use more videos"),
        ([tmp_path / "few", demo_shards, *init], "few: has 3 samples"),
        ([demo_shards, other_shards, *init, "--set", "clip.stride=3"], "the recipe's stride is 3 source frames"),
        ([demo_shards, other_shards, *init, "--samples", "9"], "--samples"),
        ([demo_shards, other_shards], "--init"),
        ([demo_shards, tmp_path / "nothing", *init], "nothing"),
        ([demo_shards, other_shards, "--init", tmp_path / "nothing"], "nothing"),
    ):
        assert reason in _gap(*arguments, "--quiet", status=2).stderr, reason


def test_a_set_of_few_sources_is_refused(tiny_pretraining: Path, demo_shards: Path, tmp_path: Path) -> None:
    """Many segments of few videos: halves and folds have nothing to choose from."""
    for number in range(3):
        scene = scenes_of([number], 4, 1)[0]._replace(width=36, height=36, num_frames=80, tone=None)
        (tmp_path / "videos").mkdir(exist_ok=True)
        render_video(scene, tmp_path / "videos" / f"{number}.mp4")
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["longest_seconds=0.7"])
    build_shards(str(tmp_path / "videos"), tmp_path / "shards", spec, workers=1, style=QUIET)
    assert len(Shards.open(str(tmp_path / "shards"))) >= 10
    embedder = Embedder(tiny_pretraining, "cpu", settings=ONE_VIEW)
    with pytest.raises(DataError, match="samples of 3 videos could be read, a gap needs 10 videos of each"):
        measure_gap(embedder, str(tmp_path / "shards"), str(demo_shards), style=QUIET)
    with pytest.raises(MisuseError, match="hold the same samples"):
        measure_gap(embedder, str(demo_shards), str(demo_shards), style=QUIET)
