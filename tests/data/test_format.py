from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_data.errors import DataError
from vmae_data.format import FORMAT_VERSION, Index, Regular, decode_record, encode_record, expand_series, series_of
from vmae_data.names import first_names, key_of, path_from_text, path_to_text


@given(st.binary(min_size=1, max_size=40))
def test_any_path_survives_a_round_trip_through_text(path: bytes) -> None:
    text = path_to_text(path)
    assert text.encode("utf-8")  # raises if a lone surrogate remains
    assert path_from_text(text) == path


def test_a_backslash_and_a_byte_that_is_not_utf8_become_different_text() -> None:
    assert path_to_text(b"a\\xff") == "a\\\\xff"
    assert path_to_text(b"a\xff") == "a\\xff"


@given(st.binary(min_size=1, max_size=300).filter(lambda path: b"/" not in path[-1:]))
def test_a_key_is_short_ascii_without_a_dot(path: bytes) -> None:
    for key in (key_of(path), key_of(path, 9999)):
        assert len(key) <= 90
        assert key.isascii()
        assert "." not in key
        assert "/" not in key


@given(
    st.lists(st.sampled_from(["", ".", "..", "a", ".mp4", "a.", "A.B.MOV", "..a", "é x.mp4"]), max_size=5).map("/".join)
)
def test_a_key_begins_with_the_stem_that_the_standard_library_finds(path: str) -> None:
    slug = re.sub(r"[^a-z0-9_-]+", "-", PurePosixPath(path).stem.lower())
    assert key_of(path.encode()).rpartition("-")[0] == slug


def test_keys_of_equal_names_in_different_folders_differ() -> None:
    assert key_of(b"a/clip.mp4") != key_of(b"b/clip.mp4")
    assert key_of(b"a/clip.mp4") != key_of(b"a/clip.avi")


@given(st.lists(st.integers(-1000, 1000), max_size=20))
def test_a_series_expands_to_its_numbers(numbers: list[int]) -> None:
    assert expand_series(series_of(numbers)).tolist() == numbers


def test_evenly_spaced_numbers_become_a_compact_series() -> None:
    assert series_of([0, 4, 8, 12]) == Regular(first=0, step=4, count=4)
    assert series_of([0, 4, 9]) == (0, 4, 9)


def test_a_newer_format_version_is_refused_with_its_number() -> None:
    data = msgspec.json.encode({"version": FORMAT_VERSION + 1, "anything": True})
    with pytest.raises(DataError, match=f"index.json: format version {FORMAT_VERSION + 1}.*Update"):
        decode_record(data, Index, "index.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"version": 1}', b"\xff", b"[" * 100_000])
def test_bytes_that_are_not_a_record_give_a_one_line_error(data: bytes) -> None:
    with pytest.raises(DataError) as caught:
        decode_record(data, Index, "index.json")
    assert str(caught.value).startswith("index.json: ")
    assert "\n" not in str(caught.value)


def test_the_same_record_gives_the_same_bytes() -> None:
    record = Regular(first=1, step=2, count=3)
    assert encode_record(record) == encode_record(msgspec.json.decode(encode_record(record), type=Regular))


def test_a_message_shows_the_first_names_and_that_there_are_more() -> None:
    assert first_names(["a", "b"], 2) == "a, b"
    assert first_names(map(str, range(9)), 2) == "0, 1, …"
