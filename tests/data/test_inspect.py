from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.command import run_command
from vmae_data.build import build_shards
from vmae_data.check.inspect import inspect_shards, print_table, write_page
from vmae_data.errors import DataError
from vmae_data.format import FAILURES, INDEX, Failure, Index, decode_record, encode_record
from vmae_data.prepare.plan import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.read.shards import Shards

HOSTILE = "<script>alert(1)</script>"


def _page(folder: Path, html: Path) -> str:
    write_page(inspect_shards(folder), html)
    return html.read_text()


def test_the_counts_are_those_of_the_samples_themselves(demo_shards: Path) -> None:
    facts = inspect_shards(demo_shards)
    samples = [sample.facts for sample in Shards.open(str(demo_shards))]
    assert facts.kept_frames == sum(sample.phases[0].frames for sample in samples)
    assert facts.per_class == {name: sum(s.class_name == name for s in samples) for name in facts.index.classes}
    assert sum(facts.per_class.values()) == len(samples)
    seconds = sum(sample.source.frames / float(sample.source.rate) for sample in samples)
    assert facts.source_hours == pytest.approx(seconds / 3600, rel=0.01)
    assert facts.width.low == min(sample.width for sample in samples)
    assert facts.bytes == sum(path.stat().st_size for path in demo_shards.glob("*.tar"))


def test_the_table_and_its_json_come_from_the_command(demo_shards: Path) -> None:
    shown = run_command("vmae_data", "inspect", demo_shards)
    assert "kept frames" in shown.stdout
    told = json.loads(run_command("vmae_data", "inspect", demo_shards, "--json").stdout)
    assert told["samples"] == len(Shards.open(str(demo_shards)))
    assert told["failures"] == inspect_shards(demo_shards).index.failures


def test_a_hostile_name_can_neither_steer_a_terminal_nor_colour_the_table(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]\x1b[31m"
    shutil.copytree(demo_shards, folder)
    print_table(inspect_shards(folder))
    shown = capsys.readouterr().out
    assert "\x1b[31m" not in shown
    assert "[red]" in shown


def test_the_page_names_every_failure_with_ffmpegs_words(demo_shards: Path, tmp_path: Path) -> None:
    text = _page(demo_shards, tmp_path / "page.html")
    failures = [json.loads(line) for line in (demo_shards / FAILURES).read_text().splitlines()]
    assert failures
    assert all(failure["path"] in text for failure in failures)
    assert text.count("data:image/") >= len(Shards.open(str(demo_shards)))


def test_hostile_paths_classes_and_words_are_only_text_on_the_page(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    failures = [Failure(key="k", path=f"{HOSTILE}.mp4", reason=HOSTILE, detail=HOSTILE)]
    (folder / FAILURES).write_text("".join(json.dumps(vars_of(failure)) + "\n" for failure in failures))
    index = decode_record((folder / INDEX).read_bytes(), Index, INDEX)
    values = {name: getattr(index, name) for name in index.__struct_fields__}
    values |= {"classes": (HOSTILE, *index.classes[1:]), "failures": {HOSTILE: 1}}
    (folder / INDEX).write_bytes(encode_record(Index(**values)))
    text = _page(folder, tmp_path / "page.html")
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.mp4" in text


def vars_of(failure: Failure) -> dict[str, str]:
    return {name: getattr(failure, name) for name in failure.__struct_fields__}


def test_a_broken_line_of_failures_is_said_and_does_not_stop_the_page(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    lines = (folder / FAILURES).read_text().splitlines()
    (folder / FAILURES).write_text("\n".join(["{half a line", *lines[1:]]) + "\n")
    text = _page(folder, tmp_path / "page.html")
    assert "failures.jsonl, line 1" in text


def test_one_video_without_a_class_is_enough(demo_videos: Path, demo_spec: BuildSpec, tmp_path: Path) -> None:
    one = next(
        path for path in sorted(demo_videos.glob("*/*.mp4")) if "broken" not in str(path.relative_to(demo_videos))
    )
    (tmp_path / "one").mkdir()
    shutil.copy(one, tmp_path / "one" / "video.mp4")
    build_shards(str(tmp_path / "one"), tmp_path / "shards", demo_spec, workers=1, style=ProgressStyle.QUIET)
    facts = inspect_shards(tmp_path / "shards")
    assert facts.unlabelled == 1
    assert "Every source gave a sample." in _page(tmp_path / "shards", tmp_path / "page.html")
    assert facts.as_dict()["classes"] == {}


def test_a_sample_that_cant_be_shown_is_said(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    shards = Shards.open(str(folder))
    place = shards.place(0)
    data = bytearray(shards.shard_path(place.shard).read_bytes())
    data[place.offset + place.size // 2] ^= 1
    shards.shard_path(place.shard).write_bytes(bytes(data))
    text = _page(folder, tmp_path / "page.html")
    assert f"{shards.key(0)} can&#39;t be shown" in text


def test_what_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index\.json"):
        inspect_shards(tmp_path)


def test_pages_of_the_same_shards_are_equal(demo_shards: Path, tmp_path: Path) -> None:
    first = _page(demo_shards, tmp_path / "a.html")
    assert first == _page(demo_shards, tmp_path / "b.html")
