"""The documentation is right: its commands parse, its keys and paths exist, its prose is wrapped."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import typer
from PIL import Image
from typer.core import TyperGroup

from tools.docs import shown
from vmae_data.audit.audit import AuditSpec
from vmae_data.commands.app import app as shard_app
from vmae_data.encode.build_spec import BuildSpec
from vmae_data.errors import MisuseError, RecipeError
from vmae_data.recipes import list_recipes, load_recipe
from vmae_train.checkpoints.convert import ConvertSpec, Layout, convert
from vmae_train.checkpoints.native import save_model
from vmae_train.clips.frame_sampling import ClipSpec
from vmae_train.commands.app import app as train_app
from vmae_train.console import spec_of
from vmae_train.finetune import FinetuneSpec
from vmae_train.inference.read_video import read_clip
from vmae_train.models.geometry import Geometry, ModelSpec
from vmae_train.models.heads import Classifier
from vmae_train.models.videomae import PretrainModel
from vmae_train.pretrain import PretrainSpec
from vmae_train.runs.metadata import RunFacts, run_clip

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = ("bucket-training.md", "moving.md", "recipes.md")  # whose keys, options and recipes in running text are checked
PRINTING = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
APPS = {"vmae-shard": shard_app, "vmae-train": train_app}
MODULES = {"vmae_data.cli": "vmae-shard", "vmae_train.cli": "vmae-train"}
TRAINING = {"pretrain/k400": PretrainSpec, "finetune/k400": FinetuneSpec}
TABLES = set(PretrainSpec.__struct_fields__) | set(FinetuneSpec.__struct_fields__)
NO_KEYS = {"log.jsonl", "model.classes"}  # a file, and an attribute in Python
# click's, of which typer carries its own: wrong options, missing ones, unknown commands.
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
INLINE = re.compile(r"`([^`\n]+)`")


def _page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def _prose(text: str) -> str:
    """Without blocks of code; of a table of another program's words, our column only."""
    lines: list[str] = []
    theirs = False
    for line in re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE).splitlines():
        if not line.startswith("|"):
            theirs = False
        elif line.startswith(("| there |", "| flag |")):
            theirs = True
        lines.append(line.partition("|")[2].partition("|")[2] if theirs else line)
    return "\n".join(lines)


COMMANDS = sorted(
    {(path.name, command) for path in PRINTING for command in shown.page_commands(path.read_text("utf-8"))}
)
COMMANDS = [(page, command) for page, command in COMMANDS if not command.startswith("python -m tools.")]


def _check(command: str) -> None:
    """Parse a command, which is not run, and its recipe and keys. Raises UsageError or RecipeError.

    A form, or a command's name alone, may omit required arguments. Each alternative of `A|B` is parsed.
    """
    words = shlex.split(command)
    abbreviated = shown.is_form(command) or len(words) == 2
    if abbreviated:
        choices = [word.strip("[]").split("|") for word in words if word != "…"]
        for one in itertools.product(*choices):
            _check_words(list(one), abbreviated=True)
    else:
        _check_words(words, abbreviated=False)


def _check_words(words: list[str], *, abbreviated: bool) -> None:
    if "-m" in words:
        module = words.index("-m") + 1
        words = [MODULES[words[module]], *words[module + 1 :]]
    program, name, *arguments = words
    if name == "--help":
        return
    command = _subcommands(program, abbreviated=abbreviated).get(name)
    if command is None:
        raise UsageError(f"no such command: {name}")
    _check_settings(program, command.make_context(name, arguments))


@functools.cache
def _subcommands(program: str, *, abbreviated: bool = False) -> dict[str, Any]:
    """The commands of a program. Abbreviated, they require nothing."""
    app = typer.main.get_command(APPS[program])
    assert isinstance(app, TyperGroup)
    for parameter in (one for command in app.commands.values() for one in command.params if abbreviated):
        parameter.required = False
    return dict(app.commands)


def _check_settings(program: str, context: typer.Context) -> None:
    """The recipe and the keys that a command names. Raises RecipeError."""
    given, name = context.params, context.info_name or ""
    settings = [setting for setting in given.get("settings") or () if "…" not in setting]
    recipe = given.get("recipe") or (given.get("name") if name == "recipes" else None)
    if recipe is not None and recipe.endswith(".toml"):
        recipe = None
    if name == "convert":
        spec = load_recipe("vmae_train", None, ConvertSpec, settings)
        assert set(spec.model) <= {*Geometry.__struct_fields__, "position_resize"}
    elif program == "vmae-shard":
        load_recipe("vmae_data", recipe, AuditSpec if name == "audit" else BuildSpec, settings)
    elif recipe is not None or settings:
        recipe = recipe or ("pretrain/k400" if name == "pretrain" else "finetune/k400")
        kind = {"pretrain": PretrainSpec, "finetune": FinetuneSpec}.get(name) or spec_of(recipe)
        load_recipe("vmae_train", recipe, kind, settings)


@pytest.mark.parametrize("path", PRINTING, ids=lambda path: path.name)
def test_every_command_in_a_block_is_found(path: Path) -> None:
    text = path.read_text("utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    shell = "".join(re.sub(r"#.*", "", block) for language, block in blocks if language in ("", "bash"))
    started = re.findall(r"(?<![\w/])vmae-(?:shard|train) [a-z-]|-m vmae_(?:data|train)\.cli", shell)
    assert len(started) == sum("vmae" in one for _, block in blocks for one in shown.block_commands(block))


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_in_the_docs_is_understood(page: str, command: str) -> None:
    _check(command)


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("vmae-train foretell runs/k400 video.mp4", UsageError),
        ("vmae-train report runs/k400 --out a.html --format png", UsageError),
        ("vmae-train pretrain --recipe pretrain/k400 --data shards/k400", UsageError),
        ("vmae-train convert a b --to onnx", UsageError),
        ("vmae-train pretrain --recipe pretrain/k401 --data a --out b", RecipeError),
        ("vmae-train finetune --recipe finetune/k400 --data a --val b --out c --set mask.ratio=0.9", RecipeError),
        ("vmae-shard build videos --set shortside=256", RecipeError),
        ("vmae-shard audit shards --set short_side=256", RecipeError),
        ("vmae-train predict runs/k400 video.mp4 --set clip.strid=2", RecipeError),
        ("vmae-train plan --recipe mine.toml --set train.step=2 …", RecipeError),
        ("vmae-train pretrain … --data-set shards/k400", UsageError),
        ("vmae-train convert SRC DST --to native|onnx [--classes FILE]", UsageError),
        ("vmae-train foretell", UsageError),
    ],
)
def test_a_command_that_would_be_refused_is_found(command: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        _check(command)


def _keys(page: str) -> set[str]:
    """`table.key` and `table.key=value` in running text."""
    named = {code for code in INLINE.findall(_prose(_page(page))) if re.match(r"[a-z]+\.[a-z_.]+(=\S+)?$", code)}
    return {code for code in named - NO_KEYS if code.partition(".")[0] in TABLES}


def _has(spec: type[msgspec.Struct], key: str) -> bool:
    place: Any = msgspec.inspect.type_info(spec)
    for part in key.split("."):
        kinds = place.types if isinstance(place, msgspec.inspect.UnionType) else (place,)
        fields = [field for kind in kinds if isinstance(kind, msgspec.inspect.StructType) for field in kind.fields]
        place = next((field.type for field in fields if field.encode_name == part), None)
        if place is None:
            return False
    return True


def _is_taken(setting: str) -> bool:
    for recipe, spec in TRAINING.items():
        try:
            load_recipe("vmae_train", recipe, spec, [setting])
        except RecipeError:
            continue
        return True
    return False


@pytest.mark.parametrize("page", PAGES)
def test_keys_in_running_text_are_a_recipes(page: str) -> None:
    keys = _keys(page)
    assert keys
    unknown = {key for key in keys if not any(_has(spec, key.partition("=")[0]) for spec in TRAINING.values())}
    assert not unknown
    assert not {key for key in keys if "=" in key and not _is_taken(key)}


def test_settings_and_options_in_running_text_exist() -> None:
    options = {
        name for app in APPS for one in _subcommands(app).values() for option in one.params for name in option.opts
    }
    for page in PAGES:
        for code in INLINE.findall(_prose(_page(page))):
            words = code.split()
            if words and words[0].startswith("--"):
                assert {word for word in words if word.startswith("--")} <= options, f"{page}: {code}"
            if words[:1] == ["--set"] and words[1:] not in ([], ["key=value"]):
                assert _is_taken(words[1]) or load_recipe("vmae_data", None, BuildSpec, [words[1]]), f"{page}: {code}"
            if words[:1] == ["--recipe"]:
                assert words[1] in (*list_recipes("vmae_data"), *list_recipes("vmae_train")), f"{page}: {code}"


def test_recipes_that_are_named_are_there() -> None:
    known = list_recipes("vmae_train")
    for page in PAGES:
        for name in re.findall(r"(?<![\w/])(?:pretrain|finetune)/[a-z0-9][a-z0-9-]*(?![\w/.])", _page(page)):
            assert name in known, f"{page}: {name}"


def test_every_key_of_a_training_recipe_is_told_in_its_table() -> None:
    rows = dict(re.findall(r"^\| `\[([a-z.]+)\]` \| (.*) \|$", _page("recipes.md"), flags=re.MULTILINE))
    for spec in TRAINING.values():
        for table, fields in _tables(msgspec.inspect.type_info(spec), ""):
            told = set(INLINE.findall(rows.get(table, "")))
            # Where a table is, its own tables stand in rows of their own; `size` of a crop is the model's.
            assert fields - {"size"} <= told or (table == "model" and fields <= told), f"{table}: {fields - told}"


def _tables(kind: Any, path: str) -> Iterator[tuple[str, set[str]]]:
    if isinstance(kind, msgspec.inspect.UnionType):
        for one in kind.types:
            yield from _tables(one, path)
    if not isinstance(kind, msgspec.inspect.StructType):
        return
    inner = [(field, list(_tables(field.type, f"{path}.{field.encode_name}".strip(".")))) for field in kind.fields]
    if path:
        yield path, {field.encode_name for field, tables in inner if not tables}
    for _, tables in inner:
        yield from tables


def _python(page: str) -> str:
    """The only Python of a page."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", _page(page), flags=re.DOTALL | re.MULTILINE)
    return block


def _save_classifier(*folders: str) -> Geometry:
    """A model of two classes in each of the folders. Returns its geometry."""
    geometry = ModelSpec(size="tiny").geometry()
    for folder in map(Path, folders):
        folder.mkdir(parents=True, exist_ok=True)
        save_model(folder, Classifier(geometry, ("a", "b"), seed=0))
    return geometry


def test_the_python_that_is_shown_runs(
    tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    geometry = _save_classifier("runs/k400-finetune")
    shutil.copy(next(demo_videos.rglob("*.mp4")), "video.mp4")
    exec(compile(_python("moving.md"), "moving.md", "exec"), {})
    answer = capsys.readouterr().out
    assert answer[0] in "ab"
    assert str(geometry.embed_dim) in answer


def test_the_python_of_predictions_runs(
    tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_classifier("runs/k400-finetune")
    shutil.copy(next(demo_videos.rglob("scene*.mp4")), "video.mp4")
    block = _python("predicting.md")
    assert len([line for line in block.splitlines() if line]) <= 10
    exec(compile(block, "predicting.md", "exec"), {})
    first, *windows, best = capsys.readouterr().out.splitlines()
    assert first.startswith("Predictor(runs/k400-finetune: 2 class outputs")
    assert windows and all(line.startswith("0.0 ") for line in windows)
    assert best in ("a", "b")


def _save_pretraining_and_video(demo_videos: Path) -> None:
    """runs/k400 and video.mp4 in the current directory, which the examples name."""
    Path("runs/k400").mkdir(parents=True)
    save_model(Path("runs/k400"), PretrainModel(ModelSpec(size="tiny").geometry(), seed=0))
    shutil.copy(next(demo_videos.rglob("scene*.mp4")), "video.mp4")


def test_the_python_of_features_runs(
    tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_pretraining_and_video(demo_videos)
    (block,) = re.findall(r"^```python\n(.*?)^```$", _page("embedding.md"), flags=re.DOTALL | re.MULTILINE)
    assert len([line for line in block.splitlines() if line]) <= 10
    exec(compile(block, "embedding.md", "exec"), {})
    first, *windows, last = capsys.readouterr().out.splitlines()
    assert first.startswith("Embedder(runs/k400: 192 of block 4 of 4, 16 frames of 32 px")
    assert windows and all(re.fullmatch(r"0\.0 \S+ \(192,\)", line) for line in windows)
    assert last == "torch.Size([5, 192])"


def test_the_python_of_reconstructions_runs(
    tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_pretraining_and_video(demo_videos)
    blocks = re.findall(r"^```python\n(.*?)^```$", _page("training.md"), flags=re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "reconstruct(" in block)
    assert len([line for line in block.splitlines() if line]) <= 10
    exec(compile(block, "training.md", "exec"), {})
    loss, shapes = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"tube mask, 88 % \d\.\d+", loss)
    assert shapes == "(16, 32, 32, 3) (16, 32, 32, 3)"
    with Image.open("reconstruction.png") as image:
        assert image.width > 8 * 128 and image.height > 4 * 128  # four rows of eight enlarged frames


@pytest.mark.parametrize("clip", [ClipSpec(stride=2), ClipSpec(rate=6.25), None])
def test_the_python_that_is_shown_takes_the_clips_of_the_checkpoints_run(
    tmp_path: Path, demo_videos: Path, monkeypatch: pytest.MonkeyPatch, clip: ClipSpec | None
) -> None:
    """A path of a run and one of a checkpoint in it. A published file has no run: then it takes 4 frames' spacing."""
    monkeypatch.chdir(tmp_path)
    paths = ("runs/k400-finetune", "runs/k400-finetune/checkpoints/step-8")
    geometry, video = _save_classifier(*paths), next(demo_videos.rglob("*.mp4"))
    if clip is not None:
        recipe = msgspec.to_builtins(load_recipe("vmae_train", "finetune/k400", FinetuneSpec))
        recipe["clip"] = msgspec.to_builtins(clip)
        facts = RunFacts(kind="finetune", recipe=recipe, data=("shards",), data_digest=("0",))
        Path("runs/k400-finetune/run.json").write_bytes(msgspec.json.encode(facts))
    shutil.copy(video, "video.mp4")
    block = _python("moving.md")
    expected = read_clip(video, geometry.num_frames, clip or ClipSpec(stride=4))
    for path in paths:
        variables: dict[str, Any] = {}
        exec(compile(block.replace('"runs/k400-finetune"', repr(path)), "moving.md", "exec"), variables)
        assert run_clip(path) == clip
        assert variables["clip"] == (clip or ClipSpec(stride=4))
        assert (variables["frames"] == expected).all()


def test_all_questions_are_answered_with_a_command() -> None:
    answers = re.split(r"^### (\d+)\. .*$", _page("moving.md"), flags=re.MULTILINE)[1:]
    numbers, texts = answers[::2], answers[1::2]
    assert [int(number) for number in numbers] == list(range(1, 20))
    assert all(re.search(r"^vmae-|`vmae-", text, flags=re.MULTILINE) for text in texts)


def test_the_readme_says_which_formats_the_model_of_make_demo_has(tmp_path: Path) -> None:
    """The formats that `convert` writes are tried with the geometry of the demo's recipe."""
    spec = load_recipe("vmae_train", "finetune/demo", FinetuneSpec)
    (tmp_path / "demo").mkdir()
    save_model(tmp_path / "demo", Classifier(spec.model.geometry(), ("a", "b"), seed=0))
    written = []
    for to in get_args(Layout):
        with contextlib.suppress(MisuseError):
            convert(str(tmp_path / "demo"), tmp_path / to, to=to)
            written.append(to)
    assert written == ["native"]
    readme = " ".join((ROOT / "README.md").read_text("utf-8").split())
    assert "`vmae-train convert` writes it `--to native` only: its positions (`sinusoid-3d`)" in readme


def _rooms() -> set[str]:
    packages = (ROOT / "vmae_data", ROOT / "vmae_train")
    folders = (path for package in packages for path in package.iterdir() if path.is_dir() and any(path.glob("*.*")))
    return {f"{path.relative_to(ROOT)}/" for path in folders if path.name != "__pycache__"}


def _tree() -> set[str]:
    """The paths of README's file tree."""
    (block,) = re.findall(r"^```\n(vmae_data/ .*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    paths, package = set(), ""
    for line in block.splitlines():
        name = line.split()[0]
        package = package if line.startswith("  ") else name
        paths.add(package + name if line.startswith("  ") else name)
    return paths


def test_every_path_in_the_architecture_and_in_the_readme_exists() -> None:
    named = {code for code in INLINE.findall(_page("architecture.md")) if re.match(r"(vmae_\w+|tools|tests)/", code)}
    drawn = set(re.findall(r"<br/>([\w/]+\.py)", _page("architecture.md")))
    assert len(named) > 50 and len(drawn) > 10
    assert not {path for path in named | _tree() if not (ROOT / path).exists()}
    assert not {path for path in drawn if not any((ROOT / top / path).exists() for top in ("vmae_data", "vmae_train"))}


def test_every_path_and_test_that_a_contributor_is_told_of_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = {code for code in INLINE.findall(text) if re.match(r"(vmae_\w+|tools|tests|docs)/[\w/.]+$", code)}
    assert len(paths) > 30
    assert not {path for path in paths if not (ROOT / path).exists()}
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not {name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests}


def test_every_room_is_in_the_architecture_and_in_the_readme() -> None:
    assert not _rooms() - set(INLINE.findall(_page("architecture.md")))
    assert not _rooms() - _tree()


PROSE = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_links_between_pages_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text())
    assert not {target for target in targets if not (path.parent / target).exists()}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_prose_is_wrapped_and_paragraphs_are_short(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    assert not [line for line in lines if len(line) > 100]
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:\*|\d+\.) )", "\n".join(lines))
    assert not [paragraph for paragraph in paragraphs if len(paragraph.strip().splitlines()) > 6]
