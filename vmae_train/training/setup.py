"""Data and recipe → everything that is fixed before a model is made: order, layout, schedule, loader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec
import torch

from vmae_data.errors import MisuseError
from vmae_data.read.batches import BatchLayout, DataStage, TrainingOrder
from vmae_data.read.cache import CacheSpec
from vmae_data.read.dataset import Shards
from vmae_data.read.mixture import Mixture, parse_data
from vmae_data.read.stream import Sampler, is_remote
from vmae_train.clips.augment import AugmentSpec
from vmae_train.clips.frame_sampling import train_sampler
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.clips.loader import ClipLoader
from vmae_train.clips.mask import check_vectors
from vmae_train.distributed import Distributed
from vmae_train.engines.choose import check_engine
from vmae_train.models.geometry import Geometry
from vmae_train.runs.metadata import RunFacts, VideoFormat, check_run, describe_other_data
from vmae_train.runs.run_directory import RunDirectory
from vmae_train.runs.trackers import check_trackers
from vmae_train.training.diagnostics import TrainingFacts
from vmae_train.training.optimizer import Schedule
from vmae_train.training.run_spec import RunSpec

__all__ = ["TrainingSetup", "check_cache", "set_up_training"]

Kind = Literal["pretrain", "finetune"]


class TrainingSetup(NamedTuple):
    """A recipe, resolved for its data."""

    spec: RunSpec
    mixture: Mixture
    geometry: Geometry
    samplers: tuple[Sampler, ...]  # one per data set
    augment: AugmentSpec
    order: TrainingOrder
    layout: BatchLayout
    rank: int
    schedule: Schedule
    accept_appended: bool = False  # shards that were appended to the data since the run began

    @property
    def steps(self) -> int:
        return self.schedule.steps

    def for_run(self, run: RunDirectory, facts: RunFacts) -> TrainingSetup:
        """With the stages of the data of a run. Raises MisuseError if it was started with other settings than `facts`."""
        accept = self.accept_appended
        stages = check_run(run.path, facts, self.mixture, type(self.spec), run.name, accept_appended=accept)
        return self.with_stages(stages)

    def with_stages(self, stages: Sequence[DataStage]) -> TrainingSetup:
        """The same training over these stages of its data. The first gives the number of steps and the learning rates."""
        order = TrainingOrder(self.mixture, seed=self.spec.seed, batch=self.spec.train.batch, stages=stages)
        return self._replace(order=order, schedule=_schedule(self.spec, order))

    def loader(self, start: int, device: torch.device, *, targets: bool = False) -> ClipLoader:
        """This process's micro-batches from step `start` to the end. `targets`: with labels of several classes or values."""
        spec = self.spec
        return ClipLoader(
            self.mixture,
            self.samplers,
            self.order.requests(start, self.steps, self.layout, self.rank),
            batch=self.layout.micro_batch,
            frames=self.geometry.num_frames,
            seed=spec.seed,
            spec=spec.loader,
            cache=spec.cache,
            device=device,
            targets=targets,
            motion=spec.reads_motion,
        )

    def run_facts(self, kind: Kind, init: str | None, **objective: Any) -> RunFacts:
        """What run.json holds. `objective` are the objective's own fields."""
        return RunFacts(
            kind=kind,
            recipe=msgspec.to_builtins(self.spec),
            data=self.mixture.urls,
            data_digest=self.mixture.digests,
            data_listing=self.mixture.listings,
            data_weight=self.mixture.weights,
            data_stages=self.order.stages,
            init=init,
            **{"video_format": VideoFormat.of(self.mixture.sets[0].index), **objective},
        )

    def training_facts(self, kind: Kind, init: str | None, *, frozen: bool) -> TrainingFacts:
        """What warnings depend on. Raises DataError for an --init whose run can't be read."""
        layout = self.layout
        return TrainingFacts(
            kind=kind,
            published_size=self.spec.model.size != "tiny",
            frozen=frozen,
            base_lr=self.spec.optim.base_lr,
            batch=self.spec.train.batch,
            world_size=layout.world_size,
            positions=layout.world_size * layout.grad_accum_steps * layout.micro_batch,
            schedule=self.schedule,
            other_data=describe_other_data(init, self.mixture) if kind == "finetune" else None,
        )


def set_up_training(
    spec: RunSpec, data: Sequence[str], distributed: Distributed, *, accept_appended: bool = False
) -> TrainingSetup:
    """Open the data sets, each `URL` or `URL:WEIGHT`, and resolve the recipe for them.

    Raises MisuseError if recipe and data don't fit each other, DataError for data that can't be read.
    """
    check_trackers(spec.log)
    check_engine(spec.train.engine, distributed)
    mixture = Mixture.open([parse_data(text) for text in data])
    geometry = spec.geometry()
    augment = msgspec.structs.replace(spec.augment, size=geometry.image_size)
    for shards in mixture.sets:
        check_cache(spec.cache, shards)
        check_spacing(spec.clip, shards, geometry.num_frames)
        if spec.reads_motion:
            check_vectors(shards)
    order = TrainingOrder(mixture, seed=spec.seed, batch=spec.train.batch)
    for shards in mixture.sets:
        _check_frame_sizes(shards, augment)
    return TrainingSetup(
        spec=spec,
        mixture=mixture,
        geometry=geometry,
        samplers=tuple(train_sampler(spec.clip, shards.index, geometry.num_frames) for shards in mixture.sets),
        augment=augment,
        order=order,
        layout=BatchLayout.of(spec.train.batch, spec.train.micro_batch, distributed.world_size),
        rank=distributed.rank,
        schedule=_schedule(spec, order),
        accept_appended=accept_appended,
    )


def _schedule(spec: RunSpec, order: TrainingOrder) -> Schedule:
    steps, per_epoch = spec.train.total_steps(order.steps_per_epoch), order.steps_per_epoch
    return Schedule.of(spec.optim, batch=spec.train.batch, steps=steps, steps_per_epoch=per_epoch)


def check_cache(cache: CacheSpec, shards: Shards) -> None:
    """Raises MisuseError if the cache is smaller than the largest shard: that one would be fetched again and again."""
    if cache.dir is None or not is_remote([shards.url]):
        return
    largest = max(shards.index.shardlist, key=lambda listed: listed.filesize)
    if largest.filesize > cache.limit:
        raise MisuseError(
            f"cache.bytes = {cache.bytes}: {largest.url} of {shards.url} has {largest.filesize} bytes and would never be "
            "cached. Allow space for many shards, or remove cache.dir and cache.bytes"
        )


def _check_frame_sizes(shards: Shards, augment: AugmentSpec) -> None:
    """Raises MisuseError if a random crop without resizing is larger than some video."""
    smallest = int(shards.size_N2.min())
    if augment.crop == "random" and smallest < (augment.size or 0):
        raise MisuseError(
            f"{shards.url}: the smallest video has {smallest} px, and crop = random cuts {augment.size} px without "
            "resizing. Use crop = multiscale, or build larger shards"
        )
