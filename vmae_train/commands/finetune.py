"""`vmae-train finetune`: labelled shards and a pretrained encoder → a run with a classifier, and its score."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

from vmae_data.console import Debug, Json, Quiet, StorageOptions, option, progress_style
from vmae_train.commands.run_training import run_training
from vmae_train.console import (
    AcceptAppended,
    Data,
    Device,
    DryRun,
    EvaluationData,
    FinetuneRecipe,
    Init,
    RunOut,
    Scratch,
    Settings,
    need_torch,
    print_scores,
    print_unreadable,
)

Probe = Enum("Probe", {"LINEAR": "linear", "ATTENTIVE": "attentive"})


def finetune(
    recipe: FinetuneRecipe,
    data: Data,
    val: EvaluationData,
    out: RunOut,
    init: Init = None,
    scratch: Scratch = None,
    probe: Annotated[
        Probe | None,
        option(
            "linear|attentive",
            "Freeze the encoder and train a linear or attentive-pooling head, at a rate for it.",
            "the recipe's probe",
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

    On 8 GPUs, start it with `torchrun --nproc-per-node 8 -m vmae_train.cli finetune` (docs/training.md).

    Examples:
        vmae-train finetune --recipe finetune/demo --data train --val val --out run
        vmae-train finetune --recipe my.toml --data a --val b --init pre --out run
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_train.finetune import FinetuneSpec, probe_settings
    from vmae_train.finetune import finetune as train

    trainer = run_training(
        train,
        FinetuneSpec,
        recipe,
        settings or (),
        run={"out": out, "scratch": scratch, "accept_appended": accept_appended},
        dry_run=dry_run,
        device=device,
        quiet=quiet,
        as_json=as_json,
        preset=(lambda spec: probe_settings(spec, probe.value)) if probe else None,
        data=data,
        validation=val,
        init=init,
    )
    if trainer is not None:
        assert trainer.scores is not None
        print_scores(trainer.scores, quiet, as_json)
        print_unreadable({**trainer.unreadable, **trainer.scores.unreadable})
