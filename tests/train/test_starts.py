"""Trainings that start from other layouts and other clips, probes, and options of the model, on real shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
import torch

from tests.command import run_command
from vmae_data.build import build_shards
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError
from vmae_data.progress import ProgressStyle
from vmae_data.read.dataset import LabelKind
from vmae_data.read.mixture import Mixture, parse_data
from vmae_data.recipes import load_recipe
from vmae_train.checkpoints.convert import convert
from vmae_train.checkpoints.load import load_model, load_start, save_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.evaluate import EvaluationRequest, evaluate_checkpoint
from vmae_train.finetune import FinetuneSpec, finetune
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec, pretrain
from vmae_train.runs.log import read_log
from vmae_train.runs.metadata import other_data
from vmae_train.training.objectives import FirstModel, Learnt, first_model

QUIET = ProgressStyle.QUIET
SHORT = ["train.steps=4", "log.every_steps=1", "model.depth=2", "model.position=sinusoid-1d"]


def _pretrain(shards: Path, out: Path, *words: str, init: Path | None = None) -> list[float]:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SHORT, *words])
    pretrain(spec, data=[str(shards)], out=out, init=str(init) if init else None, style=QUIET)
    return [line["loss"] for line in read_log(out, "train")]


def _finetune(shards: Path, out: Path, *words: str, init: Path | None = None) -> Classifier:
    words = (*SHORT, "evaluate.views=1x1", *words)
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, words)
    finetune(spec, data=[str(shards)], validation=str(shards), out=out, init=str(init) if init else None, style=QUIET)
    model = load_model(out)
    assert isinstance(model, Classifier)
    return model


@pytest.fixture(scope="module")
def pretrained(demo_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("starts") / "pretrained"
    _pretrain(demo_shards, out)
    return out


@pytest.mark.parametrize("to", ["official", "hf"])
@pytest.mark.parametrize("probe", ["linear", "attentive"])
def test_a_probe_of_any_layout_leaves_the_encoder_and_learns(
    probe: str, to: str, demo_shards: Path, pretrained: Path, tmp_path: Path
) -> None:
    convert(str(pretrained), tmp_path / "init", to=to)  # type: ignore[arg-type]
    words = (f"probe={probe}", "model.drop_path=0.5", "optim.warmup_steps=1")
    model = _finetune(demo_shards, tmp_path / "out", *words, init=tmp_path / "init")
    given = load_model(pretrained)
    assert isinstance(given, PretrainModel)
    for name, value in given.encoder.state_dict().items():
        if not name.startswith("norm."):
            assert torch.equal(model.state_dict()[name], value), name
    fresh = Classifier(model.geometry, model.classes, seed=0)
    assert not torch.equal(model.head.weight, fresh.head.weight)
    assert model.geometry.pooling == ("attentive" if probe == "attentive" else "mean")
    assert hasattr(model, "pooler") == (probe == "attentive")


def test_a_finetuning_moves_the_encoder_and_its_classifier_can_be_probed(
    demo_shards: Path, pretrained: Path, tmp_path: Path
) -> None:
    whole = _finetune(demo_shards, tmp_path / "whole", "model.drop_path=0.2", "model.fc_drop_rate=0.5", init=pretrained)
    given = load_model(pretrained)
    assert isinstance(given, PretrainModel)
    assert not torch.equal(whole.blocks[0].attn.q_bias, given.encoder.blocks[0].attn.q_bias)
    probed = _finetune(demo_shards, tmp_path / "probed", "probe=linear", init=tmp_path / "whole")
    assert torch.equal(whole.blocks[0].attn.q_bias, probed.blocks[0].attn.q_bias)
    assert not torch.equal(whole.head.weight, probed.head.weight)


def test_weights_of_other_clips_start_with_either_position_code(
    demo_shards: Path, pretrained: Path, tmp_path: Path
) -> None:
    first = {}
    for resize in ("recompute", "interpolate"):
        out = tmp_path / resize
        words = ("model.num_frames=8", f"model.position_resize={resize}")
        first[resize] = _pretrain(demo_shards, out, *words, init=pretrained)[0]
        grid = load_model(out).geometry.position_grid
        assert grid == ((8, 4) if resize == "interpolate" else None)
        model = _finetune(demo_shards, tmp_path / f"f-{resize}", *words, init=pretrained)
        assert model.geometry.num_frames == 8
    assert first["recompute"] != first["interpolate"]
    with pytest.raises(MisuseError, match=r"depth 2 \(recipe 3\)"):
        _pretrain(demo_shards, tmp_path / "deeper", "model.depth=3", init=pretrained)


def test_drop_path_does_not_hang_on_the_micro_batch(demo_shards: Path, tmp_path: Path) -> None:
    words = ("model.drop_path=0.4", "optim.warmup_steps=1")
    whole = _pretrain(demo_shards, tmp_path / "whole", *words)
    parts = _pretrain(
        demo_shards, tmp_path / "parts", *words, "train.micro_batch=2", "model.activation_checkpointing=true"
    )
    assert whole == pytest.approx(parts, abs=1e-4)
    assert _pretrain(demo_shards, tmp_path / "none", "optim.warmup_steps=1") != pytest.approx(whole, abs=1e-4)


def test_the_commands_probe_and_evaluate_what_was_converted(
    demo_shards: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_command("vmae_train", "convert", pretrained, tmp_path / "a.pth", "--to", "official", "--quiet")
    sets = [word for setting in SHORT for word in ("--set", setting)]
    run_command(
        *("vmae_train", "finetune", "--recipe", "finetune/demo", "--data", demo_shards, "--val", demo_shards),
        *("--init", tmp_path / "a.pth", "--out", tmp_path / "out", "--probe", "linear", "--quiet", *sets),
    )
    run_command("vmae_train", "convert", tmp_path / "out", tmp_path / "hf", "--to", "hf", "--quiet")
    done = run_command("vmae_train", "evaluate", tmp_path / "out", "--data", demo_shards)
    assert done.stdout.startswith("top-1")
    assert "the run's recipe" in done.stderr
    # A converted model has no run: a recipe says how its clips are chosen, else that nothing says it is told.
    same = _evaluated(tmp_path / "hf", demo_shards, "augment.antialias=false", recipe="finetune/demo")
    assert same.clip == ClipSpec(stride=2)
    assert same == _evaluated(tmp_path / "out", demo_shards, "augment.antialias=false")
    assert (same.views, same.antialias) == ("2x3", False)
    capsys.readouterr()
    assert _evaluated(tmp_path / "hf", demo_shards, "evaluate.views=1x1").clip == ClipSpec(stride=4)
    assert "as published models of Kinetics" in capsys.readouterr().err
    with pytest.raises(MisuseError, match="is a pretraining recipe"):
        _evaluated(tmp_path / "hf", demo_shards, recipe="pretrain/demo")


def _evaluated(checkpoint: Path, data: Path, *settings: str, recipe: str | None = None) -> Any:
    return evaluate_checkpoint(str(checkpoint), str(data), EvaluationRequest(recipe, settings), device="cpu").scores


@pytest.mark.parametrize("layout", ["native", "official", "bare"])
def test_a_finetuning_takes_the_encoder_beside_any_decoder_and_a_pretraining_does_not(
    layout: str, tmp_path: Path
) -> None:
    own = ["model.decoder_embed_dim=80", "model.decoder_num_heads=5"]  # which don't divide the file's 48
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [*SHORT, *own]).geometry()
    changes = {"decoder_embed_dim": 48, "decoder_depth": 2, "decoder_num_heads": 2}
    model, path = PretrainModel(msgspec.structs.replace(recipe, **changes), seed=5), tmp_path / "other"
    path.mkdir()
    save_model(path, model)
    if layout != "native":
        convert(str(path), tmp_path / "other.pth", to="official")
        path = tmp_path / "other.pth"
    if layout == "bare":  # says nothing of itself
        torch.save(model.state_dict(), path)
    for words in ([], ["probe=linear"]):
        head = _first(path, ("a", "b"), *own, *words).model.state_dict()
        for name, value in model.encoder.state_dict().items():
            assert name.startswith("norm.") or torch.equal(head[name], value), name
    with pytest.raises(MisuseError, match=r"decoder_embed_dim 48 \(recipe 80\), decoder_depth 2 \(recipe 1\)"):
        load_start(path, recipe, position_resize="recompute")


def test_weights_of_another_size_than_the_recipes_are_told_as_such(tmp_path: Path) -> None:
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, SHORT).geometry()
    other = msgspec.structs.replace(recipe, embed_dim=64, num_heads=4)
    torch.save(PretrainModel(other, seed=5).state_dict(), tmp_path / "a.pth")
    with pytest.raises(MisuseError, match=r"another size than the recipe's model \(embed_dim 64 \(recipe 192\)\)"):
        load_start(tmp_path / "a.pth", recipe, position_resize="recompute")


def test_a_start_that_does_not_fit_names_the_keys_of_the_recipe_that_would(tmp_path: Path) -> None:
    recipe = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, SHORT).geometry()
    save_model(tmp_path, PretrainModel(recipe, seed=5))
    others = {"mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    for changes, keys in (
        ({"mean": others["mean"]}, "augment.mean"),
        (others, "augment.mean and augment.std"),
        ({"depth": recipe.depth + 1, **others}, "model and augment.mean and augment.std"),
    ):
        with pytest.raises(MisuseError, match=f"change the recipe's {keys}$"):
            load_start(tmp_path, msgspec.structs.replace(recipe, **changes), position_resize="recompute")


@pytest.fixture
def of_three_classes(tmp_path: Path) -> Path:
    """A classifier that was trained on other classes than the demo's, as far as its names say."""
    folder = tmp_path / "three"
    folder.mkdir()
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, SHORT)
    save_model(folder, Classifier(spec.geometry(), ("run", "jump", "swim"), seed=3))
    return folder


def _first(init: Path, classes: tuple[str, ...], *words: str) -> FirstModel:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [*SHORT, *words])
    learnt = Learnt(LabelKind.CLASS, classes)
    return first_model(spec.model, spec.geometry(), learnt, init=str(init), probe=spec.probe, seed=spec.seed)


def test_of_a_head_with_more_classes_those_of_the_data_are_kept_by_name(of_three_classes: Path) -> None:
    given = load_model(of_three_classes)
    first = _first(of_three_classes, ("swim", "run"))
    clips = torch.randn(2, 3, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(first.model.eval()(clips), given(clips)[:, [2, 0]])
    assert first.start == f"{of_three_classes}; of the 3 classes of its head those of the data are kept"


@pytest.mark.parametrize("classes", [("run", "sit"), ("0", "1"), ("0", "1", "2")])
def test_a_classifier_of_other_classes_gives_its_encoder_and_norm_and_a_new_head(
    classes: tuple[str, ...], of_three_classes: Path
) -> None:
    given, first = load_model(of_three_classes), _first(of_three_classes, classes)
    state = first.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in given.state_dict().items() if "head." not in name)
    assert torch.equal(state["head.weight"], Classifier(given.geometry, classes, seed=0).head.weight)
    assert first.start.endswith("; a new head: the 3 classes of its own are others than the data's")


def test_numbers_are_not_taken_for_names_of_classes(tmp_path: Path) -> None:
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec, SHORT)
    save_model(tmp_path, Classifier(spec.geometry(), ("0", "1", "2"), seed=3))
    assert "a new head" in _first(tmp_path, ("0", "1")).start
    assert _first(tmp_path, ("0", "1", "2")).start == str(tmp_path)


def test_weights_of_other_videos_are_told_and_those_of_the_same_are_not(
    demo_shards: Path, demo_videos: Path, demo_spec: BuildSpec, pretrained: Path, tmp_path: Path
) -> None:
    mix = Mixture.open([parse_data(str(demo_shards))])
    assert other_data(None, mix) is None
    assert other_data(str(pretrained), mix) is None
    assert other_data(str(next((pretrained / "checkpoints").iterdir())), mix) is None
    again = tmp_path / "again"
    build_shards(str(demo_videos), again, msgspec.structs.replace(demo_spec, crf=30), workers=2, style=QUIET)
    prepared_otherwise = Mixture.open([parse_data(str(again))])
    assert prepared_otherwise.digests != mix.digests
    assert other_data(str(pretrained), prepared_otherwise) is None
    fewer = tmp_path / "fewer"
    shutil.copytree(next(path for path in demo_videos.iterdir() if path.is_dir()), tmp_path / "videos" / "only")
    build_shards(str(tmp_path / "videos"), fewer, demo_spec, workers=2, style=QUIET)
    told = other_data(str(pretrained), Mixture.open([parse_data(str(fewer))]))
    assert told is not None
    assert told.startswith(f"--init was trained on {demo_shards}, not on these videos")
