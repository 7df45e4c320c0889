"""All damages, those of the fast subset, and the page that tells of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tools.soak.damages.claims import CLAIMS
from tools.soak.damages.cuts import CUTS, FLIPS, SIZES
from tools.soak.damages.others import LINKS, NAMES, OTHERS, STREAMS
from tools.soak.damages.pictures import CONTAINERS, PICTURES, TIMES
from tools.soak.damages.records import Damage
from tools.soak.faults.table import FAULTS

__all__ = ["DAMAGES", "FAST", "docs_page"]

DAMAGES: tuple[Damage, ...] = (
    *PICTURES, *CONTAINERS, *TIMES, *STREAMS, *NAMES, *LINKS, *OTHERS, *CUTS, *CLAIMS, *SIZES, *FLIPS,
)  # fmt: skip
FAST = tuple(damage for damage in DAMAGES if damage.fast)

_HEAD = """\
# Damaged and unusual videos

What a build makes of each of {count} sources. Written by `python -m tools.soak.build --write-docs` from the table in
`tools/soak/damages/`, which `make soak` builds and holds against what comes out; a fast subset is part of `make test`.

Every source ends as a sample or as a line of `failures.jsonl` with its reason. *made* means: all frames of the source were decoded,
and those that were kept were looked at and are the right ones, upright; a remark stands in the sample's `KEY.json`. Where
several outcomes are named, any of them may come: a flipped byte may hit a picture or a header.

"""


def docs_page() -> str:
    """docs/damages.md. Neighbours with the same outcome share a row."""
    return _HEAD.format(count=len(DAMAGES)) + "\n".join(_sections())


def _sections() -> Iterator[str]:
    for group, damages in groupby(DAMAGES, key=lambda damage: damage.group):
        yield f"## {group}\n\n| source | outcome |\n| --- | --- |"
        for outcome, same in groupby(damages, key=_outcome):
            yield f"| {_names([damage.name for damage in same])} | {outcome} |"
        yield ""
    yield "## Faults of the machine\n\n| while a build runs | what comes |\n| --- | --- |"
    yield from (f"| {fault.name} | {fault.outcome} |" for fault in FAULTS)
    yield ""


def _outcome(damage: Damage) -> str:
    return _cell("; or ".join(dict.fromkeys(outcome.told() for outcome in damage.expected)))


def _names(names: Sequence[str]) -> str:
    return _cell("; ".join(names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
