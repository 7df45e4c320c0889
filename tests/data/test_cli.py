from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text
from typer.testing import CliRunner

from tests.command import call_command, command_line, restored_handlers, run_command
from vmae_data.console import new_app, run_app
from vmae_data.recipes import list_recipes

pytestmark = pytest.mark.processes

APPS = {"vmae-shard": "vmae_data", "vmae-train": "vmae_train"}


def _commands(program: str) -> dict[str, Any]:
    root: Any = typer.main.get_command(importlib.import_module(f"{APPS[program]}.commands.app").app)
    return dict(root.commands)


RUN = ("--recipe", "pretrain/demo", "--data", "shards", "--out", "s3://bucket/run")
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


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["build", "NOWHERE"], "neither a folder"),
        (["build", "VIDEOS", "OUT", "--recipe", "k401"], "Did you mean k400?"),
        (["build", "VIDEOS", "OUT", "--set", "strid=1"], "strid: no such key"),
        (["build", "VIDEOS", "OUT", "--classes", "NOWHERE"], "can't be read"),
        (["build", "ftp://host/x", "OUT"], "unknown scheme"),
        (["build", "VIDEOS", "http://127.0.0.1:9/x"], "web server can't be written to"),
        (["verify", "OUT", "--storage-option", "nonsense"], "expected KEY=VALUE"),
        (["build", "VIDEOS", "OUT", "--split", "foo"], "expected train, val or test"),
        (["build", "VIDEOS", "OUT", "--max-failures=-1"], "expected a number"),
        (["build", "VIDEOS", "OUT", "--max-failures=101%"], "expected a number"),
        (["build"], "Missing argument"),
        (["build", ""], "SOURCE is empty"),
        (["build", "VIDEOS", ""], "DEST is empty"),
        (["build", "VIDEOS", "OUT", "--classes", ""], "--classes is empty"),
        (["build", "VIDEOS", "OUT", "--annotations", ""], "--annotations is empty"),
        (["build", "VIDEOS", "OUT", "--ffmpeg", ""], "--ffmpeg is empty"),
        (["build", "VIDEOS", "OUT", "--staging", ""], "a path is empty. Give a path"),
        (["merge", ""], "DEST is empty"),
        (["verify", ""], "DEST is empty"),
        (["inspect", ""], "DEST is empty"),
        (["audit", ""], "DEST is empty"),
        (["audit", "VIDEOS", ""], "DEST is empty"),
        (["build", "VIDEOS", "OUT", "--nonsense"], "No such option"),
        (["build", "VIDEOS", "OUT", "--workers", "0"], "--workers"),
        (["build", "VIDEOS", "OUT", "--workers", "100000"], "--workers"),
        (["build", "VIDEOS", "OUT", "--workers", "9" * 5000], "--workers"),
        (["build", "VIDEOS", "OUT", "--set", f"seed={'9' * 5000}"], "seed: has a number with too many digits"),
        (["verify", "VIDEOS", "--workers", "100000"], "--workers"),
        (["demo", "OUT", "--videos", "9" * 30], "--videos"),
        (["build", "VIDEOS", "FILE"], "is a file. Name a folder"),
        (["merge", "FILE"], "is a file. Name the folder"),
        (
            ["build", "VIDEOS", "OUT", "--ffmpeg", "/bin/ls"],
            "/bin/ls: is not an ffmpeg that runs here (it answers -version",
        ),
        (
            ["build", "VIDEOS", "OUT", "--ffmpeg", "/bin/echo"],
            "/bin/echo: is not ffmpeg: its answer to -version begins",
        ),
        (
            ["build", "VIDEOS", "OUT", "--ffmpeg", "NOWHERE"],
            "is not an ffmpeg that runs here (No such file or directory)",
        ),
        (["inspect", "VIDEOS", "--html", "VIDEOS"], "is a folder. Name a file in it"),
        (["inspect", "VIDEOS", "--html", "NOWHERE/page.html"], "there is no folder"),
        (["audit", "VIDEOS", "--html", "NOWHERE/page.html"], "there is no folder"),
        (["audit", "VIDEOS", "--out", "NOWHERE/rows.csv"], "there is no folder"),
        (["audit", "VIDEOS", "--html", "/dev/null"], "--html /dev/null: is a device or a pipe"),
        (["audit", "VIDEOS", "--out", "OUT.csv", "--html", "OUT.csv"], "is the file of --out too"),
        (
            ["audit", "VIDEOS", "--set", "foo=1"],
            "static, near_static, black, frozen, blurred, cuts, duplicates, exclude",
        ),
        (["audit", "VIDEOS", "--set", "duplicates.foo=1"], "duplicates.foo: no such key. Known keys: "),
        (
            ["audit", "VIDEOS", "--set", 'exclude=["foo"]'],
            "one of: black, blurred, duplicate, frozen, leak, many-cuts, near-static, static, unreadable",
        ),
        (["build", "VIDEOS", "OUT", "--set", "longest_seconds=inf"], "longest_seconds = inf: expected a finite number"),
        (["build", "VIDEOS", "OUT", "--set", "longest_seconds=nan"], "longest_seconds = nan: expected a finite number"),
        (
            ["build", "VIDEOS", "OUT", "--set", "longest_seconds=-1"],
            "longest_seconds = -1.0: expected seconds, 0.01 or more",
        ),
    ],
)
def test_misuse_is_one_line_with_status_2(words: list[str], error: str, demo_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = {
        "NOWHERE": str(tmp_path / "nowhere"),
        "VIDEOS": str(demo_videos),
        "OUT": str(tmp_path / "out"),
        "FILE": str(tmp_path / "file"),
    }
    filled = [re.sub("^(NOWHERE|VIDEOS|OUT|FILE)", lambda match: names[match[0]], word) for word in words]
    quiet = [] if words[0] == "inspect" else ["--quiet"]
    done = call_command("vmae_data", *filled, *quiet, status=2)
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


FEED = "vmae_train feed --recipe pretrain/demo --data D"
PRETRAIN = "vmae_train pretrain --recipe pretrain/demo --data D --out OUT"
SAVED, LOST = "Run the same command again to resume", "This command saved nothing"


@pytest.mark.parametrize(
    ("words", "work", "advice"),
    [
        (FEED, "vmae_train.feed.feed", LOST),
        (f"{PRETRAIN} --dry-run", "vmae_train.training.dry_run.dry_run_report", LOST),
        (PRETRAIN, "vmae_train.pretrain.pretrain", SAVED),
        ("vmae_data build VIDEOS OUT --dry-run", "vmae_data.estimate.estimate_build", LOST),
        ("vmae_data build VIDEOS OUT", "vmae_data.build.build_shards", SAVED),
        ("vmae_data demo OUT", "vmae_data.demo.videos.write_demo", SAVED),
    ],
)
def test_a_stopped_command_says_whether_it_can_resume(
    words: str, work: str, advice: str, demo_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    names = {"VIDEOS": demo_videos, "OUT": tmp_path / "out"}
    done = call_command(*(names.get(word, word) for word in words.split()), status=130)
    assert done.stderr.splitlines()[-1].endswith(f": stopped. {advice}")


@pytest.fixture
def special_files(tmp_path: Path) -> Iterator[Path]:
    """A folder with a pipe, a socket, a device and a folder. Whoever waits for the pipe is interrupted."""

    def interrupt(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, interrupt)
    folder = tmp_path / "special"
    (folder / "folder.toml").mkdir(parents=True)
    os.mkfifo(folder / "pipe.toml")
    (folder / "device.toml").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server, contextlib.chdir(folder):  # a socket's path must be short
        server.bind("socket.toml")
        signal.alarm(60)
        yield folder
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "words",
    [
        "vmae_data build VIDEOS OUT --recipe FILE",
        "vmae_data build VIDEOS OUT --annotations FILE",
        "vmae_data build VIDEOS OUT --exclude FILE",
        "vmae_data build VIDEOS OUT --classes FILE",
        "vmae_data build VIDEOS OUT --ffmpeg FILE",
        "vmae_data build FILE OUT",
        "vmae_data verify FILE",
        "vmae_data inspect VIDEOS --html FILE",
        "vmae_train pretrain --recipe FILE --data VIDEOS --out OUT",
        "vmae_train pretrain --recipe pretrain/demo --data FILE --out OUT",
        "vmae_train convert FILE OUT --to native",
        "vmae_train convert VIDEOS OUT --to native --classes FILE",
        "vmae_train reconstruct FILE --data VIDEOS --out IMAGE",
        "vmae_train report FILE --out OUT",
    ],
)
def test_a_path_that_is_no_file_is_refused_at_once_and_named(
    words: str, special_files: Path, demo_videos: Path, tmp_path: Path
) -> None:
    for kind in ("pipe", "socket", "device", "folder"):
        names = {
            "VIDEOS": demo_videos,
            "OUT": tmp_path / "out",
            "IMAGE": tmp_path / "out.png",
            "FILE": special_files / f"{kind}.toml",
        }
        done = call_command(*(names.get(word, word) for word in words.split()), status=2)
        assert f"{kind}.toml" in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


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
    assert re.search(rf"videos: {total} of {total}, [\d.]+/s, 0 s left, [\d.]+ MB/s, \d+ failed", first.stderr)


def test_recipes_are_listed_and_shown_with_every_value() -> None:
    assert "k400" in call_command("vmae_data", "recipes").stdout
    shown = call_command("vmae_data", "recipes", "k400", "--set", "crf=20").stdout
    assert "crf = 20" in shown
    assert "stride = 4" in shown


def test_a_default_destination_is_named_after_the_source(few_videos: Path, tmp_path: Path) -> None:
    call_command("vmae_data", "build", few_videos / "pan-left", "--recipe", "demo", "--quiet", cwd=tmp_path)
    assert (tmp_path / "shards" / "pan-left" / "index.json").exists()


def test_a_traceback_is_printed_only_with_debug(tmp_path: Path) -> None:
    assert "Traceback" not in call_command("vmae_data", "build", tmp_path / "no", status=2).stderr
    assert "Traceback" in call_command("vmae_data", "build", tmp_path / "no", "--debug", status=2).stderr


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "raise ImportError('libheavy.so: failed to map segment from shared object', name='lib')",
            "vmae-shard: can't import heavy (libheavy.so: failed to map segment from shared object). "
            "Raise the memory limit (`ulimit -v`) if there is one. Else reinstall vmae",
        ),
        (
            "try:\n    raise ImportError('no libheavy.so')\nexcept ImportError as e:\n    raise ImportError('\\n\\nREAD') from e",
            "vmae-shard: can't import heavy (no libheavy.so). "
            "Raise the memory limit (`ulimit -v`) if there is one. Else reinstall vmae",
        ),
        (
            "raise OSError('libheavy.so: cannot open shared object file')",
            "vmae-shard: can't import heavy (libheavy.so: cannot open shared object file). "
            "Raise the memory limit (`ulimit -v`) if there is one. Else reinstall vmae",
        ),
        (
            "raise MemoryError",
            "vmae-shard: can't import heavy (MemoryError). "
            "Raise the memory limit (`ulimit -v`) if there is one. Else reinstall vmae",
        ),
        (
            "import module_that_is_missing",
            "vmae-shard: can't import module_that_is_missing (No module named 'module_that_is_missing'). "
            "Run `python -m pip install 'vmae'`",
        ),
        (
            "def work():\n    raise MemoryError('Unable to allocate 9 GiB')",
            "vmae-shard: not enough memory (Unable to allocate 9 GiB). Raise the limit (`ulimit -v`), or free memory",
        ),
        (
            'def work():\n    raise RuntimeError("can\'t start new thread")',
            "vmae-shard: this machine starts no more threads. Raise the limit (`ulimit -u`), or end other programs",
        ),
    ],
)
def test_an_import_that_fails_is_one_line_that_names_the_module(
    body: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "heavy.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "argv", ["vmae-shard", "use"])
    monkeypatch.delitem(sys.modules, "heavy", raising=False)

    def use() -> None:
        importlib.import_module("heavy").work()

    with pytest.raises(SystemExit) as end, restored_handlers():
        run_app(new_app("vmae-shard", "", "0", (use, use)), "vmae-shard")
    assert (end.value.code, capsys.readouterr().err) == (1, f"{line}\n")
    monkeypatch.delitem(sys.modules, "heavy", raising=False)


def test_a_command_without_its_packages_is_one_line(tmp_path: Path) -> None:
    for package, module, words in (
        ("vmae_train", "torch", ("pretrain", "--recipe", "pretrain/demo", "--data", "a", "--out", "b")),
        ("vmae_data", "pyarrow", ("verify", "a")),
    ):
        (tmp_path / f"{module}.py").write_text(f"raise ImportError('lib{module}.so: failed to map', name='lib')")
        done = run_command(package, *words, status=1, env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"})
        assert f"can't import {module} (lib{module}.so: failed to map)" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


def test_an_error_of_the_system_is_one_line_that_names_the_file(demo_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = call_command("vmae_data", "build", demo_videos, tmp_path / "file" / "in", "--quiet", status=2)
    assert f"{tmp_path / 'file'}: is a file. Name a folder" in done.stderr
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    done = call_command("vmae_data", "build", demo_videos, tmp_path / "out", "--quiet", status=1)
    assert ".lock" in done.stderr
    assert done.stderr.count("\n") == 1
    assert call_command("vmae_data", "build", "new\nline", status=2).stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("vmae_data", "demo", "s3://bucket/demo"),
        ("vmae_data", "inspect", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_data", "audit", "shards", "--out", "s3://bucket/rows.csv"),
        ("vmae_data", "audit", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_train", "pretrain", *RUN, "--scratch", "s3://bucket/scratch"),
        ("vmae_train", "convert", "run", "s3://bucket/model", "--to", "native"),
        ("vmae_train", "convert", "run", "model", "--to", "native", "--classes", "s3://bucket/names"),
    ],
)
def test_a_url_instead_of_a_path_makes_no_folder_of_its_name(words: tuple[str, ...], tmp_path: Path) -> None:
    done = call_command(*words, status=2, cwd=tmp_path)
    assert "is not a path of this machine" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
