"""The tools of `python -m tools.ROOM.NAME`: none is broken by a name that moved."""

from __future__ import annotations

import importlib
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "tools").rglob("*.py"))
COMMANDS = [module for module in MODULES if "\nif __name__ ==" in (ROOT / f"{module.replace('.', '/')}.py").read_text()]


@pytest.mark.parametrize("module", COMMANDS)
def test_a_tool_explains_itself(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [module, "--help"])
    with pytest.warns(RuntimeWarning) if module in sys.modules else nullcontext(), pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES)
def test_a_tool_can_be_imported(module: str) -> None:
    importlib.import_module(module)
