"""A release: its version is the same everywhere, and its wheel is complete without the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from vmae_data import __version__
from vmae_data.recipes import list_recipes

ROOT = Path(__file__).parents[2]
PACKAGES = ("vmae_data", "vmae_train")
HIDDEN = shutil.ignore_patterns("__pycache__")
FOLDERS = (*PACKAGES, ".ci", "docs", "shards/example", "tests", "tools")


def test_the_version_is_the_same_everywhere() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__
    assert re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE) == [__version__]
    assert f"\n## {__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_every_lower_bound_is_in_the_table_of_tested_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["train"]]
    table = (ROOT / "docs" / "releasing.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \|", table, re.MULTILINE))
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(required), re.MULTILINE))
    assert set(rows) == set(bounds)
    for name, bound in bounds.items():
        tested = rows[name].split(".")
        assert name == "torch" or tested[: len(bound.split("."))] == bound.split("."), name


def test_the_table_of_extras_is_complete() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    rows = re.findall(r"^\| (`vmae\[.*?) \|", (ROOT / "docs" / "releasing.md").read_text(), re.MULTILINE)
    assert sorted(re.findall(r"vmae\[(\w+)\]", " ".join(rows))) == sorted(extras)


@pytest.mark.processes
def test_the_sdist_holds_what_its_tests_and_docs_need(tmp_path: Path) -> None:
    """Of a copy, because a build writes into the folder of the sources."""
    source, out = tmp_path / "source", tmp_path / "out"
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=HIDDEN)
    for path in (one for one in ROOT.iterdir() if one.is_file()):
        shutil.copy(path, source)
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.parent != source and path.is_file()}
    _run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "-o", out, source)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert len(files) > 600
    assert not files - packed
    assert {"CHANGELOG.md", "CITATION.cff", "Dockerfile", "Makefile", "constraints.txt", "mkdocs.yml"} <= packed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources, built without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=HIDDEN)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _run(
        sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index", "--no-build-isolation", "-w", out, source
    )
    return next(out.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.processes
def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith(tuple(f"{name}/" for name in PACKAGES))}
    files = {path for package in PACKAGES for path in (ROOT / package).rglob("*") if path.is_file()}
    assert packed == {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}


@pytest.mark.slow
@pytest.mark.processes
def test_the_commands_of_the_wheel_work_without_the_repository(wheel: Path, tmp_path: Path) -> None:
    bin_dir = _installed(wheel, tmp_path / "venv")
    where = "import vmae_data, vmae_train; print(vmae_data.__file__, vmae_train.__file__)"
    assert _run(bin_dir / "python", "-c", where, cwd=tmp_path).count(str(tmp_path / "venv")) == 2
    shard, train = bin_dir / "vmae-shard", bin_dir / "vmae-train"
    _run(shard, "demo", "videos", "--videos", "8", cwd=tmp_path)
    _run(shard, "build", "videos", "shards", "--recipe", "demo", "--quiet", cwd=tmp_path)
    _run(shard, "inspect", "shards", "--html", "page.html", cwd=tmp_path)
    listed = _run(train, "recipes", cwd=tmp_path)
    assert not [name for name in list_recipes("vmae_train") if name not in listed]
    settings = ("--set", "train.steps=2", "--set", "optim.warmup_steps=1")
    _run(train, "pretrain", "--recipe", "pretrain/demo", "--data", "shards", "--out", "run", *settings, cwd=tmp_path)
    assert (tmp_path / "run" / "checkpoints" / "step-000000002" / "model.safetensors").is_file()
    _run(train, "reconstruct", "run", "--data", "shards", "--out", "reconstruction.html", cwd=tmp_path)
    tune = ("finetune", "--recipe", "finetune/demo", "--data", "shards", "--val", "shards", "--init", "run")
    _run(train, *tune, "--out", "tuned", *settings, "--set", "evaluate.views=1x1", cwd=tmp_path)
    rows = _run(train, "predict", "tuned", "videos", "--html", "predictions.html", "--json", cwd=tmp_path).splitlines()
    assert len([row for row in rows if '"probabilities"' in row]) == 8
    _run(train, "embed", "tuned", "videos", "--out", "features.npz", cwd=tmp_path)
    _run(train, "report", "tuned", "--out", "report.html", cwd=tmp_path)
    _run(train, "convert", "tuned", "native", "--to", "native", cwd=tmp_path)
    pages = ("page", "reconstruction", "predictions", "report")
    assert all("</html>" in (tmp_path / f"{name}.html").read_text() for name in pages)


def _installed(wheel: Path, folder: Path) -> Path:
    """Install the wheel in a new environment. The other packages come from this one. Returns its folder of programs."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    _run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    # A .pth inside the added folder is not read, so an editable install there stays out of the path.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _run(*words: str | Path, cwd: Path | None = None) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout
