"""Features of clips: which block, which tokens share a vector, and what is normed."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import Tensor

from vmae_train.models.base import VideoModel
from vmae_train.models.features import FeatureSpec, clip_features
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel

TINY = ModelSpec(size="tiny", depth=3, decoder_depth=1).geometry()
CLASSES = ("left", "right")


def _clips() -> Tensor:
    shape = (2, 3, TINY.num_frames, TINY.image_size, TINY.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


def _tokens(encoder: torch.nn.Module, position_NE: Tensor, layer: int) -> Tensor:
    x_BNE = encoder.patch_embed(_clips()) + position_NE
    for block in list(encoder.blocks)[:layer]:
        x_BNE = block(x_BNE)
    return x_BNE


def _with_own_norm(model: VideoModel, norm: torch.nn.LayerNorm) -> VideoModel:
    """A norm that differs from a new one, which changes little."""
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(0.5, 2, len(norm.weight)))
        norm.bias.copy_(torch.linspace(-1, 1, len(norm.bias)))
    return model.eval()


def test_a_pretraining_model_norms_every_token_of_the_last_block() -> None:
    model = PretrainModel(TINY, seed=0)
    _with_own_norm(model, model.encoder.norm)
    tokens_BNE = model.encoder.norm(_tokens(model.encoder, model.position_NE, 3))
    of = {pool: clip_features(model, _clips(), FeatureSpec(pool)) for pool in ("mean", "slice", "none")}
    assert torch.allclose(of["none"], tokens_BNE, atol=1e-5)
    assert torch.allclose(of["mean"], model.features(_clips()), atol=1e-5)
    assert of["slice"].shape == (2, TINY.slices, TINY.embed_dim)
    patches = TINY.num_tokens // TINY.slices
    for number in range(TINY.slices):
        own = tokens_BNE[:, number * patches : (number + 1) * patches].mean(dim=1)
        assert torch.allclose(of["slice"][:, number], own, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_model_with_a_head_norms_the_mean(pooling: str) -> None:
    model = Classifier(msgspec.structs.replace(TINY, pooling=pooling), CLASSES, seed=0)
    _with_own_norm(model, model.fc_norm)
    tokens_BNE = _tokens(model, model.position_NE, 3)
    of = {pool: clip_features(model, _clips(), FeatureSpec(pool)) for pool in ("mean", "slice", "none")}
    assert torch.allclose(of["mean"], model.fc_norm(tokens_BNE.mean(dim=1)), atol=1e-5)
    if pooling == "mean":
        assert torch.allclose(of["mean"], model.features(_clips()), atol=1e-5)
    patches = TINY.num_tokens // TINY.slices
    assert torch.allclose(of["slice"][:, 1], model.fc_norm(tokens_BNE[:, patches : 2 * patches].mean(dim=1)), atol=1e-5)
    assert torch.allclose(of["none"], model.fc_norm(tokens_BNE), atol=1e-5)


def test_earlier_blocks_and_tokens_for_an_attentive_pooling_are_not_normed() -> None:
    attentive = Classifier(msgspec.structs.replace(TINY, pooling="attentive"), CLASSES, seed=0)
    _with_own_norm(attentive, attentive.fc_norm)
    tokens_BNE = _tokens(attentive, attentive.position_NE, 3)
    assert torch.allclose(clip_features(attentive, _clips(), FeatureSpec("none")), tokens_BNE, atol=1e-5)
    for model in (PretrainModel(TINY, seed=0).eval(), Classifier(TINY, CLASSES, seed=0).eval()):
        encoder = model.encoder if isinstance(model, PretrainModel) else model
        expected = _tokens(encoder, model.position_NE, 2).mean(dim=1)
        assert torch.allclose(clip_features(model, _clips(), FeatureSpec(layer=2)), expected, atol=1e-5)
        last = clip_features(model, _clips(), FeatureSpec(layer=3))
        assert torch.equal(last, clip_features(model, _clips(), FeatureSpec()))


@pytest.mark.parametrize(
    "spec", [FeatureSpec("max"), FeatureSpec(layer=0), FeatureSpec(layer=4), FeatureSpec(layer=1.5)]
)  # type: ignore[arg-type]
def test_other_values_are_refused(spec: FeatureSpec) -> None:
    with pytest.raises(ValueError, match=r"expected|has blocks 1 to 3"):
        spec.check(3)
