"""`vmae-train pretrain`, read as a table of contents: data, order, clips, mask, model, step."""

from __future__ import annotations

from pathlib import Path

import msgspec
import torch
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.shards import Shards
from vmae_data.store import lock
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch, ClipLoader, LoaderSpec
from vmae_train.clips.mask import MaskSpec, tube_mask
from vmae_train.clips.views import ClipSpec
from vmae_train.model.load import load_model
from vmae_train.model.loss import cube_targets
from vmae_train.model.videomae import PretrainModel
from vmae_train.model.vit import ModelSpec
from vmae_train.training.checkpoint import CheckpointSpec, RunState, resume
from vmae_train.training.engine import Engine, RunPlace, TrainSpec, choose_device, train
from vmae_train.training.log import LogSpec, print_start
from vmae_train.training.optim import OptimSpec, Schedule, build_optimizer
from vmae_train.training.run import RunFacts, TrainingOrder, open_run
from vmae_train.training.start import check_frame_sizes, clip_rows, run_rows, training_sampler

__all__ = ["PretrainLoss", "PretrainSpec", "pretrain"]


class PretrainSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pretraining recipe."""

    model: ModelSpec
    optim: OptimSpec
    train: TrainSpec
    seed: int = 0
    clip: ClipSpec = ClipSpec()
    augment: AugmentSpec = AugmentSpec()
    mask: MaskSpec = MaskSpec()
    loader: LoaderSpec = LoaderSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    log: LogSpec = LogSpec()


class PretrainLoss:
    """From a batch of planes to the masked loss; everything on the device."""

    def __init__(self, model: PretrainModel, augment: Augment, ratio: float, *, may_flip: bool) -> None:
        self.model, self.augment, self.ratio, self.may_flip = model, augment, ratio, may_flip

    def __call__(self, batch: Batch) -> Tensor:
        geometry = self.model.geometry
        planes = batch.planes
        may_flip_B = torch.full_like(batch.weight_B, self.may_flip, dtype=torch.bool)
        rgb = self.augment(
            planes_of_views(planes, batch.index_BVT),
            self.augment.draw(planes.size_B2, batch.draws, may_flip_B),
        )
        mask = tube_mask(batch.draws, slices=geometry.slices, places=geometry.places, ratio=self.ratio)
        targets = cube_targets(rgb / 255, mask.masked_BM, geometry)
        return self.model.loss(self.augment.normalise(rgb), mask, targets_BMD=targets, weight_B=batch.weight_B)


def pretrain(
    spec: PretrainSpec,
    *,
    data: str,
    out: Path,
    init: str | None = None,
    device: str | None = None,
    style: ProgressStyle = ProgressStyle.AUTO,
) -> RunState:
    """Pretrain in the folder `out`, or go on where it was stopped.

    Raises MisuseError for a recipe, data or folder that don't fit each other, VmaeError for a run that can't go on.
    """
    shards = Shards.open(data)
    geometry = spec.model.geometry(mean=spec.augment.mean, std=spec.augment.std)
    sampler = training_sampler(spec.clip, geometry.num_frames, shards)
    order = TrainingOrder(shards, seed=spec.seed, batch=spec.train.batch)
    augment_spec = msgspec.structs.replace(spec.augment, size=geometry.image_size)
    check_frame_sizes(shards, augment_spec)
    steps = spec.train.total_steps(order.steps_per_epoch)
    schedule = Schedule.of(spec.optim, batch=spec.train.batch, steps=steps, steps_per_epoch=order.steps_per_epoch)
    out.mkdir(parents=True, exist_ok=True)
    with lock(out, "training"):
        open_run(
            out,
            RunFacts(
                kind="pretrain",
                recipe=msgspec.to_builtins(spec),
                data=data,
                data_digest=shards.digest,
                init=init,
            ),
        )
        where = choose_device(device)
        if spec.train.threads is not None:
            torch.set_num_threads(spec.train.threads)
        model = first_model(spec, init)
        model.to(where).train()
        optimizer = build_optimizer(model, spec.optim, depth=geometry.depth)
        engine = Engine(model, optimizer, schedule, spec.train, device=where, clip_grad=spec.optim.clip_grad)
        state = resume(out, model, optimizer)
        rows = {
            **clip_rows(shards, spec.clip, geometry.num_frames),
            **_rows(spec, schedule, order, state.step, where, str(engine.dtype)),
        }
        print_start(f"pretrain → {out}", rows, quiet=style is ProgressStyle.QUIET)
        if state.step >= steps:
            return state
        augment = Augment(augment_spec).to(where)
        loss_of = PretrainLoss(model, augment, spec.mask.ratio, may_flip=shards.index.may_flip)
        with ClipLoader(
            shards,
            sampler,
            order.requests(state.step, steps, spec.train.portions),
            batch=spec.train.batch // spec.train.portions,
            frames=geometry.num_frames,
            seed=spec.seed,
            spec=spec.loader,
            device=where,
        ) as loader:
            return train(
                engine,
                loader,
                loss_of,
                place=RunPlace(out, spec.checkpoint, spec.log, style),
                start=state,
                steps=steps,
                steps_per_epoch=order.steps_per_epoch,
                keys_of=order.keys,
                title="pretrain steps",
            )


def first_model(spec: PretrainSpec, init: str | None) -> PretrainModel:
    """Fresh weights, or those of another pretraining model of the same geometry."""
    geometry = spec.model.geometry(mean=spec.augment.mean, std=spec.augment.std)
    if init is None:
        return PretrainModel(geometry, seed=spec.seed)
    model = load_model(init)
    if not isinstance(model, PretrainModel):
        raise MisuseError(f"--init {init}: is a classifier; pretraining goes on from a pretraining model")
    given, wanted = msgspec.to_builtins(model.geometry), msgspec.to_builtins(geometry)
    different = [f"{name} {given[name]} (recipe {wanted[name]})" for name in given if given[name] != wanted[name]]
    if different:
        raise MisuseError(f"--init {init}: is of another geometry ({', '.join(different)}); change the recipe's model")
    return model


def _rows(
    spec: PretrainSpec, schedule: Schedule, order: TrainingOrder, done: int, device: torch.device, dtype: str
) -> dict[str, str]:
    geometry = spec.model.geometry()
    masked = int(spec.mask.ratio * geometry.places)
    return {
        "model": f"{spec.model.size}: {geometry.embed_dim} × {geometry.depth} blocks, decoder "
        f"{geometry.decoder_embed_dim} × {geometry.decoder_depth}, {geometry.num_tokens} tokens, {geometry.position}",
        "mask": f"{spec.mask.kind}, {masked} of {geometry.places} places hidden",
        "crop": f"{spec.augment.crop} to {geometry.image_size} px, flip "
        f"{'on' if spec.augment.flip and order.shards.index.may_flip else 'off'}",
        **run_rows(spec.train, schedule, order, done, device, dtype),
    }
