"""The command line of vmae-train. It alone prints and exits; torch is imported when a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vmae_data import __version__
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    Settings,
    StorageOptions,
    local_argument,
    new_app,
    print_json,
    progress_style,
    run_app,
    show_facts,
    show_recipes,
)
from vmae_data.errors import MisuseError, VmaeError

__all__ = ["app", "main"]

app = new_app("vmae-train", "Pretrain, finetune and evaluate masked video autoencoders on shards.", __version__)

Recipe = Annotated[str, typer.Option(help="A recipe's name (`vmae-train recipes`), or a TOML file.")]
Data = Annotated[
    list[str],
    typer.Option(
        metavar="URL[:WEIGHT]",
        help="A folder of shards or its index.json; repeated, the sets are mixed, in the shares that the weights say.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; left out: the GPU where there is one.")]
Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="CKPT",
        help="A run (its last checkpoint) or a checkpoint's folder, a path or a URL; an official .pth; "
        "a Hugging Face folder.",
    ),
]
RunOut = Annotated[
    str,
    typer.Option(
        metavar="DIR|URL", help="The run's folder, or a folder in a bucket; the same command goes on from it."
    ),
]
Scratch = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Where a run in a bucket works; left out: a folder of this machine's cache."),
]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Take two steps on the data, write nothing, and say what the whole takes: time, memory, disk."
    ),
]


class Probe(Enum):
    """What learns on a frozen encoder."""

    LINEAR = "linear"
    ATTENTIVE = "attentive"


class Layout(Enum):
    """How a model lies on disk."""

    NATIVE = "native"
    OFFICIAL = "official"
    HF = "hf"


class Merge(Enum):
    """What is averaged over the views of a video."""

    SOFTMAX = "softmax"
    LOGIT = "logit"


def _need_torch() -> None:
    """One line instead of a traceback where only the data side is installed."""
    from importlib.util import find_spec

    missing = [name for name in ("torch", "kornia", "einops", "safetensors", "jaxtyping") if find_spec(name) is None]
    if missing:
        raise VmaeError(f"{', '.join(missing)} not installed; pip install 'vmae[train]'")


@app.command()
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
    _need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.pretrain import PretrainSpec
    from vmae_train.pretrain import pretrain as run
    from vmae_train.training.world import open_world

    style = progress_style(quiet, as_json)
    with open_world(device) as world:
        with world.agreed():
            spec = load_recipe("vmae_train", recipe, PretrainSpec, settings or ())
        if dry_run:
            _rehearse(run, spec, quiet, as_json, data=data, init=init, device=device, style=style, world=world)
            return
        state = run(spec, data=data, out=out, scratch=scratch, init=init, device=device, style=style, world=world)
    if world.is_main:
        told = {"out": str(out), "step": state.step, "unreadable": state.unreadable}
        _tell(quiet, as_json, told, f"{out}: {state.step} steps done")
        _tell_unreadable(state.unreadable)


@app.command()
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
    _need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.finetune import finetune as run
    from vmae_train.training.world import open_world

    style = progress_style(quiet, as_json)
    with open_world(device) as world:
        with world.agreed():
            chosen = [f"probe={probe.value}"] if probe else []
            spec = load_recipe("vmae_train", recipe, FinetuneSpec, [*(settings or ()), *chosen])
        if dry_run:
            where = {"data": data, "validation": val, "init": init, "device": device, "style": style, "world": world}
            _rehearse(run, spec, quiet, as_json, **where)
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
            world=world,
        )
    if world.is_main:
        _tell_scores(report.scores, quiet, as_json)
        _tell_unreadable({**report.state.unreadable, **report.scores.unreadable})


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(metavar="URL", help="Labelled shards.")],
    views: Annotated[str, typer.Option(metavar="CLIPSxCROPS", help="Clips in time × crops in space.")] = "5x3",
    stride: Annotated[
        int | None, typer.Option(min=1, help="Source frames between a clip's frames; left out: the run's.")
    ] = None,
    frozen: Annotated[bool, typer.Option("--frozen", help="A control: one frame repeated, no motion.")] = False,
    best: Annotated[
        bool, typer.Option("--best", help="Of a run the checkpoint that scored best on the way, not the last.")
    ] = False,
    ema: Annotated[bool, typer.Option("--ema", help="The mean of the weights (ema.decay), not the last.")] = False,
    merge: Annotated[
        Merge, typer.Option(help="Average the views' probabilities, or their logits; of values always the values.")
    ] = Merge.SOFTMAX,
    out: Annotated[str | None, typer.Option(metavar="FILE|URL", help="Write the scores as JSON.")] = None,
    predictions: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Write what the model says of each video as Parquet.")
    ] = None,
    html: Annotated[
        str | None, typer.Option(metavar="FILE|URL", help="Write a page: scores, confusion, every class.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos at a time.")] = 8,
    workers: Annotated[int, typer.Option(min=0, help="Decode processes.")] = 1,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Score a finetuned model; each video is decoded once for all its views."""
    _need_torch()
    from vmae_train.score import Looks, Told, evaluate_checkpoint
    from vmae_train.training.world import open_world

    looks = Looks(views, merge.value, stride, frozen=frozen, batch=batch, workers=workers, best=best, ema=ema)
    told = Told(out, predictions, html)
    style = progress_style(quiet, as_json)
    with open_world(device) as world:
        scores = evaluate_checkpoint(checkpoint, data, looks, told, device=device, style=style, world=world)
    if world.is_main:
        _tell_scores(scores, quiet, as_json)
        _tell_unreadable(scores.unreadable)


@app.command()
def reconstruct(
    checkpoint: Checkpoint,
    data: Annotated[str, typer.Option(metavar="URL|VIDEO", help="Shards, or one video file.")],
    out: Annotated[str, typer.Option(metavar="FILE|URL", help="A .png (frames side by side) or a .gif (moving).")],
    videos: Annotated[int, typer.Option(min=1, help="How many samples.")] = 4,
    ratio: Annotated[float | None, typer.Option(help="Share of hidden places; left out: the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other seeds hide other places.")] = 0,
    device: Device = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Draw what a pretraining model makes of hidden cubes: original, masked, reconstruction."""
    _need_torch()
    from vmae_train.inference.reconstruct import reconstruct_file

    unreadable = reconstruct_file(checkpoint, data, out, videos=videos, ratio=ratio, seed=seed, device=device)
    if not quiet:
        print(out)
    _tell_unreadable(unreadable)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(metavar="SRC", help="A run, a checkpoint, an official .pth, or a Hugging Face folder."),
    ],
    dest: Annotated[
        Path, typer.Argument(parser=local_argument, metavar="DST", help="A new folder; for official, a new file.")
    ],
    to: Annotated[Layout, typer.Option(help="Ours; VideoMAE's own .pth; a folder for transformers.")],
    settings: Settings = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            parser=local_argument, metavar="FILE", help="Names for the head's outputs, one a line, where SRC has none."
        ),
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Convert a model between layouts; its weights stay the same to the bit.

    What SRC does not say is inferred for published sizes, else given: --set model.num_heads=4. With --set
    model.image_size=… or model.num_frames=… the model becomes one for other clips
    (--set model.position_resize=recompute or interpolate).
    """
    _need_torch()
    from vmae_data.recipes import load_recipe
    from vmae_train.model.convert import ConvertSpec, read_class_names
    from vmae_train.model.convert import convert as run

    spec = load_recipe("vmae_train", None, ConvertSpec, settings or ())
    names = read_class_names(classes) if classes is not None else None
    for remark in run(source, dest, to=to.value, spec=spec, classes=names):
        print(f"{source}: {remark}", file=sys.stderr)
    if not quiet:
        print(dest)


@app.command()
def report(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A pretraining or finetuning run; a path or a URL.")],
    out: Annotated[str, typer.Option(metavar="FILE|URL", help="The HTML page.")],
    against: Annotated[
        list[str] | None, typer.Option(metavar="RUN", help="Another finetuning beside it; may be repeated.")
    ] = None,
    storage: StorageOptions = None,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write one page on a run: data, curves, reconstructions, accuracy."""
    _need_torch()
    from vmae_train.report import write_report

    write_report(run, out, against=tuple(against or ()))
    if not quiet:
        print(out)


@app.command()
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
    _need_torch()
    import msgspec

    from vmae_data.recipes import load_recipe
    from vmae_train.feed import feed as run

    if not appetite < 1e9:
        raise MisuseError(f"--appetite {appetite:g}: expected clips a second, such as 1000")
    spec = load_recipe("vmae_train", recipe, _spec_of(recipe), settings or ())
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
    _tell_unreadable(report.unreadable)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this recipe, resolved.")] = None,
    settings: Settings = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the training recipes, or show one with every value."""
    if name is not None:
        _need_torch()
    show_recipes("vmae_train", name, _spec_of, settings, as_json)


def _spec_of(name: str) -> Any:
    """Which command a recipe is for: a table that only one of them has says so, else its name or first line."""
    from vmae_data.recipes import read_recipe, recipe_values
    from vmae_train.finetune import FinetuneSpec
    from vmae_train.pretrain import PretrainSpec

    tables, text = recipe_values("vmae_train", name).keys(), read_recipe("vmae_train", name)
    if "mask" in tables:
        return PretrainSpec
    first = text.splitlines()[0] if text else ""
    return FinetuneSpec if "evaluate" in tables or "finetune" in f"{name} {first}" else PretrainSpec


def _rehearse(run: Callable[..., object], spec: object, quiet: bool, as_json: bool, **where: Any) -> None:
    """Tell what two steps of a training showed; by the main process."""
    from datetime import timedelta

    from vmae_train.training.rehearsal import rehearsal_of

    found = rehearsal_of(run, spec, **where)
    if not where["world"].is_main:
        return
    if as_json:
        cautions = [caution._asdict() for caution in found.cautions]
        print_json(
            {**found._asdict(), "total_seconds": found.total_seconds, "disk_mb": found.disk_mb, "cautions": cautions}
        )
    elif not quiet:
        waits = found.wait_seconds / found.step_seconds if found.step_seconds else 0.0
        rows = {
            "steps": f"{found.steps} of {found.batch} videos, {found.epochs:g} epochs",
            "time": f"{timedelta(seconds=round(found.total_seconds))} (h:mm:ss), from the second step ({found.step_seconds:.4g} s); "
            f"{waits:.0%} of it waiting for data (limits: {found.limits}); evaluation and checkpoints not counted",
            "memory": f"{found.memory_mb:.0f} MB at the peak, of {'this process' if found.device == 'cpu' else found.device}",
            "disk": f"{found.disk_mb:.1f} MB: {found.checkpoints} checkpoints of {found.checkpoint_mb:.1f} MB, "
            "and one more while it is written",
            "loss": f"{found.loss:.4f}",
        }
        show_facts("dry run: nothing was written", rows.items())
    for caution in found.cautions:
        print(f"warning: {caution.text}", file=sys.stderr)


def _tell(quiet: bool, as_json: bool, values: dict[str, Any], words: str) -> None:
    from vmae_data.page import printable

    if as_json:
        print_json(values)
    elif not quiet:
        print(printable(words))


def _tell_scores(scores: Any, quiet: bool, as_json: bool) -> None:
    import msgspec

    words = [str(scores.headline)]
    if scores.headline.key == "top1":
        words += [f"top-5 {scores.top5:.2f} %"] if scores.top5 is not None else []
        words.append(f"mean of classes {scores.mean_class:.2f} %")
    elif scores.headline.key == "mae":
        words.append(f"RMSE {scores.rmse:.4g}")
    words += [f"{scores.videos} videos", f"{scores.views} views" + (f" ({scores.control})" if scores.control else "")]
    _tell(quiet, as_json, msgspec.to_builtins(scores), ", ".join(words))


def _tell_unreadable(unreadable: dict[str, str]) -> None:
    from vmae_data.page import printable

    for key, why in unreadable.items():
        print(f"left out, unreadable: {printable(key)}: {printable(why)}", file=sys.stderr)


def main() -> NoReturn:
    run_app(app, "vmae-train")


if __name__ == "__main__":
    main()
