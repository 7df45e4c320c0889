"""`vmae-train pretrain`: the recipe, and the objective: predict the masked cubes of a clip."""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_train.checkpoints.load import load_init
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import MaskSpec, batch_mask, num_masked_tokens
from vmae_train.models.losses import cube_targets
from vmae_train.models.videomae import PretrainModel, grid_of
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.trainer import Trainer, train

__all__ = ["PretrainObjective", "PretrainSpec", "grid_of", "masked_loss", "pretrain"]


class PretrainSpec(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pretraining recipe."""

    mask: MaskSpec = MaskSpec()

    @property
    def reads_motion(self) -> bool:
        return self.mask.kind == "motion"

    def __post_init__(self) -> None:
        super().__post_init__()
        num_masked_tokens(self.mask, grid_of(self.geometry()))
        if self.augment.erasing is not None:
            raise ValueError(
                "augment.erasing is for finetuning: erased pixels can't be predicted. Remove augment.erasing"
            )


def pretrain(spec: PretrainSpec, **arguments: Any) -> Trainer:
    """Pretrain, or resume a pretraining. Arguments and errors are those of `train`."""
    return train(spec, PretrainObjective(spec), **arguments)


class PretrainObjective(Objective):
    """The mean squared error of the normalised pixels of masked cubes."""

    kind = "pretrain"

    def __init__(self, spec: PretrainSpec) -> None:
        self.spec = spec

    def build_model(self, init: str | None, device: torch.device) -> PretrainModel:
        """A new model, or one with the weights of `init`, whose geometry may differ in clip size and length only."""
        geometry = self.setup.geometry
        if init is None:
            model = PretrainModel(geometry, seed=self.spec.seed)
        else:
            resize = self.spec.model.position_resize
            start = load_init(init, geometry, position_resize=resize, seed=self.spec.seed)
            if not isinstance(start, PretrainModel):
                raise MisuseError(f"--init {init}: has a head. Pretraining starts from a pretraining model")
            model = start
        model.set_options(self.spec.model)
        self.augment = Augment(self.setup.augment).to(device)
        if self.spec.model.compile and device.type == "cuda":
            self.augment.compile_boxes()
        self.model = model.to(device).train()
        return self.model

    def summary(self) -> dict[str, str]:
        spec, geometry = self.spec, self.setup.geometry
        masked = num_masked_tokens(spec.mask, grid_of(geometry))
        flips = spec.augment.flip and bool(self.setup.mixture.may_flip_N.any())
        return {
            "model": f"{spec.model.size}: {geometry.embed_dim} × {geometry.depth} blocks, decoder "
            f"{geometry.decoder_embed_dim} × {geometry.decoder_depth}"
            f"{' with cross-attention' if geometry.decoder_attention == 'cross' else ''}, {geometry.num_tokens} tokens, "
            f"{geometry.position}",
            "mask": f"{spec.mask.kind}, {masked} of {geometry.num_tokens} tokens masked, decoder {spec.mask.decoder}",
            "crop": f"{spec.augment.crop} to {geometry.image_size} px, flip {'on' if flips else 'off'}",
        }

    def loss(self, batch: Batch) -> Tensor:
        return masked_loss(self.model, batch, self.augment, self.spec.mask, repeats=self.spec.train.repeats)


def masked_loss(
    model: PretrainModel, batch: Batch, augment: Augment, mask_spec: MaskSpec, *, repeats: int = 1
) -> Tensor:
    """Decoded planes → crops → mask → predictions → loss. `repeats` clips are made of each sample."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    rng = batch.rng.repeated(repeats)
    boxes = augment.sample_boxes(planes.size_B2, rng, batch.may_flip_B)
    rgb = augment(planes, boxes, augment.sample_policy(rng))
    mask = batch_mask(mask_spec, rng, grid_of(model.geometry), batch, boxes)
    targets = cube_targets(rgb, mask.predicted_BK, model.geometry, white=255)
    weight_B = repeat(batch.weight_B, "b -> (b r)", r=repeats)
    return model.loss(augment.normalise(rgb), mask, targets_BMD=targets, weight_B=weight_B, rng=rng)
