"""What several vmae-train commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import call_command
from vmae_data.progress import ProgressStyle
from vmae_train.console import need_torch


@pytest.mark.parametrize(
    ("rank", "style", "told"),
    [
        ("0", ProgressStyle.AUTO, "loading torch …\n"),
        ("1", ProgressStyle.AUTO, ""),
        ("0", ProgressStyle.QUIET, ""),
        ("0", ProgressStyle.JSON, ""),
    ],
)
def test_the_first_process_says_why_a_command_is_silent(
    rank: str, style: ProgressStyle, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    need_torch(style)
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(
    "words",
    [
        "convert NOWHERE OUT --to native",
        "embed NOWHERE NOWHERE --out OUT",
        "evaluate NOWHERE --data NOWHERE",
        "export NOWHERE --out OUT",
        "feed --recipe pretrain/demo --data NOWHERE",
        "finetune --recipe finetune/demo --data NOWHERE --val NOWHERE --out OUT",
        "gap NOWHERE NOWHERE --init NOWHERE",
        "plan --recipe pretrain/demo --gpus 1 --gpu cpu --cores 1 --store-gbps 1",
        "predict NOWHERE NOWHERE",
        "pretrain --recipe pretrain/demo --data NOWHERE --out OUT",
        "reconstruct NOWHERE --data NOWHERE --out OUT.png",
        "report NOWHERE --out OUT",
    ],
)
def test_a_command_says_through_a_pipe_what_it_does_unless_silence_is_asked_for(words: str, tmp_path: Path) -> None:
    for more, lines in (("", ["loading torch …"]), (" -q", []), (" --json", [])):
        filled = (words + more).replace("NOWHERE", str(tmp_path / "nowhere")).replace("OUT", str(tmp_path / "out"))
        done = call_command("vmae_train", *filled.split(), status=2)
        assert (done.stderr.splitlines()[: len(lines)], done.stdout) == (lines, "")
        assert len(done.stderr.splitlines()) <= len(lines) + 2 and ("loading" in done.stderr) == bool(lines)
