from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.text import Text

from tests.command import run_command


@pytest.mark.parametrize(
    "code",
    [
        "import vmae_data.cli, typer.testing as t; t.CliRunner().invoke(vmae_data.cli.app, ['--help'])",
        "import vmae_data.cli, typer.testing as t; t.CliRunner().invoke(vmae_data.cli.app, ['build', '--help'])",
        "import vmae_train.cli, typer.testing as t; t.CliRunner().invoke(vmae_train.cli.app, ['pretrain', '--help'])",
        "import vmae_data.encode.encode_source, vmae_data.shards.pack, vmae_data.build, vmae_data.demo.videos",
        "import vmae_data.read.stream, vmae_data.verify.verify, vmae_data.inspect.inspect, vmae_data.audit.audit_page",
        "import vmae_train, vmae_train.clips, vmae_train.clips.frame_sampling",
        "from vmae_data import Shards",
    ],
)
def test_torch_stays_out(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "False"


def test_help_imports_the_command_line_and_nothing_else_of_ours() -> None:
    code = (
        "import sys, vmae_data.cli, typer.testing as t\n"
        "assert not t.CliRunner().invoke(vmae_data.cli.app, ['build', '--help']).exit_code\n"
        "print(*sorted(name for name in sys.modules if name.startswith('vmae')))\n"
        "print(*sorted({'msgspec', 'numpy', 'pyarrow', 'av', 'PIL', 'ffmpeg', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, heavy = done.stdout.splitlines()
    rooms = ["", ".build", ".check", ".report", ".start"]
    commands = [f"vmae_data.commands{room}" for room in rooms]
    assert ours.split() == ["vmae_data", "vmae_data.cli", *commands, "vmae_data.console", "vmae_data.errors"]
    assert heavy == ""


@pytest.mark.parametrize("package", ["vmae_data", "vmae_train"])
def test_no_bracket_of_a_help_text_is_taken_for_markup(package: str) -> None:
    """The help is shown by rich, for which [ray] is a style; a backslash before it says that it isn't."""
    root: Any = typer.main.get_command(importlib.import_module(f"{package}.cli").app)
    texts = [command.help or "" for command in root.commands.values()]
    texts += [getattr(option, "help", None) or "" for command in root.commands.values() for option in command.params]
    assert len(texts) > 20
    for text in texts:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


def test_a_build_in_processes_of_its_own_loads_torch_only_to_pack(demo_videos: Path, tmp_path: Path) -> None:
    """The encode workers' command line holds no torch: their memory maps say so."""
    code = (
        "import sys\n"
        "from vmae_data.processes import Pool, next_finished\n"
        "from tests.data.test_cli import loaded_modules\n"
        "from vmae_data.encode.encode_source import encode_source\n"
        "if __name__ == '__main__':\n"
        "    with Pool(1) as pool:\n"
        "        pool.submit(0, loaded_modules)\n"
        "        print('torch' in next_finished((pool,)).result)\n"
    )
    script = tmp_path / "look.py"
    script.write_text(code)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "False"


def loaded_modules() -> list[str]:
    return list(sys.modules)


@pytest.mark.parametrize("program", ["vmae_data", "vmae_train"])
def test_the_version_is_one_line(program: str) -> None:
    assert run_command(program, "--version").stdout.strip().split()[-1] == "0.1.0"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["build", "NOWHERE"], "neither a folder"),
        (["build", "VIDEOS", "OUT", "--recipe", "k401"], "known:"),
        (["build", "VIDEOS", "OUT", "--set", "strid=1"], "strid: no such key"),
        (["build", "VIDEOS", "OUT", "--classes", "NOWHERE"], "can't be read"),
        (["build", "ftp://host/x", "OUT"], "unknown scheme"),
        (["build", "VIDEOS", "http://127.0.0.1:9/x"], "web server can't be written to"),
        (["verify", "OUT", "--storage-option", "nonsense"], "expected KEY=VALUE"),
        (["build", "VIDEOS", "OUT", "--split", "foo"], "expected train, val or test"),
        (["build", "VIDEOS", "OUT", "--max-failures=-1"], "expected a number"),
        (["build"], "Missing argument"),
        (["build", ""], "SOURCE is empty"),
        (["build", "VIDEOS", ""], "DEST is empty"),
        (["build", "VIDEOS", "OUT", "--classes", ""], "--classes is empty"),
        (["build", "VIDEOS", "OUT", "--annotations", ""], "--annotations is empty"),
        (["build", "VIDEOS", "OUT", "--ffmpeg", ""], "--ffmpeg is empty"),
        (["build", "VIDEOS", "OUT", "--staging", ""], "an empty argument, where a path is wanted"),
        (["merge", ""], "DEST is empty"),
        (["build", "VIDEOS", "OUT", "--nonsense"], "No such option"),
        (["build", "VIDEOS", "OUT", "--workers", "0"], "--workers"),
        (["build", "VIDEOS", "FILE"], "is a file. Name a folder"),
        (["merge", "FILE"], "is a file; name the folder"),
        (
            ["build", "VIDEOS", "OUT", "--ffmpeg", "/bin/ls"],
            "/bin/ls: is no ffmpeg that runs here (it answers -version",
        ),
        (["build", "VIDEOS", "OUT", "--ffmpeg", "/bin/echo"], "/bin/echo: is no ffmpeg, its answer to -version begins"),
        (["build", "VIDEOS", "OUT", "--ffmpeg", "NOWHERE"], "is no ffmpeg that runs here (No such file or directory)"),
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
        (["audit", "VIDEOS", "--set", "duplicates.foo=1"], "duplicates.foo: no such key; the keys there: "),
        (
            ["audit", "VIDEOS", "--set", 'exclude=["foo"]'],
            "one of: black, blurred, duplicate, frozen, leak, many-cuts, near-static, static, unreadable",
        ),
        (["build", "VIDEOS", "OUT", "--set", "longest_seconds=inf"], "longest_seconds = inf: expected seconds above 0"),
        (["build", "VIDEOS", "OUT", "--set", "longest_seconds=nan"], "longest_seconds = nan: expected seconds above 0"),
        (["build", "VIDEOS", "OUT", "--set", "longest_seconds=-1"], "longest_seconds = -1.0: expected seconds above 0"),
    ],
)
def test_misuse_is_one_line_with_status_2(words: list[str], says: str, demo_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    names = {
        "NOWHERE": str(tmp_path / "nowhere"),
        "VIDEOS": str(demo_videos),
        "OUT": str(tmp_path / "out"),
        "FILE": str(tmp_path / "file"),
    }
    filled = [re.sub("^(NOWHERE|VIDEOS|OUT|FILE)", lambda found: names[found[0]], word) for word in words]
    quiet = [] if words[0] == "inspect" else ["--quiet"]
    done = run_command("vmae_data", *filled, *quiet, status=2)
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_json_gives_one_object_a_line(demo_videos: Path, tmp_path: Path) -> None:
    done = run_command("vmae_data", "build", demo_videos, tmp_path / "out", "--recipe", "demo", "--json")
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["samples"] >= 24
    for progress in done.stderr.splitlines():
        if progress.startswith("{"):
            assert json.loads(progress)["total"] == 30


def test_a_build_ends_with_a_table_and_its_failures_in_the_last_line(demo_videos: Path, tmp_path: Path) -> None:
    """Its JSON tells the same: sizes against the sources, what this run did, and how long it took."""
    words = ("vmae_data", "build", demo_videos, tmp_path / "out", "--recipe", "demo")
    first = run_command(*words)
    told = json.loads(run_command(*words, "--json").stdout)
    failed = sum(told["failures"].values())
    assert failed
    assert first.stdout.splitlines()[-1].startswith(
        f"{tmp_path / 'out'}: {told['samples']} of {told['samples'] + failed} videos; {failed} failed, listed in"
    )
    for reason, count in told["failures"].items():
        assert re.search(rf"failed: {reason} *│ {count} ", first.stdout), reason
    assert f"{100 * told['bytes'] / told['source_bytes']:.3g} %" in first.stdout
    assert re.search(r"30 in this run, [\d.]+/s", first.stdout)
    assert re.search(r"[\d.]+ MB/s", first.stdout)
    assert told["encoded"] == 0  # the second run had nothing to do
    assert told["bytes"] == sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert re.search(r"videos: 30 of 30, [\d.]+/s, 0 s left, [\d.]+ MB/s, \d+ failed", first.stderr)


def test_recipes_are_listed_and_shown_resolved() -> None:
    assert "k400" in run_command("vmae_data", "recipes").stdout
    shown = run_command("vmae_data", "recipes", "k400", "--set", "crf=20").stdout
    assert "crf = 20" in shown
    assert "stride = 4" in shown


def test_a_default_destination_is_named_after_the_source(demo_videos: Path, tmp_path: Path) -> None:
    run_command(
        "vmae_data",
        "build",
        demo_videos,
        "--recipe",
        "demo",
        "--quiet",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert (tmp_path / "shards" / "demo-videos" / "index.json").exists()


def test_a_plain_traceback_is_shown_only_on_request(tmp_path: Path) -> None:
    assert "Traceback" not in run_command("vmae_data", "build", tmp_path / "no", status=2).stderr
    assert "Traceback" in run_command("vmae_data", "build", tmp_path / "no", "--debug", status=2).stderr


def test_what_the_system_refuses_is_one_line_that_names_the_file(demo_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run_command("vmae_data", "build", demo_videos, tmp_path / "file" / "in", "--quiet", status=2)
    assert f"{tmp_path / 'file'}: is a file. Name a folder" in done.stderr
    (tmp_path / "out" / ".lock").mkdir(parents=True)
    done = run_command("vmae_data", "build", demo_videos, tmp_path / "out", "--quiet", status=1)
    assert ".lock" in done.stderr
    assert done.stderr.count("\n") == 1
    assert run_command("vmae_data", "build", "new\nline", status=2).stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("vmae_data", "demo", "s3://bucket/demo"),
        ("vmae_data", "inspect", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_data", "audit", "shards", "--out", "s3://bucket/rows.csv"),
        ("vmae_data", "audit", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_train", "convert", "run", "s3://bucket/model", "--to", "native"),
        ("vmae_train", "convert", "run", "model", "--to", "native", "--classes", "s3://bucket/names"),
    ],
)
def test_a_url_where_a_path_is_wanted_makes_no_folder_of_its_name(words: tuple[str, ...], tmp_path: Path) -> None:
    done = run_command(*words, status=2, cwd=tmp_path)
    assert "has to be a path of this machine" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
