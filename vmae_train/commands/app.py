"""The commands of vmae-train. `--help` imports no more than this file does."""

from __future__ import annotations

from vmae_data import __version__
from vmae_data.console import new_app
from vmae_train.commands.convert import convert
from vmae_train.commands.embed import embed
from vmae_train.commands.evaluate import evaluate
from vmae_train.commands.export import export
from vmae_train.commands.feed import feed
from vmae_train.commands.finetune import finetune
from vmae_train.commands.gap import gap
from vmae_train.commands.plan import plan
from vmae_train.commands.predict import predict
from vmae_train.commands.pretrain import pretrain
from vmae_train.commands.recipes import recipes
from vmae_train.commands.reconstruct import reconstruct
from vmae_train.commands.report import report

__all__ = ["app"]

app = new_app(
    "vmae-train",
    "Pretrain, finetune and evaluate masked video autoencoders on shards.",
    __version__,
    (pretrain, finetune, evaluate, predict, embed, gap, reconstruct, convert, export, report, feed, plan, recipes),
)
