"""Writes docs/api.md from the docstrings of the public face and of the points where other packages plug in.

    python -m docs.make_api

The sources are read, not imported, so that the page is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
WIDTH = 100  # characters of a signature on one line

DOCUMENTED = {
    "fxptq": "The public face",
    "fxptq.passes.base": "Passes",
    "fxptq.quant.scheme": "Schemes",
    "fxptq.quant.quantizer": "Quantizers",
    "fxptq.quant.grid": "Grids",
    "fxptq.graph.sites": "Sites",
    "fxptq.kernels.backend": "Back ends",
    "fxptq.export.write": "Export",
}
"""The modules on the page, in its order, with the titles of their sections."""

HEAD = """\
# The API

`make api` writes this page from the docstrings; a test compares the two. [custom.md](custom.md) shows the same
functions at work, [examples/](../examples/) has short programs, and [CONTRIBUTING.md](../CONTRIBUTING.md) says how to
add a part.
"""


def page() -> str:
    """The text of docs/api.md."""
    package = griffe.load("fxptq", search_paths=[ROOT], allow_inspection=False, docstring_parser="google")
    lines = [HEAD]
    for name, title in DOCUMENTED.items():
        module = package.modules_collection[name]
        lines += [f"## {title}: `{name}`", ""]
        # The docstring of the package is an example of its use; those of other modules are prose.
        lines += [*_code(module.docstring.value)] if name == "fxptq" else [*_docstring(module)]
        for member in _members(module):
            lines += _object(member)
    return "\n".join(lines).rstrip() + "\n"


def _code(docstring: str) -> Iterator[str]:
    sentence, _, code = docstring.partition("\n\n")
    yield from (sentence.removeprefix("fxptq: ").capitalize(), "", "```python", code, "```", "")


def _members(module: griffe.Object) -> list[griffe.Object]:
    """What `__all__` names, or else the public classes and functions that the module defines."""
    if module.exports is not None:
        chosen = [module[str(name)] for name in module.exports]
    else:
        chosen = [
            x for x in module.members.values() if not x.is_alias and x.is_public and (x.is_class or x.is_function)
        ]
    return [x.final_target if x.is_alias else x for x in chosen if not x.is_attribute]


def _object(member: griffe.Object, owner: str = "") -> list[str]:
    """A class with its public methods and properties, or a function."""
    level, name = "####" if owner else "###", f"{owner}{member.name}"
    lines = [f"{level} `{name}`", ""]
    if member.is_function:
        lines += ["```python", _signature(member), "```", ""]
    elif member.is_class and member.bases:
        lines += [f"Bases: {', '.join(f'`{base}`' for base in member.bases)}.", ""]
    elif member.is_attribute and member.annotation:
        lines += [f"A property: `{member.annotation}`.", ""]
    lines += _docstring(member)
    if member.is_class:
        for inner in member.members.values():
            documented = inner.is_function or (inner.is_attribute and "property" in inner.labels)
            if documented and inner.is_public and not inner.name.startswith("__"):
                lines += _object(inner, f"{name}.")
    return lines


def _signature(function: griffe.Function) -> str:
    """How the function is called, on several lines where one would be too long."""
    kind = "@classmethod\n" if "classmethod" in function.labels else ""
    line = f"{kind}{function.signature()}"
    if len(line) <= WIDTH:
        return line
    # griffe writes the parameters; a comma outside all brackets ends one.
    inside, _, returns = function.signature().partition("(")[2].rpartition(")")
    parameters, depth, current = [], 0, ""
    for character in inside:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parameters.append(current.strip())
            current = ""
        else:
            current += character
    body = "".join(f"    {parameter},\n" for parameter in (*parameters, current.strip()))
    return f"{kind}{function.name}(\n{body}){returns}"


def _docstring(member: griffe.Object) -> Iterator[str]:
    if member.docstring is None:
        return
    for section in member.docstring.parsed:
        match section.kind:
            case griffe.DocstringSectionKind.text:
                yield from (section.value, "")
            case griffe.DocstringSectionKind.parameters | griffe.DocstringSectionKind.attributes:
                yield from (f"**{section.kind.value.capitalize()}**", "")
                yield from (_entry(entry.name, entry.annotation, entry) for entry in section.value)
                yield ""
            case griffe.DocstringSectionKind.returns:
                yield from (f"**Returns** {_line(section.value[0])}", "")
            case griffe.DocstringSectionKind.raises:
                yield from ("**Raises**", "")
                yield from (_entry(entry.annotation, None, entry) for entry in section.value)
                yield ""
            case griffe.DocstringSectionKind.examples:
                code = "\n".join(text for _, text in section.value)
                plain = "\n".join(line.removeprefix(">>> ").removeprefix("... ") for line in code.splitlines())
                yield from ("**Examples**", "", "```python", plain, "```", "")
            case other:
                raise ValueError(f"{member.path}: its docstring has a section {other.value!r}, unknown to {__name__}")


def _entry(name: object, kind: object, entry: griffe.DocstringElement) -> str:
    typed = f" (`{kind}`)" if kind else ""
    return f"- `{name}`{typed}: {_line(entry)}"


def _line(entry: griffe.DocstringElement) -> str:
    return " ".join(entry.description.split())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
