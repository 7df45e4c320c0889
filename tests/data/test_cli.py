from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from tests.command import call_command, command_line, run_command
from vmae_data.recipes import list_recipes

pytestmark = pytest.mark.processes

APPS = {"vmae-shard": "vmae_data", "vmae-train": "vmae_train"}


def _commands(program: str) -> dict[str, Any]:
    root: Any = typer.main.get_command(importlib.import_module(f"{APPS[program]}.commands.app").app)
    return dict(root.commands)


COMMANDS = [(program, name) for program in APPS for name in _commands(program)]


def test_no_command_line_and_no_part_of_the_data_side_imports_torch() -> None:
    code = (
        "import sys, typer.testing as t\n"
        "import vmae_data.commands.app, vmae_train.commands.app\n"
        "for app, words in ((vmae_data.commands.app.app, ['--help']), (vmae_data.commands.app.app, ['build', '--help']),\n"
        "                   (vmae_train.commands.app.app, ['pretrain', '--help'])):\n"
        "    assert not t.CliRunner().invoke(app, words).exit_code\n"
        "import vmae_data.encode.encode_source, vmae_data.shards.pack, vmae_data.build, vmae_data.demo.videos\n"
        "import vmae_data.read.stream, vmae_data.verify.verify, vmae_data.inspect.inspect, vmae_data.audit.audit_page\n"
        "import vmae_train, vmae_train.clips, vmae_train.clips.frame_sampling\n"
        "from vmae_data import Shards\n"
        "print('torch' in sys.modules)"
    )
    assert _run_python(code) == ["False"]


def test_a_build_of_local_videos_loads_no_web_modules() -> None:
    """Each process of a build would need some milliseconds more."""
    code = (
        "import sys, vmae_data.build, vmae_data.executors.encode_later, vmae_data.shards.pack\n"
        "print(*sorted({'ssl', 'http.client', 'urllib.request', 'vmae_data.storage.web'} & set(sys.modules)))"
    )
    assert _run_python(code) == [""]


def test_help_imports_the_command_line_and_nothing_else_of_ours() -> None:
    code = (
        "import sys, vmae_data.commands.app, typer.testing as t\n"
        "assert not t.CliRunner().invoke(vmae_data.commands.app.app, ['build', '--help']).exit_code\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vmae')))\n"
        "print(*sorted({'msgspec', 'numpy', 'pyarrow', 'av', 'PIL', 'ffmpeg', 'torch'} & set(sys.modules)))"
    )
    ours, heavy = _run_python(code)
    files = [f"vmae_data.commands.{name}" for name in ("app", "options", "output", *_commands("vmae-shard"))]
    modules = ("amounts", "commands", "console", "errors", "names")
    command_line = ["vmae_data", *(f"vmae_data.{name}" for name in modules)]
    assert ours.split() == sorted([*command_line, *files])
    assert heavy == ""


def _run_python(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("program", APPS)
def test_no_bracket_of_a_help_text_is_taken_for_markup(program: str) -> None:
    """rich prints the help, and takes [ray] for a style unless a backslash stands before it."""
    commands = _commands(program).values()
    texts = [command.help or "" for command in commands]
    texts += [getattr(option, "help", None) or "" for command in commands for option in command.params]
    assert len(texts) > 20
    for text in texts:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


def _help(program: str, command: str, width: int) -> str:
    """The help as a terminal of that width shows it."""
    app = importlib.import_module(f"{APPS[program]}.commands.app").app
    done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": str(width)})
    assert done.exit_code == 0
    return done.output


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_the_help_of_a_command_ends_with_examples_that_parse(program: str, command: str) -> None:
    """In the narrowest usual terminal each is still one line that can be copied."""
    _, _, text = _help(program, command, 80).rpartition("Examples:")
    examples = [shlex.split(line) for line in text.splitlines() if line.strip()]
    for words in examples:
        context = _commands(words[0])[words[1]].make_context(words[1], words[2:])
        assert context.params.get("recipe") in (None, "my.toml", *list_recipes(APPS[words[0]]))
    assert [program, command] in [words[:2] for words in examples]


@pytest.mark.parametrize(("program", "command"), COMMANDS)
def test_the_help_of_an_option_names_its_default_once(program: str, command: str) -> None:
    rows = [line for line in _help(program, command, 400).splitlines() if line.startswith("│")]
    params = [one for one in _commands(program)[command].params if one.name != "help"]
    assert len(rows) == len(params) + 1
    for option in params:
        name = option.opts[0] if option.opts[0].startswith("-") else option.metavar
        (row,) = (row for row in rows if re.match(rf"│ [* ]? *{name} ", row))
        assert row.count("[default: ") == (0 if option.required else 1), row
        assert row.count("[required]") == (1 if option.required else 0), row


@pytest.mark.parametrize("program", APPS)
def test_pages_that_help_errors_and_recipes_name_exist_and_the_help_says_where(program: str) -> None:
    root = Path(__file__).parents[2]
    files = [path for suffix in ("py", "toml") for path in (root / APPS[program]).rglob(f"*.{suffix}")]
    named = {page for path in files for page in re.findall(r"\bdocs/[a-z-]+\.md", path.read_text("utf-8"))}
    assert len(named) > 2
    assert not {page for page in named if not (root / page).is_file()}
    app = importlib.import_module(f"{APPS[program]}.commands.app").app
    assert (
        "docs is in the repository and in the sdist"
        in CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    )


def test_no_process_of_a_build_imports_torch(demo_videos: Path, tmp_path: Path) -> None:
    """A module `torch` comes first on the path, and leaves a file when any process imports it."""
    fake, imported = tmp_path / "path" / "torch.py", tmp_path / "imported"
    fake.parent.mkdir()
    fake.write_text(f"open({str(imported)!r}, 'w').close()\nraise ImportError('a build needs no torch')\n")
    path = f"{fake.parent}:{Path(__file__).parents[2]}"
    words = ["build", demo_videos / "pan-left", tmp_path / "out", "--recipe", "demo", "--quiet"]
    run_command("vmae_data", *words, env={**os.environ, "PYTHONPATH": path})
    assert (tmp_path / "out" / "index.json").is_file()
    assert not imported.exists()
    subprocess.run(
        [sys.executable, "-c", "import torch"], env={**os.environ, "PYTHONPATH": path}, check=False, capture_output=True
    )
    assert imported.exists()


@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&-", "<&- >&- 2>&-"])
def test_a_build_works_without_standard_streams(closed: str, demo_videos: Path, tmp_path: Path) -> None:
    words = ["build", demo_videos / "pan-left", tmp_path / "out", "--recipe", "demo"]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *command_line("vmae_data", *words)], capture_output=True, check=False
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False)
    assert (tmp_path / "out" / "index.json").is_file()


def test_a_full_disk_at_the_output_is_an_error_of_the_command() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command_line("vmae_data", "recipes"), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "No space left" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("program", ["vmae_data", "vmae_train"])
def test_a_program_without_a_command_prints_its_help(program: str) -> None:
    done = call_command(program, status=2)
    assert "Usage:" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("program", ["vmae_data", "vmae_train"])
def test_the_version_is_one_line(program: str) -> None:
    assert call_command(program, "--version").stdout.strip().split()[-1] == "0.1.0"


@pytest.fixture(scope="module")
def few_videos(demo_videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of the demo videos, with a broken one."""
    folder = tmp_path_factory.mktemp("data") / "few"
    for source in ("pan-left", "pan-right"):
        shutil.copytree(demo_videos / source, folder / source)
    (folder / "pan-left" / "broken.mp4").write_bytes(b"no video")
    return folder


def test_json_output_is_one_object_per_line(few_videos: Path, tmp_path: Path) -> None:
    done = call_command("vmae_data", "build", few_videos, tmp_path / "out", "--recipe", "demo", "--json")
    (line,) = done.stdout.splitlines()
    total = len(list(few_videos.rglob("*.mp4")))
    assert json.loads(line)["samples"] + sum(json.loads(line)["failures"].values()) == total
    for progress in done.stderr.splitlines():
        if progress.startswith("{"):
            assert json.loads(progress)["total"] == total


def test_verify_counts_what_it_checked_in_json(demo_shards: Path) -> None:
    (line,) = call_command("vmae_data", "verify", demo_shards, "--json").stdout.splitlines()
    index = json.loads((demo_shards / "index.json").read_bytes())
    shards = index["shardlist"]
    assert json.loads(line) == {
        "samples": sum(shard["nsamples"] for shard in shards),
        "shards": len(shards),
        "problems": 0,
    }


def test_a_build_ends_with_a_table_and_its_failures_in_the_last_line(few_videos: Path, tmp_path: Path) -> None:
    """Its JSON has the same numbers: sizes compared with the sources, and what this run did."""
    words = ("vmae_data", "build", few_videos, tmp_path / "out", "--recipe", "demo")
    first = call_command(*words)
    summary = json.loads(call_command(*words, "--json").stdout)
    failed = sum(summary["failures"].values())
    total = summary["samples"] + failed
    assert failed
    assert first.stdout.splitlines()[-1].startswith(
        f"{tmp_path / 'out'}: {summary['samples']} of {total} videos; {failed} failed, listed in"
    )
    for reason, count in summary["failures"].items():
        assert re.search(rf"failed: {reason} *│ {count} ", first.stdout), reason
    assert f"{100 * summary['bytes'] / summary['source_bytes']:.3g} %" in first.stdout
    assert re.search(rf"{total} in this run, [\d.]+/s", first.stdout)
    assert re.search(r"[\d.]+ MB/s", first.stdout)
    assert summary["encoded"] == 0  # the second run had nothing to do
    assert summary["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert f"videos: 0 of {total} …\n" in first.stderr  # before the first video, which may take minutes
    assert re.search(rf"videos: {total} of {total}, [\d.]+/s, 0 s left, [\d.]+ MB/s, \d+ failed", first.stderr)


def test_recipes_are_listed_and_shown_with_every_value() -> None:
    assert "k400" in call_command("vmae_data", "recipes").stdout
    shown = call_command("vmae_data", "recipes", "k400", "--set", "crf=20").stdout
    assert "crf = 20" in shown
    assert "stride = 4" in shown


def test_a_default_destination_is_named_after_the_source(few_videos: Path, tmp_path: Path) -> None:
    call_command("vmae_data", "build", few_videos / "pan-left", "--recipe", "demo", "--quiet", cwd=tmp_path)
    assert (tmp_path / "shards" / "pan-left" / "index.json").exists()
