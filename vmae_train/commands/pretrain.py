"""`vmae-train pretrain`: shards → a run with a pretrained encoder."""

from __future__ import annotations

from vmae_data.console import Debug, Json, Quiet, StorageOptions, progress_style
from vmae_train.commands.run_training import run_training
from vmae_train.console import (
    AcceptAppended,
    Data,
    Device,
    DryRun,
    Init,
    PretrainRecipe,
    RunOut,
    Scratch,
    Settings,
    need_torch,
    print_result,
    print_unreadable,
)


def pretrain(
    recipe: PretrainRecipe,
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

    On 8 GPUs, start it with `torchrun --nproc-per-node 8 -m vmae_train.cli pretrain` (docs/training.md).

    Examples:
        vmae-train pretrain --recipe pretrain/demo --data shards/demo --out runs/demo
        vmae-train pretrain --recipe my.toml --data a --data b:0.5 --out run --dry-run
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_train.pretrain import PretrainSpec
    from vmae_train.pretrain import pretrain as train

    trainer = run_training(
        train,
        PretrainSpec,
        recipe,
        settings or (),
        run={"out": out, "scratch": scratch, "accept_appended": accept_appended},
        dry_run=dry_run,
        device=device,
        quiet=quiet,
        as_json=as_json,
        data=data,
        init=init,
    )
    if trainer is not None:
        values = {"out": str(out), "step": trainer.step, "unreadable": trainer.unreadable}
        print_result(quiet, as_json, values, f"{out}: {trainer.step} steps done")
        print_unreadable(trainer.unreadable)
