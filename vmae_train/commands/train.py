"""`vmae-train pretrain`, `finetune`, `feed` and `recipes`: what a recipe is for."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    Settings,
    StorageOptions,
    print_json,
    progress_style,
    show_facts,
    show_recipes,
)
from vmae_data.errors import MisuseError
from vmae_train.commands.options import Data, Device, DryRun, Recipe, RunOut, Scratch, check_recipe, need_torch, spec_of
from vmae_train.commands.tell import print_dry_run, tell, tell_scores, tell_unreadable

__all__ = ["feed", "finetune", "pretrain", "recipes"]


class Probe(Enum):
    """What learns on a frozen encoder."""

    LINEAR = "linear"
    ATTENTIVE = "attentive"


def pretrain(
    recipe: Recipe,
    data: Data,
    out: RunOut,
    init: Annotated[str | None, typer.Option(metavar="CKPT", help="Start from these weights.")] = None,
    scratch: Scratch = None,
    settings: Settings = None,
    dry_run: DryRun = False,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Pretrain on unlabelled shards: predict the hidden cubes of a clip."""
    need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.distributed import init_distributed
    from vmae_train.pretrain import PretrainSpec
    from vmae_train.pretrain import pretrain as run

    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            check_recipe(recipe, PretrainSpec)
            spec = load_recipe("vmae_train", recipe, PretrainSpec, settings or ())
        if dry_run:
            print_dry_run(
                run, spec, quiet, as_json, data=data, init=init, device=device, style=style, distributed=distributed
            )
            return
        state = run(
            spec, data=data, out=out, scratch=scratch, init=init, device=device, style=style, distributed=distributed
        )
    if distributed.is_main:
        told = {"out": str(out), "step": state.step, "unreadable": state.unreadable}
        tell(quiet, as_json, told, f"{out}: {state.step} steps done")
        tell_unreadable(state.unreadable)


def finetune(
    recipe: Recipe,
    data: Data,
    val: Annotated[str, typer.Option(metavar="URL", help="Labelled shards to score.")],
    out: RunOut,
    init: Annotated[
        str | None, typer.Option(metavar="CKPT", help="Start from these weights; left out: from scratch.")
    ] = None,
    scratch: Scratch = None,
    probe: Annotated[
        Probe | None, typer.Option(help="Freeze the encoder; train a linear head, or attentive pooling and a head.")
    ] = None,
    settings: Settings = None,
    dry_run: DryRun = False,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Train a classifier, the encoder end to end or a probe on it, and score it."""
    need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.distributed import init_distributed
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.finetune import finetune as run

    style = progress_style(quiet, as_json)
    with init_distributed(device) as distributed:
        with distributed.all_or_none():
            check_recipe(recipe, FinetuneSpec)
            chosen = [f"probe={probe.value}"] if probe else []
            spec = load_recipe("vmae_train", recipe, FinetuneSpec, [*(settings or ()), *chosen])
        if dry_run:
            where = {
                "data": data,
                "validation": val,
                "init": init,
                "device": device,
                "style": style,
                "world": distributed,
            }
            print_dry_run(run, spec, quiet, as_json, **where)
            return
        report = run(
            spec,
            data=data,
            validation=val,
            out=out,
            scratch=scratch,
            init=init,
            device=device,
            style=style,
            distributed=distributed,
        )
    if distributed.is_main:
        tell_scores(report.scores, quiet, as_json)
        tell_unreadable({**report.state.unreadable, **report.scores.unreadable})


def feed(
    recipe: Recipe,
    data: Data,
    seconds: Annotated[float, typer.Option(min=1, help="How long to measure.")] = 20.0,
    appetite: Annotated[
        float, typer.Option(min=1, metavar="CLIPS/S", help="What a GPU takes; the answer says how many cores feed it.")
    ] = 1000.0,
    settings: Settings = None,
    storage: StorageOptions = None,
    device: Device = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Run a training's data side alone: clips/s that this machine can bring, by stage, and the cores that a GPU needs."""
    need_torch()
    import msgspec

    from vmae_data.recipes import load_recipe
    from vmae_train.feed import feed as run

    if not appetite < 1e9:
        raise MisuseError(f"--appetite {appetite:g}: expected clips a second, such as 1000")
    spec = load_recipe("vmae_train", recipe, spec_of(recipe), settings or ())
    report = run(spec, data=data, seconds=seconds, device=device, style=progress_style(quiet, as_json))
    if as_json:
        print_json({**msgspec.to_builtins(report), "appetite": appetite, "cores_needed": report.cores_for(appetite)})
    else:
        rows = {
            "clips/s": f"{report.clips_per_second:.1f} ({report.clips} in {report.seconds:.1f} s, {report.workers} workers)",
            "first batch": f"after {report.first_batch_seconds:.2f} s",
            **{
                stage.name: f"{1000 * stage.seconds_a_clip:.2f} ms a clip, busy {stage.busy:.0%}"
                for stage in report.stages
            },
            "limits": report.limits,
            "read": f"{report.read_mb:.1f} MB, {report.read_mb_per_second:.1f} MB/s"
            + ("" if report.cache_hits is None else f", {report.cache_hits:.0%} of the samples from the cache"),
            "cores": f"{report.cores_used:.2f} used; {report.cores_for(appetite):.1f} for {appetite:g} clips/s "
            f"({1000 * report.cpu_seconds_a_clip:.2f} ms of CPU a clip)",
        }
        show_facts(f"{', '.join(data)} by {recipe}", rows.items())
    tell_unreadable(report.unreadable)


def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the training recipes, or show one with every value."""
    if name is not None:
        need_torch()
    show_recipes("vmae_train", name, spec_of, settings, as_json)
