"""`vmae-train pretrain`: shards → a run with a pretrained encoder."""

from __future__ import annotations

from vmae_data.console import Debug, Json, Quiet, Settings, StorageOptions, progress_style, resumable
from vmae_train.commands.options import (
    AcceptAppended,
    Data,
    Device,
    DryRun,
    Init,
    Recipe,
    RunOut,
    Scratch,
    check_recipe,
    need_torch,
)
from vmae_train.commands.output import print_dry_run, print_result, print_unreadable


def pretrain(
    recipe: Recipe,
    data: Data,
    out: RunOut,
    init: Init = None,
    scratch: Scratch = None,
    settings: Settings = None,
    accept_appended: AcceptAppended = False,
    dry_run: DryRun = False,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain a model on unlabelled shards: it predicts the masked cubes of a clip.

    Start it with torchrun to use several GPUs (docs/training.md).

    Examples:
        vmae-train pretrain --recipe pretrain/demo --data shards/demo --out runs/demo
        vmae-train pretrain --recipe my.toml --data a --data b:0.5 --out run --dry-run
    """
    need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.distributed import init_distributed
    from vmae_train.pretrain import PretrainSpec
    from vmae_train.pretrain import pretrain as run
    from vmae_train.training.dry_run import dry_run_report

    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            check_recipe(recipe, PretrainSpec)
            spec = load_recipe("vmae_train", recipe, PretrainSpec, settings or ())
        if dry_run:
            report = dry_run_report(
                run, spec, data=data, init=init, device=device, style=style, distributed=distributed
            )
            if distributed.is_main:
                print_dry_run(report, quiet, as_json)
            return
        with resumable():
            trainer = run(
                spec,
                data=data,
                out=out,
                scratch=scratch,
                init=init,
                accept_appended=accept_appended,
                device=device,
                style=style,
                distributed=distributed,
            )
    if distributed.is_main:
        values = {"out": str(out), "step": trainer.step, "unreadable": trainer.unreadable}
        print_result(quiet, as_json, values, f"{out}: {trainer.step} steps done")
        print_unreadable(trainer.unreadable)
