"""The pages that are generated for the site name all there is, and the site builds without a warning."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

import vmae_data
import vmae_train
from tools.docs import commands, drawing, notebook, python_names, recipe_keys
from vmae_data.commands.app import app as shard_app
from vmae_data.encode.build_spec import BuildSpec
from vmae_train.commands.app import app as train_app
from vmae_train.finetune import FinetuneSpec
from vmae_train.pretrain import PretrainSpec

ROOT = Path(__file__).parents[2]
APPS = {"shard": shard_app, "train": train_app}
PAGES = {"shard": commands.shard_page, "train": commands.train_page}
SPECS = {"build": BuildSpec, "pretrain": PretrainSpec, "finetune": FinetuneSpec}
NAMES = ("Embedder", "Predictor", "load_model", "read_clips", "reconstruct")


def _commands(program: str) -> dict[str, Any]:
    group: Any = typer.main.get_command(APPS[program])
    return dict(group.commands)


def _leaves(spec: type, path: str) -> Iterator[str]:
    """The keys of a recipe that hold no table, such as `mask.ratio`."""
    for field in msgspec.structs.fields(spec):
        name = f"{path}.{field.encode_name}".strip(".")
        options = getattr(field.type, "__args__", (field.type,))
        tables = [one for one in options if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        yield from _leaves(tables[0], name) if tables else [name]


def _anchors(kind: str) -> set[str]:
    """What a link to each key of a recipe ends in. Those of no table start with the kind of the recipe."""
    keys = set(_leaves(SPECS[kind], ""))
    return {f"{kind}.{key}" if kind == "build" or "." not in key else key for key in keys}


@pytest.mark.parametrize("program", APPS)
def test_every_command_and_each_of_its_options_has_an_entry(program: str) -> None:
    text = PAGES[program]()
    entries = dict(re.findall(rf"^## vmae-{program} (\S+)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    assert set(entries) == set(_commands(program))
    for name, command in _commands(program).items():
        for param in command.params:
            names = (param.metavar,) if param.param_type_name == "argument" else (*param.opts, *param.secondary_opts)
            assert all(f"`{one}`" in entries[name] for one in names), f"{name}: {names}"


def test_an_entry_says_what_the_help_says() -> None:
    text = commands.shard_page()
    assert "```\nvmae-shard build [OPTIONS] SOURCE [DEST]\n```" in text
    assert "| `--recipe` `NAME|FILE` | Use a recipe: a name from `vmae-shard recipes`, or a TOML file." in text
    assert "or on a Ray cluster (pip install 'vmae\\[ray]'). \\[default: local] |" in text
    assert "([docs/storage.md](storage.md))" in text
    assert "vmae-shard build videos shards/mine --append\n```" in text


@pytest.mark.parametrize("kind", SPECS)
def test_every_key_of_a_recipe_has_an_entry(kind: str) -> None:
    named = re.findall(r'<code id="(\S+)">', recipe_keys.page())
    assert len(named) == len(set(named))
    assert not _anchors(kind) - set(named)


def test_a_key_has_its_values_its_default_and_its_note() -> None:
    text = recipe_keys.page()
    assert '| <code id="build.crf">crf</code> | integer | `23` | of h264 |' in text
    assert '| <code id="mask.ratio">ratio</code> | number | `0.9` | share of the tokens that is masked |' in text
    assert '| <code id="train.batch">batch</code> | integer | `required` |' in text
    assert "`kind`: `tube` masks the same patches in every slice" in text


def test_every_key_has_a_note() -> None:
    keys = [key for spec in SPECS.values() for table in recipe_keys.tables(spec) for key in table.keys]
    assert len(keys) > 150
    assert not {key.path for key in keys if not key.comment}


def test_the_public_python_names_have_an_entry() -> None:
    names = python_names.names()
    assert {f"vmae_train.{name}" for name in NAMES} | {"vmae_data.Shards"} <= set(names)
    assert all(getattr(*_parts(name)).__doc__ for name in names)


def _parts(name: str) -> tuple[Any, str]:
    package, _, member = name.partition(".")
    return {"vmae_data": vmae_data, "vmae_train": vmae_train}[package], member


def test_a_notebook_is_its_texts_code_and_output() -> None:
    text = notebook.page(ROOT / "docs" / "tutorial.ipynb")
    assert text.startswith("# ")
    assert "````python\n" in text and "````text\n" in text and "](data:image/png;base64,iVBOR" in text


def _build(site: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """What `make docs` does, into another folder."""
    if any(importlib.util.find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")):
        pytest.skip("mkdocs is not installed: pip install -c constraints.txt -e '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), *options]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.processes
def test_a_dead_link_and_a_page_outside_the_navigation_are_errors(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    shutil.copytree(ROOT / "docs", docs)
    (docs / "extra.md").write_text("# Extra\n\n[a](nowhere.md) [b](gap.md#no-such-heading)\n")
    config = {"INHERIT": str(ROOT / "mkdocs.yml"), "docs_dir": str(docs), "hooks": [str(ROOT / "tools/docs/hooks.py")]}
    (tmp_path / "mkdocs.yml").write_text(json.dumps(config))
    built = _build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert built.returncode == 1
    warnings = re.findall(r"^WARNING +- +(.*(?:\n +- .*)*)", built.stderr, re.MULTILINE)
    assert len(warnings) == 3
    for words in (r'not included in the "nav"[^-]*- extra\.md', "'nowhere.md'", "'gap.md#no-such-heading'"):
        assert any(re.search(words, warning) for warning in warnings), words


def test_make_docs_builds_as_these_tests_do() -> None:
    assert "python -m mkdocs build --strict\n" in (ROOT / "Makefile").read_text("utf-8")


@pytest.mark.processes
def test_the_site_is_complete_and_needs_no_network(tmp_path: Path) -> None:
    """One test, because the build takes some seconds."""
    built = _build(tmp_path)
    assert built.returncode == 0, built.stdout + built.stderr
    _check_anchors(tmp_path)
    sources = [path for folder in (ROOT / "docs", ROOT) for path in folder.glob("*.md") if path.name != "README.md"]
    pages = {path.stem.lower() for path in sources} | {"index", "tutorial-notebook"}
    assert not pages - {path.stem for path in tmp_path.glob("*.html")}
    for page in tmp_path.glob("*.html"):
        tags = re.findall(r"<(?:link|script|img|iframe|source)\b[^>]*>", page.read_text("utf-8"))
        assert len(tags) > 3
        assert not [tag for tag in tags if re.search(r'(?:src|href)="?(?:https?:)?//', tag)], page.name
        assert "mermaid" not in page.read_text("utf-8"), page.name
    assert (tmp_path / "search" / "search_index.js").read_text("utf-8").startswith("var __index = {")
    assert (tmp_path / "assets" / "iframe-worker.js").is_file()


def _check_anchors(site: Path) -> None:
    expected = {f"commands-{one}": {f"vmae-{one}-{name}" for name in _commands(one)} for one in APPS}
    expected["recipe-keys"] = {anchor for kind in SPECS for anchor in _anchors(kind)}
    expected["python"] = set(python_names.names())
    for page, anchors in expected.items():
        assert not anchors - set(re.findall(r'\bid="([^"]+)"', (site / f"{page}.html").read_text("utf-8"))), page


CHART = """# A
```mermaid
flowchart LR
    A[(videos)] --> B["find <i><br/>find.py"]
    B --> C[plan]
    B -. a bad source .-> D[failures]
```
"""


def test_a_chart_is_a_picture_with_all_its_boxes_and_arrows() -> None:
    picture = drawing.draw_charts(CHART)
    assert picture.startswith("# A\n<svg ") and "mermaid" not in picture
    words = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    assert words == ["a bad source", "videos", "find &lt;i&gt;", "find.py", "plan", "failures"]
    assert picture.count("marker-end") == 3 and picture.count("stroke-dasharray") == 1
    boxes = [tuple(map(float, box)) for box in re.findall(r'<rect x="(\S+)" y="(\S+)"', picture)]
    assert [row for _, row in boxes] == [1, 87, 173, 173] and boxes[2][0] < boxes[3][0]


@pytest.mark.parametrize("line", ["A ==> B", "A{choice} --> B"])
def test_a_line_of_a_chart_that_is_not_read_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="of a flowchart is not read"):
        drawing.draw_charts(f"```mermaid\nflowchart LR\n{line}\n```\n")
