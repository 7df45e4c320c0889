"""What `pretrain` and `finetune` share: read the recipe, then train or make a dry run, in every process of a torchrun."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from vmae_data.console import progress_style
from vmae_train.commands.options import check_recipe
from vmae_train.commands.output import print_dry_run

if TYPE_CHECKING:
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
                print_dry_run(report, quiet, as_json)
            return None
        trainer = train(spec, **run, **arguments)
    return trainer if distributed.is_main else None
