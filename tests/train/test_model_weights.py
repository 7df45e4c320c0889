"""Sizes of models, names and numbers of their weights, first weights."""

from __future__ import annotations

import math

import msgspec
import pytest
import torch

from tests.tiny_models import CLASSES, TINY
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import Block

# Geometry.


@pytest.mark.parametrize(
    ("size", "encoder", "decoder"),
    [
        ("S", (384, 12, 6), (192, 4, 3)),
        ("B", (768, 12, 12), (384, 4, 6)),
        ("L", (1024, 24, 16), (512, 12, 8)),
        ("H", (1280, 32, 16), (640, 12, 8)),
    ],
)
def test_published_sizes_have_1568_tokens_and_the_published_widths(
    size: str, encoder: tuple[int, ...], decoder: tuple[int, ...]
) -> None:
    geometry = msgspec.convert({"size": size}, ModelSpec).geometry()
    assert (geometry.embed_dim, geometry.depth, geometry.num_heads) == encoder
    assert (geometry.decoder_embed_dim, geometry.decoder_depth, geometry.decoder_num_heads) == decoder
    assert (geometry.slices, geometry.patches, geometry.num_tokens, geometry.cube_dim) == (8, 196, 1568, 1536)
    assert geometry.position == "sinusoid-1d"


def test_the_giant_model_is_videomae_v2s() -> None:
    geometry = ModelSpec(size="g").geometry()
    assert (geometry.embed_dim, geometry.depth, geometry.num_heads) == (1408, 40, 16)
    assert (geometry.decoder_embed_dim, geometry.decoder_depth, geometry.decoder_num_heads) == (512, 4, 8)
    assert (geometry.patch_size, geometry.num_tokens, geometry.cube_dim) == (14, 2048, 1176)
    with torch.device("meta"):
        assert len(Block(1408, 16, geometry.mlp_ratio, 1e-6).mlp.fc1.weight) == 6144
        assert len(Block(512, 8, geometry.mlp_ratio, 1e-6).mlp.fc1.weight) == 2234


def test_the_settings_of_a_spec_override_its_size() -> None:
    geometry = ModelSpec(size="tiny", num_heads=4, decoder_depth=1, num_frames=8).geometry()
    assert (geometry.num_heads, geometry.decoder_depth, geometry.slices) == (4, 1, 4)
    assert (geometry.embed_dim, geometry.position) == (192, "sinusoid-3d")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"num_heads": 5}, r"model\.embed_dim = 192: expected a multiple of model\.num_heads = 5"),
        ({"image_size": 30}, r"model\.image_size = 30: expected a multiple of model\.patch_size = 8"),
        ({"num_frames": 15}, r"model\.num_frames = 15: expected a multiple of model\.tubelet_size = 2"),
        ({"decoder_num_heads": 7}, r"model\.decoder_embed_dim = 96: .* model\.decoder_num_heads = 7"),
        ({"depth": 0}, r"model\.depth = 0: expected 1 or more"),
        ({"mlp_ratio": 0.0}, r"model\.mlp_ratio = 0\.0"),
        ({"embed_dim": 9, "num_heads": 3}, r"model\.embed_dim = 9: expected an even number"),
        ({"position": "learned"}, "position"),
        ({"widht": 9}, "widht"),
    ],
)
def test_impossible_settings_are_refused_with_their_numbers(keys: dict[str, object], named: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=named):
        msgspec.convert({"size": "tiny", **keys}, ModelSpec)


# Names and counts of weights.


def _block_names(prefix: str) -> set[str]:
    norms = {f"{norm}.{x}" for norm in ("norm1", "norm2") for x in ("weight", "bias")}
    linears = {f"{part}.{x}" for part in ("attn.proj", "mlp.fc1", "mlp.fc2") for x in ("weight", "bias")}
    return {prefix + name for name in norms | linears | {"attn.qkv.weight", "attn.q_bias", "attn.v_bias"}}


def test_pretraining_weights_have_the_official_names_and_shapes() -> None:
    shapes = {name: tuple(value.shape) for name, value in PretrainModel(TINY).state_dict().items()}
    names = {"mask_token", "encoder_to_decoder.weight", "encoder.norm.weight", "encoder.norm.bias"}
    names |= {f"encoder.patch_embed.proj.{x}" for x in ("weight", "bias")}
    names |= {f"decoder.{part}.{x}" for part in ("norm", "head") for x in ("weight", "bias")}
    names |= _block_names("encoder.blocks.0.") | _block_names("encoder.blocks.1.")
    names |= _block_names("decoder.blocks.0.")
    assert set(shapes) == names
    assert shapes["mask_token"] == (1, 1, 96)
    assert shapes["encoder_to_decoder.weight"] == (96, 192)
    assert shapes["encoder.patch_embed.proj.weight"] == (192, 3, 2, 8, 8)
    assert shapes["encoder.blocks.1.attn.qkv.weight"] == (576, 192)
    assert shapes["decoder.head.weight"] == (384, 96)


def test_classifier_weights_have_the_official_names() -> None:
    names = {f"{part}.{x}" for part in ("patch_embed.proj", "fc_norm", "head") for x in ("weight", "bias")}
    names |= _block_names("blocks.0.") | _block_names("blocks.1.")
    assert set(Classifier(TINY, CLASSES).state_dict()) == names


@pytest.mark.parametrize("size", ["S", "B", "L"])
def test_pretraining_models_have_the_published_number_of_weights(size: str) -> None:
    geometry = msgspec.convert({"size": size}, ModelSpec).geometry()

    def blocks(dim: int, depth: int) -> int:
        attention = 3 * dim * dim + 2 * dim + dim * dim + dim
        mlp = 2 * 4 * dim * dim + 4 * dim + dim
        return depth * (attention + mlp + 4 * dim)

    e, d = geometry.embed_dim, geometry.decoder_embed_dim
    encoder = 1536 * e + e + blocks(e, geometry.depth) + 2 * e
    decoder = blocks(d, geometry.decoder_depth) + 2 * d + 1536 * d + 1536
    with torch.device("meta"):
        count = sum(x.numel() for x in PretrainModel(geometry, seed=None).parameters())
    assert count == encoder + e * d + d + decoder


# First weights.


def test_first_weights_are_a_function_of_the_seed_and_touch_no_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, again, other = PretrainModel(TINY, seed=3), PretrainModel(TINY, seed=3), PretrainModel(TINY, seed=4)
    Classifier(TINY, CLASSES)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
        assert value.isfinite().all(), name
    assert not torch.equal(first.decoder.head.weight, other.decoder.head.weight)


def test_pretraining_starts_from_xavier_and_a_classifier_from_trunc_unless_set() -> None:
    def spread(model: PretrainModel | Classifier, part: str) -> float:
        return model.get_parameter(part).std().item()

    xavier, trunc = math.sqrt(2 / (192 + 768)), 0.02
    with_xavier = msgspec.structs.replace(TINY, init="xavier")
    assert abs(spread(PretrainModel(TINY), "encoder.blocks.0.mlp.fc1.weight") / xavier - 1) < 0.02
    assert abs(spread(Classifier(TINY, CLASSES), "blocks.0.mlp.fc1.weight") / trunc - 1) < 0.02
    assert abs(spread(Classifier(with_xavier, CLASSES), "blocks.0.mlp.fc1.weight") / xavier - 1) < 0.02


def test_the_parts_between_encoder_and_decoder_start_as_published_unless_set() -> None:
    """The published code leaves them out of its initialisation: torch's own for the map, one std for the mask token."""
    geometry = ModelSpec(size="B", depth=1, decoder_depth=1).geometry()
    bridge = PretrainModel(geometry).encoder_to_decoder.weight
    with torch.random.fork_rng():
        published = torch.nn.Linear(768, 384, bias=False).weight
    assert bridge.std().item() == pytest.approx(0.0208, abs=1e-4) == pytest.approx(published.std().item(), abs=1e-4)
    assert bridge.abs().max() <= 1 / math.sqrt(768)
    token = torch.cat([PretrainModel(TINY, seed=seed).mask_token.flatten() for seed in range(50)])
    assert token.abs().max() <= 0.02
    assert token.std().item() == pytest.approx(0.0108, rel=0.02)
    own = PretrainModel(msgspec.structs.replace(geometry, init="xavier"))
    assert own.encoder_to_decoder.weight.std().item() == pytest.approx(math.sqrt(2 / (768 + 384)), rel=0.02)
    assert own.mask_token.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(own.decoder.head.weight, PretrainModel(geometry).decoder.head.weight)


def test_biases_start_at_zero_the_convolution_uniform_and_the_head_small() -> None:
    model = PretrainModel(TINY)
    for name, value in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert (value == 0).all(), name
    bound = 1 / math.sqrt(384)
    assert 0.99 * bound < model.encoder.patch_embed.proj.weight.abs().max() <= bound
    assert 0 < model.encoder.patch_embed.proj.bias.abs().max() <= bound
    assert 0 < model.mask_token.std() < 0.04
    head = Classifier(TINY, CLASSES).head.weight
    assert 0 < head.std() < 0.001 * 0.03
