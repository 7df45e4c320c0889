"""The keys of recipes as a page, made from the spec classes: their docstrings, types, defaults and comments."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec.inspect import StructType

from tools.docs.commands import table
from vmae_data.encode.build_spec import BuildSpec
from vmae_train.finetune import FinetuneSpec
from vmae_train.pretrain import PretrainSpec

WORDS = {
    msgspec.inspect.IntType: "integer",
    msgspec.inspect.FloatType: "number",
    msgspec.inspect.StrType: "text",
    msgspec.inspect.BoolType: "true, false",
}


class Key(NamedTuple):
    path: str
    values: str
    default: str
    comment: str


class Table(NamedTuple):
    """A table of a recipe; the top of a recipe has the path ``."""

    path: str
    about: str
    keys: tuple[Key, ...]


def tables(spec: type[msgspec.Struct]) -> list[Table]:
    """The top of a recipe, then its tables in the order of the spec."""
    return list(_tables(msgspec.inspect.type_info(spec), ""))


def page() -> str:
    pretraining, finetuning = tables(PretrainSpec), tables(FinetuneSpec)
    return "\n\n".join(
        [
            "# Reference: keys of recipes",
            "## Build recipes",
            *_sections(tables(BuildSpec), "build"),
            "## Training recipes",
            *_sections([one for one in pretraining if one.path and one in finetuning], ""),
            "## Pretraining recipes",
            *_sections([one for one in pretraining if one not in finetuning], "pretrain"),
            "## Finetuning recipes",
            *_sections([one for one in finetuning if one not in pretraining], "finetune"),
        ]
    )


def _sections(found: list[Table], top: str) -> Iterator[str]:
    """Text of tables. An anchor of the top's keys starts with the recipe's kind."""
    for one in found:
        if one.path:
            yield f"### [{one.path}]"
        yield one.about
        rows = [(_anchor(key, top), key.values, f"`{key.default}`", key.comment) for key in one.keys]
        yield table(("key", "values", "default", "note"), rows)


def _anchor(key: Key, top: str) -> str:
    name = key.path.rpartition(".")[2]
    anchor = f"{top}.{key.path}".strip(".") if "." not in key.path or top == "build" else key.path
    return f'<code id="{anchor}">{name}</code>'


def _tables(kind: Any, path: str) -> Iterator[Table]:
    comments = _comments(kind.cls)
    inner = {field.encode_name: _struct(field.type) for field in kind.fields}
    keys = tuple(
        Key(_join(path, field.encode_name), _values(field.type), _default(field), comments.get(field.name, ""))
        for field in kind.fields
        if inner[field.encode_name] is None
    )
    if keys:
        yield Table(path, inspect.cleandoc(kind.cls.__doc__ or ""), keys)
    for name, struct in inner.items():
        if struct is not None:
            yield from _tables(struct, _join(path, name))


def _struct(kind: Any) -> StructType | None:
    """The table that a key is, if it is one."""
    kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
    return next((one for one in kinds if isinstance(one, StructType)), None)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


def _values(kind: Any) -> str:
    if isinstance(kind, msgspec.inspect.UnionType):
        return " or ".join(_values(one) for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
    if isinstance(kind, msgspec.inspect.LiteralType):
        return ", ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, msgspec.inspect.TupleType):
        return f"list of {len(kind.item_types)}: {_values(kind.item_types[0])}"
    if isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType):
        return f"list of {_values(kind.item_type)}"
    return WORDS[type(kind)]


def _default(field: Any) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return json.dumps(field.default_factory())
    return "none" if field.default is None else json.dumps(field.default)


def _comments(spec: type) -> dict[str, str]:
    """The comment at each key's line, or above it. Keys of base classes are there too."""
    found: dict[str, str] = {}
    for one in reversed(spec.__mro__):
        if issubclass(one, msgspec.Struct) and one is not msgspec.Struct:
            found |= _own_comments(textwrap.dedent(inspect.getsource(one)))
    return found


def _own_comments(source: str) -> dict[str, str]:
    lines, found = source.splitlines(), {}
    (made,) = ast.parse(source).body
    assert isinstance(made, ast.ClassDef)
    for node in made.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            behind = re.search(r"  # (.*)", lines[(node.end_lineno or node.lineno) - 1])
            above = re.fullmatch(r"\s*# (.*)", lines[node.lineno - 2])
            comment = behind or above
            found[node.target.id] = comment[1] if comment else ""
    return found
