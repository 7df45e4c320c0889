"""Errors of one line that refuse malicious data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmae_data.errors import DataError, VmaeError

__all__ = ["data_refusal", "edit_json", "refusal"]


def data_refusal(call: Callable[[], Any]) -> str:
    """The text of a DataError."""
    return refusal(call, DataError)


def refusal(call: Callable[[], Any], error: type[VmaeError] = VmaeError) -> str:
    """The text of the error that the call raises."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert "\x00" not in text
    assert len(text) < 600
    return text


def edit_json(path: Path, **changes: object) -> None:
    """Change values of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
