"""Hooks of mkdocs: the navigation is README's table of pages, and pages of reference are generated from the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tools.docs import commands, drawing, notebook, python_names, recipe_keys, shown

ROOT = Path(__file__).parents[2]
ROW = re.compile(r"^\| ([a-z ]+) \| (\[.*\)) \|$", re.MULTILINE)
ROW_OF_TABLE = re.compile(r"^\|.*$", re.MULTILINE)
LINK = re.compile(r"\[([^]]+)\]\(([^)]+)\)")
# Files of the repository's root that are pages of the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
# Pages that have no file in docs/: their title in the navigation, and what makes their text.
GENERATED = {
    "commands-shard.md": ("Commands of vmae-shard", commands.shard_page),
    "commands-train.md": ("Commands of vmae-train", commands.train_page),
    "recipe-keys.md": ("Keys of recipes", recipe_keys.page),
    "python.md": ("Python names", python_names.page),
}
ASSETS = ("iframe-worker.js", "site.css")
NOTEBOOK, NOTEBOOK_PAGE = "tutorial.ipynb", "tutorial-notebook.md"


def on_config(config: Any) -> Any:
    """The navigation: the start page, a section for each row of README's table, and the changelog."""
    rows = ROW.findall(_read("README.md"))
    sections = {kind: [{_upper(name): _page(path)} for name, path in LINK.findall(cell)] for kind, cell in rows}
    sections["reference"] += [{title: path} for path, (title, _) in GENERATED.items()]
    config.nav = [
        {"Start": "index.md"},
        *({_upper(kind): pages} for kind, pages in sections.items()),
        {"Changes": "changelog.md"},
    ]
    config.watch += [str(ROOT / name) for name in ("README.md", "CHANGELOG.md", "vmae_data", "vmae_train")]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that have no file in docs/."""
    pages = {path: make() for path, (_, make) in GENERATED.items()}
    pages |= {path: _inside(_read(name)) for name, path in ROOT_PAGES.items()}
    pages[NOTEBOOK_PAGE] = notebook.page(ROOT / "docs" / NOTEBOOK)
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    for name in ASSETS:
        files.append(File.generated(config, f"assets/{name}", abs_src_path=str(ROOT / "tools/docs/assets" / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the root and to the notebook lead to their pages. Charts become pictures. Commands get marks."""
    markdown = shown.mark_blocks(drawing.draw_charts(markdown), page.file.src_uri)
    for name, path in ROOT_PAGES.items():
        markdown = re.sub(rf"\]\(\.\./{name}(?=[)#])", f"]({path}", markdown)
    markdown = ROW_OF_TABLE.sub(_pipes_in_code, markdown)
    return markdown.replace(f"]({NOTEBOOK})", f"]({NOTEBOOK_PAGE})")


def _inside(text: str) -> str:
    """A page of the repository's root as a page of the site: links into docs/ lose the folder.

    A link to another file of the repository becomes its text, because the site has no such page.
    """
    text = text.replace("](docs/", "](")
    for name, path in ROOT_PAGES.items():
        text = re.sub(rf"\]\({name}(?=[)#])", f"]({path}", text)
    return re.sub(r"\[([^]]+)\]\(([^)#:]+)\)", lambda link: _linked(link[0], link[1], link[2]), text)


def _linked(link: str, name: str, target: str) -> str:
    is_other_file = (ROOT / target).exists() and not (ROOT / "docs" / target).exists()
    return name if is_other_file else link


def _pipes_in_code(row: re.Match[str]) -> str:
    """In the code of a table, GitHub needs an escaped pipe. Python-Markdown would show the escape."""
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])


def _page(path: str) -> str:
    """The page that README's link leads to."""
    path = ROOT_PAGES.get(path, path.removeprefix("docs/"))
    return NOTEBOOK_PAGE if path == NOTEBOOK else path


def _upper(text: str) -> str:
    return text[0].upper() + text[1:]


def _read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")
