from __future__ import annotations

import math
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from vmae_data.recipes import load_recipe
from vmae_train.clips.mask import tube_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.finetune import FinetuneSpec, probe_settings
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.heads import Classifier, HeadModel, MultiLabelClassifier, RegressedValue, Regressor, load_encoder
from vmae_train.models.losses import multi_label_losses, regression_losses, weighted_mean
from vmae_train.models.videomae import PretrainModel
from vmae_train.models.vit import drop_path_scale
from vmae_train.training.head import Probe, fit_standardization, probed
from vmae_train.training.optimizer import Schedule, build_optimizer

pytestmark = pytest.mark.processes

SPEC = ModelSpec(size="tiny", depth=3, decoder_depth=1, embed_dim=48, decoder_embed_dim=24)
TINY = SPEC.geometry()
ATTENTIVE = msgspec.structs.replace(TINY, pooling="attentive")
CLASSES = ("left", "right", "up")


def _clips(device: torch.device | str = "cpu", batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 16, 32, 32, generator=torch.Generator().manual_seed(5)).to(device)


def _rng(device: torch.device | str = "cpu", samples: int = 2, first: int = 0) -> ClipRng:
    return ClipRng.on(device, seed=1, epoch=0, sample=list(range(first, first + samples)))


def _classifier(**options: object) -> Classifier:
    model = Classifier(msgspec.structs.replace(TINY, init_scale=1.0), CLASSES, seed=1)
    model.set_options(ModelSpec(size="tiny", **options))  # type: ignore[arg-type]
    return model


# Drop path and dropout.


def test_drop_path_rises_over_the_blocks_and_keeps_the_mean(device: torch.device) -> None:
    scale = drop_path_scale(_rng(device, 4000), depth=5, rate=0.4).cpu()
    assert scale.shape == (5, 4000, 2)
    for block in range(5):
        rate = 0.1 * block
        dropped = (scale[block] == 0).float().mean(dim=0)
        assert (dropped - rate).abs().max() < 0.03
        kept = scale[block][scale[block] > 0]
        assert torch.allclose(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert not torch.equal(scale[4, :, 0], scale[4, :, 1])  # the branches are dropped independently


def test_what_is_dropped_in_a_sample_does_not_depend_on_its_batch() -> None:
    model = _classifier(drop_path=0.5, fc_drop_rate=0.5).train()
    clips = _clips(batch=4)
    together = model(clips, _rng(samples=4))
    parts = [model(clips[n : n + 1], _rng(samples=1, first=n)) for n in range(4)]
    assert torch.allclose(together, torch.cat(parts), atol=1e-5)
    assert not torch.allclose(together, model(clips), atol=1e-3)


def test_nothing_is_dropped_in_evaluation_or_without_an_rng_and_no_global_generator_is_used() -> None:
    before = torch.random.get_rng_state()
    model, plain = _classifier(drop_path=0.9, fc_drop_rate=0.9), _classifier()
    assert torch.equal(model.eval()(_clips(), _rng()), plain(_clips()))
    assert torch.equal(model.train()(_clips()), plain(_clips()))
    assert not torch.equal(model(_clips(), _rng()), plain(_clips()))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_dropped_branch_returns_its_input() -> None:
    block = _classifier().blocks[0]
    x = torch.randn(2, 8, 48, generator=torch.Generator().manual_seed(2))
    assert torch.equal(block(x, torch.zeros(2, 2)), x)
    assert torch.equal(block(x, torch.ones(2, 2)), block(x))
    half = block(x, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert torch.equal(half[1], x[1])
    assert torch.allclose(half[0], block(x)[0], atol=1e-6)


def test_head_dropout_drops_its_share_of_features_and_keeps_their_mean() -> None:
    model = _classifier(fc_drop_rate=0.25).train()
    with torch.no_grad():
        model.head.weight.copy_(torch.eye(3, 48))
        kept = model(_clips(batch=1).expand(100, -1, -1, -1, -1), _rng(samples=100))
        plain = model(_clips(batch=1))[0]
    dropped = (kept == 0).float().mean()
    assert abs(dropped - 0.25) < 0.06
    assert torch.allclose(kept[kept[:, 0] != 0][0, 0], plain[0] / 0.75, atol=1e-6)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_rates_outside_0_to_1_are_refused(rate: float) -> None:
    for name in ("drop_path", "fc_drop_rate"):
        with pytest.raises(ValueError, match=rf"model\.{name}"):
            ModelSpec(size="tiny", **{name: rate})


# Checkpointing and compilation do not change the numbers.


def _gradients(model: PretrainModel | HeadModel, device: torch.device) -> dict[str, Tensor]:
    model.zero_grad()
    if isinstance(model, PretrainModel):
        mask = tube_mask(_rng(device), slices=8, patches=16, ratio=0.75)
        loss = model.loss(_clips(device), mask, rng=_rng(device))
    else:
        loss = model(_clips(device), _rng(device)).square().sum()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["pretrain", "classifier"])
def test_checkpointing_gives_the_same_gradients(kind: str, device: torch.device) -> None:
    model = PretrainModel(TINY, seed=1) if kind == "pretrain" else _classifier()
    model = model.to(device).train()
    model.set_options(ModelSpec(size="tiny", drop_path=0.3))
    plain = _gradients(model, device)
    model.set_options(ModelSpec(size="tiny", drop_path=0.3, activation_checkpointing=True))
    again = _gradients(model, device)
    assert plain.keys() == again.keys() == dict(model.named_parameters()).keys()
    for name, value in plain.items():
        assert torch.allclose(again[name], value, atol=1e-6), name


def test_checkpointing_stores_less_between_forward_and_backward() -> None:
    def kept(checkpointing: bool) -> int:
        model = _classifier(activation_checkpointing=checkpointing).train()
        sizes: list[int] = []

        def pack(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            model(_clips())
        return sum(sizes)

    assert kept(True) < kept(False) / 3


# Heads.


def _batches() -> tuple[Tensor, Tensor]:
    logits = torch.tensor([[2.0, -1.0, 0.0], [0.5, 0.0, -3.0]])
    return logits, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])


def test_the_multi_label_loss_is_the_mean_cross_entropy_of_each_class() -> None:
    logits, present = _batches()
    probability = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(present.numpy() * np.log(probability) + (1 - present.numpy()) * np.log(1 - probability)).mean(axis=1)
    assert np.allclose(multi_label_losses(logits, present).numpy(), expected, atol=1e-6)


def test_the_regression_loss_is_in_units_of_the_spread() -> None:
    predicted, value = torch.tensor([[3.0, 100.0], [1.0, 0.0]]), torch.tensor([[1.0, 60.0], [1.0, 20.0]])
    spread = torch.tensor([2.0, 40.0])
    assert regression_losses(predicted, value, spread).tolist() == [1.0, 0.125]
    assert regression_losses(predicted, value, spread, "l1").tolist() == [1.0, 0.25]


def test_a_mean_is_weighted_and_is_zero_if_all_weights_are() -> None:
    loss = torch.tensor([1.0, 5.0])
    assert weighted_mean(loss, None) == 3
    assert weighted_mean(loss, torch.tensor([0.0, 1.0])) == 5
    assert weighted_mean(loss, torch.zeros(2)) == 0


def test_a_regressor_predicts_values_in_their_own_units_and_can_learn_them(device: torch.device) -> None:
    values = (RegressedValue(name="speed", mean=50.0, spread=20.0), RegressedValue(name="turn", mean=-1.0, spread=0.1))
    model = Regressor(TINY, values, seed=1).to(device)
    first = model(_clips(device))
    assert torch.allclose(first, torch.tensor([[50.0, -1.0]], device=device).expand(2, -1), atol=1)
    expected = torch.tensor([[80.0, -1.1], [20.0, -0.9]], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = regression_losses(model(_clips(device)), expected, model.spread_K).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((model(_clips(device)) - expected).abs() < torch.tensor([4.0, 0.02], device=device)).all()


def test_several_classes_can_be_learned_at_once(device: torch.device) -> None:
    model = MultiLabelClassifier(TINY, CLASSES, seed=1).to(device)
    present = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]], device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(40):
        loss = multi_label_losses(model(_clips(device)), present).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((model(_clips(device)) > 0) == (present > 0)).all()


def test_values_without_a_spread_and_heads_without_outputs_are_refused() -> None:
    with pytest.raises(ValueError, match="spread 0"):
        RegressedValue(name="x", spread=0)
    with pytest.raises(ValueError, match="at least one value"):
        Regressor(TINY, ())
    with pytest.raises(ValueError, match="at least one class"):
        MultiLabelClassifier(TINY, ())


# Probes.


@pytest.mark.parametrize("geometry", [TINY, ATTENTIVE])
def test_a_probe_trains_its_head_and_not_the_encoder(geometry: object, device: torch.device) -> None:
    pretrained = PretrainModel(TINY, seed=2)
    model = Classifier(geometry, CLASSES, seed=1)  # type: ignore[arg-type]
    load_encoder(model, pretrained)
    model.freeze_encoder()
    model = model.to(device).train()
    model.set_options(ModelSpec(size="tiny", drop_path=0.5, activation_checkpointing=True))
    frozen = {name: value.clone() for name, value in model.state_dict().items() if _is_encoder(name)}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-2, weight_decay=0.1)
    labels = torch.tensor([2, 0], device=device)
    assert torch.equal(model.features(_clips(device), _rng(device)), model.features(_clips(device)))
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(_clips(device), _rng(device)), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
    assert loss.item() < 0.3
    for name, value in frozen.items():
        assert torch.equal(model.state_dict()[name], value), name
        assert torch.equal(value.cpu(), pretrained.encoder.state_dict()[name]), name
    assert all(p.grad is None for name, p in model.named_parameters() if _is_encoder(name))


def _halves(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy clips that are bright in the first or in the second half of the time: equal when time is averaged."""
    generator = torch.Generator().manual_seed(seed)
    label_B = torch.arange(batch) % 2
    clips = torch.randn(batch, 3, 16, 32, 32, generator=generator)
    clips[label_B == 0, :, :8] += 2
    clips[label_B == 1, :, 8:] += 2
    return clips, label_B


@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_a_probe_learns_what_is_in_the_time_with_its_default_rate(probe: Probe) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec)
    settings = probe_settings(spec, probe)
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings)
    model = Classifier(
        probed(msgspec.structs.replace(TINY, init="xavier"), probe, standardize=True), ("first", "second"), seed=1
    )
    model.freeze_encoder()
    clips, label_B = _halves(32, seed=1)
    fit_standardization(model, clips.split(10))
    peak = Schedule.of(spec.optim, batch=spec.train.batch, steps=600, steps_per_epoch=1).peak
    optimizer = build_optimizer(model.train(), spec.optim, depth=3)
    optimizer.param_groups[0]["lr"] = peak
    for _ in range(60):
        nn.functional.cross_entropy(model(clips), label_B).backward()
        optimizer.step()
        optimizer.zero_grad()
    unseen, expected_B = _halves(32, seed=2)
    assert torch.equal(model.eval()(unseen).argmax(dim=1), expected_B)


def test_a_linear_probe_takes_standardized_means_of_slices_and_trains_one_linear_map() -> None:
    model = Classifier(probed(TINY, "linear", standardize=True), CLASSES, seed=1)
    model.freeze_encoder()
    clips = _clips(batch=12)
    raw_BF = model.features(clips)
    fit_standardization(model, clips.split(5))
    features_BF = model.features(clips)
    assert features_BF.shape == (12, 8 * 48)
    spread_F = (raw_BF.var(dim=0, correction=0) + 1e-6).sqrt()
    assert torch.allclose(features_BF, (raw_BF - raw_BF.mean(dim=0)) / spread_F, atol=1e-4)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained == ["head.weight", "head.bias"]


def test_an_attentive_probe_standardizes_the_channels_of_its_tokens() -> None:
    model = Classifier(probed(TINY, "attentive", standardize=True), CLASSES, seed=1)
    clips = _clips(batch=4)
    fit_standardization(model, clips.split(3))
    x_BNE = model.patch_embed(clips) + model.position_NE
    for block in model.blocks:
        x_BNE = block(x_BNE)
    mean_E, variance_E = x_BNE.mean(dim=(0, 1)), x_BNE.var(dim=(0, 1), correction=0)
    assert torch.allclose(model.standardize.mean, mean_E, atol=1e-5)
    assert torch.allclose(model.standardize.spread, (variance_E + 1e-6).sqrt(), rtol=1e-3)
    assert set(model.state_dict()) - set(Classifier(ATTENTIVE, CLASSES).state_dict()) == {
        "standardize.mean",
        "standardize.spread",
    }
    assert "standardize" not in ATTENTIVE.stored()


def test_a_setting_overrides_what_a_probe_sets() -> None:
    spec = load_recipe("vmae_train", "finetune/k400", FinetuneSpec)
    preset = probe_settings(spec, "linear")
    probe = load_recipe("vmae_train", "finetune/k400", FinetuneSpec, [*preset, "optim.weight_decay=0.1"])
    assert (probe.probe, probe.optim.weight_decay, probe.mix.is_on) == ("linear", 0.1, False)
    assert probe.optim.base_lr * probe.train.batch / 256 == pytest.approx(3e-3)


def _is_encoder(name: str) -> bool:
    return name.startswith(("patch_embed.", "blocks."))


def test_an_attentive_pooling_ignores_the_order_of_tokens_but_not_their_content() -> None:
    pooler = Classifier(ATTENTIVE, CLASSES, seed=1).pooler
    x = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(2))
    pooled = pooler(x)
    assert pooled.shape == (2, 48)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(pooler(x[:, order]), pooled, atol=1e-5)
    assert not torch.allclose(pooler(x * 0.1 + x[:, :1]), pooled, atol=1e-3)


def test_an_attentive_query_starts_from_the_seed() -> None:
    one, same, other = (Classifier(ATTENTIVE, CLASSES, seed=seed).pooler.query for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert 0 < one.std() < 0.04
    assert math.isfinite(float(one.detach().sum()))


_COMPILED = """
from functools import partialmethod
import torch
from torch import nn
from vmae_train.clips.rng import ClipRng
from vmae_train.clips.mask import tube_mask
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel

# The graphs are traced as usual; compiling them to machine code takes minutes on a small machine.
nn.Module.compile = partialmethod(nn.Module.compile, backend="eager")
geometry = ModelSpec(size="tiny", depth=3, decoder_depth=3, embed_dim=48, decoder_embed_dim=24).geometry()
clips = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(5))
rng = ClipRng.on("cpu", seed=1, epoch=0, sample=[0, 1])
mask = tube_mask(rng, slices=8, patches=16, ratio=0.75)
gradients = {}
for compiled in (False, True):
    model = PretrainModel(geometry, seed=1).train()
    model.set_options(ModelSpec(size="tiny", drop_path=0.3, compile=compiled))
    model.loss(clips, mask, rng=rng).backward()
    gradients[compiled] = {name: model.get_parameter(name).grad for name in model.state_dict()}
assert list(gradients[False]) == list(gradients[True])
assert max((gradients[True][name] - value).abs().max().item() for name, value in gradients[False].items()) < 1e-6
print(torch._dynamo.utils.counters["stats"]["unique_graphs"], dict(torch._dynamo.utils.counters["graph_break"]))
"""


def test_compiling_changes_neither_numbers_nor_names_of_weights_and_shares_one_graph_between_equal_blocks() -> None:
    # In a process of its own: this one checks shapes at every call, and that would be compiled too.
    done = subprocess.run([sys.executable, "-c", _COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "3 {}"  # encoder, decoder, and the decoder's last block, whose queries are fewer
