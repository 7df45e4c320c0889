"""The commands that pages show: those that tests run, and a mark at the blocks of code with others."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
QUOTED = re.compile(r"(?<!`)`([^`]+)`(?!`)")
# What starts a command of ours, on a cluster or in a container.
LAUNCHER = re.compile(r'^sbatch .*--wrap "(.*)"$|^(?:srun|docker run .* vmae) (.*)$')
# Run as a whole, with fewer videos and steps.
RUN_PAGES = ("tutorial.md",)
# What starts a command of another program, which no test runs as it is printed.
OTHER_PROGRAM = re.compile(r"^(?:aws|docker|git|hf|make|pip|pre-commit|sbatch|tar) ", re.MULTILINE)
MARK = '<p class="not-run">Not all of this is run by a test: it needs time, data or machines that the tests do not have.</p>'


def page_commands(markdown: str) -> Iterator[str]:
    """The commands of a page: of its blocks of code, forms included, and those that its text quotes."""
    for block in BLOCK.findall(markdown):
        yield from block_commands(block)
    for code in QUOTED.findall(BLOCK.sub("", markdown)):
        command = " ".join(code.replace("\\|", "|").split())
        if re.match(r"vmae-(shard|train) \w|(torchrun|python) .*-m vmae_(train|data)\.cli", command):
            yield command


def shown_commands(block: str) -> Iterator[str]:
    """The commands of a block of code without their comments, and without forms."""
    return (command for command in block_commands(block) if not is_form(command))


def is_form(command: str) -> bool:
    """Whether a command has `…`, `[--option]` or `A|B`, so that nobody can run it as it is printed."""
    return re.search(r"…| \[|\w\|\w", command) is not None


def block_commands(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        for part in re.split(r" && | &$", LAUNCHER.sub(lambda started: started[1] or started[2], line)):
            command = re.split(r"   #| > |\s#", part)[0].strip()
            if command.startswith(("vmae-", "torchrun", "python -m tools.", "python -m vmae_")):
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
    return block[0] if is_run and not OTHER_PROGRAM.search(block[1]) else f"{block[0]}\n\n{MARK}\n"
