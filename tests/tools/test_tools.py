"""The tools of `python -m tools.ROOM.NAME`: none is broken by a name that moved."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "tools").rglob("*.py"))


@pytest.mark.parametrize("module", MODULES)
def test_a_tool_can_be_imported(module: str) -> None:
    importlib.import_module(module)
