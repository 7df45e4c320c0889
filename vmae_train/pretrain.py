"""`vmae-train pretrain`, read as a table of contents: data, order, clips, mask, model, step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from einops import repeat
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.storage import lock
from vmae_train.checkpoints.load import load_init
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import Grid, MaskSpec, num_masked_tokens, sample_mask
from vmae_train.distributed import Distributed, choose_device
from vmae_train.models.geometry import Geometry
from vmae_train.models.losses import cube_targets
from vmae_train.models.videomae import PretrainModel
from vmae_train.runs.log import print_start
from vmae_train.runs.metadata import RunFacts, check_run
from vmae_train.runs.remote_run import RemoteRun
from vmae_train.training.checkpoint import RunState
from vmae_train.training.dry_run import take_dry_run_steps
from vmae_train.training.engine import Engine
from vmae_train.training.loop import Training, train
from vmae_train.training.optimizer import build_optimizer
from vmae_train.training.recorder import RunPlace
from vmae_train.training.setup import RunSpec, TrainingSetup, begin_together, set_up_training

__all__ = ["PretrainLoss", "PretrainSpec", "pretrain"]


class PretrainSpec(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pretraining recipe."""

    mask: MaskSpec = MaskSpec()

    def __post_init__(self) -> None:
        super().__post_init__()
        num_masked_tokens(self.mask, grid_of(self.geometry()))
        if self.augment.erasing is not None:
            raise ValueError("augment.erasing is for finetuning: what is erased can't be predicted; leave it out")


class PretrainLoss:
    """From a batch of planes to the masked loss; everything on the device."""

    def __init__(self, model: PretrainModel, augment: Augment, mask: MaskSpec, *, repeats: int = 1) -> None:
        self.model, self.augment, self.mask, self.repeats = model, augment, mask, repeats

    def __call__(self, batch: Batch) -> Tensor:
        geometry = self.model.geometry
        planes = planes_of_views(batch.planes, batch.index_BVT)
        rng, augment = batch.rng.repeated(self.repeats), self.augment
        boxes = augment.sample_boxes(planes.size_B2, rng, batch.may_flip_B)
        rgb = augment(planes, boxes, augment.sample_policy(rng))
        mask = sample_mask(self.mask, rng, grid_of(geometry))
        targets = cube_targets(rgb / 255, mask.predicted_BK, geometry)
        weight_B = repeat(batch.weight_B, "b -> (b r)", r=self.repeats)
        clips = augment.normalise(rgb)
        return self.model.loss(clips, mask, targets_BMD=targets, weight_B=weight_B, rng=rng)


def pretrain(
    spec: PretrainSpec,
    *,
    data: Sequence[str],
    out: str | Path,
    scratch: Path | None = None,
    init: str | None = None,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
    distributed: Distributed | None = None,
    dry_run: bool = False,
) -> RunState:
    """Pretrain in the folder or bucket `out`, or go on where it was stopped; with the other processes of `world`, if any.

    `data` are data sets, `URL` or `URL:WEIGHT` each. A run in a bucket works in a folder below `scratch`, else in one of
    this machine's cache.

    A `dry_run` takes two steps, writes no checkpoint and raises Rehearsed (see `training.rehearsal`).

    Raises MisuseError for a recipe, data or folder that don't fit each other, VmaeError for a run that can't go on.
    """
    distributed = distributed or Distributed()
    with distributed.all_or_none():
        remote_run = RemoteRun(out, scratch)
        setup = set_up_training(spec, data, distributed)
    mix, geometry = setup.mix, setup.geometry
    with distributed.on_main_process(lock(remote_run.folder, "training")):
        with distributed.all_or_none():
            if distributed.local_rank == 0:  # one a machine
                remote_run.pull(newer_stays=distributed.is_main)
        with distributed.all_or_none():
            recipe = msgspec.to_builtins(spec)
            facts = RunFacts(
                kind="pretrain",
                recipe=recipe,
                data=mix.urls,
                data_digest=mix.digests,
                data_listing=mix.listings,
                data_weight=mix.weights,
                init=init,
            )
            check_run(remote_run.folder, facts, type(spec), remote_run.shown)
            where = choose_device(device, threads=spec.train.threads, distributed=distributed)
            model = first_model(spec, init).to(where).train()
            warned = setup.facts("pretrain", init=init)
            optimizer = build_optimizer(model, spec.optim, depth=geometry.depth)
            engine = setup.engine(model, optimizer, where)
        state = begin_together(distributed, remote_run, facts, engine, keep=spec.checkpoint.keep)
        quiet = distributed.style(style) is ProgressStyle.QUIET
        print_start(
            "pretrain, a dry run" if dry_run else f"pretrain → {remote_run.shown}",
            _rows(setup, spec, engine, state.step),
            quiet=quiet,
        )
        if state.step >= setup.steps:
            return state
        augment = Augment(setup.augment).to(where)
        with setup.loader(state.step, where) as loader:
            training = Training(
                engine,
                loader,
                PretrainLoss(model, augment, spec.mask, repeats=spec.train.repeats),
                distributed=distributed,
                place=RunPlace(remote_run, spec.checkpoint, spec.log, style, warned),
                start=state,
                order=setup.order,
            )
            return take_dry_run_steps(training) if dry_run else train(training)


def _rows(setup: TrainingSetup, spec: PretrainSpec, engine: Engine, done: int) -> dict[str, str]:
    geometry = setup.geometry
    masked = num_masked_tokens(spec.mask, grid_of(geometry))
    flips = spec.augment.flip and bool(setup.mix.may_flip_N.any())
    return {
        "model": f"{spec.model.size}: {geometry.embed_dim} × {geometry.depth} blocks, decoder "
        f"{geometry.decoder_embed_dim} × {geometry.decoder_depth}, {geometry.num_tokens} tokens, "
        f"{geometry.position}",
        "mask": f"{spec.mask.kind}, {masked} of {geometry.num_tokens} tokens hidden, decoder {spec.mask.decoder}",
        "crop": f"{spec.augment.crop} to {geometry.image_size} px, flip {'on' if flips else 'off'}",
        **setup.rows(engine, done),
    }


def grid_of(geometry: Geometry) -> Grid:
    """The tokens of a model's clips."""
    side = geometry.image_size // geometry.patch_size
    return Grid(geometry.slices, side, side)


def first_model(spec: PretrainSpec, init: str | None) -> PretrainModel:
    """Fresh weights, or those of another pretraining model of the same geometry but for its clips."""
    geometry = spec.geometry()
    if init is None:
        model = PretrainModel(geometry, seed=spec.seed)
    else:
        given = load_init(init, geometry, position_resize=spec.model.position_resize)
        if not isinstance(given, PretrainModel):
            raise MisuseError(f"--init {init}: has a head; pretraining goes on from a pretraining model")
        model = given
    model.set_options(spec.model)
    return model
