"""Both command lines: shared options, how a command runs and ends, how results are printed."""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, NoReturn

import typer
from typer.core import TyperCommand

from vmae_data.errors import NO_THREAD, MisuseError, ReportedElsewhere, StopRequested, VmaeError

__all__ = [
    "CheckResult",
    "CheckState",
    "Debug",
    "Json",
    "Quiet",
    "StorageOptions",
    "argument",
    "flag",
    "is_first_process",
    "local_argument",
    "new_app",
    "num_cores",
    "option",
    "path_option",
    "print_checks",
    "print_json",
    "print_recipes",
    "print_rows",
    "progress_style",
    "recipe_argument",
    "recipe_option",
    "run_app",
    "settings_option",
]


def argument(metavar: str, text: str, default: str | bool = True, **more: Any) -> Any:
    """An argument: its name in the help, an imperative clause, and the default in words unless it is a plain value."""
    help_text, shown = _help(text, default)
    return typer.Argument(metavar=metavar, help=help_text, show_default=shown, **more)


def option(metavar: str, text: str, default: str | bool = True, *names: str, **more: Any) -> Any:
    """An option with a value, described as an argument is."""
    help_text, shown = _help(text, default)
    return typer.Option(*names, metavar=metavar, help=help_text, show_default=shown, **more)


def path_option(metavar: str, text: str, default: str) -> Any:
    """An option whose value is a local path, not a URL."""
    return option(metavar, text, default, parser=local_argument)


def flag(name: str, text: str, default: str, *names: str) -> Any:
    """An option without a value; the default says in words what happens without it."""
    help_text, shown = _help(text, default)
    return typer.Option(name, *names, help=help_text, show_default=shown)


def recipe_option(package: str, text: str, default: str | bool = True, *, folder: str = "") -> Any:
    """An option that names a recipe. The shell completes the names of `folder`, and they may omit it."""

    def full_name(name: str | None) -> str | None:
        from vmae_data.recipes import find_recipe

        return None if name is None else find_recipe(package, name, folder)

    return option("NAME|FILE", text, default, callback=full_name, autocompletion=_complete_recipes(package, folder))


def recipe_argument(package: str) -> Any:
    """The argument of the command `recipes`."""
    about, completed = "Show every value of this recipe.", _complete_recipes(package)
    return argument("NAME", about, "list all recipes", autocompletion=completed)


def _complete_recipes(package: str, folder: str = "") -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from vmae_data.recipes import list_recipes

        names = [name for name in list_recipes(package) if name.startswith(folder)]
        full = [name for name in names if name.startswith(incomplete)]
        short = [name.removeprefix(f"{folder}/") for name in names]
        return full or [name for name in short if name.startswith(incomplete)]

    return complete


def settings_option(spec_of: Callable[[str, str | None], type[Any]]) -> Any:
    """`--set`. The shell completes keys of the spec of the command and of the recipe typed so far, if any."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        from vmae_data.recipes import keys_of

        with suppress(VmaeError):  # no such recipe
            spec = spec_of(ctx.info_name or "", ctx.params.get("recipe") or ctx.params.get("name"))
            return [f"{key}=" for key in keys_of(spec) if key.startswith(incomplete)]
        return []

    about = "Change one key of the recipe. Repeatable."
    return option("KEY=VALUE", about, "the recipe's values", "--set", autocompletion=complete)


def _help(text: str, default: str | bool) -> tuple[str, bool]:
    """The help of a parameter, and whether typer adds the default.

    A default in words is added here, because typer would print it in parentheses: `[default: (no file)]`.
    """
    return (text, default) if isinstance(default, bool) else (f"{text} \\[default: {default}]", False)


def _apply_storage_options(options: list[str] | None) -> list[str] | None:
    """A callback, which runs before the command: every process that the command starts has the options too."""
    if options:
        from vmae_data.storage import set_options

        set_options(options)
    return options


Quiet = Annotated[bool, flag("--quiet", "Print no progress and no summary.", "print both", "-q")]
Json = Annotated[bool, flag("--json", "Print one JSON object per line.", "print text")]
Debug = Annotated[bool, flag("--debug", "Print the traceback of an error.", "print one line")]
StorageOptions = Annotated[
    list[str] | None,
    option(
        "KEY=VALUE",
        "Set how to reach a bucket or a server (docs/storage.md). Repeatable.",
        "from the environment",
        "--storage-option",
        callback=_apply_storage_options,
    ),
]


def local_argument(text: str) -> Path:
    """Parse an argument that names a local path. `Path(url)` would make a folder called `s3:`."""
    from vmae_data.storage import local_path

    if not text:
        raise MisuseError("a path is empty. Give a path, or omit the option")
    return local_path(text)


def num_cores() -> int:
    """The CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def progress_style(quiet: bool, as_json: bool) -> Any:
    from vmae_data.progress import ProgressStyle

    return ProgressStyle.QUIET if quiet else ProgressStyle.JSON if as_json else ProgressStyle.AUTO


class _Command(TyperCommand):
    """Refuses an empty text: an unset variable of a shell makes one, and no user means it."""

    def invoke(self, ctx: Any) -> Any:
        for param in self.params:
            value = ctx.params.get(param.name)
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                from vmae_data.parser_errors import parameter_name

                raise MisuseError(f"{parameter_name(param)} is empty. Give a value, or omit it")
        return super().invoke(ctx)


def new_app(name: str, about: str, version: str, commands: Iterable[Callable[..., None]]) -> typer.Typer:
    """A command line. The help of a command is its docstring; the section `Examples:` comes after the options.

    A wheel contains no documentation pages. So the program's help says where they are.
    """
    app = typer.Typer(
        name=name,
        help=about,
        epilog="Help and errors name pages as docs/NAME.md. The folder docs is in the repository and in the sdist.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    def print_version(value: bool) -> None:
        if value:
            print(f"{name} {version}")
            raise typer.Exit

    @app.callback()
    def root(
        show: bool = typer.Option(
            False, "--version", callback=print_version, is_eager=True, help="Print the version and exit."
        ),
    ) -> None:
        pass

    for command in commands:
        text, heading, examples = inspect.cleandoc(command.__doc__ or "").partition("Examples:\n")
        paragraphs = re.sub(r"(?<!\n)\n(?!\n)", " ", text.strip())  # typer keeps single line breaks
        app.command(cls=_Command, help=paragraphs, epilog=f"{heading}\n{inspect.cleandoc(examples)}")(command)
    return app


def run_app(app: typer.Typer, name: str) -> NoReturn:
    """Run a command. An error is one line on stderr and an exit status.

    1: failed; 2: misused; 129, 130 or 143: stopped by SIGHUP, SIGINT or SIGTERM.
    """
    from vmae_data.processes import exit_process
    from vmae_data.streams import secure_streams

    secure_streams()
    status = 0
    try:
        _handle_signals()
        status = app(prog_name=name, standalone_mode=False) or 0
        sys.stdout.flush()  # here: a full disk is an error of this command, not of the interpreter's end
    except ReportedElsewhere as error:
        status = error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except StopRequested as stopped:
        if is_first_process():
            resumes = f"{_one_line(stopped.saved)}. Run the same command again to resume"
            text = resumes if stopped.saved else "This command saved nothing"
            print(f"{name}: stopped. {text}", file=sys.stderr)
        status = stopped.exit_status
    except Exception as error:
        text, status = _describe_error(name, error)
        # Without a command typer prints the help, and there is no text.
        if text and (not hasattr(error, "format_message") or is_first_process()):
            _print_error(name, text)
    exit_process(status)


def _handle_signals() -> None:
    from vmae_data.processes import stop_on_signals

    def stop(status: int) -> None:
        raise StopRequested(status)

    stop_on_signals(stop)


def _describe_error(name: str, error: Exception) -> tuple[str, int]:
    """The text and the exit status of an error that a user can mend. Raises any other error again."""
    if isinstance(error, VmaeError):
        return str(error), error.exit_status
    if module := _module_that_failed(error):
        return _import_error(name, module, error), 1
    if isinstance(error, MemoryError):
        return f"not enough memory ({_first_line(error)}). Raise the limit (`ulimit -v`), or free memory", 1
    if str(error) == NO_THREAD:
        return "this machine starts no more threads. Raise the limit (`ulimit -u`), or end other programs", 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        advice = "Check the path, its permissions and the free disk space, then run the same command again"
        return f"{where}{error.strerror or error}. {advice}", 1
    # Errors of the parser: a missing argument, an unknown option, a value of another type.
    if not hasattr(error, "format_message"):
        raise error
    from vmae_data.parser_errors import parser_error_text

    message = parser_error_text(error)
    return f"{message} (see --help)" if message else "", 2


def _module_that_failed(error: BaseException) -> str | None:
    """The module whose import raised the error, whatever its type. None if nothing was being imported."""
    # The traceback begins in `run_app`, so each module in it was being imported.
    running = [frame for frame, _ in traceback.walk_tb(error.__traceback__) if frame.f_code.co_name == "<module>"]
    module = str(running[-1].f_globals["__name__"]) if running else None
    if isinstance(error, ModuleNotFoundError) or module is None or module.startswith("vmae_"):
        return getattr(error, "name", None) or module
    return module  # a package that failed to load a part of itself: the error names the part only


def _import_error(name: str, module: str, error: BaseException) -> str:
    packages = "vmae[train]" if name == "vmae-train" else "vmae"
    advice = f"Run `python -m pip install '{packages}'`"
    if not isinstance(error, ModuleNotFoundError):
        advice = f"Raise the memory limit (`ulimit -v`) if there is one. Else reinstall {packages}"
    return f"can't import {module} ({_first_line(error)}). {advice}"


def _first_line(error: BaseException) -> str:
    """The reason in one line. Some packages wrap it in a page of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def is_first_process() -> bool:
    """All processes of one torchrun find the same error or signal; only the first prints it."""
    return os.environ.get("RANK", "0") == "0"


def _print_error(name: str, text: str) -> None:
    """One line on stderr, even if a path in it has line breaks; with --debug the traceback instead."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    else:
        print(f"{name}: {_one_line(text)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_json(value: Any) -> None:
    import msgspec

    print(msgspec.json.encode(value).decode(), flush=True)


def print_rows(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print a table of names and values."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(_one_line(title)), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(_one_line(value)))
    Console(highlight=False).print(table)


def print_recipes(package: str, name: str | None, spec_of: Any, settings: list[str] | None, as_json: bool) -> None:
    """The command `recipes [NAME]` of both command lines."""
    import msgspec

    from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head, recipe_text

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
    print(recipe_text(spec), end="")


CheckState = Literal["ok", "warning", "missing"]  # warning: the work can be done; missing: it can't


class CheckResult(NamedTuple):
    """One row of the doctor's table."""

    name: str
    state: CheckState
    found: str
    advice: str = ""


def print_checks(checks: Sequence[CheckResult], as_json: bool) -> None:
    """Print the doctor's table. Raises VmaeError, after the table, if something is missing."""
    if as_json:
        for check in checks:
            print_json(check._asdict())
    else:
        _print_check_table(checks)
    missing = [check.name for check in checks if check.state == "missing"]
    if missing:
        raise VmaeError(f"{', '.join(missing)}: missing or unusable. Do what the table advises, then run doctor again")


def _print_check_table(checks: Sequence[CheckResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warning": "yellow", "missing": "bold red"}
    table = Table(show_lines=False)
    for heading in ("check", "state", "found, and what to do"):
        # Fold long words: a truncated path or checksum is of no use.
        table.add_column(heading, overflow="fold", no_wrap=heading == "state")
    for check in checks:
        found = Text(_one_line(check.found))
        if check.advice:
            found.append(f"\n→ {_one_line(check.advice)}", style="" if check.state == "ok" else "bold")
        table.add_row(Text(check.name), Text(check.state, style=colours[check.state]), found)
    Console(highlight=False).print(table)
