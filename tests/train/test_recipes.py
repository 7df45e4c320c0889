from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import call_command
from vmae_data.errors import RecipeError
from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head
from vmae_train.commands.finetune import finetune
from vmae_train.commands.options import check_recipe, spec_of
from vmae_train.commands.pretrain import pretrain
from vmae_train.finetune import FinetuneSpec
from vmae_train.pretrain import PretrainSpec


@pytest.mark.parametrize("name", list_recipes("vmae_train"))
def test_every_training_recipe_loads_and_its_head_names_its_command(name: str) -> None:
    spec = load_recipe("vmae_train", name, spec_of(name))
    assert spec.train.batch >= 1
    assert f"vmae-train {name.split('/')[0]}" in recipe_head(read_recipe("vmae_train", name))


@pytest.mark.parametrize(("name", "stride", "flip"), [("pretrain/k400", 4, True), ("pretrain/ssv2", 2, False)])
def test_the_published_pretraining_recipes_have_the_papers_numbers(name: str, stride: int, flip: bool) -> None:
    spec = load_recipe("vmae_train", name, PretrainSpec)
    geometry = spec.model.geometry()
    assert (geometry.embed_dim, geometry.depth, geometry.num_heads) == (768, 12, 12)
    assert (geometry.decoder_embed_dim, geometry.decoder_depth, geometry.decoder_num_heads) == (384, 4, 6)
    assert (geometry.num_tokens, geometry.position) == (1568, "sinusoid-1d")
    assert (spec.train.epochs, spec.train.batch, spec.clip.stride) == (800, 1024, stride)
    assert (spec.optim.base_lr, spec.optim.min_lr, spec.optim.warmup_epochs) == (1.5e-4, 1e-5, 40)
    assert (spec.optim.betas, spec.optim.weight_decay, spec.optim.clip_grad) == ((0.9, 0.95), 0.05, None)
    assert (spec.mask.kind, spec.mask.ratio) == ("tube", 0.9)
    assert (spec.augment.crop, spec.augment.flip) == ("multiscale", flip)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("model.siz=1", "model.siz: no such key"),
        ("model.size=XL", "model.size"),
        ("mask.ratio=2.0", "mask"),
        ("train.batch=ten", "train.batch"),
        ("train.micro_batch=3", "micro_batch = 3 does not divide batch = 8"),
        ("optim.betas=[0.9]", "optim.betas"),
        ("clip.stride=0", "stride = 0"),
        ("checkpoint.keep=0", "keep = 0"),
        ("model.num_heads=5", "num_heads = 5"),
        ("optim.betas=[2.0, 3.0]", "betas = (2.0, 3.0)"),
        ("optim.weight_decay=-1.0", "weight_decay = -1.0"),
        ("optim.warmup_steps=-5", "warm-up of -5"),
        ("seed=-1", "seed = -1"),
        ("augment.size=64", "augment.size = 64"),
        ("mask.ratio=0.05", "masks 0 of 16 patches"),
    ],
)
def test_a_wrong_value_is_refused_by_the_path_of_its_key(setting: str, error: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [setting])
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_recipes_are_listed_and_shown_with_every_value() -> None:
    assert "pretrain/k400" in call_command("vmae_train", "recipes").stdout
    text = call_command("vmae_train", "recipes", "finetune/demo", "--set", "train.steps=7").stdout
    assert "steps = 7" in text
    assert "[optim]" in text
    assert load_recipe("vmae_train", "finetune/demo", FinetuneSpec).evaluate.views == "2x3"


def test_the_command_of_a_recipe_file_follows_from_its_tables_not_from_its_path(tmp_path: Path) -> None:
    for name, spec in (("finetune/demo", FinetuneSpec), ("pretrain/demo", PretrainSpec)):
        path = tmp_path / "about-finetune.toml"
        path.write_text(read_recipe("vmae_train", name))
        assert spec_of(str(path)) is spec


def test_a_recipe_of_the_other_command_is_refused(tmp_path: Path) -> None:
    for name, other, command in (
        ("finetune/demo", PretrainSpec, r"finetune \(evaluate\)"),
        ("pretrain/demo", FinetuneSpec, r"pretrain \(mask\)"),
    ):
        with pytest.raises(RecipeError, match=f"recipe {name}: is for vmae-train {command}"):
            check_recipe(name, other)
        check_recipe(name, spec_of(name))
    (tmp_path / "bare.toml").write_text("seed = 1\n")
    check_recipe(str(tmp_path / "bare.toml"), PretrainSpec)
    check_recipe(str(tmp_path / "bare.toml"), FinetuneSpec)
    data, out = [str(tmp_path)], str(tmp_path / "run")
    with pytest.raises(RecipeError, match="is for vmae-train finetune"):
        pretrain("finetune/demo", data, out, quiet=True, device="cpu")
    with pytest.raises(RecipeError, match="is for vmae-train pretrain"):
        finetune("pretrain/demo", data, data[0], out, quiet=True, device="cpu")


def test_a_setting_of_a_text_key_stays_text_even_if_toml_reads_a_number() -> None:
    with pytest.raises(RecipeError, match="0x3"):
        load_recipe("vmae_train", "finetune/demo", FinetuneSpec, ["evaluate.views=0x3"])
    names = (("log.wandb_name=2026-01-01", "2026-01-01"), ("log.wandb_name=7", "7"), ('log.wandb_name="a"', "a"))
    for setting, name in names:
        assert load_recipe("vmae_train", "finetune/demo", FinetuneSpec, [setting]).log.wandb_name == name


def test_a_setting_of_epochs_drops_the_recipes_steps_but_both_settings_contradict_each_other() -> None:
    spec = load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.epochs=1"])
    assert (spec.train.epochs, spec.train.steps) == (1, None)
    with pytest.raises(RecipeError, match=r"train\.epochs = 1, train\.steps = 5: set exactly one"):
        load_recipe("vmae_train", "pretrain/demo", PretrainSpec, ["train.epochs=1", "train.steps=5"])
