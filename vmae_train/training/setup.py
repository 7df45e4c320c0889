"""What both trainings settle before the first step, and what they tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import torch

from vmae_data.errors import DataError, MisuseError
from vmae_data.read.batches import BatchLayout, TrainingOrder
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture, parse_data
from vmae_data.read.order import WINDOW_SHARDS, stream_count
from vmae_data.read.stream import Sampler, is_remote
from vmae_train.checkpoints.ema import EmaSpec
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.frame_sampling import ClipSpec, train_sampler
from vmae_train.clips.frame_spacing import check_spacing, describe_clip, kept_spacing
from vmae_train.clips.loader import MAX_ASPECT, ClipLoader, LoaderSpec, padded_size
from vmae_train.distributed import Distributed
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.runs.layout import BEST, EVALUATION, RUN
from vmae_train.runs.log import LogSpec
from vmae_train.runs.metadata import RunFacts, begin_run, other_data
from vmae_train.runs.remote_run import RemoteRun
from vmae_train.runs.trackers import check_trackers
from vmae_train.training.checkpoint import CheckpointSpec, RunState, last_checkpoint, resume
from vmae_train.training.diagnostics import TrainingFacts
from vmae_train.training.engine import Engine, TrainSpec
from vmae_train.training.optimizer import OptimSpec, Schedule

__all__ = ["RunSpec", "TrainingSetup", "begin_together", "check_cache", "set_up_training"]


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The tables that pretraining and finetuning recipes share."""

    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    seed: int = 0
    clip: ClipSpec = ClipSpec()
    augment: AugmentSpec = AugmentSpec()
    loader: LoaderSpec = LoaderSpec()
    cache: CacheSpec = CacheSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    log: LogSpec = LogSpec()
    ema: EmaSpec = EmaSpec()

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed = {self.seed}: expected 0 or a positive number below 2^63")
        if self.augment.size is not None:
            raise ValueError(f"augment.size = {self.augment.size}: follows model.image_size; leave it out")

    def geometry(self) -> Geometry:
        return self.model.geometry(mean=self.augment.mean, std=self.augment.std)


class TrainingSetup(NamedTuple):
    """A recipe held against its data: all that is fixed before a model is made."""

    spec: RunSpec
    mix: Mixture
    geometry: Geometry
    samplers: tuple[Sampler, ...]  # of each data set
    augment: AugmentSpec
    order: TrainingOrder
    layout: BatchLayout
    rank: int
    schedule: Schedule

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def engine(self, model: VideoModel, optimizer: torch.optim.Optimizer, device: torch.device) -> Engine:
        spec = self.spec
        return Engine(
            model,
            optimizer,
            self.schedule,
            spec.train,
            layout=self.layout,
            device=device,
            clip_grad=spec.optim.clip_grad,
            ema=spec.ema.build(model),
        )

    def facts(self, kind: Literal["pretrain", "finetune"], *, init: str | None, frozen: bool = False) -> TrainingFacts:
        """What warnings hang on. Raises DataError for an --init whose run can't be read."""
        layout = self.layout
        return TrainingFacts(
            kind=kind,
            published_size=self.spec.model.size != "tiny",
            frozen=frozen,
            base_lr=self.spec.optim.base_lr,
            batch=self.spec.train.batch,
            world_size=layout.world_size,
            places=layout.world_size * layout.grad_accum_steps * layout.micro_batch,
            schedule=self.schedule,
            other_data=other_data(init, self.mix) if kind == "finetune" else None,
        )

    def loader(self, start: int, device: torch.device, *, targets: bool = False) -> ClipLoader:
        """The micro-batches of steps `start` to the end."""
        spec = self.spec
        return ClipLoader(
            self.mix,
            self.samplers,
            self.order.requests(start, self.steps, self.layout, self.rank),
            batch=self.layout.micro_batch,
            frames=self.geometry.num_frames,
            seed=spec.seed,
            spec=spec.loader,
            cache=spec.cache,
            device=device,
            targets=targets,
        )

    def rows(self, engine: Engine, done: int) -> dict[str, str]:
        """Clips, rates, steps and batch as resolved, for the table at the start."""
        train, schedule, order = self.spec.train, self.schedule, self.order
        return {
            **_clip_rows(self),
            "batch": f"{train.batch} a step, {_portions(self.layout)}"
            + (f"; {train.repeats} clips of each video" if train.repeats > 1 else ""),
            "rate": f"peak {schedule.peak:.4g} (base × batch / 256), lowest {schedule.lowest:.4g}, "
            f"warm-up {schedule.warmup} steps",
            "steps": f"{schedule.steps} ({schedule.steps / order.steps_per_epoch:.1f} epochs of {order.steps_per_epoch})"
            + (f", {done} done" if done else ""),
            "device": f"{engine.device}, {str(engine.dtype).removeprefix('torch.')}, "
            f"{torch.get_num_threads()} CPU threads",
            **_cache_row(self),
        }


def _portions(layout: BatchLayout) -> str:
    taken = (
        f"in {layout.grad_accum_steps} micro-batches of {layout.micro_batch}"
        if layout.grad_accum_steps > 1
        else "at once"
    )
    return f"{layout.world_size} processes, each {taken}" if layout.world_size > 1 else taken


def _cache_row(setup: TrainingSetup) -> dict[str, str]:
    """What the cache should hold, for a person to compare with its limit: the windows that samples are drawn from."""
    cache = setup.spec.cache
    if cache.dir is None:
        return {}
    if not is_remote(setup.mix.urls):
        return {"cache": "not used: the data lie on this machine"}
    sizes = [listed.filesize for shards in setup.mix.sets for listed in shards.index.shardlist]
    open_shards = min(len(sizes), stream_count(setup.spec.train.batch) * (WINDOW_SHARDS + 1))
    drawn_from = open_shards * sum(sizes) / len(sizes)
    return {
        "cache": f"{cache.dir}, at most {cache.limit / 1e9:.4g} GB; samples are drawn from about {drawn_from / 1e9:.4g} GB "
        f"at a time of {sum(sizes) / 1e9:.4g}, shared by the nodes"
    }


def set_up_training(spec: RunSpec, data: Sequence[str], distributed: Distributed) -> TrainingSetup:
    """Open the data, `URL` or `URL:WEIGHT` each, and resolve the recipe against it.

    Raises MisuseError where they don't fit each other, DataError for data that can't be read.
    """
    check_trackers(spec.log)
    mix = Mixture.open([parse_data(text) for text in data])
    geometry = spec.geometry()
    for shards in mix.sets:
        check_cache(spec.cache, shards)
        check_spacing(spec.clip, shards, geometry.num_frames)
    order = TrainingOrder(mix, seed=spec.seed, batch=spec.train.batch)
    augment = msgspec.structs.replace(spec.augment, size=geometry.image_size)
    for shards in mix.sets:
        _check_frame_sizes(shards, augment)
    steps, per_epoch = spec.train.total_steps(order.steps_per_epoch), order.steps_per_epoch
    return TrainingSetup(
        spec=spec,
        mix=mix,
        geometry=geometry,
        samplers=tuple(train_sampler(spec.clip, shards.index, geometry.num_frames) for shards in mix.sets),
        augment=augment,
        order=order,
        layout=BatchLayout.of(spec.train.batch, spec.train.micro_batch, distributed.size),
        rank=distributed.rank,
        schedule=Schedule.of(spec.optim, batch=spec.train.batch, steps=steps, steps_per_epoch=per_epoch),
    )


def check_cache(cache: CacheSpec, shards: Shards) -> None:
    """Raises MisuseError where a cache has no room for some shard that it is there for: that would be fetched again and again."""
    if cache.dir is None or not is_remote([shards.url]):
        return
    largest = max(shards.index.shardlist, key=lambda listed: listed.filesize)
    if largest.filesize > cache.limit:
        raise MisuseError(
            f"cache.bytes = {cache.bytes}: {largest.url} of {shards.url} has {largest.filesize} bytes and would never be "
            "kept; give room for many shards, or leave cache.dir and cache.bytes out"
        )


def begin_together(
    distributed: Distributed,
    remote_run: RemoteRun,
    facts: RunFacts,
    engine: Engine,
    *,
    keep: int,
) -> RunState:
    """Make the folder this run's, and go on from its last checkpoint in every process.

    Raises DataError where the processes don't see the same checkpoints.
    """
    run = remote_run.folder
    with distributed.all_or_none():
        if distributed.is_main:
            remote_run.begin()
            begin_run(run, facts)
            last_checkpoint(run)  # takes leftovers away, before others look
            remote_run.publish(RUN)
            remote_run.publish_checkpoint(keep)
            remote_run.publish(EVALUATION, BEST)
    with distributed.all_or_none():
        if distributed.local_rank == 0 and not distributed.is_main:  # of another machine
            remote_run.pull(newer_stays=False)
    with distributed.all_or_none():
        state = resume(run, engine.model, engine.optimizer, engine.ema)
    steps = distributed.all_gather(state.step, int)
    with distributed.all_or_none():
        if state.step != steps[0]:
            raise DataError(
                f"{remote_run.shown}: process {distributed.rank} finds the checkpoint of step {state.step}, the first that of {steps[0]}; "
                "put --out where all processes see the same files"
            )
    return state


def _check_frame_sizes(shards: Shards, spec: AugmentSpec) -> None:
    """Raises MisuseError where a plain random crop finds no room in some video."""
    smallest = int(shards.size_N2.min())
    if spec.crop == "random" and smallest < (spec.size or 0):
        raise MisuseError(
            f"{shards.url}: a video is {smallest} px small, crop = random cuts {spec.size} px without resizing; "
            "use crop = multiscale, or build larger shards"
        )


def _clip_rows(setup: TrainingSetup) -> dict[str, str]:
    """A data set's rows; of several, one after the other."""
    mix = setup.mix
    if len(mix.sets) == 1:
        return _rows_of(setup, mix.sets[0])
    total = sum(mix.weights)
    rows: dict[str, str] = {}
    for place, shards in enumerate(mix.sets):
        share = mix.weights[place] / total if mix.weights else len(shards) / len(mix)
        found = _rows_of(setup, shards)
        found["data"] += f"; {share:.1%} of a batch on average"
        rows |= {f"{name} {place + 1}": words for name, words in found.items()}
    return rows


def _rows_of(setup: TrainingSetup, shards: Shards) -> dict[str, str]:
    clip, num_frames = setup.spec.clip.resolve(shards.index), setup.geometry.num_frames
    room = padded_size(setup.mix)
    cut = int((shards.size_N2 > room).any(axis=1).sum())
    rows = {
        "data": f"{shards.url}, {len(shards)} samples, shards of {shards.index.spacing}",
        "clip": f"{num_frames} frames, {describe_clip(clip, shards, num_frames)}"
        + (", one frame repeated" if clip.frozen else ""),
    }
    if shards.note:
        rows["index"] = shards.note
    if nearest := check_spacing(clip, shards, num_frames):
        rows["thinned"] = nearest
    needed = num_frames if clip.sampler == "uniform" else num_frames * kept_spacing(clip, shards)
    short = int((shards.frames_NP[:, 0] < needed).sum())
    if setup.spec.augment.flip and not shards.index.may_flip:
        rows["no flip"] = "this data set says that its videos may not be flipped"
    if cut:
        rows["wide videos"] = f"{cut} are wider than {MAX_ASPECT} × the short side and are cut at the centre"
    if short:
        rows["short videos"] = f"{short} are shorter than a clip and repeat frames"
    return rows
