from __future__ import annotations

import html.parser
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmae_data.decode import FramePlanes
from vmae_data.pages.histogram import histogram
from vmae_data.pages.html import (
    Bar,
    Bars,
    Charts,
    Fact,
    Facts,
    Figure,
    Gallery,
    Note,
    Pairs,
    Section,
    Table,
    Tile,
    write_page,
)
from vmae_data.pages.pictures import (
    SheetRow,
    animated_gif,
    choose_samples,
    enlarge,
    picture,
    planes_to_rgb,
    sheet,
    video_mp4,
)

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"


class _Elements(html.parser.HTMLParser):
    """Every start tag with its attributes; `open`: the tags that are not closed yet."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _photo(height: int = 96, width: int = 128) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return np.stack((rows * 2, columns * 2, rows + columns), axis=-1).astype(np.uint8)


def _every_part(text: str) -> list[Section]:
    image = picture(_photo())
    tile = Tile((image,), text, (text,), "data:video/mp4;base64,AAAA")
    return [
        Section(
            text,
            (
                Facts((Fact(text, text, text),)),
                Note(text, warning=True),
                Table((text, text), ((text, text),), numbers=(1,), folded=text),
                Bars((Bar(text, 1, text),), text),
                Charts((Figure(image, text, text, (text,)), histogram([1, 2, 2], text, text, ranges=False))),
                Gallery((tile,)),
                Pairs(((tile, tile),)),
            ),
        )
    ]


def test_hostile_text_is_only_text_in_every_part(tmp_path: Path) -> None:
    write_page(tmp_path / "hostile.html", HOSTILE, _every_part(HOSTILE), HOSTILE)
    write_page(tmp_path / "plain.html", "plain", _every_part("plain"), "plain")
    hostile, plain = ((tmp_path / name).read_text() for name in ("hostile.html", "plain.html"))
    assert [tag for tag, _ in _Elements(hostile).tags] == [tag for tag, _ in _Elements(plain).tags]
    assert "\x1b" not in hostile
    assert "\u202e" not in hostile
    assert all(not name.startswith("on") for _, attributes in _Elements(hostile).tags for name in attributes)


def test_a_page_loads_nothing_from_the_network_and_closes_every_tag(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "page", _every_part("text"))
    text = (tmp_path / "page.html").read_text()
    page = _Elements(text)
    assert page.open == []
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert sources
    assert all(source is not None and source.startswith(("data:image/", "data:video/")) for source in sources)
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "a"}
    assert "http:" not in text and "https:" not in text
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'; media-src data:\"" in text


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_page(tmp_path / name, "page", _every_part("text"))
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_a_section_without_parts_is_omitted(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", "page", [Section("Nothing here", ()), Section("Here", (Note("text"),))])
    assert "Nothing here" not in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("values", "bars"), [([], 0), ([3.0], 1), ([3.0] * 50, 1), (list(range(1000)), 24), ([0, 1e-9], 6), ([-5, 1e12], 6)]
)
def test_a_histogram_counts_every_value_once(values: list[float], bars: int) -> None:
    svg = str(histogram(values, "title").image)
    counts = [int(found) for found in re.findall(r": (\d+)</title>", svg)]
    assert len(counts) == bars
    assert sum(counts) == len(values)
    assert "nan" not in svg


def test_grey_planes_give_grey_and_full_range_is_not_scaled() -> None:
    chroma = np.full((2, 2), 128, np.uint8)
    for y, full_range, grey in ((16, False, 0), (235, False, 255), (126, False, 128), (0, True, 0), (255, True, 255)):
        rgb = planes_to_rgb(
            FramePlanes(0, np.full((4, 4), y, np.uint8), chroma, chroma), is_bt709=True, full_range=full_range
        )
        assert np.abs(rgb.astype(int) - grey).max() <= 1, (y, full_range)


@pytest.mark.parametrize(("is_bt709", "red"), [(False, (81, 90, 240)), (True, (63, 102, 240))])
def test_red_is_red_with_each_colour_matrix(is_bt709: bool, red: tuple[int, int, int]) -> None:
    y, u, v = (np.full(shape, value, np.uint8) for shape, value in zip(((4, 4), (2, 2), (2, 2)), red, strict=True))
    rgb = planes_to_rgb(FramePlanes(0, y, u, v), is_bt709=is_bt709, full_range=False)
    assert np.abs(rgb.astype(int) - (255, 0, 0)).max() <= 2


def test_a_tiny_picture_is_lossless_and_a_photograph_is_scaled_down() -> None:
    tiny = _photo(32, 32)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(picture(tiny).data))), tiny)
    photo = picture(_photo(200, 400), side=100)
    assert (photo.mime, photo.width, photo.height) == ("image/jpeg", 200, 100)


def test_an_animated_gif_has_every_frame_in_order() -> None:
    frames = [np.full((16, 16, 3), value, np.uint8) for value in (0, 60, 120, 180, 240)]
    image = Image.open(io.BytesIO(animated_gif(frames).data))
    assert image.n_frames == 5
    for number, frame in enumerate(frames):
        image.seek(number)
        assert abs(int(np.asarray(image.convert("RGB")).mean()) - int(frame.mean())) <= 6


def test_an_mp4_has_the_same_bytes_whatever_the_memory_held() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 29, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    frames = [np.roll(noise, 3 * number, axis=1) for number in range(16)]
    made = set[bytes]()
    for value in range(6):
        _ = [np.full(1 << size, 37 * value, np.uint8) for size in range(8, 24)]  # freed: the encoder gets it
        made.add(video_mp4(frames))
    assert len(made) == 1


def test_a_sheet_shows_every_tile_unchanged() -> None:
    tiles = [np.full((20, 30, 3), (value, 255 - value, 7), np.uint8) for value in (10, 90, 170)]
    shown = sheet(
        [SheetRow(title="head"), SheetRow(tiles, "label", "a title that is too long for so narrow a sheet " * 4)]
    )
    for tile in tiles:
        assert (shown == tile[0, 0]).all(axis=-1).sum() == 20 * 30


def test_enlarging_repeats_pixels() -> None:
    clip = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    large = enlarge(clip, side=16)
    assert large.shape == (2, 16, 16, 3)
    assert np.array_equal(large[:, ::4, ::4], clip)


def test_samples_are_chosen_from_all_classes_in_turn_and_always_the_same() -> None:
    label_N = np.repeat(np.arange(5), 40)
    chosen = choose_samples(label_N, 12)
    assert np.bincount(label_N[chosen], minlength=5).min() == 2
    assert chosen == choose_samples(label_N, 12)
    assert chosen != choose_samples(label_N, 12, seed=1)
    assert len(set(chosen)) == 12
    assert choose_samples(np.full(3, -1), 10) == [0, 1, 2]
