"""Counts, bytes and seconds as text."""

from __future__ import annotations

__all__ = ["format_bytes", "format_seconds", "plural"]


def plural(count: float, noun: str) -> str:
    """`1 video`, `2 videos`, `0.5 videos`, `2 classes`."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count if isinstance(count, int) else f'{count:g}'} {noun}{ending}"


def format_bytes(count: float) -> str:
    """Bytes in a readable unit: `2.734 MB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB" if count >= 1000 else f"{count:.4g} GB"


def format_seconds(seconds: float) -> str:
    """A duration in a readable unit: `2.12 min`."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    return f"{seconds / 3600:.4g} h" if seconds >= 3600 else f"{seconds / 60:.3g} min"
