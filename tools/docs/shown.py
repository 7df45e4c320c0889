"""The commands that pages show: those that tests run, and a mark at the blocks of code with others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Run as a whole, with fewer videos and steps.
RUN_PAGES = ("tutorial.md",)
MARK = (
    '<p class="not-run">Not all of this is run by a test: it needs data or machines that are not in the repository.</p>'
)


def shown_commands(block: str) -> Iterator[str]:
    """The commands of a block of code without their comments. A form with `[…]` or `A|B` is no command."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        command = re.split(r"   #| > |\s#| &$", line.removeprefix("srun "))[0].strip()
        if command.startswith(("vmae-", "torchrun", "python -m tools.")) and not re.search(r"[…|\[]", command):
            yield command


def needs_no_data(command: str) -> bool:
    """Whether a command reads only what the programs have: a test runs it as it is printed."""
    words = shlex.split(command)
    names_file = any(word.endswith((".toml", ".json", ".jsonl")) for word in words)
    return (
        words[:2] in (["vmae-shard", "recipes"], ["vmae-train", "recipes"], ["vmae-train", "plan"]) and not names_file
    )


def mark_blocks(markdown: str, page: str) -> str:
    """The page with a mark below each block of code that has a command which no test runs."""
    return markdown if page in RUN_PAGES else BLOCK.sub(_marked, markdown)


def _marked(block: re.Match[str]) -> str:
    is_run = all(needs_no_data(command) for command in shown_commands(block[1]))
    return block[0] if is_run else f"{block[0]}\n\n{MARK}\n"
