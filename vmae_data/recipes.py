"""Recipes: TOML text and `key=value` settings → a checked spec. An error names the path of its key."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Collection, Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import msgspec.inspect

from vmae_data.errors import DataError, RecipeError
from vmae_data.storage import read_bytes

__all__ = [
    "build_spec",
    "byte_count",
    "check_bounds",
    "did_you_mean",
    "difference",
    "expected_one_of",
    "find_recipe",
    "keys_of",
    "list_recipes",
    "load_recipe",
    "read_recipe",
    "recipe_head",
    "recipe_text",
    "recipe_values",
    "shorten_digests",
    "with_defaults",
    "with_settings",
]

T = TypeVar("T")

# Two keys for one thing: whoever sets one of them drops the other.
_PAIRS = (("stride", "rate"), ("epochs", "steps"), ("warmup_epochs", "warmup_steps"))
_ALTERNATIVES = dict(_PAIRS) | {second: first for first, second in _PAIRS}
_BASE = "base"  # the key that names the base recipe
_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SHORT_FLOAT = re.compile(r"[+-]?(\d+\.|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)  # .75 and 1., which TOML refuses
MAX_INT = 2**63 - 1
_BYTES = re.compile(r"(\d+(?:\.\d+)?(?:e\+?\d+)?) ?([a-z]*)")


def byte_count(value: float | str, key: str) -> int:
    """Bytes as a recipe may write them: 200e9, "200GB", "64 MiB". Raises ValueError naming the key."""
    match = _BYTES.fullmatch(str(value).strip().lower())
    if match is None or (match[2] or "b") not in _UNITS:
        raise ValueError(f'{key} = {value!r}: expected bytes, such as 200e9, "200GB" or "64MiB"')
    count = float(match[1]) * _UNITS[match[2] or "b"]
    if not count <= MAX_INT:
        raise ValueError(f"{key} = {_short(value)}: expected at most 2^63 bytes")
    return int(count)


def check_bounds(spec: Any, **bounds: tuple[float, float]) -> None:
    """Raise ValueError for a field outside its bounds, both included. None is no number."""
    for name, (low, high) in bounds.items():
        value = getattr(spec, name)
        if value is not None and not low <= value <= high:
            raise ValueError(f"{name} = {value}: expected {low} to {high}")


def _short(value: Any) -> str:
    """A value in an error. A number may have thousands of digits, more than Python prints."""
    if isinstance(value, int) and abs(value) > MAX_INT:
        return f"a number of {value.bit_length()} bits"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def list_recipes(package: str) -> tuple[str, ...]:
    """Names of the recipes in a package, with their folders: `demo`, `pretrain/k400`."""
    return tuple(sorted(_walk(files(package) / "recipes", "")))


def _walk(folder: Traversable, prefix: str) -> list[str]:
    names: list[str] = []
    for entry in folder.iterdir():
        if entry.is_dir():
            names += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".toml"):
            names.append(prefix + entry.name.removesuffix(".toml"))
    return names


def find_recipe(package: str, name: str, folder: str = "") -> str:
    """The full name of a recipe: in the folder `pretrain`, `demo` is `pretrain/demo`. A file's name stays.

    Raises RecipeError, which names similar recipes of the folder.
    """
    known = list_recipes(package)
    if name.endswith(".toml") or name in known:
        return name
    if (full := f"{folder}/{name}") in known:
        return full
    usable = [one for one in known if one.startswith(folder)]
    short = [one.rpartition("/")[2] for one in usable]
    near = difflib.get_close_matches(name.lower(), dict.fromkeys([*short, *usable]), n=3, cutoff=0.75)
    near = [one for one, other in zip(usable, short, strict=True) if {one, other} & {*near, name}]
    command = "vmae-shard" if package == "vmae_data" else "vmae-train"
    raise RecipeError(
        f"recipe {name[:80]!r} is unknown.{did_you_mean(near)} `{command} recipes` lists all; a file's name ends in .toml"
    )


def did_you_mean(near: Sequence[str]) -> str:
    """A question that follows a full stop; empty if nothing is near."""
    *others, last = near or [""]
    listed = f"{', '.join(others)} or {last}" if others else last
    return f" Did you mean {listed}?" if near else ""


def expected_one_of(value: str, choices: Sequence[str]) -> str:
    """The end of an error about a value that is none of the choices. It asks for a similar one."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = [by_lower[name] for name in difflib.get_close_matches(value.lower(), by_lower, n=2)]
    question = f".{did_you_mean(near)}" if near else ""
    return f"expected one of: {', '.join(choices)}{question}"


def read_recipe(package: str, name: str) -> str:
    """The text of a recipe: of a file if `name` ends in .toml, else of one in the package. Raises RecipeError."""
    if name.endswith(".toml"):
        try:
            return read_bytes(Path(name)).decode("utf-8")
        except DataError as error:
            raise RecipeError(f"recipe {error}. A recipe is a TOML file, or a known name") from error
        except UnicodeDecodeError as error:
            raise RecipeError(f"recipe {name}: can't be read ({error}). Name a TOML file or a known recipe") from error
    return files(package).joinpath("recipes", f"{find_recipe(package, name)}.toml").read_text("utf-8")


def recipe_head(text: str) -> str:
    """The comment at the top of a recipe, without the `#`."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def recipe_text(values: dict[str, Any], table: str = "") -> str:
    """Values as TOML: plain ones first, then the tables. None is omitted, as in a recipe."""
    lines = [f"[{table}]"] if table else []
    lines += [f"{key} = {json.dumps(v)}" for key, v in values.items() if v is not None and not isinstance(v, dict)]
    inner = [recipe_text(v, f"{table}.{key}" if table else key) for key, v in values.items() if isinstance(v, dict)]
    return "\n".join([*lines, *(f"\n{text.rstrip()}" for text in inner)]) + "\n"


def load_recipe(package: str, name: str | None, spec: type[T], overrides: Sequence[str] = ()) -> T:
    """A recipe, changed by `key=value` overrides and checked. With `name` None: the spec's defaults.

    Raises RecipeError with the path of the key.
    """
    values = recipe_values(package, name) if name is not None else {}
    return with_settings(values, spec, overrides, f"recipe {name}" if name else "settings")


def with_settings(values: dict[str, Any], spec: type[T], overrides: Sequence[str], where: str) -> T:
    """Values from `where`, changed by `key=value` overrides and checked. Raises RecipeError with the path of the key."""
    overridden = {override.partition("=")[0].strip() for override in overrides}
    for override in overrides:
        _set(values, override, overridden, spec)
    return build_spec(values, spec, where)


def recipe_values(package: str, name: str) -> dict[str, Any]:
    """The values of a recipe, on top of those of the recipe that its key `base` names.

    A base is a recipe of the package, or a TOML file whose path starts from the recipe's folder. A base has no base:
    a reader never needs more than two texts. Raises RecipeError.
    """
    values = _parse(package, name)
    if _BASE not in values:
        return values
    base = values.pop(_BASE)
    if not isinstance(base, str):
        raise RecipeError(f"recipe {name}: base = {base!r}: expected a recipe's name or a file ending in .toml")
    base_values = _parse(package, str(Path(name).parent / base) if base.endswith(".toml") else base)
    if _BASE in base_values:
        raise RecipeError(
            f"recipe {name}: its base {base} has a base too ({base_values[_BASE]!r}). Name that one, or none"
        )
    return _merge(base_values, values)


def _parse(package: str, name: str) -> dict[str, Any]:
    text = read_recipe(package, name)
    try:
        return _load_toml(text, f"recipe {name}")
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"recipe {name}: not TOML ({error})") from error


def _load_toml(text: str, where: str) -> dict[str, Any]:
    """The values of a TOML text. Raises TOMLDecodeError, and RecipeError for what no recipe has."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise RecipeError(f"{where}: its lists or tables are nested too deep. Correct the value") from error
    except ValueError as error:  # Python reads no number of more than 4,300 digits
        raise RecipeError(f"{where}: has a number with too many digits. Correct the value") from error


def _merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Merge tables key by key. A key of `override` also drops its alternative in `base`."""
    merged = {key: value for key, value in base.items() if _ALTERNATIVES.get(key) not in override}
    for key, value in override.items():
        table = merged.get(key)
        merged[key] = _merge(table, value) if isinstance(table, dict) and isinstance(value, dict) else value
    return merged


def build_spec(values: dict[str, Any], spec: type[T], where: str) -> T:
    """Plain values as a checked spec. Raises RecipeError with the path of the key."""
    try:
        _refuse_unbounded(values, where)
        return msgspec.convert(values, type=spec)
    except msgspec.ValidationError as error:
        raise RecipeError(f"{where}: {_explain(str(error), spec)}") from error
    except RecursionError as error:
        raise RecipeError(f"{where}: its tables are nested too deep. Correct the keys") from error


def _refuse_unbounded(value: Any, where: str, key: str = "") -> None:
    """Raise RecipeError for infinity, NaN, and an integer of more than 64 bits, anywhere in plain values."""
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_unbounded(inner, where, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            _refuse_unbounded(inner, where, key)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RecipeError(f"{where}: {key} = {value}: expected a finite number")
    elif isinstance(value, int) and abs(value) > MAX_INT:
        raise RecipeError(f"{where}: {key} = {_short(value)}: expected a number below 2^63")


def _explain(message: str, spec: type[Any]) -> str:
    """Rewrite msgspec's "… - at `$.model.depth`": the key first, as users write it, and what it may be."""
    located = re.fullmatch(r"(.*?) - at `\$\.?(.*)`", message, re.DOTALL)
    text, path = (located[1], located[2]) if located else (message, "")
    expected = _type_at(msgspec.inspect.type_info(spec), path)
    if unknown := re.fullmatch(r"Object contains unknown field `(.*?)`", text):
        prefix = f"{path}." if path else ""
        known = [field.name for field in expected.fields] if isinstance(expected, msgspec.inspect.StructType) else []
        near = did_you_mean([prefix + name for name in difflib.get_close_matches(unknown[1], known, n=2)])
        return f"{prefix}{unknown[1]}: no such key.{near} Known keys: {', '.join(known)}"
    wrong = re.fullmatch(r"Invalid enum value '?(.*?)'?", text, re.DOTALL)
    if wrong and isinstance(expected, msgspec.inspect.LiteralType):
        return f"{path} = {wrong[1]}: {expected_one_of(wrong[1], [*map(str, expected.values)])}"
    text = text[0].lower() + text[1:].replace("`", "")
    return f"{path}: {text}" if path else text


def keys_of(spec: type[Any]) -> list[str]:
    """Every key of a recipe, with its tables: `optim.base_lr`. In the order of the spec."""

    def walk(kind: msgspec.inspect.Type, path: str) -> Iterator[str]:
        kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
        table = next((one for one in kinds if isinstance(one, msgspec.inspect.StructType)), None)
        if table is None:
            yield path
            return
        for field in table.fields:
            yield from walk(field.type, f"{path}.{field.encode_name}".lstrip("."))

    return list(walk(msgspec.inspect.type_info(spec), ""))


def _type_at(kind: msgspec.inspect.Type, path: str) -> msgspec.inspect.Type | None:
    """The type of a spec at a path such as `model.sizes[0]`; None if it is a union of several."""
    for part in re.findall(r"\[[^]]*\]|[^.\[]+", path):
        if isinstance(kind, msgspec.inspect.StructType):
            kind = next((field.type for field in kind.fields if field.name == part), kind)
        elif isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
            kind = kind.item_type
        if isinstance(kind, msgspec.inspect.UnionType):
            members = [one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType)]
            if len(members) != 1:
                return None
            kind = members[0]
    return kind


def _set(values: dict[str, Any], override: str, overridden: Collection[str], spec: type[Any]) -> None:
    """Apply one `key=value`. It drops the recipe's alternative to the key, unless an override sets that too."""
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(f"--set {override}: expected key=value, such as --set seed=1")
    try:
        value: Any = _load_toml(f"value = {text}", f"--set {key.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # text without quotes, which a shell removes
    expected = _type_at(msgspec.inspect.type_info(spec), key.strip())
    if not isinstance(value, str) and isinstance(expected, msgspec.inspect.StrType):
        value = text.strip()  # 0x3, 2026 and true are a number or a boolean in TOML, but the key is text
    if value is text and isinstance(expected, msgspec.inspect.FloatType) and _SHORT_FLOAT.fullmatch(text.strip()):
        value = float(text)
    for part in parts[:-1]:
        table = values.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {override}: {part} is a value, not a table")
        values = table
    values[parts[-1]] = value
    alternative = _ALTERNATIVES.get(parts[-1])
    if alternative and ".".join((*parts[:-1], alternative)) not in overridden:
        values.pop(alternative, None)


def with_defaults(values: dict[str, Any], spec: type[Any]) -> dict[str, Any]:
    """A stored recipe, completed with the defaults of the keys that `spec` gained later.

    A recipe that does not fit `spec` is returned unchanged: its difference from a new one then names the keys.
    """
    try:
        completed: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(msgspec.convert(values, type=spec)))
    except msgspec.ValidationError:
        return values
    return completed


def difference(old: Any, new: Any, prefix: str = "") -> list[str]:
    """Where two plain values (records as dicts) differ: one `key: old → new` each."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for key in sorted(old.keys() | new.keys()):
            lines += difference(old.get(key), new.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if old == new else [f"{prefix}: {_value_text(old)} → {_value_text(new)}"]


def _value_text(value: Any) -> str:
    return "not set" if value is None else repr(value)


def shorten_digests(text: str) -> str:
    """Cut every SHA-256 in a text to its first 12 digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", text)
