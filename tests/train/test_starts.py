"""--init in other formats and for other clips, probes and options of the model, on real shards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from tests.command import call_command
from tests.tiny_runs import TINY_RUN, finetune_tiny, pretrain_tiny
from tests.torchrun import run_torchrun
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind, Shards
from vmae_data.read.mixture import Mixture, parse_data
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.convert import ConvertSpec, Layout, convert
from vmae_train.checkpoints.load import load_init, load_model
from vmae_train.checkpoints.native import read_weights, save_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluate import evaluate_checkpoint, order_hint
from vmae_train.evaluation.metrics import AnyScores, class_scores
from vmae_train.finetune import FinetuneSpec
from vmae_train.models.heads import Classifier, HeadModel, classifier_from
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import describe_other_data
from vmae_train.training.head import HeadTarget, build_head_model

pytestmark = pytest.mark.processes


def _pretrain(shards: Path, out: Path, *settings: str, init: Path | None = None) -> list[float]:
    pretrain_tiny(shards, out, *settings, init=init)
    return _losses(out)


def _losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run, "train")]


def _finetune(shards: Path, out: Path, *settings: str, init: Path) -> Classifier:
    finetune_tiny(shards, out, *settings, init=init)
    model = load_model(out)
    assert isinstance(model, Classifier)
    return model


@pytest.mark.parametrize("to", ["official", "hf"])
@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_a_probe_from_any_format_keeps_the_encoder_and_trains_the_head(
    probe: str, to: Layout, demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    convert(str(tiny_pretraining), tmp_path / "init", to=to)
    settings = (f"probe={probe}", "standardize=true", "model.drop_path=0.5", "train.steps=2")
    model = _finetune(demo_shards, tmp_path / "out", *settings, init=tmp_path / "init")
    pretrained = load_model(tiny_pretraining)
    assert isinstance(pretrained, PretrainModel)
    for name, value in pretrained.encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(model.state_dict()[name], value), name
    untrained = Classifier(model.geometry, model.classes, seed=0)
    assert not torch.equal(model.head.weight, untrained.head.weight)
    assert model.geometry.pooling == ("attentive" if probe == "attentive" else "slices")
    assert hasattr(model, "pooler") == (probe == "attentive")


@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_a_stopped_probe_resumes_to_the_bit(
    probe: str, demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    settings = (f"probe={probe}", "standardize=true", "checkpoint.every_steps=2", "checkpoint.keep=2", "ema.decay=0.5")
    _finetune(demo_shards, tmp_path / "whole", *settings, init=tiny_pretraining)
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    (last,) = (tmp_path / "stopped").glob("checkpoints/step-*4")
    shutil.rmtree(last)
    _finetune(demo_shards, tmp_path / "stopped", *settings, init=tiny_pretraining)
    for file in ("model.safetensors", "ema.safetensors"):
        assert (last / file).read_bytes() == (tmp_path / "whole" / "checkpoints" / last.name / file).read_bytes()
    averages = read_weights(last / "ema.safetensors")
    model = load_model(tmp_path / "whole")
    assert isinstance(model, Classifier)
    assert torch.equal(averages["standardize.mean"], model.standardize.mean)
    assert model.standardize.spread.min() > 0
    assert not torch.equal(model.standardize.spread, torch.ones_like(model.standardize.spread))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_the_statistics_and_losses_of_a_probe_are_equal_on_one_and_two_processes(
    engine: str, demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    arguments: list[str | Path] = ["finetune", "--recipe", "finetune/demo", "--data", demo_shards, "--val", demo_shards]
    arguments += ["--init", tiny_pretraining, "--probe", "linear", "--quiet"]
    for setting in (*TINY_RUN, "evaluate.views=1x1", "ema.decay=0.5", f"train.engine={engine}"):
        arguments += ["--set", setting]
    call_command("vmae_train", *arguments, "--out", tmp_path / "one")
    run_torchrun(2, "vmae_train.cli", *arguments, "--out", tmp_path / "two")
    assert _losses(tmp_path / "one") == pytest.approx(_losses(tmp_path / "two"), abs=1e-4)
    one, two = load_model(tmp_path / "one"), load_model(tmp_path / "two")
    for name in ("standardize.mean", "standardize.spread"):
        assert torch.allclose(one.state_dict()[name], two.state_dict()[name], atol=1e-5)


def test_a_finetuning_trains_the_encoder_and_its_classifier_can_be_probed(
    demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    settings = ("model.drop_path=0.2", "model.fc_drop_rate=0.5")
    finetuned = _finetune(demo_shards, tmp_path / "finetuned", *settings, init=tiny_pretraining)
    pretrained = load_model(tiny_pretraining)
    assert isinstance(pretrained, PretrainModel)
    assert not torch.equal(finetuned.blocks[0].attn.q_bias, pretrained.encoder.blocks[0].attn.q_bias)
    probed = _finetune(demo_shards, tmp_path / "probed", "probe=linear", init=tmp_path / "finetuned")
    assert torch.equal(finetuned.blocks[0].attn.q_bias, probed.blocks[0].attn.q_bias)
    assert not torch.equal(finetuned.head.weight, probed.head.weight)


def test_a_finetuning_trains_the_encoder_under_the_head_of_a_probe_and_a_later_one_keeps_its_statistics(
    demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    first = _finetune(demo_shards, tmp_path / "first", "standardize=true", init=tiny_pretraining)
    pretrained = load_model(tiny_pretraining)
    assert isinstance(pretrained, PretrainModel)
    assert not torch.equal(first.blocks[0].attn.q_bias, pretrained.encoder.blocks[0].attn.q_bias)
    assert (first.geometry.pooling, first.geometry.standardize) == ("slices", True)
    second = _finetune(demo_shards, tmp_path / "second", "standardize=true", "seed=9", init=tmp_path / "first")
    assert torch.equal(first.standardize.mean, second.standardize.mean) and first.standardize.mean.any()
    assert not torch.equal(first.head.weight, second.head.weight)
    assert torch.allclose(first.head.weight, second.head.weight, atol=0.02)
    plain = _finetune(demo_shards, tmp_path / "plain", init=tmp_path / "first")
    assert (plain.geometry.pooling, plain.geometry.standardize) == ("mean", False)
    part, text = classifier_from(first, first.geometry, first.classes[:2], seed=0, new_head=False)
    assert torch.equal(part.head.weight, first.head.weight[:2]) and "cut down" in text
    assert torch.equal(part.standardize.spread, first.standardize.spread)


def test_weights_of_other_clips_start_with_either_position_code(
    demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    first_loss = {}
    for resize in ("recompute", "interpolate"):
        settings = ("train.steps=1", "model.num_frames=8", f"model.position_resize={resize}")
        first_loss[resize] = _pretrain(demo_shards, tmp_path / resize, *settings, init=tiny_pretraining)[0]
        assert load_model(tmp_path / resize).geometry.position_grid == ((8, 4) if resize == "interpolate" else None)
        model = _finetune(demo_shards, tmp_path / f"finetune-{resize}", *settings, init=tiny_pretraining)
        assert model.geometry.num_frames == 8
    assert first_loss["recompute"] != first_loss["interpolate"]
    with pytest.raises(MisuseError, match=r"depth 2 \(recipe 3\)"):
        _pretrain(demo_shards, tmp_path / "deeper", "model.depth=3", init=tiny_pretraining)


def test_drop_path_does_not_depend_on_the_micro_batch(
    demo_shards: Path, tiny_pretraining: Path, tmp_path: Path
) -> None:
    one_batch = _pretrain(demo_shards, tmp_path / "one", "model.drop_path=0.4")
    settings = ("train.micro_batch=2", "model.activation_checkpointing=true")
    micro_batches = _pretrain(demo_shards, tmp_path / "four", "model.drop_path=0.4", *settings)
    assert one_batch == pytest.approx(micro_batches, abs=1e-4)
    assert _losses(tiny_pretraining) != pytest.approx(one_batch, abs=1e-4)


def test_the_commands_convert_probe_and_evaluate(demo_shards: Path, tiny_pretraining: Path, tmp_path: Path) -> None:
    call_command("vmae_train", "convert", tiny_pretraining, tmp_path / "a.pth", "--to", "official", "--quiet")
    settings = [word for setting in (*TINY_RUN, "evaluate.views='1x1'") for word in ("--set", setting)]
    call_command(
        *("vmae_train", "finetune", "--recipe", "finetune/demo", "--data", demo_shards, "--val", demo_shards),
        *("--init", tmp_path / "a.pth", "--out", tmp_path / "out", "--probe", "linear", "--quiet", *settings),
    )
    done = call_command("vmae_train", "evaluate", tmp_path / "out", "--data", demo_shards)
    assert done.stdout.startswith("top-1")
    assert "the run's recipe" in done.stderr


def test_a_converted_model_has_no_run_and_a_recipe_sets_how_it_is_evaluated(
    demo_shards: Path, tiny_finetuning: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(tiny_finetuning), tmp_path / "hf", to="hf")
    scores = _evaluate(tmp_path / "hf", demo_shards, "augment.antialias=false", recipe="finetune/demo")
    assert scores.clip == ClipSpec(stride=2)
    assert (scores.views, scores.antialias) == ("2x3", False)
    own = _evaluate(tiny_finetuning, demo_shards, "augment.antialias=false", "evaluate.views=2x3")
    # The probabilities of wrong videos may differ in their last digits.
    assert msgspec.structs.replace(scores, wrong=()) == msgspec.structs.replace(own, wrong=())
    assert {one.key for one in scores.wrong} == {one.key for one in own.wrong}
    convert(str(tiny_finetuning), tmp_path / "official", to="official")
    for name, antialias in (("hf", True), ("official", False)):  # as its processors resize; as VideoMAE's OpenCV
        capsys.readouterr()
        published = _evaluate(tmp_path / name, demo_shards, "evaluate.views=1x1")
        assert (published.clip, published.antialias) == (ClipSpec(stride=4), antialias)
        text = " ".join(capsys.readouterr().err.split())
        assert f"antialias {'on' if antialias else 'off'}" in text
        assert "as published models of Kinetics" in text
    with pytest.raises(MisuseError, match="is a pretraining recipe"):
        _evaluate(tmp_path / "hf", demo_shards, recipe="pretrain/demo")


def test_class_names_may_be_given_and_the_data_may_have_them_in_another_order(
    demo_shards: Path, tiny_finetuning: Path, tmp_path: Path
) -> None:
    classes = Shards.open(str(demo_shards)).classes
    model = load_model(tiny_finetuning)
    own = _evaluate(tiny_finetuning, demo_shards, "evaluate.views=1x1")
    backwards = classes[::-1]
    flipped = {name: value.flip(0) for name, value in model.state_dict().items() if name.startswith("head.")}
    torch.save({"model": model.state_dict() | flipped}, tmp_path / "a.pth")
    fields = {"num_heads": 3, "image_size": 32, "num_frames": 16}
    convert(str(tmp_path / "a.pth"), tmp_path / "numbered", to="native", spec=ConvertSpec(model=fields))
    with pytest.raises(MisuseError, match="has numbers only. Name the model's classes with --class-names FILE"):
        _evaluate(tmp_path / "numbered", demo_shards)
    named = evaluate_checkpoint(
        str(tmp_path / "numbered"), str(demo_shards), recipe="finetune/demo", settings=["evaluate.views=1x1"],
        class_names=backwards, device="cpu",
    )  # fmt: skip
    assert named.scores == own
    with pytest.raises(MisuseError, match="has 8 outputs, but you gave 2 classes"):
        evaluate_checkpoint(str(tmp_path / "numbered"), str(demo_shards), class_names=("a", "b"), device="cpu")
    with pytest.raises(MisuseError, match="other class names than you gave"):
        load_model(tiny_finetuning, classes=backwards)


def test_a_score_that_guessing_gives_gets_a_hint_if_nothing_proves_the_order_of_the_classes() -> None:
    def hint(right: int, classes: tuple[str, ...], names: tuple[str, ...] | None = None) -> str | None:
        label_N = np.arange(80) % len(classes)
        guess_N = np.where(np.arange(80) < right, label_N, (label_N + 1) % len(classes))
        probability_NK = np.eye(len(classes))[guess_N]
        return order_hint(class_scores(probability_NK, label_N, classes=classes, views="1x1", unreadable={}), names)

    numbers, words = tuple(map(str, range(8))), tuple("abcdefgh")
    assert hint(0, words) is None
    assert hint(60, numbers) is None
    assert "top-1 0.00 % is no better than chance (12.50 %)" in str(hint(0, numbers))
    assert "--class-names" in str(hint(8, words, words))


def _evaluate(checkpoint: Path, data: Path, *settings: str, recipe: str | None = None) -> AnyScores:
    return evaluate_checkpoint(str(checkpoint), str(data), recipe=recipe, settings=settings, device="cpu").scores


@pytest.mark.parametrize("layout", ["native", "official", "plain"])
def test_a_finetuning_accepts_any_decoder_in_the_file_and_a_pretraining_does_not(layout: str, tmp_path: Path) -> None:
    own = ["model.decoder_embed_dim=80", "model.decoder_num_heads=5"]  # which don't divide the file's 48
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*TINY_RUN, *own]).geometry()
    changes = {"decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 2}
    model, path = PretrainModel(msgspec.structs.replace(recipe, **changes), seed=5), tmp_path / "other"
    path.mkdir()
    save_model(path, model)
    if layout != "native":
        convert(str(path), tmp_path / "other.pth", to="official")
        path = tmp_path / "other.pth"
    if layout == "plain":  # without a description
        torch.save(model.state_dict(), path)
    for arguments in ([], ["probe=linear"]):
        head = _first(path, ("a", "b"), *own, *arguments)[0].state_dict()
        for name, value in model.encoder.state_dict().items():
            assert name.startswith("norm.") or torch.equal(head[name], value), name
    with pytest.raises(MisuseError, match=r"decoder_embed_dim 48 \(recipe 80\), decoder_depth 2 \(recipe 1\)"):
        load_init(path, recipe, position_resize="recompute")


def test_weights_of_another_size_than_the_recipes_are_refused(tmp_path: Path) -> None:
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, TINY_RUN).geometry()
    other = msgspec.structs.replace(recipe, embed_dim=64, num_heads=4)
    torch.save(PretrainModel(other, seed=5).state_dict(), tmp_path / "a.pth")
    with pytest.raises(MisuseError, match=r"has another size than the recipe's model \(embed_dim 64 \(recipe 192\)\)"):
        load_init(tmp_path / "a.pth", recipe, position_resize="recompute")


def test_an_init_that_does_not_fit_names_the_keys_of_the_recipe_to_change(tmp_path: Path) -> None:
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, TINY_RUN).geometry()
    save_model(tmp_path, PretrainModel(recipe, seed=5))
    others = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    for changes, keys in (
        ({"mean": others["mean"]}, "augment.mean"),
        (others, "augment.mean and augment.std"),
        ({"depth": recipe.depth + 1, **others}, "model and augment.mean and augment.std"),
    ):
        with pytest.raises(MisuseError, match=f"Change the recipe's {keys}$"):
            load_init(tmp_path, msgspec.structs.replace(recipe, **changes), position_resize="recompute")


@pytest.fixture
def three_classes(tmp_path: Path) -> Path:
    """A classifier whose class names are not those of the demo videos."""
    folder = tmp_path / "three"
    folder.mkdir()
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, TINY_RUN)
    save_model(folder, Classifier(spec.geometry(), ("run", "jump", "swim"), seed=3))
    return folder


def _first(init: Path, classes: tuple[str, ...], *arguments: str) -> tuple[HeadModel, str]:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*TINY_RUN, *arguments])
    target = HeadTarget(LabelKind.CLASS, classes)
    return build_head_model(spec.model, spec.geometry(), target, init=str(init), probe=spec.probe, seed=spec.seed)


def test_the_outputs_of_the_classes_of_the_data_are_kept_by_name(three_classes: Path) -> None:
    classifier = load_model(three_classes)
    model, origin = _first(three_classes, ("swim", "run"))
    clips = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(model.eval()(clips), classifier(clips)[:, [2, 0]])
    assert origin == f"{three_classes}; its head of 3 classes is cut down to the classes of the data"


@pytest.mark.parametrize("classes", [("run", "sit"), ("0", "1"), ("0", "1", "2")])
def test_a_classifier_of_other_classes_gives_its_encoder_and_norm_but_gets_a_new_head(
    classes: tuple[str, ...], three_classes: Path
) -> None:
    classifier = load_model(three_classes)
    model, origin = _first(three_classes, classes)
    state = model.state_dict()
    assert all(
        torch.equal(state[name], value) for name, value in classifier.state_dict().items() if "head." not in name
    )
    assert torch.equal(state["head.weight"], Classifier(classifier.geometry, classes, seed=0).head.weight)
    assert origin.endswith("; new head: the 3 classes of its own head are not those of the data")


def test_numbers_are_not_class_names(tmp_path: Path) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, TINY_RUN)
    save_model(tmp_path, Classifier(spec.geometry(), ("0", "1", "2"), seed=3))
    assert "new head" in _first(tmp_path, ("0", "1"))[1]
    assert _first(tmp_path, ("0", "1", "2"))[1] == str(tmp_path)


def test_init_from_other_videos_gives_a_warning_and_init_from_the_same_videos_gives_none(
    demo_shards: Path, demo_videos: Path, demo_spec: BuildSpec, tiny_pretraining: Path, tmp_path: Path
) -> None:
    def mixture(shards: Path) -> Mixture:
        return Mixture.open([parse_data(str(shards))])

    shutil.copytree(next(path for path in demo_videos.iterdir() if path.is_dir()), tmp_path / "videos" / "only")
    for name, spec in (("few", demo_spec), ("recoded", msgspec.structs.replace(demo_spec, crf=30))):
        build_shards(str(tmp_path / "videos"), tmp_path / name, spec, workers=1, style=ProgressStyle.QUIET)
    demo, few, recoded = mixture(demo_shards), mixture(tmp_path / "few"), mixture(tmp_path / "recoded")
    assert describe_other_data(None, demo) is None
    assert describe_other_data(str(tiny_pretraining), demo) is None
    assert describe_other_data(str(next((tiny_pretraining / "checkpoints").iterdir())), demo) is None
    warning = describe_other_data(str(tiny_pretraining), few)
    assert warning is not None
    assert warning.startswith(f"--init was trained on {demo_shards}, not on these videos")
    facts = json.loads((tiny_pretraining / "run.json").read_text())
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({**facts, "data_listing": few.listings}))
    assert recoded.digests != few.digests
    assert describe_other_data(str(tmp_path / "run"), recoded) is None
