"""Arguments of the Python interface → MisuseError that names the argument, unless type and range are right.

The command line and recipes check their own values. NumPy's numbers are numbers here, booleans are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from vmae_data.errors import MisuseError

__all__ = ["MAX_BATCH", "MAX_SEED", "check_flag", "check_integer", "check_number", "check_texts", "is_integer"]

MAX_SEED = 2**63 - 1
MAX_BATCH = 1 << 16


def is_integer(value: Any) -> bool:
    """Whether it is an integer of Python or NumPy."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_integer(name: str, value: Any, low: int, high: int) -> None:
    """Raises MisuseError unless it is an integer in these bounds, both included."""
    if not is_integer(value) or not low <= value <= high:
        raise MisuseError(f"{name} = {_short(value)}: expected an integer from {low} to {high}")


def check_number(name: str, value: Any) -> None:
    """Raises MisuseError unless it is a number. It may be infinite or NaN."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise MisuseError(f"{name} = {_short(value)}: expected a number")


def check_flag(name: str, value: Any) -> None:
    """Raises MisuseError unless it is a boolean."""
    if not isinstance(value, bool):
        raise MisuseError(f"{name} = {_short(value)}: expected True or False")


def check_texts(name: str, values: Any) -> None:
    """Raises MisuseError unless it is a list of texts. A single text is none."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise MisuseError(f"{name} = {_short(values)}: expected a list of texts")
    for number, value in enumerate(values):
        if not isinstance(value, str):
            raise MisuseError(f"{name}[{number}] = {_short(value)}: expected a text")


def _short(value: Any) -> str:
    """A value for one line. A number may have more digits than Python prints."""
    if isinstance(value, int) and abs(value) > 2**128:
        return f"a number of {value.bit_length()} bits"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
