"""Writes docs/passes.md and docs/recipes.md: the settings of passes and the fields of recipes, read from the code.

python -m docs.make_settings
"""

from __future__ import annotations

import builtins
import inspect
import json
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fxptq import recipe
from fxptq.commands import passes
from fxptq.passes.base import get_pass, pass_names

DOCS = Path(__file__).resolve().parent

PASSES_HEAD = """\
# Passes

A recipe is a list of passes with settings, and a pass is one step of the calibration. `make api` writes this page from
the code; `fxptq passes` prints the list, and `fxptq passes NAME` the settings of one pass.
[custom.md](custom.md#a-pass-of-your-own) shows how to write a pass of your own.

A recipe gives settings beside the name:

```toml
# steps.toml
name = "steps"
title = "Any network, two hundred steps of distillation"
[presets.standard]
images = 16
passes = [{ name = "dobi" }, { name = "dqc", steps = 200, lr = 0.05 }]
```

A setting that is left out keeps its default. A name that does not exist is refused, with the nearest name that does:

```python
import fxptq
from fxptq.passes.base import build_pass

print(build_pass("dqc", {"steps": 200}).settings.batch)
try:
    build_pass("dqc", {"step": 200})
except fxptq.InputError as error:
    print(error)
```
"""

RECIPES_HEAD = """\
# Recipes

A recipe is a TOML file that holds the facts about a network: the function that builds it, the place of its weights, the
form of its input, the damage that it repairs, the sites to quantize, and the passes of each preset. It holds no code.
`fxptq recipes` lists the bundled recipes; a `.toml` file of your own works wherever the name of a recipe does. `make
api` writes the tables of this page from the code.

This file describes a denoiser for grey pictures, with two presets of its own:

```toml
# grey.toml
name = "grey"
title = "A denoiser for grey pictures, noise 25"

[input]
channels = 1
multiple = 8
size = [32, 32]

[degradation]
kind = "noise"
sigma = 25.0

[quantize]
edges = "high"
sites = { "tail" = "float" }

[presets.quick]
images = 4
passes = [{ name = "minmax" }]

[presets.careful]
images = 8
passes = [{ name = "dobi" }, { name = "dqc", steps = 50, patch = 32 }]
```

A recipe is checked in full when it is read, and each fault names the file and the field:

```python
import fxptq

grey = fxptq.Recipe.load("grey.toml")
print(grey.task, grey.preset_names)
```

Presets that a recipe does not give are those of the recipe `default`: `quick`, `standard`, `best` and `paper`.
[custom.md](custom.md) uses recipes step by step.
"""


def passes_page() -> str:
    """The text of docs/passes.md."""
    infos = [
        info for name in pass_names() if get_pass(name).__module__.startswith("fxptq.") for info in passes.run(name)
    ]
    lines = [PASSES_HEAD, "| pass | purpose |", "|---|---|"]
    lines += [f"| [`{info.name}`](#{info.name}) | {_cell(info.purpose)} |" for info in infos]
    for info in infos:
        cls = get_pass(info.name)
        lines += ["", f"## {info.name}", "", info.purpose]
        notes = [f"needs: {', '.join(sorted(cls.needs))}"] * bool(cls.needs)
        notes += [f"provides: {', '.join(sorted(cls.provides))}"] * bool(cls.provides)
        notes += ["sets the first bounds"] * cls.sets_bounds
        if notes:
            lines += ["", f"Statistics and bounds: {'; '.join(notes)}."]
        lines += ["", *(_settings(info) if info.settings else ["This pass has no settings."])]
    return "\n".join(lines) + "\n"


def _settings(info: passes.PassInfo) -> Iterator[str]:
    yield "| setting | type | default | meaning |"
    yield "|---|---|---|---|"
    for one in info.settings:
        yield f"| `{one.name}` | `{_cell(one.type)}` | `{one.default}` | {_cell(one.meaning)} |"


TABLES: dict[str, type[BaseModel]] = {
    "(top level)": recipe.Recipe,
    "[model]": recipe.Model,
    "[weights]": recipe.Weights,
    "[input]": recipe.Input,
    "[degradation]": recipe.DegradationTable,
    "[quantize]": recipe.QuantizeSettings,
    "[presets.NAME]": recipe.PresetTable,
    "an entry of `passes`": recipe.PassEntry,
}
"""The tables of a recipe, by the name of the section in the file."""


def recipes_page() -> str:
    """The text of docs/recipes.md."""
    lines = [RECIPES_HEAD]
    for title, table in TABLES.items():
        doc = inspect.getdoc(table) or ""
        meanings = passes.attributes(doc)
        lines += [f"## {title}", "", " ".join(doc.partition("\n\n")[0].split()), ""]
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for name, field in table.model_fields.items():
            default = "must be given" if field.is_required() else f"`{_default(field)}`"
            meaning = meanings.get(name) or _elsewhere(field)
            lines.append(f"| `{name}` | {_cell(_type(field.annotation))} | {default} | {_cell(meaning)} |")
        lines.append("")
    return "\n".join(lines)


def _elsewhere(field: FieldInfo) -> str:
    """The meaning of a field that the section `Attributes` of its table leaves out."""
    return (
        "see the table below." if isinstance(field.get_default(call_default_factory=True), BaseModel) else "see above."
    )


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "its own defaults"
    if value is None:
        return "none"
    return json.dumps(list(value) if isinstance(value, tuple) else value)


NAMES = {str: "text", int: "number", float: "number", bool: "true or false", Any: "anything"}


def _type(annotation: Any) -> str:  # whatever stands in the class
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    match origin:
        case typing.Annotated:
            name = _type(arguments[0])
        case typing.Literal:
            name = ", ".join(f"`{value}`" for value in arguments)
        case typing.Union | types.UnionType:
            name = " or ".join(_type(argument) for argument in arguments if argument is not types.NoneType)
        case builtins.list | builtins.tuple:
            name = f"list of {_type(arguments[0])}"
        case builtins.dict:
            name = f"table of {_type(arguments[1])}"
        case _ if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            name = "table"
        case _:
            name = NAMES.get(annotation, str(annotation))
    return name


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"passes.md": passes_page, "recipes.md": recipes_page}
"""The pages of this script, by file."""

if __name__ == "__main__":
    for name, text in PAGES.items():
        (DOCS / name).write_text(text(), encoding="utf-8")
