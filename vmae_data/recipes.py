"""Recipes: TOML → the spec class it is given. Data, not code; unknown keys are refused by their path."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from vmae_data.errors import RecipeError

__all__ = [
    "build_spec",
    "byte_count",
    "difference",
    "list_recipes",
    "load_recipe",
    "read_recipe",
    "recipe_head",
    "recipe_values",
    "shortened",
    "with_defaults",
    "with_settings",
]

T = TypeVar("T")

_ALTERNATIVES = {
    "stride": "rate",
    "rate": "stride",
    "epochs": "steps",
    "steps": "epochs",
    "warmup_epochs": "warmup_steps",
    "warmup_steps": "warmup_epochs",
}

_BASE = "base"  # the key that names the recipe below
_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_BARE = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # .75 and 1., which are no numbers in TOML
_BYTES = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d+)?) ?([a-z]*)")


def byte_count(value: float | str, knob: str) -> int:
    """Bytes as a recipe may say them: 200e9, "200GB", "64 MiB". Raises ValueError naming the knob."""
    found = _BYTES.fullmatch(str(value).strip().lower())
    if found is None or (found[2] or "b") not in _UNITS:
        raise ValueError(f'{knob} = {value!r}: expected bytes, such as 200e9, "200GB" or "64MiB"')
    return int(float(found[1]) * _UNITS[found[2] or "b"])


def list_recipes(package: str) -> tuple[str, ...]:
    """Names of the recipes that a package brings, folders included: `demo`, `pretrain/k400`."""
    return tuple(sorted(_walk(files(package) / "recipes", "")))


def _walk(folder: Traversable, prefix: str) -> list[str]:
    names: list[str] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            names += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            names.append(prefix + entry.name.removesuffix(".toml"))
    return names


def read_recipe(package: str, name: str) -> str:
    """The text of a recipe: a file where `name` ends in .toml, else one that the package brings.

    Raises RecipeError listing the known names.
    """
    if name.endswith(".toml"):
        try:
            return Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {name}: can't be read ({error}); name a TOML file or a recipe") from error
    known = list_recipes(package)
    if name not in known:
        raise RecipeError(f"recipe {name!r} is unknown; known: {', '.join(known)}; or name a file ending in .toml")
    return files(package).joinpath("recipes", f"{name}.toml").read_text("utf-8")


def recipe_head(text: str) -> str:
    """The comment at a recipe's top, without its marks."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def load_recipe(package: str, name: str | None, spec: type[T], overrides: Sequence[str] = ()) -> T:
    """A recipe (or the spec's defaults where `name` is None) with `key=value` overrides, checked.

    Raises RecipeError with the path of the key.
    """
    values = recipe_values(package, name) if name is not None else {}
    return with_settings(values, spec, overrides, f"recipe {name}" if name else "settings")


def with_settings(values: dict[str, Any], spec: type[T], overrides: Sequence[str], where: str) -> T:
    """Values that came from `where`, changed by `key=value` overrides, checked. Raises RecipeError with the path of the key."""
    given = {override.partition("=")[0].strip() for override in overrides}
    for override in overrides:
        _set(values, override, given, spec)
    return build_spec(values, spec, where)


def recipe_values(package: str, name: str) -> dict[str, Any]:
    """What a recipe says: its own values, over those of the recipe that its `base` names.

    A base is a recipe that the package brings, or a TOML file beside the recipe's own. It has no base itself, so that
    two texts are all that has to be read. Raises RecipeError.
    """
    values = _parsed(package, name)
    if _BASE not in values:
        return values
    base = values.pop(_BASE)
    if not isinstance(base, str):
        raise RecipeError(f"recipe {name}: base = {base!r}: expected a recipe's name or a file ending in .toml")
    beside = str(Path(name).parent / base) if base.endswith(".toml") else base
    below = _parsed(package, beside)
    if _BASE in below:
        raise RecipeError(
            f"recipe {name}: its base {base} has a base itself ({below[_BASE]!r}); name that one, or none"
        )
    return _over(below, values)


def _parsed(package: str, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read_recipe(package, name))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name}: not TOML ({error})") from error


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Tables are laid over each other key by key; a key takes the place of the other way to say the same, too."""
    laid = {key: value for key, value in below.items() if _ALTERNATIVES.get(key) not in above}
    for key, value in above.items():
        inner = laid.get(key)
        laid[key] = _over(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return laid


def build_spec(values: dict[str, Any], spec: type[T], where: str) -> T:
    """Check plain values against a spec. Raises RecipeError with the path of the key."""
    try:
        return msgspec.convert(values, type=spec)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: {_explain(str(error), spec)}") from error


def _explain(message: str, spec: type[Any]) -> str:
    """msgspec says `… - at `$.model.depth``: put the key first, as people wrote it, and say what it may be."""
    placed = re.fullmatch(r"(.*?) - at `\$\.?(.*)`", message, re.DOTALL)
    words, path = (placed[1], placed[2]) if placed else (message, "")
    place = _type_at(msgspec.inspect.type_info(spec), path)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*?)`", words):
        key = ".".join(part for part in (path, unknown[1]) if part)
        known = [field.name for field in place.fields] if isinstance(place, msgspec.inspect.StructType) else []
        return f"{key}: no such key; the keys there: {', '.join(known)}"
    if words.startswith("Invalid enum value") and isinstance(place, msgspec.inspect.LiteralType):
        words = f"{words}, expected one of: {', '.join(map(str, place.values))}"
    return f"{path}: {words}" if path else words


def _type_at(kind: msgspec.inspect.Type, path: str) -> msgspec.inspect.Type | None:
    """What a spec has at a path such as `model.sizes[0]`; None where it can't be told."""
    for part in re.findall(r"\[[^]]*\]|[^.\[]+", path):
        if isinstance(kind, msgspec.inspect.StructType):
            kind = next((field.type for field in kind.fields if field.name == part), kind)
        elif isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
            kind = kind.item_type
        if isinstance(kind, msgspec.inspect.UnionType):
            inner = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
            if len(inner) != 1:
                return None
            kind = inner[0]
    return kind


def _set(values: dict[str, Any], override: str, given: Collection[str], spec: type[Any]) -> None:
    """Put `key=value` in its place. It takes the place of the recipe's other way to say the same, too."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: expected key=value, such as --set seed=1")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # an unquoted word, as shells make them
    wanted = _type_at(msgspec.inspect.type_info(spec), key.strip())
    if not isinstance(value, str) and isinstance(wanted, msgspec.inspect.StrType):
        value = text.strip()  # 0x3, 2026, true: TOML's numbers and words where text is wanted
    if value is text and isinstance(wanted, msgspec.inspect.FloatType) and _BARE.fullmatch(text.strip()):
        value = float(text)
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {override}: {part} is a value, not a table")
        values = inner
    values[parts[-1]] = value
    other = _ALTERNATIVES.get(parts[-1])
    if other and ".".join((*parts[:-1], other)) not in given:
        values.pop(other, None)


def with_defaults(values: dict[str, Any], spec: type[Any]) -> dict[str, Any]:
    """A stored recipe, completed by the defaults of the keys that `spec` has gained since.

    A recipe that does not fit `spec` is returned as it is: its difference from a new one then names the keys.
    """
    try:
        completed: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(msgspec.convert(values, type=spec)))
    except msgspec.ValidationError:
        return values
    return completed


def shortened(text: str) -> str:
    """Digests in a text cut to their beginnings."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", text)


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Where two plain values (records as dicts) differ: `key: old → new`, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += difference(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {old!r} → {new!r}"]
