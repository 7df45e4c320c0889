"""`vmae-train report`: a run → one HTML page."""

from __future__ import annotations

from typing import Annotated

from vmae_data.console import Debug, Quiet, StorageOptions, argument, option
from vmae_train.commands.options import need_torch


def report(
    run: Annotated[str, argument("RUN", "Read a pretraining or finetuning run, a path or a URL.")],
    out: Annotated[str, option("FILE|URL", "Write the HTML page to this file.")],
    against: Annotated[
        list[str] | None, option("RUN", "Compare with another finetuning run. Repeatable.", "no comparison")
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one HTML page about a run: data, curves, reconstructions, scores.

    Examples:
        vmae-train report runs/k400 --out k400.html
        vmae-train report runs/finetune --against runs/scratch --out compare.html
    """
    need_torch()
    from vmae_train.reports.run_page import write_report

    write_report(run, out, against=tuple(against or ()))
    if not quiet:
        print(out)
