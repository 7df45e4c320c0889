"""`vmae-train finetune`: the recipe and the objective. The model predicts labels; a validation set scores it."""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from einops import repeat
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.batches import BatchLayout
from vmae_data.read.dataset import LabelKind, Shards
from vmae_train.clips.augment import Augment
from vmae_train.clips.boxes import Boxes
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.frame_sampling import view_sampler
from vmae_train.clips.frame_spacing import check_spacing
from vmae_train.clips.loader import Batch
from vmae_train.clips.mask import MaskSpec, batch_mask, num_masked_tokens
from vmae_train.clips.mixup import MixupSpec, mix_targets, mixup_clips, sample_mixup, soft_targets
from vmae_train.clips.rng import ClipRng
from vmae_train.distributed import Distributed
from vmae_train.evaluation.metrics import AnyScores
from vmae_train.evaluation.predict_videos import check_classes, own_batches, predict_videos
from vmae_train.evaluation.predictions import compute_scores
from vmae_train.evaluation.protocol import EvaluateSpec, EvaluationProtocol, parse_views
from vmae_train.models.geometry import Geometry
from vmae_train.models.heads import Classifier, HeadModel, Regressor
from vmae_train.models.losses import (
    ValueDistance,
    cube_targets,
    multi_label_losses,
    regression_losses,
    soft_cross_entropy,
)
from vmae_train.models.videomae import grid_of
from vmae_train.runs.metadata import VideoFormat
from vmae_train.training.engine import Engine
from vmae_train.training.head import (
    Probe,
    build_head_model,
    check_labels,
    fit_standardization,
    label_text,
    target_of,
)
from vmae_train.training.objective import Objective
from vmae_train.training.run_spec import RunSpec
from vmae_train.training.setup import TrainingSetup, check_cache
from vmae_train.training.step_sync import StepSync
from vmae_train.training.trainer import Trainer, train

__all__ = [
    "AuxSpec",
    "FinetuneObjective",
    "FinetuneSpec",
    "check_mix_groups",
    "finetune",
    "label_loss",
    "probe_settings",
]

_PROBE_LR = {"linear": 3e-3, "attentive": 1e-3}
_STATISTICS_CLIPS = 1024


class AuxSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the encoder learns besides the labels, from the same clips.

    `reconstruction`: the weight of the pretraining loss, whose gradient also trains the encoder; 0: off.
    Das et al., "Limited Data, Unlimited Potential", WACV 2024. Their code masks a share of 0.75.
    """

    reconstruction: float = 0.0  # weight of the pretraining loss beside the labels; 0: off
    mask: MaskSpec = MaskSpec(ratio=0.75)

    def __post_init__(self) -> None:
        if not 0 <= self.reconstruction <= 1000:
            raise ValueError(f"aux.reconstruction = {self.reconstruction}: expected 0 to 1000")

    @property
    def is_on(self) -> bool:
        return self.reconstruction > 0


NO_AUX = AuxSpec()


class FinetuneSpec(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finetuning recipe. With `probe` only the layers after the encoder are trained, else all.

    `standardize`: the head standardizes features, and takes the mean of each tubelet slice unless it is attentive.

    The labels decide the loss. One class: cross entropy. Several classes: a binary cross entropy for each. Values:
    `value_loss`, a squared or absolute error in standard deviations of the training set.
    """

    evaluate: EvaluateSpec = EvaluateSpec()
    probe: Probe | None = None  # train only a head: linear, or attentive pooling; none: train all
    standardize: bool = False  # of the head: features minus their mean, divided by their spread, over training clips
    mix: MixupSpec = MixupSpec()
    value_loss: ValueDistance = "mse"  # for values: absolute or squared error
    aux: AuxSpec = NO_AUX

    @property
    def reads_motion(self) -> bool:
        return self.aux.is_on and self.aux.mask.kind == "motion"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aux.is_on:
            self._check_aux()
        for name in ("batch", "micro_batch"):
            size = getattr(self.train, name)
            if self.mix.is_on and size is not None and size % self.mix.mix_group:
                raise ValueError(f"mix.mix_group = {self.mix.mix_group} does not divide train.{name} = {size}")

    def _check_aux(self) -> None:
        try:
            num_masked_tokens(self.aux.mask, grid_of(self.geometry()))
        except ValueError as error:
            raise ValueError(f"aux.{error}") from error
        if self.probe is not None:
            raise ValueError(
                f"aux.reconstruction = {self.aux.reconstruction}, probe = {self.probe}: a probe does not train the encoder. "
                "Remove one of them"
            )
        if self.train.engine != "ddp":
            raise ValueError(
                f"aux.reconstruction = {self.aux.reconstruction}, train.engine = {self.train.engine}: only ddp trains the "
                "decoder. Set train.engine to ddp"
            )


def probe_settings(spec: FinetuneSpec, probe: Probe) -> list[str]:
    """What `--probe` sets in a recipe: standardization, its own learning rate, no weight decay, unmixed labels.

    The recipe's are for all weights, in small steps. docs/benchmarks.md has the measurement.
    """
    return [
        *(f"probe={probe}", "standardize=true"),
        f"optim.base_lr={_PROBE_LR[probe] * 256 / spec.train.batch!r}",
        *("optim.min_lr=0.0", "optim.weight_decay=0.0"),
        *("mix.mixup=0.0", "mix.cutmix=0.0", "mix.label_smoothing=0.0"),
    ]


def finetune(spec: FinetuneSpec, *, validation: str, **arguments: Any) -> Trainer:
    """Finetune, or resume, and score the validation set. Other arguments and errors are those of `train`."""
    return train(spec, FinetuneObjective(spec, validation), **arguments)


class FinetuneObjective(Objective):
    """The loss of a video's labels, and the scores of the validation set at the URL `validation`."""

    kind = "finetune"

    def __init__(self, spec: FinetuneSpec, validation: str) -> None:
        self.spec, self.validation_url = spec, validation
        self.frozen = spec.probe is not None
        self.validate_every = spec.evaluate.every_steps
        self.parts = ("label_loss", "reconstruction_loss") if spec.aux.is_on else ()

    def prepare(self, setup: TrainingSetup) -> None:
        super().prepare(setup)
        self.validation = Shards.open(self.validation_url)
        spec, index, num_frames = self.spec, self.validation.index, setup.geometry.num_frames
        check_cache(spec.cache, self.validation)
        for views in {spec.evaluate.views, spec.evaluate.every_views}:
            num_clips = parse_views(views).clips
            view_sampler(spec.clip, index, num_frames, num_clips)
            self.nearest = check_spacing(spec.clip, self.validation, num_frames, num_clips)
        check_labels(setup.mixture, spec.mix)
        check_mix_groups(spec, setup.layout)
        self.targets = setup.mixture.sets[0].label_kind is not LabelKind.CLASS

    def facts(self) -> dict[str, Any]:
        classes = self.setup.mixture.sets[0].classes
        return {
            "validation": self.validation_url,
            "validation_digest": self.validation.digest,
            "classes": classes,
            "video_format": VideoFormat.of(self.validation.index),
        }

    def build_model(self, init: str | None, device: torch.device) -> HeadModel:
        spec, target = self.spec, target_of(self.setup.mixture, self.setup.order.samples_at_start())
        model, self.origin = build_head_model(
            spec.model,
            spec.geometry(),
            target,
            init=init,
            probe=spec.probe,
            standardize=spec.standardize,
            seed=spec.seed,
            with_decoder=spec.aux.is_on,
        )
        check_classes(model, self.validation)
        self.augment = Augment(self.setup.augment).to(device)
        if self.spec.model.compile and device.type == "cuda":
            self.augment.compile_boxes()
        self.model = model.to(device).train()
        if self.spec.standardize and not model.standardize.is_fitted():
            self._fit_standardization(device)
        return self.model

    def _fit_standardization(self, device: torch.device) -> None:
        """With the clips of the first steps, as one process would load them. A resumed run then loads its own."""
        spec, setup = self.spec, self.setup
        steps = min(setup.steps, -(-_STATISTICS_CLIPS // spec.train.batch))
        first = setup._replace(
            schedule=msgspec.structs.replace(setup.schedule, steps=steps),
            layout=BatchLayout.of(spec.train.batch, setup.layout.micro_batch, 1),
            rank=0,
        )
        with first.loader(0, device) as loader:
            readable = (batch for batch in loader if batch.valid)
            fit_standardization(
                self.model,
                (
                    _training_clips(batch, self.augment, spec.train.repeats)[
                        repeat(batch.weight_B, "b -> (b r)", r=spec.train.repeats) > 0
                    ]
                    for batch in readable
                ),
            )

    def summary(self) -> dict[str, str]:
        probe, mixture = self.spec.probe, self.setup.mixture
        return {
            "labels": label_text(mixture),
            "augmentation": augmentation_text(self.spec, may_flip=bool(mixture.may_flip_N.any())),
            "start": self.origin,
            **({"reconstruction": reconstruction_text(self.spec.aux, self.setup.geometry)} if self.parts else {}),
            **({"validation, thinned": self.nearest} if self.nearest else {}),
            **({"head": "the mean of each tubelet slice, standardized"} if self.spec.standardize and not probe else {}),
            **({"probe": f"{probe}; the encoder is frozen"} if probe else {}),
        }

    def loss(self, batch: Batch) -> Tensor:
        spec = self.spec
        repeats, value_loss = spec.train.repeats, spec.value_loss
        return label_loss(self.model, batch, self.augment, spec.mix, spec.aux, repeats=repeats, value_loss=value_loss)

    def evaluate(
        self, engine: Engine, distributed: Distributed, *, style: ProgressStyle, sync: StepSync | None = None
    ) -> AnyScores:
        spec = self.spec
        views = spec.evaluate.views if sync is None else spec.evaluate.every_views
        model = engine.whole_model()
        assert isinstance(model, HeadModel)
        predictions = predict_videos(
            model,
            self.validation,
            protocol=EvaluationProtocol(parse_views(views), spec.clip, spec.evaluate.merge, spec.augment.antialias),
            loader=spec.loader,
            cache=spec.cache,
            device=engine.device,
            batch=spec.evaluate.batch,
            autocast=engine.autocast,
            style=style,
            distributed=distributed,
            turns=sync.validation_batches if sync is not None else own_batches,
        )
        self.model.train()
        with distributed.all_or_none():
            return compute_scores(predictions)


def label_loss(
    model: HeadModel,
    batch: Batch,
    augment: Augment,
    mixup_spec: MixupSpec,
    aux: AuxSpec = NO_AUX,
    *,
    repeats: int = 1,
    value_loss: ValueDistance = "mse",
) -> Tensor:
    """Decoded planes → crops → mixup → outputs → loss. `repeats` clips are made of each sample.

    With `aux.reconstruction` three losses: label loss + weight × reconstruction loss, which alone has a gradient, and
    its two terms. The reconstruction takes the clips before erasing and mixup: as in pretraining the targets are
    pixels of one video, and no noise. The authors' code reconstructs erased and mixed images.
    """
    rng = batch.rng.repeated(repeats)
    boxes, rgb = _augmented_crops(batch, augment, rng)
    clips = augment.normalise(rgb)
    weight_B = repeat(batch.weight_B, "b -> (b r)", r=repeats)
    masked_loss = None
    if aux.is_on:
        assert model.auxiliary is not None
        mask = batch_mask(aux.mask, rng, grid_of(model.geometry), batch, boxes)
        targets = cube_targets(rgb, mask.predicted_BK, model.geometry, white=255)
        masked_loss = model.auxiliary.loss(clips, mask, targets_BMD=targets, weight_B=weight_B, rng=rng)
    del rgb  # its memory is needed
    clips = augment.erase(clips, rng)  # in place: the model copied the visible cubes
    mixup = None
    if mixup_spec.is_on:
        mixup = sample_mixup(mixup_spec, rng, weight_B, repeats=repeats, size=augment.size)
        clips = mixup_clips(clips, mixup)
    outputs_BK = model(clips, rng)
    if isinstance(model, Classifier):
        label_B = repeat(batch.label_B, "b -> (b r)", r=repeats)
        classes, smoothing = len(model.classes), mixup_spec.label_smoothing
        loss_B = soft_cross_entropy(outputs_BK, soft_targets(label_B, mixup, num_classes=classes, smoothing=smoothing))
    else:
        assert batch.target_BK is not None
        target_BK = mix_targets(repeat(batch.target_BK, "b k -> (b r) k", r=repeats), mixup)
        if isinstance(model, Regressor):
            loss_B = regression_losses(outputs_BK, target_BK, model.spread_K, value_loss)
        else:
            loss_B = multi_label_losses(outputs_BK, target_BK)
    loss = (loss_B * weight_B).sum() / weight_B.sum().clamp_min(1)
    if masked_loss is None:
        return loss
    return torch.stack((loss + aux.reconstruction * masked_loss, loss.detach(), masked_loss.detach()))


def reconstruction_text(aux: AuxSpec, geometry: Geometry) -> str:
    """The auxiliary task, for the summary."""
    masked = num_masked_tokens(aux.mask, grid_of(geometry))
    return f"{aux.reconstruction:g} × the masked loss; {aux.mask.kind}, {masked} of {geometry.num_tokens} tokens masked"


def _augmented_crops(batch: Batch, augment: Augment, rng: ClipRng) -> tuple[Boxes, Tensor]:
    """The boxes of a batch's crops, and the crops after RandAugment, before erasing: RGB, not normalised."""
    planes = planes_of_views(batch.planes, batch.index_BVT)
    boxes = augment.sample_boxes(planes.size_B2, rng, batch.may_flip_B)
    return boxes, augment(planes, boxes, augment.sample_policy(rng))


def _training_clips(batch: Batch, augment: Augment, repeats: int) -> Tensor:
    rng = batch.rng.repeated(repeats)
    _, rgb = _augmented_crops(batch, augment, rng)
    return augment.erase(augment.normalise(rgb), rng)


def augmentation_text(spec: FinetuneSpec, *, may_flip: bool) -> str:
    """What is done to clips and labels, in order."""
    augment, mixup = spec.augment, spec.mix
    steps = [f"crop {augment.crop}{'' if augment.antialias else ' without antialias'}"]
    if (policy := augment.randaugment) is not None:
        strength = f"magnitude {policy.magnitude:g} ± {policy.magnitude_std:g}"
        steps.insert(0, f"RandAugment {policy.layers} × {policy.prob:g}, {strength}")
    steps.append(f"flip {'on' if augment.flip and may_flip else 'off'}")
    if augment.erasing is not None:
        steps.append(f"erasing {augment.erasing.prob:g}")
    if mixup.is_on:
        steps.append(f"mixup {mixup.mixup:g}, cutmix {mixup.cutmix:g} in groups of {mixup.mix_group}")
    if mixup.label_smoothing:
        steps.append(f"label smoothing {mixup.label_smoothing:g}")
    return "; ".join(steps)


def check_mix_groups(spec: FinetuneSpec, layout: BatchLayout) -> None:
    """Raises MisuseError if a mixup group would be split between processes or micro-batches."""
    group, batch = spec.mix.mix_group, spec.train.batch
    if spec.mix.is_on and (batch % (group * layout.world_size) or layout.micro_batch % group):
        raise MisuseError(
            f"mix.mix_group = {group}: {layout.world_size} processes with micro-batches of {layout.micro_batch} would split "
            f"groups of a batch of {batch}. A process's share and train.micro_batch must be multiples of mix.mix_group"
        )
