"""HTML as values: every text is escaped where it enters, and only this module makes markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

Attribute = str | int | float | bool | None


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


_EMPTY = frozenset({"img", "input", "meta", "br", "path", "line", "rect", "circle"})
"""Elements that are written without a closing tag; those of SVG close themselves."""

_SVG = frozenset({"path", "line", "rect", "circle"})


def element(tag: str, *children: str, **attributes: Attribute) -> Markup:
    """An element.

    Args:
        tag: its name.
        *children: its content; whatever is no Markup is escaped.
        **attributes: by name, with `_` for `-` and a `_` at the end left out (`class_`); True stands for an attribute
            without a value, None and False for none.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _EMPTY and not children:
        return Markup(f"<{tag}{written}{'/' if tag in _SVG else ''}>")
    return Markup(f"<{tag}{written}>{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Markup:
    """Several pieces one after the other; whatever is no Markup is escaped."""
    return Markup("".join(child if isinstance(child, Markup) else escape(child) for child in children))


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escape(str(value))}"'


def cell(text: str) -> Markup:
    """A cell of a table; numbers stand at the right."""
    if isinstance(text, Markup):
        return element("td", text)
    return element("td", text, class_="n" if text[:1].isdigit() or text[:2] in _SIGNED else None)


_SIGNED = frozenset(f"{sign}{digit}" for sign in "+-" for digit in "0123456789")


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Markup:
    """A table in a box that scrolls where the screen is narrow."""
    head = element("tr", *(element("th", name, scope="col") for name in header))
    body = join(element("tr", *map(cell, row)) for row in rows)
    title = [element("caption", caption)] if caption else []
    return scrolling(element("table", *title, element("thead", head), element("tbody", body)), caption or header[0])


def scrolling(content: Markup, label: str, *, tall: bool = False) -> Markup:
    """A box that scrolls sideways, by keyboard too; a tall one is no higher than the window and scrolls both ways."""
    return element(
        "div", content, class_="wide tall" if tall else "wide", tabindex="0", role="region", aria_label=label
    )
