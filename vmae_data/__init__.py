"""Videos to WebDataset shards, and shards to decoded frames. Never imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmae_data.read.dataset import Shards

__version__ = "0.1.0"
__all__ = ["Shards", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Shards":
        from vmae_data.read.dataset import Shards

        return Shards
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
