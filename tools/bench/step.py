"""The time of a training step: forward pass, backward pass, optimizer; this model and transformers' VideoMAE.

    python -m tools.bench.step [--size S] [--task pretrain finetune] [--precision float32 bfloat16] [--batch 4]
    python -m tools.bench.step --task pretrain --models vmae-train "vmae-train, cross-attention"
    python -m tools.bench.step --task finetune --models vmae-train "vmae-train, reconstruction"
    python -m tools.bench.step --profile      # the operators of this model's steps instead

transformers computes attention by SDPA or eagerly; without transformers only this model runs. All have the same
weights, batch, mask and fused AdamW. A decoder with cross-attention has other weights, and a
finetuning that also reconstructs another loss. Each has a process of its own, and they take turns. Ratios are those of a round.
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from vmae_data.processes import keep_freed_memory
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.mask import MaskSpec, TokenMask, sample_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.finetune import AuxSpec
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.losses import soft_cross_entropy
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec, grid_of
from vmae_train.training.optimizer import OptimSpec, build_optimizer

OURS, RETURNED = "vmae-train", "vmae-train, memory returned"
KEPT = "transformers sdpa, memory kept"
CROSS, AUXILIARY = "vmae-train, cross-attention", "vmae-train, reconstruction"
OTHER_LOSS = (CROSS, AUXILIARY)  # of another model, or of two tasks
MODELS = (OURS, RETURNED, "transformers sdpa", KEPT, "transformers eager")
PARTS = ("forward", "backward", "optimizer")
CLASSES = 400
ADAMW = OptimSpec(base_lr=1e-4, warmup_steps=1, betas=(0.9, 0.95))


class Job(NamedTuple):
    """A step to measure."""

    model: str
    task: str
    size: str
    batch: int
    threads: int = 1


class Stepper(NamedTuple):
    """A step as an engine makes it: forward pass, backward pass of its loss, update with the norm of the gradients."""

    loss: Callable[[], Tensor]
    optimizer: torch.optim.Optimizer

    def forward(self, precision: str, device: str = "cpu") -> Tensor:
        with nullcontext() if precision == "float32" else torch.autocast(device, dtype=getattr(torch, precision)):
            return self.loss()

    def update(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Measured(NamedTuple):
    """Seconds of the parts of a step: of the process's CPU time, and by the clock. `memory`: its peak, MiB."""

    cpu: tuple[float, ...]
    wall: tuple[float, ...]
    loss: float
    memory: float


def build(job: Job) -> Stepper:
    """The first weights, batch and mask of a task are the same for every model."""
    geometry, mask_spec = geometry_of(job.size)
    if job.model == CROSS:
        geometry = msgspec.structs.replace(geometry, decoder_attention="cross")
    model: VideoModel
    if job.task == "pretrain":
        model = PretrainModel(geometry).train()
    else:
        model = Classifier(geometry, tuple(map(str, range(CLASSES)))).train()
    size, generator = geometry.image_size, torch.Generator().manual_seed(0)
    clips = torch.randn(job.batch, 3, geometry.num_frames, size, size, generator=generator)
    label_B = torch.arange(job.batch) % CLASSES
    rng = ClipRng.on("cpu", seed=0, epoch=0, sample=range(job.batch))
    mask = sample_mask(mask_spec, rng, grid_of(geometry))
    if not job.model.startswith("transformers"):
        optimizer = build_optimizer(model, ADAMW, depth=geometry.depth)
        if isinstance(model, PretrainModel):
            return Stepper(lambda: model.loss(clips, mask), optimizer)
        assert isinstance(model, Classifier)
        one_hot_BK = nn.functional.one_hot(label_B, CLASSES).float()
        if job.model == AUXILIARY:
            decoder = PretrainModel(geometry).train()
            model.share_encoder(decoder)
            optimizer = build_optimizer(model, ADAMW, depth=geometry.depth)
            mask = sample_mask(AuxSpec().mask, rng, grid_of(geometry))
            return Stepper(
                lambda: soft_cross_entropy(model(clips), one_hot_BK).mean() + 0.1 * decoder.loss(clips, mask), optimizer
            )
        return Stepper(lambda: soft_cross_entropy(model(clips), one_hot_BK).mean(), optimizer)
    theirs = transformers_model(model, job.model.split()[1].removesuffix(","))
    inputs = {"bool_masked_pos": is_masked(mask, geometry)} if job.task == "pretrain" else {"labels": label_B}
    inputs["pixel_values"] = clips.transpose(1, 2).contiguous()
    adamw = torch.optim.AdamW(
        theirs.parameters(), lr=ADAMW.base_lr, betas=ADAMW.betas, weight_decay=ADAMW.weight_decay, fused=True
    )
    return Stepper(lambda: theirs(**inputs).loss, adamw)


def transformers_model(model: VideoModel, attention: str) -> Any:
    """transformers' model with the same weights."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    kind = "PreTraining" if isinstance(model, PretrainModel) else "VideoClassification"
    reader = getattr(transformers, f"VideoMAEFor{kind}")
    with tempfile.TemporaryDirectory() as folder:
        native, hf = Path(folder, "native"), Path(folder, "hf")
        native.mkdir()
        save_model(native, model)
        convert(str(native), hf, to="hf")
        return reader.from_pretrained(hf, attn_implementation=attention).train()


def is_masked(mask: TokenMask, geometry: Geometry) -> Tensor:
    shape, device = (len(mask.masked_BM), geometry.num_tokens), mask.masked_BM.device
    nothing = torch.zeros(shape, dtype=torch.bool, device=device)
    return nothing.scatter(1, mask.masked_BM, True)


def geometry_of(size: str) -> tuple[Geometry, MaskSpec]:
    """`demo`: the model of the recipe pretrain/demo, which transformers does not have. `quick`: for a test."""
    if size == "demo":
        spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec)
        return spec.geometry(), spec.mask
    keys: dict[str, Any] = {"size": size}
    if size == "quick":
        keys = {"size": "tiny", "depth": 1, "decoder_depth": 2, "position": "sinusoid-1d"}
    # transformers' last norms have another eps.
    return msgspec.structs.replace(ModelSpec(**keys).geometry(), decoder_norm_eps=1e-5, fc_eps=1e-5), MaskSpec()


def make_step(stepper: Stepper, precision: str) -> Measured:
    """One step on the CPU, and the time of its parts."""
    clocks = [(time.process_time(), time.perf_counter())]
    loss = stepper.forward(precision)
    clocks.append((time.process_time(), time.perf_counter()))
    torch.autograd.backward(loss)
    clocks.append((time.process_time(), time.perf_counter()))
    stepper.update()
    clocks.append((time.process_time(), time.perf_counter()))
    cpu, wall = (tuple(b[i] - a[i] for a, b in pairwise(clocks)) for i in range(2))
    return Measured(cpu, wall, loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def mean_of(steps: list[Measured]) -> Measured:
    cpu, wall = (
        tuple(sum(part) / len(steps) for part in zip(*clock, strict=True))
        for clock in list(zip(*steps, strict=True))[:2]
    )
    return Measured(cpu, wall, steps[0].loss, steps[-1].memory)


def serve(job: Job, connection: Connection) -> None:
    """A process that makes steps when it is asked."""
    torch.set_num_threads(job.threads)
    if job.model in (OURS, KEPT, *OTHER_LOSS):
        keep_freed_memory()
    stepper = build(job)
    while (asked := connection.recv()) is not None:
        precision, steps = asked
        connection.send(mean_of([make_step(stepper, precision) for _ in range(steps)]))


@contextmanager
def processes(jobs: list[Job]) -> Iterator[list[Connection]]:
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in jobs]
    children = [context.Process(target=serve, args=(job, ends[1])) for job, ends in zip(jobs, pipes, strict=True)]
    for child, (_, theirs) in zip(children, pipes, strict=True):
        child.start()
        theirs.close()
    yield [own for own, _ in pipes]
    for (own, _), child in zip(pipes, children, strict=True):
        own.send(None)
        child.join()


def compete(
    models: list[str], connections: list[Connection], precision: str, rounds: int, steps: int
) -> list[list[Measured]]:
    """Rounds of each model, in turns. A first step, not counted, checks that all have the same loss, but OTHER_LOSS."""

    def ask(who: int, steps: int) -> Measured:
        connections[who].send((precision, steps))
        answer: Measured = connections[who].recv()
        return answer

    first = [ask(who, 1).loss for who in range(len(connections))]
    losses = [loss for model, loss in zip(models, first, strict=True) if model not in OTHER_LOSS] or first
    if max(losses) - min(losses) > (1e-4 if precision == "float32" else 0.02) * losses[0]:
        raise SystemExit(f"the models have different losses: {losses}")
    taken: list[list[Measured]] = [[] for _ in connections]
    for number in range(rounds):
        for turn in range(len(connections)):
            who = (turn + number) % len(connections)
            taken[who].append(ask(who, steps))
    return taken


HEAD = (
    f"| step | model | {' | '.join(PARTS)} | CPU ms | wall ms | MiB | CPU time, × the first row's | wall |\n"
    f"| {' | '.join(['---'] * 10)} |"
)


def rows(title: str, models: list[str], taken: list[list[Measured]]) -> list[str]:
    """Medians of the rounds; of ratios also the range."""
    lines = []
    for model, theirs in zip(models, taken, strict=True):
        parts = [f"{1000 * median(one.cpu[part] for one in theirs):.0f}" for part in range(len(PARTS))]
        totals = [f"{1000 * median(sum(one[clock]) for one in theirs):.0f}" for clock in range(2)]
        compared = []
        for clock in range(2):
            ratios = [sum(other[clock]) / sum(own[clock]) for own, other in zip(taken[0], theirs, strict=True)]
            compared.append(f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        memory = f"{max(one.memory for one in theirs):.0f}"
        lines.append(f"| {' | '.join([title, model, *parts, *totals, memory, *compared])} |")
    return lines


def profile(stepper: Stepper, precision: str, steps: int) -> str:
    make_step(stepper, precision)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            make_step(stepper, precision)
    table: str = profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=45)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=("quick", "demo", "S", "B", "L"), default="S")
    parser.add_argument("--task", choices=("pretrain", "finetune"), nargs="+", default=["pretrain", "finetune"])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--models", choices=(*MODELS, *OTHER_LOSS), nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps of each model in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with_transformers = find_spec("transformers") is not None and options.size != "demo"
    models = [model for model in options.models if with_transformers or not model.startswith("transformers")]
    found = metadata.version("transformers") if with_transformers else "none"
    print(
        f"{platform.machine()}, {options.threads} threads, batch {options.batch}, torch {torch.__version__}, transformers {found}"
    )
    if not options.profile:
        print(HEAD)
    for task in options.task:
        jobs = [Job(model, task, options.size, options.batch, options.threads) for model in models]
        if options.profile:
            keep_freed_memory()
            print(*(profile(build(jobs[0]), precision, options.steps) for precision in options.precision), sep="\n")
            continue
        with processes(jobs) as connections:
            for precision in options.precision:
                taken = compete(models, connections, precision, options.rounds, options.steps)
                print(*rows(f"{options.size} {task} {precision}", models, taken), sep="\n", flush=True)


if __name__ == "__main__":
    main()
