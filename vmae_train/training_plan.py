"""A training, a machine and rates → hours, what limits them, and what would change them. Arithmetic only.

Bytes come from the store, CPU cores decode them, frames are copied to a GPU, and the GPU makes clips and trains on
them. These stages overlap, so the slowest decides. Not included are checkpoints, validations, the start, and waiting
of processes for each other.
"""

from __future__ import annotations

import math

import msgspec

from vmae_data.errors import MisuseError
from vmae_train.plan_inputs import Rates, Value

__all__ = ["Change", "Job", "Machine", "Plan", "Stage", "make_plan"]

MIB, GB = 1 << 20, 1e9
HEADROOM = 0.9  # of a GPU's memory: the rest is for kernels, fragments and the CUDA context
PCIE = Value(12e9, "assumed")  # bytes per second from pinned memory

# Decoding time and bytes of a clip, as multiples of the default profile's: docs/benchmarks.md, codec profiles.
PROFILES = {"h264 crf 26": (0.86, 0.73), "mpeg4 qscale 3": (0.48, 1.06), "mjpeg qscale 4": (0.48, 2.73)}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A training. `videos` are decoded in all its steps; each gives `repeats` clips."""

    steps: int
    batch: int  # videos of a step
    repeats: int
    workers: int  # decode workers of each process
    threads: int  # CPU threads of each process
    gflop_a_clip: float  # forward and backward
    micro_batch: int
    state_mib: float  # of peak_mib: what does not depend on the micro-batch
    peak_mib: float
    frame_bytes: int  # of a video's decoded frames

    @property
    def videos(self) -> int:
        return self.steps * self.batch


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes together. `tflops` None: step times must be measured."""

    gpus: int
    gpu: str
    cores: int
    store_gbps: float  # gigabits per second
    tflops: float | None
    memory_gib: float | None
    mfu: Value  # the share of the peak that the step reaches
    price: float | None = None  # of a GPU and an hour

    def __post_init__(self) -> None:
        if not 0 < self.store_gbps < math.inf:
            raise MisuseError(f"--store-gbps {self.store_gbps:g}: expected gigabits per second above 0, such as 10")
        if not 0 < self.mfu.value <= 1:
            raise MisuseError(f"--mfu {self.mfu.value:g}: expected a share of the peak, above 0 and at most 1")
        if self.price is not None and not 0 <= self.price < math.inf:
            raise MisuseError(f"--price {self.price:g}: expected the price of a GPU and an hour, 0 or more")


class Stage(msgspec.Struct, frozen=True):
    """How many videos per second a stage delivers, if it alone limits."""

    name: str
    videos_per_second: float


class Change(msgspec.Struct, frozen=True):
    """The same training with something else."""

    what: str
    limit: str
    hours: float
    cores_needed: int


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """`*_needed`: what keeps the GPUs busy."""

    job: Job
    machine: Machine
    rates: dict[str, Value]
    stages: tuple[Stage, ...]
    limit: str
    videos_per_second: float
    hours: float
    cost: float | None
    cores_needed: int
    workers_needed: int  # of each process
    store_gbps_needed: float
    peak_gib: Value
    micro_batch_that_fits: int | None  # None: not even one video, or no limit is known
    changes: tuple[Change, ...]

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.machine.gpus


def make_plan(job: Job, machine: Machine, rates: Rates) -> Plan:
    """Raises MisuseError for a machine with too few cores, or without a known speed."""
    reserved = machine.gpus * job.threads
    decoding = machine.cores - (reserved if job.workers else 0)
    if decoding < 1:
        raise MisuseError(
            f"--cores {machine.cores}: {machine.gpus} processes need {reserved} cores, and none is left to decode. "
            f"Give {reserved + 1} or more"
        )
    costs = _costs(job, machine, rates)
    stages = _stages(job, machine, costs, decoding)
    slowest, hours = _slowest(job, stages)
    compute = stages[-1].videos_per_second
    cores = _cores(job, machine, compute, costs)
    measured = rates.memory_mb
    peak = Value(measured.value * 1e6 / 2**30, "measured") if measured else Value(job.peak_mib / 1024, "computed")
    return Plan(
        job=job,
        machine=machine,
        rates={name: value for name, value in costs._asdict().items() if value is not None},
        stages=stages,
        limit=slowest.name,
        videos_per_second=slowest.videos_per_second,
        hours=hours,
        cost=None if machine.price is None else machine.price * machine.gpus * hours,
        cores_needed=cores,
        workers_needed=math.ceil(compute * costs.cpu_seconds_a_video.value / machine.gpus),
        store_gbps_needed=compute * costs.kb_a_video.value * 8e3 / GB,
        peak_gib=peak,
        micro_batch_that_fits=_micro_batch(job, machine, peak.value),
        changes=_changes(job, machine, costs, decoding),
    )


def _costs(job: Job, machine: Machine, rates: Rates) -> Rates:
    """All of them: of what was not measured, what follows from data sheets."""
    transfer = rates.transfer_seconds_a_video or Value(job.frame_bytes / PCIE.value, PCIE.source)
    device = rates.device_seconds_a_video
    if device is None:
        if machine.tflops is None:
            raise MisuseError(
                "--gpu cpu: the speed of a step is not known. Measure it by `--dry-run --json`, or train some steps, "
                "and give the output or the run's log.jsonl to --rates"
            )
        seconds = job.repeats * job.gflop_a_clip / (1000 * machine.tflops * machine.mfu.value)
        device = Value(seconds, machine.mfu.source)
    return rates._replace(transfer_seconds_a_video=transfer, device_seconds_a_video=device)


def _stages(job: Job, machine: Machine, costs: Rates, decoding: int) -> tuple[Stage, ...]:
    """In the order of the data's way."""
    assert costs.transfer_seconds_a_video is not None and costs.device_seconds_a_video is not None
    decode, device = costs.cpu_seconds_a_video.value, costs.device_seconds_a_video.value
    parallel = min(decoding, job.workers * machine.gpus) if job.workers else machine.gpus
    if not job.workers:  # the process decodes itself, between its steps
        device += decode
    return (
        Stage("network", machine.store_gbps * GB / 8 / (1000 * costs.kb_a_video.value)),
        Stage("decode", parallel / decode),
        Stage("transfer", machine.gpus / costs.transfer_seconds_a_video.value),
        Stage("compute", machine.gpus / device),
    )


def _slowest(job: Job, stages: tuple[Stage, ...]) -> tuple[Stage, float]:
    """The stage that limits, and the hours of the training at its speed."""
    stage = min(stages, key=lambda stage: stage.videos_per_second)
    return stage, job.videos / stage.videos_per_second / 3600


def _cores(job: Job, machine: Machine, compute: float, costs: Rates) -> int:
    """A core for each thread of a process, and those that decode."""
    return machine.gpus * job.threads + (math.ceil(compute * costs.cpu_seconds_a_video.value) if job.workers else 0)


def _changes(job: Job, machine: Machine, costs: Rates, decoding: int) -> tuple[Change, ...]:
    """More clips of each video see as many clips in all; other profiles see the same videos."""
    assert costs.device_seconds_a_video is not None
    cpu, size, device = costs.cpu_seconds_a_video, costs.kb_a_video, costs.device_seconds_a_video
    changed: list[tuple[str, Job, Rates]] = []
    for factor in (2, 4):
        repeats, steps = factor * job.repeats, max(1, job.steps // factor)
        more = costs._replace(device_seconds_a_video=Value(factor * device.value, device.source))
        fewer = msgspec.structs.replace(job, repeats=repeats, steps=steps)
        changed.append((f"{repeats} clips of each video, 1 / {factor} of the steps", fewer, more))
    workers = math.ceil(decoding / machine.gpus)
    if 0 < job.workers < workers:
        changed.append((f"loader.workers={workers}", msgspec.structs.replace(job, workers=workers), costs))
    for name, (time, bytes_) in PROFILES.items():
        other = costs._replace(
            cpu_seconds_a_video=Value(time * cpu.value, cpu.source),
            kb_a_video=Value(bytes_ * size.value, size.source),
        )
        changed.append((f"profile {name}", job, other))
    result = []
    for what, other_job, other_costs in changed:
        stages = _stages(other_job, machine, other_costs, decoding)
        slowest, hours = _slowest(other_job, stages)
        cores = _cores(other_job, machine, stages[-1].videos_per_second, other_costs)
        result.append(Change(what, slowest.name, hours, cores))
    return tuple(result)


def _micro_batch(job: Job, machine: Machine, peak_gib: float) -> int | None:
    """The recipe's if it fits, else the largest half of it that does."""
    if machine.memory_gib is None:
        return None
    state = min(job.state_mib / 1024, peak_gib)
    size = job.micro_batch
    while size and state + (peak_gib - state) * size / job.micro_batch > HEADROOM * machine.memory_gib:
        size //= 2
    return size or None
