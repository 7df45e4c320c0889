"""docs/tutorial.ipynb, with fewer videos and steps."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "tutorial.ipynb"


def _cells(kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == kind]


@pytest.mark.slow
def test_the_notebook_runs_from_a_folder_of_videos_to_features(tmp_path: Path) -> None:
    code = "\n".join(_cells("code"))
    code, videos = re.subn("num_videos=[0-9]+", "num_videos=24", code)
    code, steps = re.subn("train.steps=[0-9]+", "train.steps=6", code)
    assert (videos, steps) == (1, 2)
    # Only a notebook shows what this gives.
    code = code.replace("from IPython.display import Image", "Image = dict")
    code = f'import matplotlib\nmatplotlib.use("Agg")\n{code}'
    environment = {**os.environ, "PYTHONPATH": str(NOTEBOOK.parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code],  # as in a notebook, no file is the main module, which workers would import
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "(8, 192)" in done.stdout
    assert (tmp_path / "masked.png").exists()


def test_the_notebook_has_its_outputs_and_its_links_exist() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] == number for number, cell in enumerate(cells, 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])
    for name in re.findall(r"\]\(([^)]+)\)", "\n".join(_cells("markdown"))):
        assert (NOTEBOOK.parent / name).exists(), name
