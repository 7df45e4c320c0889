"""Workers that fail or die before they accept work."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.soak.faults.fault_run import Ended, Result, Workspace, after, command, run

__all__ = ["worker_starts"]

_BUILD = """\
from pathlib import Path
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.progress import ProgressStyle
from vmae_data.recipes import load_recipe

def build():
    spec = load_recipe("vmae_data", "demo", BuildSpec, ["samples_per_shard=8"])
    build_shards("VIDEOS", Path("DEST"), spec, workers=2, style=ProgressStyle.QUIET)

"""
# Scripts that call a build, and the last words of the error.
_GUARD, _FILE = '`if __name__ == "__main__":`', "Save it as a file, and run that"
_SCRIPTS = (
    ("a script without a guard", _BUILD + "build()\n", _GUARD),
    ("a script without a guard, which catches errors", _BUILD + "try: build()\nexcept TypeError: pass\n", _GUARD),
    (
        "a script that raises when it is imported",
        _BUILD + 'if __name__ != "__main__": raise KeyError(1)\nbuild()\n',
        _GUARD,
    ),
    ("a script that exits when it is imported", _BUILD + 'if __name__ != "__main__": exit(3)\nbuild()\n', "(status 3)"),
)
# Python runs this file in each process before anything else. The worker that makes the file is healthy.
_IN_WORKERS = """\
import os, signal, sys
if "spawn_main" in " ".join(sys.orig_argv):
    try:
        os.open(os.environ["VMAE_SOAK_FIRST"], os.O_CREAT | os.O_EXCL)
    except OSError:
        DEATH
"""
_DEATHS = (
    ("ends with status 7", "os._exit(7)", "(status 7)"),
    ("is killed", "os.kill(os.getpid(), signal.SIGKILL)", "(signal 9)"),
    ("is aborted", "os.kill(os.getpid(), signal.SIGABRT)", "(signal 6)"),
)


def worker_starts(workspace: Workspace) -> Iterator[Result]:
    folder, told = workspace.dest("starts"), "status 1, the cause in one line"
    expected = f"{told}; a build resumes to the same bytes"
    folder.mkdir()
    for name, text, words in _SCRIPTS:
        dest = workspace.dest("starts-dest")
        script = folder / "script.py"
        script.write_text(text.replace("VIDEOS", str(workspace.videos)).replace("DEST", str(dest)))
        yield after(workspace, dest, name, expected, _last_line(run([sys.executable, str(script)])), 1, words)
        if words == _GUARD:
            ended = _last_line(run(["sh", "-c", f"exec {sys.executable} - < {script}"]))
            yield after(workspace, dest, f"{name}, from standard input", expected, ended, 1, _FILE)
    for name, death, words in _DEATHS:
        (folder / "sitecustomize.py").write_text(_IN_WORKERS.replace("DEATH", death))
        for first, marker in (("every worker", folder), ("the second worker", folder / "first")):
            dest = workspace.dest("starts-dest")
            ended = run(command(workspace.videos, dest), **_settings(folder, marker))
            yield after(workspace, dest, f"{first} {name}", expected, ended, 1, words)
            (folder / "first").unlink(missing_ok=True)
        for verb in ("verify", "audit"):
            words_of = [sys.executable, "-m", "vmae_data.cli", verb, str(workspace.undisturbed)]
            ended = run(words_of, **_settings(folder, folder))
            right = ended.status == 1 and "\n" not in ended.words and words in ended.words
            yield Result(f"{verb}: every worker {name}", told if right else str(ended), told, right)


def _last_line(ended: Ended) -> Ended:
    """Without the tracebacks of Python, of the workers and of the script."""
    return ended._replace(words=ended.words.splitlines()[-1])


def _settings(folder: Path, first: Path) -> dict[str, str]:
    path = os.pathsep.join((str(folder), *filter(None, [os.environ.get("PYTHONPATH")])))
    return {"PYTHONPATH": path, "VMAE_SOAK_FIRST": str(first)}
