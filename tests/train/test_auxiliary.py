"""Finetuning that also reconstructs: its loss and gradients, its runs and checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from tests.command import call_command
from tests.tiny_runs import finetune_tiny
from tests.train.test_finetune import CLASSES, EVERYTHING, PUBLISHED_MIX, TINY, noise_batch
from vmae_data.errors import DataError, RecipeError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind
from vmae_data.recipes import load_recipe
from vmae_train import Predictor, load_model
from vmae_train.checkpoints.convert import convert
from vmae_train.clips.augment import Augment, AugmentSpec
from vmae_train.clips.mask import MaskSpec
from vmae_train.evaluate import evaluate_checkpoint
from vmae_train.evaluation.metrics import read_scores
from vmae_train.finetune import AuxSpec, FinetuneSpec, label_loss
from vmae_train.footprint import find_footprint, measure_footprint
from vmae_train.inference.find_videos import VideoFile
from vmae_train.models.base import trained_parameters, training_only_parameters
from vmae_train.models.heads import Classifier, HeadModel
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import masked_loss
from vmae_train.reports.run_page import write_report
from vmae_train.runs.log import read_log
from vmae_train.training.checkpoint import load_checkpoint
from vmae_train.training.head import HeadTarget, build_head_model
from vmae_train.training.optimizer import OptimSpec, build_optimizer, layer_scale

pytestmark = pytest.mark.processes

WEIGHT = 0.25
AUX = AuxSpec(reconstruction=WEIGHT)
QUIET = ProgressStyle.QUIET
FILES = ("model", "optimizer", "ema")
SETTINGS = (f"aux.reconstruction={WEIGHT}", "ema.decay=0.9", "checkpoint.every_steps=2", "evaluate.every_steps=2")


def _model() -> Classifier:
    model = Classifier(TINY, CLASSES, seed=1)
    model.share_encoder(PretrainModel(TINY, seed=2))
    return model.train()


def _reconstruction(model: HeadModel) -> PretrainModel:
    assert model.auxiliary is not None
    return model.auxiliary


@pytest.fixture(scope="module")
def auxiliary_run(tiny_pretraining: Path, demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finetuning of `tiny_finetuning` with an auxiliary reconstruction. Read only."""
    out = tmp_path_factory.mktemp("runs") / "auxiliary"
    finetune_tiny(demo_shards, out, *SETTINGS, init=tiny_pretraining)
    return out


def _weights(run: Path, file: str, step: int = 4) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{step:09d}/{file}.safetensors")


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("drop_path", [0.0, 0.5])
def test_the_loss_is_the_label_loss_and_the_weighted_loss_of_pretraining(repeats: int, drop_path: float) -> None:
    """Of the same crops and masks, after RandAugment, before erasing and mixup: `masked_loss` has neither."""
    model, augment = _model(), Augment(msgspec.convert(EVERYTHING | {"erasing": {"prob": 1.0}}, AugmentSpec))
    model.drop_path = _reconstruction(model).drop_path = drop_path
    batch = noise_batch([0, 1, 2, 3, 4, 5, 6, 7], unreadable=(2,))
    total, label, masked = label_loss(model, batch, augment, PUBLISHED_MIX, AUX, repeats=repeats)
    expected = label_loss(model, batch, augment, PUBLISHED_MIX, repeats=repeats)
    alone = masked_loss(_reconstruction(model), batch, augment, MaskSpec(ratio=0.75), repeats=repeats)
    assert label.item() == expected.item()
    assert masked.item() == alone.item()
    assert total.item() == pytest.approx(expected.item() + WEIGHT * alone.item(), rel=1e-6)


def test_the_gradient_of_both_losses_reaches_encoder_decoder_and_head() -> None:
    model, augment, batch = _model(), Augment(msgspec.convert(EVERYTHING, AugmentSpec)), noise_batch([0, 1, 2, 3])
    parameters = dict(trained_parameters(model))

    def gradients(loss: torch.Tensor) -> dict[str, torch.Tensor]:
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}

    label = gradients(label_loss(model, batch, augment, PUBLISHED_MIX))
    masked = gradients(masked_loss(_reconstruction(model), batch, augment, AUX.mask))
    both = gradients(label_loss(model, batch, augment, PUBLISHED_MIX, AUX)[0])
    assert both.keys() == parameters.keys() == label.keys() | masked.keys()
    shared = label.keys() & masked.keys()
    assert {name.split(".")[0] for name in shared} == {"patch_embed", "blocks"}
    for name, gradient in both.items():
        expected = torch.zeros_like(gradient) + label.get(name, 0) + WEIGHT * masked.get(name, torch.zeros(()))
        assert gradient.any() and torch.allclose(gradient, expected, atol=1e-6), name


def test_the_state_dict_is_that_of_a_model_without_reconstruction() -> None:
    model, plain = _model(), Classifier(TINY, CLASSES, seed=1)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert torch.nn.Sequential(model).state_dict().keys() == torch.nn.Sequential(plain).state_dict().keys()
    own = training_only_parameters(model)
    assert {name: value.shape for name, value in own.items()} == {
        f"auxiliary.{name}": value.shape
        for name, value in PretrainModel(TINY).state_dict().items()
        if not name.startswith(("encoder.patch_embed.", "encoder.blocks."))
    }
    assert not training_only_parameters(plain)


def test_the_decoder_learns_at_the_full_rate_and_its_mask_token_does_not_decay() -> None:
    model = _model()
    optimizer = build_optimizer(model, OptimSpec(base_lr=1e-3, warmup_steps=1, layer_decay=0.5), depth=TINY.depth)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in trained_parameters(model):
        group = groups[id(parameter)]
        assert group["scale"] == (1 if name.startswith("auxiliary.") else layer_scale(name, TINY.depth, 0.5)), name
        if name in ("auxiliary.mask_token", "auxiliary.encoder.norm.weight"):
            assert group["weight_decay"] == 0
    assert groups[id(_reconstruction(model).decoder.head.weight)]["weight_decay"] > 0


def test_the_decoder_is_that_of_a_pretraining_or_else_new(tiny_pretraining: Path, tiny_finetuning: Path) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, ["model.depth=2", "model.position=sinusoid-1d"])
    target = HeadTarget(LabelKind.CLASS, CLASSES)

    def build(init: Path | None) -> tuple[PretrainModel, str]:
        start = str(init) if init is not None else None
        options: dict[str, Any] = {"init": start, "probe": None, "seed": 3, "with_decoder": True}
        model, origin = build_head_model(spec.model, spec.geometry(), target, **options)
        assert _reconstruction(model).encoder.blocks is model.blocks
        return _reconstruction(model), origin

    pretrained, origin = build(tiny_pretraining)
    expected = load_model(tiny_pretraining).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in pretrained.state_dict().items())
    assert origin == str(tiny_pretraining)

    (fresh, _), (other, origin) = build(None), build(tiny_finetuning)
    assert origin.endswith("; new decoder")
    for name, value in PretrainModel(spec.geometry(), seed=3).state_dict().items():
        if not name.startswith(("encoder.patch_embed.", "encoder.blocks.")):
            assert torch.equal(fresh.state_dict()[name], value) and torch.equal(other.state_dict()[name], value), name


def test_the_log_and_the_report_have_both_losses(auxiliary_run: Path, tiny_finetuning: Path, tmp_path: Path) -> None:
    lines, plain = read_log(auxiliary_run, "train"), read_log(tiny_finetuning, "train")
    assert len(lines) == len(plain) == 4
    assert lines[0]["label_loss"] == plain[0]["loss"]  # before the first update
    for line in lines:
        expected = line["label_loss"] + WEIGHT * line["reconstruction_loss"]
        assert line["loss"] == pytest.approx(expected, rel=1e-6)
        assert 0.5 < line["reconstruction_loss"] < 2
    assert all(line.keys() == lines[0].keys() - {"label_loss", "reconstruction_loss"} for line in plain)
    for run, shown in ((auxiliary_run, True), (tiny_finetuning, False)):
        write_report(run, tmp_path / "page.html", pictures=False)
        page = (tmp_path / "page.html").read_text()
        assert ("Label loss" in page) == ("Reconstruction loss" in page) == shown


def test_a_checkpoint_has_the_weights_of_a_plain_one_and_the_decoder_apart(
    auxiliary_run: Path, tiny_finetuning: Path
) -> None:
    plain = _weights(tiny_finetuning, "model").keys()
    assert _weights(auxiliary_run, "model").keys() == _weights(auxiliary_run, "ema").keys() == plain
    moments, others = (_weights(run, "optimizer").keys() for run in (auxiliary_run, tiny_finetuning))
    added = {name.partition("/")[2] for name in moments - others}
    assert added and all(name.startswith("auxiliary.") for name in added)
    assert moments - others == {f"{kind}/{n}" for n in added for kind in ("exp_avg", "exp_avg_sq", "step", "weight")}
    description = "checkpoints/step-000000004/model.json"
    assert (auxiliary_run / description).read_bytes() == (tiny_finetuning / description).read_bytes()


def test_a_run_resumes_bit_for_bit_with_its_decoder(
    auxiliary_run: Path, tiny_pretraining: Path, demo_shards: Path, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(auxiliary_run, tmp_path / "run"))
    shutil.rmtree(run / "checkpoints/step-000000004")
    (run / "evaluation.json").unlink()
    finetune_tiny(demo_shards, run, *SETTINGS, "loader.workers=1", init=tiny_pretraining)
    for file in FILES:
        whole, resumed = _weights(auxiliary_run, file), _weights(run, file)
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), file
    first, last = (_weights(run, "optimizer", step) for step in (2, 4))
    name = "weight/auxiliary.decoder.head.weight"
    assert not torch.equal(first[name], last[name])


def test_moments_without_the_decoder_are_not_resumed(tiny_finetuning: Path) -> None:
    model = load_model(tiny_finetuning)
    assert isinstance(model, HeadModel)
    model.share_encoder(PretrainModel(model.geometry))
    optimizer = build_optimizer(model, OptimSpec(base_lr=1e-3, warmup_steps=1), depth=2)
    with pytest.raises(DataError, match="its parameters are not the model's"):
        load_checkpoint(tiny_finetuning / "checkpoints/step-000000004", model, optimizer)


def test_the_model_is_evaluated_used_and_converted_as_any_other(
    auxiliary_run: Path, demo_shards: Path, demo_videos: Path, tmp_path: Path
) -> None:
    assert isinstance(load_model(auxiliary_run, ema=True), Classifier)
    settings = ["evaluate.views='1x1'"]
    evaluation = evaluate_checkpoint(
        str(auxiliary_run), str(demo_shards), settings=settings, workers=0, device="cpu", style=QUIET
    )
    assert evaluation.scores == read_scores(auxiliary_run / "evaluation.json")
    video = next(path for path in sorted(demo_videos.glob("*/*.mp4")) if "broken" not in path.name)
    (result,) = Predictor(auxiliary_run, "cpu", settings=settings).run_videos([VideoFile(video.stem, video)])
    assert result.rows
    call_command("vmae_train", "embed", auxiliary_run, video, "--out", tmp_path / "features.npz", "--quiet")
    convert(str(auxiliary_run), tmp_path / "hf", to="hf")
    converted = load_model(tmp_path / "hf").state_dict()
    assert all(torch.equal(value, converted[name]) for name, value in load_model(auxiliary_run).state_dict().items())


def test_a_run_with_motion_masks_trains(demo_shards: Path, tmp_path: Path) -> None:
    motion = ("aux.mask.kind=motion", "train.steps=1", "train.micro_batch=4", "model.activation_checkpointing=true")
    finetune_tiny(demo_shards, tmp_path / "run", *SETTINGS, *motion)
    (line,) = read_log(tmp_path / "run", "train")
    assert 0.5 < line["reconstruction_loss"] < 2


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (["aux.reconstruction=-1"], "aux.reconstruction = -1.0: expected 0 to 1000"),
        (["aux.mask.ratio=2"], "aux.mask: mask.ratio = 2.0: expected a number between 0 and 1"),
        (["aux.reconstruction=1", "aux.mask.ratio=0.001"], "aux.mask.ratio = 0.001 masks 0 of 16 patches"),
        (["aux.reconstruction=1", "probe=linear"], "probe = linear: a probe does not train the encoder"),
        (["aux.reconstruction=1", "train.engine=fsdp2"], "train.engine = fsdp2: only ddp trains the decoder"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings: list[str], error: str) -> None:
    with pytest.raises(RecipeError, match=error):
        load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings)


def test_the_footprint_counts_the_reconstruction() -> None:
    plain, other, on = (
        load_recipe("vmae_train", "finetune/demo", FinetuneSpec, settings)
        for settings in ([], ["aux.mask.ratio=0.5"], ["aux.reconstruction=1"])
    )
    assert find_footprint(plain) == find_footprint(other)
    with_reconstruction = find_footprint(on)
    assert with_reconstruction == measure_footprint(on)
    assert with_reconstruction.peak_mib > find_footprint(plain).peak_mib
    assert with_reconstruction.gflop_a_clip > 1.1 * find_footprint(plain).gflop_a_clip
