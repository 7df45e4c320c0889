from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import Shards
from vmae_data.verify.verify import verify_shards

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "shards" / "example"


def test_the_example_is_small_and_complete() -> None:
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 1_000_000
    assert verify_shards(EXAMPLE, workers=1, style=ProgressStyle.QUIET).problems == ()
    assert len(Shards.open(str(EXAMPLE))) == 16


@pytest.mark.parametrize(
    "line", re.findall(r"^\$ (tar .*?)(?: *\||  +#|$)", (ROOT / "shards" / "README.md").read_text(), re.M)
)
def test_the_tar_commands_of_the_readme_run(line: str) -> None:
    words = shlex.split(line.split(">")[0])
    assert subprocess.run(words, cwd=ROOT, capture_output=True, check=True).stdout
