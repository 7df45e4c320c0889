from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from einops import rearrange
from torch import nn

from tests.tiny_models import CLASSES, TINY, tiny_clips, tiny_mask, tiny_model
from vmae_train.clips.mask import Grid, MaskSpec, TokenMask, sample_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier, RegressedValue, Regressor, load_encoder
from vmae_train.models.losses import cube_targets
from vmae_train.models.positions import position_embedding
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import PatchEmbed


def test_a_model_prints_as_one_line_and_its_parts_as_trees() -> None:
    model, size = PretrainModel(TINY), "2 blocks of 192 channels"
    assert repr(model) == f"PretrainModel({size}, 1.131 M parameters, 16 frames of 32 px)"
    assert "(patch_embed)" in repr(model.encoder)
    assert repr(Classifier(TINY, CLASSES)).endswith(", 16 frames of 32 px, 3 classes)")
    assert repr(Classifier(TINY, ("one",))).endswith(", 1 class)")
    assert repr(Regressor(TINY, (RegressedValue(name="speed"),) * 2)).endswith(", 2 values)")


# Parts.


def test_the_linear_embedding_of_cubes_equals_the_convolution(device: torch.device) -> None:
    embed, clips = PatchEmbed(TINY).to(device), tiny_clips(device)
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
    predictions = tiny_model(device)(tiny_clips(device), tiny_mask(device))
    assert predictions.shape == (2, 96, 384)
    assert predictions.isfinite().all()


def test_masked_pixels_do_not_reach_the_predictions(device: torch.device) -> None:
    model, clips, mask = tiny_model(device), tiny_clips(device), tiny_mask(device)
    cubes = rearrange(tiny_clips(device, seed=6), "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=2, q=8, r=8)
    own = rearrange(clips, "b c (t p) (h q) (w r) -> b (t h w) (c p q r)", p=2, q=8, r=8)
    visible = mask.visible_BV[..., None].expand(-1, -1, 384)
    cubes = cubes.scatter(1, visible, own.gather(1, visible))
    other = rearrange(cubes, "b (t h w) (c p q r) -> b c (t p) (h q) (w r)", t=8, h=4, w=4, c=3, p=2, q=8, r=8)
    assert not torch.equal(other, clips)
    assert torch.equal(model(clips, mask), model(other, mask))


def test_predictions_follow_the_order_of_masked_tokens_and_ignore_that_of_visible_ones(device: torch.device) -> None:
    model, clips, mask = tiny_model(device), tiny_clips(device), tiny_mask(device)
    plain = model(clips, mask)
    order = torch.randperm(96, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = TokenMask(visible_BV=mask.visible_BV.flip(1), masked_BM=mask.masked_BM[:, order])
    assert torch.allclose(model(clips, shuffled), plain[:, order], atol=1e-4)


def test_the_decoder_of_a_running_cell_sees_what_videomae_v2s_sees(device: torch.device) -> None:
    """A mask token for every patch inside the pattern, visible or not; the loss counts masked ones only."""
    model, clips = tiny_model(device), tiny_clips(device)
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
    decoder = tiny_model(device).decoder
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
    rgb = (tiny_clips(device).abs() * 80).to(dtype)
    tokens = tiny_mask(device).masked_BM
    before = rgb.clone()
    expected = cube_targets(rgb.float() / 255, tokens, TINY)
    assert torch.allclose(cube_targets(rgb, tokens, TINY, white=255), expected, atol=1e-5)
    scale, shift = torch.tensor([2.0, 3.0, 4.0], device=device), torch.tensor([0.1, 0.2, 0.3], device=device)
    moved = cube_targets(rgb / 255, tokens, TINY, scale_C=scale, shift_C=shift)
    by_hand = (rgb / 255).float() * scale[:, None, None, None] + shift[:, None, None, None]
    assert torch.allclose(moved, cube_targets(by_hand, tokens, TINY), atol=1e-5)
    assert torch.equal(rgb, before)


def test_only_the_cubes_to_decode_are_predicted(device: torch.device) -> None:
    model, clips, mask = tiny_model(device), tiny_clips(device), tiny_mask(device)
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
    rgb01, mask = tiny_clips(device).sigmoid(), tiny_mask(device)
    targets = cube_targets(rgb01, mask.masked_BM, TINY).cpu().numpy()
    for b in range(2):
        expected = _numpy_targets(rgb01[b].cpu().numpy(), mask.masked_BM[b].cpu().numpy())
        assert np.abs(targets[b] - expected).max() < 1e-4


def test_targets_of_a_flat_cube_are_zero(device: torch.device) -> None:
    rgb01 = torch.full((1, 3, 16, 32, 32), 0.5, device=device)
    assert (cube_targets(rgb01, tiny_mask(device, batch=1).masked_BM, TINY) == 0).all()


def test_the_loss_is_the_mean_square_over_masked_cubes_of_unnormalised_clips(device: torch.device) -> None:
    model, mask = tiny_model(device), tiny_mask(device)
    rgb01 = tiny_clips(device).sigmoid()
    mean, std = (torch.tensor(x, device=device).view(3, 1, 1, 1) for x in (TINY.mean, TINY.std))
    clips = (rgb01 - mean) / std
    predictions = model(clips, mask).detach().cpu().double().numpy()
    expected = np.stack([_numpy_targets(rgb01[b].cpu().numpy(), mask.masked_BM[b].cpu().numpy()) for b in range(2)])
    by_hand = ((predictions - expected) ** 2).mean()
    assert abs(model.loss(clips, mask).item() - by_hand) < 1e-4
    targets = cube_targets(rgb01, mask.masked_BM, TINY)
    assert abs(model.loss(clips, mask, targets_BMD=targets).item() - by_hand) < 1e-4


def test_a_sample_of_weight_zero_does_not_count(device: torch.device) -> None:
    model, clips, mask = tiny_model(device), tiny_clips(device), tiny_mask(device)
    first = model.loss(clips[:1], TokenMask(mask.visible_BV[:1], mask.masked_BM[:1]))
    weighted = model.loss(clips, mask, weight_B=torch.tensor([1.0, 0.0], device=device))
    assert torch.allclose(weighted, first, atol=1e-5)
    nothing = model.loss(clips, mask, weight_B=torch.zeros(2, device=device))
    assert nothing.item() == 0
    plain = model.loss(clips, mask, weight_B=torch.full((2,), 0.5, device=device))
    assert torch.allclose(plain, model.loss(clips, mask), atol=1e-5)


def test_every_weight_gets_a_gradient(device: torch.device) -> None:
    model = tiny_model(device)
    model.loss(tiny_clips(device), tiny_mask(device)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_one_batch_can_be_overfitted(device: torch.device) -> None:
    model, mask = tiny_model(device), tiny_mask(device, batch=1)
    coarse = tiny_clips(device, batch=1)[:, :, ::4, ::8, ::8]
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
        loss = tiny_model(device).loss(tiny_clips(device), tiny_mask(device))
        features = Classifier(TINY, CLASSES).to(device).features(tiny_clips(device))
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert features.isfinite().all()


def test_features_of_a_pretraining_model_are_the_mean_of_the_encoders_tokens(device: torch.device) -> None:
    model, clips = tiny_model(device).eval(), tiny_clips(device)
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


# Classifier.


def test_logits_are_the_head_of_the_features(device: torch.device) -> None:
    model = Classifier(TINY, CLASSES, seed=2).to(device)
    features = model.features(tiny_clips(device))
    assert features.shape == (2, 192)
    assert model.classes == CLASSES
    assert torch.allclose(model(tiny_clips(device)), features @ model.head.weight.T + model.head.bias)


def test_features_are_the_normalised_mean_of_all_encoded_tokens(device: torch.device) -> None:
    pretrained, clips = tiny_model(device), tiny_clips(device)
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
