"""The commands of vmae-shard. `--help` imports no more than this file does."""

from __future__ import annotations

from vmae_data import __version__
from vmae_data.commands.audit import audit
from vmae_data.commands.build import build
from vmae_data.commands.demo import demo
from vmae_data.commands.doctor import doctor
from vmae_data.commands.inspect import inspect
from vmae_data.commands.merge import merge
from vmae_data.commands.recipes import recipes
from vmae_data.commands.verify import verify
from vmae_data.console import new_app

__all__ = ["app"]

app = new_app(
    "vmae-shard",
    "Turn videos into WebDataset shards that VideoMAE training reads fast.",
    __version__,
    (build, merge, verify, inspect, audit, demo, recipes, doctor),
)
