from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.command import call_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.estimate import Estimate, Interval, choose_sample, estimate_build, estimate_lines, scale_up
from vmae_data.progress import ProgressStyle

pytestmark = pytest.mark.processes

QUIET = ProgressStyle.QUIET


def test_a_value_proportional_to_the_bytes_has_an_exact_estimate() -> None:
    found = scale_up([(10, 1), (30, 3), (20, 2)], 600, 30)
    assert found is not None
    assert found == Interval(pytest.approx(60), pytest.approx(60), pytest.approx(60))


def test_the_interval_is_that_of_the_ratio_estimator_and_exact_if_all_were_tried() -> None:
    # By hand: the ratio is 5 / 4.
    pairs = [(1.0, 1.0), (3.0, 4.0)]
    found = scale_up(pairs, 400, 100)
    assert found is not None
    residuals = [1.0 - 1.25, 4.0 - 3.75]
    variance = sum(r * r for r in residuals) / 2 * (1 - 2 / 100)
    factor = 1 + 2 * variance**0.5 / 2.5
    assert found == Interval(pytest.approx(500 / factor), pytest.approx(500), pytest.approx(500 * factor))
    assert scale_up(pairs, 4, 2) == Interval(5, 5, 5)
    assert scale_up([], 400, 100) is None
    assert scale_up([(5, 0)], 400, 100) is None


def test_the_sample_spans_all_sizes_in_plan_order_and_is_repeatable() -> None:
    sizes = [(n * 7919) % 1000 for n in range(1000)]
    chosen = choose_sample(sizes, 10)
    assert sorted(sizes[n] // 100 for n in chosen) == list(range(10))
    assert chosen == sorted(chosen) == choose_sample(sizes, 10)
    assert choose_sample(sizes[:3], 10) == [0, 1, 2]
    assert choose_sample([], 10) == []


def test_an_estimate_from_all_videos_is_the_size_of_the_build(
    demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path
) -> None:
    names = sorted(str(path.relative_to(demo_videos)) for path in demo_videos.glob("*/*.mp4"))[::3][:8]
    listing = tmp_path / "list.txt"
    listing.write_text("".join(f"{name}\n" for name in [*names, "gone.mp4"]))
    found = estimate_build(str(demo_videos), demo_spec, workers=1, annotations=str(listing), style=QUIET)
    total = len(list(demo_videos.rglob("*.mp4")))
    assert (found.videos, found.missing, found.unlisted, found.sample) == (8, 1, total - 8, 8)
    assert found.bytes == sum((demo_videos / name).stat().st_size for name in names)
    report = build_shards(
        str(demo_videos), tmp_path / "out", demo_spec, workers=1, annotations=str(listing), style=QUIET
    )
    real = report.bytes
    assert found.shard_bytes is not None
    # tar pads each shard to a multiple of 10,240 bytes.
    assert 0 <= real - found.shard_bytes.middle <= 10240 * found.shards
    failed = dict(report.failures)
    assert failed.pop("missing") == 1
    assert found.sample_failures == failed
    assert found.seconds is not None and 0 < found.seconds.low <= found.seconds.middle <= found.seconds.high
    text = "\n".join(estimate_lines(found))
    assert "missing     1 listed" in text


def test_a_dry_run_writes_nothing_and_reports_the_same_in_both_forms(demo_videos: Path, tmp_path: Path) -> None:
    command = ["vmae_data", "build", demo_videos, tmp_path / "out", "--recipe", "demo", "--workers", "1", "--dry-run"]
    printed = json.loads(call_command(*command, "--json").stdout)
    text = call_command(*command).stdout
    assert list(tmp_path.iterdir()) == []
    total = len(list(demo_videos.rglob("*.mp4")))
    assert (printed["videos"], printed["shards"]) == (total, 1)
    assert 1 <= printed["sample"] <= 12  # a busy machine starts fewer within the time
    assert printed["classes"] == len({path.parent for path in demo_videos.rglob("*.mp4")})
    assert text.startswith(f"videos      {total}, ")
    assert "with " in text


def test_a_dry_run_counts_by_the_rules_of_the_data_set_that_is_there(demo_videos: Path, tmp_path: Path) -> None:
    video = next(demo_videos.rglob("scene-*.mp4"))
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    (videos / "a.mp4").symlink_to(video)
    call_command("vmae_data", "build", videos, out, "--recipe", "demo", "--quiet")
    (videos / "b.y4m").symlink_to(video)
    command = ["vmae_data", "build", videos, out, "--recipe", "demo", "--dry-run", "--json"]
    assert json.loads(call_command(*command).stdout)["videos"] == 2
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(plan | {"rules": 2}))
    assert json.loads(call_command(*command).stdout)["videos"] == 1


def test_a_dry_run_reports_excluded_sources_and_paths_without_a_source(
    tmp_path: Path, demo_videos: Path, demo_spec: BuildSpec
) -> None:
    chosen = sorted(str(path.relative_to(demo_videos)) for path in demo_videos.rglob("scene-*.mp4"))[:3]
    videos = tmp_path / "videos"
    for name in chosen:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).symlink_to(demo_videos / name)
    excluded = tmp_path / "exclude.txt"
    excluded.write_text("\n".join([*chosen[:2], *(f"no-{n}.mp4" for n in range(7))]))
    found = estimate_build(str(videos), demo_spec, workers=1, exclude=str(excluded), style=QUIET)
    assert (found.videos, found.left_out, found.unmatched) == (1, 2, 7)
    lines = estimate_lines(found)
    assert "excluded    2 sources, by --exclude" in lines
    assert (
        "no match    7 paths of --exclude match no source: no-0.mp4, no-1.mp4, no-2.mp4, no-3.mp4, no-4.mp4, …" in lines
    )


def test_an_estimate_without_an_interval_prints_none() -> None:
    exact, wide = Interval(0.81, 0.81, 0.81), Interval(1e6, 2e6, 3e6)
    counts = dict.fromkeys(["videos", "missing", "unlisted", "left_out", "unmatched", "classes", "bytes", "shards"], 1)
    tried = {"sample": 1, "sample_unfinished": 0, "sample_seconds": 1.0, "sample_failures": {}, "workers": 1}
    found = Estimate(**counts, **tried, unmatched_first=(), seconds=exact, shard_bytes=wide)
    *_, time_line, size_line = estimate_lines(found)
    assert time_line == "time        about 0.81 s with 1 worker"
    assert size_line.endswith("(likely 1 MB to 3 MB)")


def test_a_build_without_videos_has_no_estimate(tmp_path: Path, demo_spec: BuildSpec) -> None:
    (tmp_path / "list.txt").write_text("gone.mp4 1\n")
    found = estimate_build(str(tmp_path / "list.txt"), demo_spec, workers=1, style=QUIET)
    assert (found.videos, found.missing, found.sample, found.seconds) == (0, 1, 0, None)
    assert "unknown: no video of the sample could be measured" in "\n".join(estimate_lines(found))
