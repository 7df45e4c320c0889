"""Sections of notes, tables, charts and galleries → one HTML file without scripts, light or dark as the system is.

The template escapes all text: paths, class names and ffmpeg's messages may contain anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from vmae_data.pages.pictures import Picture
from vmae_data.storage import StoragePath, commit_bytes

__all__ = [
    "LONG_LIST",
    "Bar",
    "Bars",
    "Charts",
    "Fact",
    "Facts",
    "Figure",
    "Gallery",
    "Note",
    "Pairs",
    "Part",
    "Player",
    "Section",
    "Span",
    "Table",
    "Tile",
    "Timeline",
    "printable",
    "write_page",
]

LONG_LIST = 48  # longer lists are collapsed


class Fact(NamedTuple):
    """One key figure."""

    name: str
    value: str
    note: str = ""


class Facts(NamedTuple):
    """Key figures, side by side."""

    facts: tuple[Fact, ...]


class Note(NamedTuple):
    """A paragraph; `warning` highlights it."""

    text: str
    warning: bool = False


class Table(NamedTuple):
    """Rows of text. `numbers`: the columns of numbers. `folded`: the title under which the table is collapsed."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[int, ...] = ()
    folded: str = ""


class Bar(NamedTuple):
    """One row of a bar list: a name, a bar and a text."""

    name: str
    value: float
    text: str


class Bars(NamedTuple):
    """A list of bars; a long one is collapsed under `title`. `top`: the value of a full bar [default: the greatest]."""

    bars: tuple[Bar, ...]
    title: str
    top: float | None = None

    def share(self, bar: Bar) -> str:
        top = self.top if self.top is not None else max((bar.value for bar in self.bars), default=0)
        return f"{100 * bar.value / top:.2f}" if top > 0 else "0"

    @property
    def folded(self) -> bool:
        return len(self.bars) > LONG_LIST


class Figure(NamedTuple):
    """A chart (our own SVG) or a picture, with its texts. `legend`: names in the order of the six colours.

    `points`: the chart has no lines, and each name of the legend begins with its mark.
    """

    image: Picture | Markup
    title: str
    caption: str = ""
    legend: tuple[str, ...] = ()
    points: bool = False


class Charts(NamedTuple):
    """Figures in a grid, or in one column if `wide`."""

    figures: tuple[Figure, ...]
    wide: bool = False


class Tile(NamedTuple):
    """One video: a strip of frames, a title, lines of text and the video itself as a data URI, if it plays."""

    pictures: tuple[Picture, ...]
    title: str
    lines: tuple[str, ...] = ()
    video: str = ""


class Gallery(NamedTuple):
    """Tiles in a grid."""

    tiles: tuple[Tile, ...]


class Pairs(NamedTuple):
    """Tiles two by two, for comparison."""

    pairs: tuple[tuple[Tile, Tile], ...]


class Player(NamedTuple):
    """A video file, by its path from the page, percent-encoded. The page loads it, and plays what the browser can."""

    source: str


class Span(NamedTuple):
    """A part of a timeline: its start and length, and the height of its bar, as shares of the whole; and a text."""

    start: float
    length: float
    value: float
    text: str


class Timeline(NamedTuple):
    """Rows of spans over one axis of time, each row with its name. `ticks`: texts at equal distances from 0 to the end."""

    rows: tuple[tuple[str, tuple[Span, ...]], ...]
    ticks: tuple[str, ...]


Part = Facts | Note | Table | Bars | Charts | Gallery | Pairs | Player | Timeline


class Section(NamedTuple):
    """A headline and what follows it. A section without parts is omitted."""

    title: str
    parts: tuple[Part, ...]


def write_page(path: StoragePath, title: str, sections: Sequence[Section], subtitle: str = "") -> None:
    """Write the complete page, or nothing."""
    parts = [part for section in sections for part in section.parts]
    plays = any(isinstance(part, Player) for part in parts)
    tiles = [tile for part in parts if isinstance(part, Gallery) for tile in part.tiles]
    tiles += [tile for part in parts if isinstance(part, Pairs) for pair in part.pairs for tile in pair]
    media = " ".join((["'self' file:"] if plays else []) + (["data:"] if any(tile.video for tile in tiles) else []))
    shown = [section for section in sections if section.parts]
    html = _template().render(title=title, subtitle=subtitle, sections=shown, plays=plays, media=media)
    commit_bytes(path, html.encode("utf-8", "replace") + b"\n")


def printable(text: str) -> str:
    r"""Escape control characters as \xNN or \uNNNN: they could steer a terminal or turn the reading direction."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) > 255 else f"\\x{ord(c):02x}" for c in text)


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape(_lines(str(value))),
    )
    environment.globals["is_picture"] = lambda image: isinstance(image, Picture)
    environment.globals["kind"] = lambda part: type(part).__name__
    return environment.from_string(_PAGE, globals={"style": Markup(_STYLE)})  # noqa: S704


def _lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


_STYLE = """
:root { color-scheme: light dark;
  --ink: #1d232b; --soft: #5c6773; --paper: #fcfcfb; --wash: #f0f2f4; --line: #dce0e5;
  --warn: #8a5200; --warn-wash: #fff4de;
  --c1: #2563c0; --c2: #b85109; --c3: #187a4a; --c4: #8240a8; --c5: #b3312c; --c6: #5c6773; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e3e7ec; --soft: #98a3af; --paper: #14181d; --wash: #1e242b; --line: #303842;
  --warn: #f0c27a; --warn-wash: #33290f;
  --c1: #7db0ff; --c2: #ffa45c; --c3: #68d09a; --c4: #cfa6f7; --c5: #ff8d86; --c6: #98a3af; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100%;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main, header, footer { max-width: 72rem; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: 2.6rem; }
h1 { font-size: clamp(1.5rem, 5vw, 2.1rem); line-height: 1.2; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
header p { color: var(--soft); margin: .5rem 0 0; overflow-wrap: anywhere; }
h2 { font-size: 1.22rem; margin: 2.9rem 0 .9rem; padding-top: 1.1rem; border-top: 1px solid var(--line); overflow-wrap: anywhere; }
footer { color: var(--soft); font-size: .84rem; padding-top: 3rem; padding-bottom: 2rem; }
p.note { margin: .7rem 0; max-width: 46rem; overflow-wrap: anywhere; white-space: pre-line; }
p.warning { background: var(--warn-wash); border-left: 3px solid var(--warn); padding: .6rem .9rem; max-width: none; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); gap: .7rem; margin: .9rem 0; }
.facts div { background: var(--wash); border-radius: .5rem; padding: .7rem .9rem; min-width: 0; }
.facts dt { color: var(--soft); font-size: .82rem; }
.facts dd { margin: 0; font-size: 1.3rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums;
  overflow-wrap: anywhere; }
.facts dd.small { color: var(--soft); font-size: .8rem; font-weight: 400; }
dl { margin: 0; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--line); vertical-align: bottom; }
td { vertical-align: top; border-bottom: 1px solid var(--line); overflow-wrap: anywhere; min-width: 8rem; }
th, td { padding: .34rem 1.3rem .34rem 0; }
td:first-child:not(.n) { min-width: min(12rem, 40vw); }
th.n, td.n { text-align: right; white-space: nowrap; min-width: 3.5rem; }
tr:last-child td { border-bottom: 0; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--c1); }
.bars { columns: 21rem; column-gap: 2.4rem; margin: .8rem 0; font-size: .92rem; }
.bars div { display: grid; grid-template-columns: minmax(0, 12.5rem) 1fr minmax(2.2rem, auto); gap: .7rem; align-items: center;
  break-inside: avoid; padding: .13rem 0; }
.bars span { overflow: hidden; overflow-wrap: anywhere; line-height: 1.3; display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; }
.bars i { display: block; height: .62rem; background: var(--wash); border-radius: .2rem; overflow: hidden; }
.bars b { display: block; height: 100%; background: var(--c1); }
.bars em { font-style: normal; color: var(--soft); font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); gap: 1.3rem 2rem; margin: 1rem 0; }
.charts.wide { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; min-width: 0; }
figure > p { margin: 0 0 .4rem; font-weight: 500; font-size: .95rem; }
figcaption { color: var(--soft); font-size: .84rem; margin-top: .35rem; max-width: 46rem; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; max-width: 60rem; color: var(--ink); }
svg.chart, svg.curves { max-width: 26rem; } svg text { fill: var(--ink); font-family: inherit !important; }
svg.chart text { font-size: 11px; } svg text.soft { fill: var(--soft); }
.bar { fill: var(--c1); } .axis { stroke: var(--line); fill: none; }
ul.legend { list-style: none; margin: 0 0 .3rem; padding: 0; display: flex; flex-wrap: wrap; gap: 0 1.1rem; font-size: .84rem; }
ul.legend li::before { content: ""; display: inline-block; width: 1.1em; height: .22em; margin: 0 .45em .25em 0; background: currentColor; }
ul.legend.points li::before { content: none; } ul.legend li { overflow-wrap: anywhere; }
.c1 { color: var(--c1); } .c2 { color: var(--c2); } .c3 { color: var(--c3); }
.c4 { color: var(--c4); } .c5 { color: var(--c5); } .c6 { color: var(--c6); }
img { max-width: 100%; height: auto; } img.tiny { image-rendering: pixelated; }
.picture { display: block; border-radius: .25rem; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16.5rem), 1fr)); gap: 1.3rem 1.1rem; margin: 1rem 0; }
.strip { display: flex; gap: 2px; border-radius: .3rem; overflow: hidden; background: var(--wash); }
.strip img { flex: 0 0 calc((100% - 4px) / 3); min-width: 0; aspect-ratio: 4/3; object-fit: contain; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.1rem; margin: 1rem 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .9rem; background: var(--wash); border-radius: .5rem; padding: .8rem;
  min-width: 0; }
.pair .strip { background: none; }
video { display: block; width: 100%; max-height: 24rem; background: #000; border-radius: .3rem; margin: .9rem 0; }
figure video { max-height: 15rem; margin: .3rem 0 0; background: var(--wash); }
.pair video { background: none; }
.timeline { margin: .9rem 0; font-size: .84rem; }
.timeline p { margin: .45rem 0 .1rem; overflow-wrap: anywhere; line-height: 1.3; }
.timeline div { position: relative; height: 1.8rem; background: var(--wash); border-radius: .2rem; overflow: hidden; }
.timeline i { position: absolute; bottom: 0; background: var(--c1); }
.timeline ol { list-style: none; margin: .3rem 0 0; padding: 0; display: flex; justify-content: space-between; color: var(--soft);
  font-variant-numeric: tabular-nums; }
.gallery figcaption b, .pair figcaption b { display: block; color: var(--ink); font-weight: 500; }
@media (max-width: 30rem) { .facts { grid-template-columns: repeat(2, minmax(0, 1fr)); } th, td { padding-right: .8rem; } }
@media print { h2 { break-after: avoid; } figure, .facts div { break-inside: avoid; } }
"""

_PAGE = """
{%- macro img(picture, class="", alt="") -%}
<img src="{{ picture.uri }}" width="{{ picture.width }}" height="{{ picture.height }}" alt="{{ alt }}"
 class="{{ class }}{{ ' tiny' if picture.tiny }}">
{%- endmacro -%}
{%- macro table(part) -%}
<div class="scroll" tabindex="0"><table><thead><tr>
{% for name in part.head %}<th{% if loop.index0 in part.numbers %} class="n"{% endif %}>{{ name }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in part.rows %}
<tr>{% for cell in row %}<td{% if loop.index0 in part.numbers %} class="n"{% endif %}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{%- endmacro -%}
{%- macro tile(one) -%}
<figure><div class="strip">{% for picture in one.pictures %}{{ img(picture) }}{% endfor %}</div>
{% if one.video %}
<video controls muted loop playsinline preload="none" aria-label="{{ one.title }}" src="{{ one.video }}"
{%- if one.pictures %} poster="{{ one.pictures[0].uri }}" style="aspect-ratio:{{ one.pictures[0].width }}/{{ one.pictures[0].height }}"{% endif %}></video>
{% endif %}
<figcaption><b>{{ one.title }}</b>{% for line in one.lines %}{{ line }}{% if not loop.last %}<br>{% endif %}{% endfor %}</figcaption></figure>
{%- endmacro -%}
{%- macro bars(part) -%}
<div class="bars">
{% for bar in part.bars %}
<div><span title="{{ bar.name }}">{{ bar.name }}</span><i><b style="width:{{ part.share(bar) }}%"></b></i><em>{{ bar.text }}</em></div>
{% endfor %}
</div>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'{% if media %}; media-src {{ media|safe }}{% endif %}">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header><h1>{{ title }}</h1>{% if subtitle %}<p>{{ subtitle }}</p>{% endif %}</header>
<main>
{% for section in sections %}
<section>
<h2>{{ section.title }}</h2>
{% for part in section.parts %}
{% if kind(part) == "Facts" %}
<dl class="facts">
{% for fact in part.facts %}
<div><dt>{{ fact.name }}</dt><dd>{{ fact.value }}</dd>{% if fact.note %}<dd class="small">{{ fact.note }}</dd>{% endif %}</div>
{% endfor %}
</dl>
{% elif kind(part) == "Note" %}
<p class="note{{ ' warning' if part.warning }}">{{ part.text }}</p>
{% elif kind(part) == "Table" %}
{% if part.folded %}<details><summary>{{ part.folded }}</summary>{{ table(part) }}</details>{% else %}{{ table(part) }}{% endif %}
{% elif kind(part) == "Bars" %}
{% if part.folded %}<details><summary>{{ part.title }}</summary>{{ bars(part) }}</details>{% else %}{{ bars(part) }}{% endif %}
{% elif kind(part) == "Charts" %}
<div class="charts{{ ' wide' if part.wide }}">
{% for figure in part.figures %}
<figure>{% if figure.title %}<p>{{ figure.title }}</p>{% endif %}
{% if figure.legend %}<ul class="legend{{ ' points' if figure.points }}">{% for name in figure.legend %}<li class="c{{ loop.index0 % 6 + 1 }}">{{ name }}</li>{% endfor %}</ul>{% endif %}
{% if is_picture(figure.image) %}{{ img(figure.image, "picture", figure.title) }}{% else %}{{ figure.image }}{% endif %}
{% if figure.caption %}<figcaption>{{ figure.caption }}</figcaption>{% endif %}</figure>
{% endfor %}
</div>
{% elif kind(part) == "Player" %}
<video controls muted playsinline preload="metadata" src="{{ part.source }}"></video>
{% elif kind(part) == "Timeline" %}
<div class="timeline">
{% for name, spans in part.rows %}
<p>{{ name }}</p>
<div>{% for span in spans %}<i title="{{ span.text }}" style="left:{{ "%.3f" % (100 * span.start) }}%;width:calc({{ "%.3f" % (100 * span.length) }}% + .5px);height:{{ "%.2f" % (100 * span.value) }}%"></i>{% endfor %}</div>
{% endfor %}
<ol>{% for tick in part.ticks %}<li>{{ tick }}</li>{% endfor %}</ol>
</div>
{% elif kind(part) == "Pairs" %}
<div class="pairs">
{% for pair in part.pairs %}
<div class="pair">{{ tile(pair[0]) }}{{ tile(pair[1]) }}</div>
{% endfor %}
</div>
{% else %}
<div class="gallery">
{% for one in part.tiles %}
{{ tile(one) }}
{% endfor %}
</div>
{% endif %}
{% endfor %}
</section>
{% endfor %}
</main>
<footer>Made by vmae. One file without scripts; it loads {{ "the videos by their paths, and " if plays }}nothing from the network.</footer>
</body>
</html>
"""
