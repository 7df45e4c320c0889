"""What both trainings settle before the first step, and what they tell of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec
import torch

from vmae_data.errors import DataError, MisuseError
from vmae_data.read.cache import CacheSpec
from vmae_data.read.mix import Mix, parse_data
from vmae_data.read.order import WINDOW_SHARDS, stream_count
from vmae_data.read.shards import Shards
from vmae_data.read.stream import Sampler, is_remote
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.loader import MAX_ASPECT, ClipLoader, LoaderSpec, padded_size
from vmae_train.clips.spacing import check_spacing, clip_words, kept_spacing
from vmae_train.clips.views import ClipSpec, train_sampler
from vmae_train.model.ema import EmaSpec
from vmae_train.model.fetched import BEST, EVALUATION, RUN
from vmae_train.model.videomae import VideoModel
from vmae_train.model.vit import Geometry, ModelSpec
from vmae_train.training.cautions import TrainingFacts
from vmae_train.training.checkpoint import CheckpointSpec, RunState, last_checkpoint, resume
from vmae_train.training.engine import Engine, TrainSpec
from vmae_train.training.log import LogSpec
from vmae_train.training.mirror import Mirror
from vmae_train.training.optim import OptimSpec, Schedule
from vmae_train.training.run import BatchLayout, RunFacts, TrainingOrder, begin_run, other_data
from vmae_train.training.trackers import check_trackers
from vmae_train.training.world import World

__all__ = ["RunSpec", "Settled", "begin_together", "check_cache", "settle"]


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


class Settled(NamedTuple):
    """A recipe held against its data: all that is fixed before a model is made."""

    spec: RunSpec
    mix: Mix
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
            ema=spec.ema.of(model),
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
            world=layout.world,
            places=layout.world * layout.portions * layout.size,
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
            batch=self.layout.size,
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
    taken = f"in {layout.portions} micro-batches of {layout.size}" if layout.portions > 1 else "at once"
    return f"{layout.world} processes, each {taken}" if layout.world > 1 else taken


def _cache_row(settled: Settled) -> dict[str, str]:
    """What the cache should hold, for a person to compare with its limit: the windows that samples are drawn from."""
    cache = settled.spec.cache
    if cache.dir is None:
        return {}
    if not is_remote(settled.mix.urls):
        return {"cache": "not used: the data lie on this machine"}
    sizes = [listed.filesize for shards in settled.mix.sets for listed in shards.index.shardlist]
    open_shards = min(len(sizes), stream_count(settled.spec.train.batch) * (WINDOW_SHARDS + 1))
    drawn_from = open_shards * sum(sizes) / len(sizes)
    return {
        "cache": f"{cache.dir}, at most {cache.limit / 1e9:.4g} GB; samples are drawn from about {drawn_from / 1e9:.4g} GB "
        f"at a time of {sum(sizes) / 1e9:.4g}, shared by the nodes"
    }


def settle(spec: RunSpec, data: Sequence[str], world: World) -> Settled:
    """Open the data, `URL` or `URL:WEIGHT` each, and resolve the recipe against it.

    Raises MisuseError where they don't fit each other, DataError for data that can't be read.
    """
    check_trackers(spec.log)
    mix = Mix.open([parse_data(text) for text in data])
    geometry = spec.geometry()
    for shards in mix.sets:
        check_cache(spec.cache, shards)
        check_spacing(spec.clip, shards, geometry.num_frames)
    order = TrainingOrder(mix, seed=spec.seed, batch=spec.train.batch)
    augment = msgspec.structs.replace(spec.augment, size=geometry.image_size)
    for shards in mix.sets:
        _check_frame_sizes(shards, augment)
    steps, per_epoch = spec.train.total_steps(order.steps_per_epoch), order.steps_per_epoch
    return Settled(
        spec=spec,
        mix=mix,
        geometry=geometry,
        samplers=tuple(train_sampler(spec.clip, shards.index, geometry.num_frames) for shards in mix.sets),
        augment=augment,
        order=order,
        layout=BatchLayout.of(spec.train.batch, spec.train.micro_batch, world.size),
        rank=world.rank,
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
    world: World,
    mirror: Mirror,
    facts: RunFacts,
    engine: Engine,
    *,
    keep: int,
) -> RunState:
    """Make the folder this run's, and go on from its last checkpoint in every process.

    Raises DataError where the processes don't see the same checkpoints.
    """
    run = mirror.folder
    with world.agreed():
        if world.is_main:
            mirror.begin()
            begin_run(run, facts)
            last_checkpoint(run)  # takes leftovers away, before others look
            mirror.publish(RUN)
            mirror.publish_checkpoint(keep)
            mirror.publish(EVALUATION, BEST)
    with world.agreed():
        if world.local_rank == 0 and not world.is_main:  # of another machine
            mirror.pull(newer_stays=False)
    with world.agreed():
        state = resume(run, engine.model, engine.optimizer, engine.ema)
    steps = world.gather_record(state.step, int)
    with world.agreed():
        if state.step != steps[0]:
            raise DataError(
                f"{mirror.shown}: process {world.rank} finds the checkpoint of step {state.step}, the first that of {steps[0]}; "
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


def _clip_rows(settled: Settled) -> dict[str, str]:
    """A data set's rows; of several, one after the other."""
    mix = settled.mix
    if len(mix.sets) == 1:
        return _rows_of(settled, mix.sets[0])
    total = sum(mix.weights)
    rows: dict[str, str] = {}
    for place, shards in enumerate(mix.sets):
        share = mix.weights[place] / total if mix.weights else len(shards) / len(mix)
        found = _rows_of(settled, shards)
        found["data"] += f"; {share:.1%} of a batch on average"
        rows |= {f"{name} {place + 1}": words for name, words in found.items()}
    return rows


def _rows_of(settled: Settled, shards: Shards) -> dict[str, str]:
    clip, num_frames = settled.spec.clip.on(shards.index), settled.geometry.num_frames
    room = padded_size(settled.mix)
    cut = int((shards.size_N2 > room).any(axis=1).sum())
    rows = {
        "data": f"{shards.url}, {len(shards)} samples, shards of {shards.index.spacing}",
        "clip": f"{num_frames} frames, {clip_words(clip, shards, num_frames)}"
        + (", one frame repeated" if clip.frozen else ""),
    }
    if shards.remark:
        rows["index"] = shards.remark
    if nearest := check_spacing(clip, shards, num_frames):
        rows["thinned"] = nearest
    needed = num_frames if clip.sampler == "uniform" else num_frames * kept_spacing(clip, shards)
    short = int((shards.frames_NP[:, 0] < needed).sum())
    if settled.spec.augment.flip and not shards.index.may_flip:
        rows["no flip"] = "this data set says that its videos may not be flipped"
    if cut:
        rows["wide videos"] = f"{cut} are wider than {MAX_ASPECT} × the short side and are cut at the centre"
    if short:
        rows["short videos"] = f"{short} are shorter than a clip and repeat frames"
    return rows
