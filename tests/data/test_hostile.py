"""Malicious data is refused with an error of one line, before it names a file, allocates memory or is decoded."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.command import call_command
from tests.refusals import data_refusal
from tests.s3_server import S3Bucket
from vmae_data.decode import decode_some
from vmae_data.errors import DataError, SampleError
from vmae_data.names import marker_name, tar_name
from vmae_data.read.cache import CacheSpec, ShardCache
from vmae_data.read.dataset import Shards
from vmae_data.read.fetch import Fetcher

pytestmark = pytest.mark.processes

HUGE = 10**18


@pytest.fixture
def copied(demo_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set to change, and a cache directory: nothing may be written outside of it."""
    monkeypatch.setenv("VMAE_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(demo_shards, tmp_path / "shards"))


def _index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "index.json"
    index = json.loads(path.read_bytes())
    change(index)
    path.write_text(json.dumps(index))


def _table(folder: Path, change: Callable[[pa.Table], pa.Table | bytes]) -> None:
    """Replace the table and its checksum in the index, as an attacker does."""
    path = folder / "samples.arrow"
    made = change(pa.ipc.open_file(pa.py_buffer(path.read_bytes())).read_all())
    if isinstance(made, pa.Table):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made)
        made = sink.getvalue().to_pybytes()
    path.write_bytes(made)
    _index(folder, lambda index: index.update(samples_sha256=hashlib.sha256(made).hexdigest()))


def _column(name: str, values: Any, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        old = table.column(name)
        new = [values(value, row) for row, value in enumerate(old.to_pylist())] if callable(values) else values
        return table.set_column(table.column_names.index(name), name, pa.array(new, kind or old.type))

    return change


def _first_row(name: str, value: Any) -> Callable[[pa.Table], pa.Table]:
    return _column(name, lambda old, row: old if row else value)


def _opened(folder: Path) -> str:
    text = data_refusal(lambda: Shards.open(str(folder)))
    assert str(folder) in text
    return text


def _shard(field: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda index: index["shardlist"][0].update({field: value})


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../shard-000000.tar",
        "sub/shard-000000.tar",
        "s3://elsewhere/shard-000000.tar",
        "file:///etc/passwd",
        "shard-000000.tar\x00.tar",
        "shard-000000.tar\n",
        "shard-٠٠٠٠٠٠.tar",
        "shard-000001.tar",  # another shard
        "",
    ],
)
def test_a_shard_name_that_no_build_writes_is_refused(copied: Path, name: str) -> None:
    _index(copied, _shard("url", name))
    assert "names the shard" in _opened(copied)


@pytest.mark.parametrize("digest", ["../../../outside", "/tmp/outside", "0" * 63, "0" * 64 + "\n", "A" * 64, ""])
def test_an_invalid_checksum_never_becomes_a_file_name(copied: Path, digest: str) -> None:
    _index(copied, lambda index: index.update(samples_sha256=digest))
    assert "hexadecimal" in _opened(copied)
    _index(copied, lambda index: index.update(samples_sha256="0" * 64))
    _index(copied, _shard("marker_sha256", digest))
    assert "hexadecimal" in _opened(copied)


@pytest.mark.parametrize(
    "change",
    [
        _shard("nsamples", -1),
        _shard("nsamples", HUGE),
        _shard("nsamples", 10**30),
        _shard("filesize", -1),
        lambda index: index.update(short_side=0),
        lambda index: index.update(short_side=HUGE),
        lambda index: index.update(stride=-4),
        lambda index: index.update(stride=None),
        lambda index: index.update(phases=HUGE),
        lambda index: index.update(rate=[1, 0], stride=None),
        lambda index: index.update(samples=1),
        lambda index: index.update(shardlist=[]),
        lambda index: index.update(shardlist="all"),
    ],
)
def test_index_numbers_that_no_build_writes_are_refused(copied: Path, change: Any) -> None:
    _index(copied, change)
    _opened(copied)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"version": 1, "recipe": ' + '{"a":' * 100_000,
        '{"version": NaN}',
        '{"version": 1e999}',
        "",
        "\x00" * 100,
        "null",
        '{"version": 1, "version": "1"}',
    ],
)
def test_json_that_is_no_index_is_refused(copied: Path, text: str) -> None:
    (copied / "index.json").write_text(text)
    _opened(copied)


def test_of_a_repeated_key_the_used_value_is_validated(copied: Path) -> None:
    path = copied / "index.json"
    text = path.read_text().rstrip().removesuffix("}")
    path.write_text(f'{text}, "samples_sha256": "../outside"}}')
    assert "hexadecimal" in _opened(copied)


def test_an_index_that_is_too_large_is_not_read(copied: Path) -> None:
    with (copied / "index.json").open("r+b") as file:
        file.truncate(1 << 40)  # without a block on the disk
    assert "bytes" in _opened(copied)


@pytest.mark.parametrize("name", ["index.json", "samples.arrow", "shard-000000.tar"])
def test_a_pipe_does_not_block(copied: Path, name: str) -> None:
    (copied / name).unlink()
    os.mkfifo(copied / name)
    if name.endswith(".tar"):
        shards = Shards.open(str(copied))
        data_refusal(lambda: Fetcher(shards).fetch(0))
    else:
        _opened(copied)


def test_a_link_out_of_the_folder_reveals_nothing(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_bytes(b"private" * 100_000)
    (copied / tar_name(0)).unlink()
    (copied / tar_name(0)).symlink_to(tmp_path / "private")
    shards = Shards.open(str(copied))
    assert "checksum differs" in data_refusal(lambda: Fetcher(shards).fetch(0))
    assert "sum" in data_refusal(lambda: shards.sample(0))


BAD_TABLES: dict[str, Callable[[pa.Table], Any]] = {
    "a column is missing": lambda table: table.drop_columns(["offset"]),
    "another type": lambda table: table.set_column(3, "width", table.column("width").cast(pa.int64())),
    "a dictionary": lambda table: table.set_column(0, "key", table.column("key").dictionary_encode()),
    "a column twice": lambda table: table.append_column("key", table.column("key")),
    "fewer rows": lambda table: table.slice(0, table.num_rows - 1),
    "more rows": lambda table: pa.concat_tables([table, table.slice(0, 1)]),
    "no rows": lambda table: table.slice(0, 0),
    "two batches": lambda table: pa.concat_tables([table.slice(0, 3), table.slice(3)]),
    "no key": _first_row("key", None),
    "a key of slashes": _first_row("key", "../../etc/passwd"),
    "a key of dots": _first_row("key", "a.b"),
    "a key with a line break": _first_row("key", "a\n"),
    "an empty key": _first_row("key", ""),
    "a huge key": _first_row("key", "a" * 10_000_000),
    "one key for all": _column("key", lambda _, row: "same"),
    "an unknown shard": _first_row("shard", 99),
    "shards in another order": _column("shard", lambda old, _: 1 - old if old < 2 else old),
    "an offset before the file": _column("offset", lambda old, _: [-1] * len(old)),
    "an offset after the file": _column("offset", lambda old, _: [HUGE] * len(old)),
    "the largest offset": _column("offset", lambda old, _: [2**63 - 1] * len(old)),
    "a huge size": _column("size", lambda old, _: [HUGE] * len(old)),
    "a size of 0": _column("size", lambda old, _: [0] * len(old)),
    "a negative size": _column("size", lambda old, _: [-5] * len(old)),
    "no offset": _column("offset", lambda old, _: [None] * len(old)),
    "many frames": _column("frames", lambda old, _: [2**31 - 1] * len(old)),
    "no frames": _column("frames", lambda old, _: [0] * len(old)),
    "a huge frame": _first_row("width", 65535),
    "a flat frame": _first_row("height", 0),
    "a rate that is not a number": _first_row("rate", float("nan")),
    "an infinite rate": _first_row("rate", float("inf")),
    "a rate of 0": _first_row("rate", 0.0),
    "a class number above the classes": _first_row("label", 1000),
    "a negative class number": _first_row("label", -7),
    "another matrix": _first_row("matrix", "\x1b[2J"),
    "a step of 0": _first_row("kept_step", 0),
    "a list and a step": _first_row("kept_list", [1, 2]),
    "a negative first frame": _first_row("kept_first", -1),
    "text": lambda _: b"not a table at all",
    "nothing": lambda _: b"",
}


@pytest.mark.parametrize("change", BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_that_no_build_writes_is_refused(copied: Path, change: Any) -> None:
    _table(copied, change)
    _opened(copied)


@pytest.mark.parametrize("seed", range(40))
def test_a_table_of_random_damage_is_refused_or_readable(copied: Path, seed: int) -> None:
    """Flipped and cut bytes with a correct checksum: refused, or as good as another table."""
    rng = np.random.default_rng(seed)
    data = bytearray((copied / "samples.arrow").read_bytes())
    for position in rng.integers(0, len(data), 5):
        data[position] ^= int(rng.integers(1, 256))
    made = bytes(data[: int(rng.integers(1, len(data)))]) if seed % 2 else bytes(data)
    _table(copied, lambda _: made)
    try:
        shards = Shards.open(str(copied))
    except DataError as error:
        assert "\n" not in str(error)
        return
    fetcher = Fetcher(shards)
    for number in range(len(shards)):
        view = shards.view(number)
        assert 0 < view.frames < 10**7
        try:
            decode_some(fetcher.fetch(number), (0,), view.key, shards.frame_size(number))
        except SampleError:
            continue


def test_wrong_checksums_are_errors(copied: Path) -> None:
    shards = Shards.open(str(copied))
    member = shards.member_range(3)
    with (copied / tar_name(0)).open("r+b") as file:
        file.seek(member.offset + 10)
        file.write(b"\xff\x00\xff")
    assert "sum" in data_refusal(lambda: Fetcher(shards).fetch(3))
    assert "sum" in data_refusal(lambda: shards.sample(3))
    with (copied / "samples.arrow").open("ab") as file:
        file.write(b"\x00")
    assert "sum" in _opened(copied)


def test_a_members_memory_is_allocated_only_after_its_shard_was_checked(copied: Path) -> None:
    _index(copied, lambda index: [shard.update(filesize=HUGE) for shard in index["shardlist"]])
    _table(copied, _column("size", lambda old, _: [HUGE // 10] * len(old)))
    shards = Shards.open(str(copied))
    assert f"of {HUGE // 10} bytes" in data_refusal(lambda: Fetcher(shards).fetch(0))
    _table(copied, _column("offset", lambda old, _: [HUGE // 10] * len(old)))
    shards = Shards.open(str(copied))
    assert "0 of" in data_refusal(lambda: Fetcher(shards).fetch(0))


def _marker(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / marker_name(0)
    marker = json.loads(path.read_bytes())
    change(marker)
    path.write_text(json.dumps(marker))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _index(folder, lambda index: index["shardlist"][0].update(marker_sha256=digest))


def test_a_marker_of_another_shard_is_refused(copied: Path) -> None:
    shutil.copy(copied / marker_name(1), copied / marker_name(0))
    assert "checksum differs" in data_refusal(lambda: Shards.open(str(copied)).sample(0))
    _marker(copied, lambda _: None)
    assert "another shard" in data_refusal(lambda: Shards.open(str(copied)).sample(0))


@pytest.mark.parametrize(("offset", "size"), [(-1, 10), (0, -1), (HUGE, 10), (0, HUGE), (2**63 - 1, 2**63 - 1)])
def test_a_marker_whose_members_are_outside_the_shard_is_refused(copied: Path, offset: int, size: int) -> None:
    _marker(copied, lambda marker: [entry["facts"].update(offset=offset, size=size) for entry in marker["samples"]])
    data_refusal(lambda: Shards.open(str(copied)).sample(0))


def test_a_marker_without_the_sample_or_its_members_is_refused(copied: Path) -> None:
    _marker(copied, lambda marker: marker["samples"][0].update(members=[]))
    assert "not in the marker" in data_refusal(lambda: Shards.open(str(copied)).sample(0))
    _marker(copied, lambda marker: marker.update(samples=[]))
    assert "not in the marker" in data_refusal(lambda: Shards.open(str(copied)).sample(0))


def _hostile_tar(path: Path, member: str) -> None:
    """Add a member with a path outside the folder, a special type, or a huge size."""
    info = tarfile.TarInfo("innocent-0000000000000000.mp4")
    with tarfile.open(path, "a") as tar:
        if member in ("absolute", "up"):
            info.name = "/tmp/outside.mp4" if member == "absolute" else "../outside.mp4"
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
            return
        kinds = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE, "device": tarfile.CHRTYPE}
        if member in kinds:
            info.type, info.linkname = kinds[member], "/etc/passwd"
            tar.addfile(info)
            return
    # The tar ends with two or more empty blocks: the header replaces the first.
    info.size = 10**17
    if member == "huge":
        block = info.tobuf(tarfile.GNU_FORMAT)
    else:
        info.type = {"huge name": tarfile.GNUTYPE_LONGNAME, "huge header": tarfile.XHDTYPE}[member]
        block = info.tobuf(tarfile.GNU_FORMAT)
    data = path.read_bytes().rstrip(b"\0")
    data += b"\0" * (-len(data) % 512)
    path.write_bytes(data + block + b"\0" * 1024)


@pytest.mark.parametrize(
    "member", ["absolute", "up", "link", "hard link", "device", "huge", "huge name", "huge header"]
)
def test_verify_reports_forbidden_tar_members_and_unpacks_none(copied: Path, member: str) -> None:
    before = {path for path in copied.parent.rglob("*") if "cache" not in path.parts}
    _hostile_tar(copied / tar_name(0), member)
    done = call_command("vmae_data", "verify", copied, "--workers", "1", "--quiet", status=1)
    assert tar_name(0) in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert {path for path in copied.parent.rglob("*") if "cache" not in path.parts} == before


EVIL_CLASSES = ["\x1b[2J\x1b]0;owned\x07", "<script>alert(1)</script>", "\u202egnp.exe", "$\\frac{1}$", "a\nb"]


def test_class_names_can_not_inject_into_a_terminal_or_a_page(copied: Path, tmp_path: Path) -> None:
    _index(copied, lambda index: index.update(classes=[*EVIL_CLASSES, *index["classes"][len(EVIL_CLASSES) :]]))
    page = tmp_path / "page.html"
    done = call_command("vmae_data", "inspect", copied, "--html", page)
    html = page.read_text()
    for text in (done.stdout, done.stderr, html):
        assert not any(sign in text for sign in ("\x1b", "\x07", "\u202e"))
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert" in html


@pytest.mark.parametrize("command", ["inspect", "audit"])
def test_commands_print_an_error_of_one_line(copied: Path, command: str) -> None:
    _index(copied, _shard("url", "../\x1b[2Jshard-000000.tar"))
    done = call_command("vmae_data", command, copied, "--quiet", status=1)
    assert done.stderr.count("\n") == 1
    assert "\x1b" not in done.stderr


@pytest.mark.parametrize("cached", [False, True])
def test_claims_of_a_bucket_allocate_neither_memory_nor_disk(
    copied: Path, demo_shards: Path, s3_bucket: S3Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    _index(copied, lambda index: [shard.update(filesize=HUGE) for shard in index["shardlist"]])
    _table(copied, _column("size", lambda old, _: [HUGE // 10] * len(old)))
    for path in copied.iterdir():
        s3_bucket.store().put(f"data/{path.name}", path.read_bytes())
    shards = Shards.open(f"{s3_bucket.url}/data")
    cache = ShardCache(CacheSpec(dir=str(tmp_path / "kept"), bytes="1GB")) if cached else None
    if cache is not None:  # the real shard, fetched for another data set
        true = shards.index.shardlist[0]
        shutil.copy(demo_shards / tar_name(0), cache.directory.path(true.sha256))
    fetcher = Fetcher(shards, cache=cache)
    try:
        for number in (0, len(shards) - 1):
            assert f"of {HUGE // 10} bytes" in data_refusal(lambda number=number: fetcher.fetch(number))
    finally:
        fetcher.close()
        if cache is not None:
            cache.close()
    kept = sum(path.stat().st_size for path in tmp_path.joinpath("kept").rglob("*") if path.is_file())
    assert kept < 10_000_000
    assert not list((tmp_path / "kept").rglob(".tmp-*"))
