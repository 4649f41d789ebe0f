"""The report as one HTML page that needs no other file and no network: its pictures, styles and program are inside.

`gather` makes the content from the outcome of a command, `sections` turn it into markup, and this module puts the
sections together.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from fxptq.io.files import write_text
from fxptq.report import sections
from fxptq.report.content import Content
from fxptq.report.html import Markup, element, join

MOST = 4_800_000
"""Characters of a page; pictures get the room that the other sections leave."""

SECTIONS: tuple[tuple[str, str, Callable[[Content], Markup] | None], ...] = (
    ("summary", "Summary", sections.summary),
    ("pictures", "Pictures, worst patches first", None),
    ("quality", "Quality", sections.quality),
    ("network", "Network", sections.network),
    ("sites", "Sites", sections.sites),
    ("float", "In float, and why", sections.in_float),
    ("passes", "Passes and loss", sections.training),
    ("colours", "Colours and ranges", sections.colours),
    ("costs", "Bytes and time", sections.costs),
    ("origin", "Command, machine, versions", sections.origin),
)
"""The sections of a page: identifier, heading, and what makes it; pictures are made last."""


def write(content: Content, path: Path) -> Path:
    """Writes the page atomically and returns its path.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, page(content))
    return path


def page(content: Content) -> str:
    """The page."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="generator", content="fxptq"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", content.title),
        element("link", rel="icon", href="data:,"),
        element("style", _asset("page.css")),
    )
    links = [element("a", title.partition(",")[0], href=f"#{name}") for name, title, _ in SECTIONS]
    made = {name: make(content) for name, _, make in SECTIONS if make is not None}
    made["pictures"] = sections.patches(content, MOST - sum(map(len, made.values())))
    parts = [
        element("section", element("h2", title, id=name), made[name], aria_labelledby=name)
        for name, title, _ in SECTIONS
    ]
    body = element(
        "body",
        element("a", "Skip to the content", href="#summary", class_="skip"),
        element("header", element("h1", content.title), element("nav", *links, aria_label="Sections")),
        element("main", *parts),
        element("script", _asset("page.js")),
    )
    return join([Markup('<!doctype html><html lang="en">'), head, body, Markup("</html>\n")])


def _asset(name: str) -> Markup:
    """A file of this package; it is our own text, and goes into the page as it is."""
    return Markup(files("fxptq.report").joinpath("assets", name).read_text(encoding="utf-8"))
