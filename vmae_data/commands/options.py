"""Options of several vmae-shard commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from vmae_data.console import argument, option, path_option, settings_option
from vmae_data.errors import MisuseError

__all__ = ["Dest", "MaxFailures", "Settings", "Staging", "Workers", "failure_limit"]

Dest = Annotated[str, argument("DEST", "Read the shards of this folder, a path or a URL.")]
Workers = Annotated[int | None, option("N", "Start N worker processes.", "one per CPU core", min=1, max=1024)]
MaxFailures = Annotated[
    str | None, option("N|P%", "Exit with status 1 if more than N sources, or P % of them, fail.", "no limit")
]
Staging = Annotated[
    Path | None,
    path_option(
        "DIR",
        "Keep finished encodes here until their shard is packed.",
        "inside DEST; the local cache if DEST is remote",
    ),
]


def _build_spec(_command: str, _recipe: str | None) -> type[Any]:
    from vmae_data.encode.build_spec import BuildSpec

    return BuildSpec


Settings = Annotated[list[str] | None, settings_option(_build_spec)]


def failure_limit(text: str | None) -> Callable[[int], float] | None:
    """Parse --max-failures. The limit is a function of the number of sources, for text may be a percentage."""
    if text is None:
        return None
    number = text.removesuffix("%")
    try:
        value = float(number)
        if not 0 <= value <= (100 if text.endswith("%") else 1e9):
            raise ValueError
    except ValueError:
        raise MisuseError(
            f"--max-failures {text}: expected a number, such as 10, or a percentage, such as 1%"
        ) from None
    return (lambda total: total * value / 100) if text.endswith("%") else (lambda total: value)
