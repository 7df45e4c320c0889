from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmae_data.encode.open_source import open_source
from vmae_data.encode.probe import VideoInfo, probe_video, scaled_size
from vmae_data.errors import SourceError
from vmae_data.format import Rational


def _info(width: int, height: int) -> VideoInfo:
    return VideoInfo(
        width, height, 0, Rational(25, 1), Rational(1, 25), None, 0.0, "h264", "yuv420p", "bt709", False, False, True
    )


@given(st.integers(3, 8000), st.integers(3, 8000), st.sampled_from([36, 256, 320]))
def test_a_scaled_size_is_even_and_never_larger(width: int, height: int, short_side: int) -> None:
    w, h = scaled_size(_info(width, height), short_side)
    assert w % 2 == h % 2 == 0
    assert w <= width
    assert h <= height
    if min(width, height) >= short_side:
        assert min(w, h) == short_side


@pytest.mark.parametrize(
    ("size", "scaled"),
    [((1280, 720), (456, 256)), ((720, 1280), (256, 456)), ((320, 240), (320, 240)), ((341, 239), (340, 238))],
)
def test_scaling_sets_the_short_side_and_keeps_the_aspect(size: tuple[int, int], scaled: tuple[int, int]) -> None:
    assert scaled_size(_info(*size), 256) == scaled


@pytest.mark.parametrize(("data", "reason"), [(None, "missing"), (b"", "empty"), (b"no video at all", "unreadable")])
def test_a_file_that_is_no_video_has_a_reason(tmp_path: Path, data: bytes | None, reason: str) -> None:
    path = tmp_path / "x.mp4"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        probe_video(bytes(path))
    assert caught.value.reason == reason
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"<!DOCTYPE html>\n<title>404</title>\n", "the file is text, which begins '<!DOCTYPE html>' ("),
        ("wörter ".encode() * 99, "the file is text, which begins 'wörter wörter"),
        (bytes(range(256)) * 9, None),
        ("größe".encode("utf-16"), None),
    ],
)
def test_a_text_file_with_the_name_of_a_video_is_said_to_be_one(tmp_path: Path, data: bytes, shown: str | None) -> None:
    path = tmp_path / "x.mp4"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        open_source(path)
    detail = caught.value.detail
    assert detail.startswith(shown) if shown else "text" not in detail
    assert str(tmp_path) not in detail


def test_a_playlist_is_not_followed(tmp_path: Path, demo_videos: Path) -> None:
    inside = next(demo_videos.glob("*/scene-*.mp4"))
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXTINF:1,\n{inside}\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError) as caught:
        probe_video(bytes(playlist))
    assert caught.value.reason == "unreadable"
