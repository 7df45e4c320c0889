"""The public Python names of both packages as a page, which mkdocstrings fills from their docstrings."""

from __future__ import annotations

import vmae_data
import vmae_train


def names() -> list[str]:
    """The public names, such as `vmae_train.load_model`."""
    packages = (vmae_train, vmae_data)
    return [f"{one.__name__}.{name}" for one in packages for name in one.__all__ if not name.startswith("_")]


def page() -> str:
    return "\n\n".join(["# Reference: Python names", *(f"::: {name}" for name in names())]) + "\n"
