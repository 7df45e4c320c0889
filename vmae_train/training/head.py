"""Labels of the data → the model with a head that predicts them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from vmae_data.errors import MisuseError
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.read.mixture import Mixture
from vmae_train.checkpoints.load import load_init
from vmae_train.clips.mixup import MixupSpec
from vmae_train.evaluation.predict_videos import check_same_classes
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec, Pooling
from vmae_train.models.heads import (
    Classifier,
    HeadModel,
    MultiLabelClassifier,
    RegressedValue,
    Regressor,
    classifier_from,
    load_encoder,
)
from vmae_train.models.videomae import PretrainModel

__all__ = [
    "HeadTarget",
    "Probe",
    "build_head_model",
    "check_labels",
    "fit_standardization",
    "label_text",
    "probed",
    "target_of",
]

Probe = Literal["linear", "attentive"]

_LABELS = {
    LabelKind.CLASS: ("one of {} classes", "cross entropy"),
    LabelKind.CLASSES: ("several of {} classes", "binary cross entropy"),
    LabelKind.VALUES: ("{} values", "error"),
}


def check_labels(mixture: Mixture, mixup: MixupSpec) -> None:
    """Raises MisuseError for missing labels, labels that can't be learnt together, or not with this mixup."""
    first = mixture.sets[0]
    for shards in mixture.sets:
        if not shards.num_targets:
            raise MisuseError(f"{shards.url}: has no labels. Finetuning needs class folders or a listing with labels")
        if shards.unlabelled:
            raise MisuseError(
                f"{shards.url}: {shards.unlabelled} of {len(shards)} samples have no label. Build it from labelled videos"
            )
        if shards.label_kind is not first.label_kind or shards.num_targets != first.num_targets:
            raise MisuseError(
                f"{shards.url}: its labels are {_kind_text(shards)}, those of {first.url} are {_kind_text(first)}. "
                "Train on data sets with the same labels"
            )
        check_same_classes(shards, first.classes, "the first data set's", "build it with --classes")
    if mixup.label_smoothing and first.label_kind is not LabelKind.CLASS:
        raise MisuseError(
            f"mix.label_smoothing = {mixup.label_smoothing}: is for one class per video, but the labels of {first.url} are "
            f"{_kind_text(first)}. Set it to 0"
        )
    if mixup.is_on and first.label_kind is LabelKind.VALUES:
        raise MisuseError(
            f"mix.mixup = {mixup.mixup}, mix.cutmix = {mixup.cutmix}: a mixed clip has no value, and the labels of "
            f"{first.url} are {_kind_text(first)}. Set both to 0"
        )


def _kind_text(shards: Shards) -> str:
    return _LABELS[shards.label_kind][0].format(shards.num_targets)


def label_text(mixture: Mixture) -> str:
    """What the label of a video is, and its loss."""
    first = mixture.sets[0]
    return f"{_kind_text(first)}; {_LABELS[first.label_kind][1]}"


class HeadTarget(NamedTuple):
    """What a head predicts: classes by name, or values with mean and standard deviation of the training set."""

    kind: LabelKind
    classes: tuple[str, ...]
    values: tuple[RegressedValue, ...] = ()

    def new_model(self, geometry: Geometry, seed: int) -> HeadModel:
        if self.kind is LabelKind.CLASS:
            return Classifier(geometry, self.classes, seed=seed)
        if self.kind is LabelKind.CLASSES:
            return MultiLabelClassifier(geometry, self.classes, seed=seed)
        return Regressor(geometry, self.values, seed=seed)

    def is_predicted_by(self, model: HeadModel) -> bool:
        """Whether a trained model predicts the same, though values may have other means and deviations."""
        if isinstance(model, Regressor):
            return len(model.values) == len(self.values)
        kind = MultiLabelClassifier if self.kind is LabelKind.CLASSES else Classifier
        return isinstance(model, kind) and model.classes == self.classes


def target_of(mixture: Mixture, samples: Sequence[int]) -> HeadTarget:
    """What the labels of the data ask a head to predict; values have the mean and standard deviation of these samples.

    A constant value gets standard deviation 1.
    """
    first = mixture.sets[0]
    if first.label_kind is not LabelKind.VALUES:
        return HeadTarget(first.label_kind, first.classes)
    values_NR = mixture.targets(samples).astype(np.float64)
    values = (
        RegressedValue(name=f"value {r}", mean=float(column.mean()), spread=float(column.std()) or 1.0)
        for r, column in enumerate(values_NR.T, 1)
    )
    return HeadTarget(first.label_kind, (), tuple(values))


def probed(geometry: Geometry, probe: Probe | None, *, standardize: bool) -> Geometry:
    """The model of a finetuning, or of a probe.

    With `standardize`, a head that is not attentive also keeps the time: a mean over it hides most of a motion.
    """
    mean: Pooling = "slices" if standardize else "mean"
    return msgspec.structs.replace(
        geometry, pooling="attentive" if probe == "attentive" else mean, standardize=standardize
    )


def fit_standardization(model: HeadModel, batches: Iterable[Tensor]) -> None:
    """Set the statistics of a probe to those of these clips. Every process computes the same."""
    count, sums = 0, torch.zeros(())

    def add(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal count, sums
        x_NE = arguments[0].flatten(0, -2).double()
        sums = torch.stack((x_NE.sum(dim=0), x_NE.square().sum(dim=0))) + sums.to(x_NE.device)
        count += len(x_NE)

    hook = model.standardize.register_forward_pre_hook(add)
    try:
        with torch.no_grad():
            for clips_BCTHW in batches:
                model.features(clips_BCTHW)
            if count:
                mean_E, square_E = sums / count
                model.standardize.fit(mean_E, square_E)
    finally:
        hook.remove()


def build_head_model(
    spec: ModelSpec,
    geometry: Geometry,
    target: HeadTarget,
    *,
    init: str | None,
    probe: Probe | None,
    standardize: bool = False,
    seed: int,
    with_decoder: bool = False,
) -> tuple[HeadModel, str]:
    """The first model of a finetuning, and a text that says where it comes from.

    Without `init` everything is new. Else a model that predicts the same is continued, or its encoder gets a new head.
    A classifier of other classes keeps the rows of its head if it has all classes of the data. A probe's encoder is frozen.
    `with_decoder`: it also has `auxiliary`, with the decoder of a pretrained `init`, else with a new one.
    """
    start: VideoModel | None = None
    geometry = probed(geometry, probe, standardize=standardize)
    if init is None:
        model = target.new_model(geometry, seed)
        origin = f"from scratch ({geometry.init or 'trunc'} initialisation), without --init"
    else:
        start = load_init(init, geometry, position_resize=spec.position_resize, with_decoder=with_decoder, seed=seed)
        assert isinstance(start, PretrainModel | HeadModel)
        model, origin = _put_head_on(start, geometry, target, init=init, seed=seed, new_head=probe is not None)
    if isinstance(start, PretrainModel) and with_decoder:
        model.share_encoder(start)
    elif with_decoder:
        own = {name: getattr(geometry, name) for name in Geometry.__struct_fields__ if name.startswith("decoder_")}
        model.share_encoder(PretrainModel(msgspec.structs.replace(model.geometry, **own), seed=seed))
        origin += "; new decoder" if start is not None else ""
    if probe is not None:
        model.freeze_encoder()
    model.set_options(spec)
    return model, origin


def _put_head_on(
    start: PretrainModel | HeadModel, geometry: Geometry, target: HeadTarget, *, init: str, seed: int, new_head: bool
) -> tuple[HeadModel, str]:
    if target.kind is LabelKind.CLASS:
        model, kept = classifier_from(start, geometry, target.classes, seed=seed, new_head=new_head)
        return model, f"{init}{kept}"
    trained = start if isinstance(start, HeadModel) and not new_head else None
    if trained is not None and target.is_predicted_by(trained) and trained.geometry.pools_as(geometry):
        return trained, init
    own = {name: getattr(geometry, name) for name in ("pooling", "standardize", "init", "init_scale", "fc_eps")}
    fresh = target.new_model(msgspec.structs.replace(start.geometry, **own), seed)
    load_encoder(fresh, start)
    return fresh, init if trained is None else f"{init}; new head: its own head predicts something else"
