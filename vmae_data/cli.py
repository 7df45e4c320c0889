"""The command line of vmae-shard; `--help` imports no more than this."""

from __future__ import annotations

from typing import NoReturn

from vmae_data import __version__
from vmae_data.commands.build import build, merge
from vmae_data.commands.check import audit, inspect, verify
from vmae_data.commands.start import demo, doctor, recipes
from vmae_data.console import new_app, run_app

__all__ = ["app", "main"]

app = new_app("vmae-shard", "Turn videos into WebDataset shards that a VideoMAE training reads fast.", __version__)
for command in (build, merge, verify, inspect, audit, demo, recipes, doctor):
    app.command()(command)


def main() -> NoReturn:
    run_app(app, "vmae-shard")


if __name__ == "__main__":
    main()
