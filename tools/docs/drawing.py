"""A flowchart of Mermaid as a picture in a page: a site without a network has no Mermaid.

Read are the forms that the documents use: `A[text]`, `A[(text)]`, `A --> B` and `A -. text .-> B`.
"""

from __future__ import annotations

import html
import re
from typing import NamedTuple

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y = 210, 52, 30, 34
CHART = re.compile(r"^```mermaid\nflowchart \w+\n(.*?)^```$", re.DOTALL | re.MULTILINE)
EDGE = re.compile(r"(.+?)\s*(-->|-\. (.*?) \.->)\s*(.+)")
NODE = re.compile(r"(\w+)(?:\[(\()?\"?(.*?)\"?\)?\])?")


class Edge(NamedTuple):
    start: str
    end: str
    label: str | None  # of a dashed line; None: a solid line


class Node(NamedTuple):
    lines: list[str]
    is_data: bool


class Place(NamedTuple):
    """The middle of a box."""

    x: float
    y: float


def draw_charts(markdown: str) -> str:
    """The page with each flowchart replaced by its picture."""
    return CHART.sub(lambda chart: _svg(chart[1]), markdown)


def _svg(chart: str) -> str:
    nodes, edges = _parsed(chart)
    places = _places(nodes, edges)
    width = max(place.x for place in places.values()) + BOX_WIDTH / 2 + 2
    height = max(place.y for place in places.values()) + BOX_HEIGHT / 2 + 2
    parts = [*(_line(edge, places) for edge in edges), *(_box(node, places[name]) for name, node in nodes.items())]
    head = '<marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    head += '<path d="M0 0 8 4 0 8z" fill="currentColor"/></marker>'
    return (
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" style="max-width: {width:g}px" role="img">'
        f"<defs>{head}</defs>{''.join(parts)}</svg>"
    )


def _parsed(chart: str) -> tuple[dict[str, Node], list[Edge]]:
    nodes: dict[str, Node] = {}
    edges = []
    for line in chart.splitlines():
        found = EDGE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"a line of a flowchart is not read: {line!r}")
        start, end = (_node(text, nodes) for text in (found[1], found[4]))
        edges.append(Edge(start, end, found[3]))
    return nodes, edges


def _node(text: str, nodes: dict[str, Node]) -> str:
    """The name of a node. Its text is stored where it is written."""
    found = NODE.fullmatch(text)
    if found is None:
        raise ValueError(f"a node of a flowchart is not read: {text!r}")
    name, data, label = found.groups()
    if label is not None:
        nodes[name] = Node(re.split(r"<br/?>", label), data is not None)
    return name


def _places(nodes: dict[str, Node], edges: list[Edge]) -> dict[str, Place]:
    """One row for each step from the start, in the order of the chart from left to right."""
    rows = dict.fromkeys(nodes, 0)
    for _ in nodes:  # long enough for the longest way
        for edge in edges:
            rows[edge.end] = max(rows[edge.end], rows[edge.start] + 1)
    columns: dict[int, int] = {}
    places = {}
    for name, row in rows.items():
        column = columns.get(row, 0)
        columns[row] = column + 1
        x, y = column * (BOX_WIDTH + GAP_X) + BOX_WIDTH / 2 + 1, row * (BOX_HEIGHT + GAP_Y) + BOX_HEIGHT / 2 + 1
        places[name] = Place(x, y)
    return places


def _line(edge: Edge, places: dict[str, Place]) -> str:
    start, end = places[edge.start], places[edge.end]
    top, bottom = start.y + BOX_HEIGHT / 2, end.y - BOX_HEIGHT / 2
    dash = "" if edge.label is None else ' stroke-dasharray="4 4"'
    path = f'<path d="M{start.x:g} {top:g}L{end.x:g} {bottom:g}"{dash} marker-end="url(#head)"/>'
    if edge.label is None:
        return path
    return f"{path}{_text(edge.label, (start.x + end.x) / 2, (top + bottom) / 2 - 8, 'start')}"


def _box(node: Node, place: Place) -> str:
    left, top = place.x - BOX_WIDTH / 2, place.y - BOX_HEIGHT / 2
    rounding = BOX_HEIGHT / 2 if node.is_data else 4
    box = f'<rect x="{left:g}" y="{top:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="{rounding:g}"/>'
    first = place.y - 9 * (len(node.lines) - 1)
    return box + "".join(_text(line, place.x, first + 18 * number) for number, line in enumerate(node.lines))


def _text(text: str, x: float, y: float, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" dominant-baseline="middle">{html.escape(text)}</text>'
