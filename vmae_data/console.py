"""What both command lines share: options, how a command runs and ends, how recipes are shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer

from vmae_data.errors import MisuseError, ReportedElsewhere, StopRequested, VmaeError

__all__ = [
    "Check",
    "Debug",
    "Json",
    "Quiet",
    "Settings",
    "State",
    "StorageOptions",
    "counted",
    "local_argument",
    "new_app",
    "num_cores",
    "print_json",
    "progress_style",
    "run_app",
    "show_checks",
    "show_facts",
    "show_recipes",
    "size_words",
    "time_words",
]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; may be repeated."),
]


def _take_options(options: list[str] | None) -> list[str] | None:
    """Before the command runs, so that all that it starts has them."""
    if options:
        from vmae_data.storage import set_options

        set_options(options)
    return options


StorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        callback=_take_options,
        help="How a store is reached (docs/storage.md); may be repeated.",
    ),
]


class State(Enum):
    """How one of a doctor's checks ended."""

    OK = "ok"
    WARNING = "warning"  # the work can be done, but a person should know
    MISSING = "missing"  # the work can't be done


class Check(NamedTuple):
    """One line of a doctor's table."""

    name: str
    state: State
    found: str
    advice: str = ""


def new_app(name: str, about: str, version: str) -> typer.Typer:
    """A command line with what both of ours have: short help, no tracebacks of its own, --version."""
    app = typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def show_version(value: bool) -> None:
        if value:
            print(f"{name} {version}")
            raise typer.Exit

    @app.callback()
    def root(
        show: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        pass

    return app


def show_recipes(package: str, name: str | None, spec_of: Any, settings: list[str] | None, as_json: bool) -> None:
    """What both command lines answer to `recipes [NAME]`."""
    import msgspec

    from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head

    if name is None:
        names = list_recipes(package)
        for known in names:
            head = recipe_head(read_recipe(package, known)).splitlines()
            about = next((line for line in head[1:] if line.strip()), "")
            print(f"{known:{max(map(len, names))}}  {about}") if not as_json else print_json(
                {"recipe": known, "about": about}
            )
        return
    spec = msgspec.to_builtins(load_recipe(package, name, spec_of(name), settings or ()))
    if as_json:
        print_json(spec)
        return
    print("\n".join(f"# {line}".rstrip() for line in recipe_head(read_recipe(package, name)).splitlines()))
    print(_toml(spec), end="")


def show_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """A table of names and values on stdout."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_one_line(title)), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(_one_line(value)))
    Console(highlight=False).print(table)


def size_words(count: float) -> str:
    """A number of bytes as a person says it: 2.734 MB."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB" if count >= 1000 else f"{count:.4g} GB"


def time_words(seconds: float) -> str:
    """A length of time as a person says it: 2.12 min."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.4g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"


def show_checks(checks: Sequence[Check], as_json: bool) -> None:
    """A doctor's table on stdout: name, state, what was found, and what to do.

    Raises VmaeError, after the table, where something is missing.
    """
    if as_json:
        for check in checks:
            print_json({**check._asdict(), "state": check.state.value})
    else:
        _print_checks(checks)
    missing = [check.name for check in checks if check.state is State.MISSING]
    if missing:
        raise VmaeError(f"{', '.join(missing)}: not as needed; the table says what to do")


def _print_checks(checks: Sequence[Check]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {State.OK: "green", State.WARNING: "yellow", State.MISSING: "bold red"}
    table = Table(show_lines=False)
    for head in ("what", "state", "found, and what to do"):
        # A cut-off path or sum is of no use: long words are folded.
        table.add_column(head, overflow="fold", no_wrap=head == "state")
    for check in checks:
        found = Text(_one_line(check.found))
        if check.advice:
            found.append(f"\n→ {_one_line(check.advice)}", style="" if check.state is State.OK else "bold")
        table.add_row(Text(check.name), Text(check.state.value, style=colours[check.state]), found)
    Console(highlight=False).print(table)


def _one_line(words: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)


def _toml(values: dict[str, Any], table: str = "") -> str:
    """Plain values first, then one table after the other; what is None is left out, as in a recipe."""
    import json

    lines = [f"[{table}]"] if table else []
    lines += [f"{key} = {json.dumps(v)}" for key, v in values.items() if v is not None and not isinstance(v, dict)]
    inner = [_toml(v, f"{table}.{key}" if table else key) for key, v in values.items() if isinstance(v, dict)]
    return "\n".join([*lines, *(f"\n{text.rstrip()}" for text in inner)]) + "\n"


def counted(count: float, thing: str) -> str:
    """`1 video`, `2 videos`, `0.5 videos`."""
    return f"{count if isinstance(count, int) else f'{count:g}'} {thing}{'' if count == 1 else 's'}"


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def local_argument(text: str) -> Path:
    """The parser of arguments that name a path of this machine: as a plain path a URL would be a folder called `s3:`."""
    from vmae_data.storage import local_path

    if not text:
        raise MisuseError("an empty argument, where a path is wanted; give one, or leave it out")
    return local_path(text)


def progress_style(quiet: bool, as_json: bool) -> Any:
    from vmae_data.progress import ProgressStyle

    return ProgressStyle.QUIET if quiet else ProgressStyle.JSON if as_json else ProgressStyle.AUTO


def print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def run_app(application: typer.Typer, name: str) -> NoReturn:
    """Run a command; an error is one line and an exit status: 1 failed, 2 misused, 130 or 143 ended by a signal."""
    from vmae_data.processes import stop_on_signals

    def stop(status: int) -> None:
        raise StopRequested(status)

    stop_on_signals(stop)
    status = 0
    try:
        status = application(prog_name=name, standalone_mode=False) or 0
    except ReportedElsewhere as error:
        status = error.exit_status
    except VmaeError as error:
        status = _tell(name, str(error), error.exit_status)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        where = f"{error.filename}: " if error.filename else ""
        advice = "check the path, the rights and the room on the disk, and run the same command again"
        status = _tell(name, f"{where}{error.strerror or error}; {advice}", 1)
    except StopRequested as stopped:
        if _speaks():
            print(f"{name}: stopped; the same command goes on from here", file=sys.stderr)
        status = stopped.exit_status
    except Exception as error:
        # The parser's own errors: a missing argument, an unknown option, a value of another type.
        if not hasattr(error, "format_message"):
            raise
        status = _tell(name, f"{error.format_message()} (--help shows what there is)", 2) if _speaks() else 2
    sys.exit(status)


def _speaks() -> bool:
    """Of the processes that one torchrun starts, all find the same: the first says it."""
    return os.environ.get("RANK", "0") == "0"


def _tell(name: str, words: str, status: int) -> int:
    """One line on stderr, whatever the path in it holds; the traceback on request."""
    if "--debug" in sys.argv:
        import traceback

        traceback.print_exc()
        return status
    print(f"{name}: {_one_line(words)}", file=sys.stderr)
    return status
