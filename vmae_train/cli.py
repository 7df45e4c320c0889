"""The command line of vmae-train; `--help` imports no more than this."""

from __future__ import annotations

from typing import NoReturn

from vmae_data import __version__
from vmae_data.console import new_app, run_app
from vmae_data.processes import stop_with_torchrun
from vmae_train.commands.convert import convert
from vmae_train.commands.score import evaluate, reconstruct, report
from vmae_train.commands.train import feed, finetune, pretrain, recipes

__all__ = ["app", "main"]

app = new_app("vmae-train", "Pretrain, finetune and evaluate masked video autoencoders on shards.", __version__)
for command in (pretrain, finetune, evaluate, reconstruct, convert, report, feed, recipes):
    app.command()(command)


def main() -> NoReturn:
    stop_with_torchrun()
    run_app(app, "vmae-train")


if __name__ == "__main__":
    main()
