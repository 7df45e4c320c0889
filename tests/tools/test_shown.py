"""Every command that a page shows is run by a test, or marked on the site as one that needs data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from tools.docs import commands, shown
from vmae_data.commands.app import app as shard_app
from vmae_train.commands.app import app as train_app

ROOT = Path(__file__).parents[2]
APPS = {"vmae-shard": shard_app, "vmae-train": train_app}
TEXTS = {path.name: path.read_text("utf-8") for folder in (ROOT, ROOT / "docs") for path in folder.glob("*.md")}
TEXTS |= {"commands-shard.md": commands.shard_page(), "commands-train.md": commands.train_page()}
SHOWN = {
    name: [list(shown.shown_commands(block)) for block in shown.BLOCK.findall(text)] for name, text in TEXTS.items()
}
PROGRAMS = ("aws", "docker", "git", "hf", "make", "pip", "pre-commit", "sbatch", "tar")
RUN = {command for blocks in SHOWN.values() for block in blocks for command in block if shown.needs_no_data(command)}


def test_the_pages_show_commands() -> None:
    assert sum(len(block) for blocks in SHOWN.values() for block in blocks) > 150
    assert len(RUN) > 10


@pytest.mark.parametrize("command", sorted(RUN))
def test_a_shown_command_that_needs_no_data_runs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *arguments = shlex.split(command)
    typer.main.get_command(APPS[program]).main(arguments, standalone_mode=False)
    assert capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(SHOWN))
def test_every_other_command_is_marked(name: str) -> None:
    marked = shown.mark_blocks(TEXTS[name], name)
    followed = dict(re.findall(r"^```\w*\n(.*?)^```$\n*(<p class=\"not-run\">)?", marked, re.DOTALL | re.MULTILINE))
    for block, mark in followed.items():
        others = [command for command in shown.shown_commands(block) if not shown.needs_no_data(command)]
        others += [line for line in block.splitlines() if line.split(" ")[0] in PROGRAMS]
        assert bool(mark) == bool(others) or name in shown.RUN_PAGES, block
