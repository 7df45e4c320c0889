"""What `pretrain` and `finetune` share: read the recipe, then train or make a dry run, in every process of a torchrun."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from vmae_data.amounts import plural
from vmae_data.console import print_json, print_rows, progress_style
from vmae_train.console import check_recipe

if TYPE_CHECKING:
    from vmae_train.training.dry_run import DryRunReport
    from vmae_train.training.run_spec import RunSpec
    from vmae_train.training.trainer import Trainer


def run_training(
    train: Callable[..., Trainer],
    spec_type: type[RunSpec],
    recipe: str,
    settings: Sequence[str],
    *,
    run: dict[str, Any],
    dry_run: bool,
    device: str | None,
    quiet: bool,
    as_json: bool,
    preset: Callable[[Any], Sequence[str]] | None = None,
    **arguments: Any,
) -> Trainer | None:
    """Train with `arguments` and those of the `run` directory, or print a dry run, which has no such directory.

    `preset` gives settings that follow from the recipe; `settings` override them. Returns the finished trainer, but None after a dry run and in all but the main process.
    """
    from vmae_data.recipes import load_recipe
    from vmae_train.distributed import init_distributed
    from vmae_train.training.dry_run import dry_run_report

    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            check_recipe(recipe, spec_type)
            spec = load_recipe("vmae_train", recipe, spec_type, settings)
            if preset is not None:
                spec = load_recipe("vmae_train", recipe, spec_type, [*preset(spec), *settings])
        arguments |= {"device": device, "style": progress_style(quiet, as_json), "distributed": distributed}
        if dry_run:
            report = dry_run_report(train, spec, **arguments)
            if distributed.is_main:
                _print_dry_run(report, quiet, as_json)
            return None
        trainer = train(spec, **run, **arguments)
    return trainer if distributed.is_main else None


def _print_dry_run(report: DryRunReport, quiet: bool, as_json: bool) -> None:
    """Print what a dry run measured; its warnings go to stderr."""
    if as_json:
        totals = {"total_seconds": report.total_seconds, "disk_mb": report.disk_mb}
        warnings = [diagnostic._asdict() for diagnostic in report.cautions]
        print_json({**report._asdict(), **totals, "cautions": warnings})
    elif not quiet:
        waiting = report.wait_seconds / report.step_seconds if report.step_seconds else 0.0
        memory_of = "this process" if report.device == "cpu" else report.device
        rows = {
            "steps": f"{report.steps} of {plural(report.batch, 'video')}, {plural(report.epochs, 'epoch')}",
            "time": f"{timedelta(seconds=round(report.total_seconds))} (h:mm:ss) without evaluation and checkpoints, "
            f"from the second step ({report.step_seconds:.4g} s); {waiting:.0%} waits for data; limit: {report.limits}",
            "memory": f"{report.memory_mb:.0f} MB, the peak of {memory_of}",
            "disk": f"{report.disk_mb:.1f} MB: {plural(report.checkpoints, 'checkpoint')} of "
            f"{report.checkpoint_mb:.1f} MB, and one more while it is written",
            "loss": f"{report.loss:.4f}",
        }
        print_rows("dry run: nothing was written", rows.items())
    for diagnostic in report.cautions:
        print(f"warning: {diagnostic.text}", file=sys.stderr)
