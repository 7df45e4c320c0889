"""What the parser of a command line refuses, in the words of our own errors."""

from __future__ import annotations

import difflib
import re
from typing import Any

from vmae_data.recipes import did_you_mean, expected_one_of

__all__ = ["parameter_name", "parser_error_text"]


def parser_error_text(error: Any) -> str:
    """The text of an error of the parser; empty if it only asks for the help."""
    param, text = getattr(error, "param", None), str(error.format_message()).replace("Value error, ", "")
    if hasattr(error, "possibilities"):
        names = [name for param in error.ctx.command.params for name in param.opts] if error.ctx else []
        known = {name.lstrip("-"): name for name in names if name.startswith("--")}
        near = [known[name] for name in difflib.get_close_matches(error.option_name.lstrip("-"), known, n=2)]
        return f"{error.option_name}: no such option" + (f".{did_you_mean(near)}" if near else "")
    if command := re.fullmatch(r"No such command '(.*?)'\.(?: Did you mean (.*)\?)?", text, re.DOTALL):
        near = re.findall("'(.*?)'", command[2] or "")
        return f"{command[1]}: no such command" + (f".{did_you_mean(near)}" if near else "")
    if extra := re.fullmatch(r"Got unexpected extra arguments?\(?s?\)? \((.*)\)", text, re.DOTALL):
        taken = [parameter_name(one) for one in error.ctx.command.params if one.param_type_name == "argument"]
        return f"{extra[1]}: too many arguments. The command takes {' '.join(taken) or 'options only'}"
    if param is None:
        return text
    name, choices = parameter_name(param), _choices(param)
    if hasattr(error, "param_type"):
        return f"{name} is missing" + (f": {expected_one_of('', choices)}" if choices else "")
    if choices and (wrong := re.search(r"'(.*)' is not one of ", error.message, re.DOTALL)):
        return f"{name} {wrong[1]}: {expected_one_of(wrong[1], choices)}"
    if expected := _expected_number(param):
        return f"{name}: expected {expected}"
    return text


def parameter_name(param: Any) -> str:
    """An option as it is written, an argument as the help names it."""
    name = param.opts[0]
    return str(name if name.startswith("-") else getattr(param, "metavar", None) or param.name)


def _choices(param: Any) -> list[str]:
    choices = getattr(getattr(param, "type_descriptor", None), "choices", None) or ()
    return [str(getattr(choice, "value", choice)) for choice in choices]


def _expected_number(param: Any) -> str:
    """`a whole number, 1 to 1024`; empty if the parameter is no number."""
    descriptor = getattr(param, "type_descriptor", None)
    kind = getattr(descriptor, "annotation", None)
    kind = next(iter(getattr(kind, "__args__", ())), kind)  # of a list
    if descriptor is None or kind not in (int, float):
        return ""
    what = "a whole number" if kind is int else "a number"
    low, high = descriptor.parameter_info.min, descriptor.parameter_info.max
    if low is None:
        return what if high is None else f"{what}, at most {high}"
    return f"{what}, {low} or more" if high is None else f"{what}, {low} to {high}"
