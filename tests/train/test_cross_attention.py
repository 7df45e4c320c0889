"""The decoder with cross-attention: `model.decoder_attention = "cross"`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest
import safetensors.torch
import torch
from torch import nn

from tests.command import call_command
from tests.tiny_models import TINY, tiny_clips, tiny_mask
from tests.tiny_runs import finetune_tiny, pretrain_tiny
from vmae_data.errors import MisuseError
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.load import load_init, load_model
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.mask import Grid, MaskSpec, TokenMask, sample_mask
from vmae_train.clips.rng import ClipRng
from vmae_train.export.export_model import export_model
from vmae_train.models.geometry import ModelSpec
from vmae_train.models.videomae import PretrainModel

CROSS = msgspec.structs.replace(TINY, decoder_attention="cross", decoder_depth=2)
CROSS_RUN = ("model.decoder_attention=cross", "checkpoint.every_steps=2", "checkpoint.keep=2")


def cross_model(device: torch.device) -> PretrainModel:
    return PretrainModel(CROSS).to(device)


def test_every_weight_gets_a_gradient_with_and_without_checkpointing(device: torch.device) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = cross_model(device)
        model.activation_checkpointing = checkpointing
        model.loss(tiny_clips(device), tiny_mask(device)).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, rtol=1e-4, atol=1e-7)


def test_a_prediction_depends_on_no_other_query(device: torch.device) -> None:
    clips, mask = tiny_clips(device), tiny_mask(device)
    fewer = mask._replace(decoded_BK=mask.masked_BM[:, 1::3])
    with torch.no_grad():
        cross, own = cross_model(device), PretrainModel(TINY).to(device)
        assert torch.allclose(cross(clips, fewer), cross(clips, mask)[:, 1::3], atol=1e-5)
        assert not torch.allclose(own(clips, fewer), own(clips, mask)[:, 1::3], atol=1e-3)


def test_the_tokens_that_no_loss_counts_are_no_queries(device: torch.device) -> None:
    rng = ClipRng.on(device, seed=0, epoch=0, sample=[1, 2])
    mask = sample_mask(MaskSpec(ratio=0.75, decoder="running-cell"), rng, Grid(8, 4, 4))
    model, clips = cross_model(device), tiny_clips(device)
    assert mask.decoded_BK is not None
    assert mask.unscored_BU is not None
    lengths: list[int] = []
    model.decoder.blocks[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    assert torch.equal(model(clips, mask), model(clips, mask._replace(unscored_BU=None)))
    assert lengths == [mask.decoded_BK.shape[1]] * 2


def test_the_order_of_the_visible_tokens_changes_nothing(device: torch.device) -> None:
    model, clips, mask = cross_model(device), tiny_clips(device), tiny_mask(device)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = TokenMask(mask.visible_BV[:, order], mask.masked_BM)
    with torch.no_grad():
        assert torch.allclose(model(clips, shuffled), model(clips, mask), atol=1e-5)


def test_a_block_is_softmax_of_queries_and_the_contexts_keys(device: torch.device) -> None:
    block = cross_model(device).decoder.blocks[0]
    generator = torch.Generator().manual_seed(2)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    x, context = (torch.randn(2, count, 96, generator=generator) for count in (5, 7))
    attended = torch.zeros(2, 5, 96)
    attn = block.attn
    q, k, v = attn.q(block.norm1(x)), context @ attn.k.weight.T, attn.v(context)
    for head in range(3):
        part = slice(32 * head, 32 * head + 32)
        scores = torch.einsum("bqe,bve->bqv", q[..., part], k[..., part]) / 32**0.5
        attended[..., part] = scores.softmax(dim=-1) @ v[..., part]
    between = x + attn.proj(attended)
    expected = between + block.mlp(block.norm2(between))
    assert torch.allclose(block(x, context_BVE=context), expected, atol=1e-5)


def test_one_batch_can_be_overfitted(device: torch.device) -> None:
    model, mask = PretrainModel(msgspec.structs.replace(CROSS, decoder_depth=1)).to(device), tiny_mask(device, batch=1)
    coarse = tiny_clips(device, batch=1)[:, :, ::4, ::8, ::8]
    clips = nn.functional.interpolate(coarse, (16, 32, 32), mode="trilinear")  # smooth, as videos are
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(200):
        loss = model.loss(clips, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.3  # 1.0 is the loss of predicting each cube's mean


# Checkpoints.


def test_a_description_names_only_what_differs_from_self_attention(tmp_path: Path) -> None:
    fields = {}
    for geometry in (TINY, CROSS):
        save_model(tmp_path, PretrainModel(geometry))
        fields[geometry.decoder_attention] = json.loads((tmp_path / "model.json").read_bytes())["geometry"]
        assert load_model(tmp_path).geometry == geometry
    assert "decoder_attention" not in fields["self"]
    assert fields["cross"]["decoder_attention"] == "cross"


def test_weights_alone_say_which_decoder_they_are_of(tmp_path: Path) -> None:
    geometry = ModelSpec(size="tiny", depth=1, position="sinusoid-1d", decoder_attention="cross").geometry()
    model, path = PretrainModel(geometry), tmp_path / "a.safetensors"
    safetensors.torch.save_file(model.state_dict(), path)
    sizes = {"num_heads": 3, "decoder_num_heads": 3, "image_size": 32, "num_frames": 16}
    assert load_model(path, **sizes).geometry == geometry
    with pytest.raises(MisuseError, match="has model.decoder_attention = 'cross', you set 'self'"):
        load_model(path, **sizes, decoder_attention="self")


@pytest.mark.parametrize("to", ["official", "hf"])
def test_formats_without_the_decoder_refuse_it(tmp_path: Path, to: str) -> None:
    geometry = ModelSpec(size="tiny", depth=1, position="sinusoid-1d", decoder_attention="cross").geometry()
    save_model(tmp_path, PretrainModel(geometry))
    with pytest.raises(MisuseError, match="no decoder with cross-attention. Use --to native, or vmae-train export"):
        convert(str(tmp_path), tmp_path / "x", to=to)  # type: ignore[arg-type]
    assert not (tmp_path / "x").exists()
    convert(str(tmp_path), tmp_path / "y", to="native")
    assert load_model(tmp_path / "y").geometry == geometry


def test_a_training_starts_from_the_same_decoder_only(tmp_path: Path) -> None:
    model = PretrainModel(CROSS, seed=4)
    save_model(tmp_path, model)
    with pytest.raises(MisuseError, match=r"decoder_attention cross \(recipe self\)"):
        load_init(tmp_path, msgspec.structs.replace(CROSS, decoder_attention="self"), position_resize="recompute")
    started = load_init(tmp_path, CROSS, position_resize="recompute")
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in started.state_dict().items())
    finetuned = load_init(tmp_path, TINY, position_resize="recompute", with_decoder=False)
    assert torch.equal(finetuned.state_dict()["encoder.norm.weight"], model.encoder.norm.weight)


# Runs.


@pytest.fixture(scope="module")
def run(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("cross") / "run"
    pretrain_tiny(demo_shards, run, *CROSS_RUN)
    return run


def test_a_resumed_run_ends_with_the_same_weights(run: Path, demo_shards: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(run, again)
    shutil.rmtree(again / "checkpoints/step-000000004")
    pretrain_tiny(demo_shards, again, *CROSS_RUN)
    for name in ("model", "optimizer"):
        own, resumed = (folder / f"checkpoints/step-000000004/{name}.safetensors" for folder in (run, again))
        assert own.read_bytes() == resumed.read_bytes(), name


def test_a_run_keeps_its_decoder(run: Path, demo_shards: Path) -> None:
    with pytest.raises(MisuseError, match="decoder_attention"):
        pretrain_tiny(demo_shards, run)


def test_a_run_is_finetuned_drawn_reported_and_exported(run: Path, demo_shards: Path, tmp_path: Path) -> None:
    finetune_tiny(demo_shards, tmp_path / "finetuned", init=run)
    options = ("--data", demo_shards, "--out", tmp_path / "drawn.png", "--videos", "1", "--device", "cpu")
    call_command("vmae_train", "reconstruct", run, *options)
    call_command("vmae_train", "report", run, "--out", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "decoder_attention" in page
    assert "data:image" in page
    assert (tmp_path / "drawn.png").stat().st_size > 500
    result = export_model(str(run), tmp_path / "exported", to=["torch-export"], resize=False)
    assert result.output == "features"
    assert result.checks[0].difference is not None
    assert result.checks[0].difference < 1e-5
