"""Misuse, signals, special files and missing packages: a command says what is wrong in one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import call_command, restored_handlers, run_command
from vmae_data.console import new_app, run_app

pytestmark = pytest.mark.processes


RUN = ("--recipe", "pretrain/demo", "--data", "shards", "--out", "s3://bucket/run")


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
        (["build"], "SOURCE is missing (see --help)"),
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
        (["build", "VIDEOS", "OUT", "--nonsense"], "--nonsense: no such option (see --help)"),
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
    done = call_command("vmae_data", *filled, "--quiet", status=2)
    assert error in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "vmae_data build a b --executor rey",
            "--executor rey: expected one of: local, ray. Did you mean ray? (see --help)",
        ),
        (
            "vmae_train embed a b --out c.npz --pool SLIZE",
            "--pool SLIZE: expected one of: mean, slice, none. Did you mean slice? (see --help)",
        ),
        (
            "vmae_train reconstruct a --data b --out c.png --mask tube --mask tub",
            "--mask tub: expected one of: tube, random, frame, motion. Did you mean tube? (see --help)",
        ),
        (
            "vmae_train convert a b --to natif",
            "--to natif: expected one of: native, official, hf. Did you mean native? (see --help)",
        ),
        (
            "vmae_train finetune --recipe demo --data a --val b --out c --probe liner",
            "--probe liner: expected one of: linear, attentive. Did you mean linear? (see --help)",
        ),
        ("vmae_train convert a b --to zip", "--to zip: expected one of: native, official, hf (see --help)"),
        ("vmae_train convert a b", "--to is missing: expected one of: native, official, hf (see --help)"),
        (
            "vmae_train pretrain -q --recipe demo --data a --out b --set mask.kind=tub",
            "recipe pretrain/demo: mask.kind = tub: expected one of: frame, motion, random, tube. Did you mean tube?",
        ),
        (
            "vmae_train pretrain -q --recipe demo --data a --out b --set model.size=b",
            "recipe pretrain/demo: model.size = b: expected one of: B, H, L, S, g, tiny. Did you mean B?",
        ),
        (
            "vmae_train plan -q --recipe pretrain/demo --gpus 1 --gpu RTX490 --cores 1 --store-gbps 1",
            "--gpu RTX490: expected one of: T4, V100, A10, A5000, A6000, A100, L4, L40S, RTX4090, H100, H200, B200, cpu. "
            "Did you mean RTX4090?",
        ),
        ("vmae_data buid a b", "buid: no such command. Did you mean build? (see --help)"),
        ("vmae_train pretran", "pretran: no such command. Did you mean pretrain? (see --help)"),
        ("vmae_train xyz", "xyz: no such command (see --help)"),
        ("vmae_data build a b --workrs 3", "--workrs: no such option. Did you mean --workers? (see --help)"),
        ("vmae_train report a b c --out x.html", "b c: too many arguments. The command takes RUN (see --help)"),
        ("vmae_data doctor a b", "b: too many arguments. The command takes DEST (see --help)"),
        ("vmae_data build a b --workers x", "--workers: expected a whole number, 1 to 1024 (see --help)"),
        ("vmae_data build a b --val-share x", "--val-share: expected a number (see --help)"),
        (
            "vmae_train reconstruct a --data b --out c.png --ratio 2",
            "--ratio: expected a number, 0 to 1 (see --help)",
        ),
        ("vmae_train embed a b --out c.npz --layer 0", "--layer: expected a whole number, 1 or more (see --help)"),
    ],
)
def test_a_wrong_value_is_answered_with_the_choices_and_a_similar_one(words: str, line: str, tmp_path: Path) -> None:
    done = call_command(*words.split(), status=2, cwd=tmp_path)
    name = "vmae-shard" if words.startswith("vmae_data") else "vmae-train"
    assert done.stderr == f"{name}: {line}\n"


FEED = "vmae_train feed --recipe pretrain/demo --data D"
PRETRAIN = "vmae_train pretrain --recipe pretrain/demo --data D --out OUT"
AGAIN = "Run the same command again to resume"
LOST = "This command saved nothing"


@pytest.mark.parametrize(
    ("words", "work", "saved"),
    [
        (FEED, "vmae_train.feed.feed", LOST),
        (f"{PRETRAIN} --dry-run", "vmae_train.training.dry_run.dry_run_report", LOST),
        (PRETRAIN, "vmae_train.pretrain.pretrain", LOST),
        ("vmae_data build VIDEOS OUT --dry-run", "vmae_data.estimate.estimate_build", LOST),
        ("vmae_data build VIDEOS OUT", "vmae_data.build.find_sources", LOST),
        ("vmae_data build VIDEOS OUT", "vmae_data.build._encode_and_pack", f"0 of 30 videos are done in OUT. {AGAIN}"),
        ("vmae_data merge OUT", "vmae_data.shards.merge.merge_parts", f"The shards in OUT are kept. {AGAIN}"),
        ("vmae_data demo OUT", "vmae_data.demo.videos.plan_scenes", LOST),
        ("vmae_data demo OUT", "vmae_data.demo.videos._in_processes", f"0 of 800 videos are in OUT. {AGAIN}"),
    ],
)
def test_a_stopped_command_says_what_it_saved(
    words: str, work: str, saved: str, demo_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    names = {"VIDEOS": demo_videos, "OUT": tmp_path / "out"}
    done = call_command(*(names.get(word, word) for word in words.split()), status=130)
    assert done.stderr.splitlines()[-1].endswith(f": stopped. {saved.replace('OUT', str(tmp_path / 'out'))}")


@pytest.fixture
def special_files(tmp_path: Path) -> Iterator[Path]:
    """A folder with a pipe, a socket, a device and a folder. Whoever waits for the pipe fails the test."""

    def interrupt(*_: object) -> None:
        pytest.fail("it waits for a pipe")  # no OSError, which a command reports as a file that can't be read

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
        done = call_command(*(names.get(word, word) for word in words.split()), "--quiet", status=2)
        assert f"{kind}.toml" in done.stderr and done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("build NOWHERE OUT", "finding the videos …"),
        ("build NOWHERE OUT --dry-run", "finding the videos …"),
        ("demo FILE", "demo videos: 0 of 800 …"),
        ("merge OUT", "merging the parts …"),
        ("verify NOWHERE", "verifying the shards …"),
        ("audit NOWHERE", "auditing the shards …"),
        ("inspect NOWHERE", "reading the data set …"),
    ],
)
def test_a_command_says_through_a_pipe_what_it_does_unless_silence_is_asked_for(
    words: str, line: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    names = {"NOWHERE": tmp_path / "nowhere", "OUT": tmp_path / "out", "FILE": tmp_path / "file"}
    for more, lines in (([], [line]), (["-q"], []), (["--json"], [])):
        done = call_command("vmae_data", *(names.get(word, word) for word in words.split()), *more, status=2)
        *told, error = done.stderr.splitlines()
        assert (told, error.startswith("vmae-shard: "), done.stdout) == (lines, True, "")


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
        ("vmae_train", "torch", ("pretrain", "--recipe", "pretrain/demo", "--data", "a", "--out", "b", "-q")),
        ("vmae_data", "pyarrow", ("verify", "a", "-q")),
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
    assert call_command("vmae_data", "build", "new\nline", "-q", status=2).stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ("vmae_data", "demo", "s3://bucket/demo"),
        ("vmae_data", "inspect", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_data", "audit", "shards", "--out", "s3://bucket/rows.csv"),
        ("vmae_data", "audit", "shards", "--html", "s3://bucket/page.html"),
        ("vmae_train", "pretrain", *RUN, "--scratch", "s3://bucket/scratch"),
        ("vmae_train", "convert", "run", "s3://bucket/model", "--to", "native"),
        ("vmae_train", "export", "run", "--out", "s3://bucket/model"),
        ("vmae_train", "predict", "run", "video.mp4", "--out", "s3://bucket/rows.csv"),
        ("vmae_train", "embed", "run", "videos", "--out", "s3://bucket/rows.npz"),
        ("vmae_train", "convert", "run", "model", "--to", "native", "--classes", "s3://bucket/names"),
    ],
)
def test_a_url_instead_of_a_path_makes_no_folder_of_its_name(words: tuple[str, ...], tmp_path: Path) -> None:
    done = call_command(*words, status=2, cwd=tmp_path)
    assert "is not a path of this machine. Name a local path" in done.stderr and done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
