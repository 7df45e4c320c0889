"""All damaged sources, the fast subset, and the page docs/damages.md."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from tools.soak.damages.cuts import CUTS, FLIPS, SIZES
from tools.soak.damages.headers import FALSE_HEADERS
from tools.soak.damages.midway import MIDWAY
from tools.soak.damages.others import LINKS, NAMES, OTHERS, STREAMS
from tools.soak.damages.recipes import AT_A_RATE, COPIED, JUMPS_AT_A_RATE
from tools.soak.damages.records import Damage
from tools.soak.damages.timing import ENCRYPTED, FIRST_FRAMES, TRACKS, WRONG_TIMES
from tools.soak.damages.unusual import CONTAINERS, PICTURES, TIMES
from tools.soak.faults.table import FAULTS

__all__ = ["DAMAGES", "FAST", "docs_page"]

DAMAGES: tuple[Damage, ...] = (
    *PICTURES, *MIDWAY, *CONTAINERS, *TIMES, *FIRST_FRAMES, *WRONG_TIMES, *TRACKS, *ENCRYPTED, *STREAMS, *NAMES, *LINKS,
    *OTHERS, *CUTS, *FALSE_HEADERS, *SIZES, *FLIPS, *AT_A_RATE, *JUMPS_AT_A_RATE, *COPIED,
)  # fmt: skip
FAST = tuple(damage for damage in DAMAGES if damage.fast)

_HEAD = """\
# Reference: damaged and unusual videos

```
make soak
```

The outcome of a build for each of {count} damaged or unusual sources. `make soak` builds all of them
and compares every outcome with this page; `make test` builds a fast subset.
`python -m tools.soak.build --write-docs` writes this page from the tables in
`tools/soak/damages/`.

Every source becomes a sample, or a line of `failures.jsonl` with a reason.

* *built*: all frames of the source were decoded. The kept frames are the right ones, and upright.
* A note is stored in the sample's `KEY.json`, under `remarks`.
* If several outcomes are listed, any of them may occur: a flipped byte may hit a picture or a
  header.

"""


def docs_page() -> str:
    """The text of docs/damages.md. Consecutive sources with the same outcome share a row."""
    return _HEAD.format(count=len(DAMAGES)) + "\n".join(_sections())


def _sections() -> Iterator[str]:
    for group, damages in groupby(DAMAGES, key=lambda damage: damage.group):
        yield f"## {group}\n\n| source | outcome |\n| --- | --- |"
        for outcome, same in groupby(damages, key=_outcome):
            yield f"| {_names([damage.name for damage in same])} | {outcome} |"
        yield ""
    yield "## Faults of the machine\n\n| during a build | outcome |\n| --- | --- |"
    yield from (f"| {fault.name} | {fault.outcome} |" for fault in FAULTS)
    yield ""


def _outcome(damage: Damage) -> str:
    return _cell("; or ".join(dict.fromkeys(outcome.text() for outcome in damage.expected)))


def _names(names: Sequence[str]) -> str:
    return _cell("; ".join(names))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")
