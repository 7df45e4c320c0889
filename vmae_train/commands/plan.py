"""`vmae-train plan`: a recipe and a machine → hours, what limits them, memory, cores and bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vmae_data.amounts import plural
from vmae_data.console import (
    Debug,
    Json,
    Quiet,
    local_argument,
    option,
    print_json,
    print_rows,
    progress_style,
)
from vmae_data.errors import MisuseError
from vmae_train.console import Recipe, Settings, need_torch, spec_of

if TYPE_CHECKING:
    from vmae_train.training_plan import Plan


def plan(
    recipe: Recipe,
    gpus: Annotated[int, option("N", "Train on N GPUs, of all nodes together.", min=1, max=1 << 20)],
    gpu: Annotated[str, option("NAME", "Train on this GPU, such as H100, or on a cpu.")],
    cores: Annotated[int, option("C", "Decode on C CPU cores, of all nodes together.", min=1, max=1 << 24)],
    store_gbps: Annotated[float, option("G", "Read shards at G gigabits per second, all nodes together.")],
    rates: Annotated[
        list[Path] | None,
        option(
            "FILE",
            "Use rates measured by `feed --json`, `--dry-run --json` or a run's log.jsonl. Repeatable.",
            "assumed rates",
            parser=local_argument,
        ),
    ] = None,
    mfu: Annotated[
        float | None, option("X", "Take X of the GPU's peak as the speed of a step.", "0.3, an assumption")
    ] = None,
    price: Annotated[float | None, option("P", "Compute the cost at P for a GPU and an hour.", "no cost")] = None,
    videos: Annotated[
        int | None,
        option(
            "V", "Count V videos in an epoch.", "as published for the data in the recipe's name", min=1, max=1 << 40
        ),
    ] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Estimate the hours of a training on a machine, and what limits them.

    Nothing is trained and no data is read. The result names what is given, measured and assumed.

    Examples:
        vmae-train plan --recipe my.toml --gpus 1 --gpu H100 --cores 16 --store-gbps 5
    """
    need_torch(progress_style(quiet, as_json))
    from vmae_data.recipes import load_recipe
    from vmae_train.plan_inputs import Value, find_gpu, read_rates
    from vmae_train.training_plan import Machine, make_plan

    spec = load_recipe("vmae_train", recipe, spec_of(recipe), settings or ())
    sheet = find_gpu(gpu)
    machine = Machine(
        gpus=gpus,
        gpu=gpu,
        cores=cores,
        store_gbps=store_gbps,
        tflops=sheet.tflops if sheet else None,
        memory_gib=sheet.memory_gib if sheet else None,
        mfu=Value(0.3, "assumed") if mfu is None else Value(mfu, "given"),
        price=price,
    )
    measured = read_rates(rates or (), spec)
    result = make_plan(_job(spec, recipe, gpus, videos), machine, measured)
    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(result), "gpu_hours": result.gpu_hours})
    elif not quiet:
        print_rows(f"{recipe} on {gpus} × {gpu}", _rows(result, spec.train.epochs, "given" if videos else "assumed"))


def _job(spec: Any, recipe: str, gpus: int, videos: int | None) -> Any:
    from vmae_train.footprint import find_footprint, frame_size
    from vmae_train.plan_inputs import videos_of
    from vmae_train.training_plan import Job

    train, geometry = spec.train, spec.geometry()
    count = videos or videos_of(recipe)
    if count is None and train.steps is None:
        raise MisuseError(
            f"--videos: recipe {recipe} counts epochs, and names no known data set. Give the number of videos"
        )
    steps = train.total_steps((count or 0) // train.batch)
    if not steps:
        raise MisuseError(f"--videos {count}: fewer than one batch of {train.batch}. Set a smaller train.batch")
    footprint = find_footprint(spec, processes=gpus)
    height, width = frame_size(geometry.image_size)
    return Job(
        steps=steps,
        batch=train.batch,
        repeats=train.repeats,
        workers=spec.loader.workers,
        threads=train.threads or 1,
        gflop_a_clip=footprint.gflop_a_clip,
        micro_batch=footprint.micro_batch,
        state_mib=footprint.state_mib,
        peak_mib=footprint.peak_mib,
        frame_bytes=geometry.num_frames * height * width * 3 // 2,
    )


def _rows(plan: Plan, epochs: int | None, counted: str) -> list[tuple[str, str]]:
    job, machine, speed = plan.job, plan.machine, plan.videos_per_second
    of_videos = f", {plural(epochs, 'epoch')} of about {job.videos // epochs:,} videos ({counted})" if epochs else ""
    cost = "" if plan.cost is None else f", {plan.cost:,.0f} at {machine.price:g} for each"
    assumed = [_NAMES[name] for name, rate in plan.rates.items() if rate.source == "assumed" and name in _NAMES]
    if "device_seconds_a_video" in plan.rates and plan.rates["device_seconds_a_video"].source != "measured":
        assumed += [f"an MFU of {machine.mfu.value:g}"] if machine.mfu.source == "assumed" else []
    if epochs and counted == "assumed":
        assumed.append("the videos of an epoch")
    return [
        ("training", f"{job.steps:,} steps of {job.batch} videos{of_videos}"),
        *(
            (stage.name, f"{stage.videos_per_second:,.1f} videos/s; {_cost_of(plan, stage.name)}")
            for stage in plan.stages
        ),
        ("limit", f"{plan.limit}: {speed:,.1f} videos/s, {speed * job.repeats:,.1f} clips/s"),
        ("time", f"{plan.hours:,.4g} hours = {plan.gpu_hours:,.4g} GPU hours{cost}"),
        (
            "needed",
            f"{plan.cores_needed:,} cores, {plural(plan.workers_needed, 'worker')} of each process and "
            f"{plan.store_gbps_needed:.3g} Gbit/s keep the GPUs busy",
        ),
        ("memory", _memory(plan)),
        *(
            (
                f"with {change.what}",
                f"{change.hours:,.4g} hours, limit {change.limit}, {change.cores_needed:,} cores needed",
            )
            for change in plan.changes
        ),
        ("assumed", "; ".join(assumed) or "nothing"),
    ]


_NAMES = {
    "cpu_seconds_a_video": "the CPU time of a video",
    "kb_a_video": "the bytes of a video",
    "transfer_seconds_a_video": "the rate of copies to the GPU",
}


_RATE_OF = {
    "network": "kb_a_video",
    "decode": "cpu_seconds_a_video",
    "transfer": "transfer_seconds_a_video",
    "compute": "device_seconds_a_video",
}


def _cost_of(plan: Plan, stage: str) -> str:
    machine, job, rate = plan.machine, plan.job, plan.rates[_RATE_OF[stage]]
    if stage == "network":
        return f"{machine.store_gbps:g} Gbit/s (given), {rate.value:.4g} kB a video ({rate.source})"
    cost = f"{1000 * rate.value:.3g} ms a video"
    if stage == "decode":
        workers = plural(job.workers, "worker")
        return f"{cost} and core ({rate.source}), {machine.cores} cores (given), {workers} of each process"
    if stage == "transfer" or rate.source == "measured":
        return f"{cost} ({rate.source})"
    return (
        f"{cost}: {job.gflop_a_clip:,.4g} GFLOP a clip (computed), {machine.mfu.value:g} ({rate.source}) of "
        f"{machine.tflops:g} TFLOP/s (data sheet)"
    )


def _memory(plan: Plan) -> str:
    peak, source = plan.peak_gib.value, plan.peak_gib.source
    text = f"{peak:.1f} GiB at the peak ({source}) with micro-batches of {plan.job.micro_batch}"
    if plan.machine.memory_gib is None:
        return text
    text += f"; the GPU has {plan.machine.memory_gib:g} GiB"
    fits = plan.micro_batch_that_fits
    if fits == plan.job.micro_batch:
        return text
    advice = "No micro-batch fits" if fits is None else f"Set train.micro_batch={fits}"
    return f"{text}. {advice}"
