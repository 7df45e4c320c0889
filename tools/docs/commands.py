"""The commands of both programs as pages, made from the Typer apps."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Sequence
from typing import Any

import typer

from vmae_data.commands.app import app as shard_app
from vmae_train.commands.app import app as train_app


def shard_page() -> str:
    return _page("vmae-shard", shard_app)


def train_page() -> str:
    return _page("vmae-train", train_app)


def _page(program: str, app: typer.Typer) -> str:
    group: Any = typer.main.get_command(app)
    parts = [f"# Reference: commands of {program}", group.help]
    for name, command in group.commands.items():
        parts += _command(f"{program} {name}", command)
    return "\n\n".join(parts) + "\n"


def _command(name: str, command: Any) -> list[str]:
    """The heading, the help, the arguments, the options and the examples of a command."""
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join([name, "[OPTIONS]", *(_usage(param) for param in arguments)])
    examples = inspect.cleandoc((command.epilog or "").partition("Examples:")[2])
    return [
        f"## {name}",
        _link_pages(command.help),
        f"```\n{usage}\n```",
        *_rows("argument", ((f"`{param.metavar}`", _help(param)) for param in arguments)),
        *_rows("option", ((_option(param), _help(param)) for param in options)),
        *(["Examples:", f"```\n{examples}\n```"] if examples else []),
    ]


def _usage(param: Any) -> str:
    text = f"{param.metavar}{'...' if param.nargs == -1 else ''}"
    return text if param.required else f"[{text}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*param.opts, *param.secondary_opts))
    return f"{names} `{param.metavar}`" if param.metavar else names


def _help(param: Any) -> str:
    """The help, with the default that typer prints, or the word that the parameter is required."""
    text = param.help.replace("\\[", "[")
    if param.required:
        return f"{text} [required]"
    shows_default = param.show_default is True and param.default not in (None, False, ())
    return f"{text} [default: {getattr(param.default, 'value', param.default)}]" if shows_default else text


def _rows(kind: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    found = [(name, _cell(text)) for name, text in rows]
    return [table((kind, "meaning"), found)] if found else []


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text for the cell of a table. Outside code nothing of it is Markdown or HTML, but a page of docs/ is a link."""
    parts = re.split(r"(`[^`]*`)", re.sub(r"\s+", " ", text))
    return "".join(part if index % 2 else _link_pages(_plain(part)) for index, part in enumerate(parts))


def _plain(text: str) -> str:
    return re.sub(r"([\\|*_\[])", r"\\\1", text).replace("<", "&lt;")


def _link_pages(text: str) -> str:
    return re.sub(r"docs/([a-z-]+\.md)", r"[docs/\1](\1)", text)
