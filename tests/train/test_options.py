"""What several vmae-train commands share."""

from __future__ import annotations

import io
import sys

import pytest

from vmae_train.commands.options import need_torch


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "words", "told"),
    [
        (_Terminal(), [], "loading torch …\n"),
        (_Terminal(), ["--quiet"], ""),
        (_Terminal(), ["-q"], ""),
        (io.StringIO(), [], ""),
    ],
)
def test_a_terminal_is_told_why_a_command_is_silent(
    stream: io.StringIO, words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(sys, "argv", ["vmae-train", "evaluate", *words])
    need_torch()
    assert stream.getvalue() == told
