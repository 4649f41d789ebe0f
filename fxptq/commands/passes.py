"""`fxptq passes`: the passes and their settings, read from their classes: nothing is listed twice."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from fxptq.passes.base import Pass, get_pass, pass_names


@dataclass(frozen=True)
class Setting:
    """One setting of a pass.

    Attributes:
        name: as recipes give it.
        type: its type as the source states it.
        default: its default as a recipe would write it; empty where it has none.
        meaning: its description.
    """

    name: str
    type: str
    default: str
    meaning: str


@dataclass(frozen=True)
class PassInfo:
    """A pass: its name, the first sentence on it, and its settings."""

    name: str
    purpose: str
    settings: tuple[Setting, ...]


def run(name: str | None = None) -> list[PassInfo]:
    """All passes, those of other packages too, or the one of that name.

    Raises:
        InputError: there is no such pass.
    """
    return [describe(each, get_pass(each)) for each in (pass_names() if name is None else [name])]


def describe(name: str, cls: type[Pass]) -> PassInfo:
    """Reads a pass from its class and the docstrings of its module and its settings."""
    text = inspect.getdoc(inspect.getmodule(cls)) or inspect.getdoc(cls) or ""
    meanings: dict[str, str] = {}
    for base in reversed(cls.Settings.__mro__):  # settings that passes share are described once
        meanings |= attributes(inspect.cleandoc(base.__doc__ or ""))
    settings = tuple(
        Setting(field.name, str(field.type), _default(field), meanings.get(field.name, ""))
        for field in dataclasses.fields(cls.Settings)
    )
    return PassInfo(name, " ".join(text.partition("\n\n")[0].split()), settings)


def attributes(docstring: str) -> Mapping[str, str]:
    """The descriptions in the section `Attributes:` of a docstring, by name."""
    section = re.search(r"^Attributes:\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        return {}
    found: dict[str, str] = {}
    names: list[str] = []
    for line in inspect.cleandoc(section[1]).splitlines():
        entry = re.match(r"(\w+(?:, \w+)*): (.*)", line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def _default(field: dataclasses.Field[object]) -> str:
    """The default as a recipe writes it; "none" for none, which a recipe states by leaving the setting out."""
    value = field.default
    if value is dataclasses.MISSING:
        return ""
    return "none" if value is None else json.dumps(value, default=str)
