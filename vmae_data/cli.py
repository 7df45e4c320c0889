"""The command line of vmae-shard. `--help` imports no more than this file does."""

from __future__ import annotations

from typing import NoReturn

from vmae_data import __version__
from vmae_data.commands.audit import audit
from vmae_data.commands.build import build
from vmae_data.commands.demo import demo
from vmae_data.commands.doctor import doctor
from vmae_data.commands.inspect import inspect
from vmae_data.commands.merge import merge
from vmae_data.commands.recipes import recipes
from vmae_data.commands.verify import verify
from vmae_data.console import new_app, run_app

__all__ = ["app", "main"]

app = new_app(
    "vmae-shard",
    "Turn videos into WebDataset shards that VideoMAE training reads fast.",
    __version__,
    (build, merge, verify, inspect, audit, demo, recipes, doctor),
)


def main() -> NoReturn:
    run_app(app, "vmae-shard")


if __name__ == "__main__":
    main()
