from __future__ import annotations

import math
import re
from collections.abc import Callable

import msgspec
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from vmae_train.clips.boxes import view_boxes
from vmae_train.clips.mask import Grid, MaskSpec, TokenMask, sample_mask, tube_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier, load_encoder
from vmae_train.models.losses import cube_targets
from vmae_train.models.positions import position_embedding
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import Block, PatchEmbed

TINY = ModelSpec(size="tiny", depth=2, decoder_depth=1).geometry()
CLASSES = ("left", "right", "up")


def _clips(device: torch.device, *, batch: int = 2, geometry: Geometry = TINY, seed: int = 5) -> torch.Tensor:
    shape = (batch, 3, geometry.num_frames, geometry.image_size, geometry.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


def _mask(device: torch.device, *, batch: int = 2, geometry: Geometry = TINY) -> TokenMask:
    rng = ClipRng.on(device, seed=1, epoch=0, sample=list(range(batch)))
    return tube_mask(rng, slices=geometry.slices, patches=geometry.patches, ratio=0.75)


def _model(device: torch.device, *, seed: int = 0) -> PretrainModel:
    return PretrainModel(TINY, seed=seed).to(device)


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


# Parts.


def test_the_linear_embedding_of_cubes_equals_the_convolution(device: torch.device) -> None:
    embed, clips = PatchEmbed(TINY).to(device), _clips(device)
    expected = rearrange(
        nn.functional.conv3d(clips, embed.proj.weight, embed.proj.bias, stride=(2, 8, 8)),
        "b e t h w -> b (t h w) e",
    )
    assert torch.allclose(embed(clips), expected, atol=1e-5)
    tokens = torch.tensor([[3, 100, 7], [0, 127, 64]], device=device)
    some = torch.stack([expected[b, tokens[b]] for b in range(2)])
    assert torch.allclose(embed(clips, tokens), some, atol=1e-5)


def test_the_1d_position_embedding_is_the_published_formula() -> None:
    geometry = ModelSpec(size="S").geometry()
    embedding = position_embedding(geometry, 384)
    assert embedding.shape == (1568, 384)
    for token in (0, 1, 777, 1567):
        for channel in (0, 1, 2, 101, 383):
            angle = token / 10000 ** (2 * (channel // 2) / 384)
            expected = math.sin(angle) if channel % 2 == 0 else math.cos(angle)
            assert abs(embedding[token, channel].item() - expected) < 1e-6


def test_the_3d_position_embedding_has_a_third_for_each_axis_and_zeros_for_the_rest() -> None:
    embedding = position_embedding(TINY, 196)  # three thirds of 64, and four more channels
    grid = rearrange(embedding, "(t h w) e -> t h w e", t=8, h=4, w=4)
    assert (grid[..., 192:] == 0).all()
    for axis in range(3):
        along = grid[..., 64 * axis : 64 * (axis + 1)].movedim(axis, 0)
        for number in range(len(along)):
            frequency = 10000 ** (-2 * (np.arange(64) // 2) / 64)
            angle = number * frequency
            expected = np.where(np.arange(64) % 2 == 0, np.sin(angle), np.cos(angle))
            assert np.allclose(along[number].numpy(), expected, atol=1e-6)


def test_every_token_has_its_own_embedding() -> None:
    for position in ("sinusoid-1d", "sinusoid-3d"):
        embedding = position_embedding(msgspec.structs.replace(TINY, position=position), 96)
        distance = torch.cdist(embedding, embedding) + torch.eye(len(embedding)) * 1e9
        assert distance.min() > 1e-2


# Pretraining.


def test_one_prediction_for_every_value_of_every_masked_cube(device: torch.device) -> None:
    predictions = _model(device)(_clips(device), _mask(device))
    assert predictions.shape == (2, 96, 384)
    assert predictions.isfinite().all()


def test_masked_pixels_do_not_reach_the_predictions(device: torch.device) -> None:
    model, clips, mask = _model(device), _clips(device), _mask(device)
    cubes = rearrange(_clips(device, seed=6), "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=2, q=8, r=8)
    own = rearrange(clips, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=2, q=8, r=8)
    visible = mask.visible_BV[..., None].expand(-1, -1, 384)
    cubes = cubes.scatter(1, visible, own.gather(1, visible))
    other = rearrange(cubes, "b (t h w) (c p q r) -> b c (t p) (h q) (w r)", t=8, h=4, w=4, c=3, p=2, q=8, r=8)
    assert not torch.equal(other, clips)
    assert torch.equal(model(clips, mask), model(other, mask))


def test_predictions_follow_the_order_of_masked_tokens_and_ignore_that_of_visible_ones(device: torch.device) -> None:
    model, clips, mask = _model(device), _clips(device), _mask(device)
    plain = model(clips, mask)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = TokenMask(visible_BV=mask.visible_BV.flip(1), masked_BM=mask.masked_BM[:, order])
    assert torch.allclose(model(clips, shuffled), plain[:, order], atol=1e-4)


def test_the_decoder_of_a_running_cell_sees_what_videomae_v2s_sees(device: torch.device) -> None:
    """A mask token for every patch inside the pattern, visible or not; the loss counts masked ones only."""
    model, clips = _model(device), _clips(device)
    rng = ClipRng.on(device, seed=0, epoch=0, sample=[1, 2])
    mask = sample_mask(MaskSpec(ratio=0.75, decoder="running-cell"), rng, Grid(8, 4, 4))
    assert mask.decoded_BK is not None
    assert mask.unscored_BU is not None
    targets = cube_targets(torch.rand_like(clips), mask.decoded_BK, model.geometry)
    errors = []
    for one in range(2):
        visible, decoded = (
            mask.visible_BV[one],
            torch.cat((mask.decoded_BK[one], mask.unscored_BU[one])).sort().values,
        )
        seen = model.encoder(clips[one : one + 1], visible[None], model.position_NE[visible][None])
        seen = model.encoder_to_decoder(seen) + model.decoder_position_NE[visible]
        hidden = model.mask_token + model.decoder_position_NE[decoded]
        cubes = model.decoder(torch.cat((seen, hidden), dim=1), len(decoded))[0]
        counts = torch.isin(decoded, mask.masked_BM[one])
        errors.append((cubes[counts] - targets[one]).square().mean())
    expected = torch.stack(errors).mean()
    assert torch.allclose(model.loss(clips, mask, targets_BMD=targets), expected, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_last_block_of_the_decoder_computes_what_is_predicted_as_if_it_computed_all(
    device: torch.device, checkpointing: bool
) -> None:
    decoder = _model(device).decoder
    tokens = torch.randn((2, 128, 96), generator=torch.Generator().manual_seed(3)).to(device).requires_grad_()
    found = decoder(tokens, 96, checkpointing=checkpointing)
    all_tokens = tokens
    for block in decoder.blocks:
        all_tokens = block(all_tokens)
    expected = decoder.head(decoder.norm(all_tokens))[:, -96:]
    assert torch.allclose(found, expected, atol=1e-5)
    weight = torch.linspace(-1, 1, found.numel(), device=device).reshape(found.shape)
    inputs = [tokens, *decoder.parameters()]
    for own, whole in zip(
        torch.autograd.grad((found * weight).sum(), inputs),
        torch.autograd.grad((expected * weight).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(own, whole, rtol=1e-4, atol=1e-3 * float(whole.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_targets_of_grey_levels_and_of_normalised_clips_are_those_of_rgb(
    device: torch.device, dtype: torch.dtype
) -> None:
    rgb = (_clips(device).abs() * 80).to(dtype)
    tokens = _mask(device).masked_BM
    before = rgb.clone()
    expected = cube_targets(rgb.float() / 255, tokens, TINY)
    assert torch.allclose(cube_targets(rgb, tokens, TINY, white=255), expected, atol=1e-5)
    scale, shift = torch.tensor([2.0, 3.0, 4.0], device=device), torch.tensor([0.1, 0.2, 0.3], device=device)
    moved = cube_targets(rgb / 255, tokens, TINY, scale_C=scale, shift_C=shift)
    by_hand = (rgb / 255).float() * scale[:, None, None, None] + shift[:, None, None, None]
    assert torch.allclose(moved, cube_targets(by_hand, tokens, TINY), atol=1e-5)
    assert torch.equal(rgb, before)


def test_only_the_cubes_to_decode_are_predicted(device: torch.device) -> None:
    model, clips, mask = _model(device), _clips(device), _mask(device)
    assert torch.equal(model(clips, mask._replace(decoded_BK=mask.masked_BM)), model(clips, mask))
    some = mask._replace(decoded_BK=mask.masked_BM[:, ::2].contiguous())
    assert model(clips, some).shape == (2, 48, 384)
    assert model.loss(clips, some).isfinite()


def _numpy_targets(rgb01: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """(tokens, 384) of one clip C T H W, cube by cube: each colour separately, colour last in a cube."""
    expected = []
    for token in tokens:
        t, h, w = token // 16, token // 4 % 4, token % 4
        cube = rgb01[:, 2 * t : 2 * t + 2, 8 * h : 8 * h + 8, 8 * w : 8 * w + 8].astype(np.float64)
        planes = [(c - c.mean()) / (math.sqrt(c.var(ddof=1)) + 1e-6) for c in cube]
        expected.append(np.stack(planes, axis=-1).reshape(-1))
    return np.stack(expected)


def test_targets_are_normalised_per_cube_and_colour(device: torch.device) -> None:
    rgb01, mask = _clips(device).sigmoid(), _mask(device)
    targets = cube_targets(rgb01, mask.masked_BM, TINY).cpu().numpy()
    for b in range(2):
        expected = _numpy_targets(rgb01[b].cpu().numpy(), mask.masked_BM[b].cpu().numpy())
        assert np.abs(targets[b] - expected).max() < 1e-4


def test_targets_of_a_flat_cube_are_zero(device: torch.device) -> None:
    rgb01 = torch.full((1, 3, 16, 32, 32), 0.5, device=device)
    assert (cube_targets(rgb01, _mask(device, batch=1).masked_BM, TINY) == 0).all()


def test_the_loss_is_the_mean_square_over_masked_cubes_of_unnormalised_clips(device: torch.device) -> None:
    model, mask = _model(device), _mask(device)
    rgb01 = _clips(device).sigmoid()
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1, 1) for x in (TINY.mean, TINY.std))
    clips = (rgb01 - mean) / std
    predictions = model(clips, mask).detach().cpu().double().numpy()
    expected = np.stack([_numpy_targets(rgb01[b].cpu().numpy(), mask.masked_BM[b].cpu().numpy()) for b in range(2)])
    by_hand = ((predictions - expected) ** 2).mean()
    assert abs(model.loss(clips, mask).item() - by_hand) < 1e-4
    targets = cube_targets(rgb01, mask.masked_BM, TINY)
    assert abs(model.loss(clips, mask, targets_BMD=targets).item() - by_hand) < 1e-4


def test_a_sample_of_weight_zero_does_not_count(device: torch.device) -> None:
    model, clips, mask = _model(device), _clips(device), _mask(device)
    first = model.loss(clips[:1], TokenMask(mask.visible_BV[:1], mask.masked_BM[:1]))
    weighted = model.loss(clips, mask, weight_B=torch.tensor([1.0, 0.0], device=device))
    assert torch.allclose(weighted, first, atol=1e-5)
    nothing = model.loss(clips, mask, weight_B=torch.zeros(2, device=device))
    assert nothing.item() == 0
    plain = model.loss(clips, mask, weight_B=torch.full((2,), 0.5, device=device))
    assert torch.allclose(plain, model.loss(clips, mask), atol=1e-5)


def test_every_weight_gets_a_gradient(device: torch.device) -> None:
    model = _model(device)
    model.loss(_clips(device), _mask(device)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_batch_can_be_overfitted(device: torch.device) -> None:
    model, mask = _model(device), _mask(device, batch=1)
    coarse = _clips(device, batch=1)[:, :, ::4, ::8, ::8]
    clips = nn.functional.interpolate(coarse, (16, 32, 32), mode="trilinear")  # smooth, as videos are
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(120):
        loss = model.loss(clips, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # 1.0 is the loss of predicting each cube's mean


def test_loss_and_features_run_in_bfloat16(device: torch.device) -> None:
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = _model(device).loss(_clips(device), _mask(device))
        features = Classifier(TINY, CLASSES).to(device).features(_clips(device))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert features.isfinite().all()


# Classifier.


def test_logits_are_the_head_of_the_features(device: torch.device) -> None:
    model = Classifier(TINY, CLASSES, seed=2).to(device)
    features = model.features(_clips(device))
    assert features.shape == (2, 192)
    assert model.classes == CLASSES
    assert torch.allclose(model(_clips(device)), features @ model.head.weight.T + model.head.bias)


def test_features_are_the_normalised_mean_of_all_encoded_tokens(device: torch.device) -> None:
    pretrained, clips = _model(device), _clips(device)
    classifier = Classifier(TINY, CLASSES).to(device)
    load_encoder(classifier, pretrained)
    pretrained.encoder.norm = nn.Identity()
    every = torch.arange(128, device=device).expand(2, -1)
    tokens = pretrained.encoder(clips, every, pretrained.position_NE[every])
    expected = nn.functional.layer_norm(tokens.mean(1), (192,), eps=1e-6)
    assert torch.allclose(classifier.features(clips), expected, atol=1e-4)


def test_a_classifier_loads_the_pretrained_encoder_and_has_a_new_head() -> None:
    pretrained = PretrainModel(TINY, seed=1)
    with torch.no_grad():
        pretrained.encoder.norm.weight.fill_(7)
    first, second = (Classifier(TINY, CLASSES, seed=seed) for seed in (1, 2))
    for classifier in (first, second):
        load_encoder(classifier, pretrained)
    for name, value in pretrained.encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(first.state_dict()[name], value), name
    assert (first.fc_norm.weight == 1).all()
    assert not torch.equal(first.head.weight, second.head.weight)


def test_a_classifier_without_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        Classifier(TINY, ())


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


# Frames to clips.


def test_preprocess_gives_normalised_clips(device: torch.device) -> None:
    model = _model(device)
    frames = torch.randint(0, 256, (2, 16, 32, 32, 3), generator=torch.Generator().manual_seed(1))
    frames = frames.to(torch.uint8)
    expected = (frames.numpy() / 255 - np.array(TINY.mean)) / np.array(TINY.std)
    clips = model.preprocess(frames)
    assert clips.device.type == device.type
    assert np.allclose(clips.cpu().numpy(), expected.transpose(0, 4, 1, 2, 3), atol=1e-5)


def test_preprocess_resizes_the_short_side_and_crops_the_centre() -> None:
    frames = torch.zeros(1, 16, 64, 96, 3, dtype=torch.uint8)
    frames[:, :, :, 16:80] = 255  # the central square of 64
    clips = PretrainModel(TINY).preprocess(frames)
    assert clips.shape == (1, 3, 16, 32, 32)
    inside = clips[..., 2:-2]
    assert torch.allclose(inside, inside.amax(dim=(2, 3, 4), keepdim=True).expand_as(inside))


@pytest.mark.parametrize(("width", "left"), [(34, 1), (35, 2), (37, 2), (39, 4)])
def test_half_a_pixel_of_a_centre_crop_is_rounded_to_even_as_published(
    width: int, left: int, device: torch.device
) -> None:
    assert left == round((width - 32) / 2.0)  # VideoMAE's CenterCrop
    frames = torch.arange(width, dtype=torch.uint8).expand(1, 16, 32, 3, width).transpose(3, 4).contiguous()
    model = _model(device)
    clips = model.preprocess(frames) * model.std_C[:, None, None, None] + model.mean_C[:, None, None, None]
    assert (clips[0, 0, 0, 0] * 255).round().tolist() == list(range(left, left + 32))
    assert view_boxes(torch.tensor([[32, width]], device=device), num_crops=1, size=32).left_B.tolist() == [left]


def test_preprocess_refuses_another_number_of_frames() -> None:
    with pytest.raises(ValueError, match="8 frames given; a clip has 16"):
        PretrainModel(TINY).preprocess(torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("frames", "found"),
    [
        (torch.rand(1, 16, 32, 32, 3), "float32 of shape (1, 16, 32, 32, 3)"),
        (torch.zeros(16, 32, 32, 3, dtype=torch.uint8), "uint8 of shape (16, 32, 32, 3)"),
        (torch.zeros(1, 16, 3, 32, 32, dtype=torch.uint8), "uint8 of shape (1, 16, 3, 32, 32)"),
        (torch.zeros(1, 16, 32, 32, 3, dtype=torch.int64), "int64 of shape"),
    ],
)
def test_preprocess_refuses_what_is_not_rgb_frames_of_bytes(frames: torch.Tensor, found: str) -> None:
    with pytest.raises(ValueError, match=re.escape(found)):
        PretrainModel(TINY, seed=None).preprocess(frames)


def test_preprocess_refuses_frames_that_the_resize_would_make_huge() -> None:
    text = (
        "frames of 1 × 100000 pixels (H × W) would be 32 × 3200000 with a short side of 32; "
        "the limit of a side is 16384. Crop them first"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        PretrainModel(TINY, seed=None).preprocess(torch.zeros(1, 16, 1, 100_000, 3, dtype=torch.uint8))
    widest = torch.zeros(1, 16, 1, 512, 3, dtype=torch.uint8)
    assert PretrainModel(TINY, seed=None).preprocess(widest).shape == (1, 3, 16, 32, 32)


CLIP = (3, 16, 32, 32)


@pytest.mark.parametrize(
    ("clips", "found"),
    [
        (torch.zeros(2, *CLIP, dtype=torch.uint8), "uint8 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(2, *CLIP, dtype=torch.float64), "float64 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(2, *CLIP, dtype=torch.float16), "float16 of shape (2, 3, 16, 32, 32) on cpu"),
        (torch.zeros(*CLIP), "float32 of shape (3, 16, 32, 32) on cpu"),
        (torch.zeros(2, 16, 32, 32, 3), "float32 of shape (2, 16, 32, 32, 3) on cpu"),
        (torch.zeros(2, 16, 3, 32, 32), "float32 of shape (2, 16, 3, 32, 32) on cpu"),
        (torch.zeros(2, 3, 8, 32, 32), "float32 of shape (2, 3, 8, 32, 32) on cpu"),
        (torch.zeros(2, 3, 16, 64, 32), "float32 of shape (2, 3, 16, 64, 32) on cpu"),
        (torch.zeros(2, *CLIP, device="meta"), "float32 of shape (2, 3, 16, 32, 32) on meta"),
        (torch.zeros(()), "float32 of shape () on cpu"),
    ],
)
def test_clips_of_another_type_or_other_axes_are_refused_in_one_line(clips: torch.Tensor, found: str) -> None:
    text = (
        f"clips are {found}; expected a tensor of float32 with the axes B 3 16 32 32 on cpu, as `preprocess` gives it"
    )
    pretrained, classifier = _model(torch.device("cpu")), Classifier(TINY, CLASSES)
    mask = _mask(torch.device("cpu"))
    for call in (
        pretrained.features,
        classifier.features,
        classifier,
        lambda clips: pretrained(clips, mask),
        lambda clips: pretrained.loss(clips, mask),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            call(clips)


def test_autocast_takes_clips_of_half_precision() -> None:
    model, clips = Classifier(TINY, CLASSES).eval(), _clips(torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(clips.bfloat16()), model(clips.bfloat16().float()))
        with pytest.raises(ValueError, match="float64"):
            model(clips.double())


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda tokens: tokens[:1], "mask.visible_BV is int64 of shape (1, 32) on cpu"),
        (lambda tokens: tokens[0], "mask.visible_BV is int64 of shape (32,) on cpu"),
        (lambda tokens: tokens.int(), "mask.visible_BV is int32 of shape (2, 32) on cpu"),
    ],
)
def test_a_mask_of_another_type_or_other_axes_is_refused_in_one_line(
    change: Callable[[torch.Tensor], torch.Tensor], found: str
) -> None:
    model, mask = _model(torch.device("cpu")), _mask(torch.device("cpu"))
    text = f"{found}; expected int64 with the axes B = 2 and tokens on cpu"
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        model(_clips(torch.device("cpu")), mask._replace(visible_BV=change(mask.visible_BV)))


def test_preprocess_without_antialias_is_torchs_plain_bilinear() -> None:
    frames = torch.randint(0, 256, (1, 16, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = PretrainModel(TINY, seed=None)
    plain = torch.nn.functional.interpolate(frames[0].permute(0, 3, 1, 2).float(), (32, 32), mode="bilinear")
    clips = model.preprocess(frames, antialias=False) * model.std_C[:, None, None, None]
    rgb = (clips + model.mean_C[:, None, None, None])[0].transpose(0, 1) * 255
    assert torch.allclose(rgb, plain, atol=1e-2)
    assert not torch.allclose(model.preprocess(frames), model.preprocess(frames, antialias=False), atol=1e-2)


def test_features_of_a_pretraining_model_are_the_mean_of_the_encoders_tokens(device: torch.device) -> None:
    model, clips = _model(device).eval(), _clips(device)
    x = model.encoder.patch_embed(clips) + model.position_NE
    for block in model.encoder.blocks:
        x = block(x)
    assert torch.allclose(model.features(clips), model.encoder.norm(x).mean(1), atol=1e-6)


def test_given_targets_replace_those_made_from_the_clips() -> None:
    geometry = ModelSpec(size="tiny", decoder_depth=1).geometry()
    model = PretrainModel(geometry, seed=0)
    clips = torch.zeros(2, 3, 16, 32, 32)
    tokens = torch.arange(128).expand(2, -1)
    mask = TokenMask(visible_BV=tokens[:, :32], masked_BM=tokens[:, 32:])
    with torch.no_grad():
        predictions = model(clips, mask)
        assert float(model.loss(clips, mask, targets_BMD=predictions)) == 0
        assert float(model.loss(clips, mask)) > 0
