"""`vmae-train finetune`: labelled shards and a pretrained encoder → a run with a classifier, and its score."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from vmae_data.console import Debug, Json, Quiet, Settings, StorageOptions, option, progress_style, resumable
from vmae_train.commands.options import (
    AcceptAppended,
    Data,
    Device,
    DryRun,
    EvaluationData,
    Init,
    Recipe,
    RunOut,
    Scratch,
    check_recipe,
    need_torch,
)
from vmae_train.commands.output import print_dry_run, print_scores, print_unreadable

Probe = Enum("Probe", {"LINEAR": "linear", "ATTENTIVE": "attentive"})


def finetune(
    recipe: Recipe,
    data: Data,
    val: EvaluationData,
    out: RunOut,
    init: Init = None,
    scratch: Scratch = None,
    probe: Annotated[
        Probe | None,
        option(
            "linear|attentive", "Freeze the encoder and train a linear or attentive-pooling head.", "the recipe's probe"
        ),
    ] = None,
    settings: Settings = None,
    accept_appended: AcceptAppended = False,
    dry_run: DryRun = False,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a model on labelled shards, end to end or as a probe, and evaluate it.

    Start it with torchrun to use several GPUs (docs/training.md).

    Examples:
        vmae-train finetune --recipe finetune/demo --data train --val val --out run
        vmae-train finetune --recipe my.toml --data a --val b --init pre --out run
    """
    need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.distributed import init_distributed
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.finetune import finetune as run
    from vmae_train.training.dry_run import dry_run_report

    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            check_recipe(recipe, FinetuneSpec)
            chosen = [f"probe={probe.value}"] if probe else []
            spec = load_recipe("vmae_train", recipe, FinetuneSpec, [*(settings or ()), *chosen])
        if dry_run:
            report = dry_run_report(
                run, spec, data=data, validation=val, init=init, device=device, style=style, distributed=distributed
            )
            if distributed.is_main:
                print_dry_run(report, quiet, as_json)
            return
        with resumable():
            trainer = run(
                spec,
                data=data,
                validation=val,
                out=out,
                scratch=scratch,
                init=init,
                accept_appended=accept_appended,
                device=device,
                style=style,
                distributed=distributed,
            )
    if distributed.is_main:
        assert trainer.scores is not None
        print_scores(trainer.scores, quiet, as_json)
        print_unreadable({**trainer.unreadable, **trainer.scores.unreadable})
