"""What finetuning learns from labels: one class, several classes or values; the model with the head for it, and its loss."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec
import numpy as np
from einops import repeat
from torch import Tensor

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.read.mixture import Mixture
from vmae_train.checkpoints.load import load_init
from vmae_train.clips.augment import Augment
from vmae_train.clips.colour import planes_of_views
from vmae_train.clips.loader import Batch
from vmae_train.clips.mixup import Mixup, MixupSpec, mix_targets, mixup_clips, sample_mixup, soft_targets
from vmae_train.evaluation.predict_videos import check_same_classes
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import (
    Classifier,
    HeadModel,
    MultiLabelClassifier,
    RegressedValue,
    Regressor,
    classifier_from,
    load_encoder,
)
from vmae_train.models.losses import ValueDistance, multi_label_losses, regression_losses, soft_cross_entropy
from vmae_train.models.videomae import PretrainModel

__all__ = ["FinetuneLoss", "FirstModel", "Learnt", "Probe", "check_labels", "first_model", "label_words", "learnt_from"]

Probe = Literal["linear", "attentive"]


def check_labels(mix: Mixture, mixing: MixupSpec) -> None:
    """Raises MisuseError for labels that can't be learnt together, or not with this mixing."""
    first = mix.sets[0]
    for shards in mix.sets:
        _check_labelled(shards)
        if shards.label_kind is not first.label_kind or shards.num_targets != first.num_targets:
            raise MisuseError(
                f"{shards.url}: its labels are {_words_of(shards)}, those of {first.url} {_words_of(first)}; "
                "train on data sets of the same labels"
            )
        check_same_classes(shards, first.classes, "the first data set's", "build it with --classes")
    kind = first.label_kind
    if mixing.label_smoothing and kind is not LabelKind.CLASS:
        raise MisuseError(
            f"mix.label_smoothing = {mixing.label_smoothing}: is for one class a video, the labels of {first.url} are "
            f"{_words_of(first)}; set it to 0"
        )
    if mixing.is_on and kind is LabelKind.VALUES:
        raise MisuseError(
            f"mix.mixup = {mixing.mixup}, mix.cutmix = {mixing.cutmix}: a mixed clip has no value, and the labels of "
            f"{first.url} are {_words_of(first)}; set both to 0"
        )


def _check_labelled(shards: Shards) -> None:
    if not shards.num_targets:
        raise MisuseError(f"{shards.url}: has no labels; finetuning needs class folders or a listing with labels")
    if shards.unlabelled:
        raise MisuseError(
            f"{shards.url}: {shards.unlabelled} of {len(shards)} samples have no label; build it from labelled videos"
        )


def _words_of(shards: Shards) -> str:
    what = {
        LabelKind.CLASS: "one of {} classes",
        LabelKind.CLASSES: "several of {} classes",
        LabelKind.VALUES: "{} values",
    }
    return what[shards.label_kind].format(shards.num_targets)


def label_words(mix: Mixture) -> str:
    """What a video's label is, and the loss that goes with it."""
    loss = {LabelKind.CLASS: "cross entropy", LabelKind.CLASSES: "binary cross entropy", LabelKind.VALUES: "error"}
    return f"{_words_of(mix.sets[0])}; {loss[mix.sets[0].label_kind]}"


class Learnt(NamedTuple):
    """What a head has to answer: classes by name, or values with mean and spread of the training set."""

    kind: LabelKind
    classes: tuple[str, ...]
    values: tuple[RegressedValue, ...] = ()

    def fresh(self, geometry: Geometry, seed: int) -> HeadModel:
        """A new model for it."""
        if self.kind is LabelKind.CLASS:
            return Classifier(geometry, self.classes, seed=seed)
        if self.kind is LabelKind.CLASSES:
            return MultiLabelClassifier(geometry, self.classes, seed=seed)
        return Regressor(geometry, self.values, seed=seed)

    def is_of(self, model: HeadModel) -> bool:
        """Whether a model that has learnt before answers just that, if not in this set's spreads."""
        if isinstance(model, Regressor):
            return len(model.values) == len(self.values)
        kind = MultiLabelClassifier if self.kind is LabelKind.CLASSES else Classifier
        return isinstance(model, kind) and model.classes == self.classes


def learnt_from(mix: Mixture) -> Learnt:
    """A value that is always the same has spread 1."""
    first = mix.sets[0]
    if first.label_kind is not LabelKind.VALUES:
        return Learnt(first.label_kind, first.classes)
    values_NR = mix.targets(range(len(mix))).astype(np.float64)
    values = (
        RegressedValue(name=f"value {r}", mean=float(column.mean()), spread=float(column.std()) or 1.0)
        for r, column in enumerate(values_NR.T, 1)
    )
    return Learnt(first.label_kind, (), tuple(values))


class FirstModel(NamedTuple):
    """What a finetuning begins with, and in words where it is from."""

    model: HeadModel
    start: str


def first_model(
    spec: ModelSpec, geometry: Geometry, learnt: Learnt, *, init: str | None, probe: Probe | None, seed: int
) -> FirstModel:
    """A fresh head on a trained encoder, another such model's weights, or all fresh; a probe's encoder is frozen.

    Of a classifier of other classes, the rows of its head are kept where it names all of the data's.
    """
    recipe = msgspec.structs.replace(geometry, pooling="attentive" if probe == "attentive" else "mean")
    if init is None:
        start = f"from scratch ({recipe.init or 'trunc'} initialisation): no --init was given"
        first = FirstModel(learnt.fresh(recipe, seed), start)
    else:
        given = load_init(init, recipe, position_resize=spec.position_resize, with_decoder=False)
        assert isinstance(given, PretrainModel | HeadModel)
        first = _continued(given, recipe, learnt, init=init, seed=seed, new_head=probe is not None)
    if probe is not None:
        first.model.freeze_encoder()
    first.model.set_options(spec)
    return first


def _continued(
    given: PretrainModel | HeadModel, recipe: Geometry, learnt: Learnt, *, init: str, seed: int, new_head: bool
) -> FirstModel:
    """The given model where it answers what the data's labels are, else a new head on its encoder."""
    if learnt.kind is LabelKind.CLASS:
        model, kept = classifier_from(given, recipe, learnt.classes, seed=seed, new_head=new_head)
        return FirstModel(model, f"{init}{kept}")
    trained = given if isinstance(given, HeadModel) and not new_head else None
    if trained is not None and learnt.is_of(trained) and trained.geometry.pooling == recipe.pooling:
        return FirstModel(trained, init)
    own = {name: getattr(recipe, name) for name in ("pooling", "init", "init_scale", "fc_eps")}
    fresh = learnt.fresh(msgspec.structs.replace(given.geometry, **own), seed)
    load_encoder(fresh, given)
    return FirstModel(fresh, init if trained is None else f"{init}; a new head: its own answers something else")


class FinetuneLoss:
    """From a batch of planes to the loss of its labels; everything on the device."""

    def __init__(
        self,
        model: HeadModel,
        augment: Augment,
        mixing: MixupSpec,
        *,
        repeats: int = 1,
        value_loss: ValueDistance = "mse",
    ) -> None:
        self.model, self.augment, self.mixing, self.repeats = model, augment, mixing, repeats
        self.value_loss: ValueDistance = value_loss

    def __call__(self, batch: Batch) -> Tensor:
        rng, augment = batch.rng.repeated(self.repeats), self.augment
        planes = planes_of_views(batch.planes, batch.index_BVT)
        boxes = augment.sample_boxes(planes.size_B2, rng, batch.may_flip_B)
        clips = augment.erase(augment.normalise(augment(planes, boxes, augment.sample_policy(rng))), rng)
        weight_B = repeat(batch.weight_B, "b -> (b r)", r=self.repeats)
        mixup = None
        if self.mixing.is_on:
            mixup = sample_mixup(self.mixing, rng, weight_B, repeats=self.repeats, size=augment.size)
            clips = mixup_clips(clips, mixup)
        outputs_BK = self.model(clips, rng)
        loss_B = self._losses(outputs_BK, batch, mixup)
        return (loss_B * weight_B).sum() / weight_B.sum().clamp_min(1)

    def _losses(self, outputs_BK: Tensor, batch: Batch, mixup: Mixup | None) -> Tensor:
        model = self.model
        if isinstance(model, Classifier):
            label_B = repeat(batch.label_B, "b -> (b r)", r=self.repeats)
            smoothing = self.mixing.label_smoothing
            target_BK = soft_targets(label_B, mixup, num_classes=len(model.classes), smoothing=smoothing)
            return soft_cross_entropy(outputs_BK, target_BK)
        assert batch.target_BK is not None
        target_BK = mix_targets(repeat(batch.target_BK, "b k -> (b r) k", r=self.repeats), mixup)
        if isinstance(model, Regressor):
            return regression_losses(outputs_BK, target_BK, model.spread_K, self.value_loss)
        return multi_label_losses(outputs_BK, target_BK)
