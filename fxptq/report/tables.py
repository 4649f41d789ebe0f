"""Tables in three forms: drawn for a terminal, aligned text for pipes and files, Markdown for pages."""

from __future__ import annotations

from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table

from fxptq.errors import InputError

Form = Literal["table", "plain", "md"]
"""Drawn with lines; aligned by spaces alone; Markdown."""

FORMS: tuple[Form, ...] = ("table", "plain", "md")


def parse_form(text: str) -> Form:
    """Reads a form by its name.

    Raises:
        InputError: there is no such form.
    """
    for form in FORMS:
        if text == form:
            return form
    raise InputError(f"--format {text!r}: expected {', '.join(FORMS[:-1])} or {FORMS[-1]}")


_RULES = box.Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n")
"""A line below the header and above the mean, and no other."""


class TableConsole(Console):
    """A console that prints each table in one form.

    Args:
        form: the form of tables.
        options: of the console.
    """

    def __init__(self, form: Form, **options: Any) -> None:
        super().__init__(**options)
        self.form = form

    def print(self, *objects: Any, **options: Any) -> None:
        """Prints as a console does, tables in their form."""
        super().print(*map(self._formed, objects), **options)

    def _formed(self, thing: Any) -> Any:
        if not isinstance(thing, Table) or self.form == "table":
            return thing
        if self.form == "md":
            return as_markdown(thing)
        thing.box, thing.header_style, thing.title_style, thing.show_edge = _RULES, "", "", False
        return thing


def as_markdown(table: Table) -> str:
    """A table as Markdown, its title above it; numbers are aligned at the right."""
    columns = [[_cell(cell) for cell in column.cells] for column in table.columns]
    header = [_cell(column.header) for column in table.columns]
    rule = ["--:" if column.justify == "right" else "---" for column in table.columns]
    lines = [" | ".join(row) for row in (header, rule, *zip(*columns, strict=True))]
    title = [f"**{_cell(table.title)}**", ""] if table.title else []
    return "\n".join([*title, *(f"| {line} |" for line in lines)]) + "\n"


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("\\", "\\\\").replace("|", "\\|")
