from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.command import run_command
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import RecipeError
from vmae_data.recipes import difference, find_recipe, list_recipes, load_recipe, read_recipe, recipe_head


@pytest.mark.parametrize("name", list_recipes("vmae_data"))
def test_every_build_recipe_loads_and_its_head_names_its_command(name: str) -> None:
    spec = load_recipe("vmae_data", name, BuildSpec)
    assert spec.stride or spec.rate
    assert "vmae-shard build" in recipe_head(read_recipe("vmae_data", name))


def test_the_published_build_recipes_exist_with_their_stride_and_size() -> None:
    names = {"demo", "k400", "k400-parity", "ssv2-pretrain", "ssv2-finetune", "ucf101", "hmdb51"}
    assert names <= set(list_recipes("vmae_data"))
    parity = load_recipe("vmae_data", "k400-parity", BuildSpec)
    assert (parity.stride, parity.short_side) == (1, 320)
    finetune = load_recipe("vmae_data", "ssv2-finetune", BuildSpec)
    assert (finetune.stride, finetune.may_flip) == (1, False)
    assert load_recipe("vmae_data", "k400", BuildSpec).stride == 4
    ssv2 = load_recipe("vmae_data", "ssv2-pretrain", BuildSpec)
    assert (ssv2.stride, ssv2.may_flip) == (2, False)


def test_without_a_recipe_a_build_keeps_every_4th_frame_at_256_pixels_in_h264() -> None:
    spec = load_recipe("vmae_data", None, BuildSpec)
    assert (spec.stride, spec.short_side, spec.profile, spec.crf, spec.gop) == (4, 256, "h264", 23, 16)


@pytest.mark.parametrize(
    ("setting", "error"),
    [
        ("strid=2", "strid: no such key"),
        ("stride=two", "stride"),
        ("stride=0", "stride = 0"),
        ("short_side=255", "short_side = 255"),
        ("crf=99", "crf = 99"),
        ("keep_truncated=1", "keep_truncated"),
        ("profile=vp9", "profile"),
        ("stride", "expected key=value"),
        ("a.b=1", "a: no such key"),
        ("columns.paths=x", "columns.paths: no such key"),
        ("columns=x", "columns"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_key(setting: str, error: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("vmae_data", "demo", BuildSpec, [setting])
    assert error in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_may_be_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("stride = 3\n")
    assert load_recipe("vmae_data", str(path), BuildSpec).stride == 3
    path.write_text("stride = = 3\n")
    with pytest.raises(RecipeError, match="not TOML"):
        load_recipe("vmae_data", str(path), BuildSpec)


def test_a_difference_names_its_key_and_both_values() -> None:
    assert difference({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b: 1 → 3"]


def test_a_setting_of_stride_drops_the_recipes_rate_and_the_other_way_round() -> None:
    own = load_recipe("vmae_data", "own", BuildSpec, ["stride=2"])
    assert (own.stride, own.rate) == (2, None)
    k400 = load_recipe("vmae_data", "k400", BuildSpec, ["rate=12.5"])
    assert (k400.stride, k400.rate) == (None, 12.5)


@pytest.mark.parametrize(("text", "rate"), [(".5", 0.5), ("12.", 12.0), ("+.5e1", 5.0), (" .25 ", 0.25)])
def test_a_setting_may_omit_the_zero_before_or_after_the_point(text: str, rate: float) -> None:
    assert load_recipe("vmae_data", "own", BuildSpec, [f"rate={text}"]).rate == rate


@pytest.mark.parametrize("text", [".", "-", "1.2.3", ".5x", '".5"', "nan."])
def test_text_that_is_no_number_is_refused_where_a_number_is_expected(text: str) -> None:
    with pytest.raises(RecipeError, match="rate: expected float"):
        load_recipe("vmae_data", "own", BuildSpec, [f"rate={text}"])


def test_a_recipe_overrides_its_base_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("short_side = 288\nrate = 12.5\ncolumns = { path = 'file', label = 'class' }\n")
    own = tmp_path / "own.toml"
    own.write_text('base = "base.toml"\nstride = 2\ncolumns = { label = "verb" }\n')
    spec = load_recipe("vmae_data", str(own), BuildSpec)
    assert (spec.short_side, spec.stride, spec.rate) == (288, 2, None)
    assert (spec.columns.path, spec.columns.label) == ("file", "verb")
    assert load_recipe("vmae_data", str(own), BuildSpec, ["short_side=256"]).short_side == 256


def test_a_base_may_be_a_recipe_of_the_package(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('base = "k400-parity"\ncrf = 18\n')
    spec = load_recipe("vmae_data", str(own), BuildSpec)
    assert spec == load_recipe("vmae_data", "k400-parity", BuildSpec, ["crf=18"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('base = "k401"', "recipe 'k401' is unknown"),
        ("base = 4", "base = 4: expected a recipe's name"),
        ('base = "own.toml"', "its base own.toml has a base too ('own.toml'). Name that one, or none"),
        ('base = "none.toml"', "none.toml: can't be read"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused(tmp_path: Path, text: str, error: str) -> None:
    own = tmp_path / "own.toml"
    own.write_text(text)
    with pytest.raises(RecipeError) as caught:
        load_recipe("vmae_data", str(own), BuildSpec)
    assert error in str(caught.value)


@pytest.mark.parametrize(
    ("package", "folder", "name", "full"),
    [
        ("vmae_data", "", "demo", "demo"),
        ("vmae_data", "", "my/own.toml", "my/own.toml"),
        ("vmae_train", "pretrain", "demo", "pretrain/demo"),
        ("vmae_train", "finetune", "demo", "finetune/demo"),
        ("vmae_train", "pretrain", "finetune/demo", "finetune/demo"),  # the command says what it is for
        ("vmae_train", "", "pretrain/demo", "pretrain/demo"),
    ],
)
def test_a_command_finds_its_recipe_without_the_folder(package: str, folder: str, name: str, full: str) -> None:
    assert find_recipe(package, name, folder) == full


@pytest.mark.parametrize(
    ("package", "folder", "name", "question"),
    [
        ("vmae_data", "", "dmeo", " Did you mean demo?"),
        ("vmae_data", "", "DEMO", " Did you mean demo?"),
        ("vmae_data", "", "qqqq", ""),
        ("vmae_train", "pretrain", "dmeo", " Did you mean pretrain/demo?"),
        ("vmae_train", "finetune", "k40", " Did you mean finetune/k400?"),
        ("vmae_train", "", "ssv", " Did you mean finetune/ssv2 or pretrain/ssv2?"),
    ],
)
def test_an_unknown_recipe_is_answered_with_similar_ones(package: str, folder: str, name: str, question: str) -> None:
    command = "vmae-shard" if package == "vmae_data" else "vmae-train"
    expected = f"recipe '{name}' is unknown.{question} `{command} recipes` lists all; a file's name ends in .toml"
    with pytest.raises(RecipeError, match=re.escape(expected)):
        find_recipe(package, name, folder)


def test_an_unknown_key_is_answered_with_a_similar_one() -> None:
    with pytest.raises(RecipeError, match=r"settings: strid: no such key\. Did you mean stride\? Known keys: "):
        load_recipe("vmae_data", None, BuildSpec, ["strid=2"])


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("vmae-shard build x --recipe de", ["demo"]),
        ("vmae-shard recipes de", ["demo"]),
        ("vmae-train recipes pretrain/de", ["pretrain/demo", "pretrain/demo-long"]),
        ("vmae-train pretrain --recipe de", ["demo", "demo-long"]),
        ("vmae-train pretrain --recipe pretrain/de", ["pretrain/demo", "pretrain/demo-long"]),
        ("vmae-train pretrain --recipe finetune/", []),
        ("vmae-shard build x --set short", ["short_side="]),
        ("vmae-train pretrain --recipe demo --set mask.ra", ["mask.ratio="]),
        ("vmae-train pretrain --set mask.ra", ["mask.ratio="]),
        ("vmae-train plan --recipe pretrain/demo --set mask.ra", ["mask.ratio="]),
        ("vmae-train finetune --recipe demo --set aux.mask.ra", ["aux.mask.ratio="]),
        ("vmae-train predict run --set evaluate.v", ["evaluate.views="]),
    ],
)
def test_the_shell_completes_recipes_and_keys_that_a_command_can_use(words: str, completed: list[str]) -> None:
    program = words.split()[0].replace("-", "_")
    environment = {
        f"_{program.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    module = {"vmae_shard": "vmae_data", "vmae_train": "vmae_train"}[program]
    done = run_command(module, env=os.environ | environment, status=0)
    assert done.stdout.split() == completed
