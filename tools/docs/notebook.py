"""A notebook as a page: its texts, its code and what the code printed and drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def page(path: Path) -> str:
    cells = json.loads(path.read_text("utf-8"))["cells"]
    return "\n\n".join(part for cell in cells for part in _parts(cell)) + "\n"


def _parts(cell: dict[str, Any]) -> list[str]:
    source = _text(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [_block(source, "python"), *(_output(output) for output in cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![{_text(data['text/plain'])}](data:image/png;base64,{_text(data['image/png']).replace(chr(10), '')})"
    return _block(_text(output.get("text", data.get("text/plain", ""))), "text")


def _block(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"


def _text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)
