from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.command import call_command
from vmae_data.audit.flags import AuditSpec
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import RecipeError
from vmae_data.recipes import list_recipes, load_recipe, read_recipe, recipe_head
from vmae_train.commands.finetune import finetune
from vmae_train.commands.pretrain import pretrain
from vmae_train.console import check_recipe, spec_of
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
        ("model.siz=1", "model.siz: no such key. Did you mean model.size?"),
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
        ("optim.warmup_steps=-5", "warmup_steps = -5: expected 0 to 999999999"),
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


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("optim.base_lr=inf", "optim.base_lr = inf: expected a finite number"),
        ("optim.clip_grad=nan", "optim.clip_grad = nan: expected a finite number"),
        ("train.threads=100000", "threads = 100000: expected 1 to 1024"),
        (f"seed={'9' * 5000}", "--set seed: has a number with too many digits"),
        (f"seed={'9' * 4000}", "seed = a number of 13288 bits"),
        (f"augment.ratio={'[' * 20_000}", "nested too deep"),
        (f"{'a.' * 20_000}a=1", "nested too deep"),
        ("loader.read_ahead=1e999", "expected a finite number"),
        ('cache={dir="x",bytes="1e999"}', "cache.bytes = 1e999: expected at most 2^63 bytes"),
        ("train.epochs=0", "epochs = 0: expected 1 to 1000000"),
    ],
)
def test_a_number_without_bounds_is_refused_in_one_short_line(setting: str, error: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("vmae_train", "pretrain/demo", PretrainSpec, [setting])
    assert error in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def _numbers(kind: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Every key of a recipe that holds numbers, and how many."""
    inspect = msgspec.inspect
    if isinstance(kind, inspect.UnionType):
        for one in kind.types:
            yield from _numbers(one, key)
    elif isinstance(kind, inspect.StructType):
        for field in kind.fields:
            yield from _numbers(field.type, f"{key}.{field.name}" if key else field.name)
    elif isinstance(kind, inspect.TupleType) and any(_numbers(kind.item_types[0], key)):
        yield key, len(kind.item_types)
    elif isinstance(kind, inspect.IntType | inspect.FloatType):
        yield key, 1


# 10^18 is a seed, and a limit in bytes that no file reaches.
LARGE = {"seed": 10**19, "cache.bytes": 10**19, "loader.read_ahead": 10**19}
RECIPES = (
    ("vmae_data", None, BuildSpec),
    ("vmae_data", None, AuditSpec),
    ("vmae_train", "pretrain/demo", PretrainSpec),
    ("vmae_train", "finetune/demo", FinetuneSpec),
)


@pytest.mark.parametrize(("package", "name", "spec"), RECIPES)
def test_every_number_of_a_recipe_has_bounds(package: str, name: str | None, spec: Any) -> None:
    keys = dict(_numbers(msgspec.inspect.type_info(spec)))
    assert len(keys) >= 10
    for key, count in keys.items():
        large = LARGE.get(key, 10**18)
        for value in (large, -large, float(large), float("inf"), float("nan")):
            text = str(value) if count == 1 else str([value] * count)
            extra = ["cache.dir=x"] if key == "cache.bytes" else []
            with pytest.raises(RecipeError):
                load_recipe(package, name, spec, [f"{key}={text}", *extra])
                pytest.fail(f"{spec.__name__}: {key} = {text} is accepted")


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
