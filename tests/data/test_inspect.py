from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from tests.command import run_command
from tests.data.test_resize import _write
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import DataError
from vmae_data.format import (
    FAILURES,
    INDEX,
    SAMPLES,
    Failure,
    Index,
    SampleFacts,
    ShardMarker,
    decode_record,
    encode_record,
)
from vmae_data.inspect import inspect_page, markers
from vmae_data.inspect.inspect import inspect_shards, print_table
from vmae_data.inspect.inspect_page import write_inspect_page
from vmae_data.pages.html import LONG_LIST
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards, sample_seconds

pytestmark = pytest.mark.processes

HOSTILE = "<script>alert(1)</script>"


def _page(folder: Path, html: Path) -> str:
    write_inspect_page(inspect_shards(folder), html)
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


def test_the_command_prints_the_counts_as_a_table_and_as_json(demo_shards: Path) -> None:
    assert "kept frames" in run_command("vmae_data", "inspect", demo_shards).stdout
    counts = json.loads(run_command("vmae_data", "inspect", demo_shards, "--json").stdout)
    assert counts == inspect_shards(demo_shards).as_dict()
    assert counts["samples"] == len(Shards.open(str(demo_shards)))


def test_a_hostile_name_neither_steers_a_terminal_nor_colours_the_table(
    demo_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "[red]\x1b[31m"
    shutil.copytree(demo_shards, folder)
    print_table(inspect_shards(folder))
    table = capsys.readouterr().out
    assert "\x1b[31m" not in table
    assert "[red]" in table


def test_the_page_names_every_failure(demo_shards: Path, tmp_path: Path) -> None:
    text = _page(demo_shards, tmp_path / "page.html")
    assert text.count("<video controls muted loop") == text.count("<figure><div")
    failures = [json.loads(line) for line in (demo_shards / FAILURES).read_text().splitlines()]
    assert failures
    assert all(failure["path"] in text for failure in failures)
    assert text.count("data:image/") >= len(Shards.open(str(demo_shards)))


def test_hostile_paths_classes_and_messages_are_only_text_on_the_page(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    failures = [Failure(key="k", path=f"{HOSTILE}.mp4", reason=HOSTILE, detail=HOSTILE)]
    (folder / FAILURES).write_text("".join(json.dumps(msgspec.to_builtins(failure)) + "\n" for failure in failures))
    index = decode_record((folder / INDEX).read_bytes(), Index, INDEX)
    values = {name: getattr(index, name) for name in index.__struct_fields__}
    values |= {"classes": (HOSTILE, *index.classes[1:]), "failures": {HOSTILE: 1}}
    (folder / INDEX).write_bytes(encode_record(Index(**values)))
    text = _page(folder, tmp_path / "page.html")
    assert HOSTILE not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;.mp4" in text


def test_a_broken_line_of_failures_is_reported_on_the_page(demo_shards: Path, tmp_path: Path) -> None:
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


def test_a_sample_that_cant_be_shown_is_named_on_the_page(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    shards = Shards.open(str(folder))
    place = shards.member_range(0)
    data = bytearray(shards.shard_path(place.shard).read_bytes())
    data[place.offset + place.size // 2] ^= 1
    shards.shard_path(place.shard).write_bytes(bytes(data))
    text = _page(folder, tmp_path / "page.html")
    assert f"{shards.key(0)} can&#39;t be shown" in text
    assert text.count("<video ") == len(shards) - 1


def test_a_folder_that_is_no_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no index\.json"):
        inspect_shards(tmp_path)


def test_pages_of_the_same_shards_are_equal(demo_shards: Path, tmp_path: Path) -> None:
    first = _page(demo_shards, tmp_path / "a.html")
    assert first == _page(demo_shards, tmp_path / "b.html")


def test_the_size_is_relative_to_the_sources_that_gave_samples(
    demo_shards: Path, demo_videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = inspect_shards(demo_shards)
    failed = {json.loads(line)["path"] for line in (demo_shards / FAILURES).read_text().splitlines()}
    expected = sum(
        path.stat().st_size for path in demo_videos.rglob("*.mp4") if str(path.relative_to(demo_videos)) not in failed
    )
    assert facts.index.source_bytes == facts.as_dict()["source_bytes"] == expected
    print_table(facts)
    assert f"{100 * facts.bytes / expected:.3g} % of the sources" in capsys.readouterr().out


def _with_many_classes(shards: Path, dest: Path, num_classes: int) -> Path:
    """A data set of `num_classes` classes: class n has n samples, all copies of one."""
    shutil.copytree(shards, dest)
    table = pa.ipc.open_file(str(shards / SAMPLES)).read_all().slice(0, 1)
    label = np.repeat(np.arange(num_classes, dtype=np.int32), np.arange(num_classes))
    rows = table.take(pa.array(np.zeros(len(label), np.int32)))
    for name, values in (
        ("label", pa.array(label)),
        ("source", pa.array(np.arange(len(label), dtype=np.int32))),
        ("key", pa.array([f"{table.column('key')[0].as_py()}-s{n:04d}" for n in range(len(label))])),
    ):
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    with pa.ipc.new_file(str(dest / SAMPLES), rows.schema) as writer:
        writer.write_table(rows.combine_chunks(), max_chunksize=len(label))
    index = decode_record((dest / INDEX).read_bytes(), Index, INDEX)
    first, *others = index.shardlist
    shardlist = (
        msgspec.structs.replace(first, nsamples=len(label)),
        *(msgspec.structs.replace(other, nsamples=0) for other in others),
    )
    changed = msgspec.structs.replace(
        index,
        samples=len(label),
        samples_sha256=hashlib.sha256((dest / SAMPLES).read_bytes()).hexdigest(),
        classes=tuple(f"Pushing something so that it falls off the table {n:03d}" for n in range(num_classes)),
        shardlist=shardlist,
    )
    (dest / INDEX).write_bytes(encode_record(changed))
    return dest


def test_the_largest_and_smallest_of_many_classes_are_shown_and_the_full_list_is_collapsed(
    demo_shards: Path, tmp_path: Path
) -> None:
    text = _page(_with_many_classes(demo_shards, tmp_path / "many", 100), tmp_path / "page.html")
    shown, _, collapsed = text[text.index("<h2>Classes</h2>") : text.index("<h2>Distributions</h2>")].partition(
        "<details>"
    )
    bars = re.compile(r'<span title="Pushing [^"]* (\d+)">.*?</span>.*?<em>(\d+)</em>')
    assert [int(name) for name, _ in bars.findall(shown)] == [*range(99, 87, -1), *range(11, -1, -1)]
    assert bars.findall(collapsed) == [(f"{n:03d}", str(n)) for n in range(99, -1, -1)]
    assert "1 class has no sample" in text


def test_only_the_first_failures_of_a_reason_are_listed_and_the_rest_counted(demo_shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(demo_shards, folder)
    failures = [Failure(key="k", path=f"video-{n}.mp4", reason="truncated", detail="short") for n in range(57)]
    (folder / FAILURES).write_text("".join(json.dumps(msgspec.to_builtins(failure)) + "\n" for failure in failures))
    text = _page(folder, tmp_path / "page.html")
    assert "truncated: 57 sources" in text
    assert sum(failure.path in text for failure in failures) == 20
    assert "37 more" in text


def test_the_page_has_the_counts_the_classes_and_a_strip_of_each_sample(demo_shards: Path, tmp_path: Path) -> None:
    facts = inspect_shards(demo_shards)
    page = _page(demo_shards, tmp_path / "page.html")
    texts = [unescape(text.strip()) for text in re.findall(r">([^<>]+)<", page)]
    for expected in (str(len(facts.shards)), str(facts.kept_frames), *facts.index.classes, *facts.index.failures):
        assert any(expected in text for text in texts), expected
    assert page.count("<img ") == sum(min(3, int(n)) for n in facts.shards.frames_NP[:24, 0])


@pytest.fixture(scope="module")
def uneven_and_steady(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of 50 frames at 25 fps by their headers; the second half of one is shown 19 seconds late."""
    folder = tmp_path_factory.mktemp("uneven") / "videos"
    folder.mkdir()
    _write(folder / "steady.mp4", 50)
    _write(folder / "uneven.mkv", 50, pts=[*range(25), *range(500, 525)])
    return folder


@pytest.fixture(scope="module")
def uneven_shards(uneven_and_steady: Path) -> Path:
    return _build(uneven_and_steady, "whole", BuildSpec(short_side=32))


def _build(videos: Path, name: str, spec: BuildSpec) -> Path:
    dest = videos.parent / name
    build_shards(str(videos), dest, spec, workers=1, style=ProgressStyle.QUIET)
    return dest


def test_durations_are_those_of_the_frame_times_not_of_a_nominal_frame_rate(
    uneven_and_steady: Path, uneven_shards: Path
) -> None:
    cut = BuildSpec(short_side=32, stride=1, longest_seconds=1.0)
    sets = {
        "whole": uneven_shards,
        "cut": _build(uneven_and_steady, "cut", cut),
        "rate": _build(uneven_and_steady, "rate", BuildSpec(short_side=32, rate=6.25, phases=2)),
    }
    for name, folder in sets.items():
        facts = inspect_shards(folder)
        assert 3600 * facts.source_hours == pytest.approx(2 + 21, rel=0.05), name
        steady = [one.facts for one in facts.shards if one.facts.source.path == "steady.mp4"]
        expected = [1.0, 1.0] if name == "cut" else [2.0]
        assert [sample_seconds(one) for one in steady] == pytest.approx(expected)
    assert max(sample_seconds(sample.facts) for sample in Shards.open(str(sets["whole"]))) > 20
    assert max(sample_seconds(sample.facts) for sample in Shards.open(str(sets["cut"]))) < 1.5


def test_a_tile_states_how_long_its_frames_are_shown(uneven_shards: Path, tmp_path: Path) -> None:
    page = _page(uneven_shards, tmp_path / "page.html")
    seconds = {s.facts.source.path: sample_seconds(s.facts) for s in Shards.open(str(uneven_shards))}
    assert seconds["uneven.mkv"] > 20
    for one in seconds.values():
        assert f"13 frames, {one:.1f} s" in page


def test_of_very_many_shards_only_some_are_read(demo_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = inspect_shards(demo_shards)
    assert sum(every.profiles.values()) == len(every.shards)
    monkeypatch.setattr(markers, "MAX_SHARDS", 1)
    some = inspect_shards(demo_shards)
    assert sum(some.profiles.values()) == every.index.shardlist[0].nsamples
    assert some.source_hours == pytest.approx(every.source_hours, rel=0.01)


def test_the_copied_and_the_encoded_samples_of_a_copy_build_are_counted(
    uneven_and_steady: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dest = _build(uneven_and_steady, "copied", BuildSpec(profile="copy", stride=1))
    facts = inspect_shards(dest)
    assert facts.profiles == {"copy": 1, "h264": 1}
    print_table(facts)
    assert "copy, short side 256 px; samples: 1 copy, 1 h264" in capsys.readouterr().out
    assert "1 copy, 1 h264" in _page(dest, tmp_path / "page.html")


def test_a_damaged_sample_is_a_line_of_the_page_and_the_others_are_shown(demo_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(demo_shards, tmp_path / "shards")
    marker = decode_record((folder / "shard-000000.json").read_bytes(), ShardMarker, "marker")
    sample = marker.samples[1]
    with (folder / "shard-000000.tar").open("r+b") as tar:
        tar.seek(sample.facts.offset)
        tar.write(bytes(sample.facts.size))
    html = unescape(_page(folder, tmp_path / "page.html"))
    assert "Unreadable samples" in html
    assert f"{sample.key}.json: can't be read" in html
    assert marker.samples[0].key in html or marker.samples[2].key in html
    assert "more." not in html
    assert "Unreadable samples" not in _page(demo_shards, tmp_path / "whole.html")


def test_long_lists_of_damaged_samples_and_notes_end_with_the_number_of_others(
    demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_shards: Shards, _numbers: object, damaged: list[str]) -> Iterator[tuple[SampleFacts, int]]:
        damaged += [f"damaged {n}!" for n in range(LONG_LIST + 3)]
        shards = Shards.open(str(demo_shards))
        for facts, size in read_samples(shards, range(5), []):
            yield msgspec.structs.replace(facts, remarks=("a remark",)), size

    read_samples = inspect_page._read_samples
    monkeypatch.setattr(inspect_page, "_read_samples", read)
    monkeypatch.setattr(inspect_page, "NOTES_SHOWN", 1)
    html = unescape(_page(demo_shards, tmp_path / "page.html"))
    assert f"damaged {LONG_LIST - 1}!" in html
    assert f"damaged {LONG_LIST}!" not in html
    assert re.findall(r"… and (\d+) more\.", html) == ["3", "4"]
