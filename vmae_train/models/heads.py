"""Models with a head (one class, several classes, values), and how they start from a trained encoder.

B batch, T frames, H rows, W columns, N tokens, E channels, F features of a head,
S slices, P tokens of a slice, K outputs of a head.
"""

from __future__ import annotations

from typing import Any

import msgspec
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from vmae_data.amounts import plural
from vmae_data.rng import Purpose
from vmae_train.clips.rng import ClipRng, uniform
from vmae_train.models.base import VideoModel
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.pooling import AttentivePooler, Standardize
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import PatchEmbed, encoder_blocks, run_blocks

__all__ = [
    "AUXILIARY",
    "Classifier",
    "HeadModel",
    "MultiLabelClassifier",
    "RegressedValue",
    "Regressor",
    "classifier_from",
    "is_numbered",
    "load_encoder",
    "load_head",
]

AUXILIARY = "auxiliary."  # begins the names of the weights that only an auxiliary task has


class HeadModel(VideoModel):
    """An encoder of all tokens, their mean (or another pooling), a norm and a linear head.

    First weights are a pure function of `seed`; None leaves them for a loader to fill. The head has one output per
    class, or `num_outputs`.
    """

    def __init__(
        self, geometry: Geometry, classes: tuple[str, ...], *, num_outputs: int = 0, seed: int | None = 0
    ) -> None:
        if not (classes or num_outputs):
            raise ValueError("a classifier needs at least one class; got none")
        super().__init__(geometry, tuple(classes))
        self.frozen = False
        self.auxiliary: PretrainModel | None = None
        dim = geometry.embed_dim
        with torch.device("meta"):
            self.patch_embed = PatchEmbed(geometry)
            self.blocks = encoder_blocks(geometry)
            if geometry.pooling == "attentive":
                self.pooler = AttentivePooler(dim, geometry.num_heads, geometry.mlp_ratio, geometry.encoder_eps)
            self.fc_norm = nn.LayerNorm(dim, eps=geometry.fc_eps)
            pooled_dim = dim * (geometry.slices if geometry.pooling == "slices" else 1)
            if geometry.standardize:
                self.standardize = Standardize(dim if geometry.pooling == "attentive" else pooled_dim)
            self.head = nn.Linear(pooled_dim, num_outputs or len(classes))
        generator = self._materialise(seed, geometry.init or "trunc")
        if geometry.standardize:
            self.standardize.reset()
        if generator is not None:
            with torch.no_grad():
                self.head.weight.mul_(geometry.init_scale)
            if geometry.pooling == "attentive":
                self.pooler.reset_query(generator)

    def _outputs(self) -> tuple[str, ...]:
        return (plural(self.head.out_features, "class" if self.classes else "value"),)

    def share_encoder(self, auxiliary: PretrainModel) -> None:
        """Train a pretraining model together with this one: both have this model's patch embedding and blocks.

        Call it before `set_options`. A prediction does not need `auxiliary`, so the state dict lacks it.
        """
        auxiliary.encoder.patch_embed, auxiliary.encoder.blocks = self.patch_embed, self.blocks
        self.auxiliary = auxiliary

    def set_options(self, spec: ModelSpec) -> None:
        super().set_options(spec)
        if self.auxiliary is not None:
            self.auxiliary.set_options(msgspec.structs.replace(spec, compile=False))  # its blocks are compiled

    def state_dict(self, *args: Any, prefix: str = "", **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """All weights but those that only `auxiliary` has: `training_only_parameters` gives these."""
        state: dict[str, Any] = super().state_dict(*args, prefix=prefix, **kwargs)
        for name in [name for name in state if name.startswith(f"{prefix}{AUXILIARY}")]:
            del state[name]
        return state

    def freeze_encoder(self) -> None:
        """Train only what follows the encoder from now on (a probe). A frozen encoder has no drop path.

        A norm before fixed statistics is frozen too.
        """
        self.frozen = True
        self.patch_embed.requires_grad_(False)
        self.blocks.requires_grad_(False)
        self.fc_norm.requires_grad_(not self.geometry.standardize or self.geometry.pooling == "attentive")

    def reorder_classes(self, classes: tuple[str, ...]) -> None:
        """Put the outputs of the same classes in another order. Raises ValueError for another class."""
        rows = [self.classes.index(name) for name in classes]
        self.head.load_state_dict({name: value[rows] for name, value in self.head.state_dict().items()})
        self.classes = classes

    def features(self, clips_BCTHW: Tensor, rng: ClipRng | None = None) -> Float[Tensor, "B F"]:
        """One vector per clip, float (B, 3, T, H, W): its pooled tokens, normalised, as the head takes them.

        Raises ValueError for clips of other axes, another type or on another device. In eval mode also for values that
        `preprocess` never gives.
        """
        self._check_clips(clips_BCTHW)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            x_BNE = self.patch_embed(clips_BCTHW) + self.position_NE
            scale = None if self.frozen else self._drop_path_scale(rng)
            x_BNE = run_blocks(self.blocks, x_BNE, scale, checkpointing=self.activation_checkpointing)
        return self._head_features(x_BNE)

    def _head_features(self, x_BNE: Tensor) -> Tensor:
        standardize = self.standardize if self.geometry.standardize else nn.Identity()
        features_BF: Tensor
        match self.geometry.pooling:
            case "attentive":
                features_BF = self.fc_norm(self.pooler(standardize(x_BNE)))
                return features_BF
            case "slices":
                slice_BSE = rearrange(x_BNE, "b (s p) e -> b s p e", s=self.geometry.slices).mean(dim=2)
                features_BF = self.fc_norm(slice_BSE).flatten(1)
            case "first":
                features_BF = self.fc_norm(x_BNE[:, 0])
            case "mean":
                features_BF = self.fc_norm(x_BNE.mean(dim=1))
        features_BF = standardize(features_BF)
        return features_BF

    def forward(self, clips_BCTHW: Tensor, rng: ClipRng | None = None) -> Float[Tensor, "B K"]:
        """The head's outputs: logits, in the order of `classes`. Takes clips, and raises ValueError, as `features`."""
        features_BE = self.features(clips_BCTHW, rng)
        rate = self.fc_drop_rate
        if rng is not None and self.training and rate:
            numbers = torch.arange(features_BE.shape[1], device=features_BE.device)
            kept_BE = uniform(rng.bits(Purpose.DROPOUT, numbers)) >= rate
            features_BE = features_BE * kept_BE / (1 - rate)
        outputs_BK: Tensor = self.head(features_BE)
        return outputs_BK


class Classifier(HeadModel):
    """Predicts the one class of a clip: softmax over `classes`."""


class MultiLabelClassifier(HeadModel):
    """Predicts for every class whether a clip shows it: one sigmoid per class."""


class RegressedValue(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A value that a regressor predicts, with mean and spread of the training set, in the value's own units."""

    name: str
    mean: float = 0.0
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not self.spread > 0:
            raise ValueError(f"value {self.name}: spread {self.spread}: expected above 0")


class Regressor(HeadModel):
    """Predicts values in their own units. The head predicts spreads from the mean, so any unit can be learned."""

    value_mean_K: Tensor
    spread_K: Tensor

    def __init__(self, geometry: Geometry, values: tuple[RegressedValue, ...], *, seed: int | None = 0) -> None:
        if not values:
            raise ValueError("a regressor needs at least one value; got none")
        super().__init__(geometry, (), num_outputs=len(values), seed=seed)
        self.values = tuple(values)
        self.register_buffer("value_mean_K", torch.tensor([value.mean for value in values]), persistent=False)
        self.register_buffer("spread_K", torch.tensor([value.spread for value in values]), persistent=False)

    def forward(self, clips_BCTHW: Tensor, rng: ClipRng | None = None) -> Float[Tensor, "B K"]:
        """Values, in the order of `values`, float32."""
        outputs_BK: Tensor = super().forward(clips_BCTHW, rng).float()
        return outputs_BK * self.spread_K + self.value_mean_K


def is_numbered(classes: tuple[str, ...]) -> bool:
    """Whether the classes have no names: they are called 0, 1, 2 …, as those of files that name none."""
    return classes == tuple(map(str, range(len(classes))))


def load_encoder(model: HeadModel, trained: PretrainModel | HeadModel) -> None:
    """Copy a trained encoder into a model with a head.

    A pretrained encoder's norm is dropped; pooling, norm and head stay new, as in VideoMAE's finetuning.
    load_state_dict raises if shapes differ.
    """
    weights = (trained.encoder if isinstance(trained, PretrainModel) else trained).state_dict()
    result = model.load_state_dict(
        {name: value for name, value in weights.items() if name.startswith(("patch_embed.", "blocks."))}, strict=False
    )
    assert not result.unexpected_keys
    assert all(name.startswith(("pooler.", "standardize.", "fc_norm.", "head.")) for name in result.missing_keys)


def load_head(model: Classifier, trained: Classifier) -> bool:
    """Copy another classifier's last norm, and the rows of its head for the model's own classes.

    Rows are copied only if the other head names all classes, as VideoMAEv2 cuts the head of Kinetics-710 down to
    Kinetics-400; numbers are no names. Otherwise the head stays new. Returns whether rows were copied.
    """
    model.fc_norm.load_state_dict(trained.fc_norm.state_dict())
    row_of = {name: number for number, name in enumerate(trained.classes)}
    if not set(model.classes) <= row_of.keys() or all(name.isdecimal() for name in model.classes):
        return False
    rows = [row_of[name] for name in model.classes]
    model.head.load_state_dict({name: value[rows] for name, value in trained.head.state_dict().items()})
    if model.geometry.standardize:
        model.standardize.load_state_dict(trained.standardize.state_dict())
    return True


def classifier_from(
    start: PretrainModel | HeadModel, recipe: Geometry, classes: tuple[str, ...], *, seed: int, new_head: bool
) -> tuple[Classifier, str]:
    """The start model itself if it is a classifier of these classes, else a new classifier on its encoder.

    `recipe` decides pooling and head. Without `new_head`, `load_head` keeps what it can of a trained head. The text
    says what happened to the trained head; it is empty if nothing did.
    """
    trained = start if isinstance(start, Classifier) and not new_head else None
    if trained is not None and not trained.geometry.pools_as(recipe):
        trained = None
    if trained is not None and trained.classes == classes:
        return trained, ""
    own = {name: getattr(recipe, name) for name in ("pooling", "standardize", "init", "init_scale", "fc_eps")}
    model = Classifier(msgspec.structs.replace(start.geometry, **own), classes, seed=seed)
    load_encoder(model, start)
    if trained is None:
        return model, ""
    if load_head(model, trained):
        return model, f"; its head of {len(trained.classes)} classes is cut down to the classes of the data"
    return model, f"; new head: the {len(trained.classes)} classes of its own head are not those of the data"
